"""The increase of NovelSum by a candidate, compiled by numba: ranks, tails and sums in a fixed order.

Belongs here: loops over numbers, free of Python's lock so that threads run them side by side. Does not: the definition
of the increase and which candidates are scored (`search.objective`).

Of m picks, `near` has for each the distances to the m - 1 others, ascending, and `order` the places of these; equal
distances are in order of place. `tails[t, p]` is what pick t's row loses when a sample takes rank p in it and all
from p on move up by one. Of candidates, by pick and candidate: `distance`; `before`, how many of the other picks in the
pick's row are no farther than the candidate; `rank`, the pick's place in the candidate's row.

No sum is reordered, so every result has the same bits on every processor, with any number of threads.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from novelsum_dagster.selection.search.cpu_kernels import cosine_distance

_BLOCK = 8192
"""Number of candidates whose sums stay in the processor's cache; fewer would fetch the tails more often."""


class Rows(NamedTuple):
    """The rows of up to k picks among themselves; of m picks, the first m rows and m - 1 columns are filled.

    `near` float64 (k, k); `order` int32 (k, k); `tails` float64 (k, k + 1). `own` and `other`, float64 (k,), are the
    factors of a pick's row and of its column. `weights`, float64 (k + 1,), are those of the other samples by rank.
    """

    near: NDArray[Any]
    order: NDArray[Any]
    tails: NDArray[Any]
    own: NDArray[Any]
    other: NDArray[Any]
    weights: NDArray[Any]


class Seen(NamedTuple):
    """Distances and ranks of n candidates and k picks: `distance` float64, `before` and `rank` unsigned, (k, n)."""

    distance: NDArray[Any]
    before: NDArray[Any]
    rank: NDArray[Any]


@njit(cache=True, nogil=True)
def _insert(near: Any, order: Any, count: int, distance: float, place: int) -> None:
    """Insert a distance into a row of `count`."""
    at = count
    while at > 0 and (near[at - 1] > distance or (near[at - 1] == distance and order[at - 1] > place)):
        near[at], order[at] = near[at - 1], order[at - 1]
        at -= 1
    near[at], order[at] = distance, place


@njit(cache=True, nogil=True)
def _drop(near: Any, order: Any, count: int, place: int) -> None:
    """Remove the pick at a place from a row of `count`."""
    at = 0
    while order[at] != place:
        at += 1
    for r in range(at, count - 1):
        near[r], order[r] = near[r + 1], order[r + 1]


@njit(cache=True, nogil=True)
def _tails(rows: Rows, t: int, count: int, left_out: int, out: Any) -> Any:
    """Write the tails of a row of `count` without one place; return the row's weighted sum."""
    size = count
    for r in range(count):
        if rows.order[t, r] == left_out:
            size -= 1
    out[size] = 0.0
    at, total = size, 0.0
    for r in range(count - 1, -1, -1):
        if rows.order[t, r] == left_out:
            continue
        at -= 1
        value = rows.own[t] * (rows.other[rows.order[t, r]] * rows.near[t, r])
        out[at] = out[at + 1] + (rows.weights[at] - rows.weights[at + 1]) * value
        total += rows.weights[at] * value
    return total


@njit(cache=True, nogil=True)
def append(rows: Rows, m: int, distances: Any) -> Any:
    """Add pick number `m`, from 0, with its distances to the earlier ones, (m,); return the sum of all rows."""
    total = 0.0
    for t in range(m):
        _insert(rows.near[t], rows.order[t], m - 1, distances[t], m)
        total += _tails(rows, t, m, -1, rows.tails[t])
        _insert(rows.near[m], rows.order[m], t, distances[t], t)
    return total + _tails(rows, m, m, -1, rows.tails[m])


