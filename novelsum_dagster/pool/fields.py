"""Values of a column, or of a field of the original record, for every sample of a pool.

Belongs here: finding them, and naming a sample without one. Does not: what they are used for.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.records import parsed
from novelsum_dagster.pool.snapshot import SAMPLES, PoolSnapshot
from novelsum_dagster.pool.table_reader import json_record

COLUMNS = tuple(name for name in SAMPLES.names if name not in ("text", "original", "former_id"))
"""Columns of every sample; any other name is looked up in the original record."""


def field_values(snapshot: PoolSnapshot, root: Path, name: str) -> list[Any]:
    """Return a value for each sample, in pool order; None if a record has none.

    Args:
        snapshot: the pool.
        root: the storage folder.
        name: a column (`COLUMNS`), or a field of the original record; dots lead into nested ones, as in "meta.score".

    Raises:
        InputError: if no sample has the field.
    """
    if name in COLUMNS:
        return list(snapshot.samples(root, [name])[name].to_pylist())
    values = record_values(snapshot, root, name)
    if all(value is None for value in values):
        raise InputError(
            f"{name!r} is neither a column ({', '.join(COLUMNS)}) nor a field of any record in the pool; check its name"
        )
    return values


def record_values(snapshot: PoolSnapshot, root: Path, name: str) -> list[Any]:
    """Return a field of the original record of each sample, in pool order; None if a record has none."""
    schemas = snapshot.schemas
    rows = snapshot.samples(root, ["file", "original"]).to_pylist()
    return [field_of(row["original"], schemas[row["file"]], name) for row in rows]


def field_of(original: bytes, schema: pa.Schema | None, name: str) -> Any:
    """Return a field of one original record, dots leading into nested ones; None if it has none.

    Args:
        original: as the pool keeps it.
        schema: of its file's rows; None for JSON.
        name: of the field.
    """
    return _inner(parsed(json_record(original, schema)), name)


def positive_numbers(snapshot: PoolSnapshot, root: Path, name: str) -> list[float]:
    """Return a field of every sample as numbers over 0.

    Raises:
        InputError: if one is missing, not a number, or not above 0; names the first such sample.
    """
    values = field_values(snapshot, root, name)
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"{snapshot.record_at(root, row)}: {name} is {value!r}; a number above 0 is needed")
    return [float(value) for value in values]


def _inner(record: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(part)
    return record
