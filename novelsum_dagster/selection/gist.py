"""GIST: a subset of high utility whose picks are all far apart, with a proven guarantee.

Belongs here: the public function, the thresholds, greedy sets of samples that keep a distance. Does not: coverage of
the pool (`qdit`), the compiled comparison (`gist_kernels`).
"""

import heapq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.kcenter import kcenter
from novelsum_dagster.selection.picks import Picks, nearest_earlier, recorded
from novelsum_dagster.selection.qdit import DenseCoverage
from novelsum_dagster.selection.search.base import cosine_slack

STEP = 0.1
"""epsilon: the relative step from one threshold to the next."""
_BATCH_LIMIT = 1024


def gist(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
    distance_weight: float = 1.0,
    coverage_weight: float = 0.0,
) -> Picks:
    """Pick k samples S of high `g(S) + lambda * div(S)`, utility and least distance between picks.

    - `g = (1 - c) * Q + c * C`. Q is the mean quality of the picks, divided by that of the k best samples; 0 without
      quality. C is the mean over the pool of each sample's highest cosine to a pick, at least 0: facility location,
      with cosines as in `qdit`. Both are from 0 to 1, and g is monotone and submodular.
    - `div` is the least of `|x - y| / 2` over pairs of picks, half the Euclidean distance of unit rows: from 0 to 1,
      ranked as cosine distances are. Unlike these it is a metric, which the guarantee needs.

    For each of a sequence of distances, picks are made greedily: the sample that adds most to g among those no nearer
    than that to any pick, the lowest index among equal ones. Of the sets that reach k, the one of the highest value is
    returned. (Fahrbach et al., "GIST: Greedy Independent Set Thresholding for Max-Min Diversification with Submodular
    Utility", NeurIPS 2025, arXiv 2405.18754.)

    The paper looks for at most k samples, for which it proves 1/2 - epsilon, and 2/3 - epsilon for linear utility
    (coverage_weight 0). With little weight on g its best set is the two farthest samples; these are left out here,
    where k samples are asked for, and so is the claim of 2/3. With r the least distance in the picks of
    K-Center-Greedy, no k samples keep more than 2 r. Distances tried are 0, and 2 r down to epsilon r, each 1 + epsilon
    times the next, epsilon = 0.1; the picks of K-Center-Greedy are a set, too. The paper's argument then gives
    `1 / (2 (1 + epsilon))`, so 45%, of the value of the best set of k samples: let its least distance be D. Greedy
    picks at a distance t of at most D / 2 rule out at most one of its samples each. So they reach k, and have half of
    its utility at least; with t at least D / (2 (1 + epsilon)), they have that part of its distance, too. Where D is
    under 2 epsilon r, it hardly counts: greedy picks at distance 0 have 1 - 1 / e of the utility, and those of
    K-Center-Greedy the distance r.

    Distances are compared exactly and sums are in a fixed order, so picks are the same on every processor.

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,), or None.
        seed: of the first pick of K-Center-Greedy.
        progress: called with distances tried and their number.
        distance_weight: lambda, 0 or more, default 1.
        coverage_weight: c, 0 to 1, default 0; over 0, all n x n cosines are held, 4 n^2 bytes.

    Returns:
        Picks in the order of the best set. Their score is what each added to g, their runner-up the second best that
        kept the distance; picks of K-Center-Greedy have no runner-up.

    Raises:
        ValueError: for bad rows, factors or qualities, or k or a weight out of range.
        NotEnoughMemory: if the cosines would not fit.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    if not (np.isfinite(distance_weight) and distance_weight >= 0):
        raise ValueError(f"distance_weight is {distance_weight}; it must be a finite number of 0 or more")
    if not 0 <= coverage_weight <= 1:
        raise ValueError(f"coverage_weight is {coverage_weight}; it must be from 0 to 1")
    fixed = np.zeros(len(inputs.units))
    if inputs.quality is not None:
        fixed = (1 - coverage_weight) * (inputs.quality / np.sort(inputs.quality)[-k:].sum())
    apart = kcenter(embeddings, k, density_factor=density_factor, seed=seed)
    distances = thresholds(float(apart.score[-1]))
    with ThreadPoolExecutor(usable_processors()) as threads, ThreadPoolExecutor(usable_processors()) as inner:
        coverage = None
        if coverage_weight:
            coverage = DenseCoverage(inputs.units, inner, "GIST", "set coverage_weight to 0, or use fewer samples")
        pool = _Pool(inputs.units, fixed, coverage_weight / len(inputs.units), coverage)
        best = farthest = pool.given(apart.indices)
        value = -np.inf
        for done, found in enumerate(threads.map(lambda distance: pool.greedy(k, distance), distances)):
            if found is not None and (one := found.value(inputs.units, distance_weight)) > value:
                best, value = found, one
            progress(done, len(distances))
        if farthest.value(inputs.units, distance_weight) > value:
            best = farthest
    progress(len(distances), len(distances))
    return recorded(
        best.indices, *inputs, score=best.score, runner_up=best.runner_up, runner_up_score=best.runner_up_score
    )


def thresholds(farthest: float) -> list[float]:
    """Return the least cosine distances that are tried, ascending, from 0 on.

    Args:
        farthest: cosine distance of the last pick of K-Center-Greedy to its nearest; NaN if it made one pick.
    """
    # A cosine distance is twice the square of `div`, and at most 2.
    factor, lowest = (1 + STEP) ** 2, STEP * STEP * farthest
    tried, distance = [], 4 * farthest
    while distance >= lowest > 0:
        tried.append(distance)
        distance /= factor
    if tried:
        tried.append(distance)
    return [0.0, *(one for one in reversed(tried) if one <= 2)]


@dataclass(frozen=True)
class _Set:
    """k picks in order, with what each added to the utility and the second best; every array has shape (k,)."""

    indices: NDArray[np.int64]
    score: NDArray[np.float64]
    runner_up: NDArray[np.int64]
    runner_up_score: NDArray[np.float64]

    @staticmethod
    def empty(k: int) -> "_Set":
        return _Set(np.full(k, -1), np.zeros(k), np.full(k, -1), np.full(k, np.nan))

    def value(self, units: NDArray[np.float32], distance_weight: float) -> float:
        """Return `g + lambda div`; one pick alone is at no distance."""
        nearest = nearest_earlier(units[self.indices])[1][1:]
        distance = float(np.sqrt(nearest.min() / 2)) if len(nearest) else 0.0
        return float(sum(self.score.tolist()) + distance_weight * distance)


class _Pool:
    """The n samples and their utility: `fixed` of each, and `gain_weight` for each sample that it newly covers."""

    def __init__(
        self,
        units: NDArray[np.float32],
        fixed: NDArray[np.float64],
        gain_weight: float,
        coverage: DenseCoverage | None,
    ) -> None:
        from novelsum_dagster.selection.gist_kernels import is_apart

        self.units, self.fixed, self.gain_weight = units, fixed, gain_weight
        self._coverage = coverage
        self.is_apart, self.slack = is_apart, cosine_slack(units.shape[1])
        self.first = self.utility(coverage, np.arange(len(units)))

    def emptied(self) -> DenseCoverage | None:
        """Return the coverage by no picks; None if its weight is 0."""
        return self._coverage and self._coverage.emptied()

    def utility(self, coverage: DenseCoverage | None, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each candidate adds to the utility of the picks in `coverage`."""
        if coverage is None:
            return self.fixed[candidates]
        return np.asarray(self.gain_weight * coverage.gains(candidates) + self.fixed[candidates])

    def given(self, indices: NDArray[np.int64]) -> _Set:
        """Return picks with the utility that each added to those before it."""
        found, coverage = _Set.empty(len(indices)), self.emptied()
        found.indices[:] = indices
        for rank in range(len(indices)):
            found.score[rank] = self.utility(coverage, indices[rank : rank + 1])[0]
            if coverage is not None:
                coverage.add(int(indices[rank]))
        return found

    def greedy(self, k: int, distance: float) -> _Set | None:
        """Return the greedy picks none of which is nearer than a cosine distance; None if they do not reach k."""
        found, search = _Set.empty(k), _Greedy(self, k, distance)
        for rank in range(k):
            best = search.pop()
            if best is None:
                return None
            found.score[rank], found.indices[rank] = best
            second = search.first()
            if second is not None:
                found.runner_up_score[rank], found.runner_up[rank] = second
            search.add(found.indices[rank])
        return found


