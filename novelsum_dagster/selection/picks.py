"""The result of every strategy: the picks in order, and the record of why each was made.

Belongs here: what a strategy returns (`PickLog`), the record made of it (`Picks`). Does not: any strategy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.diversity.vectors import cosine_distances

_TILE = 1024


@dataclass(frozen=True)
class Found:
    """The best and second-best candidate with their scores; the second is -1 and NaN if there is no other."""

    best: int
    score: float
    second: int = -1
    second_score: float = np.nan


@dataclass(frozen=True)
class PickLog:
    """Picks in order with the search result of each; every array has the same length.

    Attributes:
        indices: int64, rows of the embeddings.
        score: float64, the value by which the pick won; NaN if it was drawn or given.
        runner_up: int64, row that came second; -1 if there was none.
        runner_up_score: float64, its value; NaN if there was none.
    """

    indices: NDArray[np.int64]
    score: NDArray[np.float64]
    runner_up: NDArray[np.int64]
    runner_up_score: NDArray[np.float64]

    @staticmethod
    def empty(size: int) -> "PickLog":
        """Return a log with room for `size` picks."""
        return PickLog(np.full(size, -1), np.full(size, np.nan), np.full(size, -1), np.full(size, np.nan))

    @staticmethod
    def of(indices: NDArray[np.int64], score: NDArray[np.float64] | None = None) -> "PickLog":
        """Return picks without runners-up."""
        log = PickLog.empty(len(indices))
        log.indices[:] = indices
        if score is not None:
            log.score[:] = score
        return log

    def put(self, rank: int, found: Found) -> None:
        """Write the pick of a rank, from 0."""
        self.indices[rank], self.score[rank] = found.best, found.score
        self.runner_up[rank], self.runner_up_score[rank] = found.second, found.second_score

    def head(self, count: int) -> "PickLog":
        """Return the first picks."""
        return PickLog(self.indices[:count], self.score[:count], self.runner_up[:count], self.runner_up_score[:count])


@dataclass(frozen=True)
class Remaining:
    """The last score or bound of each of the n samples; every array has shape (n,).

    Which samples were scored exactly, after which pick, and the bounds of the others depend on the processor and the
    number of threads; the bounds are valid on each.

    Attributes:
        score: float64, the last exact score, or an upper bound of it; for a pick, the score by which it won. NaN for
            a first pick, and for a sample that was never scored, such as an excluded one.
        at: int64, how many picks had been made when `score` held.
        is_exact: bool, whether `score` is exact.
    """

    score: NDArray[np.float64]
    at: NDArray[np.int64]
    is_exact: NDArray[np.bool_]


@dataclass(frozen=True)
class Exchanges:
    """The exchanges made after k samples had been picked by `objective`.

    Attributes:
        count: exchanges made.
        rounds: over all picks.
        before, after: NovelSum of the picks.
        by_exchange: bool, (k,), whether a pick came by an exchange, at the place of the one that it replaced.
    """

    count: int
    rounds: int
    before: float
    after: float
    by_exchange: NDArray[np.bool_]


BARS = ("must_exclude", "budget", "cap", "floor", "partition")
"""What may rule a sample out, in the order in which it is reported.

| value | the sample |
|---|---|
| must_exclude | is excluded by the settings |
| budget | costs more than is left of the budget |
| cap | has a label whose picks have reached its cap |
| floor | costs more than is left once the floors of other labels are paid |
| partition | was not picked within its part of the pool (`partitions`) |
"""
ChosenBy = Literal["score", "seed", "drawn", "threshold", "must_include", "kept", "exchange"]
"""How a pick was made.

