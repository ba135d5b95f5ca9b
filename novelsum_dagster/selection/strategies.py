"""The strategies behind one interface and one settings name each.

Belongs here: the table of strategies, the call by name with the checks and the record that all share. Does not: any
strategy; each has its own module.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.vectors import as_rows, unit_rows
from novelsum_dagster.selection.farthest import farthest
from novelsum_dagster.selection.gist import gist
from novelsum_dagster.selection.inputs import Inputs, check_density_factor, check_k, check_quality
from novelsum_dagster.selection.kcenter import kcenter
from novelsum_dagster.selection.kmeans import kmeans
from novelsum_dagster.selection.novelselect import novelselect
from novelsum_dagster.selection.picks import ChosenBy, Picks, recorded
from novelsum_dagster.selection.qdit import qdit
from novelsum_dagster.selection.random_draw import duplicate, random
from novelsum_dagster.selection.repr_filter import repr_filter

STRATEGIES: dict[str, Callable[..., Any]] = {
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
"""The strategies by name. All but `novelselect` are functions of `Inputs` and their own options that return a
`PickLog`."""
_NOT_BY_SCORE: dict[str, ChosenBy] = {
    "random": "drawn",
    "kmeans": "drawn",
    "duplicate": "drawn",
    "repr_filter": "threshold",
}
"""How picks were made that were not made by score; by default, the first is drawn with the seed."""
_GIVEN_TO_ALL = {"inputs", "embeddings", "k", "density_factor", "quality", "seed", "progress"}


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
        embeddings: (n, d), as the model gives them.
        k: number of picks, 1 to n; None if `novelselect` is given a budget.
        density_factor: float64, (n,), positive and finite; `novelselect` picks by it, others only record it.
        quality: float64, (n,), positive and finite, or None.
        seed: of whatever the strategy draws, default 42.
        progress: called as the strategy says.
        options: the strategy's own options, by name; its defaults hold for the others.

    Raises:
        ValueError: for an unknown strategy or option; NaN, infinite or zero rows; k out of range; factors or qualities
            that are not n positive finite numbers; and as the strategy does.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is unknown; the strategies are {', '.join(STRATEGIES)}")
    known = [name for name in inspect.signature(STRATEGIES[strategy]).parameters if name not in _GIVEN_TO_ALL]
    for name in options:
        if name not in known:
            raise ValueError(
                f"strategy {strategy!r} has no option {name!r}; its options are: {', '.join(known) or 'none'}"
            )
    if strategy == "novelselect":
        return novelselect(
            embeddings, k, density_factor=density_factor, quality=quality, seed=seed, progress=progress, **options
        )
    rows = as_rows(embeddings)
    n = len(rows)
    size = check_k(k, n)
    factor = check_density_factor(density_factor, n)
    qualities = None if quality is None else check_quality(quality, n)
    units = unit_rows(rows)
    log = STRATEGIES[strategy](Inputs(units, size, qualities, seed, progress), **options)
    by_score = np.zeros(size, np.bool_) if strategy == "repr_filter" else ~np.isnan(log.score)
    other = _NOT_BY_SCORE.get(strategy, "seed")
    return recorded(log, units, factor, qualities, chosen_by=["score" if one else other for one in by_score])
