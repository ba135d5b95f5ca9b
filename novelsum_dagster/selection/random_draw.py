"""Random draws: a uniform one, and one that repeats a few samples to make sets of low diversity.

Belongs here: Random and Duplicate of the paper's comparison. Does not: draws within clusters (`kmeans`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.picks import Picks, recorded


def random(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Picks:
    """Pick k samples uniformly without replacement: the baseline of the paper's comparison.

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,), for the record.
        seed: of the draw, default 42.
        progress: called once, at the end.

    Raises:
        ValueError: for bad rows, factors or qualities, or k out of range.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    indices = np.random.default_rng(seed).permutation(len(inputs.units))[:k].astype(np.int64)
    progress(k, k)
    return recorded(indices, *inputs)


def duplicate(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
    copies: int = 10,
) -> Picks:
    """Pick ceil(k / copies) samples uniformly and repeat them, in the same order, until there are k picks.

    The paper makes its sets of low diversity this way. The first samples are those of `random` with the same seed.
    For studies only: picks repeat, and every repetition is at distance 0 of an earlier pick.

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,), for the record.
        seed: of the draw, default 42.
        progress: called once, at the end.
        copies: how often a sample is picked, 1 or more, default 10; if k is not a multiple of it, the last samples
            of the draw are picked once less.

    Raises:
        ValueError: for bad rows, factors or qualities, or k or `copies` out of range.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    if copies < 1:
        raise ValueError(f"copies is {copies}; it must be 1 or more")
    distinct = np.random.default_rng(seed).permutation(len(inputs.units))[: -(-k // copies)]
    progress(k, k)
    return recorded(np.resize(distinct, k).astype(np.int64), *inputs)
