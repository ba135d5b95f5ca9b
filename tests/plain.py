"""NovelSelect done plainly: every row is sorted again at every pick, nothing is bounded or skipped.

Shares no code with the package. Coordinates of unit rows are rounded to multiples of 2^-25 and distances to float32, as
the package documents; all else is float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
