"""The compiled parts of exact NovelSelect: bounds, summaries, exact scores.

Belongs here: loops over numbers, compiled by numba, free of Python's lock so that threads run them side by side.
Does not: which candidates are examined in what order (`search.cpu`).

The score of candidate i over the picks S is `F_i(S) = sum_r w_r D_(r)(i)`, distances ascending, weights descending,
`D(i, s) = |x_i - x_s|^2 / 2 (f_i + f_s)`. Coordinates of unit rows are rounded so that float64 sums their products and
squares exactly (`unit_rows`): `|x_i - x_s|^2 / 2` is exact in any order of summation. It differs from `1 - <x_i, x_s>`
by less than 2^-24 (sqrt(d) + 4), since the lengths of rounded rows are not quite 1. By the rearrangement inequality the
pairing of F is the smallest of all. So F is concave in the distances, and three cheaper values bound it from above:

- crude: a later pick s appended at the end adds at most `w D(i, s)`, and `D(i, s) <= 2 (f_i + f_s)`.
- tightened: for later picks T, `f_i (W - <x_i, A>) + G - <x_i, B>` with sums W, G, A, B of `w_s`, `w_s f_s`, `w_s x_s`
  and `w_s f_s x_s` over T. Sums over all picks less those at the candidate's last look give them: two dot products
  for any number of picks.
- summary: distances of neighbouring ranks replaced by their mean. A candidate keeps a mean for each bin of ranks, the
  bins widening with rank, and takes new distances in by a merge.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_ORDER = {"reassoc", "contract", "nsz"}
"""Lets the compiler reorder sums that are exact or only bounds; NaN and infinity keep their meaning."""
_STRIDE, _FETCH, _CACHE_LINE = 64, 8, 64
_ROUNDING = 2.0**-40
"""Bound of the relative rounding error of sums of a few float64 numbers."""


class Pool(NamedTuple):
    """The n candidates: `rows` float32 (n, d), `factor` and `quality` float64 (n,).

    `coarse`, int8 (n, d), times `scale[:, 0]` is nearly `rows`; `scale[:, 1]` is at least the length of the difference.
    """

    rows: NDArray[Any]
    coarse: NDArray[Any]
    scale: NDArray[Any]
    factor: NDArray[Any]
    quality: NDArray[Any]


class Picked(NamedTuple):
    """The picks in order: `rows` float32 (k, d), `factor` float64 (k,); room for all, the first are filled."""

    rows: NDArray[Any]
    factor: NDArray[Any]


class Sums(NamedTuple):
    """Sums over picks, float64: of w and w f after each pick, (k + 1,); of w x and w f x after the last, (d,)."""

    w: NDArray[Any]
    g: NDArray[Any]
    a: NDArray[Any]
    b: NDArray[Any]


class Bounds(NamedTuple):
    """Bounds of each candidate's F, all (n,): an upper bound that was valid after `at` picks.

    `dots`, (n, 2), are the dot products with the sums a and b at that time; `base` and `growth` give the crude bound
    of the score. Where `exact_at` equals `at`, the bound is F itself.
    """

    value: NDArray[Any]
    at: NDArray[Any]
    exact_at: NDArray[Any]
    dots: NDArray[Any]
    base: NDArray[Any]
    growth: NDArray[Any]


class Summaries(NamedTuple):
    """Means of bins of ascending distances: `means` float32 (n, bins) over the first `seen` picks; `edges` of ranks."""

    means: NDArray[Any]
    seen: NDArray[Any]
    edges: NDArray[Any]


class Lists(NamedTuple):
    """Ascending exact distances of some candidates: `values` float32 (slots, k) to the first `sizes` picks.

    `slot`, (n,), is a candidate's row there, -1 for none.
    """

    values: NDArray[Any]
    sizes: NDArray[Any]
    slot: NDArray[Any]


@njit(cache=True, nogil=True, fastmath=_ORDER)
def cosine_distance(row: Any, other: Any) -> Any:
    """Return `|x - y|^2 / 2` of two unit rows: exact, so the order of summation is the compiler's choice."""
    total = 0.0
    for q in range(len(row)):
        difference = np.float64(row[q]) - np.float64(other[q])
        total += difference * difference
    return total / 2


