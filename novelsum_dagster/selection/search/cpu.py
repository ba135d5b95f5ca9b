"""The search for the next pick on the CPU: which candidates are examined, in what order, by which threads.

Belongs here: the state of candidates, and how cheap bounds save exact scores. Does not: the bounds themselves
(`search.cpu_kernels`).

Candidates pass a ladder of filters; few reach the next step, and none that could be best or second is dropped:

1. every candidate: the crude bound, one multiplication and addition each;
2. those that reach the level of the second best: the tightened bound, two dot products;
3. those that still do: new distances by a matrix product, merged into the candidate's summary;
4. those that still do, one or two per pick: all distances in float64, kept as a sorted list from then on.
"""

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.selection.picks import Found
from novelsum_dagster.selection.search import cpu_kernels as kernels
from novelsum_dagster.selection.search.base import Candidates, Round, bin_edges, cosine_slack
from novelsum_dagster.selection.search.ladder import Ladder, Slots, list_slots

_BATCH = 8
"""Number of candidates scored exactly before the level is updated."""
_CHUNK = 256
"""Number of candidates in one matrix product."""
_ALONE = 64
"""Up to this number of stale candidates, a single thread processes them."""
_SCAN_ALONE = 100_000
"""Below this number of candidates, a single thread scans the bounds."""
_DISTANCES_ALONE = 20_000
"""Below this number of float64 distances, a single thread computes them."""
_PICK_BLOCK = 512
"""Number of picks whose rows stay in the processor's cache while candidates are compared with them."""
_REFRESH_FROM, _AHEAD, _MOST_AHEAD = 32, 1 / 4, 64
"""After 32 picks, summaries that will be stale within a quarter of the picks made, 64 at most, are renewed together:
large matrix products are several times faster than small ones."""


