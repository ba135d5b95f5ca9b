"""Records as read from files: place, original, and either the value or the reject."""

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
"""Bytes kept of a text that is too long, or whose end is unknown."""
Parsed = Mapping[str, Any] | list[Any] | str | Reject


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read.

    Attributes:
        position: its number in the file, from 1.
        line: the line on which it starts, from 1; None in Parquet, Arrow and datasets.
        original: its JSON text, or its row as an Arrow IPC message without the schema.
        value: its fields, a bare list of turns, a bare text, or a `Reject`.
        ends_file: True if nothing after this record could be read.
        unread: number of further records known to be lost with this reject.
    """

    position: int
    line: int | None
    original: bytes
    value: Mapping[str, Any] | list[Any] | str | Reject
    ends_file: bool = False
    unread: int = 0


def end_record(position: int, line: int | None, reason: str, detail: str, original: bytes = b"") -> Record:
    """Return a reject that ends its file."""
    return Record(position, line, original, Reject(reason, f"{detail}; nothing after this was read"), ends_file=True)


def over_long() -> Reject:
    """Return the reject of a record that is too long to be held in memory."""
    return Reject("over_long", f"longer than {MAX_RECORD_BYTES:,} bytes")


def text_record(position: int, line: int, value: Any, text: str) -> Record:
    """Return the record of a JSON value and its text; bytes that are not UTF-8 are surrogate escapes in the text."""
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
        json.JSONDecodeError, RecursionError: if it is not JSON.
    """
    return DECODER.decode(text)


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)


DECODER = json.JSONDecoder(parse_int=_integer)


def checked(value: Any) -> Parsed:
    """Return the value if it can be a record, or else a reject."""
    if isinstance(value, dict | list | str):
        return value
    kind = "null" if value is None else "a boolean" if isinstance(value, bool) else "a number"
    return Reject("wrong_type", f"the record is {kind}, not an object")