@njit(cache=True, nogil=True)
def exact_distances(rows: Any, factor: Any, i: int, picked: Picked, first: int, last: int, out: Any) -> None:
    """Write the distances of candidate i to picks `first` to `last` into `out`, rounded to float32."""
    for p in range(first, last):
        out[p - first] = cosine_distance(rows[i], picked.rows[p]) * (factor[i] + picked.factor[p])


@njit(cache=True, nogil=True)
def all_distances(rows: Any, factor: Any, candidates: Any, picked: Picked, out: Any) -> None:
    """Write the distances of candidates (rows of `out`) to all picks given (columns)."""
    for c in range(len(candidates)):
        exact_distances(rows, factor, candidates[c], picked, 0, len(picked.factor), out[c])


@njit(cache=True, nogil=True)
def weighted_sum(values: Any, weights: Any) -> Any:
    """Return `sum weights * values` over the length of `values`, in float64.

    Eight sums, each over every eighth value, are added in a fixed order, so that the result is the same on every
    processor.
    """
    s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    whole = len(values) - len(values) % 8
    for r in range(0, whole, 8):
        s0 += weights[r] * np.float64(values[r])
        s1 += weights[r + 1] * np.float64(values[r + 1])
        s2 += weights[r + 2] * np.float64(values[r + 2])
        s3 += weights[r + 3] * np.float64(values[r + 3])
        s4 += weights[r + 4] * np.float64(values[r + 4])
        s5 += weights[r + 5] * np.float64(values[r + 5])
        s6 += weights[r + 6] * np.float64(values[r + 6])
        s7 += weights[r + 7] * np.float64(values[r + 7])
    for r in range(whole, len(values)):
        s0 += weights[r] * np.float64(values[r])
    return ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))


@njit(cache=True, nogil=True)
def weighted_sums(values: Any, weights: Any) -> Any:
    """Return `weighted_sum` of every row."""
    sums = np.empty(len(values))
    for c in range(len(values)):
        sums[c] = weighted_sum(values[c], weights)
    return sums


@njit(cache=True, nogil=True)
def column_sums(distances: Any, factor: Any, weights: Any) -> Any:
    """Return `sum_r w_r f_(r) d_(r)` of every row of distances to picks of such factors; the earlier of equals first.

    Args:
        distances: float64, (c, m).
        factor: float64, (m,).
        weights: float64, at least (m,).
    """
    sums = np.empty(len(distances))
    for c in range(len(distances)):
        order = np.argsort(distances[c], kind="mergesort")
        sums[c] = weighted_sum(distances[c][order] * factor[order], weights)
    return sums


@njit(cache=True, nogil=True, fastmath=_ORDER)
def coarsen(rows: Any, coarse: Any, scale: Any) -> None:
    """Fill `coarse` and `scale` of a pool."""
    for i in range(len(rows)):
        largest = np.float32(0)
        for q in range(rows.shape[1]):
            largest = max(largest, abs(rows[i, q]))
        scale[i, 0] = largest / 127
        left_out = 0.0
        for q in range(rows.shape[1]):
            coarse[i, q] = np.int8(np.rint(rows[i, q] / scale[i, 0]))
            left_out += (np.float64(rows[i, q]) - np.float64(coarse[i, q]) * scale[i, 0]) ** 2
        # And the share of `|x - y|^2 / 2 - (1 - <x, y>)`.
        scale[i, 1] = np.sqrt(left_out) * (1 + 1e-6) + (np.sqrt(rows.shape[1]) + 4) * 2.0**-24


@njit(cache=True, nogil=True)
def append(now: int, weight: float, picked: Picked, sums: Sums) -> None:
    """Add pick number `now`, from 0, to the sums."""
    f = picked.factor[now]
    sums.w[now + 1] = sums.w[now] + weight
    sums.g[now + 1] = sums.g[now] + weight * f
    for q in range(len(sums.a)):
        value = picked.rows[now, q]
        sums.a[q] += weight * value
        sums.b[q] += weight * f * value


@njit(cache=True, nogil=True)
def gather(rows: Any, chosen: Any) -> Any:
    """Return a copy of some rows; as numpy does it, but other threads may run meanwhile."""
    out = np.empty((len(chosen), rows.shape[1]), rows.dtype)
    for c in range(len(chosen)):
        out[c] = rows[chosen[c]]
    return out


