"""The user's own vectors instead of a model (`embedding.vectors`).

Belongs here: matching rows of a file with samples, validating a sample's vector. Does not: formats (`vector_files`),
the store.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import Model
from novelsum_dagster.embedding.store import VectorStore
from novelsum_dagster.embedding.vector_files import VectorFile, read_vectors
from novelsum_dagster.pool.fields import COLUMNS, record_values
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Embedding

BACKEND = "own"
"""Value of `Model.backend` for own vectors."""
_DTYPE = "float32"
_CHECKED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class PoolAt:
    """A pool and its folders.

    Attributes:
        snapshot: the pool.
        root: the storage folder of the pool.
        base: the folder to which relative paths in the settings refer.
    """

    snapshot: PoolSnapshot
    root: Path
    base: Path

    def column(self, name: str) -> list[Any]:
        """Return a column of the samples, in pool order."""
        return list(self.snapshot.samples(self.root, [name])[name].to_pylist())


@dataclass(frozen=True, slots=True)
class OwnVectors:
    """The vectors of a pool, in the user's file.

    Attributes:
        pool: of the samples.
        file: of the vectors.
        ids: samples in pool order, (n,).
        rows: row of each sample's vector in the file, (n,).
        model: identity under which they are stored. It differs whenever the file's content, the columns, the name given
            as `embedding.model`, or a sample's row does.
    """

    pool: PoolAt
    file: VectorFile
    ids: list[str]
    rows: NDArray[np.int64]
    model: Model

    def add_to(self, store: VectorStore, shard_size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Write the vectors missing from the store, float32; yield their number and the names of their files.

        Raises:
            InputError: before anything is written, if a vector is not finite or is zero.
        """
        known = store.ids()
        missing = np.array([place for place, id_ in enumerate(self.ids) if id_ not in known], dtype=np.int64)
        for start in range(0, len(missing), _CHECKED_AT_ONCE):
            self._require_sound(missing[start : start + _CHECKED_AT_ONCE])
        for start in range(0, len(missing), shard_size):
            places = missing[start : start + shard_size]
            names = store.add([self.ids[place] for place in places], self.file.rows(self.rows[places]), _DTYPE)
            yield len(places), names

    def _require_sound(self, places: NDArray[np.int64]) -> None:
        vectors = self.file.rows(self.rows[places])
        is_finite = np.isfinite(vectors).all(1)
        for is_bad, what in ((~is_finite, "has NaN or infinite numbers"), (~vectors.any(1), "is all zeros")):
            if is_bad.any():
                place = int(places[np.flatnonzero(is_bad)[0]])
                record = self.pool.snapshot.record_at(self.pool.root, place)
                raise InputError(
                    f"embedding.vectors: {self.file.path}: row {self.rows[place]:,} (from 0), the vector of"
                    f" {record}, {what} as float32; embed that text again, or remove the record from"
                    " the sources and its row from the vectors"
                )


def own_vectors(pool: PoolAt, settings: Embedding) -> OwnVectors:
    """Return the vectors of a pool in the file that `embedding.vectors` names.

    Without `vectors_id`, rows correspond to all records read, over all sources in order, including duplicates and
    rejects. With it, a record's vector is in the row where that column of the file equals the record's field of the
    same name. A name that is not a field of any record may be a column of the samples, e.g. "id", the sample's id.

    Raises:
        InputError: for an unreadable file, if the numbers of rows and records differ, or if ids are missing or
            duplicate.
    """
    assert settings.vectors is not None
    file = read_vectors(pool.base / Path(settings.vectors).expanduser(), settings.vectors_column, settings.vectors_id)
    rows = _rows_by_place(pool, file) if file.ids is None else _rows_by_id(pool, file.path, file.ids, settings)
    ids = pool.column("id")
    matched = hashlib.sha256(json.dumps([settings.vectors_column, settings.vectors_id]).encode())
    matched.update("".join(f"\n{row} {id_}" for row, id_ in zip(rows, ids, strict=True)).encode())
    model = Model(settings.model, file.content_hash(), 0, _DTYPE, backend=BACKEND, files=matched.hexdigest())
    return OwnVectors(pool, file, ids, np.array(rows, dtype=np.int64), model)


def _rows_by_place(pool: PoolAt, file: VectorFile) -> list[int]:
    read = pool.snapshot.read
    if len(file) != read:
        raise InputError(
            f"embedding.vectors: {file.path} has {len(file):,} rows, but {read:,} records were read. Without ids there"
            " must be one row per record of all sources, in order, including duplicates and rejects. Add the missing"
            " rows, or match by ids with embedding.vectors_id"
        )
    before: dict[str, int] = {}
    count = 0
    for source in pool.snapshot.files:
        before[source.file] = count
        count += source.read
    places = zip(pool.column("file"), pool.column("position"), strict=True)
    return [before[name] + position - 1 for name, position in places]


def _rows_by_id(pool: PoolAt, path: Path, ids: list[str | None], settings: Embedding) -> list[int]:
    name = settings.vectors_id or ""
    place = {id_: row for row, id_ in enumerate(ids) if id_ is not None}
    values = [None if value is None else str(value) for value in _values(pool, name)]
    for known, where in ((ids, str(path)), (values, "the records")):
        twice = next((id_ for id_, count in Counter(known).items() if id_ is not None and count > 1), None)
        if twice is not None:
            raise InputError(f"embedding.vectors_id: {where}: {name} {twice!r} occurs twice; ids must be unique")
    missing = [row for row, value in enumerate(values) if value is None or value not in place]
    if missing:
        row = missing[0]
        what = f"has no {name}" if values[row] is None else f"has {name} {values[row]!r}, which {path} does not have"
        raise InputError(
            f"embedding.vectors_id: {pool.snapshot.record_at(pool.root, row)} {what}; {len(missing):,} of"
            f" {len(values):,} samples have no vector. Add their vectors, or remove these records from the sources"
        )
    return [place[value] for value in values if value is not None]


def _values(pool: PoolAt, name: str) -> list[Any]:
    values = record_values(pool.snapshot, pool.root, name)
    if any(value is not None for value in values):
        return values
    if name in COLUMNS:
        return pool.column(name)
    raise InputError(f"embedding.vectors_id: {name} is not a field of any record; check its name")
