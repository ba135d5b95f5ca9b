"""The search for the next pick on the CPU: who is looked at, in what order, by how many threads.

Belongs here: what is remembered of candidates, and how cheap bounds spare exact scores. Does not: the bounds
themselves (`kernels`).

A pick goes down a ladder; few candidates reach the next step, and none that could be best or second is left behind:

1. every candidate: the crude bound, one multiplication and addition each;
2. those that reach the level of the second best: the tightened bound, two dot products;
3. those that still do: new distances by a matrix product, merged into the candidate's summary;
4. those that still do, one or two a pick: all distances in float64, kept as a sorted list from then on.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.selection import kernels
from novelsum_dagster.selection.search import Found, Round, Search, bin_edges

_LIST_BYTES = 2**30
"""Memory for lists of exact distances."""
_LEADERS = 8
"""Candidates whose exact scores set the level for all others at the next pick."""
_BATCH = 8
"""Candidates scored exactly before the level is looked at again."""
_CHUNK = 256
"""Candidates of one matrix product."""
_ALONE = 16
"""Fewer stale candidates than this are not worth a second thread."""
_SCAN_ALONE = 100_000
"""Nor is the scan of fewer candidates."""
_REFRESH_FROM, _AHEAD, _MOST_AHEAD = 32, 1 / 8, 256
"""After 32 picks, summaries that will be stale within an eighth of the picks made, 256 at most, are renewed together:
large matrix products are several times faster than small ones."""


class CpuSearch(Search):
    """The ladder of bounds, on threads.

    Args:
        unit_rows, factor, quality, weights: as for every search.
        threads: that search side by side; None takes all cores that the process may use.
    """

    def __init__(
        self,
        unit_rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        quality: NDArray[np.float64] | None,
        weights: NDArray[np.float64],
        threads: int | None = None,
    ) -> None:
        super().__init__(unit_rows, factor, quality, weights)
        n, d = unit_rows.shape
        k = len(weights)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="novelselect")
        # A float32 dot product of rows of length 1 is off by at most d 2^-24.
        self._slack = 1.01 * (d + 8) * 2.0**-24
        self._crude = 2.0 + self._slack
        self._picked_rows, self._picked_factor = np.empty((k, d), np.float32), np.empty(k)
        # Prefix sums over picks: of w, w f, w x and w f x. The last two are summed in float64 and kept rounded.
        self._sums = (np.zeros(k + 1), np.zeros(k + 1), *np.zeros((2, k + 1, d), np.float32))
        self._sum_a, self._sum_b = np.zeros((2, d))
        self._bound, self._bound_at, self._exact_at = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._base, self._growth = np.zeros(n), self._quality * self._factor
        self._edges = bin_edges(k)
        self._summary, self._seen = np.empty((n, len(self._edges) - 1), np.float32), np.zeros(n, np.int64)
        self._lists = _Lists(n, k)
        self._leaders = np.empty(0, np.int64)
        self._next_refresh = _REFRESH_FROM
        self._reached = np.empty(n, np.int64)

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()

    def _take(self, pick: int) -> None:
        m, f, row = self.picked, self._factor[pick], self._rows[pick]
        weight = self._weights[m]
        self._picked_rows[m], self._picked_factor[m] = row, f
        self._base[pick] = -np.inf
        self._lists.release(pick)
        self._sum_a += weight * row
        self._sum_b += weight * f * row
        w, g, sums_a, sums_b = self._sums
        w[m + 1], g[m + 1], sums_a[m + 1], sums_b[m + 1] = w[m] + weight, g[m] + weight * f, self._sum_a, self._sum_b

    def _best(self) -> Found | None:
        round_ = Round()
        leaders = self._leaders[~self._blocked[self._leaders]]
        self._score_listed(leaders, round_)
        if self.picked >= self._next_refresh:
            self._refresh(round_.level)
        candidates = self._reaching(round_.level)
        if round_.level == -np.inf:
            self._score_all_distances(self._falling(self._inexact(candidates))[:2], round_)
        candidates = self._inexact(candidates)
        has_list = self._lists.slot[candidates] >= 0
        self._score_listed(candidates[has_list], round_)
        stale = self._still(candidates[~has_list], round_.level)
        self._summarise(stale)
        self._score_all_distances(self._falling(stale), round_)
        found = round_.found()
        if found:
            self._leaders = self._next_leaders(round_.indices(), leaders, found.best)
        return found

    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        return self._bound, self._bound_at, self._exact_at == self._bound_at

    def _falling(self, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return candidates in order of falling bounds."""
        return candidates[np.argsort(-self._bound[candidates] * self._quality[candidates], kind="stable")]

    def _inexact(self, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        return candidates[self._exact_at[candidates] < self.picked]

    def _still(self, candidates: NDArray[np.int64], level: float) -> NDArray[np.int64]:
        return candidates[self._bound[candidates] * self._quality[candidates] >= level]

    def _next_leaders(self, scored: NDArray[np.int64], leaders: NDArray[np.int64], pick: int) -> NDArray[np.int64]:
        both = np.unique(np.concatenate([scored, leaders]))
        both = both[(both != pick) & (self._lists.slot[both] >= 0)]
        return self._falling(both)[:_LEADERS]

    def _reaching(self, level: float, ahead_w: float = 0.0, ahead_g: float = 0.0) -> NDArray[np.int64]:
        """Return the candidates whose tightened bounds, raised by the growth ahead, reach the level."""

        def part(marks: tuple[int, int]) -> NDArray[np.int64]:
            lo, hi = marks
            out = self._reached[lo:hi]
            count = kernels.reaching(
                lo, hi, self.picked, level, ahead_w, ahead_g, self._rows, self._factor, self._quality, self._blocked,
                self._bound, self._bound_at, self._base, self._growth, self._sums, self._slack, self._crude, out,
            )  # fmt: skip
            return out[:count]

        n = len(self._rows)
        if n < _SCAN_ALONE:
            return part((0, n)).copy()
        marks = np.linspace(0, n, self._threads + 1).astype(int).tolist()
        return np.concatenate(list(self._workers.map(part, pairwise(marks))))

    def _refresh(self, level: float) -> None:
        """Renew the summaries of all candidates whose bounds are expected to reach the level soon."""
        w, g = self._sums[0], self._sums[1]
        now, middle = self.picked, self.picked // 2
        ahead = min(int(now * _AHEAD), _MOST_AHEAD)
        self._next_refresh = now + ahead
        # Only a guess: the picks ahead weigh as the next one does, at distance 1 and with the density of late picks.
        ahead_w = ahead * self._weights[now]
        ahead_g = ahead_w * (g[now] - g[middle]) / max(w[now] - w[middle], np.finfo(np.float64).tiny)
        candidates = self._reaching(level, ahead_w, ahead_g)
        self._summarise(candidates[self._lists.slot[candidates] < 0])

    def _summarise(self, stale: NDArray[np.int64]) -> None:
        """Bring the summaries of candidates up to date, and lower their bounds by them."""
        # In order of what they have seen, so that the candidates of a chunk lack about the same picks.
        order = stale[np.argsort(self._seen[stale], kind="stable")]
        if len(order) <= _ALONE:
            self._summarise_chunk(order)
            return
        size = min(_CHUNK, -(-len(order) // self._threads))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        list(self._workers.map(self._summarise_chunk, chunks))

    def _summarise_chunk(self, chunk: NDArray[np.int64]) -> None:
        if not len(chunk) or self._seen[chunk[0]] == self.picked:
            return
        first, now = int(self._seen[chunk[0]]), self.picked
        new = self._rows[chunk] @ self._picked_rows[first:now].T
        kernels.raised_distances(new, self._factor, chunk, self._picked_factor, self._seen, first, now, self._slack)
        new.sort(axis=1)
        kernels.merge_summaries(
            chunk, new, now, self._factor, self._quality, self._summary, self._seen, self._edges, self._bound,
            self._bound_at, self._base, self._sums, self._crude,
        )  # fmt: skip

    def _score_listed(self, candidates: NDArray[np.int64], round_: Round) -> None:
        """Score candidates that have a list, as far as they reach the level."""
        if not len(candidates):
            return
        order = self._falling(candidates)
        scores = np.empty(len(order))
        lists = self._lists
        count = kernels.score_listed(
            order, self.picked, round_.best, round_.level, self._rows, self._factor, self._quality, self._weights,
            self._picked_rows, self._picked_factor, lists.slot, lists.values, lists.sizes, self._bound,
            self._bound_at, self._exact_at, self._base, self._sums, self._crude, scores,
        )  # fmt: skip
        round_.take(order[:count], scores[:count])

    def _score_all_distances(self, order: NDArray[np.int64], round_: Round) -> None:
        """Give lists to candidates, in order of falling bounds, and score them, as far as they reach the level."""
        for start in range(0, len(order), _BATCH):
            batch = self._still(order[start : start + _BATCH], round_.level)
            if not len(batch):
                return
            slots = self._lists.take(batch, self._bound * self._quality)
            for i, slot in zip(batch, slots, strict=True):
                values = self._lists.values[slot, : self.picked]
                kernels.exact_distances(
                    self._rows, self._factor, i, self._picked_rows, self._picked_factor, 0, self.picked, values
                )
                values.sort()
            self._lists.sizes[slots] = self.picked
            self._score_listed(batch, round_)


class _Lists:
    """Sorted exact distances of some candidates, in memory of a fixed size.

    Attributes:
        slot: int64, (n,), which row of `values` is the candidate's; -1 for none.
        values: float32, (slots, k), ascending.
        sizes: int64, (slots,), how many picks a row covers.
    """

    def __init__(self, n: int, k: int) -> None:
        slots = list_slots(n, k)
        # Pages that are never written take no memory.
        self.values = np.empty((slots, k), np.float32)
        self.sizes = np.zeros(slots, np.int64)
        self.slot = np.full(n, -1, np.int64)
        self._owner = np.full(slots, -1, np.int64)
        self._free = list(range(slots - 1, -1, -1))

    def take(self, candidates: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return a row for each candidate; where none is free, the candidates of the lowest value lose theirs."""
        if len(self._free) < len(candidates):
            owners = self._owner[self._owner >= 0]
            for i in owners[np.argsort(value[owners], kind="stable")[: max(len(owners) // 2, len(candidates))]]:
                self.release(i)
        for i in candidates:
            if self.slot[i] < 0:
                self.slot[i] = self._free.pop()
                self._owner[self.slot[i]] = i
        return self.slot[candidates]

    def release(self, i: int) -> None:
        """Free the row of a candidate, if it has one."""
        slot = int(self.slot[i])
        if slot >= 0:
            self.slot[i] = self._owner[slot] = -1
            self._free.append(slot)


def list_slots(n: int, k: int) -> int:
    """Return for how many of n candidates lists of k distances are kept."""
    return min(n, max(4 * _BATCH, _LIST_BYTES // (4 * k)))


def memory_needed(n: int, d: int, k: int) -> int:
    """Return the bytes that a search takes at most, beside the rows given."""
    candidates = n * (4 * (len(bin_edges(k)) - 1) + 10 * 8)
    picks = k * d * 4 * 3
    return candidates + picks + 4 * k * list_slots(n, k)
