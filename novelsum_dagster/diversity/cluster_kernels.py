"""Sums of clusters, compiled by numba: the same numbers on every processor.

Belongs here: adding up rows by cluster. Does not: which cluster a row belongs to (`clusters`).
"""

from typing import Any

from numba import njit


@njit(cache=True, nogil=True)
def add_rows(rows: Any, cluster: Any, sums: Any) -> None:
    """Add each row to the sum of its cluster, one after the other.

    Args:
        rows: float32, (n, d).
        cluster: int64, (n,).
        sums: float64, (clusters, d).
    """
    for i in range(len(rows)):
        total = sums[cluster[i]]
        for q in range(rows.shape[1]):
            total[q] += rows[i, q]
