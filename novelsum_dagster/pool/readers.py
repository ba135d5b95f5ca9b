"""Reading records one by one from files and Hugging Face datasets, without holding a file in memory.

Belongs here: finding files, decompressing, cutting JSON, JSON Lines, Parquet and datasets into records, and keeping
each record as it was written. Does not: what the fields mean (`forms`), duplicates and snapshots (`ingest`).
"""

import codecs
import glob
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from novelsum_dagster.errors import InputError
from novelsum_dagster.pool.samples import Reject

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is rejected instead of being held in memory."""
_CHUNK_BYTES = 2**16
_ROWS_PER_BATCH = 1000
_COMPRESSIONS = {".gz", ".zst"}
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


def find_files(pattern: str, base: Path) -> list[Path]:
    """Return the files that a path or glob names, sorted; relative ones start at `base`.

    Raises:
        InputError: where nothing matches, a match is a folder, or its format is not known.
    """
    path = base / Path(pattern).expanduser()
    is_glob = any(mark in pattern for mark in "*?[") and not path.exists()
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True)) if is_glob else [path]
    files = [file for file in found if not (is_glob and file.is_dir())]
    if not files or not files[0].exists():
        raise InputError(f"{pattern}: no such file (looked for {path}); correct the path or glob")
    for file in files:
        if file.is_dir():
            raise InputError(f"{pattern}: is a folder; name files or a glob such as {pattern.rstrip('/')}/*.jsonl")
        file_format(file)
    return files


def file_format(path: Path) -> str:
    """Return json, jsonl or parquet by the file's name, compression aside.

    Raises:
        InputError: for any other name.
    """
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in _COMPRESSIONS), "").lower()
    if suffix in _JSON_LINES:
        return "jsonl"
    if suffix in {".json", ".parquet"}:
        return suffix[1:]
    raise InputError(f"{path}: unknown format; the name must end in .json, .jsonl or .parquet (.gz or .zst may follow)")


def arrow_schema(path: Path) -> pa.Schema:
    """Return the schema of a Parquet file's rows as `read_file` keeps them."""
    return _plain_schema(pq.read_schema(path))


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order; what cannot be read comes as a record that holds a `Reject`."""
    kind = file_format(path)
    if kind == "parquet":
        yield from _read_parquet(path)
        return
    with pa.input_stream(str(path), compression="detect") as raw, io.BufferedReader(raw) as stream:
        start = stream.peek(2)[:2]
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
        for number, value in enumerate(batch.to_pylist()):
            position += 1
            original = batch.slice(number, 1).serialize().to_pybytes()
            yield Record(position, None, original, value)


def dataset_batches(name: str, split: str, revision: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Hugging Face dataset (hub name, folder of files, or saved dataset) as record batches.

    Raises:
        InputError: where the dataset or the split cannot be loaded.
    """
    import datasets

    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(name, split=split, revision=revision, streaming=True)
        for table in data.with_format("arrow").iter(batch_size=_ROWS_PER_BATCH):
            yield from table.to_batches()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"dataset {name}, split {split}: cannot be loaded: {error}") from error


def json_record(original: bytes, schema: pa.Schema | None) -> str:
    """Return a kept original as one line of JSON; `schema` is given for Arrow rows, None for JSON text."""
    if schema is None:
        # Strict JSON has no line break inside a string, so breaks stand between tokens only.
        return original.decode().replace("\r", " ").replace("\n", " ").strip()
    return json.dumps(arrow_row(original, schema).to_pylist()[0], ensure_ascii=False, default=str)


def arrow_row(original: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Return a kept Arrow row as a record batch of one row."""
    return pa.ipc.read_record_batch(pa.py_buffer(original), schema)


def _end(position: int, line: int | None, reason: str, detail: str, original: bytes = b"") -> Record:
    return Record(position, line, original, Reject(reason, f"{detail}; nothing after this was read"), ends_file=True)


def _first_character(stream: io.BufferedReader) -> str:
    return stream.peek(_CHUNK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1].decode("latin-1")


def _read_parquet(path: Path) -> Iterator[Record]:
    position = 0
    try:
        with pq.ParquetFile(path) as file:
            for record in read_rows(file.iter_batches(_ROWS_PER_BATCH)):
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
            yield Record(position, number, kept, Reject("over_long", f"longer than {MAX_RECORD_BYTES:,} bytes"))
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
        """Read as much again as is waiting, so that a long record is parsed a few times only."""
        waiting = self.text[self.at :]
        data = self._stream.read(max(_CHUNK_BYTES, len(waiting)))
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

    def next_value(self) -> tuple[Any, str]:
        """Cut out one JSON value; return it with its text.

        Raises:
            json.JSONDecodeError, RecursionError: where there is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if self.ended or len(self.text) - self.at > MAX_RECORD_BYTES:
                    raise
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
            return
        while True:
            position += 1
            window.next_character()
            line = window.line
            value, text = window.next_value()
            yield _array_record(position, line, value, text)
            separator = window.next_character()
            if separator == "]":
                return
            if separator != ",":
                raise json.JSONDecodeError("expected , or ] after a record", window.text, window.at)
            window.at += 1
    except json.JSONDecodeError as error:
        rest = window.text[window.at : window.at + 1000].encode("utf-8", "surrogateescape")
        yield _end(max(position, 1), window.line, "broken_json", error.msg, rest)
    except RecursionError:
        yield _end(position, window.line, "broken_json", "nested too deeply")
    except OSError as error:
        yield _end(max(position, 1), window.line, "unreadable_file", f"decompression failed: {error}")


def _array_record(position: int, line: int, value: Any, text: str) -> Record:
    original = text.encode("utf-8", "surrogateescape")
    try:
        original.decode()
    except UnicodeDecodeError as error:
        return Record(position, line, original, Reject("invalid_utf8", f"byte {error.start + 1} of the record"))
    return Record(position, line, original, _checked(value))


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with dictionary columns as their values: a row's IPC message carries no dictionary."""
    fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    return pa.schema(fields, schema.metadata)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = _plain_schema(batch.schema)
    return batch if schema.equals(batch.schema) else batch.cast(schema)
