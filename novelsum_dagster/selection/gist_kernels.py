"""The inner loop of GIST, compiled by numba.

Belongs here: whether a candidate keeps its distance to picks. Does not: the order in which candidates are examined
(`gist`).
"""

from typing import Any

from numba import njit

from novelsum_dagster.selection.kcenter_kernels import dot
from novelsum_dagster.selection.search.cpu_kernels import cosine_distance


@njit(cache=True, nogil=True)
def is_apart(rows: Any, i: int, picked_rows: Any, first: int, last: int, threshold: float, slack: float) -> bool:
    """Return whether a row is at least a cosine distance away from picks `first` to `last`.

    A dot product in float32 decides most comparisons; if its rounding error makes the result uncertain, the exact
    distance does.

    Args:
        rows: float32, (n, d), unit rows.
        i: the row.
        picked_rows: float32, (k, d).
        first, last: picks that it is compared with.
        threshold: the least distance.
        slack: by how much `1 - dot` may be off a distance.
    """
    for at in range(first, last):
        rough = 1.0 - dot(rows[i], picked_rows[at])
        if rough + slack < threshold:
            return False
        if rough - slack < threshold and cosine_distance(rows[i], picked_rows[at]) < threshold:
            return False
    return True
