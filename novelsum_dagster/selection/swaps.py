"""Exchanges of picks that increase NovelSum, and an upper bound of NovelSum of any subset of that size.

Belongs here: rounds of exchanges after a greedy selection by `objective`, the bound. Does not: how increases are
computed (`search.objective`), what may be picked (`limits`).

Every exchange is the best one for its pick: the sample that increases NovelSum of the others most. No exchange lowers
NovelSum. Rounds that end because no exchange increases it leave a local optimum with respect to single exchanges. It is
not a global one, and no approximation bound is claimed; `upper_bound` limits how far it can be off.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.memory import require_memory
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import as_rows, half_squares, unit_rows
from novelsum_dagster.selection.limits import Limits
from novelsum_dagster.selection.picks import Exchanges, Found, PickLog, Picks, Remaining
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.search.objective import Chosen, OnCpu, sides

_ROUNDING = 1e-12
"""Least relative increase of NovelSum for which an exchange is made."""
MOST_BOUNDED = 50_000
"""Largest pool for which the bound is computed, as all pairs are compared."""
_TILE_VALUES = 2**21
"""Number of distances that a thread holds at a time: 16 MiB."""
_TILE_BYTES = 32
"""Bytes held for each distance: product, distance, sort key, summand."""


def improved(
    units: NDArray[np.float32],
    factor: NDArray[np.float64],
    trace: PickLog,
    scoring: Scoring,
    limits: Limits,
    *,
    kept: int = 0,
    threads: int | None = None,
    report: Callable[[], None] = lambda: None,
) -> tuple[PickLog, Remaining, Exchanges]:
    """Exchange picks while that increases NovelSum, in rounds over the picks in their order, on the CPU.

    Args:
        units: float32, (n, d), unit rows.
        factor: float64, (n,), density factors.
        trace: the picks of a selection by `objective`, (k,).
        scoring: of the selection; `swap_rounds` says how many rounds there are at most.
        limits: of the selection, all picks counted; kept at every exchange.
        kept: how many of the first picks are given, and stay.
        threads: None takes all cores that the process may use.
        report: called after every pick examined.

    Returns:
        The picks; one that came by an exchange has the place of the one that it replaced, as score the increase of
        NovelSum against the others at that time, as runner-up the second best for the place. Of every sample, by how
        much it would increase NovelSum now. The exchanges made.

    Raises:
        NotEnoughMemory: if distances of all candidates to all picks would not fit.
    """
    run = _Rounds(units, factor, trace, scoring, limits, threads)
    before, rounds, count = run.chosen.novelsum(), 0, 0
    with closing(run.columns):
        while rounds < scoring.swap_rounds:
            made = 0
            for place in range(kept, len(trace.indices)):
                made += run.exchange(place)
                report()
            rounds, count = rounds + 1, count + made
            if not made:
                break
        score = run.chosen.increase(run.columns.added(run.chosen)[0])
    remaining = Remaining(score, np.full(len(units), len(trace.indices)), np.ones(len(units), np.bool_))
    return run.trace, remaining, Exchanges(count, rounds, before, run.chosen.novelsum(), run.by_exchange)


class _Rounds:
    """The picks, what candidates see of them, and the record of exchanges."""

    def __init__(
        self,
        units: NDArray[np.float32],
        factor: NDArray[np.float64],
        trace: PickLog,
        scoring: Scoring,
        limits: Limits,
        threads: int | None,
    ) -> None:
        k = len(trace.indices)
        self._units, self._factor, self._limits = units, factor, limits
        self.trace = PickLog(**{name: values.copy() for name, values in vars(trace).items()})
        self.by_exchange = np.zeros(k, np.bool_)
        self.chosen = Chosen(k, units.shape[1], scoring)
        self.columns = OnCpu(units, *sides(factor, scoring), k, threads)
        for pick in trace.indices:
            self.columns.join(units[pick], self.chosen.append(units[pick], factor[pick]))

    def exchange(self, place: int) -> bool:
        """Replace a pick by the best sample for its place; return whether it was replaced, which increases NovelSum."""
        pick, before = int(self.trace.indices[place]), self.chosen.total
        added, without = self.columns.added_without(self.chosen, place)
        allowed = self._limits.may_replace(pick)
        allowed[pick] = True
        added[~allowed] = -np.inf
        best = int(added.argmax())
        if best == pick:
            return False
        former = self.chosen.distances(place)
        distances = self.chosen.exchange(place, self._units[best], self._factor[best])
        # Also if equal distances rank differently at this place than after all others (`search.objective`).
        if not self.chosen.total > before * (1 + _ROUNDING):
            self.chosen.exchange(place, self._units[pick], self._factor[pick])
            return False
        self.columns.exchange(place, self._units[best], former, distances)
        self._limits.replace(pick, best)
        others = self.chosen.mean(without, self.chosen.count - 1)
        added[best] = -np.inf
        second = int(added.argmax())
        second_score = self.chosen.mean(without + added[second], self.chosen.count) - others
        self.trace.put(place, Found(best, self.chosen.novelsum() - others, second, second_score))
        self.by_exchange[place] = True
        return True


def objective_facts(
    vectors: ArrayLike,
    factor: NDArray[np.float64],
    picks: Picks,
    scoring: Scoring,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Return the outcome of a selection by `objective`: NovelSum, its upper bound and the part reached, exchanges.

    The bound is None for pools of more than `MOST_BOUNDED` samples.

    Args:
        vectors: (n, d), the pool as it was embedded.
        factor: float64, (n,), density factors.
        picks: of the selection.
        scoring: which NovelSum.
        progress: called with samples compared and n.

    Raises:
        ValueError: for bad rows.
        NotEnoughMemory: if rows of distances would not fit.
    """
    units = unit_rows(as_rows(vectors))
    value = Chosen.of(units[picks.indices], factor[picks.indices], scoring).novelsum()
    bound = None
    if len(units) <= MOST_BOUNDED:
        bound = upper_bound(units, factor, len(picks.indices), scoring, progress=progress)
    facts = {"novelsum": value, "upper_bound": bound, "part_of_bound": value / bound if bound else None}
    if picks.exchanges is None:
        return facts
    made = picks.exchanges
    return {**facts, "exchanges": made.count, "rounds": made.rounds, "novelsum_before_exchanges": made.before}


