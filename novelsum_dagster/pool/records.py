"""Records as files hold them: each with its place, its original, and its value or the reason why there is none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from novelsum_dagster.pool.samples import Reject

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is rejected instead of being held in memory."""
MAX_DIGITS = 4000
"""Integers of more digits are read as floats: Python refuses to convert those of over 4,300."""
KEPT_BYTES = 1000
"""What is kept of a text that is too long, or whose end is not known."""
Parsed = Mapping[str, Any] | list[Any] | str | Reject


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read.

    Attributes:
        position: its number in the file, from 1.
        line: the line on which it starts, from 1; None in Parquet, Arrow and datasets.
        original: its JSON text, or its row as an Arrow IPC message without the schema.
        value: its fields, a bare list of turns, a bare text, or the `Reject` that says why there are none.
        ends_file: True where nothing after this record could be read.
        unread: number of records that are known to be lost with this reject, beside the one that it stands for.
    """

    position: int
    line: int | None
    original: bytes
    value: Mapping[str, Any] | list[Any] | str | Reject
    ends_file: bool = False
    unread: int = 0


def end_record(position: int, line: int | None, reason: str, detail: str, original: bytes = b"") -> Record:
    """Return a reject after which nothing can be read."""
    return Record(position, line, original, Reject(reason, f"{detail}; nothing after this was read"), ends_file=True)


def over_long() -> Reject:
    """Return the reject of a record that is not held in memory."""
    return Reject("over_long", f"longer than {MAX_RECORD_BYTES:,} bytes")


def text_record(position: int, line: int, value: Any, text: str) -> Record:
    """Return the record of a JSON value and its text; bytes that are no UTF-8 are surrogate escapes in the text."""
    original = text.encode("utf-8", "surrogateescape")
    if len(original) > MAX_RECORD_BYTES:
        return Record(position, line, original[:KEPT_BYTES], over_long())
    try:
        original.decode()
    except UnicodeDecodeError as error:
        return Record(position, line, original, Reject("invalid_utf8", f"byte {error.start + 1} of the record"))
    return Record(position, line, original, checked(value))


def parsed(text: str) -> Any:
    """Return the value of a JSON text, integers exact.

    Raises:
        json.JSONDecodeError, RecursionError: where it is no JSON.
    """
    return DECODER.decode(text)


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)


DECODER = json.JSONDecoder(parse_int=_integer)


def checked(value: Any) -> Parsed:
    """Return a value that may be a record, or the reject of one that may not."""
    if isinstance(value, dict | list | str):
        return value
    kind = "null" if value is None else "a boolean" if isinstance(value, bool) else "a number"
    return Reject("wrong_type", f"the record is {kind}, not an object")
