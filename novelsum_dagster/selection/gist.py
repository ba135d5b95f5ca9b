"""GIST: a subset of high utility whose picks are all far apart, with a proven guarantee.

Belongs here: the strategy, the thresholds, which samples keep a distance. Does not: greedy picks (`lazy_greedy`),
coverage of the pool (`qdit`), the compiled comparison (`gist_kernels`).
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import no_progress
from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.kcenter import kcenter
from novelsum_dagster.selection.lazy_greedy import Utility, lazy_greedy
from novelsum_dagster.selection.picks import PickLog, nearest_earlier
from novelsum_dagster.selection.qdit import DenseCoverage
from novelsum_dagster.selection.search.base import cosine_slack
from novelsum_dagster.selection.threads import Threads

STEP = 0.1
"""epsilon: the relative step from one threshold to the next."""


def gist(inputs: Inputs, *, distance_weight: float = 1.0, coverage_weight: float = 0.0) -> PickLog:
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
        inputs: its seed is that of the first pick of K-Center-Greedy, its progress of distances tried.
        distance_weight: lambda, 0 or more, default 1.
        coverage_weight: c, 0 to 1, default 0; over 0, all n x n cosines are held, 4 n^2 bytes.

    Returns:
        Picks in the order of the best set. Their score is what each added to g, their runner-up the second best that
        kept the distance; picks of K-Center-Greedy have no runner-up.

    Raises:
        ValueError: for a weight out of range.
        NotEnoughMemory: if the cosines would not fit.
    """
    if not (np.isfinite(distance_weight) and distance_weight >= 0):
        raise ValueError(f"distance_weight is {distance_weight}; it must be a finite number of 0 or more")
    if not 0 <= coverage_weight <= 1:
        raise ValueError(f"coverage_weight is {coverage_weight}; it must be from 0 to 1")
    units, k = inputs.units, inputs.k
    fixed = np.zeros(len(units))
    if inputs.quality is not None:
        fixed = (1 - coverage_weight) * (inputs.quality / np.sort(inputs.quality)[-k:].sum())
    apart = kcenter(replace(inputs, progress=no_progress))
    distances = thresholds(float(apart.score[-1]))
    with ThreadPoolExecutor(usable_processors()) as workers, closing(Threads()) as inner:
        coverage = None
        if coverage_weight:
            coverage = DenseCoverage(units, inner, "GIST", "set coverage_weight to 0, or use fewer samples")
        utility = Utility(fixed, coverage_weight / len(units), coverage)

        def greedy(distance: float) -> PickLog:
            return lazy_greedy(utility.emptied(), k, _Apart(units, k, distance) if distance else None)

        best = farthest = _valued(apart.indices, utility.emptied())
        value = -np.inf
        for done, found in enumerate(workers.map(greedy, distances)):
            if len(found.indices) == k and (reached := _value(found, units, distance_weight)) > value:
                best, value = found, reached
            inputs.progress(done, len(distances))
        if _value(farthest, units, distance_weight) > value:
            best = farthest
    inputs.progress(len(distances), len(distances))
    return best


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


def _value(picks: PickLog, units: NDArray[np.float32], distance_weight: float) -> float:
    """Return `g + lambda div`; one pick alone is at no distance."""
    nearest = nearest_earlier(units[picks.indices])[1][1:]
    distance = float(np.sqrt(nearest.min() / 2)) if len(nearest) else 0.0
    return float(sum(picks.score.tolist()) + distance_weight * distance)


def _valued(indices: NDArray[np.int64], utility: Utility) -> PickLog:
    """Return given picks with what each adds to the utility of those before it."""
    score = np.empty(len(indices))
    for rank in range(len(indices)):
        score[rank] = utility.gains(indices[rank : rank + 1])[0]
        utility.add(int(indices[rank]))
    return PickLog.of(indices, score)


class _Apart:
    """A cosine distance that up to k picks keep from each other."""

    def __init__(self, units: NDArray[np.float32], k: int, distance: float) -> None:
        from novelsum_dagster.selection.gist_kernels import is_apart

        self._is_apart, self._units, self._distance = is_apart, units, distance
        self._slack = cosine_slack(units.shape[1])
        self._picked_rows, self._picked = np.empty((k, units.shape[1]), np.float32), 0
        self._compared = np.zeros(len(units), np.int64)
        """Number of picks that each candidate was compared with."""

    def is_kept_by(self, candidate: int) -> bool:
        """Return whether a candidate is that far from all picks; it must have been from those it was compared with."""
        seen = self._compared[candidate]
        if seen == self._picked:
            return True
        self._compared[candidate] = self._picked
        return bool(
            self._is_apart(self._units, candidate, self._picked_rows, seen, self._picked, self._distance, self._slack)
        )

    def add(self, pick: int) -> None:
        """Add a pick."""
        self._picked_rows[self._picked] = self._units[pick]
        self._picked += 1
