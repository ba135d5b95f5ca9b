"""Exporting picked samples as their original records.

Belongs here: one file of records, or one file per source in its own format; whether a file can hold the records
unchanged. Does not: selecting.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import isfinite, isinf
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes, write_table
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile
from novelsum_dagster.pool.table_reader import arrow_row, arrow_table, json_record

Nested = Literal["refuse", "json"]
"""Handling of a column that Parquet cannot hold unchanged: an error, or JSON text instead of its values."""
_BATCH = 1000
_MAX_DEPTH = 50
"""Lists and objects within one another; Arrow's readers and writers call themselves once for each."""
_MAX_EXACT = 2**53
"""The largest whole number up to which a 64-bit floating-point number holds every one."""
_LONGEST_INTEGER = 20
"""Characters of the longest integer of 64 bits."""


@dataclass(frozen=True, slots=True)
class ChosenRecord:
    """A picked sample's original record and its source file."""

    file: SourceFile
    original: bytes


def chosen_records(snapshot: PoolSnapshot, root: Path, ids: Sequence[str]) -> list[ChosenRecord]:
    """Return the original records of `ids`, in that order.

    Raises:
        InputError: if an id is not in the snapshot.
    """
    files = {file.file: file for file in snapshot.files}
    table = snapshot.table(root, "samples", ["id", "file", "original"])
    table = table.filter(pc.is_in(table["id"], value_set=pa.array(ids, pa.string())))
    found = {row["id"]: ChosenRecord(files[row["file"]], row["original"]) for row in table.to_pylist()}
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise InputError(f"sample {missing[0]} is not in pool snapshot {snapshot.key} ({len(missing)} such samples)")
    return [found[id_] for id_ in ids]


def require_writable(snapshot: PoolSnapshot, root: Path, path: Path, nested: Nested = "refuse") -> None:
    """Check, before selecting, that every sample's record can be written to a file of this name.

    Any record can be written as JSON. For Parquet the pool's records are read once, unless they are all Arrow rows
    that fit together; only a description of their columns is held in memory.

    Args:
        snapshot: the pool.
        root: the storage folder.
        path: the file to be written.
        nested: as `write_records` takes it.

    Raises:
        InputError: as `write_records` does.
    """
    output_writer(path)
    if path.suffix != ".parquet":
        return
    schemas = snapshot.schemas
    if _common_schema(schemas[file.file] for file in snapshot.files if file.kept) is not None:
        return
    columns = _Columns(path, nested)
    for file, original in _originals(snapshot, root):
        columns.add(json_record(original, schemas[file]))


def write_records(records: Sequence[ChosenRecord], path: Path, nested: Nested = "refuse") -> list[str]:
    """Write records to one file: JSON Lines, a JSON list, or Parquet, by the file's name.

    Arrow rows whose schemas fit together keep their types in Parquet; any other records get the types that their JSON
    has. A top-level field missing from some records is null in those, the same as an explicit null: a table
    cannot distinguish the two. Inside objects nothing is added: there, objects with unlike keys, empty objects, and
    values of unlike types do not fit. Whole and other numbers are 64-bit floating point together where that changes
    none. Of a key that an object has twice the last value counts.

    Args:
        records: in the order in which they are written.
        path: the file.
        nested: for a column of a Parquet file whose values do not fit one type unchanged; refuse it, or write the JSON
            text of its values (null stays null).

    Returns:
        What was written in another form than the records have it, one line each.

    Raises:
        InputError: for another name, or for records that Parquet cannot hold: names the field and what does not fit.
    """
    return output_writer(path, nested)(records, path)


def output_writer(path: Path, nested: Nested = "refuse") -> Callable[[Sequence[ChosenRecord], Path], list[str]]:
    """Return the function that writes files of this name, as `write_records` does.

    Raises:
        InputError: if the name does not end in .jsonl, .json or .parquet.
    """
    writers: dict[str, Callable[[Sequence[ChosenRecord], Path], list[str]]] = {
        ".jsonl": _write_json_lines,
        ".json": _write_json_list,
        ".parquet": partial(_write_parquet, nested=nested),
    }
    if path.suffix not in writers:
        raise InputError(f"{path}: the name must end in one of {', '.join(writers)}")
    return writers[path.suffix]


