"""Lazy greedy: the picks of plain greedy by a utility whose gains only fall, for a small part of its work.

A gain only falls as picks are added, so an old gain is an upper bound: only candidates whose old gain is the highest
are computed again (Minoux's lazy greedy).

Belongs here: the utility of picks, the queue of candidates. Does not: what coverage is (`qdit`), which distances are
kept (`gist`).
"""

import heapq
from copy import copy
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.selection.picks import Found, PickLog

_REPORT_EVERY = 10
_BATCH_LIMIT = 1024


class Coverage(Protocol):
    """Coverage of the pool by the picks so far."""

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return by how much each candidate would raise it."""

    def add(self, pick: int) -> None:
        """Add a pick."""

    def emptied(self) -> "Coverage":
        """Return the coverage by no picks."""


class Distance(Protocol):
    """A distance that all picks keep from each other."""

    def is_kept_by(self, candidate: int) -> bool:
        """Return whether a candidate is that far from all picks."""

    def add(self, pick: int) -> None:
        """Add a pick."""


class Utility:
    """The utility of the picks so far: the sum of `fixed` over them, and `gain_weight` times their coverage.

    Args:
        fixed: float64, (n,), of each sample.
        gain_weight: of coverage.
        coverage: by no picks; None leaves it out.
    """

    def __init__(self, fixed: NDArray[np.float64], gain_weight: float = 0.0, coverage: Coverage | None = None) -> None:
        self._fixed, self._gain_weight, self._coverage = fixed, gain_weight, coverage
        self.first = self.gains(np.arange(len(fixed)))
        """float64, (n,): the gain of each sample before any pick."""

    @property
    def is_linear(self) -> bool:
        """Whether a sample's gain is the same whatever is picked."""
        return self._coverage is None

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each candidate would add."""
        if self._coverage is None:
            return self._fixed[candidates]
        return np.asarray(self._gain_weight * self._coverage.gains(candidates) + self._fixed[candidates])

    def add(self, pick: int) -> None:
        """Add a pick."""
        if self._coverage is not None:
            self._coverage.add(pick)

    def emptied(self) -> "Utility":
        """Return the utility of no picks."""
        other = copy(self)
        if self._coverage is not None:
            other._coverage = self._coverage.emptied()
        return other


def lazy_greedy(
    utility: Utility, k: int, distance: Distance | None = None, progress: Progress = no_progress
) -> PickLog:
    """Pick k times the candidate that adds most to a utility; the lowest index wins a tie.

    Args:
        utility: of no picks; it becomes that of the picks.
        k: number of picks, 1 to n.
        distance: that picks keep from each other; None for none.
        progress: called with picks made and k, after the first and every tenth.

    Returns:
        The picks with what each added, and the second best of those that kept the distance; fewer than k if no
        candidate kept it any more.
    """
    log, queue = PickLog.empty(k), _Queue(utility, distance)
    for rank in range(k):
        best = queue.first()
        if best is None:
            return log.head(rank)
        queue.drop_first()
        second, second_score = queue.first() or (-1, np.nan)
        log.put(rank, Found(*best, second, second_score))
        queue.add(best[0])
        if rank % _REPORT_EVERY == 0:
            progress(rank, k)
    return log


class _Queue:
    """All candidates by their last computed gain; ties by index."""

    def __init__(self, utility: Utility, distance: Distance | None) -> None:
        n = len(utility.first)
        self._utility, self._distance = utility, distance
        self._picked, self._known_at = 0, np.zeros(n, np.int64)
        self._queue = list(zip((-utility.first).tolist(), range(n), strict=True))
        heapq.heapify(self._queue)

    def first(self) -> tuple[int, float] | None:
        """Return the best candidate and its gain; None if there is none."""
        batch = 1
        while self._queue:
            value, candidate = self._queue[0]
            if not self._keeps_distance(candidate):
                self.drop_first()
            elif self._is_known(candidate):
                return candidate, -value
            else:
                self._update(batch)
                batch = min(2 * batch, _BATCH_LIMIT)
        return None

    def drop_first(self) -> None:
        """Remove the first candidate."""
        heapq.heappop(self._queue)

    def add(self, pick: int) -> None:
        """Add a pick."""
        self._picked += 1
        self._utility.add(pick)
        if self._distance is not None:
            self._distance.add(pick)

    def _update(self, size: int) -> None:
        """Recompute the gains of the first `size` candidates in the queue whose gains are out of date."""
        old: list[int] = []
        while self._queue and len(old) < size and not self._is_known(self._queue[0][1]):
            candidate = heapq.heappop(self._queue)[1]
            if self._keeps_distance(candidate):
                old.append(candidate)
        candidates = np.array(old, np.int64)
        for value, candidate in zip(self._utility.gains(candidates).tolist(), old, strict=True):
            heapq.heappush(self._queue, (-value, candidate))
        self._known_at[candidates] = self._picked

    def _is_known(self, candidate: int) -> bool:
        return self._utility.is_linear or bool(self._known_at[candidate] == self._picked)

    def _keeps_distance(self, candidate: int) -> bool:
        return self._distance is None or self._distance.is_kept_by(candidate)
