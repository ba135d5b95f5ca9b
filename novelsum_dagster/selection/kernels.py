"""The inner loop of exact NovelSelect, compiled by numba.

Belongs here: bounds, exact scores, the search for the next pick. Does not: checks of input, density, records.

The score of candidate i over the picks S is `F_i(S) = sum_r w_r D_(r)(i)`, distances ascending, weights descending.
By the rearrangement inequality that pairing is the smallest of all, so appending later picks T in pick order can only
overstate: `F_i(S + T) <= F_i(S) + sum_{s in T} w_s D(i, s)`. With `D(i, s) = (1 - <x_i, x_s>)(f_i + f_s)` the sum is
`f_i (W - <x_i, A>) + G - <x_i, B>`, where W, G, A and B are sums over T that differences of prefix sums give: two dot
products bring a bound up to date over any number of picks. `1 - <x_i, x_s> <= 2` gives a cruder bound without any.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_ORDER = {"reassoc", "contract", "nsz"}
"""Lets the compiler use vector instructions in sums; NaN and infinity keep their meaning."""
_PREFIX_ROUNDING = 2.0**-23


class State:
    """Everything the search remembers about n candidates and up to k picks.

    Args:
        unit_rows: float32, (n, d), rows of length 1.
        density_factor: float64, (n,).
        weights: float64, (k,), proximity weights by rank.
    """

    def __init__(
        self, unit_rows: NDArray[np.float32], density_factor: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> None:
        n, d = unit_rows.shape
        k = len(weights)
        self.rows = unit_rows
        self.factor = density_factor
        self.weights = weights
        self.picked = 0
        self.picks = np.empty(k, np.int64)
        self.picked_rows = np.empty((k, d), np.float32)
        self.picked_factor = np.empty(k)
        self.is_picked = np.zeros(n, np.bool_)
        # Sorted distances of candidates that were scored; pages never touched cost no memory.
        self.distances = np.zeros((n, k), np.float32)
        self.scored_at = np.zeros(n, np.int64)
        self.bound = np.zeros(n)
        self.bound_at = np.zeros(n, np.int64)
        self.sum_w = np.zeros(k + 1)
        self.sum_g = np.zeros(k + 1)
        # Summed in float64, kept rounded: float32 halves what a tightened bound reads.
        self._sum_a = np.zeros(d)
        self._sum_b = np.zeros(d)
        self.sum_a = np.zeros((k + 1, d), np.float32)
        self.sum_b = np.zeros((k + 1, d), np.float32)
        # Rounding of a float32 dot product of unit rows is below d * 2^-24; bounds are raised by that much.
        self.slack = d * 2.0**-24

    def add(self, pick: int) -> None:
        """Append a pick."""
        m = self.picked
        weight, factor = self.weights[m], self.factor[pick]
        self.picks[m] = pick
        self.picked_rows[m] = self.rows[pick]
        self.picked_factor[m] = factor
        self.is_picked[pick] = True
        self.sum_w[m + 1] = self.sum_w[m] + weight
        self.sum_g[m + 1] = self.sum_g[m] + weight * factor
        self._sum_a += weight * self.rows[pick]
        self._sum_b += weight * factor * self.rows[pick]
        self.sum_a[m + 1], self.sum_b[m + 1] = self._sum_a, self._sum_b
        self.picked = m + 1

    def next_pick(self) -> tuple[int, float, int, float]:
        """Return the unpicked candidate of the highest score, its score, and the second's; -1 where none is left."""
        best, best_score, second, second_score = _next_pick(
            self.rows, self.factor, self.weights, self.picked_rows, self.picked_factor, self.picked, self.is_picked,
            self.distances, self.scored_at, self.bound, self.bound_at, self.sum_w, self.sum_g, self.sum_a, self.sum_b,
            self.slack,
        )  # fmt: skip
        return int(best), float(best_score), int(second), float(second_score)


@njit(cache=True, fastmath=_ORDER)
def _distances_to(row: Any, factor: float, picked_rows: Any, picked_factor: Any, out: Any) -> None:
    for p in range(len(picked_rows)):
        dot = np.float32(0)
        for q in range(len(row)):
            dot += row[q] * picked_rows[p, q]
        out[p] = (1 - np.float64(dot)) * (factor + picked_factor[p])


@njit(cache=True, fastmath=_ORDER)
def _weighted_sum(values: Any, weights: Any, size: int) -> Any:
    total = 0.0
    for r in range(size):
        total += weights[r] * values[r]
    return total


@njit(cache=True)
def _merge(row: Any, seen: int, new: Any) -> None:
    """Merge ascending `new` into ascending `row[:seen]`, in place."""
    a, b = seen - 1, len(new) - 1
    while b >= 0:
        if a >= 0 and row[a] > new[b]:
            row[a + b + 1] = row[a]
            a -= 1
        else:
            row[a + b + 1] = new[b]
            b -= 1


