"""Checks and forms of embedding matrices that every measure and selection shares.

Belongs here: validation, unit rows and exact distances between them, equal rows. Does not: any measure.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.processors import usable_processors

_TILE = 4096
_GRID = 2.0**25
"""Coordinates of unit rows are whole multiples of its inverse (`unit_rows`)."""
_VALUES = 2**19
"""Number of float64 values that a thread holds at a time: 4 MiB."""
_LARGEST_NORM = 1e18
"""FAISS forms up to (|x| + |y|)^2 in float32, which ends at 3.4e38; past it, k-means ends the process."""
HASH_BYTES = 16
"""Length of a row's hash."""


def as_rows(
    embeddings: ArrayLike, name: str = "embeddings", places: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return embeddings as C-contiguous float32 rows, (n, d), without a copy if they are that already.

    Args:
        embeddings: (n, d).
        name: how error messages name them.
        places: (n,), by which it names rows; None takes 0 to n - 1.

    Raises:
        ValueError: if the shape is not (n, d) with n, d >= 1, or a value is NaN or infinite; names the first row.
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
    """Raise an error if a row, (n, d), is zero, as its cosine is undefined; arguments as in `as_rows`.

    Raises:
        ValueError: for such a row; names the first.
    """
    zero = np.flatnonzero(~rows.any(axis=1))
    if len(zero):
        row = zero[0] if places is None else places[zero[0]]
        raise ValueError(f"{name}: row {row} is all zeros; it has no direction, so leave it out")


def unit_rows(rows: NDArray[np.float32], name: str = "embeddings") -> NDArray[np.float32]:
    """Return rows scaled to length 1, each coordinate rounded to a multiple of 2^-25: float32, (n, d).

    Differences of such coordinates are multiples of 2^-25 and at most 2; products and squares are multiples of 2^-50.
    Sums of products over two unit rows, and of squared differences, are at most 4 in size, so float64, with its 53
    bits, holds every partial sum exactly. A dot product or squared distance in float64 is therefore the same number
    in any order of summation: on every processor, with any number of threads, in tiles of any size. Rounding moves a
    coordinate by at most 2^-26, one over 1/2 by three times as much, as float32 has 24 bits. That changes a cosine by
    some 1e-8, less than a product in float32 does, and a squared length by less than 2^-24 (sqrt(d) + 4).

    Raises:
        ValueError: as `require_directions` does.
    """
    units = np.empty_like(rows)
    size = max(1, _VALUES // rows.shape[1])

    def scale(start: int) -> None:
        # In float64, so that neither large nor small rows leave the range of their squares. Not by `einsum` or BLAS,
        # whose order of summation depends on the processor.
        tile = rows[start : start + size].astype(np.float64)
        norms = np.sqrt(np.square(tile).sum(axis=1))
        if not norms.all():
            require_directions(rows, name)
        tile /= norms[:, None]
        tile *= _GRID
        np.rint(tile, out=tile)
        tile /= _GRID
        units[start : start + size] = tile

    with ThreadPoolExecutor(usable_processors()) as workers:
        list(workers.map(scale, range(0, len(rows), size)))
    return units


def half_squares(units: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the squared length of unit rows, (n, d): float64, (n,), exact.

    They are near 1/2, but not equal to it, because coordinates are rounded (`unit_rows`).
    """
    halves = np.empty(len(units))
    for start in range(0, len(units), _TILE):
        tile = units[start : start + _TILE].astype(np.float64)
        halves[start : start + _TILE] = np.square(tile, out=tile).sum(axis=1) / 2
    return halves


def cosine_distances(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine distances `1 - cos` of unit rows, (n, d), to others, (m, d): float64, (n, m), exact.

    They are half the squared Euclidean distances, `|x - y|^2 / 2`: 0 for equal rows, never negative, and the same
    numbers on every processor (see `unit_rows`).
    """
    wide, halves = rows.astype(np.float64), half_squares(rows)[:, None]
    distances = np.empty((len(rows), len(others)))
    for start in range(0, len(others), _TILE):
        part = others[start : start + _TILE].astype(np.float64)
        tile = distances[:, start : start + _TILE]
        np.subtract(halves, wide @ part.T, out=tile)
        tile += half_squares(part)
    return distances


def searchable_rows(embeddings: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return embeddings as `as_rows` does, checked for comparison by FAISS.

    Raises:
        ValueError: as `as_rows` does, or if a row is too long to square in float32; names the first.
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


def vector_hashes(rows: NDArray[np.float32]) -> NDArray[np.void]:
    """Return a hash of the coordinates of each row, (n, d): 16 bytes each, (n,).

    These are 128 bits of BLAKE2b, so rows with one hash are taken to be equal. -0.0 equals 0.0.
    """
    # Adding 0.0 turns -0.0 into 0.0.
    digests = (hashlib.blake2b((row + np.float32(0)).data, digest_size=HASH_BYTES).digest() for row in rows)
    return np.frombuffer(b"".join(digests), dtype=f"V{HASH_BYTES}")


def distinct_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the distinct rows, (r, d), in order of first appearance, and the distinct row of each row, int64, (n,).

    Rows are the same if every coordinate is equal; -0.0 equals 0.0. Takes finite rows; returns `rows` itself, not
    a copy, if all differ. A sort of whole rows (`numpy.unique`) gives the same set, many times slower.
    """
    _, first, of_row = np.unique(vector_hashes(rows), return_index=True, return_inverse=True)
    first = first[of_row]
    distinct = np.flatnonzero(first == np.arange(len(rows)))
    points = rows if len(distinct) == len(rows) else rows[distinct]
    return points, np.searchsorted(distinct, first).astype(np.int64)


def find_rows(rows: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the first of the points, (r, d), that equals each row, (n, d): int64, (n,), -1 if none does."""
    hashes = np.concatenate([vector_hashes(points), vector_hashes(rows)])
    _, first, of_row = np.unique(hashes, return_index=True, return_inverse=True)
    found = first[of_row[len(points) :]]
    return np.where(found < len(points), found, -1)
