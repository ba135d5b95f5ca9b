"""Differences between exact duplicates: columns that are not training content, compared by hashes."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from novelsum_dagster.pool.samples import canonical_json

_ENTRY = struct.Struct("<II")


class FoldedRecords:
    """Differences between duplicates and the samples that they repeat, by file."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._found: dict[str, dict[int, tuple[int, int, str]]] = {}

    def fingerprint(self, other: Mapping[str, Any]) -> bytes:
        """Return hashes of columns and values, 8 bytes each."""
        if not other:
            return b""
        entries = []
        for name, value in sorted(other.items()):
            shown = printable(name)
            column = zlib.crc32(shown.encode())
            self._names[column] = shown
            entries.append(_ENTRY.pack(column, zlib.crc32(canonical_json(value).encode())))
        return b"".join(entries)

    def compare(self, file: str, first: bytes, other: bytes, id_: str, position: int) -> None:
        """Count the columns in which a record differs from the first one of its sample.

        Args:
            file: of this record.
            first: fingerprint of the first record.
            other: fingerprint of this one.
            id_: of the sample.
            position: of this record in its file.
        """
        if first == other:
            return
        found = self._found.setdefault(file, {})
        one, two = dict(_ENTRY.iter_unpack(first)), dict(_ENTRY.iter_unpack(other))
        for column in one.keys() | two.keys():
            if one.get(column) != two.get(column):
                count, at, sample = found.get(column, (0, position, id_))
                found[column] = (count + 1, at, sample)

    def columns(self, file: str) -> Iterator[dict[str, Any]]:
        """Yield the columns in which a file's duplicates differ, the most frequent first."""
        found = self._found.get(file, {})
        for column, (count, position, id_) in sorted(found.items(), key=lambda item: (-item[1][0], item[0])):
            yield {"column": self._names[column], "records": count, "position": position, "id": id_}


def printable(name: str) -> str:
    """Return a column's name with lone surrogates escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
