"""Shared parts of the searches on the CPU: bounds of candidates, lists of exact distances for some.

Belongs here: the parts that do not depend on the score. Does not: the bounds themselves (`search.cpu`,
`search.column`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.selection.picks import Found
from novelsum_dagster.selection.search.base import Candidates, Round, Search
from novelsum_dagster.selection.search.cpu_kernels import Lists
from novelsum_dagster.selection.threads import Threads

_LIST_BYTES = 2**30
"""Bytes of memory for lists of exact distances."""
_LEADERS = 8
"""Candidates whose exact scores set the level for all others at the next pick."""
_FEWEST_LISTS = 32
"""Least number of lists."""


class Ladder(Search):
    """A search that keeps a bound of each candidate's score and scores exactly only those that may be best or second.

    Args:
        candidates, weights: as for every search.
        threads: that search side by side; None takes all cores that the process may use.

    A subclass sets `_lists`, of which it knows the size.
    """

    _lists: "Slots"

    def __init__(self, candidates: Candidates, weights: NDArray[np.float64], threads: int | None) -> None:
        super().__init__(candidates, weights)
        n = len(candidates.rows)
        self._threads = Threads(threads)
        self._leaders = np.empty(0, np.int64)
        # Bounds without quality, and after how many picks each was exact.
        self._value, self._exact_at = np.zeros(n), np.zeros(n, np.int64)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _lead(self, found: Found, round_: Round, leaders: NDArray[np.int64]) -> None:
        """Choose the next leaders: of the candidates with a list that were looked at, those of the highest bounds."""
        both = np.concatenate([np.array(round_.indices, np.int64), self._inexact(leaders)])
        self._leaders = self._falling(both[(both != found.best) & (self._lists.lists.slot[both] >= 0)])[:_LEADERS]

    def _falling(self, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return candidates in order of falling bounds."""
        return candidates[np.argsort(-self._value[candidates] * self._quality[candidates], kind="stable")]

    def _inexact(self, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those whose exact score is not known."""
        return candidates[self._exact_at[candidates] < self.picked]

    def _still(self, candidates: NDArray[np.int64], level: float) -> NDArray[np.int64]:
        """Return those whose bounds reach a level."""
        return candidates[self._value[candidates] * self._quality[candidates] >= level]


class Slots:
    """Assignment of candidates to a fixed number of lists of sorted exact distances.

    Args:
        n: candidates.
        values: where lists are kept, a row each.
    """

    def __init__(self, n: int, values: NDArray[Any]) -> None:
        self.count = slots = len(values)
        self.lists = Lists(values, np.zeros(slots, np.int64), np.full(n, -1, np.int64))
        self._owner = np.full(slots, -1, np.int64)
        self._free = list(range(slots - 1, -1, -1))

    def take(
        self, candidates: NDArray[np.int64], bound: NDArray[np.float64], quality: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return a row for each candidate; if none is free, the half with the lowest bounds lose theirs."""
        if len(self._free) < len(candidates):
            owners = self._owner[self._owner >= 0]
            order = np.argsort(bound[owners] * quality[owners], kind="stable")
            for i in owners[order[: max(len(owners) // 2, len(candidates))]]:
                self.release(i)
        for i in candidates:
            if self.lists.slot[i] < 0:
                self.lists.slot[i] = self._free.pop()
                self._owner[self.lists.slot[i]] = i
        return self.lists.slot[candidates]

    def release(self, i: int) -> None:
        """Free the row of a candidate, if it has one."""
        slot = int(self.lists.slot[i])
        if slot >= 0:
            self.lists.slot[i] = self._owner[slot] = -1
            self._free.append(slot)


def list_slots(n: int, k: int, each: int = 4) -> int:
    """Return for how many of n candidates lists of k picks are kept, of `each` bytes a pick."""
    return min(n, max(_FEWEST_LISTS, _LIST_BYTES // (each * k)))
