"""Checks and forms of embedding matrices that every measure and selection shares.

Belongs here: validation and unit rows. Does not: any measure.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TILE = 4096


def as_rows(embeddings: ArrayLike, name: str = "embeddings") -> NDArray[np.float32]:
    """Return embeddings as C-contiguous float32 rows, (n, d), without a copy where they are that already.

    Raises:
        ValueError: where the shape is not (n, d) with n, d >= 1, or a value is NaN or infinite; names the first row.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: shape {rows.shape}; expected (samples, dimensions) with at least one of each")
    # A row's sum is finite only if its values are; summing in float64 cannot overflow on float32 values.
    bad = np.flatnonzero(~np.isfinite(rows.sum(1, dtype=np.float64)))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} has a NaN or infinite value ({len(bad)} such rows); embed it again")
    return rows


def unit_rows(rows: NDArray[np.float32], name: str = "embeddings") -> NDArray[np.float32]:
    """Return rows scaled to length 1, float32, (n, d).

    Raises:
        ValueError: where a row is zero, for which no cosine is defined; names the first.
    """
    units = np.empty_like(rows)
    for start in range(0, len(rows), _TILE):
        # In float64, so that neither large nor small rows leave the range of their squares.
        tile = rows[start : start + _TILE].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", tile, tile))
        zero = np.flatnonzero(norms == 0)
        if len(zero):
            raise ValueError(f"{name}: row {start + zero[0]} is all zeros; it has no direction, so leave it out")
        units[start : start + _TILE] = tile / norms[:, None]
    return units