@njit(cache=True, fastmath=_ORDER)
def _tightened(
    rows: Any, i: int, factor: Any, at: int, now: int, sw: Any, sg: Any, sa: Any, sb: Any, slack: float
) -> Any:
    """Return by how much the bound of candidate i rises from pick number `at` to `now`."""
    dot_a, dot_b = np.float32(0), np.float32(0)
    for q in range(rows.shape[1]):
        dot_a += rows[i, q] * (sa[now, q] - sa[at, q])
        dot_b += rows[i, q] * (sb[now, q] - sb[at, q])
    dw, dg = sw[now] - sw[at], sg[now] - sg[at]
    # Two rounded prefixes are off by at most 2^-24 of their length each, which W and G bound.
    rounding = slack * (factor[i] * dw + dg) + _PREFIX_ROUNDING * (factor[i] * sw[now] + sg[now])
    return factor[i] * (dw - dot_a) + (dg - dot_b) + rounding


@njit(cache=True)
def _crude_bounds(
    factor: Any, now: int, is_picked: Any, bound: Any, bound_at: Any, sw: Any, sg: Any, slack: float
) -> Any:
    """Return an upper bound of every candidate's score that needs no dot product; minus infinity where picked."""
    crude = np.empty(len(factor))
    for i in range(len(factor)):
        at = bound_at[i]
        crude[i] = bound[i] + (2.0 + slack) * (factor[i] * (sw[now] - sw[at]) + (sg[now] - sg[at]))
        if is_picked[i]:
            crude[i] = -np.inf
    return crude


@njit(cache=True)
def _two_highest(values: Any) -> Any:
    """Return where the two highest values stand, the lower index first among equals; -1 for minus infinity."""
    first, second = -1, -1
    for i in range(len(values)):
        if values[i] == -np.inf:
            continue
        if first < 0 or values[i] > values[first]:
            first, second = i, first
        elif second < 0 or values[i] > values[second]:
            second = i
    return first, second


@njit(cache=True)
def _next_pick(
    rows: Any, factor: Any, weights: Any, picked_rows: Any, picked_factor: Any, now: int, is_picked: Any,
    distances: Any, scored_at: Any, bound: Any, bound_at: Any, sw: Any, sg: Any, sa: Any, sb: Any, slack: float,
) -> Any:  # fmt: skip
    crude = _crude_bounds(factor, now, is_picked, bound, bound_at, sw, sg, slack)
    first, second = _two_highest(crude)
    best, best_score, runner, runner_score = -1, -np.inf, -1, -np.inf
    buffer = np.empty(now, np.float32)
    # The two highest crude bounds set the level to beat.
    for i in (first, second):
        if i >= 0:
            score = _score(
                rows, i, factor, weights, picked_rows, picked_factor, now, distances, scored_at, bound, bound_at,
                buffer, slack,
            )  # fmt: skip
            best, best_score, runner, runner_score = _ranked(i, score, best, best_score, runner, runner_score)
    # The rest are tightened, and scored from the highest bound down, so that few need an exact score. Candidates that
    # may equal the runner-up are scored too: ties go to the lowest index.
    candidates = np.empty(len(crude), np.int64)
    limits = np.empty(len(crude))
    count = 0
    for i in range(len(crude)):
        if is_picked[i] or i == first or i == second or crude[i] < runner_score:  # noqa: SIM109
            continue
        if bound_at[i] < now:
            bound[i] += _tightened(rows, i, factor, bound_at[i], now, sw, sg, sa, sb, slack)
            bound_at[i] = now
        if bound[i] >= runner_score:
            candidates[count], limits[count] = i, -bound[i]
            count += 1
    for position in np.argsort(limits[:count]):
        if -limits[position] < runner_score:
            break
        i = candidates[position]
        score = _score(
            rows, i, factor, weights, picked_rows, picked_factor, now, distances, scored_at, bound, bound_at,
            buffer, slack,
        )  # fmt: skip
        best, best_score, runner, runner_score = _ranked(i, score, best, best_score, runner, runner_score)
    return best, best_score, runner, runner_score


@njit(cache=True)
def _score(
    rows: Any, i: int, factor: Any, weights: Any, picked_rows: Any, picked_factor: Any, now: int, distances: Any,
    scored_at: Any, bound: Any, bound_at: Any, buffer: Any, slack: float,
) -> Any:  # fmt: skip
    """Bring the sorted distances of candidate i up to date; return its exact score."""
    seen = scored_at[i]
    new = buffer[: now - seen]
    _distances_to(rows[i], factor[i], picked_rows[seen:now], picked_factor[seen:now], new)
    new.sort()
    _merge(distances[i], seen, new)
    scored_at[i] = now
    score = _weighted_sum(distances[i], weights, now)
    bound[i] = score * (1 + slack)
    bound_at[i] = now
    return score


@njit(cache=True)
def _ranked(i: int, score: float, best: int, best_score: float, runner: int, runner_score: float) -> Any:
    """Return the best two of the best two so far and candidate i; equal scores rank by index."""
    if score > best_score or (score == best_score and i < best):
        return i, score, best, best_score
    if score > runner_score or (score == runner_score and i < runner):
        return best, best_score, i, score
    return best, best_score, runner, runner_score
