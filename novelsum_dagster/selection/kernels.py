"""The compiled parts of exact NovelSelect: bounds, summaries, exact scores.

Belongs here: loops over numbers, compiled by numba, free of Python's lock so that threads run them side by side.
Does not: which candidates are looked at in what order (`search`).

The score of candidate i over the picks S is `F_i(S) = sum_r w_r D_(r)(i)`, distances ascending, weights descending,
`D(i, s) = (1 - <x_i, x_s>)(f_i + f_s)`. By the rearrangement inequality that pairing is the smallest of all. So F is
concave in the distances, and three cheaper values bound it from above:

- crude: a later pick s appended at the end adds at most `w D(i, s)`, and `D(i, s) <= 2 (f_i + f_s)`.
- tightened: for later picks T, `f_i (W - <x_i, A>) + G - <x_i, B>` with sums W, G, A, B of `w_s`, `w_s f_s`, `w_s x_s`
  and `w_s f_s x_s` over T. Differences of prefix sums give them: two dot products for any number of picks.
- summary: distances of neighbouring ranks replaced by their mean. A candidate keeps a mean for each bin of ranks, the
  bins widening with rank, and takes new distances in by a merge.
"""

from typing import Any

import numpy as np
from numba import njit

_ORDER = {"reassoc", "contract", "nsz"}
"""Lets the compiler use vector instructions in sums; NaN and infinity keep their meaning."""
_STRIDE = 64
_ROUNDING = 2.0**-40
"""More than sums of a few float64 numbers lose."""


@njit(cache=True, nogil=True, fastmath=_ORDER)
def exact_distances(
    rows: Any, factor: Any, i: int, picked_rows: Any, picked_factor: Any, first: int, last: int, out: Any
) -> None:
    """Write the distances of candidate i to picks `first` to `last` into `out`; dot products summed in float64."""
    row = rows[i].astype(np.float64)
    for p in range(first, last):
        dot = 0.0
        for q in range(len(row)):
            dot += row[q] * np.float64(picked_rows[p, q])
        out[p - first] = (1.0 - dot) * (factor[i] + picked_factor[p])


@njit(cache=True, nogil=True, fastmath=_ORDER)
def weighted_sum(values: Any, weights: Any) -> Any:
    """Return `sum weights * values` over the length of `values`, in float64."""
    total = 0.0
    for r in range(len(values)):
        total += weights[r] * np.float64(values[r])
    return total


@njit(cache=True, nogil=True)
def all_distances(rows: Any, factor: Any, candidates: Any, picked_rows: Any, picked_factor: Any, out: Any) -> None:
    """Write the distances of candidates (rows of `out`) to all picks given (columns)."""
    for c in range(len(candidates)):
        exact_distances(rows, factor, candidates[c], picked_rows, picked_factor, 0, len(picked_rows), out[c])


@njit(cache=True, nogil=True)
def weighted_sums(values: Any, weights: Any) -> Any:
    """Return `weighted_sum` of every row."""
    sums = np.empty(len(values))
    for c in range(len(values)):
        sums[c] = weighted_sum(values[c], weights)
    return sums


@njit(cache=True, nogil=True)
def _insert(values: Any, size: int, new: Any) -> None:
    """Insert one value into ascending `values[:size]`."""
    at = size
    while at > 0 and values[at - 1] > new:
        values[at] = values[at - 1]
        at -= 1
    values[at] = new


@njit(cache=True, nogil=True)
def _take_in(
    rows: Any, factor: Any, i: int, picked_rows: Any, picked_factor: Any, size: int, now: int, values: Any
) -> None:
    """Bring a candidate's ascending exact distances `values[:size]` up to `now` picks."""
    new = np.empty(now - size, np.float32)
    exact_distances(rows, factor, i, picked_rows, picked_factor, size, now, new)
    for p in range(now - size):
        _insert(values, size + p, new[p])


@njit(cache=True, nogil=True, fastmath=_ORDER)
def _two_dots(row: Any, sums_a: Any, sums_b: Any, at: int, now: int) -> Any:
    dot_a, dot_b = np.float32(0), np.float32(0)
    for q in range(len(row)):
        dot_a += row[q] * (sums_a[now, q] - sums_a[at, q])
        dot_b += row[q] * (sums_b[now, q] - sums_b[at, q])
    return dot_a, dot_b


@njit(cache=True, nogil=True)
def _rise(row: Any, f: Any, at: int, now: int, sums: Any, slack: float) -> Any:
    """Return by how much later picks raise a bound at most: `f (W - <x, A>) + G - <x, B>`."""
    w, g, sums_a, sums_b = sums
    dot_a, dot_b = _two_dots(row, sums_a, sums_b, at, now)
    dw, dg = w[now] - w[at], g[now] - g[at]
    # Prefixes are kept in float32: each is off by at most 2^-24 of its length, which W and G bound.
    rounding = slack * (f * dw + dg) + 2.0**-22 * (f * w[now] + g[now])
    return max(f * (dw - dot_a) + (dg - dot_b) + rounding, 0.0)


@njit(cache=True, nogil=True)
def crude_base(bound: Any, f: Any, q: Any, w: float, g: float, crude: float) -> Any:
    """Return what a crude bound is before the picks after prefix sums w and g: `scan` adds their share."""
    return q * (bound * (1.0 + _ROUNDING) - crude * (f * w + g))


