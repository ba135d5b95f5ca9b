"""Squared distances of pairs of rows, compiled by numba: the same numbers on every processor.

Belongs here: the loop over coordinates. Does not: which pairs are compared (`density`).
"""

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def squared_distances(rows: Any, row: Any, points: Any, point: Any, out: Any) -> None:
    """Write the squared L2 distance of each pair of rows to `out`.

    Eight sums in float64, each over every eighth coordinate, are added in a fixed order and the total is rounded to
    float32 once. Without `fastmath` the compiler may neither reorder nor fuse these operations, so the result does not
    depend on the width of the processor's vector instructions.

    Args:
        rows: float32, (n, d).
        row: int64, (m,), the row of each pair.
        points: float32, (r, d).
        point: int64, (m,), the point of each pair.
        out: float32, (m,).
    """
    d = rows.shape[1]
    whole = d - d % 8
    for pair in range(len(row)):
        a, b = rows[row[pair]], points[point[pair]]
        s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for q in range(0, whole, 8):
            d0 = np.float64(a[q]) - np.float64(b[q])
            d1 = np.float64(a[q + 1]) - np.float64(b[q + 1])
            d2 = np.float64(a[q + 2]) - np.float64(b[q + 2])
            d3 = np.float64(a[q + 3]) - np.float64(b[q + 3])
            d4 = np.float64(a[q + 4]) - np.float64(b[q + 4])
            d5 = np.float64(a[q + 5]) - np.float64(b[q + 5])
            d6 = np.float64(a[q + 6]) - np.float64(b[q + 6])
            d7 = np.float64(a[q + 7]) - np.float64(b[q + 7])
            s0 += d0 * d0
            s1 += d1 * d1
            s2 += d2 * d2
            s3 += d3 * d3
            s4 += d4 * d4
            s5 += d5 * d5
            s6 += d6 * d6
            s7 += d7 * d7
        for q in range(whole, d):
            d0 = np.float64(a[q]) - np.float64(b[q])
            s0 += d0 * d0
        out[pair] = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
