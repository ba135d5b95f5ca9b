"""Writing chosen samples back in the form in which they came.

Belongs here: one file of records, or one file for each source in its own format. Does not: choosing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from novelsum_dagster.errors import InputError
from novelsum_dagster.files import write_bytes, write_table
from novelsum_dagster.pool.readers import arrow_table, json_record
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile


@dataclass(frozen=True, slots=True)
class ChosenRecord:
    """A chosen sample's original record and the file that it came from."""

    file: SourceFile
    original: bytes


def chosen_records(snapshot: PoolSnapshot, root: Path, ids: Sequence[str]) -> list[ChosenRecord]:
    """Return the original records of `ids`, in that order.

    Raises:
        InputError: where an id is not in the snapshot.
    """
    files = {file.file: file for file in snapshot.files}
    table = snapshot.table(root, "samples", ["id", "file", "original"])
    table = table.filter(pc.is_in(table["id"], value_set=pa.array(ids, pa.string())))
    found = {row["id"]: ChosenRecord(files[row["file"]], row["original"]) for row in table.to_pylist()}
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise InputError(f"sample {missing[0]} is not in pool snapshot {snapshot.key} ({len(missing)} such samples)")
    return [found[id_] for id_ in ids]


def write_records(records: Sequence[ChosenRecord], path: Path) -> None:
    """Write records to one file: JSON Lines, a JSON list, or Parquet, by the file's name.

    Raises:
        InputError: for another name, or for Parquet where the records' fields do not fit into one schema.
    """
    writer = output_writer(path)
    writer(records, path)


def output_writer(path: Path) -> Callable[[Sequence[ChosenRecord], Path], None]:
    """Return the function that writes files of this name.

    Raises:
        InputError: where the name ends in none of .jsonl, .json, .parquet.
    """
    writers = {".jsonl": _write_json_lines, ".json": _write_json_list, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise InputError(f"{path}: the name must end in one of {', '.join(writers)}")
    return writers[path.suffix]


def write_by_source(records: Sequence[ChosenRecord], folder: Path) -> list[Path]:
    """Write one file for each source file that has a record, in its own format; return their paths."""
    groups: dict[str, list[ChosenRecord]] = {}
    for record in records:
        groups.setdefault(record.file.file, []).append(record)
    written: list[Path] = []
    for group in groups.values():
        file = group[0].file
        suffix = "parquet" if file.format == "dataset" else file.format
        path = folder / f"{_safe(file.source)}.{suffix}"
        number = 2
        while path in written:
            path = folder / f"{_safe(file.source)}-{number}.{suffix}"
            number += 1
        write_records(group, path)
        written.append(path)
    return written


def _safe(name: str) -> str:
    """Return a source's name with everything replaced that could leave the folder."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "source"


def record_line(record: ChosenRecord) -> str:
    """Return a record as one line of JSON, without the line break."""
    return json_record(record.original, record.file.schema_of_rows)


def _write_json_lines(records: Sequence[ChosenRecord], path: Path) -> None:
    write_bytes("".join(record_line(record) + "\n" for record in records).encode(), path)


def _write_json_list(records: Sequence[ChosenRecord], path: Path) -> None:
    body = ",\n".join(record_line(record) for record in records)
    write_bytes(f"[\n{body}\n]\n".encode(), path)


def _write_parquet(records: Sequence[ChosenRecord], path: Path) -> None:
    schemas = [record.file.schema_of_rows for record in records]
    schema = schemas[0] if schemas else None
    if schema is None or any(other is None or not schema.equals(other) for other in schemas):
        table = _table_of_json([record_line(record) for record in records], path)
    else:
        table = arrow_table([record.original for record in records], schema)
    write_table(table, path)


def _table_of_json(lines: Sequence[str], path: Path) -> pa.Table:
    """Return records of unlike schemas as one table that has the columns of them all."""
    try:
        rows = [json.loads(line) for line in lines]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = [pa.array([row.get(name) for row in rows]) for name in names]
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"{path}: the records do not fit into one Parquet schema: {error}; write .jsonl") from None
    return pa.Table.from_arrays(columns, names)
