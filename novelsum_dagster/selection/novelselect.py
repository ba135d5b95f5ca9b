"""NovelSelect: the greedy choice of the sample that is most novel to what has been picked, exactly as published.

Belongs here: the public function, its checks, the loop over picks. Does not: the search for a pick (`kernels`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import as_rows, unit_rows
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.selection.picks import Picks, nearest_earlier

_REPORT_EVERY = 10


def novelselect(
    embeddings: ArrayLike,
    k: int,
    *,
    neighbors: int = 10,
    density_power: float = 0.5,
    proximity_power: float = 1.0,
    seed: int = 42,
    density_factor: NDArray[np.float64] | None = None,
    progress: Progress = no_progress,
) -> Picks:
    """Pick k samples by the published algorithm, index for index, for a small part of its work.

    The first pick is `numpy.random.RandomState(seed).randint(0, n)`. Each further pick is the candidate i of the
    highest `F_i = sum_r r^-alpha D_(r)(i)`, where `D(i, s) = (1 - cos(i, s)) (f_i + f_s)` over the picks s, ascending,
    and f is the density factor; the lowest index wins a tie. (Paper, section 6; UmeanNever/NovelSum. The bound that
    saves the work: `kernels`.)

    Args:
        embeddings: (n, d), as the model gives them; the pool is its own reference.
        k: number of picks, 1 to n.
        neighbors: K of the density factor, default 10.
        density_power: beta, default 0.5; 0 leaves density out.
        proximity_power: alpha, default 1.0.
        seed: of the first pick, default 42.
        density_factor: float64, (n,), where known already; `neighbors` and `density_power` are then not used.
        progress: called with picks made and k.

    Raises:
        ValueError: for NaN, infinite or zero rows, k out of range, negative powers, density factors that are not n
            positive finite numbers, or a pool of fewer than `neighbors` + 1 distinct rows.
    """
    from novelsum_dagster.selection.kernels import State

    rows = as_rows(embeddings)
    n = len(rows)
    check_k(k, n)
    if density_factor is None and density_power > 0:
        density_factor = density(rows, neighbors=neighbors).factor(density_power)
    factor = np.ones(n) if density_factor is None else _checked_factor(density_factor, n)
    units = unit_rows(rows)
    state = State(units, factor, rank_weights(k, proximity_power))
    score, runner_up_score = np.full(k, np.nan), np.full(k, np.nan)
    runner_up = np.full(k, -1, dtype=np.int64)
    state.add(int(np.random.RandomState(seed).randint(0, n)))
    for rank in range(1, k):
        pick, score[rank], runner_up[rank], second = state.next_pick()
        runner_up_score[rank] = second if runner_up[rank] >= 0 else np.nan
        state.add(pick)
        if rank % _REPORT_EVERY == 0:
            progress(rank, k)
    progress(k, k)
    nearest_pick, nearest_distance = nearest_earlier(units[state.picks])
    return Picks(state.picks, score, runner_up, runner_up_score, nearest_pick, nearest_distance, factor[state.picks])


def check_k(k: int, n: int) -> None:
    """Raise a ValueError unless k picks can be made out of n samples."""
    if not 1 <= k <= n:
        raise ValueError(f"k is {k:,} and the pool has {n:,} samples; k must be from 1 to {n:,}")


def _checked_factor(factor: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    factor = np.ascontiguousarray(factor, dtype=np.float64)
    if factor.shape != (n,):
        raise ValueError(f"density_factor has shape {factor.shape}; one value for each of the {n} samples is needed")
    bad = np.flatnonzero(~(np.isfinite(factor) & (factor > 0)))
    if len(bad):
        raise ValueError(f"density_factor: row {bad[0]} is {factor[bad[0]]}; factors must be positive and finite")
    return factor
