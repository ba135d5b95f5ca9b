"""Exact search of near-duplicates by cosine: each is assigned the kept sample that it is most similar to.

The samples are walked through in an order. One whose cosine to a sample that was kept before is at least the least
similarity is a near-duplicate of the most similar such one; any other is kept.

1. For each distinct direction, the nearest of all others and the nearest of those before it in the walk are found: one
   pass over half of all pairs, in tiles. It depends neither on the least similarity nor on what is kept, so that its
   tiles can be done anywhere, and those of an earlier pool need not be done again.
2. A sample that resembles none before it is kept; one whose nearest before is kept is that one's near-duplicate. Only
   a sample whose nearest before is a near-duplicate itself is compared with what was kept.

Distances are the exact ones of `unit_rows`, so what is found is the same on every processor and device. Equal distances
go to the earlier in the walk.

Belongs here: which sample is near to which. Does not: files (`distinct`), the order of the walk (`pool.keeping`), text
(`pool.duplicates`).
"""

from dataclasses import dataclass
from functools import cached_property
from operator import methodcaller
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.memory import require_memory
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.vectors import (
    HASH_BYTES,
    as_rows,
    cosine_distances,
    distinct_rows,
    unit_rows,
    vector_hashes,
)

if TYPE_CHECKING:
    from novelsum_dagster.diversity.similar_torch import UnitsOnDevice

ROWS = 2048
"""Rows of a tile."""
COLUMNS = 4096
"""Columns of a tile, whose distances are 64 MiB of float64."""
_MOST_NEW = 0.5
"""Largest fraction of the vectors that is compared with all; above it, every pair is compared again."""
_COPIES = 3
"""Copies of the vectors held besides those passed in: unit rows, rows in the order of the walk, distinct rows."""
_BYTES_PER_ROW = 160
"""Bytes of the record of a sample: hash, neighbours, distances, places."""
_SCHEMA = pa.schema(
    [
        ("vector", pa.binary(HASH_BYTES)),
        ("nearest", pa.int64()),
        ("nearest_distance", pa.float64()),
        ("before", pa.int64()),
        ("before_distance", pa.float64()),
    ]
)


class Nearest(NamedTuple):
    """One neighbour per row: its distance, float64, (n,), infinite if there is none, and its place, int64, or -1."""

    distance: NDArray[np.float64]
    at: NDArray[np.int64]

    @staticmethod
    def unknown(size: int) -> "Nearest":
        """Return the state in which no neighbour of `size` rows is known."""
        return Nearest(np.full(size, np.inf), np.full(size, -1))

    def take(self, places: NDArray[np.int64], found: "Nearest") -> None:
        """Update each of the places, (m,), with the neighbour found if it is nearer, or as near and earlier."""
        distance, at = self.distance[places], self.at[places]
        better = (found.distance < distance) | ((found.distance == distance) & (found.at < at))
        self.distance[places[better]] = found.distance[better]
        self.at[places[better]] = found.at[better]


@dataclass(frozen=True)
class Neighbours:
    """The r distinct directions of a pool in the order of the walk, and the nearest neighbours of each.

    Attributes:
        hashes: of their unit rows, 16 bytes each, (r,).
        nearest: of all others.
        before: of those before it.
    """

    hashes: NDArray[np.void]
    nearest: Nearest
    before: Nearest

    def table(self) -> pa.Table:
        """Return it as an Arrow table, one row per direction."""
        size = len(self.hashes)
        hashes = pa.Array.from_buffers(pa.binary(HASH_BYTES), size, [None, pa.py_buffer(self.hashes.tobytes())])
        columns = [self.nearest.at, self.nearest.distance, self.before.at, self.before.distance]
        return pa.table([hashes, *(pa.array(column) for column in columns)], schema=_SCHEMA)

    @staticmethod
    def of_table(table: pa.Table) -> "Neighbours | None":
        """Return the inverse of `table`; None if the table has another schema or is damaged."""
        if table.schema != _SCHEMA or not len(table) or any(column.null_count for column in table.columns):
            return None
        hashes = np.frombuffer(b"".join(table["vector"].to_pylist()), dtype=f"V{HASH_BYTES}")
        nearest, before = (
            Nearest(table[f"{name}_distance"].to_numpy().copy(), table[name].to_numpy().copy())
            for name in ("nearest", "before")
        )
        places = np.concatenate([nearest.at, before.at])
        is_sound = len(np.unique(hashes)) == len(hashes) and ((places >= -1) & (places < len(hashes))).all()
        return Neighbours(hashes, nearest, before) if is_sound else None


