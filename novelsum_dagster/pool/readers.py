"""Reading records one by one from files and Hugging Face datasets, without holding a file in memory.

Belongs here: finding files, decompressing, cutting JSON, JSON Lines, Parquet and datasets into records, and keeping
each record as it was written. Does not: what the fields mean (`forms`), duplicates and snapshots (`ingest`).
"""

import codecs
import glob
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from os.path import realpath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from novelsum_dagster.errors import InputError
from novelsum_dagster.pool.samples import Reject

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is rejected instead of being held in memory."""
SUCCESS_MARKER = "_SUCCESS"
"""The file by which a writer says that a folder is whole, as Spark does."""
_CHUNK_BYTES = 2**16
_LONGEST_TOKEN = 16
"""More characters than a literal or an escape has: an error farther from the end is no matter of reading more."""
_ROWS_PER_BATCH = 1000
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_JSON_LINES = {".jsonl", ".ndjson"}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Numbers are never used here; as floats they cannot overflow Python's limit on the digits of an integer.
_DECODER = json.JSONDecoder(parse_int=float)


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read.

    Attributes:
        position: its number in the file, from 1.
        line: the line on which it starts, from 1; None in Parquet and datasets.
        original: its JSON text, or its row as an Arrow IPC message without the schema.
        value: its fields, or the `Reject` that says why there are none.
        ends_file: True where nothing after this record could be read.
    """

    position: int
    line: int | None
    original: bytes
    value: Mapping[str, Any] | Reject
    ends_file: bool = False


def find_files(pattern: str, base: Path, success_marker: bool = False) -> list[Path]:
    """Return the files that a path or glob names, sorted; relative ones start at `base`.

    Args:
        pattern: path or glob.
        base: folder.
        success_marker: leave out files whose folder has no file _SUCCESS.

    Raises:
        InputError: where nothing matches, a match is a folder or leads out of the glob's folder, or its format is not
            known.
    """
    path = base / Path(pattern).expanduser()
    files = _matches(pattern, base)
    if success_marker:
        files = [file for file in files if file.name != SUCCESS_MARKER]
    missing = [path] if not files else [file for file in files if not file.exists()]
    if missing:
        raise InputError(f"{pattern}: no such file (looked for {missing[0]}); correct the path or glob")
    for file in files:
        if file.is_dir():
            raise InputError(f"{pattern}: is a folder; name files or a glob such as {pattern.rstrip('/')}/*.jsonl")
        file_format(file)
    if not success_marker:
        return files
    finished = {folder for folder in {file.parent for file in files} if (folder / SUCCESS_MARKER).exists()}
    if not finished:
        raise InputError(f"{pattern}: no folder of these files has a file {SUCCESS_MARKER} yet")
    return [file for file in files if file.parent in finished]


def unfinished_folders(pattern: str, base: Path) -> set[Path]:
    """Return the folders of files that a path or glob names which have no file _SUCCESS."""
    return {
        folder for folder in {file.parent for file in _matches(pattern, base)} if not (folder / SUCCESS_MARKER).exists()
    }


def _matches(pattern: str, base: Path) -> list[Path]:
    wanted = Path(pattern).expanduser()
    if not glob.has_magic(pattern) or (base / wanted).exists():
        return [base / wanted]
    # Only the pattern is a glob: the base folder's own name may have brackets.
    names = sorted(glob.glob(str(wanted), root_dir=base, recursive=True))
    files = [base / name for name in names if not (base / name).is_dir()]
    folder = base.joinpath(*takewhile(lambda part: not glob.has_magic(part), wanted.parts))
    outside = _first_outside(files, folder)
    if outside is not None:
        # Whoever may put files into the folder could have any file of this machine read by a link to it.
        raise InputError(
            f"{pattern}: {outside} leads out of {folder}, to {realpath(outside)}; name that file itself in"
            " pool.sources, or take the link away"
        )
    return files


def _first_outside(files: Iterable[Path], folder: Path) -> Path | None:
    """Return the first file that is not in a folder once links are followed."""
    within = realpath(folder)  # Path.resolve raises where a link leads to itself.
    return next((file for file in files if not Path(realpath(file)).is_relative_to(within)), None)


