"""The inner loop of K-Center-Greedy, compiled by numba.

Belongs here: the search for the two candidates farthest from the picks. Does not: the loop over picks, threads.

A candidate's similarity to its nearest pick only rises as picks are added. Each candidate remembers how many picks it
was compared with (`seen`) and the highest cosine among them (`similarity`): a lower bound of what it is by now. Where
that bound is above the level to beat already, the candidate is passed over without a look at its row; otherwise it is
compared with the picks it has not seen, and no further than to the first that takes it above the level. So a row that
was covered early is read no more, and a row that is read meets many picks at once, which stay in the cache.
"""

from typing import Any

import numpy as np
from numba import njit

_ORDER = {"reassoc", "contract", "nsz"}
"""Lets the compiler use vector instructions in sums; NaN and infinity keep their meaning."""
_ALIKE = np.float32(1 - 2.0**-20)
"""Cosines above this are 1 but for rounding."""


@njit(cache=True, nogil=True, fastmath=_ORDER)
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for q in range(len(a)):
        total += a[q] * b[q]
    return total


@njit(cache=True, nogil=True)
def two_least_similar(rows: Any, candidates: Any, picked_rows: Any, similarity: Any, seen: Any, level: float) -> Any:
    """Return the two candidates least similar to their nearest pick, each followed by that similarity.

    All dot products of a selection come from this one loop, so that equal rows get equal values to the last bit.

    Args:
        rows: float32, (n, d), rows of length 1.
        candidates: int64, rows to choose among, in any order.
        picked_rows: float32, (m, d), the picks.
        similarity: float32, (n,), brought up to date as far as needed; above 1 where picked.
        seen: int64, (n,), likewise.
        level: candidates above this similarity need not be found; at most 1.

    Returns:
        best, its similarity, second, its similarity; -1 and infinity where there is none at or below the level.
    """
    best, second = -1, -1
    best_similarity, second_similarity = np.inf, np.inf
    now = len(picked_rows)
    for position in range(len(candidates)):
        i = candidates[position]
        highest = similarity[i]
        if highest > level:
            continue
        at = seen[i]
        while at < now and highest <= level:
            highest = max(highest, _dot(rows[i], picked_rows[at]))
            at += 1
        if highest > _ALIKE:
            highest = np.float32(1)
        similarity[i], seen[i] = highest, at
        if highest > level:
            continue
        if highest < best_similarity or (highest == best_similarity and i < best):
            best, best_similarity, second, second_similarity = i, highest, best, best_similarity
        elif highest < second_similarity or (highest == second_similarity and i < second):
            second, second_similarity = i, highest
        level = min(level, second_similarity)
    return best, best_similarity, second, second_similarity
