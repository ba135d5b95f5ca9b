"""Rows of tables as records (Parquet, Arrow IPC, CSV and TSV), and the JSON text of stored rows.

Belongs here: Arrow rows and their JSON, cells. Does not: whole datasets (`datasets_reader`), opening text files
(`readers`).
"""

import base64
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.records import (
    KEPT_BYTES,
    MAX_RECORD_BYTES,
    Record,
    end_record,
    over_long,
    parsed,
    text_record,
)
from novelsum_dagster.pool.samples import Reject

ROWS_PER_BATCH = 1000
_BUFFER_BYTES = 2**16
_ARROW_FILE = b"ARROW1"
_READ_ERRORS = (pa.ArrowException, OSError)


def arrow_schema(path: Path) -> pa.Schema:
    """Return the schema of the rows of a Parquet or Arrow IPC file."""
    if path.suffix.lower() == ".parquet":
        return pq.read_schema(path)
    with pa.memory_map(str(path)) as source:
        return _open_arrow(source).schema


def read_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Record]:
    """Yield the rows of Arrow record batches as records."""
    position = 0
    for batch in batches:
        yield from _batch_records(batch, position)
        position += batch.num_rows


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file.

    A row group that is damaged is one reject, at the position of the first row that cannot be read; its other rows
    are `unread`, and the next group follows.
    """
    try:
        # This reads pages on demand, not a row group's whole column.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except _READ_ERRORS as error:
        yield end_record(1, None, "unreadable_file", f"not a whole Parquet file: {error}")
        return
    with file:
        start = 0
        # One by one: Arrow cannot join nested dictionaries of two row groups in a batch.
        for group in range(file.num_row_groups):
            position, end = start, start + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(ROWS_PER_BATCH, [group]):
                    for record in _batch_records(batch, position):
                        yield record
                        position = record.position
            except _READ_ERRORS as error:
                if position < end:
                    detail = f"row group {group + 1} is damaged: {error}"
                    unread = end - position - 1
                    yield Record(position + 1, None, b"", Reject("unreadable_file", detail), unread=unread)
            start = end


def read_arrow(path: Path) -> Iterator[Record]:
    """Yield the rows of an Arrow IPC file or stream."""
    position = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _arrow_batches(_open_arrow(source)):
                _require_sound(batch)
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    for record in _batch_records(batch.slice(start, ROWS_PER_BATCH), position):
                        yield record
                        position = record.position
    except _READ_ERRORS as error:
        yield end_record(position + 1, None, "unreadable_file", f"not a whole Arrow file: {error}")


def _open_arrow(source: pa.NativeFile) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    start = source.read(len(_ARROW_FILE))
    source.seek(0)
    return pa.ipc.open_file(source) if start == _ARROW_FILE else pa.ipc.open_stream(source)


def _arrow_batches(reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from reader


def _require_sound(batch: pa.RecordBatch) -> None:
    """Refuse a batch that would be read beyond its end; strings that are not UTF-8 are rejected row by row."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        if batch.num_rows > 1:  # Arrow names the first error only: what is wrong with other rows may be worse.
            for number in range(batch.num_rows):
                _require_sound(batch.slice(number, 1))


def _batch_records(read: pa.RecordBatch, position: int) -> Iterator[Record]:
    batch = _plain(read)
    for number, value in enumerate(_values(batch)):
        original = batch.slice(number, 1).serialize().to_pybytes()
        yield Record(position + number + 1, None, original, value)


