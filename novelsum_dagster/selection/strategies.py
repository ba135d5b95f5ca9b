"""The strategies behind one interface and one settings name each.

Belongs here: the table of strategies and the call by name. Does not: any strategy; each has its own module.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.selection.farthest import farthest
from novelsum_dagster.selection.gist import gist
from novelsum_dagster.selection.kcenter import kcenter
from novelsum_dagster.selection.kmeans import kmeans
from novelsum_dagster.selection.novelselect import novelselect
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.qdit import qdit
from novelsum_dagster.selection.random_draw import duplicate, random
from novelsum_dagster.selection.repr_filter import repr_filter

STRATEGIES: dict[str, Callable[..., Picks]] = {
    "novelselect": novelselect,
    "random": random,
    "farthest": farthest,
    "kmeans": kmeans,
    "kcenter": kcenter,
    "qdit": qdit,
    "repr_filter": repr_filter,
    "gist": gist,
    "duplicate": duplicate,
}
_GIVEN_TO_ALL = {"embeddings", "k", "density_factor", "quality", "seed", "progress"}


def select(
    strategy: str,
    embeddings: ArrayLike,
    k: int | None,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
    **options: Any,
) -> Picks:
    """Pick k samples by the named strategy.

    Args:
        strategy: a key of `STRATEGIES`.
        embeddings: (n, d).
        k: number of picks, 1 to n; None if `novelselect` is given a budget.
        density_factor: float64, (n,).
        quality: float64, (n,), or None.
        seed: of whatever the strategy draws, default 42.
        progress: called as the strategy says.
        options: the strategy's own options, by name; its defaults hold for the others.

    Raises:
        ValueError: for an unknown strategy or option, and as the strategy does.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is unknown; the strategies are {', '.join(STRATEGIES)}")
    known = [name for name in inspect.signature(STRATEGIES[strategy]).parameters if name not in _GIVEN_TO_ALL]
    for name in options:
        if name not in known:
            raise ValueError(
                f"strategy {strategy!r} has no option {name!r}; its options are: {', '.join(known) or 'none'}"
            )
    if quality is not None:
        options["quality"] = quality
    return STRATEGIES[strategy](embeddings, k, density_factor=density_factor, seed=seed, progress=progress, **options)