def write_by_source(records: Sequence[ChosenRecord], folder: Path) -> list[Path]:
    """Write one file for each source file that has a record, in its own format; return their paths.

    Arrow rows are written as Parquet, and as JSON Lines where Parquet does not have their types; records of CSV files
    and of datasets whose rows are kept as JSON are written as JSON Lines.
    """
    groups: dict[str, list[ChosenRecord]] = {}
    for record in records:
        groups.setdefault(record.file.file, []).append(record)
    written: list[Path] = []
    taken: set[str] = set()
    for group in groups.values():
        stem, suffix = _safe(group[0].file.source), _own_suffix(group[0].file)
        name, number = f"{stem}.{suffix}", 2
        while name.casefold() in taken:  # Some file systems take names that differ in case for one.
            name, number = f"{stem}-{number}.{suffix}", number + 1
        taken.add(name.casefold())
        write_records(group, folder / name)
        written.append(folder / name)
    return written


def record_line(record: ChosenRecord) -> str:
    """Return a record as one line of JSON, without the line break."""
    return json_record(record.original, record.file.schema_of_rows)


def json_changes(records: Sequence[ChosenRecord]) -> list[str]:
    """Return the values that JSON of Arrow rows cannot represent, one line with a count each: binary values, NaN."""
    schemas, binary, not_finite = _schemas(records), 0, 0
    for record in records:
        schema = schemas[record.file.file]
        if schema is not None:
            for value in _leaves(arrow_row(record.original, schema).to_pylist()):
                binary += isinstance(value, bytes)
                not_finite += isinstance(value, float) and not isfinite(value)
    counts = {
        "binary values written as base64 text": binary,
        "values that are not finite (NaN, infinity) written as null": not_finite,
    }
    return [f"{what}: {count:,}" for what, count in counts.items() if count]


def _safe(name: str) -> str:
    """Return a source's name with everything replaced that could leave the folder."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "source"


def _own_suffix(file: SourceFile) -> str:
    if file.format in ("json", "jsonl"):
        return file.format
    return "jsonl" if _common_schema([file.schema_of_rows]) is None else "parquet"


def _schemas(records: Iterable[ChosenRecord]) -> dict[str, pa.Schema | None]:
    """Return the Arrow schema of each file that has a record."""
    files = {record.file.file: record.file for record in records}
    return {name: file.schema_of_rows for name, file in files.items()}


def _lines(records: Sequence[ChosenRecord]) -> list[str]:
    schemas = _schemas(records)
    return [json_record(record.original, schemas[record.file.file]) for record in records]


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in lists and objects, at every depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _originals(snapshot: PoolSnapshot, root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the file and the original record of every sample in the pool."""
    dropped: set[str] = set()
    if snapshot.near_duplicates_dropped:
        dropped.update(snapshot.table(root, "near_duplicates", ["id"])["id"].to_pylist())
    with pq.ParquetFile(root / snapshot.folder / "samples.parquet") as samples:
        for batch in samples.iter_batches(_BATCH, columns=["id", "file", "original"]):
            for row in batch.to_pylist():
                if row["id"] not in dropped:
                    yield row["file"], row["original"]


def _write_json_lines(records: Sequence[ChosenRecord], path: Path) -> list[str]:
    write_bytes("".join(line + "\n" for line in _lines(records)).encode(), path)
    return json_changes(records)


def _write_json_list(records: Sequence[ChosenRecord], path: Path) -> list[str]:
    body = ",\n".join(_lines(records))
    write_bytes(f"[\n{body}\n]\n".encode(), path)
    return json_changes(records)


def _write_parquet(records: Sequence[ChosenRecord], path: Path, *, nested: Nested) -> list[str]:
    schemas, changes = _schemas(records), list[str]()
    try:
        common = _common_schema(schemas.values())
        if common is not None:
            runs = groupby(records, lambda record: schemas[record.file.file])
            tables = [arrow_table([record.original for record in run], schema) for schema, run in runs]
            table = pa.concat_tables(_widened(table, common) for table in tables)
        else:
            table, changes = _table_of_json(_lines(records), path, nested)
            changes += json_changes(records)
        write_table(table, path)
    except pa.ArrowException as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"{path}: the records cannot be written as Parquet: {error}; write .jsonl") from error
    return changes