@dataclass(frozen=True)
class Similar:
    """Near-duplicates among n samples.

    Attributes:
        rows: of the near-duplicates, int64, (m,), ascending.
        partners: row of the kept sample that each resembles most, int64, (m,).
        similarity: their cosine, float64, (m,).
        nearest: cosine of each sample to its nearest neighbour, kept or not, float64, (n,); NaN for a single sample.
        neighbours: of the distinct directions, for a pool that grows.
        compared: a phrase: how many directions were compared with how many.
    """

    rows: NDArray[np.int64]
    partners: NDArray[np.int64]
    similarity: NDArray[np.float64]
    nearest: NDArray[np.float64]
    neighbours: Neighbours
    compared: str


def similar_samples(
    vectors: ArrayLike,
    order: NDArray[np.int64],
    similarity: float,
    earlier: Neighbours | None = None,
    *,
    device: str = "cpu",
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> Similar:
    """Return the samples whose cosine to a kept one is at least `similarity`.

    Args:
        vectors: (n, d), as the model gives them.
        order: int64, (n,), rows in the order of the walk, each once.
        similarity: over 0, at most 1.
        earlier: of another pool: samples may have come and gone since. What is found is the same without. Where the
            others have another order than they had, all pairs are compared.
        device: "cpu" (default), a torch device, or "auto" for CUDA if there is one, on which tiles are compared.
        spread: compares tiles; default: one after the other.
        progress: called with directions compared and their number.

    Raises:
        ValueError: for bad rows, a row that is zero, or a similarity out of range.
        NotEnoughMemory: if it would not fit, here or on the device.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity is {similarity}; it must be over 0 and at most 1")
    rows = as_rows(vectors)
    size, dimensions = rows.shape
    require_memory(
        memory_needed(size, dimensions),
        f"near-duplicates among {size:,} vectors of {dimensions} dimensions",
        "take a smaller pool, or pool.near_duplicates.by: minhash",
    )
    units, direction = distinct_rows(unit_rows(rows)[order])
    first, times = np.unique(direction, return_index=True, return_counts=True)[1:]
    neighbours, compared = _neighbours(units, earlier, device, spread, progress)
    # If a sample's direction occurred before, its nearest earlier sample is the first of that direction.
    before = Nearest(neighbours.before.distance[direction], first[neighbours.before.at][direction])
    repeats = np.flatnonzero(first[direction] < np.arange(size))
    before.distance[repeats], before.at[repeats] = 0, first[direction[repeats]]
    partner = _walk(units, direction, before, similarity)
    near = np.flatnonzero(partner.at >= 0)
    near = near[np.argsort(order[near])]
    nearest = np.empty(size)
    nearest[order] = np.where(times[direction] > 1, 1.0, 1 - neighbours.nearest.distance[direction])
    nearest[np.isneginf(nearest)] = np.nan
    return Similar(order[near], order[partner.at[near]], 1 - partner.distance[near], nearest, neighbours, compared)


def memory_needed(size: int, dimensions: int) -> int:
    """Return the most bytes that `similar_samples` takes, in addition to the vectors, (size, dimensions)."""
    tile = 8 * (3 * ROWS * COLUMNS + (ROWS + COLUMNS) * dimensions)
    return size * (4 * _COPIES * dimensions + _BYTES_PER_ROW) + tile


class Between(NamedTuple):
    """The result of a comparison of rows and columns: for each, the nearest and the nearest before it."""

    rows: tuple[Nearest, Nearest]
    columns: tuple[Nearest, Nearest]


class Directions:
    """Distinct unit rows in the order of the walk, (r, d), float32, and comparisons between them.

    Args:
        units: the rows.
        device: as in `similar_samples`; it is opened when the first comparison begins.
    """

    def __init__(self, units: NDArray[np.float32], device: str = "cpu") -> None:
        self._units = units
        self._device = device

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the device itself.
        return {name: value for name, value in vars(self).items() if name != "_there"}

    @cached_property
    def _there(self) -> "UnitsOnDevice | None":
        device = cuda_or_cpu(self._device)
        if device == "cpu":
            return None
        from novelsum_dagster.diversity.similar_torch import UnitsOnDevice

        return UnitsOnDevice(self._units, device)

    def compare(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Between:
        """Compare rows with columns, both ascending; a row is not compared with itself.

        Args:
            rows: (b,).
            columns: (c,).
        """
        of_rows = Nearest.unknown(len(rows)), Nearest.unknown(len(rows))
        of_columns = Nearest.unknown(len(columns)), Nearest.unknown(len(columns))
        every = np.arange(len(rows))
        minima = self._minima if self._there is None else self._there.minima
        for start in range(0, len(columns), COLUMNS):
            part = columns[start : start + COLUMNS]
            places = np.arange(start, start + len(part))
            found = minima(rows, part)
            for known, new in zip(of_rows, found.rows, strict=True):
                known.take(every, new)
            for known, new in zip(of_columns, found.columns, strict=True):
                known.take(places, new)
        return Between(of_rows, of_columns)

    def _minima(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Between:
        distances = cosine_distances(self._units[rows], self._units[columns])
        _, of_rows, of_columns = np.intersect1d(rows, columns, assume_unique=True, return_indices=True)
        distances[of_rows, of_columns] = np.inf
        of_row, of_column = _least_of_rows(distances, columns), _least_of_columns(distances, rows)
        if columns[-1] <= rows[0]:
            return Between((of_row, of_row), (of_column, Nearest.unknown(len(columns))))
        if rows[-1] <= columns[0]:
            return Between((of_row, Nearest.unknown(len(rows))), (of_column, of_column))
        is_before = columns < rows[:, None]
        before = _least_of_rows(np.where(is_before, distances, np.inf), columns)
        after = _least_of_columns(np.where(is_before, np.inf, distances), rows)
        return Between((of_row, before), (of_column, after))


def _least_of_rows(distances: NDArray[np.float64], columns: NDArray[np.int64]) -> Nearest:
    """Return the first column, (c,), with the least distance, (b, c), to each row."""
    at = distances.argmin(axis=1)
    return _found(distances[np.arange(len(distances)), at], columns[at])


def _least_of_columns(distances: NDArray[np.float64], rows: NDArray[np.int64]) -> Nearest:
    """Return the first row, (b,), with the least distance, (b, c), to each column."""
    least = distances.min(axis=0)
    # `argmin` goes through columns one by one, many times slower.
    row, column = np.nonzero(distances == least)
    at = np.empty(len(least), dtype=np.int64)
    at[column[::-1]] = row[::-1]
    return _found(least, rows[at])


def _found(distance: NDArray[np.float64], at: NDArray[np.int64]) -> Nearest:
    return Nearest(distance, np.where(np.isinf(distance), -1, at))


def _neighbours(
    units: NDArray[np.float32], earlier: Neighbours | None, device: str, spread: Spread, progress: Progress
) -> tuple[Neighbours, str]:
    """Return the nearest neighbours of each direction, (r, d), and a phrase that says what was compared."""
    size = len(units)
    known, new, reason = _known(vector_hashes(units), earlier)
    compared = f"all {size:,} with each other ({reason})" if reason else f"{len(new):,} new with all {size:,}"
    rest = np.setdiff1d(np.arange(size), new, assume_unique=True)
    starts = range(0, len(new), ROWS)

    def columns(start: int) -> NDArray[np.int64]:
        # Each pair of new directions is compared once: with those of the same tile and of earlier tiles.
        return np.sort(np.concatenate([rest, new[: start + ROWS]]))

    asks = (methodcaller("compare", new[start : start + ROWS], columns(start)) for start in starts)
    done = size - len(new)
    progress(done, size)
    for start, found in zip(starts, spread(Directions(units, device), asks), strict=True):
        tile = new[start : start + ROWS]
        for places, (nearest, before) in ((tile, found.rows), (columns(start), found.columns)):
            known.nearest.take(places, nearest)
            known.before.take(places, before)
        done += len(tile)
        progress(done, size)
    return known, compared


def _known(hashes: NDArray[np.void], earlier: Neighbours | None) -> tuple[Neighbours, NDArray[np.int64], str]:
    """Return the known neighbours of directions, which directions to compare with all, and the reason if all are."""
    size = len(hashes)
    known = Neighbours(hashes, Nearest.unknown(size), Nearest.unknown(size))
    everything = np.arange(size)
    if earlier is None:
        return known, everything, "nothing is known"
    _, now, then = np.intersect1d(hashes, earlier.hashes, assume_unique=True, return_indices=True)
    place = np.full(len(earlier.hashes), -1)
    place[then] = now
    if (np.diff(place[place >= 0]) < 0).any():
        return known, everything, "their order differs"
    # If the nearest neighbour was removed, the new nearest one is unknown.
    is_there = np.ones(len(then), dtype=np.bool_)
    for old in (earlier.nearest, earlier.before):
        is_there &= (old.at[then] < 0) | (place[old.at[then]] >= 0)
    now, then = now[is_there], then[is_there]
    new = np.setdiff1d(everything, now, assume_unique=True)
    if len(new) > _MOST_NEW * size:
        return known, everything, f"{len(new):,} are new, or lost what was nearest"
    for mine, old in ((known.nearest, earlier.nearest), (known.before, earlier.before)):
        mine.distance[now] = old.distance[then]
        mine.at[now] = np.where(old.at[then] < 0, -1, place[old.at[then]])
    return known, new, ""


def _walk(units: NDArray[np.float32], direction: NDArray[np.int64], before: Nearest, similarity: float) -> Nearest:
    """Return the kept sample that each is a near-duplicate of, none if it is kept itself.

    Args:
        units: of the directions, (r, d).
        direction: of each sample in the order of the walk, (n,).
        before: the nearest of all samples before each, (n,).
        similarity: the least.
    """
    size = len(direction)
    is_near = 1 - before.distance >= similarity
    kept, partner = ~is_near, Nearest.unknown(size)
    for start in range(0, size, ROWS):
        block = np.arange(start, min(start + ROWS, size))
        near = block[is_near[block]]
        by_kept = kept[before.at[near]]
        settled, doubtful = near[by_kept], near[~by_kept]
        partner.take(settled, Nearest(before.distance[settled], before.at[settled]))
        if not len(doubtful):
            continue
        rows = units[direction[doubtful]]
        outside = _nearest_of(rows, units, direction, np.flatnonzero(kept[:start]))
        inside = cosine_distances(rows, units[direction[block]])
        for row, at in enumerate(doubtful):
            if kept[before.at[at]]:  # It is in this block and has just been kept.
                partner.distance[at], partner.at[at] = before.distance[at], before.at[at]
                continue
            within = np.where(kept[start:at], inside[row, : at - start], np.inf)
            least, place = outside.distance[row], outside.at[row]
            if len(within) and within.min() < least:
                least, place = within.min(), start + within.argmin()
            kept[at] = not 1 - least >= similarity
            if not kept[at]:
                partner.distance[at], partner.at[at] = least, place
    return partner


def _nearest_of(
    rows: NDArray[np.float32], units: NDArray[np.float32], direction: NDArray[np.int64], samples: NDArray[np.int64]
) -> Nearest:
    """Return the nearest of some samples, (m,), to each unit row, (b, d)."""
    found = Nearest.unknown(len(rows))
    every = np.arange(len(rows))
    for start in range(0, len(samples), COLUMNS):
        part = samples[start : start + COLUMNS]
        distances = cosine_distances(rows, units[direction[part]])
        at = distances.argmin(axis=1)
        found.take(every, Nearest(distances[every, at], part[at]))
    return found