def upper_bound(
    units: NDArray[np.float32],
    factor: NDArray[np.float64],
    k: int,
    scoring: Scoring,
    *,
    progress: Progress = no_progress,
) -> float:
    """Return a number that NovelSum of no subset of k samples exceeds.

    No subset that holds sample i has a row of i with distances, ascending, over those to its k - 1 farthest samples of
    the pool, ascending; the weighted sum of these, times i's density factor, is the most that i can have. The bound is
    the mean of the k largest of these. By column, the factors are those of the others: the largest of all times that
    sum, or the k - 1 largest products of factor and distance in falling order, whichever is less.

    Args:
        units: float32, (n, d), unit rows of the pool.
        factor: float64, (n,), density factors.
        k: size of the subsets, 1 to n.
        scoring: which NovelSum.
        progress: called with samples compared and n.

    Raises:
        NotEnoughMemory: if rows of distances would not fit.
    """
    n, d = units.shape
    weights = rank_weights(k, scoring.proximity_power)
    weights, norm = (
        (weights[:-1], weights[:-1].sum()) if scoring.self_distance == "excluded" else (weights[1:], weights.sum())
    )
    if k == 1:
        return 0.0
    threads = usable_processors()
    tile = max(1, min(_TILE_VALUES // n, -(-n // threads)))
    needed = 8 * n * d + threads * _TILE_BYTES * tile * n
    require_memory(needed, f"the upper bound of NovelSum over {n:,} samples", "use fewer samples")
    wide, halves = units.astype(np.float64), half_squares(units)

    def most(start: int) -> NDArray[np.float64]:
        part = slice(start, start + tile)
        distances = (halves[part, None] + halves) - wide[part] @ wide.T
        if scoring.measured_side == "row":
            return np.asarray(factor[part] * _weighted(distances, weights))
        products = _weighted(distances * factor, weights[::-1])
        return np.minimum(float(factor.max()) * _weighted(distances, weights), products)

    bounds = np.empty(n)
    with threadpool_limits(1 if threads > 1 else None, "blas"), ThreadPoolExecutor(threads) as workers:
        starts = range(0, n, tile)
        for start, found in zip(starts, workers.map(most, starts), strict=True):
            bounds[start : start + tile] = found
            progress(start + len(found), n)
    return float(np.sort(bounds)[n - k :].mean() / norm * (1 + _ROUNDING))


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted sum of the largest values of each row, (r, n), ascending: float64, (r,)."""
    first = values.shape[1] - len(weights)
    values.partition(first, axis=1)
    largest = np.sort(values[:, first:], axis=1)
    return np.asarray((largest * weights).sum(axis=1))