def _values(batch: pa.RecordBatch) -> list[Mapping[str, Any] | Reject]:
    try:
        return list(_rows(batch))
    except (ValueError, OverflowError):
        return [_row_value(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row_value(row: pa.RecordBatch) -> Mapping[str, Any] | Reject:
    try:
        return _rows(row)[0]
    except UnicodeDecodeError as error:
        return Reject("invalid_utf8", f"byte {error.start + 1} of a string")
    except (ValueError, OverflowError) as error:
        return Reject("wrong_type", f"a value is out of range: {error}")


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as objects: maps are objects, and JSON that Arrow holds as text is decoded."""
    rows = list(batch.to_pylist())
    for field in batch.schema:
        if _has_objects(field.type):
            for row in rows:
                row[field.name] = _with_objects(row[field.name], field.type)
    return rows


def _is_list(type_: pa.DataType) -> bool:
    types = pa.types
    return any(is_it(type_) for is_it in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _is_json(type_: pa.DataType) -> bool:
    return isinstance(type_, pa.JsonType)


def _has_objects(type_: pa.DataType) -> bool:
    if _is_list(type_):
        return _has_objects(type_.value_type)
    if pa.types.is_struct(type_):
        return any(_has_objects(field.type) for field in type_)
    return _is_json(type_) or bool(pa.types.is_map(type_))


def _with_objects(value: Any, type_: pa.DataType) -> Any:
    if value is None or not _has_objects(type_):
        return value
    if _is_list(type_):
        return [_with_objects(item, type_.value_type) for item in value]
    if pa.types.is_struct(type_):
        return {field.name: _with_objects(value[field.name], field.type) for field in type_}
    if pa.types.is_map(type_):
        return {_name(key): _with_objects(item, type_.item_type) for key, item in value}
    return _decoded(value)


def _decoded(text: str) -> Any:
    try:
        return parsed(text)
    except (ValueError, RecursionError):
        return text


def record_value(original: bytes, schema: pa.Schema | None) -> Any:
    """Return the value of a kept original, as it was when it was read; `schema` is given for Arrow rows."""
    return parsed(original.decode()) if schema is None else _rows(arrow_row(original, schema))[0]


def json_record(original: bytes, schema: pa.Schema | None) -> str:
    """Return a kept original as one line of JSON.

    Args:
        original: as a record has it.
        schema: of Arrow rows, whose values become strict JSON: bytes are base64, dates and decimals text, numbers
            that JSON lacks null. None for JSON text, which stays as it was written.
    """
    if schema is None:
        # JSON has no line break inside a string, so breaks stand between tokens only.
        return original.decode().replace("\r", " ").replace("\n", " ").strip()
    return json.dumps(_strict(_rows(arrow_row(original, schema))[0]), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_name(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _name(key: Any) -> str:
    """Return a map's key as a name in JSON."""
    plain = _strict(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


def arrow_row(original: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Return a kept Arrow row as a record batch of one row; columns that hold dictionaries hold their values."""
    return pa.ipc.read_record_batch(pa.py_buffer(original), _plain_schema(schema))


def arrow_table(originals: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    """Return kept Arrow rows as a table of the schema that they had."""
    rows = [arrow_row(original, schema) for original in originals]
    return pa.Table.from_batches(rows, _plain_schema(schema)).cast(schema)


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with dictionaries and views as plain values, at every depth.

    A row's IPC message carries no dictionary, and would carry all of a view's batch.
    """
    return pa.schema([_plain_field(field) for field in schema], schema.metadata)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain_type(field.type))


def _plain_type(type_: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(type_):
        return _plain_type(type_.value_type)
    if types.is_string_view(type_):
        return pa.large_string()
    if types.is_binary_view(type_):
        return pa.large_binary()
    if types.is_struct(type_):
        return pa.struct([_plain_field(field) for field in type_])
    if types.is_map(type_):
        return pa.map_(_plain_field(type_.key_field), _plain_field(type_.item_field), type_.keys_sorted)
    if types.is_fixed_size_list(type_):
        return pa.list_(_plain_field(type_.value_field), type_.list_size)
    if types.is_list(type_):
        return pa.list_(_plain_field(type_.value_field))
    if types.is_large_list(type_):
        return pa.large_list(_plain_field(type_.value_field))
    return type_


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = _plain_schema(batch.schema)
    return batch if schema.equals(batch.schema) else batch.cast(schema)


def require_distinct(names: Iterable[str], path: Path) -> None:
    """Require distinct column names.

    Raises:
        InputError: naming the first repeated one.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{path}: has {count} columns named {name!r}; rename all but one")


def csv_header(stream: io.BufferedReader, path: Path) -> list[str]:
    """Return the names in the first row of a CSV or TSV file; none where it is empty or cannot be read."""
    try:
        return _Cells(stream, path).next_row()
    except (Reject, OSError):
        return []


def read_csv(stream: io.BufferedReader, path: Path) -> Iterator[Record]:
    """Yield the rows of a CSV or TSV file as objects of text, by the names in its first row; empty cells are null.

    Raises:
        InputError: if two columns have the same name.
    """
    cells, position, names = _Cells(stream, path), 1, list[str]()
    try:
        names = cells.next_row()
        require_distinct(names, path)
        while record := _csv_record(cells, position, names):
            yield record
            if record.ends_file:
                return
            position += 1
    except Reject as reject:
        yield end_record(1, cells.line, reject.reason, f"the header is broken: {reject.detail}", cells.original)
    except OSError as error:
        yield end_record(position, cells.line, "unreadable_file", f"decompression failed: {error}")


def _csv_record(cells: "_Cells", position: int, names: list[str]) -> Record | None:
    try:
        row = cells.next_row()
        if row and len(row) != len(names):
            raise Reject("wrong_columns", f"{len(row)} cells; the header has {len(names)}")
    except Reject as reject:
        if cells.is_lost:
            return end_record(position, cells.line, reject.reason, reject.detail, cells.original)
        return Record(position, cells.line, cells.original, reject)
    value = {name: cell or None for name, cell in zip(names, row, strict=False)}
    return text_record(position, cells.line, value, json.dumps(value, ensure_ascii=False)) if row else None


class _Cells:
    """The rows of a CSV file as lists of cells; the first is the header.

    Attributes:
        line: the line on which the last row starts, from 1.
        is_lost: whether nothing can be read after the last row, because its end is unknown.
    """

    def __init__(self, stream: io.BufferedReader, path: Path) -> None:
        csv.field_size_limit(MAX_RECORD_BYTES)
        # Bytes that are not UTF-8 must be kept until their row is rejected; line breaks inside quotes are content.
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
        self._rows = csv.reader(self._lines(), delimiter=delimiter, strict=True)
        self._row: list[str] = []
        self.line = 0
        self.is_lost = False

    @property
    def original(self) -> bytes:
        """The last row as written; only its first bytes if it is lost."""
        text = "".join(self._row).rstrip("\r\n").encode("utf-8", "surrogateescape")
        return text[:KEPT_BYTES] if self.is_lost else text

    def next_row(self) -> list[str]:
        """Return the cells of the next row, skipping blank lines; empty at the end.

        Raises:
            Reject: if quotes are malformed, or the row is too long.
        """
        row: list[str] | None = []
        while row == []:
            self._row.clear()
            self.line = self._rows.line_num + 1
            try:
                row = next(self._rows, None)
            except csv.Error as error:
                if sum(map(len, self._row)) > MAX_RECORD_BYTES:
                    self.is_lost = True
                    raise over_long() from None
                raise Reject("broken_csv", str(error)) from None
        return row or []

    def _lines(self) -> Iterator[str]:
        while line := self._text.readline(MAX_RECORD_BYTES + 1):
            self._row.append(line)
            if len(line) > MAX_RECORD_BYTES:
                self.is_lost = True
                raise over_long()
            yield line
        self.is_lost = True  # An unfinished row at the end of the file has an unclosed quote.
