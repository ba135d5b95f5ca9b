"""Farthest: the samples that lie farthest from all others, whatever they have in common.

Belongs here: that strategy. Does not: K-Center-Greedy, which looks at the picks made (`kcenter`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.picks import Picks, recorded

_TILE = 8192


def farthest(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Picks:
    """Pick the k samples of the largest mean cosine distance to all samples, the farthest first.

    The mean over all n samples, the sample itself included, is `1 - <x_i, mean of the unit rows>`: O(nd). Leaving the
    sample itself out scales every mean alike and changes no pick. The lowest index wins a tie. A pick's runner-up is
    the next in the ranking. (Farthest of the paper's comparison.)

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,), for the record.
        seed: not used; nothing is drawn.
        progress: called with samples scored and n.

    Raises:
        ValueError: for bad rows, factors or qualities, or k out of range.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    score = _mean_distances(inputs.units, progress)
    ranking = np.argsort(-score, kind="stable")
    runner_up, runner_up_score = np.full(k, -1, np.int64), np.full(k, np.nan)
    others = ranking[1 : k + 1]
    runner_up[: len(others)], runner_up_score[: len(others)] = others, score[others]
    indices = ranking[:k].astype(np.int64)
    return recorded(indices, *inputs, score=score[indices], runner_up=runner_up, runner_up_score=runner_up_score)


def _mean_distances(units: NDArray[np.float32], progress: Progress) -> NDArray[np.float64]:
    mean = units.mean(0, dtype=np.float64)
    score = np.empty(len(units))
    for start in range(0, len(units), _TILE):
        stop = min(start + _TILE, len(units))
        # NumPy adds in the same order on every processor; a BLAS product does not, not even for equal rows.
        score[start:stop] = 1 - (units[start:stop] * mean).sum(1)
        progress(stop, len(units))
    return score
