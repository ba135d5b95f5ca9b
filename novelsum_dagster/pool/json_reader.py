"""Splitting JSON text into records: JSON Lines, lists, wrapped lists, and concatenated values.

Belongs here: detecting the layout of a file, and resuming after a broken record. Does not: opening files
(`readers`), what the fields mean (`forms`).
"""

import codecs
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from novelsum_dagster.pool.json_window import CHUNK_BYTES, Scanner, Window
from novelsum_dagster.pool.records import (
    DECODER,
    KEPT_BYTES,
    MAX_RECORD_BYTES,
    Parsed,
    Record,
    checked,
    end_record,
    over_long,
    text_record,
)
from novelsum_dagster.pool.samples import Reject

_LAYOUT_CHARACTERS = 2**20
"""How far to search for the layout if the first record is broken, or may be a list's wrapper."""
_WRAPPERS = {"data", "rows", "examples", "instances", "train", "samples", "items", "records", "conversations"}
"""Names under which an object holds a list of records; a list of objects under `conversations` is one of turns."""
_FIRST_KEY = re.compile(r'\{[^{}]*?"([^"\\{}]*)"\s*:')
_LINE_BREAK = r"[ \t]*\r?\n"
_START = re.compile(rf"[\[{{]({_LINE_BREAK})?([ \t]*)(\S)")

Opener = Callable[[], AbstractContextManager[io.BufferedReader]]
"""Opens a file's decompressed bytes, each time from the start."""
_Layout = Literal["lines", "values", "list", "wrapped"]
_BROKEN = (json.JSONDecodeError, RecursionError)


def read_json(open_file: Opener, is_lines: bool) -> Iterator[Record]:
    """Yield the records of a JSON file.

    Args:
        open_file: opens it.
        is_lines: whether the file name says JSON Lines; the content takes precedence.
    """
    layout = _layout(open_file, is_lines)
    with open_file() as stream:
        yield from _read_lines(stream) if layout == "lines" else _Elements(Window(stream), layout).records()