def shown_name(path: Path, base: Path) -> str:
    """Return a source file's name as a snapshot shows it: relative to `base` where it is within."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def file_format(path: Path) -> str:
    """Return json, jsonl or parquet by the file's name, compression aside.

    Raises:
        InputError: for any other name.
    """
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in _COMPRESSIONS), "").lower()
    if suffix in _JSON_LINES:
        return "jsonl"
    if suffix == ".json":
        return "json"
    if path.suffix.lower() == ".parquet":
        return "parquet"
    if suffix == ".parquet":
        raise InputError(f"{path}: Parquet is compressed inside and cannot be read from {path.suffix}; decompress it")
    raise InputError(f"{path}: unknown format; the name must end in .parquet, .json or .jsonl (.gz or .zst may follow)")


def arrow_schema(path: Path) -> pa.Schema:
    """Return the schema of a Parquet file's rows."""
    return pq.read_schema(path)


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order; what cannot be read comes as a record that holds a `Reject`."""
    kind = file_format(path)
    if kind == "parquet":
        yield from _read_parquet(path)
        return
    compression = _COMPRESSIONS.get(path.suffix.lower())
    with pa.input_stream(str(path), compression=compression) as raw, io.BufferedReader(raw) as stream:
        try:
            start = stream.peek(2)[:2]
        except OSError as error:
            yield _end(1, 1, "unreadable_file", f"decompression failed: {error}")
            return
        if start in _UTF16_MARKS:
            yield _end(1, 1, "wrong_encoding", "the file is UTF-16; convert it to UTF-8")
        elif kind == "jsonl" or _first_character(stream) == "{":
            yield from _read_lines(stream)
        else:
            yield from _read_array(stream)


def read_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Record]:
    """Yield the rows of Arrow record batches as records."""
    position = 0
    for read in batches:
        batch = _plain(read)
        for number, value in enumerate(_values(batch)):
            position += 1
            original = batch.slice(number, 1).serialize().to_pybytes()
            yield Record(position, None, original, value)


def _values(batch: pa.RecordBatch) -> list[Mapping[str, Any] | Reject]:
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):
        return [_row_value(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row_value(row: pa.RecordBatch) -> Mapping[str, Any] | Reject:
    try:
        return dict(row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Reject("invalid_utf8", f"byte {error.start + 1} of a string")
    except (ValueError, OverflowError) as error:
        return Reject("wrong_type", f"a value is out of range: {error}")


def dataset_batches(name: str, split: str, revision: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Hugging Face dataset (hub name, folder of files, or saved dataset) as record batches.

    Raises:
        InputError: where the dataset or the split cannot be loaded, or it names files outside of its folder.
    """
    import datasets

    data: Any
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name, keep_in_memory=False)  # In memory, it would not tell its files.
            if isinstance(loaded, datasets.DatasetDict) and split not in loaded:
                raise InputError(f"dataset {name}: no split {split}; it has {', '.join(loaded)}")
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
            _require_within(name, [file["filename"] for file in data.cache_files])
        else:
            builder = datasets.load_dataset_builder(name, revision=revision)
            _require_within(name, [file for files in (builder.config.data_files or {}).values() for file in files])
            data = builder.as_streaming_dataset(split=split)
        for table in data.with_format("arrow").iter(batch_size=_ROWS_PER_BATCH):
            yield from table.to_batches()
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # TypeError: files of unlike columns.
        raise InputError(f"dataset {name}, split {split}: cannot be loaded: {error}") from error


def _require_within(name: str, files: Sequence[str]) -> None:
    """Refuse files that a dataset names outside of its folder: of one on the hub, any on this machine."""
    if Path(name).is_dir():
        # Addresses, as `https://` and `zip://a::b`, are no paths.
        outside = [file for file in files if "://" in file or _first_outside([Path(file)], Path(name))]
    else:
        outside = [file for file in files if not file.startswith("hf://")]
    if outside:
        raise InputError(
            f"dataset {name}: names {outside[0]}, which is not in its folder; copy it there, or take it out"
        )


def json_record(original: bytes, schema: pa.Schema | None) -> str:
    """Return a kept original as one line of JSON; `schema` is given for Arrow rows, None for JSON text."""
    if schema is None:
        # Strict JSON has no line break inside a string, so breaks stand between tokens only.
        return original.decode().replace("\r", " ").replace("\n", " ").strip()
    return json.dumps(arrow_row(original, schema).to_pylist()[0], ensure_ascii=False, default=str)