def _common_schema(schemas: Iterable[pa.Schema | None]) -> pa.Schema | None:
    """Return the schema of a Parquet file that can hold rows of all these schemas with their types.

    It has the columns of them all. None if a column's type differs between two schemas, where Parquet does not have
    a type, and for JSON records, whose schema is None.
    """
    schema: pa.Schema | None = None
    for other in schemas:
        if other is None:
            return None
        if schema is None or schema.equals(other):
            schema = schema or other
        elif (schema := _merged(schema, other)) is None:
            return None
    if schema is None:
        return None
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return None
    return schema


def _merged(one: pa.Schema, other: pa.Schema) -> pa.Schema | None:
    """Return a schema with the columns of two; None if a column has two types, or two columns have one name."""
    if any(len(set(schema.names)) < len(schema) for schema in (one, other)):
        return None
    fields = {field.name: field.with_nullable(True) for field in (*other, *one)}
    if any(not field.type.equals(fields[field.name].type) for field in other):
        return None
    for name in set(one.names) & set(other.names):
        fields[name] = fields[name].with_nullable(one.field(name).nullable or other.field(name).nullable)
    return pa.schema([fields[name] for name in dict.fromkeys((*one.names, *other.names))], one.metadata)


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema that has at least its own; the others are null."""
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _table_of_json(lines: Sequence[str], path: Path, nested: Nested) -> tuple[pa.Table, list[str]]:
    """Return records as one table with the columns of all, and a line for each column written as JSON text."""
    columns = _Columns(path, nested)
    for line in lines:
        columns.add(line)
    values: dict[str, list[Any]] = {name: [] for name in columns.types()}
    for line in lines:
        record = _DECODER.decode(line)
        texts = _member_texts(line) if columns.as_text else {}
        for name, column in values.items():
            value = record.get(name)
            column.append(texts[name] if value is not None and name in columns.as_text else value)
    arrays = [pa.array(values[name], type_) for name, type_ in columns.types().items()]
    changes = [f"column {name} is written as JSON text: {why}" for name, why in columns.as_text.items()]
    return pa.Table.from_arrays(arrays, list(values)), changes


def _member_texts(line: str) -> dict[str, str]:
    """Return the text of each value of a JSON object, as it was written."""
    texts: dict[str, str] = {}
    at = _next(line, line.index("{") + 1)
    while line[at] != "}":
        name, at = _DECODER.raw_decode(line, at)
        start = _next(line, _next(line, at) + 1)
        _, end = _DECODER.raw_decode(line, start)
        texts[name] = line[start:end]
        at = _next(line, end)
        if line[at] == ",":
            at = _next(line, at + 1)
    return texts


def _next(line: str, at: int) -> int:
    """Return the offset of the next character that is not white space."""
    while line[at] in " \t\r\n":
        at += 1
    return at


@dataclass(frozen=True, slots=True)
class _Beyond:
    """A number of a JSON record that Python or Arrow cannot represent exactly."""

    what: str


def _integer(text: str) -> int | _Beyond:
    return int(text) if len(text) <= _LONGEST_INTEGER else _Beyond("a whole number of more than 64 bits")


def _number(text: str) -> float | _Beyond:
    value = float(text)
    return _Beyond("a number outside the range of 64-bit floating point") if isinf(value) else value


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number)


class _UnfitError(Exception):
    """Values that no Arrow type holds unchanged, with their place in the column."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = ""

    def in_column(self, name: str) -> str:
        """Return a description of what does not fit, with its place in the column."""
        return f"{name}{self.where} has {self.what}"


class _Columns:
    """The columns that JSON records have together.

    Attributes:
        as_text: columns to be written as JSON text, and why.
    """

    def __init__(self, path: Path, nested: Nested) -> None:
        self.as_text: dict[str, str] = {}
        self._path = path
        self._nested = nested
        self._shapes: dict[str, _Shape] = {}

    def add(self, line: str) -> None:
        """Add a record.

        Raises:
            InputError: if it does not fit.
        """
        try:
            record = _DECODER.decode(line)
        except RecursionError:
            raise InputError(f"{self._path}: Parquet cannot hold records nested this deeply; write .jsonl") from None
        if not isinstance(record, dict):
            raise InputError(
                f"{self._path}: Parquet needs named columns, and a record is a"
                f" {'list' if isinstance(record, list) else 'text'}; write .jsonl"
            )
        for name, value in record.items():
            if name not in self._shapes:
                self._begin(name)
            if name in self.as_text:
                continue
            try:
                self._shapes[name].add(value)
            except _UnfitError as unfit:
                if self._nested == "refuse":
                    raise InputError(
                        f"{self._path}: Parquet cannot hold column {name} unchanged: {unfit.in_column(name)}; write"
                        " .jsonl, or such columns as JSON text (--nested json)"
                    ) from None
                self.as_text[name] = unfit.in_column(name)

    def types(self) -> dict[str, pa.DataType]:
        """Return the Arrow type of every column, in the order in which they were found."""
        return {
            name: pa.string() if name in self.as_text else shape.arrow_type() for name, shape in self._shapes.items()
        }

    def _begin(self, name: str) -> None:
        if not _is_unicode(name):
            raise InputError(f"{self._path}: Parquet cannot hold column {name!r}: not valid Unicode; write .jsonl")
        self._shapes[name] = _Shape()


