"""Facility location, compiled by numba: exact similarities and the gains computed from them.

Belongs here: similarities that can be summed exactly, the gains of candidates. Does not: the order in which candidates
are examined (`qdit`).

Two samples that cover only each other have the same gain, so ties are common and rounding must not break them.
Similarities are therefore multiples of 2^-23 from 0 to 1 and the same both ways: their differences are exact in
float32, sums of up to 2^30 of them are exact in float64, and a gain never rises as `covered` rises.
"""

from typing import Any

import numpy as np
from numba import njit

from novelsum_dagster.selection.search.cpu_kernels import cosine_distance

_ORDER = {"reassoc", "contract", "nsz"}
"""Lets the compiler reorder sums that are exact; NaN and infinity keep their meaning."""
_STRIPE = 32
"""Columns written together, so that the lines of their transpose stay in the cache."""


@njit(cache=True, nogil=True)
def _rounded(cosine: Any) -> Any:
    """Return a cosine as a multiple of 2^-23 from 0 to 1: float32 numbers from 1 to 2 are 2^-23 apart."""
    return np.float32(1.0 + max(cosine, 0.0)) - np.float32(1)


@njit(cache=True, nogil=True)
def write_similarity(distances: Any, first: int, start: int, stop: int, similarity: Any) -> None:
    """Write a block of cosine distances, as similarities, and its transpose.

    Args:
        distances: float64, (b, n - first): of rows `first` to `first + b` to rows `first` to n.
        first: the block's first row.
        start: first column of `distances` to write.
        stop: column after the last to write.
        similarity: float32, (n, n).
    """
    for stripe in range(start, stop, _STRIPE):
        for i in range(len(distances)):
            for j in range(max(stripe, i), min(stripe + _STRIPE, stop)):
                value = _rounded(1.0 - distances[i, j])
                similarity[first + i, first + j] = value
                similarity[first + j, first + i] = value


@njit(cache=True, nogil=True)
def near_similarity(units: Any, nearest: Any, start: int, stop: int, similarity: Any) -> None:
    """Write the similarity of rows `start` to `stop` to each of their nearest.

    Args:
        units: float32, (n, d), rows of length 1.
        nearest: int64, (n, neighbors).
        start: first row.
        stop: row after the last.
        similarity: float32, (n, neighbors).
    """
    for i in range(start, stop):
        for position in range(nearest.shape[1]):
            similarity[i, position] = _rounded(1.0 - cosine_distance(units[i], units[nearest[i, position]]))


@njit(cache=True, nogil=True, fastmath=_ORDER)
def dense_gains(similarity: Any, covered: Any, candidates: Any, out: Any) -> None:
    """Write the gain of each candidate to `out`.

    Args:
        similarity: float32, (n, n), row i for candidate i.
        covered: float32, (n,), highest similarity to a pick, 0 before the first.
        candidates: int64, (m,).
        out: float64, (m,).
    """
    for position in range(len(candidates)):
        row = similarity[candidates[position]]
        total = 0.0
        for j in range(len(covered)):
            total += np.float64(max(row[j] - covered[j], np.float32(0)))
        out[position] = total


@njit(cache=True, nogil=True)
def sparse_gains(starts: Any, samples: Any, similarity: Any, covered: Any, candidates: Any, out: Any) -> None:
    """Write the gain of each candidate to `out`.

    Args:
        starts: int64, (n + 1,), where each candidate's entries start.
        samples: int32, (entries,), the samples that have the candidate among their nearest.
        similarity: float32, (entries,).
        covered: float32, (n,), highest similarity to a pick, 0 before the first.
        candidates: int64, (m,).
        out: float64, (m,).
    """
    for position in range(len(candidates)):
        total = 0.0
        for entry in range(starts[candidates[position]], starts[candidates[position] + 1]):
            total += np.float64(max(similarity[entry] - covered[samples[entry]], np.float32(0)))
        out[position] = total