def arrow_row(original: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Return a kept Arrow row as a record batch of one row; columns that hold dictionaries hold their values."""
    return pa.ipc.read_record_batch(pa.py_buffer(original), _plain_schema(schema))


def arrow_table(originals: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    """Return kept Arrow rows as a table of the schema that they had."""
    rows = [arrow_row(original, schema) for original in originals]
    return pa.Table.from_batches(rows, _plain_schema(schema)).cast(schema)


def _end(position: int, line: int | None, reason: str, detail: str, original: bytes = b"") -> Record:
    return Record(position, line, original, Reject(reason, f"{detail}; nothing after this was read"), ends_file=True)


def _too_long() -> Reject:
    return Reject("over_long", f"longer than {MAX_RECORD_BYTES:,} bytes")


def _first_character(stream: io.BufferedReader) -> str:
    return stream.peek(_CHUNK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1].decode("latin-1")


def _read_parquet(path: Path) -> Iterator[Record]:
    position = 0
    try:
        # So, pages are read as they are needed, not a row group's whole column.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_CHUNK_BYTES) as file:
            # One by one: Arrow cannot join nested dictionaries of two row groups in a batch.
            groups = (file.iter_batches(_ROWS_PER_BATCH, [group]) for group in range(file.num_row_groups))
            for record in read_rows(chain.from_iterable(groups)):
                position = record.position
                yield record
    except (pa.ArrowException, OSError) as error:
        yield _end(position + 1, None, "unreadable_file", f"not a whole Parquet file: {error}")


def _read_lines(stream: io.BufferedReader) -> Iterator[Record]:
    position, number = 0, 0
    while True:
        try:
            line = stream.readline(MAX_RECORD_BYTES)
        except OSError as error:
            yield _end(position + 1, number + 1, "unreadable_file", f"decompression failed: {error}")
            return
        if not line:
            return
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        position += 1
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            kept = line[:1000]
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            yield Record(position, number, kept, _too_long())
        else:
            yield Record(position, number, line.strip(), _parse_line(line))


def _parse_line(line: bytes) -> Mapping[str, Any] | Reject:
    try:
        return _checked(_DECODER.decode(line.decode()))
    except UnicodeDecodeError as error:
        return Reject("invalid_utf8", f"byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Reject("broken_json", f"column {error.colno}: {error.msg}")
    except RecursionError:
        return Reject("broken_json", "nested too deeply")


def _checked(value: Any) -> Mapping[str, Any] | Reject:
    if isinstance(value, dict):
        return value
    return Reject("wrong_type", f"the record is a {type(value).__name__}, not an object")


class _Window:
    """The part of a text file that is in memory: `text[at:]` is still to be cut into records."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self.text = ""
        self.at = 0
        self.line = 1
        self.ended = False

    def read_more(self) -> None:
        """Read as much again as is waiting, so that a long record is parsed a few times only; stop at the limit."""
        waiting = self.text[self.at :]
        data = self._stream.read(max(_CHUNK_BYTES, min(len(waiting), MAX_RECORD_BYTES - len(waiting))))
        self.ended = not data
        self.text, self.at = waiting + self._decode(data, final=not data), 0

    def next_character(self) -> str:
        """Step over white space; return the character there, empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                character = self.text[self.at]
                if character not in " \t\r\n":
                    return character
                self.line += character == "\n"
                self.at += 1
            if self.ended:
                return ""
            self.read_more()

    def beginning(self) -> bytes:
        """Return the first bytes that are still to be cut."""
        return self.text[self.at : self.at + 1000].encode("utf-8", "surrogateescape")

    def next_value(self) -> tuple[Any, str]:
        """Cut out one JSON value; return it with its text.

        Raises:
            json.JSONDecodeError, RecursionError: where there is none.
            Reject: where it is too long.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated") or error.pos + _LONGEST_TOKEN > len(self.text)
                if self.ended or not is_open:
                    raise
                if len(self.text) - self.at > MAX_RECORD_BYTES:
                    raise _too_long() from None
            else:
                if end < len(self.text) or self.ended:
                    text = self.text[self.at : end]
                    self.line += text.count("\n")
                    self.at = end
                    return value, text
            self.read_more()


def _read_array(stream: io.BufferedReader) -> Iterator[Record]:
    window = _Window(stream)
    position = 0
    try:
        opening = window.next_character()
        if opening != "[":
            found = f"starts with {opening!r}" if opening else "is empty"
            yield _end(1, window.line, "broken_json", f"the file {found}, not with a list of records")
            return
        window.at += 1
        if window.next_character() == "]":
            window.at += 1
            yield from _after_array(window, 1)
            return
        while True:
            position += 1
            window.next_character()
            line = window.line
            value, text = window.next_value()
            yield _array_record(position, line, value, text)
            separator = window.next_character()
            if separator == "]":
                window.at += 1
                yield from _after_array(window, position + 1)
                return
            if separator != ",":
                raise json.JSONDecodeError("expected , or ] after a record", window.text, window.at)
            window.at += 1
    except json.JSONDecodeError as error:
        yield _end(max(position, 1), window.line, "broken_json", error.msg, window.beginning())
    except Reject as reject:
        yield _end(position, window.line, reject.reason, reject.detail, window.beginning())
    except RecursionError:
        yield _end(position, window.line, "broken_json", "nested too deeply")
    except OSError as error:
        yield _end(max(position, 1), window.line, "unreadable_file", f"decompression failed: {error}")


def _after_array(window: _Window, position: int) -> Iterator[Record]:
    """Yield a reject where the file goes on after the list, as a file of two lists does."""
    if window.next_character():
        detail = "the file goes on after the list of records"
        yield _end(position, window.line, "broken_json", detail, window.beginning())


def _array_record(position: int, line: int, value: Any, text: str) -> Record:
    original = text.encode("utf-8", "surrogateescape")
    if len(original) > MAX_RECORD_BYTES:
        return Record(position, line, original[:1000], _too_long())
    try:
        original.decode()
    except UnicodeDecodeError as error:
        return Record(position, line, original, Reject("invalid_utf8", f"byte {error.start + 1} of the record"))
    return Record(position, line, original, _checked(value))


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
