"""The search for the next pick by the side `column`: which candidates are examined, in what order, by which threads.

Belongs here: the state of candidates. Does not: the bounds themselves (`column_kernels`).

Candidates pass a ladder of filters, as in `search.cpu`; none that could be best or second is dropped:

1. every candidate: the raised bound, a dot product in 8 bits;
2. those that reach the level of the second best: exact distances to the picks that their summaries lack, by a matrix
   product, and the bound of the summary;
3. those that still do: the exact score, from a list of all picks by distance that is kept from then on.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.memory import available_memory, require_memory
from novelsum_dagster.diversity.vectors import cosine_distances, half_squares
from novelsum_dagster.selection.picks import Found
from novelsum_dagster.selection.search import column_kernels as kernels
from novelsum_dagster.selection.search.base import Candidates, Round, bin_edges
from novelsum_dagster.selection.search.cpu_kernels import coarsen
from novelsum_dagster.selection.search.ladder import Ladder, Slots, list_slots

_FRONT = 24
"""Number of nearest picks that a summary keeps individually, as the weights fall fastest there."""
_BINS = 64
"""Number of bins of distance for all other picks."""
_CELLS = 2048
"""Number of even parts of the distances from 0 to 2, which index the bin of a distance."""
_LEAST_SHARE = 1 / 2000
"""Fraction of the distances within the pool in the first bin; the fractions of the others grow evenly from it."""
_DRAWN = 512
"""Number of candidates whose mutual distances determine the bins."""
_MOST_STEPS = 256
"""Number of steps of ranks: the number of values of a byte."""
_BATCH = 64
"""Number of candidates scored exactly before the level is updated."""
_CHUNK = 128
"""Number of candidates in one matrix product."""
_ALONE = 64
"""Up to this number of candidates, a single thread summarises or lists them."""
_RAISED_ALONE = 4000
"""Below this number of candidates, a single thread raises the bounds."""
_FEW = 8
"""Most picks that are inserted into a list one by one."""
_LIST_BYTES = 16
"""Numbers stored in a list for each pick: its distance, and the distance times its factor."""


class ColumnSearch(Ladder):
    """The ladder of bounds for the side `column`, on threads.

    Args:
        candidates, weights: as for every search.
        threads: that search side by side; None takes all cores that the process may use.

    Raises:
        NotEnoughMemory: if the search would not fit.
    """

    def __init__(self, candidates: Candidates, weights: NDArray[np.float64], threads: int | None = None) -> None:
        n, d = candidates.rows.shape
        k = len(weights)
        needed = memory_needed(n, d, k)
        fits = int(n * available_memory() / needed)
        require_memory(needed, f"NovelSelect of {k:,} out of {n:,}", f"about {fits:,} samples would fit")
        super().__init__(candidates, weights, threads)
        coarse, scale = np.empty((n, d), np.int8), np.empty((n, 2), np.float32)
        coarsen(self._rows, coarse, scale)
        self._pool = kernels.Pool(self._rows, coarse, scale, self._quality)
        self._picked = kernels.Picked(
            np.empty((k, d), np.float32), np.empty((k, d), np.int16), np.empty((k, 2), np.float32), np.empty(k)
        )
        # For exact distances by matrix products (`unit_rows`).
        self._wide, self._half = np.empty((k, d)), np.empty(k)
        self._half_rows = half_squares(self._rows)
        self._least = float(self._factor.min())
        steps = bin_edges(k)[:-1]
        self._by_rank = kernels.Weights(weights, _sums(weights), _sums(weights**2), steps[:_MOST_STEPS])
        self._bins = _bins(self._rows)
        self._summaries = kernels.Summaries(
            seen=np.zeros(n, np.int64),
            near=np.empty((n, _FRONT)),
            product=np.empty((n, _FRONT)),
            counts=np.zeros((n, _BINS), np.int32),
            sums=np.zeros((n, _BINS, 2)),
            nearer=np.zeros((n, _BINS), np.uint8),
        )
        self._raised_to = 0
        # Pages that are never written take no memory.
        self._lists = Slots(n, np.empty((list_slots(n, k, _LIST_BYTES), 2, k)))
        self._reached = np.empty(n, np.int64)

    def _take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        now, picked = self.picked, self._picked
        picked.rows[now], picked.factor[now] = row, factor
        coarsen(picked.rows[now : now + 1], picked.coarse[now : now + 1], picked.scale[now : now + 1])
        self._wide[now], self._half[now] = row, half_squares(row[None])[0]
        # A pick of another part may have a smaller factor than all candidates here.
        self._least = min(self._least, factor)
        if own >= 0:
            self._lists.release(own)

    def _best(self) -> Found | None:
        round_ = Round()
        leaders = self._leaders[~self._blocked[self._leaders]]
        self._value[leaders] = np.inf  # Always scored.
        self._score_listed(leaders, round_)
        candidates = self._inexact(self._raised(round_.level))
        self._summarise(candidates)
        if round_.level == -np.inf:
            self._score(self._falling(candidates)[:2], round_)
            candidates = self._inexact(candidates)
        candidates = self._still(candidates, round_.level)
        has_list = self._lists.lists.slot[candidates] >= 0
        self._score(self._falling(candidates[has_list]), round_)
        self._score(self._falling(candidates[~has_list]), round_)
        found = round_.found()
        if found:
            self._lead(found, round_, leaders)
        return found

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        self._raised(np.inf)
        return self._value * self._quality, np.full(len(self._rows), self.picked), self._exact_at == self.picked

    def _raised(self, level: float) -> NDArray[np.int64]:
        """Raise all bounds by the last picks; return the candidates whose bounds reach the level."""
        first, now = self._raised_to, self.picked
        exact = self._exact_at == now
        kept = self._value[exact]

        def part(marks: tuple[int, int]) -> NDArray[np.int64]:
            lo, hi = marks
            out = self._reached[lo:hi]
            count = kernels.raise_bounds(
                lo, hi, first, now, level, self._pool, self._picked, self._least, self._by_rank, self._bins,
                self._summaries.nearer, self._blocked, self._value, out,
            )  # fmt: skip
            return out[:count]

        n = len(self._rows)
        reached: NDArray[np.int64] = np.concatenate(self._threads.side_by_side(part, n, n < _RAISED_ALONE))
        self._value[exact] = kept
        self._raised_to = now
        return reached

    def _summarise(self, candidates: NDArray[np.int64]) -> None:
        """Bring the summaries of candidates up to date, and lower their bounds by them."""

        def part(chunk: NDArray[np.int64]) -> None:
            first = int(self._summaries.seen[chunk[0]])
            kernels.summarise(
                chunk, self._distances(chunk, first), first, self.picked, self._picked, self._by_rank, self._bins,
                self._summaries, self._value,
            )  # fmt: skip

        self._in_chunks(part, candidates, self._summaries.seen[candidates])

    def _in_chunks(
        self, work: Callable[[NDArray[np.int64]], None], candidates: NDArray[np.int64], have: NDArray[np.int64]
    ) -> None:
        """Process chunks of candidates that lack about the same picks: none lacks over twice the least of its chunk."""
        by_lack = np.argsort(have, kind="stable")
        order, lack = candidates[by_lack], self.picked - have[by_lack]
        is_alone = len(order) <= _ALONE
        size = _CHUNK if is_alone else min(_CHUNK, -(-len(order) // self._threads.count))
        alike = np.split(order, np.flatnonzero(np.diff(np.frexp(lack)[1])) + 1)
        chunks = [part[start : start + size] for part in alike for start in range(0, len(part), size)]
        if not is_alone:
            self._threads.each(work, chunks)
        else:
            for chunk in chunks:
                work(chunk)

    def _distances(self, chunk: NDArray[np.int64], first: int) -> NDArray[np.float64]:
        """Return exact distances of candidates, (c,), to the picks from `first`: float64, (c, picks)."""
        picks = slice(first, self.picked)
        distances = self._rows[chunk].astype(np.float64) @ self._wide[picks].T
        np.subtract(self._half[picks], distances, out=distances)
        distances += self._half_rows[chunk, None]
        return distances

    def _score(self, order: NDArray[np.int64], round_: Round) -> None:
        """Score candidates, in order of falling bounds, as far as they reach the level; all get lists."""
        for start in range(0, len(order), _BATCH):
            batch = self._still(order[start : start + _BATCH], round_.level)
            if not len(batch):
                return
            self._extend(batch)
            self._score_listed(batch, round_)

    def _extend(self, candidates: NDArray[np.int64]) -> None:
        """Give lists to candidates, and update all lists except for a few picks."""
        lists = self._lists.lists
        before = lists.slot[candidates]
        slots = self._lists.take(candidates, self._value, self._quality)
        lists.sizes[slots[slots != before]] = 0
        size = lists.sizes[slots]
        stale = size < self.picked - _FEW

        def part(chunk: NDArray[np.int64]) -> None:
            slots = lists.slot[chunk]
            first = int(lists.sizes[slots[0]])
            distances = self._distances(chunk, first)
            distances[np.arange(first, self.picked) < lists.sizes[slots, None]] = np.inf
            kernels.merge_lists(
                chunk, slots, distances, np.argsort(distances, axis=1), first, self.picked, self._picked.factor, lists
            )

        self._in_chunks(part, candidates[stale], size[stale])

    def _score_listed(self, candidates: NDArray[np.int64], round_: Round) -> None:
        """Score candidates that have a list, best in order of falling bounds, as far as they reach the level."""
        if not len(candidates):
            return
        scored, scores = np.empty(len(candidates), np.int64), np.empty(len(candidates))
        count = kernels.score_listed(
            candidates, self.picked, round_.best, round_.level, self._pool, self._weights, self._picked,
            self._lists.lists, self._value, self._exact_at, scored, scores,
        )  # fmt: skip
        round_.take(scored[:count], scores[:count])


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _bins(rows: NDArray[np.float32]) -> kernels.Bins:
    """Return bins of distance by those within the pool.

    Any bins give valid bounds. These are narrow where few picks are nearer, as the weights fall fastest there.
    """
    drawn = rows[np.unique(np.linspace(0, len(rows) - 1, _DRAWN).astype(int))]
    edges = np.quantile(cosine_distances(drawn, drawn), np.geomspace(_LEAST_SHARE, 1.0, _BINS)[:-1])
    cells = np.searchsorted(edges, np.arange(_CELLS) * (2.0 / _CELLS), side="right")
    return kernels.Bins(edges, cells.astype(np.uint8))


def memory_needed(n: int, d: int, k: int) -> int:
    """Return the most bytes that a search takes, in addition to the rows passed in."""
    candidates = n * (d + 16 * _FRONT + 21 * _BINS + 10 * 8)
    chunks = 2 * 8 * _CHUNK * (d + 3 * k)
    return candidates + 14 * k * d + chunks + _LIST_BYTES * k * list_slots(n, k, _LIST_BYTES)