class _Greedy:
    """A queue of the candidates that keep a distance to the picks, by their last computed gain; ties by index.

    A gain only falls as picks are added, so an old gain is an upper bound (Minoux's lazy greedy).
    """

    def __init__(self, pool: _Pool, k: int, distance: float) -> None:
        self._pool, self._distance = pool, distance
        self._coverage = pool.emptied()
        self._picked_rows, self._picked = np.empty((k, pool.units.shape[1]), np.float32), 0
        self._known_at, self._apart_at = np.zeros((2, len(pool.units)), np.int64)
        self._queue = list(zip((-pool.first).tolist(), range(len(pool.units)), strict=True))
        heapq.heapify(self._queue)

    def pop(self) -> tuple[float, int] | None:
        """Remove and return the best candidate and its gain; None if the queue is empty."""
        found = self.first()
        if found is not None:
            heapq.heappop(self._queue)
        return found

    def first(self) -> tuple[float, int] | None:
        """Return the best candidate and its gain."""
        batch = 1
        while self._queue:
            value, candidate = self._queue[0]
            if not self._keeps_distance(candidate):
                heapq.heappop(self._queue)
            elif self._is_known(candidate):
                return -value, candidate
            else:
                self._update(batch)
                batch = min(2 * batch, _BATCH_LIMIT)
        return None

    def add(self, pick: int) -> None:
        """Add a pick."""
        self._picked_rows[self._picked] = self._pool.units[pick]
        self._picked += 1
        if self._coverage is not None:
            self._coverage.add(pick)

    def _update(self, size: int) -> None:
        """Recompute the gains of the first `size` candidates in the queue whose gains are out of date."""
        old: list[int] = []
        while self._queue and len(old) < size and not self._is_known(self._queue[0][1]):
            candidate = heapq.heappop(self._queue)[1]
            if self._keeps_distance(candidate):
                old.append(candidate)
        candidates = np.array(old, np.int64)
        for value, candidate in zip(self._pool.utility(self._coverage, candidates).tolist(), old, strict=True):
            heapq.heappush(self._queue, (-value, candidate))
        self._known_at[candidates] = self._picked

    def _is_known(self, candidate: int) -> bool:
        return self._coverage is None or bool(self._known_at[candidate] == self._picked)

    def _keeps_distance(self, candidate: int) -> bool:
        seen = self._apart_at[candidate]
        if seen == self._picked or not self._distance:
            return True
        self._apart_at[candidate] = self._picked
        pool = self._pool
        return bool(
            pool.is_apart(pool.units, candidate, self._picked_rows, seen, self._picked, self._distance, pool.slack)
        )