@njit(cache=True, nogil=True)
def fill(rows: Rows, distances: Any) -> Any:
    """Add all picks at once, with their distances, (m, m); return the sum of all rows, as the last `append` does."""
    m, total = len(distances), 0.0
    for t in range(m):
        ascending = np.argsort(distances[t], kind="mergesort")
        at = 0
        for s in ascending:
            if s != t:
                rows.near[t, at], rows.order[t, at] = distances[t, s], s
                at += 1
        total += _tails(rows, t, m - 1, -1, rows.tails[t])
    return total


@njit(cache=True, nogil=True)
def exchange(rows: Rows, m: int, place: int, distances: Any) -> Any:
    """Replace a pick by a sample with these distances to the m picks, (m,); return the sum of all rows."""
    total, count = 0.0, 0
    for t in range(m):
        if t == place:
            continue
        _drop(rows.near[t], rows.order[t], m - 1, place)
        _insert(rows.near[t], rows.order[t], m - 2, distances[t], place)
        _insert(rows.near[place], rows.order[place], count, distances[t], t)
        count += 1
    for t in range(m):
        total += _tails(rows, t, m - 1, -1, rows.tails[t])
    return total


@njit(cache=True, nogil=True)
def tails_without(rows: Rows, m: int, place: int, out: Any) -> Any:
    """Write the tails of all picks but one, (k, k + 1), without that one; return the sum of the rows."""
    total = 0.0
    for t in range(m):
        if t != place:
            total += _tails(rows, t, m - 1, place, out[t])
    return total


@njit(cache=True, nogil=True)
def distances_to(units: Any, row: Any, lo: int, hi: int, out: Any) -> None:
    """Write the distances of candidates [lo, hi) to a pick's row, exact, to `out`, (n,)."""
    for i in range(lo, hi):
        out[i] = cosine_distance(units[i], row)


@njit(cache=True, nogil=True)
def join(seen: Seen, m: int, distances: Any, lo: int, hi: int) -> None:
    """Update candidates [lo, hi) for pick `m`, whose distances are in place; `distances` are to earlier picks."""
    for start in range(lo, hi, _BLOCK):
        stop = min(start + _BLOCK, hi)
        new, new_before, new_rank = seen.distance[m, start:stop], seen.before[m, start:stop], seen.rank[m, start:stop]
        new_before[:] = 0
        new_rank[:] = 0
        for t in range(m):
            old, before, rank = seen.distance[t, start:stop], seen.before[t, start:stop], seen.rank[t, start:stop]
            apart = distances[t]
            for i in range(stop - start):
                before[i] += apart <= old[i]
                rank[i] += new[i] < old[i]
                new_rank[i] += old[i] <= new[i]
                new_before[i] += apart <= new[i]


@njit(cache=True, nogil=True)
def leave(seen: Seen, m: int, place: int, distances: Any, lo: int, hi: int) -> None:
    """Update candidates [lo, hi) for the removal of one of m picks, at these distances to the others, (m,)."""
    for start in range(lo, hi, _BLOCK):
        stop = min(start + _BLOCK, hi)
        gone = seen.distance[place, start:stop]
        for t in range(m):
            if t == place:
                continue
            old, before, rank = seen.distance[t, start:stop], seen.before[t, start:stop], seen.rank[t, start:stop]
            apart, is_later = distances[t], t > place
            for i in range(stop - start):
                before[i] -= apart <= old[i]
                rank[i] -= gone[i] <= old[i] if is_later else gone[i] < old[i]


@njit(cache=True, nogil=True)
def enter(seen: Seen, m: int, place: int, distances: Any, lo: int, hi: int) -> None:
    """Update candidates [lo, hi) for the pick at a place that was removed before; as `join` does for the last."""
    for start in range(lo, hi, _BLOCK):
        stop = min(start + _BLOCK, hi)
        new, new_before = seen.distance[place, start:stop], seen.before[place, start:stop]
        new_rank = seen.rank[place, start:stop]
        new_before[:] = 0
        new_rank[:] = 0
        for t in range(m):
            if t == place:
                continue
            old, before, rank = seen.distance[t, start:stop], seen.before[t, start:stop], seen.rank[t, start:stop]
            apart, is_later = distances[t], t > place
            for i in range(stop - start):
                before[i] += apart <= old[i]
                rank[i] += new[i] <= old[i] if is_later else new[i] < old[i]
                new_rank[i] += old[i] < new[i] if is_later else old[i] <= new[i]
                new_before[i] += apart <= new[i]


