"""Incremental search of the nearest points of a pool, given those of an earlier pool.

The result is bit for bit that of a full search: the exact search depends on the vectors alone, and both searches order
equally near points by a hash of their coordinates, regardless of their order in the pool.

Belongs here: which points are searched again, what is kept of the others, the table that stores them. Does not:
the search (`density`), files (`tables`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import methodcaller

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.density import Density, ExactSearch, Found, require_search_memory
from novelsum_dagster.diversity.vectors import HASH_BYTES, searchable_rows, vector_hashes

_TILE = 4096
_MOST_AGAIN = 0.5
"""Largest fraction of the vectors that is searched again; above it, all are."""
_PROBED = 1000
"""Number of points whose stored distances are verified before use: another release may have rounded differently."""


def _schema(asked: int) -> pa.Schema:
    return pa.schema(
        [
            ("vector", pa.binary(HASH_BYTES)),
            ("nearest", pa.list_(pa.int32(), asked)),
            ("squared_distance", pa.list_(pa.float32(), asked)),
        ]
    )


@dataclass(frozen=True)
class Nearest:
    """The K + 1 nearest points of each distinct vector of a pool, itself among them; all r if there are fewer.

    Attributes:
        hashes: of the coordinates of the distinct vectors, 16 bytes each, (r,), ascending.
        squared: squared distances, float32, (r, asked), ascending.
        points: rows of this table, int64, (r, asked); the lower one first if two are equally near.
    """

    hashes: NDArray[np.void]
    squared: NDArray[np.float32]
    points: NDArray[np.int64]

    def table(self) -> pa.Table:
        """Return it as an Arrow table: vector (hash), nearest (rows of the table), squared_distance."""
        hashes = pa.Array.from_buffers(
            pa.binary(HASH_BYTES), len(self.hashes), [None, pa.py_buffer(self.hashes.tobytes())]
        )
        asked = self.points.shape[1]
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), asked)
            for values in (self.points.astype(np.int32), self.squared)
        ]
        return pa.table([hashes, *lists], schema=_schema(asked))

    @staticmethod
    def of_table(table: pa.Table, neighbors: int) -> "Nearest | None":
        """Return the inverse of `table`; None if the table has another schema or is damaged."""
        size = len(table)
        asked = min(neighbors + 1, size)
        if not size or table.schema != _schema(asked) or any(column.null_count for column in table.columns):
            return None
        hashes = np.frombuffer(b"".join(table["vector"].to_pylist()), dtype=f"V{HASH_BYTES}")
        lists = [table[name].combine_chunks().flatten() for name in ("nearest", "squared_distance")]
        if any(values.null_count for values in lists):
            return None
        points, squared = (values.to_numpy().reshape(size, asked) for values in lists)
        found = Nearest(hashes, squared, points.astype(np.int64))
        return found if found._is_sound() else None

    def _is_sound(self) -> bool:
        return bool(
            np.array_equal(np.unique(self.hashes), self.hashes)
            and ((self.points >= 0) & (self.points < len(self.hashes))).all()
            and np.isfinite(self.squared).all()
            and (np.diff(self.squared, axis=1, prepend=np.float32(0)) >= 0).all()
        )


@dataclass(frozen=True)
class PoolNearest:
    """The nearest points in a pool of n samples.

    Attributes:
        nearest: of its distinct vectors.
        vector: the distinct vector of each sample, int64, (n,).
        searched: a phrase that says how many distinct vectors were searched among which.
    """

    nearest: Nearest
    vector: NDArray[np.int64]
    searched: str

    def density(self, neighbors: int) -> Density:
        """Return the density that `density` finds for the pool as its own reference, bit for bit.

        Both neighbor policies drop one point at distance 0: every sample is in the reference.
        """
        squared = self.nearest.squared
        used = squared.shape[1] - 1
        # The first, which is dropped, adds 0.
        mean = squared.astype(np.float64).sum(axis=1) / max(1, used)
        return Density(mean[self.vector], neighbors, used, len(squared), ExactSearch.name, ExactSearch.recall)


def nearest_in_pool(
    vectors: NDArray[np.float32],
    neighbors: int,
    earlier: Nearest | None = None,
    *,
    reason: str = "nothing is known",
    device: str = "cpu",
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> PoolNearest:
    """Find the K + 1 nearest distinct vectors of every vector of a pool, exactly.

    Vectors that an earlier pool had, with all the neighbours that they had there, are compared with the new ones only.
    All are searched again if more than half would have to be compared with all of them.

    Args:
        vectors: float32, (n, d).
        neighbors: K.
        earlier: of another pool, for the same K: vectors may have come, gone and moved since.
        reason: why there is no earlier table.
        device, spread: as in `density`.
        progress: called with distinct vectors searched and their number.

    Raises:
        ValueError: for bad rows, or rows too long to square in float32.
        NotEnoughMemory: if the search would not fit, here or on the device.
    """
    rows = searchable_rows(vectors, "target")
    require_search_memory(rows, neighbors, approximate=False, keeps=True)
    hashes, first, vector = np.unique(vector_hashes(rows), return_index=True, return_inverse=True)
    exact = ExactSearch(rows[first], device)
    known = _Known.of(hashes, neighbors, earlier)
    again, new = np.flatnonzero(~known.complete), np.flatnonzero(known.is_new)
    if earlier is None:
        why = reason
    elif len(again) > _MOST_AGAIN * len(hashes):
        why = f"{len(new):,} are new, {len(again) - len(new):,} lost a neighbour"
    elif not known.repeats(exact):
        why = "earlier distances differ from those computed now; another release may have made them"
    else:
        why = ""
    if why:
        again, searched = np.arange(len(hashes)), f"all {len(hashes):,} against all ({why})"
    else:
        rest = len(hashes) - len(again) if len(new) else 0
        lost = f" and {len(again) - len(new):,} that lost a neighbour" if len(again) > len(new) else ""
        searched = f"{len(new):,} new{lost} against all, {rest:,} against the new"
    squared, points = _searched(exact, known, again, new, spread, progress)
    return PoolNearest(Nearest(hashes, squared, points), vector.astype(np.int64), searched)


@dataclass(frozen=True)
class _Known:
    """Neighbours that an earlier pool has for the r distinct vectors of this one.

    Attributes:
        squared, points: as in `Nearest`, infinite and -1 where unknown.
        complete: whether every earlier neighbour of the vector is still in the pool.
        is_new: whether the vector was not in the earlier pool.
    """

    squared: NDArray[np.float32]
    points: NDArray[np.int64]
    complete: NDArray[np.bool_]
    is_new: NDArray[np.bool_]

    @staticmethod
    def of(hashes: NDArray[np.void], neighbors: int, earlier: Nearest | None) -> "_Known":
        size = len(hashes)
        shape = (size, min(neighbors + 1, size))
        known = _Known(
            np.full(shape, np.inf, dtype=np.float32), np.full(shape, -1), np.zeros(size, bool), np.ones(size, bool)
        )
        if earlier is None:
            return known
        _, now, then = np.intersect1d(hashes, earlier.hashes, assume_unique=True, return_indices=True)
        known.is_new[now] = False
        place = np.full(len(earlier.hashes), -1)
        place[then] = now
        points = place[earlier.points[then]]
        kept = (points >= 0).all(axis=1)
        now, then, points = now[kept], then[kept], points[kept]
        # No wider than `shape`, as all of its points are still in the pool; narrower if the earlier pool had too few.
        width = slice(0, min(shape[1], points.shape[1]))
        known.squared[now, width] = earlier.squared[then, width]
        known.points[now, width] = points[:, width]
        known.complete[now] = True
        return known

    def repeats(self, exact: ExactSearch) -> bool:
        """Return whether recomputed distances of some of the vectors equal the stored ones."""
        complete = np.flatnonzero(self.complete)
        chosen = complete[:: max(1, len(complete) // _PROBED)]
        is_known = self.points[chosen] >= 0
        again = exact.distances(exact.points[chosen], np.where(is_known, self.points[chosen], 0))
        return np.array_equal(again[is_known], self.squared[chosen][is_known])


def _searched(
    exact: ExactSearch,
    known: _Known,
    again: NDArray[np.int64],
    new: NDArray[np.int64],
    spread: Spread,
    progress: Progress,
) -> Found:
    """Return the nearest points of each: points of `again` among all, others among their known ones and `new`."""
    size, asked = known.points.shape
    squared, points = known.squared, known.points
    rest = np.setdiff1d(np.arange(size), again, assume_unique=True)
    searched, compared = _tiles(again), _tiles(rest) if len(new) else []

    def asks() -> Iterator[Callable[[ExactSearch], Found]]:
        for part in searched:
            yield methodcaller("search", exact.points[part], asked)
        for part in compared:
            yield methodcaller("nearer", exact.points[part], squared[part, -1], (squared[part], points[part]), new)

    done = 0
    for part, found in zip([*searched, *compared], spread(exact, asks()), strict=True):
        squared[part], points[part] = found
        done += len(part)
        progress(done, size)
    if not len(new) and len(again) < size:
        progress(size, size)
    return squared, points


def _tiles(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _TILE] for start in range(0, len(rows), _TILE)]