@njit(cache=True, nogil=True)
def reaching(
    lo: int, hi: int, now: int, level: float, ahead_w: float, ahead_g: float, rows: Any, factor: Any, quality: Any,
    blocked: Any, bound: Any, bound_at: Any, base: Any, growth: Any, sums: Any, slack: float, crude: float, out: Any,
) -> int:  # fmt: skip
    """Write to `out` the candidates of [lo, hi) whose tightened bound reaches `level`; return how many.

    `ahead_w` and `ahead_g` add the growth of the bound that is expected from picks to come. Every candidate whose
    crude bound reaches the level is tightened.
    """
    w, g = crude * sums[0][now] + ahead_w, crude * sums[1][now] + ahead_g
    count = 0
    for start in range(lo, hi, _STRIDE):
        stop = min(start + _STRIDE, hi)
        reached = False
        for i in range(start, stop):
            reached |= base[i] + growth[i] * w + quality[i] * g >= level
        if not reached:
            continue
        for i in range(start, stop):
            if blocked[i] or base[i] + growth[i] * w + quality[i] * g < level:
                continue
            if bound_at[i] < now:
                bound[i] += _rise(rows[i], factor[i], bound_at[i], now, sums, slack)
                bound_at[i] = now
                base[i] = crude_base(bound[i], factor[i], quality[i], sums[0][now], sums[1][now], crude)
            if (bound[i] + factor[i] * ahead_w + ahead_g) * quality[i] >= level:
                out[count] = i
                count += 1
    return count


@njit(cache=True, nogil=True)
def raised_distances(
    dots: Any, factor: Any, candidates: Any, picked_factor: Any, seen: Any, first: int, now: int, slack: float
) -> None:
    """Turn float32 cosines to picks `first` to `now`, a row a candidate, into distances that are never too small.

    In place; picks that a candidate has seen become infinitely far.
    """
    for c in range(len(candidates)):
        f = factor[candidates[c]]
        for p in range(first, now):
            dots[c, p - first] = max(1.0 + slack - dots[c, p - first], 0.0) * (f + picked_factor[p])
        for p in range(first, seen[candidates[c]]):
            dots[c, p - first] = np.inf


@njit(cache=True, nogil=True)
def merge_summaries(
    candidates: Any, new: Any, now: int, factor: Any, quality: Any, summary: Any, seen: Any, edges: Any, bound: Any,
    bound_at: Any, base: Any, sums: Any, crude: float,
) -> None:  # fmt: skip
    """Take ascending new distances (a row a candidate, infinity at the end) into summaries and lower the bounds."""
    w, g = sums[0], sums[1]
    for c in range(len(candidates)):
        i = candidates[c]
        bound[i] = min(bound[i], _merge(new[c], now - seen[i], summary[i], seen[i], now, edges, w))
        seen[i] = now
        base[i] = crude_base(bound[i], factor[i], quality[i], w[now], g[now], crude)


@njit(cache=True, nogil=True)
def _merge(new: Any, new_count: int, means: Any, old_count: int, now: int, edges: Any, sw: Any) -> Any:
    merged = np.empty(len(means), np.float32)
    total, acc = 0.0, 0.0
    out, room = 0, min(edges[1], now) - edges[0]
    old_bin = 0
    old_left = min(edges[1], old_count) - edges[0]
    b, old_done, done = 0, 0, 0
    while done < now:
        if b < new_count and (old_done >= old_count or new[b] <= means[old_bin]):
            acc += new[b]
            b += 1
            taken = 1
        else:
            taken = min(old_left, room)
            acc += np.float64(means[old_bin]) * taken
            old_left -= taken
            old_done += taken
            if old_left == 0 and old_done < old_count:
                old_bin += 1
                old_left = min(edges[old_bin + 1], old_count) - edges[old_bin]
        done += taken
        room -= taken
        if room == 0:
            stop = min(edges[out + 1], now)
            mean = acc / (stop - edges[out])
            total += mean * (sw[stop] - sw[edges[out]])
            # Rounded up, so that the mean stays a bound however often it is merged.
            merged[out] = mean * (1.0 + 2.0**-23)
            out += 1
            acc = 0.0
            if done < now:
                room = min(edges[out + 1], now) - edges[out]
    means[:out] = merged[:out]
    return total * (1.0 + 1e-6)


@njit(cache=True, nogil=True)
def score_listed(
    order: Any, now: int, best: float, second: float, rows: Any, factor: Any, quality: Any, weights: Any,
    picked_rows: Any, picked_factor: Any, slot: Any, lists: Any, sizes: Any, bound: Any, bound_at: Any, exact_at: Any,
    base: Any, sums: Any, crude: float, scores: Any,
) -> int:  # fmt: skip
    """Score candidates that have a list of exact distances, in order of falling bounds, while one may be second.

    Returns how many were scored; their scores are in `scores`.
    """
    for position in range(len(order)):
        i = order[position]
        if bound[i] * quality[i] < second:
            return position
        values = lists[slot[i]]
        _take_in(rows, factor, i, picked_rows, picked_factor, sizes[slot[i]], now, values)
        sizes[slot[i]] = now
        bound[i] = weighted_sum(values[:now], weights)
        bound_at[i] = exact_at[i] = now
        base[i] = crude_base(bound[i], factor[i], quality[i], sums[0][now], sums[1][now], crude)
        scores[position] = bound[i] * quality[i]
        best, second = max(best, scores[position]), max(min(best, scores[position]), second)
    return len(order)
