"""The compiled parts of NovelSelect's search by the side `column`: bounds, summaries, exact scores.

Belongs here: loops over numbers, compiled by numba, free of Python's lock so that threads run them side by side.
Does not: which candidates are examined in what order (`search.column`).

The score of candidate i over the picks S is `F_i(S) = sum_r w_r f_(r) d_(r)(i)`: picks in order of their cosine
distance to i, among equals the earlier first; f is the picks' density factors. Distances are exact (`unit_rows`), so
ranks are.

Values are not sorted by what is summed, so a pick appended at the end does not bound what it adds. What does: let c be
at most every factor. Then `F = c sum_r w_r d_(r) + sum_r w_r (f_(r) - c) d_(r)`. In the first sum the pairing is the
smallest of all, so a pick s at distance x adds at most `c w_(m+1) x`, m picks before it. In the second, ranks only grow
and no term is negative, so it adds at most `w_p (f_s - c) x`, where p is its rank among any of the picks. Two bounds
follow:

- raised: that for every pick, with the distance from rows in 8 bits, and what they leave out counted against us; its
  rank is at least one more than the number of picks known to be nearer.
- summary: the nearest picks one by one, all others in bins of distance. Their ranks are known as a range, exactly; the
  sum over a bin is at most that of means plus the root of the product of both variances (Cauchy-Schwarz).
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from novelsum_dagster.selection.search.cpu_kernels import Lists, cosine_distance, weighted_sum

_UP = 1.0 + 2.0**-36
"""Factor that covers the rounding error of float64 sums over all picks."""
_STEP_UP = 1.0 + 2.0**-51
"""Factor that covers the rounding error of a single sum."""
_ROUNDING = 2.0**-44
"""Bound of the relative rounding error of the sums of squares in a variance."""
_BLOCK = 256
"""Number of candidates whose dot products are computed before they are used: separate loops are faster."""


class Pool(NamedTuple):
    """The n candidates: `rows` float32 (n, d), `quality` float64 (n,).

    `coarse`, int8 (n, d), times `scale[:, 0]` is nearly `rows`; `scale[:, 1]` is at least the length of the difference.
    """

    rows: NDArray[Any]
    coarse: NDArray[Any]
    scale: NDArray[Any]
    quality: NDArray[Any]


class Picked(NamedTuple):
    """The picks in order, room for all: as in `Pool`, `coarse` in int16, and `factor` float64 (k,)."""

    rows: NDArray[Any]
    coarse: NDArray[Any]
    scale: NDArray[Any]
    factor: NDArray[Any]


class Weights(NamedTuple):
    """Proximity weights by rank, (k,), and sums up to each rank, (k + 1,), of them and of their squares: float64.

    `steps`, int64, are some ranks, from 0 and ascending: those that are remembered of a candidate.
    """

    each: NDArray[Any]
    sums: NDArray[Any]
    squares: NDArray[Any]
    steps: NDArray[Any]


class Bins(NamedTuple):
    """Bins of distance: b holds those from `edges[b - 1]` to below `edges[b]`, float64 (bins - 1,).

    `cells`, uint8, divides the distances from 0 to 2 evenly: the bin of the least distance in each.
    """

    edges: NDArray[Any]
    cells: NDArray[Any]


class Summaries(NamedTuple):
    """The first `seen` picks, (n,), of each candidate by their distance.

    `near` and `product`, float64 (n, front), are the distances of the nearest, ascending, and these times the picks'
    factors. The others are counted in bins, `counts` int32 (n, bins), with the sums of products and of their squares,
    `sums` float64 (n, bins, 2). `nearer`, uint8 (n, bins), is a step of ranks: at least that number of picks is nearer
    than any distance in the bin.
    """

    seen: NDArray[Any]
    near: NDArray[Any]
    product: NDArray[Any]
    counts: NDArray[Any]
    sums: NDArray[Any]
    nearer: NDArray[Any]


@njit(cache=True, nogil=True)
def raise_bounds(
    lo: int, hi: int, first: int, now: int, level: float, pool: Pool, picked: Picked, least: float, weights: Weights,
    bins: Bins, nearer: Any, blocked: Any, value: Any, out: Any,
) -> int:  # fmt: skip
    """Raise the bounds of candidates [lo, hi) by picks `first` to `now`; write to `out` those that reach `level`.

    Args:
        least: c, at most the least factor of all picks.
        nearer: as in `Summaries`.
        blocked: bool, (n,), those that are not written to `out`.
        value: float64, (n,), the bounds.

    Returns:
        How many reach it.
    """
    count = 0
    by_step = weights.each[weights.steps]
    cells, last = len(bins.cells) / 2.0, len(bins.cells) - 1
    dots = np.empty(_BLOCK)
    for start in range(lo, hi, _BLOCK):
        stop = min(start + _BLOCK, hi)
        for p in range(first, now):
            _dots(start, stop, pool.coarse, picked.coarse, p, dots)
            scale, pick_left_out = np.float64(picked.scale[p, 0]), np.float64(picked.scale[p, 1])
            excess, rest = picked.factor[p] - least, weights.each[p] * least
            for i in range(start, stop):
                left_out = np.float64(pool.scale[i, 1])
                dot = np.float64(pool.scale[i, 0]) * scale * dots[i - start]
                wrong = (left_out + pick_left_out) * (1.0 + left_out + 2.0**-18)
                nearest, farthest = max(1.0 - dot - wrong, 0.0), 1.0 - dot + wrong
                cell = np.int64(nearest * cells)
                bin_ = bins.cells[cell if cell < last else last]
                growth = by_step[nearer[i, bin_]] * excess + rest
                value[i] = (value[i] + growth * farthest) * _STEP_UP
        for i in range(start, stop):
            if value[i] * pool.quality[i] >= level and not blocked[i]:
                out[count] = i
                count += 1
    return count


@njit(cache=True, nogil=True)
def _dots(start: int, stop: int, coarse: Any, picked: Any, p: int, out: Any) -> None:
    """Write the dot products of candidates [start, stop) with pick p, whole numbers."""
    for i in range(start, stop):
        whole = np.int32(0)
        for q in range(coarse.shape[1]):
            # numba would multiply and add in 64 bits.
            whole = np.int32(whole + np.int32(np.int32(coarse[i, q]) * np.int32(picked[p, q])))
        out[i - start] = whole


@njit(cache=True, nogil=True)
def summarise(
    chosen: Any, distances: Any, first: int, now: int, picked: Picked, weights: Weights, bins: Bins,
    summaries: Summaries, value: Any,
) -> None:  # fmt: skip
    """Bring summaries of candidates to `now` picks, and lower their bounds to those of the summaries.

    Args:
        distances: float64, one row per candidate, one column per pick from `first`.
    """
    front, cells, last_cell = summaries.near.shape[1], len(bins.cells) / 2.0, len(bins.cells) - 1
    for c in range(len(chosen)):
        i = chosen[c]
        near, products = summaries.near[i], summaries.product[i]
        counts, sums = summaries.counts[i], summaries.sums[i]
        for p in range(summaries.seen[i], now):
            x = distances[c, p - first]
            product = picked.factor[p] * x
            if p < front or x < near[front - 1]:
                last = min(p, front - 1)
                out, product_out = near[front - 1], products[front - 1]
                while last > 0 and near[last - 1] > x:
                    near[last], products[last] = near[last - 1], products[last - 1]
                    last -= 1
                near[last], products[last] = x, product
                if p < front:
                    continue
                x, product = out, product_out
            cell = np.int64(x * cells)
            bin_ = np.int64(bins.cells[cell if cell < last_cell else last_cell])
            while bin_ < len(bins.edges) and bins.edges[bin_] <= x:
                bin_ += 1
            counts[bin_] += 1
            sums[bin_, 0] += product
            sums[bin_, 1] += product * product
        summaries.seen[i] = now
        bound = _bound(now, weights, bins.edges, near, products, counts, sums, summaries.nearer[i])
        value[i] = min(value[i], bound)


@njit(cache=True, nogil=True)
def _bound(
    now: int, weights: Weights, edges: Any, near: Any, products: Any, counts: Any, sums: Any, nearer: Any
) -> float:
    """Return the upper bound of F from a candidate's summary of `now` picks, and set `nearer`."""
    front = min(now, len(near))
    total = 0.0
    for r in range(front):
        total += weights.each[r] * products[r]
    lost = _ROUNDING * weights.squares[-1]
    before, nearest, step = front, 0, 0
    for b in range(len(counts)):
        # Those before bin b are nearer than all in it; of the front, those under its lower edge.
        while b and nearest < front and near[nearest] < edges[b - 1]:
            nearest += 1
        while step + 1 < len(weights.steps) and weights.steps[step + 1] <= nearest + before - front:
            step += 1
        nearer[b] = step
        count = counts[b]
        if count:
            after = before + count
            value, highest = sums[b, 0], weights.each[before]
            if count > 1:
                mean = (weights.sums[after] - weights.sums[before]) / count
                w = max(weights.squares[after] - weights.squares[before] - count * mean * mean, 0.0) + lost
                g = max(sums[b, 1] - value * value / count, 0.0) + _ROUNDING * sums[b, 1]
                total += min(mean * value + np.sqrt(w * g), highest * value)
            else:
                total += highest * value
            before = after
    return total * _UP


