"""NovelSelect and its limits done plainly: every row is sorted again at every pick, nothing is bounded or skipped.

Shares no code with the package. Coordinates of unit rows are rounded to multiples of 2^-25 and distances to float32, as
the package documents; all else is float64.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Allowed = Callable[[list[int]], NDArray[np.bool_]]
"""Which samples may be picked next, bool, (n,), given the picks so far."""


@dataclass(frozen=True)
class PlainPicks:
    """Picks with the score of each, the second best, and its score; NaN and -1 for those given and the first."""

    indices: list[int]
    score: list[float]
    runner_up: list[int]
    runner_up_score: list[float]


class PlainScores:
    """The score of every sample over a growing list of picks."""

    def __init__(
        self, rows: NDArray[np.float32], factor: NDArray[np.float64], alpha: float, quality: NDArray[np.float64] | None
    ) -> None:
        wide = rows.astype(np.float64)
        unit = np.round(wide / np.linalg.norm(wide, axis=1, keepdims=True) * 2**25) / 2**25
        self._unit = unit.astype(np.float32).astype(np.float64)
        self._factor, self._alpha = factor, alpha
        self._scale = 2.0 ** np.ceil(np.log2(factor.max()))
        self._quality = np.ones(len(rows)) if quality is None else quality
        self._distances = np.empty((len(rows), 0), np.float32)

    def add(self, pick: int) -> None:
        distance = (
            np.square(self._unit - self._unit[pick]).sum(1) / 2 * ((self._factor + self._factor[pick]) / self._scale)
        )
        self._distances = np.concatenate([self._distances, distance[:, None].astype(np.float32)], axis=1)

    def scores(self) -> NDArray[np.float64]:
        """Return `y F` of every sample, picked or not: float64, (n,)."""
        ascending = np.sort(self._distances, axis=1).astype(np.float64)
        weights = np.arange(1, ascending.shape[1] + 1, dtype=np.float64) ** -self._alpha
        scores: NDArray[np.float64] = (ascending * weights).sum(1) * self._quality * self._scale
        return scores


def plain_scores(
    rows: NDArray[np.float32],
    picks: Sequence[int],
    factor: NDArray[np.float64],
    alpha: float,
    quality: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the score of every sample over the given picks: float64, (n,)."""
    plain = PlainScores(rows, factor, alpha, quality)
    for pick in picks:
        plain.add(pick)
    return plain.scores()


def plain_novelselect(
    rows: NDArray[np.float32],
    k: int,
    factor: NDArray[np.float64],
    alpha: float,
    seed: int,
    quality: NDArray[np.float64] | None = None,
    initial: Sequence[int] = (),
    allowed: Allowed | None = None,
) -> PlainPicks:
    """Pick k samples, or as many as are allowed; the lowest index wins a tie."""
    plain = PlainScores(rows, factor, alpha, quality)
    picks = PlainPicks([], [], [], [])

    def add(pick: int, score: float = np.nan, second: int = -1, second_score: float = np.nan) -> None:
        for values, value in zip(vars(picks).values(), (pick, score, second, second_score), strict=True):
            values.append(value)
        plain.add(pick)

    def open_() -> NDArray[np.bool_]:
        mask = np.ones(len(rows), np.bool_) if allowed is None else allowed(picks.indices).copy()
        mask[picks.indices] = False
        return mask

    for given in initial:
        add(int(given))
    if not initial:
        drawn = int(np.random.RandomState(seed).randint(0, len(rows)))
        later = (drawn + np.arange(len(rows))) % len(rows)
        add(int(later[open_()[later]][0]))
    while len(picks.indices) < k and (mask := open_()).any():
        scores = np.where(mask, plain.scores(), -np.inf)
        best = int(scores.argmax())
        score, scores[best] = float(scores[best]), -np.inf
        if mask.sum() > 1:
            add(best, score, int(scores.argmax()), float(scores.max()))
        else:
            add(best, score)
    return picks


@dataclass(frozen=True)
class PlainQuota:
    """Caps and floors by label, and the label of every sample."""

    labels: list[Any]
    caps: Mapping[Any, int]
    floors: Mapping[Any, int]


@dataclass(frozen=True)
class PlainLimits:
    """The limits of a selection: what is left after a pick must pay for the cheapest filling of each column's floors.

    `cost` is float64, (n,), 1 each where `budget` is k.
    """

    cost: NDArray[np.float64]
    budget: float
    quotas: Sequence[PlainQuota]
    excluded: Sequence[int]

    def eligible(self, picked: list[int]) -> NDArray[np.bool_]:
        """Return which samples may be picked next, bool, (n,)."""
        return np.array([i not in picked and self._may_follow(picked, i) for i in range(len(self.cost))])

    def filling(self, quota: PlainQuota, picked: list[int]) -> float:
        """Return what the floors of a column cost at least, given the picks; infinite where they cannot be filled."""
        total = 0.0
        for label, floor in quota.floors.items():
            lacking = max(0, floor - sum(quota.labels[j] == label for j in picked))
            open_ = [j for j, own in enumerate(quota.labels) if own == label and j not in [*picked, *self.excluded]]
            costs = sorted(self.cost[open_].tolist())
            total += sum(costs[:lacking]) if len(costs) >= lacking else np.inf
        return total

    def barred(self, picked: list[int]) -> dict[str, set[int]]:
        """Return the samples that each limit rules out after some picks, each limit looked at alone."""
        left = self.budget - self.cost[picked].sum()
        open_ = set(range(len(self.cost))) - set(picked) - set(self.excluded)
        barred = {"must_exclude": set(self.excluded), "budget": {i for i in open_ if self.cost[i] > left}}
        barred |= {"cap": set(), "floor": set()}
        for quota in self.quotas:
            counts = Counter(quota.labels[j] for j in picked)
            barred["cap"] |= {i for i in open_ if counts[quota.labels[i]] >= quota.caps.get(quota.labels[i], np.inf)}
            barred["floor"] |= {
                i for i in open_ - barred["budget"] if self.filling(quota, [*picked, i]) > left - self.cost[i]
            }
        return barred

    def _may_follow(self, picked: list[int], i: int) -> bool:
        after = [*picked, i]
        left = self.budget - self.cost[after].sum()
        if i in self.excluded or left < 0:
            return False
        return all(
            sum(quota.labels[j] == quota.labels[i] for j in after) <= quota.caps.get(quota.labels[i], np.inf)
            and self.filling(quota, after) <= left
            for quota in self.quotas
        )