class CpuSearch(Ladder):
    """The ladder of bounds, on threads.

    Args:
        candidates, weights: as for every search.
        threads: that search side by side; None takes all cores that the process may use.
    """

    def __init__(self, candidates: Candidates, weights: NDArray[np.float64], threads: int | None = None) -> None:
        super().__init__(candidates, weights, threads)
        n, d = candidates.rows.shape
        k = len(weights)
        self._slack = cosine_slack(d)
        self._crude = 2.0 + self._slack
        coarse, scale = np.empty((n, d), np.int8), np.empty((n, 2), np.float32)
        kernels.coarsen(self._rows, coarse, scale)
        self._pool = kernels.Pool(self._rows, coarse, scale, self._factor, self._quality)
        self._picked = kernels.Picked(np.empty((k, d), np.float32), np.empty(k))
        self._sums = kernels.Sums(np.zeros(k + 1), np.zeros(k + 1), np.zeros(d), np.zeros(d))
        self._bounds = kernels.Bounds(
            value=self._value,
            at=np.zeros(n, np.int64),
            exact_at=self._exact_at,
            dots=np.zeros((n, 2)),
            base=np.zeros(n),
            growth=self._quality * self._factor,
        )
        edges = bin_edges(k)
        means = np.empty((n, len(edges) - 1), np.float32)
        self._summaries = kernels.Summaries(means, np.zeros(n, np.int64), edges)
        # Pages that are never written take no memory.
        self._lists = Slots(n, np.empty((list_slots(n, k), k), np.float32))
        self._next_refresh = _REFRESH_FROM
        self._last_refresh = 0, 0.0
        self._reached = np.empty(n, np.int64)

    def _take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        self._picked.rows[self.picked], self._picked.factor[self.picked] = row, factor
        kernels.append(self.picked, self._weights[self.picked], self._picked, self._sums)
        if own >= 0:
            self._bounds.base[own] = -np.inf
            self._lists.release(own)

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
        has_list = self._lists.lists.slot[candidates] >= 0
        self._score_listed(self._falling(candidates[has_list]), round_)
        stale = self._still(candidates[~has_list], round_.level)
        self._summarise(stale)
        self._score_all_distances(self._falling(stale), round_)
        found = round_.found()
        if found:
            self._lead(found, round_, leaders)
        return found

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        return self._value * self._quality, self._bounds.at, self._exact_at == self._bounds.at

    def _reaching(self, level: float, ahead_w: float = 0.0, ahead_g: float = 0.0) -> NDArray[np.int64]:
        """Return the candidates whose tightened bounds, raised by the growth ahead, reach the level."""

        def part(marks: tuple[int, int]) -> NDArray[np.int64]:
            lo, hi = marks
            out = self._reached[lo:hi]
            count = kernels.reaching(
                lo, hi, self.picked, level, ahead_w, ahead_g, self._pool, self._blocked, self._bounds, self._sums,
                self._crude, out,
            )  # fmt: skip
            return out[:count]

        n = len(self._rows)
        return np.concatenate(self._threads.side_by_side(part, n, n < _SCAN_ALONE))

    def _refresh(self, level: float) -> None:
        """Renew the summaries of all candidates whose bounds are expected to reach the level soon."""
        w, g = self._sums.w, self._sums.g
        now, middle = self.picked, self.picked // 2
        ahead = min(int(now * _AHEAD), _MOST_AHEAD)
        self._next_refresh = now + ahead
        # Only an estimate: it assumes that all picks ahead have the weight of the next one, distance 1 and the density
        # of late picks, and that the level keeps falling at the same rate.
        ahead_w = ahead * self._weights[now]
        ahead_g = ahead_w * (g[now] - g[middle]) / max(w[now] - w[middle], np.finfo(np.float64).tiny)
        last, last_level = self._last_refresh
        fall = max(last_level - level, 0.0) / (now - last) * ahead if last else 0.0
        self._last_refresh = now, level
        candidates = self._reaching(level - fall, ahead_w, ahead_g)
        stale = candidates[self._lists.lists.slot[candidates] < 0]
        self._summarise(stale)
        # An estimate of the candidates picked before the next refresh; building their lists together costs less.
        likely = self._falling(stale)[: min(ahead, self._lists.count // 2)]
        self._fill_lists(likely, self._lists.take(likely, self._value, self._quality))

    def _summarise(self, stale: NDArray[np.int64]) -> None:
        """Update the summaries of candidates, and lower their bounds accordingly."""
        # Sorted by the picks already included, so that the candidates of a chunk lack about the same picks.
        if not len(stale):
            return
        order = stale[np.argsort(self._summaries.seen[stale], kind="stable")]
        if len(order) <= _ALONE:
            self._summarise_chunk(order)
            return
        size = min(_CHUNK, -(-len(order) // self._threads.count))
        self._threads.each(self._summarise_chunk, [order[at : at + size] for at in range(0, len(order), size)])

    def _summarise_chunk(self, chunk: NDArray[np.int64]) -> None:
        seen, now = self._summaries.seen, self.picked
        if not len(chunk) or seen[chunk[0]] == now:
            return
        first = int(seen[chunk[0]])
        new = kernels.gather(self._rows, chunk) @ self._picked.rows[first:now].T
        kernels.raised_distances(new, chunk, first, now, self._pool, self._picked, seen, self._slack)
        new.sort(axis=1)
        kernels.merge_summaries(chunk, new, now, self._pool, self._summaries, self._bounds, self._sums, self._crude)

    def _score_listed(self, candidates: NDArray[np.int64], round_: Round) -> None:
        """Score candidates that have a list, best in order of falling bounds, as far as they reach the level."""
        if not len(candidates):
            return
        scored, scores = np.empty(len(candidates), np.int64), np.empty(len(candidates))
        count = kernels.score_listed(
            candidates, self.picked, round_.best, round_.level, self._pool, self._weights, self._picked,
            self._lists.lists, self._bounds, self._sums, self._crude, scored, scores,
        )  # fmt: skip
        round_.take(scored[:count], scores[:count])

    def _score_all_distances(self, order: NDArray[np.int64], round_: Round) -> None:
        """Give lists to candidates, in order of falling bounds, and score them, as far as they reach the level."""
        for start in range(0, len(order), _BATCH):
            batch = self._still(order[start : start + _BATCH], round_.level)
            if not len(batch):
                return
            slots = self._lists.take(batch, self._value, self._quality)
            self._fill_lists(batch, slots)
            self._score_listed(batch, round_)

    def _fill_lists(self, candidates: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Compute all distances of candidates into their lists."""
        now, values = self.picked, self._lists.lists.values

        def part(marks: tuple[int, int]) -> None:
            first, last = marks
            for start in range(0, now, _PICK_BLOCK):
                stop = min(start + _PICK_BLOCK, now)
                for i, slot in zip(candidates[first:last], slots[first:last], strict=True):
                    kernels.exact_distances(
                        self._rows, self._factor, i, self._picked, start, stop, values[slot, start:]
                    )
            for slot in slots[first:last]:
                values[slot, :now].sort()

        self._threads.side_by_side(part, len(candidates), len(candidates) * now < _DISTANCES_ALONE)
        self._lists.lists.sizes[slots] = now


def memory_needed(n: int, d: int, k: int) -> int:
    """Return the most bytes that a search takes, in addition to the rows passed in."""
    candidates = n * (d + 4 * (len(bin_edges(k)) - 1) + 12 * 8)
    chunks = 4 * 2 * _CHUNK * (d + k)
    return candidates + 4 * k * d + chunks + 4 * k * list_slots(n, k)