@njit(cache=True, nogil=True)
def merge_lists(
    chosen: Any, slots: Any, distances: Any, order: Any, first: int, now: int, factor: Any, lists: Lists
) -> None:
    """Insert the missing picks, up to `now`, into the lists of candidates, in `slots`.

    A list is `values[slot]`, float64, (2, k): distances, ascending, and these times the picks' factors.

    Args:
        distances: float64, one row per candidate, to the picks from `first`; to those in the list, infinity.
        order: int64, of the same shape: each row's places by distance, equal ones in any order.
        factor: float64, (k,), of the picks.
    """
    for c in range(len(chosen)):
        slot = slots[c]
        end = lists.sizes[slot]
        near, products, new, by_distance = lists.values[slot, 0], lists.values[slot, 1], distances[c], order[c]
        _earlier_first(new, by_distance[: now - end])
        # From the farthest on, each to its place; earlier picks stay before equals.
        b = now - end - 1
        while b >= 0:
            x = new[by_distance[b]]
            if end and near[end - 1] > x:
                end -= 1
                near[end + b + 1], products[end + b + 1] = near[end], products[end]
            else:
                near[end + b], products[end + b] = x, factor[first + by_distance[b]] * x
                b -= 1
        lists.sizes[slot] = now


@njit(cache=True, nogil=True)
def _earlier_first(values: Any, order: Any) -> None:
    """Put equal values of an order, by value, in the order of their places."""
    for b in range(1, len(order)):
        place, at = order[b], b
        while at > 0 and order[at - 1] > place and values[order[at - 1]] == values[place]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = place