class _Shape:
    """The Arrow type inferred from the values of a column, of an object's key or of a list's items."""

    __slots__ = ("_fields", "_high", "_items", "_kind", "_low")

    def __init__(self) -> None:
        self._kind: type | None = None
        self._low = self._high = 0
        self._fields: dict[str, _Shape] = {}
        self._items: _Shape | None = None

    def add(self, value: Any, depth: int = 0) -> None:
        """Add a value.

        Raises:
            _UnfitError: if no type would hold it and the earlier values unchanged.
        """
        if value is None:
            return
        if isinstance(value, _Beyond):
            raise _UnfitError(value.what)
        if depth > _MAX_DEPTH:
            raise _UnfitError(f"lists and objects more than {_MAX_DEPTH} deep")
        self._add_kind(type(value))
        if isinstance(value, int | float):
            self._add_number(value)
        elif isinstance(value, str):
            _require_unicode(value)
        elif isinstance(value, list):
            self._items = self._items or _Shape()
            for item in value:
                self._inner(self._items, item, depth, "[]")
        else:
            self._add_object(value, depth)

    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type that holds the values."""
        if self._kind is list:
            return pa.list_(self._items.arrow_type() if self._items else pa.null())
        if self._kind is dict:
            return pa.struct([(name, shape.arrow_type()) for name, shape in self._fields.items()])
        if self._kind is int:
            return pa.int64() if self._high < 2**63 else pa.uint64()
        simple: dict[type | None, pa.DataType] = {bool: pa.bool_(), float: pa.float64(), str: pa.string()}
        return simple.get(self._kind, pa.null())

    def _add_kind(self, kind: type) -> None:
        if self._kind is None or {self._kind, kind} == {int, float}:
            self._kind = float if self._kind is not None else kind
        elif kind is not self._kind:
            raise _UnfitError(f"both {_WORDS[self._kind]} and {_WORDS[kind]}")

    def _add_number(self, value: float) -> None:
        if type(value) is int:
            self._low, self._high = min(self._low, value), max(self._high, value)
        if self._kind is float and not -_MAX_EXACT <= self._low <= self._high <= _MAX_EXACT:
            raise _UnfitError("numbers with a fraction, and whole numbers that 64-bit floating point would change")
        if self._kind is int and not (self._low >= -(2**63) and self._high < (2**64 if self._low == 0 else 2**63)):
            raise _UnfitError("whole numbers that do not fit into 64 bits together")

    def _add_object(self, value: dict[str, Any], depth: int) -> None:
        if not value:
            raise _UnfitError("an empty object")
        if not self._fields:
            for name in value:
                _require_unicode(name)
            self._fields = {name: _Shape() for name in value}
        elif self._fields.keys() != value.keys():
            name = next(iter(name for name in (*self._fields, *value) if name not in value or name not in self._fields))
            raise _UnfitError(f"objects with and without the key {name[:60]!r}")
        for name, inner in value.items():
            self._inner(self._fields[name], inner, depth, f".{name}")

    @staticmethod
    def _inner(shape: "_Shape", value: Any, depth: int, where: str) -> None:
        try:
            shape.add(value, depth + 1)
        except _UnfitError as unfit:
            unfit.where = where + unfit.where
            raise


_WORDS = {
    bool: "true or false",
    int: "whole numbers",
    float: "numbers with a fraction",
    str: "text",
    list: "lists",
    dict: "objects",
}


def _require_unicode(text: str) -> None:
    if not _is_unicode(text):
        raise _UnfitError("text that is not valid Unicode: half of a surrogate pair")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
