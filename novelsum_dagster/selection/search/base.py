"""The search for the next pick of NovelSelect: the part shared by all devices.

Belongs here: which candidates are picked or excluded, exact scores without bounds, verification. Does not: how the best
candidate is found fast (`search.cpu`, `search.torch_device`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.selection.picks import Found, Remaining
from novelsum_dagster.selection.scoring import PUBLISHED, Scoring
from novelsum_dagster.selection.search.exact import exact_scores

_EXACT_RANKS = 32
"""Number of ranks that a summary keeps individually, as the weights fall fastest there."""
_BIN_GROWTH = 1.1
"""Growth of the bins of ranks after that; wider bins cost more exact scores than they save merges."""
_AGREE, _ROUNDING = 1e-9, 1e-12
"""Scores whose difference is smaller, relatively and for distances near 0, count as equal."""
_LARGEST_FACTOR = 2.0**100
"""Value that the largest density factor is scaled to; float32 ranges from 2^-126 to 2^127."""


class VerificationError(RuntimeError):
    """A candidate that was passed over scores higher than the pick: a defect of this program, found by `verify`."""


class Round:
    """The exact scores of one pick: the best and the second so far, lower indices first among equals."""

    def __init__(self) -> None:
        self.best, self.level = -np.inf, -np.inf
        self._best, self._second = -1, -1
        self.indices: list[int] = []

    def take(self, indices: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Add exact scores; `level` is then the second highest of all."""
        for index, score in zip(indices.tolist(), scores.tolist(), strict=True):
            self.indices.append(index)
            if score > self.best or (score == self.best and index < self._best):
                self.level, self._second = self.best, self._best
                self.best, self._best = score, index
            elif score > self.level or (score == self.level and index < self._second):
                self.level, self._second = score, index

    def merge(self, found: Found, first: int = 0) -> None:
        """Add the best two of a part whose rows start at `first`."""
        for index, score in ((found.best, found.score), (found.second, found.second_score)):
            if index >= 0:
                self.take(np.array([first + index]), np.array([score]))

    def found(self) -> Found | None:
        """Return the best and the second; None if nothing was scored."""
        if self._best < 0:
            return None
        return Found(self._best, self.best, self._second, self.level if self._second >= 0 else np.nan)


@dataclass(frozen=True)
class Candidates:
    """Rows that are searched, of the whole pool or of a part of it.

    Attributes:
        rows: float32, (n, d), of length 1.
        factor, quality: float64, (n,), density factors and qualities, both divided by a power of two.
        unit: factor from scaled to true scores.
        scoring: which score is searched for.
    """

    rows: NDArray[np.float32]
    factor: NDArray[np.float64]
    quality: NDArray[np.float64]
    unit: float
    scoring: Scoring = PUBLISHED

    @staticmethod
    def of(
        unit_rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        quality: NDArray[np.float64] | None,
        scoring: Scoring = PUBLISHED,
    ) -> "Candidates":
        """Return a whole pool, (n, d), with its density factors, (n,), and qualities, (n,); None takes 1."""
        # Distances are kept in float32. A power of two changes no digit, and lets factors of any size fit.
        factor_unit, factors = _scaled(factor, _LARGEST_FACTOR)
        quality_unit, qualities = (1.0, np.ones(len(factor))) if quality is None else _scaled(quality, 1.0)
        return Candidates(unit_rows, factors, qualities, factor_unit * quality_unit, scoring)

    def part(self, first: int, last: int) -> "Candidates":
        """Return some rows with the same scaling, which keeps their scores."""
        rows = slice(first, last)
        return Candidates(self.rows[rows], self.factor[rows], self.quality[rows], 1.0, self.scoring)