@njit(cache=True, nogil=True)
def score_listed(
    chosen: Any, now: int, best: float, second: float, pool: Pool, weights: Any, picked: Picked, lists: Lists,
    value: Any, exact_at: Any, scored: Any, scores: Any,
) -> int:  # fmt: skip
    """Score those of some candidates, which have lists, that may still be second.

    Writes them to `scored` and `scores`; returns how many there are.
    """
    count = 0
    for i in chosen:
        if value[i] * pool.quality[i] < second:
            continue
        slot = lists.slot[i]
        _insert(pool, i, picked, lists.sizes[slot], now, lists.values[slot])
        lists.sizes[slot] = now
        found = weighted_sum(lists.values[slot, 1, :now], weights)
        # No bound may be under the score that another processor finds.
        value[i], exact_at[i] = found * _UP, now
        score = found * pool.quality[i]
        best, second = max(best, score), max(min(best, score), second)
        scored[count], scores[count] = i, score
        count += 1
    return count


@njit(cache=True, nogil=True)
def _insert(pool: Pool, i: int, picked: Picked, size: int, now: int, values: Any) -> None:
    """Insert picks `size` to `now`, which should be few, into a candidate's list one by one."""
    near, products = values[0], values[1]
    for p in range(size, now):
        x, at = cosine_distance(pool.rows[i], picked.rows[p]), p
        while at > 0 and near[at - 1] > x:
            near[at], products[at] = near[at - 1], products[at - 1]
            at -= 1
        near[at], products[at] = x, picked.factor[p] * x