@njit(cache=True, nogil=True)
def see(seen: Seen, rows: Rows, m: int) -> None:
    """Compute `before` and `rank` of all candidates from their distances to m picks."""
    for i in range(seen.distance.shape[1]):
        ascending = np.argsort(seen.distance[:m, i].copy(), kind="mergesort")
        for r in range(m):
            t = ascending[r]
            seen.rank[t, i] = r
            seen.before[t, i] = np.searchsorted(rows.near[t, : m - 1], seen.distance[t, i], side="right")


@njit(cache=True, nogil=True)
def added(seen: Seen, rows: Rows, m: int, own: Any, other: Any, lo: int, hi: int, out: Any) -> None:
    """Write by how much candidates [lo, hi) would increase the sum of the rows of m picks to `out`, (n,).

    Args:
        seen: of these candidates.
        rows: of the picks.
        m: how many picks.
        own, other: float64, (n,), factors of a candidate's row and of its column.
        lo, hi: the candidates.
        out: float64, (n,).
    """
    weights = rows.weights
    row, column, lost = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    for start in range(lo, hi, _BLOCK):
        stop = min(start + _BLOCK, hi)
        row[:], column[:], lost[:] = 0.0, 0.0, 0.0
        for t in range(m):
            far, before, rank = seen.distance[t, start:stop], seen.before[t, start:stop], seen.rank[t, start:stop]
            tails, pick_own, pick_other = rows.tails[t], rows.own[t], rows.other[t]
            for i in range(stop - start):
                row[i] += weights[rank[i]] * (pick_other * far[i])
                column[i] += weights[before[i]] * (pick_own * far[i])
                lost[i] += tails[before[i]]
        for i in range(stop - start):
            c = start + i
            out[c] = own[c] * row[i] + (other[c] * column[i] - lost[i])


@njit(cache=True, nogil=True)
def added_without(
    seen: Seen, rows: Rows, m: int, place: int, tails: Any, distances: Any, own: Any, other: Any, lo: int, hi: int,
    out: Any,
) -> None:  # fmt: skip
    """Write by how much candidates [lo, hi) would increase the sum of the rows of m picks but one.

    Args:
        seen, rows, m, own, other, lo, hi, out: as for `added`.
        place: of the pick left out.
        tails: float64, (k, k + 1), of `tails_without`.
        distances: float64, (m,), of that pick to all.
    """
    weights = rows.weights
    row, column, lost = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    for start in range(lo, hi, _BLOCK):
        stop = min(start + _BLOCK, hi)
        gone = seen.distance[place, start:stop]
        row[:], column[:], lost[:] = 0.0, 0.0, 0.0
        for t in range(m):
            if t == place:
                continue
            far, before, rank = seen.distance[t, start:stop], seen.before[t, start:stop], seen.rank[t, start:stop]
            tail, pick_own, pick_other, apart, is_later = tails[t], rows.own[t], rows.other[t], distances[t], t > place
            for i in range(stop - start):
                # With signed indices, numba would check for negative ones.
                at = np.uint64(rank[i]) - np.uint64(gone[i] <= far[i] if is_later else gone[i] < far[i])
                behind = np.uint64(before[i]) - np.uint64(apart <= far[i])
                row[i] += weights[at] * (pick_other * far[i])
                column[i] += weights[behind] * (pick_own * far[i])
                lost[i] += tail[behind]
        for i in range(stop - start):
            c = start + i
            out[c] = own[c] * row[i] + (other[c] * column[i] - lost[i])