def _message(error: json.JSONDecodeError | RecursionError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"


def _read_lines(stream: io.BufferedReader) -> Iterator[Record]:
    position, number = 0, 0
    while True:
        try:
            line = stream.readline(MAX_RECORD_BYTES)
        except OSError as error:
            yield end_record(position + 1, number + 1, "unreadable_file", f"decompression failed: {error}")
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
            kept = line[:KEPT_BYTES]
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            yield Record(position, number, kept, over_long())
        else:
            yield Record(position, number, line.strip(), _parse_line(line))


def _parse_line(line: bytes) -> Parsed:
    try:
        return checked(DECODER.decode(line.decode()))
    except UnicodeDecodeError as error:
        return Reject("invalid_utf8", f"byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Reject("broken_json", f"column {error.colno}: {error.msg}")
    except RecursionError as error:
        return Reject("broken_json", _message(error))


@contextmanager
def _window(open_file: Opener) -> Iterator[Window]:
    with open_file() as stream:
        window = Window(stream)
        window.next_character()
        yield window


def _layout(open_file: Opener, is_lines: bool) -> _Layout:
    """Return the layout of a file; its name decides only if the content does not."""
    by_name: _Layout = "lines" if is_lines else "list"
    try:
        with _window(open_file) as window:
            first = window.next_character()
            if not first:
                return by_name
            if first == "[":
                return _layout_of_list(window, by_name)
            if first != "{":
                return by_name if window.second_line() is None else "lines"
            is_wrapper = _enter_list(window)
        if is_wrapper:
            with _window(open_file) as window:
                is_wrapper = not _is_followed_by_object(window)
        if is_wrapper:
            return "wrapped"
        with _window(open_file) as window:
            return _layout_of_objects(window)
    except OSError:
        # Reading the records reports the damage, after the records before it.
        return "list" if not is_lines and _starts_list(open_file) else "lines"


def _starts_list(open_file: Opener) -> bool:
    with open_file() as stream:
        return stream.peek(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and not (
        value.keys().isdisjoint(("role", "from")) or value.keys().isdisjoint(("content", "value", "tool_calls"))
    )


def _layout_of_list(window: Window, by_name: _Layout) -> _Layout:
    """Return the layout of a file that starts with a list: of records, or the first of many, or one conversation."""
    offset, opening = window.character_after(1)
    if opening not in ("{", "["):
        return "list" if window.second_line() is None else by_name
    try:
        first, _ = window.value_after(offset)
    except (Reject, *_BROKEN):
        return "lines" if _is_list_after_line(window) else "list"
    if not _is_turn(first):
        return "list"
    try:
        _, text = window.next_value()
    except Reject:
        return "lines"
    except _BROKEN:
        return "lines" if window.second_line() is None or _is_list_after_line(window) else "values"
    return "values" if "\n" in text else "lines"


def _is_list_after_line(window: Window) -> bool:
    """Return whether a whole list is on the second line, and the first is not part of a list of lists."""
    offset = window.second_line()
    if offset is None:
        return False
    line = window.text[window.at : window.text.index("\n", window.at)].rstrip()
    if line == "[" or line.endswith(",") or window.text[window.at + offset] != "[":
        return False
    try:
        _, end = window.value_after(offset)
    except (Reject, *_BROKEN):
        return False
    return "\n" not in window.text[window.at + offset : window.at + end]


def _layout_of_objects(window: Window) -> _Layout:
    """Return whether there is one object per line, judging by the first that is not broken."""
    for record in _Elements(window, "values", _LAYOUT_CHARACTERS).records():
        if not isinstance(record.value, Reject):
            return "values" if b"\n" in record.original else "lines"
        if window.passed > _LAYOUT_CHARACTERS:
            break
    return "lines"


def _enter_list(window: Window) -> bool:
    """Step to the list of records that an object holds; return whether it holds one, after scalar values at most."""
    try:
        window.step("{")
        while True:
            name = _next_name(window)
            opening = window.next_character()
            if opening == "[":
                return name in _WRAPPERS and _holds_records(window, name)
            if opening == "{":
                return False
            window.next_value()
            window.step(",")
    except (Reject, *_BROKEN):
        return False


def _next_name(window: Window) -> str:
    """Step over a name in an object and the colon after it; return the name."""
    if window.next_character() != '"':
        raise json.JSONDecodeError("expected a name in double quotes", window.text, window.at)
    name, _ = window.next_value()
    window.step(":")
    return str(name)


def _holds_records(window: Window, name: str) -> bool:
    """Return whether the list at which the window is holds records, not turns or scalars."""
    offset, opening = window.character_after(1)
    if opening != "{" or name == "conversations":
        return opening == "["
    try:
        return not _is_turn(window.value_after(offset)[0])
    except _BROKEN:
        return True


def _is_followed_by_object(window: Window) -> bool:
    """Return whether another object follows soon after the one at which the window is."""
    scanner, read = Scanner(), 0
    while read < _LAYOUT_CHARACTERS:
        end = next((at for at, mark in scanner.marks(window.text, window.at) if not mark), None)
        if end is not None:
            window.advance(end + 1 - window.at)
            return window.next_character() == "{"
        if window.ended or scanner.is_lost:
            return False
        read += window.waiting
        window.advance(window.waiting)
        window.read_more()
    return False


class _Elements:
    """Cuts the elements of a list, or values one after another, into records."""

    def __init__(self, window: Window, layout: _Layout, limit: int = MAX_RECORD_BYTES) -> None:
        self._window = window
        self._limit = limit
        self._is_values = layout == "values"
        self._is_wrapped = layout == "wrapped"
        self._is_value_next = True
        self._shape: _Shape | None = None
        self._indent: str | None = None
        # Ends of broken records, found together with that of an earlier one: places in the file.
        self._ends: deque[int] = deque()

    def records(self) -> Iterator[Record]:
        """Yield the records."""
        position = 0
        try:
            for record in self._elements():
                position = record.position
                yield record
        except OSError as error:
            detail = f"decompression failed: {error}"
            yield end_record(position + 1, self._window.line, "unreadable_file", detail)

    def _elements(self) -> Iterator[Record]:
        window = self._window
        if self._is_wrapped:
            _enter_list(window)
        if not self._is_values:
            opening = window.next_character()
            if opening != "[":
                found = f"starts with {opening!r}" if opening else "is empty"
                yield end_record(1, window.line, "broken_json", f"the file {found}, not with a list of records")
                return
            window.step("[")
            self._is_value_next = window.next_character() != "]"
        position = 0
        while True:
            character = window.next_character()
            if self._is_values and not character:
                return
            if not self._is_value_next and character == "]":
                yield from self._after_list(position + 1)
                return
            if not self._is_value_next and character == ",":
                window.advance(1)
                self._is_value_next = True
                continue
            position += 1
            record = self._next_record(position)
            yield record
            if record.ends_file:
                return

    def _next_record(self, position: int) -> Record:
        window, line, indent = self._window, self._window.line, self._window.indent
        try:
            if not self._is_value_next:
                raise json.JSONDecodeError("expected , or ] after a record", window.text, window.at)
            value, text = window.next_value()
        except Reject as reject:
            return end_record(position, line, reject.reason, reject.detail, window.beginning())
        except _BROKEN as error:
            found = self._end_of_broken(indent)
            if found is None:
                return end_record(position, line, "broken_json", _message(error), window.beginning())
            end, self._is_value_next = found
            original = (
                window.advance(end)
                .rstrip(" \t\r\n" if self._is_values else " \t\r\n,")
                .encode("utf-8", "surrogateescape")
            )
            kept = original if len(original) <= MAX_RECORD_BYTES else original[:KEPT_BYTES]
            return Record(position, line, kept, Reject("broken_json", _message(error)))
        if self._shape is None and value:
            self._shape = _shape_of(text, value)
        if self._indent is None:
            self._indent = indent
        self._is_value_next = self._is_values
        return text_record(position, line, value, text)

    def _after_list(self, position: int) -> Iterator[Record]:
        """Yield a reject if the file continues after the list, e.g. with a second list."""
        window = self._window
        window.step("]")
        try:
            if self._is_wrapped:
                _leave_object(window)
            if window.next_character():
                raise json.JSONDecodeError("the file continues after the list of records", window.text, window.at)
        except _BROKEN as error:
            yield end_record(position, window.line, "broken_json", _message(error), window.beginning())
        except Reject as reject:
            yield end_record(position, window.line, reject.reason, reject.detail, window.beginning())

    def _end_of_broken(self, indent: str | None) -> tuple[int, bool] | None:
        """Find the end of the broken record at which the window is.

        It ends at its closing bracket if a record can be read after that, or else at the next line that starts as
        records do and holds one.

        Args:
            indent: white space before the record on its line; None if other text precedes it.

        Returns:
            the end's offset, and whether the next record starts there; None if neither can be found.
        """
        window = self._window
        # An element of a list may be empty, as between two commas.
        while self._ends and self._ends[0] < window.passed + self._is_values:
            self._ends.popleft()
        if self._ends:
            return self._ends.popleft() - window.passed, self._is_values
        indent = next(known for known in (self._indent, indent, "") if known is not None)
        shape = self._shape or _shape_of(window.text[window.at :]) or _Shape()
        line_start = shape.line_start(indent)
        scanner, ends, scanned, searched = Scanner(), list[int](), 0, 0
        for until in window.chunks(self._limit):
            is_found, scanned = self._follow(shape, scanner, ends, scanned), until
            place = (0, ends[0]) if is_found else (searched, until)
            line = self._record_on_line(shape, line_start, *place) if line_start else None
            if line is not None:
                return line, True
            if is_found:
                self._ends.extend(window.passed + end for end in ends[1:])
                return ends[0], self._is_values
            searched = window.last_lines(until)
        return None

    def _follow(self, shape: "_Shape", scanner: Scanner, ends: list[int], start: int) -> bool:
        """Add ends of broken records, as brackets have them, until a good one follows; return whether one does."""
        text, at = self._window.text, self._window.at  # Looking ahead may read more, and change them.
        judge = self._judge_value if self._is_values else self._judge
        for place, mark in scanner.marks(text, at + start):
            is_good = judge(shape, place - at, mark, ends)
            if is_good is not None:
                scanner.is_lost = not is_good
                return is_good
        return False

    def _judge(self, shape: "_Shape", offset: int, mark: str, ends: list[int]) -> bool | None:
        """Add the end that a mark in a list is; return whether a record or the list's end follows, None if unknown."""
        if mark not in (",", "]"):
            return False if mark and ends else None
        ends.append(offset)
        following, character = self._window.character_after(offset + 1)
        if mark == "]":
            return character in (",", "}") if self._is_wrapped else not character
        return None if character == "]" else self._is_record(shape, following)

    def _judge_value(self, shape: "_Shape", offset: int, mark: str, ends: list[int]) -> bool | None:
        """As `_judge`, for values one after another."""
        if mark:
            return False
        ends.append(offset + 1)
        following, character = self._window.character_after(offset + 1)
        return not character or self._is_record(shape, following)

    def _record_on_line(self, shape: "_Shape", line_start: re.Pattern[str], start: int, end: int) -> int | None:
        """Return the offset of the first record that starts a line between two offsets."""
        at = self._window.at
        for found in line_start.finditer(self._window.text, at + start, at + end):
            if self._is_record(shape, found.start(1) - at, on_line=True):
                return found.start(1) - at
        return None

    def _is_record(self, shape: "_Shape", offset: int, on_line: bool = False) -> bool | None:
        """Return whether a record of a shape starts at an offset; None if it may be a broken one."""
        window = self._window
        if window.text[window.at + offset : window.at + offset + 1] != shape.opening:
            return False
        try:
            value, end = window.value_after(offset)
        except Reject:
            return False
        except _BROKEN:
            return None
        if not shape.fits(value, on_line):
            return False
        _, character = window.character_after(end)
        return character in (("", shape.opening) if self._is_values else (",", "]")) or None


@dataclass(frozen=True)
class _Shape:
    """How the records of a file start, by which they are distinguished from objects inside of them.

    Attributes:
        opening: bracket.
        names: of a record, or those that are known.
        needed: how many of them each record has.
        start: bracket and first character after it, with white space, as a regular expression.
        inner_indent: white space before that character where it is on a line of its own.
    """

    opening: str = "{"
    names: frozenset[str] = frozenset()
    needed: int = 0
    start: str = ""
    inner_indent: int | None = None

    def line_start(self, indent: str) -> re.Pattern[str] | None:
        """Return how lines with records start; None if objects inside of records may start lines like that."""
        before = rf"\n{re.escape(indent)}"
        if not self.start:
            return re.compile(rf'{before}(\{{){_LINE_BREAK}{re.escape(indent)}[ \t]+"')
        if self.inner_indent is None:
            return re.compile(before + self.start) if self.names or self.opening == "[" else None
        return re.compile(before + self.start) if self.inner_indent > len(indent) else None

    def fits(self, value: dict[str, Any] | list[Any], on_line: bool) -> bool:
        """Return whether a value can be a record; on a line that starts as records do, indentation is enough."""
        is_indented = on_line and (self.inner_indent is not None or not self.start)
        return bool(value) and (is_indented or isinstance(value, list) or len(self.names & value.keys()) >= self.needed)


def _shape_of(text: str, value: Any = None) -> _Shape | None:
    """Return the shape of a record; without its value, as far as the text of a broken one has it."""
    found = _START.match(text)
    if found is None:
        return None
    line_break, indent, first = found.groups()
    key = _FIRST_KEY.match(text)
    names = frozenset(value if isinstance(value, dict) else [key[1]] if key else [])
    return _Shape(
        opening=text[0],
        names=names,
        needed=(len(names) + 1) // 2,
        start=rf"({re.escape(text[0])}){_LINE_BREAK if line_break else ''}[ \t]*{re.escape(first)}",
        inner_indent=len(indent) if line_break else None,
    )


def _leave_object(window: Window) -> None:
    """Skip what follows a list in an object.

    Raises:
        json.JSONDecodeError, RecursionError, Reject: if that is not well-formed.
    """
    while window.step(",", "}") == ",":
        _next_name(window)
        if window.next_character() != "[":
            window.next_value()
            continue
        window.step("[")
        if window.next_character() == "]":
            window.step("]")
            continue
        window.next_value()
        while window.step(",", "]") == ",":
            window.next_character()
            window.next_value()
