"""Finding a sample of a run by id, place or text.

Belongs here: the query of `novelsum why`. Does not: which run (`runs`), what is said of the sample (`explain`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.report.tables import place_of

_OFFERED = 5
_ID = re.compile(r"[0-9a-fA-F]{4,}")
_SHORT_ID = re.compile(r"[0-9a-fA-F]{1,3}")
_SURELY_ID = 8
_PLACE = re.compile(r"(?P<file>.+)(?P<by>[:#])(?P<number>\d{1,18})")
AMONG = "id IN (SELECT unnest(?::VARCHAR[]))"
"""In this form, unlike list_contains, DuckDB reads the other columns only for matching rows: ten times faster."""
_SNIPPET = 80


def find_sample(connection: Connection, run: Run, query: str) -> dict[str, Any]:
    """Return the sample or rejected record that matches the query.

    Raises:
        InputError: if no sample or several samples match; offers the nearest.
    """
    if _ID.fullmatch(query):
        for column in ("id", "former_id"):
            found = _samples(connection, run, f"starts_with({column}, ?)", [query.lower()])
            if found:
                return _only(found, query)
    place = asked_place(query)
    if place:
        found = _at_place(connection, run, place)
        if found:
            return _only(found, query)
    # Case-sensitive first: comparing in lower case takes twice as long.
    conditions = ("contains(text, ?)", "contains(lower(text), lower(?))")
    for condition in conditions[: 1 if _ID.fullmatch(query) and len(query) >= _SURELY_ID else 2]:
        found = _with_text(connection, run, condition, query)
        if found:
            return _only(found, query)
    near = all_rows(
        connection, "SELECT id FROM samples WHERE snapshot = ? ORDER BY levenshtein(left(id, ?), ?), id LIMIT 3",
        [run.snapshot, len(query), query.lower()],
    )  # fmt: skip
    offered = f"; similar ids are {', '.join(row['id'] for row in near)}" if _ID.fullmatch(query) and near else ""
    if _SHORT_ID.fullmatch(query):
        offered = "; give at least four characters of an id"
    raise InputError(
        f"no sample of run {run.short} has an id that begins with {query!r}, that place (FILE:LINE or FILE#RECORD) or"
        f" that text{offered}"
    )


def _samples(connection: Connection, run: Run, condition: str, values: list[Any]) -> list[dict[str, Any]]:
    return all_rows(
        connection,
        "SELECT id, former_id, source, file, position, line, form, turns, tokens, text FROM samples"
        f" WHERE snapshot = ? AND {condition} LIMIT {_OFFERED + 1}",
        [run.snapshot, *values],
    )


def _with_text(connection: Connection, run: Run, condition: str, text: str) -> list[dict[str, Any]]:
    """Return the samples whose text matches; other columns are read only for those."""
    ids = all_rows(
        connection, f"SELECT id FROM samples WHERE snapshot = ? AND {condition} LIMIT {_OFFERED + 1}",
        [run.snapshot, text],
    )  # fmt: skip
    return _with_ids(connection, run, ids)


def _with_ids(connection: Connection, run: Run, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return _samples(connection, run, AMONG, [[row["id"] for row in rows]]) if rows else []


@dataclass(frozen=True)
class AskedPlace:
    """A place in a query: FILE:LINE, in files without lines FILE:RECORD, or FILE#RECORD; records count from 1."""

    file: str
    number: int
    by_record: bool

    def is_of(self, place: Mapping[str, Any]) -> bool:
        """Return whether a record is there, given its file, line and position."""
        number = place["position"] if self.by_record or place["line"] is None else place["line"]
        file = str(place["file"])
        return bool(number == self.number) and (file == self.file or file.endswith(f"/{self.file}"))


def asked_place(query: str) -> AskedPlace | None:
    """Return the place that a query names; None if it is not one."""
    found = _PLACE.fullmatch(query)
    return AskedPlace(found["file"], int(found["number"]), found["by"] == "#") if found else None


def _at_place(connection: Connection, run: Run, place: AskedPlace) -> list[dict[str, Any]]:
    """Return the samples or rejected records at a place, given the end of its path."""
    number = "position" if place.by_record else "coalesce(line, position)"
    where = f"snapshot = ? AND (file = ? OR ends_with(file, ?)) AND {number} = ?"
    values = [run.snapshot, place.file, f"/{place.file}", place.number]
    ids = all_rows(connection, f"SELECT DISTINCT id FROM origins WHERE {where} LIMIT {_OFFERED + 1}", values)
    if ids:
        return _with_ids(connection, run, ids)
    return all_rows(
        connection, f"SELECT source, file, position, line, reason, detail FROM rejects WHERE {where}", values
    )


def _only(found: list[dict[str, Any]], query: str) -> dict[str, Any]:
    if len(found) > 1:
        offered = "\n".join(f"  {row.get('id', '')}  {place_of(row)}  {snippet(row)}" for row in found[:_OFFERED])
        more = "more than " if len(found) > _OFFERED else ""
        count = f"{more}{min(len(found), _OFFERED)} samples"
        raise InputError(f"{query!r} matches {count}; give one of these ids:\n{offered}")
    return found[0]


def snippet(row: dict[str, Any]) -> str:
    """Return the beginning of a sample's text, or of what is wrong with a rejected record, in quotes."""
    text = " ".join(str(row.get("text") or row.get("detail") or "").split())
    return f'"{text[:_SNIPPET]}…"' if len(text) > _SNIPPET else f'"{text}"'
