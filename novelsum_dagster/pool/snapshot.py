"""A pool on disk: one content-addressed folder of Parquet tables, never changed once written.

Belongs here: the tables' schemas, and reading them. Does not: building a snapshot (`ingest`).

| table | one row per |
|---|---|
| samples | distinct sample: id, first occurrence, turns, sizes, text, original record |
| origins | record read as a sample: the sample's id and the record's place |
| rejects | rejected record: place, reason, detail and original |
| near_duplicates | sample that resembles a kept one: partner and score |

A pool whose vectors were compared, too, is a separate folder: samples, origins and rejects are those of the pool as
read; near_duplicates has both kinds, and how each was found (`diversity.distinct`).
"""

import base64
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from novelsum_dagster.artifacts.artifact import Artifact, Key

_PLACE = [("source", pa.string()), ("file", pa.string()), ("position", pa.int64()), ("line", pa.int64())]
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        *_PLACE,
        ("form", pa.string()),
        ("turns", pa.int32()),
        ("characters", pa.int64()),
        ("tokens", pa.int64()),
        ("text_tokens", pa.int64()),
        ("former_id", pa.string()),
        ("text", pa.string()),
        ("original", pa.binary()),
    ]
)
_LATER = {"text_tokens": "tokens", "former_id": None}
"""Columns missing from snapshots before 0.2, and the column that replaces them."""
ORIGINS = pa.schema([("id", pa.string()), *_PLACE, ("is_first", pa.bool_())])
REJECTS = pa.schema([*_PLACE, ("reason", pa.string()), ("detail", pa.string()), ("original", pa.binary())])
NEAR_DUPLICATES = pa.schema([("id", pa.string()), ("partner_id", pa.string()), ("score", pa.float64())])
ALL_NEAR_DUPLICATES = NEAR_DUPLICATES.append(pa.field("found_by", pa.string()))
"""Of the near-duplicates of a pool in which vectors were compared, too: `found_by` is BY_TEXT or BY_VECTORS."""
BY_TEXT, BY_VECTORS = "minhash", "embedding"


class FoldedColumn(BaseModel):
    """A column that is not training content and differs between records of one sample.

    Attributes:
        column: its name; of a field within turns as `messages[].field`.
        records: duplicates that differ in it from the first record of their sample.
        position: of one of them in the file, from 1.
        id: of the sample that it repeats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    records: int
    position: int
    id: str


class SourceFile(BaseModel):
    """One file or dataset that was read, with its counts: read = kept + duplicates + rejects + unread.

    Attributes:
        form: of its samples; None if they have several.
        unread: records that are known to be in the file but could not be read.
        content_columns: columns that were read as training content.
        other_columns: columns that were not, e.g. ids, scores and dates.
        folded: those of `other_columns` in which exact duplicates differ.
        with_media: samples with references to images, audio or video, which a text model cannot see.
        open_ended: samples whose last turn is not the assistant's.
        licence, citation: from the settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    file: str
    format: str
    form: str | None
    sha256: str | None
    arrow_schema: str | None
    complete: bool
    read: int
    kept: int
    duplicates: int
    rejects: int
    unread: int = 0
    content_columns: tuple[str, ...] = ()
    other_columns: tuple[str, ...] = ()
    folded: tuple[FoldedColumn, ...] = ()
    with_media: int = 0
    open_ended: int = 0
    licence: str | None = None
    citation: str | None = None

    @property
    def schema_of_rows(self) -> pa.Schema | None:
        """The Arrow schema of the kept originals; None if they are JSON text."""
        if self.arrow_schema is None:
            return None
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.arrow_schema)))


class PoolSnapshot(Artifact):
    """A snapshot of the pool.

    `kept` counts the samples in the pool; `duplicates` counts records that repeat a sample, and near-duplicates where
    the settings drop them.
    """

    folder: str
    files: tuple[SourceFile, ...]
    near_duplicates: int
    near_duplicates_dropped: bool
    read_as: Key | None = None
    """Key of the snapshot as read, if its vectors were compared afterwards."""

    @property
    def read(self) -> int:
        """Records read."""
        return sum(file.read for file in self.files)

    @property
    def kept(self) -> int:
        """Samples in the pool."""
        return sum(file.kept for file in self.files)

    @property
    def duplicates(self) -> int:
        """Records left out as duplicates."""
        return sum(file.duplicates for file in self.files)

    @property
    def exact_duplicates(self) -> int:
        """Records left out because their training content repeats a sample's."""
        return self.duplicates - (self.near_duplicates if self.near_duplicates_dropped else 0)

    @property
    def rejects(self) -> int:
        """Rejected records."""
        return sum(file.rejects for file in self.files)

    @property
    def unread(self) -> int:
        """Records that could not be read."""
        return sum(file.unread for file in self.files)

    @property
    def schemas(self) -> dict[str, pa.Schema | None]:
        """The Arrow schema of the kept originals by file; None if they are JSON text."""
        return {file.file: file.schema_of_rows for file in self.files}

    def sources(self) -> dict[str, str]:
        return {file.file: file.sha256 or "" for file in self.files}

    def without(self, files: Iterable[str]) -> Self:
        """Return the snapshot with its counts after near-duplicates are dropped, given the file of each."""
        dropped = Counter(files)
        counted = tuple(
            file.model_copy(
                update={"kept": file.kept - dropped[file.file], "duplicates": file.duplicates + dropped[file.file]}
            )
            for file in self.files
        )
        return self.model_copy(update={"files": counted})

    def table(self, root: Path, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one table whole, or some of its columns; `root` is the storage folder."""
        return pq.read_table(root / self.folder / f"{name}.parquet", columns=columns)

    def ids_by_former(self, root: Path) -> dict[str, list[str]]:
        """Return the pool's ids by the id that releases before 0.2 gave to the same record, if it differs.

        Records that those releases treated as one sample share a former id.
        """
        table = self.samples(root, ["id", "former_id"])
        found: dict[str, list[str]] = {}
        for id_, former in zip(table["id"].to_pylist(), table["former_id"].to_pylist(), strict=True):
            if former is not None:
                found.setdefault(former, []).append(id_)
        return found

    def record_at(self, root: Path, row: int) -> str:
        """Return the place of a sample's record as text; `row` is in pool order."""
        [place] = self.samples(root, ["file", "position"]).slice(row, 1).to_pylist()
        return f"{place['file']}, record {place['position']:,}"

    def samples(self, root: Path, columns: list[str]) -> pa.Table:
        """Read columns of the samples that are in the pool, in pool order."""
        path = root / self.folder / "samples.parquet"
        missing = [name for name in columns if name in _LATER and name not in pq.read_schema(path).names]
        stored = [_LATER[name] if name in missing else name for name in columns]
        table = self.table(root, "samples", list(dict.fromkeys(["id", *(name for name in stored if name)])))
        for name in missing:
            own = _LATER[name]
            table = table.append_column(name, table[own] if own else pa.nulls(len(table), SAMPLES.field(name).type))
        if self.near_duplicates_dropped:
            dropped = self.table(root, "near_duplicates", ["id"])["id"]
            table = table.filter(pc.invert(pc.is_in(table["id"], value_set=dropped)))
        return table.select(columns)