class Search(ABC):
    """Candidates and picks.

    Args:
        candidates: n of them.
        weights: float64, (k,), proximity weights by rank; k is the most picks there will be.
    """

    def __init__(self, candidates: Candidates, weights: NDArray[np.float64]) -> None:
        n = len(candidates.rows)
        self._rows, self._factor, self._quality = candidates.rows, candidates.factor, candidates.quality
        self._unit, self._weights, self._scoring = candidates.unit, weights, candidates.scoring
        self.picked = 0
        self.picks = np.empty(len(weights), np.int64)
        self._blocked, self._is_pick = np.zeros((2, n), np.bool_)

    @abstractmethod
    def close(self) -> None:
        """Free what the search holds."""

    def add(self, pick: int) -> None:
        """Append a pick."""
        self.take(self._rows[pick], self._factor[pick], pick)

    def take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        """Append a pick by its row, (d,), and scaled factor; `own` is its index here, -1 for one of another part."""
        self._take(row, factor * self._scoring.of_picks, own)
        self.picks[self.picked] = own
        if own >= 0:
            self._is_pick[own] = self._blocked[own] = True
        self.picked += 1

    def allow(self, allowed: NDArray[np.bool_]) -> None:
        """Look only at candidates that are allowed, bool, (n,); picks never are."""
        np.logical_or(~allowed, self._is_pick, out=self._blocked)

    def best(self) -> Found | None:
        """Return the two candidates of the highest scores, lower indices first among equals; None if there is none."""
        found = self._best()
        return found and Found(found.best, found.score * self._unit, found.second, found.second_score * self._unit)

    def remaining(self) -> Remaining:
        """Return the last score or bound of every candidate, after how many picks it held, and whether it is exact."""
        score, at, is_exact = self._known()
        known = at > 0
        return Remaining(np.where(known, score * self._unit, np.nan), at.copy(), is_exact & known)

    def verify(self, found: Found, count: int) -> None:
        """Score `count` random candidates and compare them with what was found.

        Raises:
            VerificationError: if one is better.
        """
        open_ = np.flatnonzero(~self._blocked)
        others = open_[(open_ != found.best) & (open_ != found.second)]
        chosen = np.random.default_rng(self.picked).permutation(others)[:count]
        candidates = np.concatenate([[found.best], chosen])
        sums = exact_scores(
            candidates, self._rows, self._factor, self.picks[: self.picked], self._weights, self._scoring
        )
        scores = sums * self._quality[candidates] * self._unit
        limit = found.second_score if found.second >= 0 else found.score
        # Devices add up in different orders. Float64 keeps that far below `_AGREE`, but where rows are nearly alike,
        # most of a distance is rounding, as large as that of a distance of 1.
        compared = candidates if found.second < 0 else np.append(candidates, found.second)
        farthest = self._factor[compared] + self._factor[self.picks[: self.picked]].max()
        rounding = _ROUNDING * self._unit * (self._quality[compared] * farthest).max() * self._weights.sum()
        allowance = _AGREE * abs(limit) + rounding
        better = np.flatnonzero(scores[1:] > limit + allowance)
        if len(better) or abs(scores[0] - found.score) > allowance:
            raise VerificationError(
                f"pick {self.picked + 1}: row {found.best} was found with score {found.score!r}, but has {scores[0]!r};"
                f" rows {chosen[better].tolist()} score {scores[1:][better].tolist()}; please report this"
            )

    @abstractmethod
    def _take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        """Update the data of the bounds with a pick; `picked` does not count it yet."""

    @abstractmethod
    def _best(self) -> Found | None:
        """Find the best two, in units of the scaled factors."""

    @abstractmethod
    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return bounds of scores, when they held, whether they are exact, in units of the scaled factors."""


def _scaled(values: NDArray[np.float64], largest: float) -> tuple[float, NDArray[np.float64]]:
    """Return a power of two, and positive values divided by it, none much over `largest`."""
    unit = float(2.0 ** (np.ceil(np.log2(values.max())) - np.log2(largest)))
    return unit, values / unit


def cosine_slack(dimensions: int) -> float:
    """Return the largest error of `1 - <x, y>` in float32 as the distance `|x - y|^2 / 2` of unit rows.

    The dot product by at most d 2^-24 and a little more, the squared lengths by less than (sqrt(d) + 4) 2^-24
    (`unit_rows`).
    """
    return float(1.01 * (dimensions + np.sqrt(dimensions) + 12) * 2.0**-24)


def bin_edges(k: int) -> NDArray[np.int64]:
    """Return the edges of a summary's bins of ranks: bin b covers ranks `edges[b]` to `edges[b + 1]`, from 0."""
    edges = list(range(min(k, _EXACT_RANKS) + 1))
    while edges[-1] < k:
        edges.append(min(k, int(edges[-1] * _BIN_GROWTH)))
    return np.array(edges, np.int64)
