"""The strategies behind one interface and one settings name each.

Belongs here: the table of strategies, and those that are a few lines. Does not: NovelSelect (`novelselect`).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.vectors import as_rows, unit_rows
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.selection.novelselect import check_k, novelselect
from novelsum_dagster.selection.picks import Picks, nearest_earlier


class Strategy(Protocol):
    """Picks k of n samples."""

    def __call__(
        self,
        embeddings: ArrayLike,
        k: int,
        *,
        density_factor: NDArray[np.float64],
        proximity_power: float,
        seed: int,
        progress: Progress,
    ) -> Picks: ...


def random(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    proximity_power: float = 1.0,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Picks:
    """Pick k samples uniformly without replacement; `proximity_power` is not used.

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        seed: of the draw.

    Raises:
        ValueError: for bad rows or k out of range.
    """
    units = unit_rows(as_rows(embeddings))
    check_k(k, len(units))
    indices = np.random.default_rng(seed).permutation(len(units))[:k].astype(np.int64)
    nothing = np.full(k, np.nan)
    nearest_pick, nearest_distance = nearest_earlier(units[indices])
    progress(k, k)
    return Picks(
        indices, nothing, np.full(k, -1, np.int64), nothing, nearest_pick, nearest_distance, density_factor[indices]
    )


STRATEGIES: dict[str, Callable[..., Picks]] = {"novelselect": novelselect, "random": random}


def select(
    strategy: str,
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    proximity_power: float = 1.0,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Picks:
    """Pick k samples by the named strategy.

    Raises:
        ValueError: for an unknown strategy, and as the strategy does.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is unknown; the strategies are {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy](
        embeddings, k, density_factor=density_factor, proximity_power=proximity_power, seed=seed, progress=progress
    )
