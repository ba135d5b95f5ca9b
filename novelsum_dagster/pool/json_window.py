"""The part of a JSON file that is in memory, and finding the end of a possibly malformed value in it."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from novelsum_dagster.pool.records import DECODER, KEPT_BYTES, MAX_RECORD_BYTES, over_long

CHUNK_BYTES = 2**16
_LONGEST_TOKEN = 16
"""Longer than any literal or escape: an error farther from the end cannot be resolved by reading more."""
_SPACE = re.compile(r"[ \t\r\n]*")
_OUTSIDE_STRING = re.compile(r'["\[\]{},\\]')
_INSIDE_STRING = re.compile(r'["\\]')
_CLOSING = {"[": "]", "{": "}"}


class Scanner:
    """Follows brackets and quotes through text that need not be JSON."""

    def __init__(self) -> None:
        self.is_lost = False
        """Whether brackets of different kinds were mixed up, or a backslash says that strings and the rest were."""
        self._open: list[str] = []
        self._is_in_string = False
        self._is_escaped = False

    def marks(self, text: str, at: int) -> Iterator[tuple[int, str]]:
        """Yield (offset, mark) for each mark outside of all brackets, from `at`.

        A mark is a comma, a closing bracket without an opening one, or "" for a bracket that closes a value.
        """
        at += self._is_escaped and at < len(text)
        self._is_escaped = False
        while not self.is_lost:
            found = (_INSIDE_STRING if self._is_in_string else _OUTSIDE_STRING).search(text, at)
            if found is None:
                return
            mark, at = found.group(), found.end()
            if self._is_in_string:
                self._is_in_string = mark != '"'
                self._is_escaped = self._is_in_string and at == len(text)
                at += self._is_in_string
            elif mark == '"':
                self._is_in_string = True
            elif mark == "\\":
                self.is_lost = True
            elif mark in _CLOSING:
                self._open.append(mark)
            elif not self._open:
                yield found.start(), mark
            elif mark != ",":
                self.is_lost = _CLOSING[self._open.pop()] != mark
                if not self._open and not self.is_lost:
                    yield found.start(), ""


class Window:
    """The part of a text file that is in memory: `text[at:]` is still to be split into records.

    Attributes:
        passed: number of characters before `at` in the file.
        line: the line of `at`, from 1.
        indent: white space before `at` on its line; None if other text precedes it.
        ended: whether the file's end is in memory.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self.text = ""
        self.at = 0
        self.passed = 0
        self.line = 1
        self.indent: str | None = ""
        self.ended = False
        self._indent_at = 0  # Position for which `indent` is valid.

    @property
    def waiting(self) -> int:
        """How many characters are in memory."""
        return len(self.text) - self.at

    def read_more(self) -> None:
        """Read as much again as is waiting, so that a long record is parsed a few times only; stop at the limit."""
        waiting = self.text[self.at :]
        data = self._stream.read(max(CHUNK_BYTES, min(len(waiting), MAX_RECORD_BYTES - len(waiting))))
        self.ended = not data
        self.text, self.at = waiting + self._decode(data, final=not data), 0

    def advance(self, length: int) -> str:
        """Step over some characters; return them."""
        text = self.text[self.at : self.at + length]
        self.line += text.count("\n")
        self.at += length
        self.passed += length
        return text

    def step(self, *characters: str) -> str:
        """Step over white space and one of some characters; return it.

        Raises:
            json.JSONDecodeError: if the next character is another one.
        """
        character = self.next_character()
        if character not in characters:
            raise json.JSONDecodeError(f"expected {' or '.join(characters)}", self.text, self.at)
        return self.advance(1)

    def next_character(self) -> str:
        """Step over white space; return the character there, empty at the end of the file."""
        if self.passed != self._indent_at:
            self.indent = None
        while True:
            if self.text[self.at : self.at + 1].isspace() and (found := _SPACE.match(self.text, self.at)):
                space = self.advance(found.end() - self.at)
                if "\n" in space:
                    self.indent = space.rpartition("\n")[2]
                elif self.indent is not None:
                    self.indent += space
            if self.at < len(self.text) or self.ended:
                self._indent_at = self.passed
                return self.text[self.at : self.at + 1]
            self.read_more()

    def character_after(self, offset: int) -> tuple[int, str]:
        """Return offset and text of the first character that is not white space, from an offset to `at`."""
        while True:
            found = _SPACE.match(self.text, self.at + offset)
            end = found.end() if found else self.at + offset
            if end < len(self.text) or self.ended:
                return end - self.at, self.text[end : end + 1]
            self.read_more()

    def beginning(self) -> bytes:
        """Return the first bytes that are still to be split."""
        return self.text[self.at : self.at + KEPT_BYTES].encode("utf-8", "surrogateescape")

    def next_value(self) -> tuple[Any, str]:
        """Cut out one JSON value; return it with its text; raises as `value_after` does."""
        value, end = self.value_after(0)
        return value, self.advance(end)

    def value_after(self, offset: int) -> tuple[Any, int]:
        """Return the JSON value that starts at an offset to `at`, and the offset of its end.

        Raises:
            json.JSONDecodeError, RecursionError: if no value starts there.
            Reject: if it is too long.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at + offset)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated") or error.pos + _LONGEST_TOKEN > len(self.text)
                if self.ended or not is_open:
                    raise
                if self.waiting - offset > MAX_RECORD_BYTES:
                    raise over_long() from None
            else:
                if end < len(self.text) or self.ended:
                    return value, end - self.at
            self.read_more()

    def second_line(self) -> int | None:
        """Return the offset of the first non-space character after the line of `at`, if any."""
        searched = 0
        while (found := self.text.find("\n", self.at + searched)) < 0:
            if self.ended or self.waiting > MAX_RECORD_BYTES:
                return None
            searched = self.waiting
            self.read_more()
        offset, character = self.character_after(found + 1 - self.at)
        return offset if character else None

    def last_lines(self, end: int) -> int:
        """Return the offset of the second last line break before an offset to `at`, else 0."""
        last = self.text.rfind("\n", self.at, self.at + end)
        return max(self.text.rfind("\n", self.at, max(last, self.at)) - self.at, 0)

    def chunks(self, limit: int) -> Iterator[int]:
        """Yield offsets up to which text is in memory, reading more in between; over `limit` characters end it."""
        seen = -1
        while seen < self.waiting and seen <= limit:
            seen = self.waiting
            yield seen
            if seen == self.waiting and not self.ended:
                self.read_more()
