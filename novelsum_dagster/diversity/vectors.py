"""Checks and forms of embedding matrices that every measure and selection shares.

Belongs here: validation, unit rows, equal rows. Does not: any measure.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TILE = 4096
_VALUES = 2**19
"""Values in float64 that a thread holds at a time: 4 MiB."""
_LARGEST_NORM = 1e18
"""FAISS forms up to (|x| + |y|)^2 in float32, which ends at 3.4e38; past it, k-means ends the process."""


def as_rows(
    embeddings: ArrayLike, name: str = "embeddings", places: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return embeddings as C-contiguous float32 rows, (n, d), without a copy where they are that already.

    Args:
        embeddings: (n, d).
        name: what they are called in a refusal.
        places: (n,), by which it names rows; None takes 0 to n - 1.

    Raises:
        ValueError: where the shape is not (n, d) with n, d >= 1, or a value is NaN or infinite; names the first row.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: shape {rows.shape}; expected (samples, dimensions) with at least one of each")
    # A row's sum is finite only if its values are; summing in float64 cannot overflow on float32 values.
    bad = np.flatnonzero(~np.isfinite(rows.sum(1, dtype=np.float64)))
    if len(bad):
        row = bad[0] if places is None else places[bad[0]]
        raise ValueError(f"{name}: row {row} has a NaN or infinite value ({len(bad)} such rows); embed it again")
    return rows


def require_directions(
    rows: NDArray[np.float32], name: str = "embeddings", places: NDArray[np.int64] | None = None
) -> None:
    """Refuse rows, (n, d), of which one is zero, for which no cosine is defined; arguments as in `as_rows`.

    Raises:
        ValueError: then; names the first.
    """
    zero = np.flatnonzero(~rows.any(axis=1))
    if len(zero):
        row = zero[0] if places is None else places[zero[0]]
        raise ValueError(f"{name}: row {row} is all zeros; it has no direction, so leave it out")


def unit_rows(rows: NDArray[np.float32], name: str = "embeddings") -> NDArray[np.float32]:
    """Return rows scaled to length 1, float32, (n, d).

    Raises:
        ValueError: as `require_directions` does.
    """
    units = np.empty_like(rows)
    size = max(1, _VALUES // rows.shape[1])

    def scale(start: int) -> None:
        # In float64, so that neither large nor small rows leave the range of their squares.
        tile = rows[start : start + size].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", tile, tile))
        if not norms.all():
            require_directions(rows, name)
        tile /= norms[:, None]
        units[start : start + size] = tile

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        list(workers.map(scale, range(0, len(rows), size)))
    return units


def searchable_rows(embeddings: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return embeddings as `as_rows` does, where FAISS can compare them.

    Raises:
        ValueError: as `as_rows` does, or where a row is too long to square in float32; names the first.
    """
    rows = as_rows(embeddings, name)
    with np.errstate(over="ignore"):
        squared = np.einsum("ij,ij->i", rows, rows)
    long = np.flatnonzero(~(squared <= _LARGEST_NORM**2))
    if len(long):
        norm = np.linalg.norm(rows[long[0]].astype(np.float64))
        raise ValueError(
            f"{name}: row {long[0]} has length {norm:.3g} ({len(long)} rows over {_LARGEST_NORM:g}), whose square"
            " float32 cannot hold; scale or normalise all embeddings alike"
        )
    return rows


def distinct_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the distinct rows, (r, d), in order of first appearance, and the distinct row of each row, int64, (n,).

    Rows are the same where every coordinate is equal; -0.0 equals 0.0. Takes finite rows; returns `rows` itself, not
    a copy, where all differ. A sort of whole rows (`numpy.unique`) gives the same set, many times slower.
    """
    first = find_rows(rows, rows)
    distinct = np.flatnonzero(first == np.arange(len(rows)))
    points = rows if len(distinct) == len(rows) else rows[distinct]
    return points, np.searchsorted(distinct, first).astype(np.int64)


def find_rows(rows: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the first of the points, (r, d), that equals each row, (n, d): int64, (n,), -1 where none does.

    Hashes find candidates; their coordinates are then compared, so the answer is exact.
    """
    hashes = _row_hashes(points)
    order = np.argsort(hashes, kind="stable")
    hashes, wanted = hashes[order], _row_hashes(rows)
    at, end = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, "right")
    found = np.full(len(rows), -1, dtype=np.int64)
    # More than one round only where unequal rows share a hash.
    while len(still := np.flatnonzero((at < end) & (found < 0))):
        candidates = order[at[still]]
        equal = _pairs_equal(rows, still, points, candidates)
        found[still[equal]] = candidates[equal]
        at[still] += 1
    return found


def _row_hashes(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a hash of each row: its bits as integers, times fixed random numbers, summed modulo 2^64."""
    multipliers = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], dtype=np.uint64)
    hashes = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), _TILE):
        # Adding 0.0 turns -0.0, which has other bits, into 0.0.
        tile = rows[start : start + _TILE] + np.float32(0)
        hashes[start : start + _TILE] = tile.view(np.uint32) @ multipliers
    return hashes


def _pairs_equal(
    left: NDArray[np.float32], of_left: NDArray[Any], right: NDArray[np.float32], of_right: NDArray[Any]
) -> NDArray[np.bool_]:
    equal = np.empty(len(of_left), dtype=np.bool_)
    for start in range(0, len(equal), _TILE):
        tile = slice(start, start + _TILE)
        equal[tile] = np.all(left[of_left[tile]] == right[of_right[tile]], axis=1)
    return equal