| value | the pick |
|---|---|
| score | had the best score of the eligible samples |
| seed | is the first one, drawn at random with the seed |
| drawn | was drawn at random with the seed, as every pick of the strategies random, duplicate and kmeans |
| threshold | was farther from the picks before it than the threshold of the strategy repr_filter |
| must_include | is required by the settings |
| kept | is kept from the earlier subset that this one extends |
| exchange | replaced another pick at the end (`swap_rounds`) |
"""


@dataclass(frozen=True)
class Eligibility:
    """The limits of a selection of k picks out of n samples.

    Attributes:
        eligible: int64, (k,), how many samples were eligible at each pick, the pick included; 0 for the first pick and
            for picks that were given, for which no scores were compared.
        ruled_out: by an element of `BARS`, int64, (k,), how many samples it ruled out at each pick; a sample may count
            for several.
        eligible_picks: int64, (n,), at how many picks made by score each sample was eligible, its own included.
        barred: int64, (n,), the place in `BARS` of the first that ruled a sample out at the last pick; -1 for none.
    """

    eligible: NDArray[np.int64]
    ruled_out: dict[str, NDArray[np.int64]]
    eligible_picks: NDArray[np.int64]
    barred: NDArray[np.int64]


@dataclass(frozen=True)
class Picks:
    """k picks out of n samples, in pick order; every array has shape (k,).

    Attributes:
        indices: int64, rows of the embeddings.
        score: float64, the value by which the pick won; NaN if the strategy has none (first pick, random).
        runner_up: int64, row that came second; -1 if there was none.
        runner_up_score: float64, its value; NaN if there was none.
        nearest_pick: int64, rank (from 0) of the nearest earlier pick; -1 for the first.
        nearest_distance: float64, cosine distance to it; NaN for the first.
        density_factor: float64, the pick's density factor.
        quality: float64, the pick's quality; NaN if none was given.
        remaining: last score or bound of every sample in NovelSelect; None for the other strategies.
        exchanges: the exchanges made at the end; None if none were requested.
        chosen_by: how each pick was made (`ChosenBy`).
        eligibility: which samples were eligible at each pick; None for strategies without limits, and for picks that
            were exchanged.
    """

    indices: NDArray[np.int64]
    score: NDArray[np.float64]
    runner_up: NDArray[np.int64]
    runner_up_score: NDArray[np.float64]
    nearest_pick: NDArray[np.int64]
    nearest_distance: NDArray[np.float64]
    density_factor: NDArray[np.float64]
    quality: NDArray[np.float64]
    remaining: Remaining | None = None
    exchanges: Exchanges | None = None
    chosen_by: tuple[ChosenBy, ...] = ()
    eligibility: Eligibility | None = None


def recorded(
    log: PickLog,
    unit_rows: NDArray[np.float32],
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    *,
    chosen_by: Sequence[ChosenBy],
    remaining: Remaining | None = None,
    exchanges: Exchanges | None = None,
    eligibility: Eligibility | None = None,
) -> Picks:
    """Return the picks with the part of their record that is computed from them.

    Args:
        log: the k picks.
        unit_rows: float32, (n, d), all rows.
        density_factor: float64, (n,).
        quality: float64, (n,), if given.
        chosen_by: how each pick was made.
        remaining: of all samples.
        exchanges: the exchanges made at the end.
        eligibility: of all samples at all picks.
    """
    indices = log.indices
    nearest_pick, nearest_distance = nearest_earlier(unit_rows[indices])
    return Picks(
        **vars(log),
        nearest_pick=nearest_pick,
        nearest_distance=nearest_distance,
        density_factor=density_factor[indices],
        quality=np.full(len(indices), np.nan) if quality is None else quality[indices],
        remaining=remaining,
        exchanges=exchanges,
        chosen_by=tuple(chosen_by),
        eligibility=eligibility,
    )


def nearest_earlier(unit_rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest earlier row of each row, and its cosine distance.

    Args:
        unit_rows: float32, (k, d), rows of length 1 in pick order.

    Returns:
        ranks, int64, (k,), -1 for the first; distances, float64, (k,), NaN for the first.
    """
    size = len(unit_rows)
    nearest = np.full(size, -1, dtype=np.int64)
    distance = np.full(size, np.nan)
    later = np.triu(np.ones((min(size, _TILE),) * 2, dtype=np.bool_))
    for start in range(0, size, _TILE):
        stop = min(start + _TILE, size)
        distances = cosine_distances(unit_rows[start:stop], unit_rows[:stop])
        np.copyto(distances[:, start:], np.inf, where=later[: stop - start, : stop - start])
        nearest[start:stop] = distances.argmin(axis=1)
        distance[start:stop] = distances.min(axis=1)
    nearest[0], distance[0] = -1, np.nan
    return nearest, distance
