"""The inner loop of K-Center-Greedy, compiled by numba.

Belongs here: the search for the two candidates farthest from the picks. Does not: the loop over picks, threads.

A candidate's distance to its nearest pick only falls as picks are added. Each candidate remembers how many picks it
was compared with (`seen`), the least of these distances (`nearest`), and an upper bound of it (`bound`). Where the
bound is under the level to beat already, the candidate is passed over without a look at its row; otherwise it is
compared with the picks it has not seen, and no further than to the first that takes it under the level. So a row that
was covered early is read no more, and a row that is read meets many picks at once, which stay in the cache.

A dot product in float32 decides most comparisons; if its rounding error makes the result uncertain, the exact distance
does.
"""

from typing import Any

import numpy as np
from numba import njit

from novelsum_dagster.selection.search.cpu_kernels import cosine_distance

_ORDER = {"reassoc", "contract", "nsz"}
"""Lets the compiler reorder sums that are only bounds; NaN and infinity keep their meaning."""


@njit(cache=True, nogil=True, fastmath=_ORDER)
def dot(a: Any, b: Any) -> Any:
    """Return the dot product of two unit rows in float32, rounded in whatever order is fastest (`cosine_slack`)."""
    total = np.float32(0)
    for q in range(len(a)):
        total += a[q] * b[q]
    return total


@njit(cache=True, nogil=True)
def two_farthest(
    rows: Any, candidates: Any, picked_rows: Any, nearest: Any, bound: Any, seen: Any, level: float, slack: float
) -> Any:
    """Return the two candidates farthest from their nearest pick, each followed by that distance.

    Distances are exact (`cosine_distance`), so that equal rows tie; the lower index comes first.

    Args:
        rows: float32, (n, d), unit rows.
        candidates: int64, rows to choose among, in any order.
        picked_rows: float32, (m, d), the picks.
        nearest: float64, (n,), the least distance to the first `seen` picks, infinite before the first.
        bound: float64, (n,), at least the least distance to all picks; below 0 if picked.
        seen: int64, (n,). All three are updated as far as needed.
        level: candidates nearer than this need not be found; 0 or more.
        slack: by how much `1 - dot` may be off a distance.

    Returns:
        best, its distance, second, its distance; -1 and -infinity if no candidate reaches the level.
    """
    best, second = -1, -1
    best_distance, second_distance = -np.inf, -np.inf
    now = len(picked_rows)
    for position in range(len(candidates)):
        i = candidates[position]
        if bound[i] < level:
            continue
        at, least, most = seen[i], nearest[i], nearest[i]
        while at < now and most >= level:
            rough = 1.0 - dot(rows[i], picked_rows[at])
            if rough + slack < level:
                # Certainly under the level; this pick is compared again if the level falls below the bound.
                most = rough + slack
            else:
                if rough - slack < least:
                    least = min(least, cosine_distance(rows[i], picked_rows[at]))
                    most = least
                at += 1
        nearest[i], bound[i], seen[i] = least, most, at
        if most < level:
            continue
        if least > best_distance or (least == best_distance and i < best):
            best, best_distance, second, second_distance = i, least, best, best_distance
        elif least > second_distance or (least == second_distance and i < second):
            second, second_distance = i, least
        level = max(level, second_distance)
    return best, best_distance, second, second_distance
