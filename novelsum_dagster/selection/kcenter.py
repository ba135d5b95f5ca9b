"""K-Center-Greedy: add the sample farthest from its nearest pick, so that the picks cover the pool.

Belongs here: the strategy, the loop over picks. Does not: the compiled search (`kcenter_kernels`).
"""

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.picks import Found, PickLog
from novelsum_dagster.selection.search.base import Round, cosine_slack
from novelsum_dagster.selection.threads import Threads

_REPORT_EVERY = 10
_LEADERS = 16
"""Number of recent farthest candidates examined first, to set the level that the others must beat."""
_PICKED = -1.0
"""Marks a pick in `bound`: nearer than any candidate can be."""


def kcenter(inputs: Inputs) -> PickLog:
    """Pick a random sample, then k - 1 times the sample whose cosine distance to its nearest pick is largest.

    On unit rows the cosine distance ranks as the L2 distance does. Distances are exact (`cosine_distances`), so picks
    are the same on every processor. The lowest index wins a tie. A pick's score is its distance to its nearest pick.
    Picks are those of the plain algorithm, for a part of its work: see `kcenter_kernels`. (Sener and Savarese, "Active
    Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm 1.)

    Args:
        inputs: its seed is that of the first pick, its progress of picks made.
    """
    k = inputs.k
    log = PickLog.empty(k)
    log.indices[0] = np.random.default_rng(inputs.seed).integers(len(inputs.units))
    with closing(Threads()) as threads:
        search = _Search(inputs.units, k, threads)
        search.add(int(log.indices[0]))
        for rank in range(1, k):
            found = search.farthest_two()
            log.put(rank, found)
            search.add(found.best)
            if rank % _REPORT_EVERY == 0:
                inputs.progress(rank, k)
    inputs.progress(k, k)
    return log


class _Search:
    """State of n candidates while up to k picks are made."""

    def __init__(self, units: NDArray[np.float32], k: int, threads: Threads) -> None:
        from novelsum_dagster.selection.kcenter_kernels import two_farthest

        n, d = units.shape
        self._two_farthest = two_farthest
        self._units = units
        self._threads = threads
        self._slack = cosine_slack(d)
        self._picked_rows = np.empty((k, d), np.float32)
        self._picked = 0
        self._nearest, self._bound = np.full((2, n), np.inf)
        self._seen = np.zeros(n, np.int64)
        self._leaders = np.empty(0, np.int64)
        self._slices = threads.side_by_side(lambda marks: np.arange(*marks), n)

    def add(self, pick: int) -> None:
        """Add a pick."""
        self._picked_rows[self._picked] = self._units[pick]
        self._picked += 1
        self._bound[pick] = _PICKED
        self._leaders = self._leaders[self._leaders != pick]

    def farthest_two(self) -> Found:
        """Return the two candidates farthest from their nearest pick, with that distance."""
        level = max(self._two_of(self._leaders, 0.0).second_score, 0.0)
        round_ = Round()
        for two in self._threads.each(lambda part: self._two_of(part, level), self._slices):
            round_.merge(two)
        seen = np.union1d(self._leaders, round_.indices).astype(np.int64)
        self._leaders = seen[np.argsort(-self._bound[seen], kind="stable")[:_LEADERS]]
        found = round_.found()
        assert found is not None, "k is at most n"
        return found

    def _two_of(self, candidates: NDArray[np.int64], level: float) -> Found:
        """Return the two farthest of some candidates; -1 and -infinity for one that does not reach the level."""
        picked = self._picked_rows[: self._picked]
        best, distance, second, second_distance = self._two_farthest(
            self._units, candidates, picked, self._nearest, self._bound, self._seen, level, self._slack
        )
        return Found(int(best), float(distance), int(second), float(second_distance))