@njit(cache=True, nogil=True)
def reaching(
    lo: int, hi: int, now: int, level: float, ahead_w: float, ahead_g: float, pool: Pool, blocked: Any,
    bounds: Bounds, sums: Sums, crude: float, out: Any,
) -> int:  # fmt: skip
    """Write to `out` the candidates of [lo, hi) whose tightened bound reaches `level`; return how many.

    `ahead_w` and `ahead_g` add the growth of the bound that is expected from picks to come. Every candidate whose
    crude bound reaches the level is tightened.
    """
    # Raised by more than the cancellation of `base` against the share of picks can lose.
    share = crude * (1.0 + _ROUNDING)
    w, g = share * sums.w[now] + ahead_w, share * sums.g[now] + ahead_g
    base, growth, quality = bounds.base, bounds.growth, pool.quality
    found = 0
    for start in range(lo, hi, _STRIDE):
        stop = min(start + _STRIDE, hi)
        reached = False
        for i in range(start, stop):
            reached |= base[i] + growth[i] * w + quality[i] * g >= level
        if reached:
            for i in range(start, stop):
                if not blocked[i] and base[i] + growth[i] * w + quality[i] * g >= level:
                    out[found] = i
                    found += 1
    count = 0
    for start in range(0, found, _FETCH):
        group = out[start : min(start + _FETCH, found)]
        _fetch(pool.coarse, group)
        for i in group:
            _tighten(i, now, pool, bounds, sums, crude)
            if (bounds.value[i] + pool.factor[i] * ahead_w + ahead_g) * quality[i] >= level:
                out[count] = i
                count += 1
    return count


@njit(cache=True, nogil=True)
def _fetch(rows: Any, chosen: Any) -> int:
    """Read a byte of every cache line of some rows, so that the processor waits for all of them at once."""
    total = 0
    for i in chosen:
        for q in range(0, rows.shape[1], _CACHE_LINE):
            total += rows[i, q]
    return total


@njit(cache=True, nogil=True, fastmath=_ORDER)
def _dots(coarse: Any, sums: Sums) -> Any:
    dot_a, dot_b = 0.0, 0.0
    for q in range(len(coarse)):
        value = np.float64(np.int32(coarse[q]))
        dot_a += value * sums.a[q]
        dot_b += value * sums.b[q]
    return dot_a, dot_b


@njit(cache=True, nogil=True)
def _tighten(i: int, now: int, pool: Pool, bounds: Bounds, sums: Sums, crude: float) -> None:
    """Update the bound of candidate i to `now` picks: it rises by at most `f (W - <x, A>) + G - <x, B>`.

    Rows in 8 bits are fetched in a fraction of the time; their rounding error is added to the bound in full.
    """
    at, f = bounds.at[i], pool.factor[i]
    if at == now:
        return
    dot_a, dot_b = _dots(pool.coarse[i], sums)
    dot_a, dot_b = dot_a * pool.scale[i, 0], dot_b * pool.scale[i, 0]
    dw, dg = sums.w[now] - sums.w[at], sums.g[now] - sums.g[at]
    rise = f * (dw - (dot_a - bounds.dots[i, 0])) + (dg - (dot_b - bounds.dots[i, 1]))
    # Exact distances, at most twice the factors, are rounded to float32.
    rise += (pool.scale[i, 1] + 2.0**-22) * (f * dw + dg)
    bounds.value[i] += max(rise, 0.0) + _ROUNDING * (f * sums.w[now] + sums.g[now])
    bounds.at[i] = now
    bounds.dots[i, 0], bounds.dots[i, 1] = dot_a, dot_b
    _set_crude(i, now, pool, bounds, sums, crude)


@njit(cache=True, nogil=True)
def _set_crude(i: int, now: int, pool: Pool, bounds: Bounds, sums: Sums, crude: float) -> None:
    """Store the crude bound less the share of picks, which `reaching` adds."""
    share = crude * (pool.factor[i] * sums.w[now] + sums.g[now])
    bounds.base[i] = pool.quality[i] * (bounds.value[i] + _ROUNDING * abs(bounds.value[i]) - share)


@njit(cache=True, nogil=True)
def raised_distances(
    dots: Any, candidates: Any, first: int, now: int, pool: Pool, picked: Picked, seen: Any, slack: float
) -> None:
    """Turn float32 dot products with picks `first` to `now`, one row per candidate, into upper bounds of distances.

    In place; picks that a candidate has seen become infinitely far.
    """
    for c in range(len(candidates)):
        f = pool.factor[candidates[c]]
        for p in range(first, now):
            dots[c, p - first] = max(1.0 + slack - dots[c, p - first], 0.0) * (f + picked.factor[p])
        for p in range(first, seen[candidates[c]]):
            dots[c, p - first] = np.inf


@njit(cache=True, nogil=True)
def merge_summaries(
    candidates: Any, new: Any, now: int, pool: Pool, summaries: Summaries, bounds: Bounds, sums: Sums, crude: float
) -> None:
    """Merge ascending new distances (one row per candidate, infinity at the end) into summaries; lower the bounds.

    The candidates' bounds must have been tightened to `now`.
    """
    for c in range(len(candidates)):
        i = candidates[c]
        seen = summaries.seen[i]
        bound = _merge(new[c], now - seen, summaries.means[i], seen, now, summaries.edges, sums.w)
        bounds.value[i] = min(bounds.value[i], bound)
        summaries.seen[i] = now
        _set_crude(i, now, pool, bounds, sums, crude)


@njit(cache=True, nogil=True)
def _merge(new: Any, new_count: int, means: Any, old_count: int, now: int, edges: Any, sum_w: Any) -> Any:
    """Merge ascending values into means of bins, both counting; return the weighted sum of the new means."""
    merged = np.empty(len(means), np.float32)
    total, gathered = 0.0, 0.0
    out, room = 0, min(edges[1], now) - edges[0]
    old_bin, old_left = 0, min(edges[1], old_count) - edges[0]
    b, old_done, done = 0, 0, 0
    while done < now:
        if b < new_count and (old_done >= old_count or new[b] <= means[old_bin]):
            gathered += new[b]
            b += 1
            taken = 1
        else:
            taken = min(old_left, room)
            gathered += np.float64(means[old_bin]) * taken
            old_left -= taken
            old_done += taken
            if old_left == 0 and old_done < old_count:
                old_bin += 1
                old_left = min(edges[old_bin + 1], old_count) - edges[old_bin]
        done += taken
        room -= taken
        if room == 0:
            stop = min(edges[out + 1], now)
            mean = gathered / (stop - edges[out])
            total += mean * (sum_w[stop] - sum_w[edges[out]])
            # Rounded up, so that the mean stays a bound however often it is merged.
            merged[out] = mean * (1.0 + 2.0**-23)
            out += 1
            gathered = 0.0
            if done < now:
                room = min(edges[out + 1], now) - edges[out]
    means[:out] = merged[:out]
    return total * (1.0 + 1e-6)


@njit(cache=True, nogil=True)
def score_listed(
    order: Any, now: int, best: float, second: float, pool: Pool, weights: Any, picked: Picked, lists: Lists,
    bounds: Bounds, sums: Sums, crude: float, scored: Any, scores: Any,
) -> int:  # fmt: skip
    """Score those of the candidates in `order`, which have lists, that may still be second.

    Writes them to `scored` and `scores`; returns how many there are.
    """
    count = 0
    for i in order:
        _tighten(i, now, pool, bounds, sums, crude)
        if bounds.value[i] * pool.quality[i] < second:
            continue
        slot = lists.slot[i]
        values = lists.values[slot]
        _take_in(pool, i, picked, lists.sizes[slot], now, values)
        lists.sizes[slot] = now
        bounds.value[i] = weighted_sum(values[:now], weights)
        bounds.exact_at[i] = now
        _set_crude(i, now, pool, bounds, sums, crude)
        score = bounds.value[i] * pool.quality[i]
        best, second = max(best, score), max(min(best, score), second)
        scored[count], scores[count] = i, score
        count += 1
    return count


@njit(cache=True, nogil=True)
def _take_in(pool: Pool, i: int, picked: Picked, size: int, now: int, values: Any) -> None:
    """Extend a candidate's ascending exact distances `values[:size]` to `now` picks."""
    new = np.empty(now - size, np.float32)
    exact_distances(pool.rows, pool.factor, i, picked, size, now, new)
    new.sort()
    end = size
    for b in range(len(new) - 1, -1, -1):
        # All larger values move up at once, past the new values still to be inserted.
        at = np.searchsorted(values[:end], new[b], side="right")
        for r in range(end - 1, at - 1, -1):
            values[r + b + 1] = values[r]
        values[at + b] = new[b]
        end = at
