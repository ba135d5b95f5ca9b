"""The pool of an earlier run, and the fields of its records: qualities, and the labels that quotas count.

Belongs here: the pool as the lineage knows it, a field of one sample and of all picks. Does not: how a field is found
in a record (`pool.fields`).
"""

from collections import Counter
from pathlib import Path
from typing import Any

from novelsum_dagster.artifacts.newest import newest_or_none
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection, all_rows, one_row
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import COLUMNS, field_of
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile

_JSON_FORMATS = ("json", "jsonl", "csv")


def pool_of(connection: Connection, root: Path, run: Run) -> PoolSnapshot:
    """Return the pool of a run; if it is not the newest, without the schemas of records that are Arrow rows."""
    # Only the newest pools have the schemas of records that are Arrow rows; the database has none.
    for asset in ("distinct_pool", "raw_pool"):
        newest = newest_or_none(root, asset, PoolSnapshot)
        if newest is not None and newest.key == run.snapshot:
            return newest
    pool = one_row(
        connection, "SELECT folder, near_duplicates, near_duplicates_dropped FROM snapshots WHERE snapshot = ?",
        [run.snapshot],
    )  # fmt: skip
    rows = all_rows(connection, "SELECT * EXCLUDE (snapshot) FROM source_files WHERE snapshot = ?", [run.snapshot])
    # Columns missing from a database of an earlier version take their defaults.
    files = [{name: value for name, value in row.items() if value is not None} for row in rows]
    optional = {"form": None, "sha256": None, "arrow_schema": None}
    return PoolSnapshot(
        key=run.snapshot, files=tuple(SourceFile.model_validate({**optional, **file}) for file in files), **(pool or {})
    )


def can_read(pool: PoolSnapshot, name: str) -> bool:
    """Return whether a field can be read for all samples of a pool returned by `pool_of`."""
    return name in COLUMNS or all(file.format in _JSON_FORMATS or file.arrow_schema for file in pool.files)


def quality_of_sample(connection: Connection, root: Path, run: Run, id_: str) -> float | None:
    """Return a sample's quality; 1 if the run has none, None if it cannot be read."""
    name = run.options.get("quality")
    if name is None:
        return 1.0
    value = _of_sample(connection, root, run, id_, name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def label_of_sample(connection: Connection, root: Path, run: Run, id_: str, column: str) -> str | None:
    """Return a sample's label as counted by quotas; None if it cannot be read."""
    if column not in COLUMNS and not can_read(pool_of(connection, root, run), column):
        return None
    return str(_of_sample(connection, root, run, id_, column))


def labels_of_picks(connection: Connection, root: Path, run: Run, column: str) -> list[str]:
    """Return the label of every pick as counted by quotas, in pick order.

    Raises:
        InputError: if the subset's records are missing or damaged.
    """
    if column in COLUMNS:
        rows = connection.execute(
            f"SELECT samples.{column} FROM picks"
            " INNER JOIN samples ON samples.id = picks.id AND samples.snapshot = ?"
            " WHERE picks.selection = ? ORDER BY picks.rank",
            [run.snapshot, run.selection],
        ).fetchall()
        return [str(row[0]) for row in rows]
    # The picks' original records, in pick order: a small part of the pool's.
    path = root / run.folder / "subset.jsonl"
    try:
        with path.open("rb") as file:
            return [str(field_of(line, None, column)) for line in file]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {path.parent}, and run again") from error


def full_labels(connection: Connection, root: Path, run: Run) -> dict[str, list[str]]:
    """Return the labels whose caps the picks have reached, by column."""
    full: dict[str, list[str]] = {}
    for quota in run.options.get("quotas", ()):
        counts = Counter(labels_of_picks(connection, root, run, quota["column"])) if quota.get("caps") else Counter()
        reached = [label for label, cap in quota.get("caps", {}).items() if counts[label] >= cap]
        full.setdefault(quota["column"], []).extend(reached)
    return full


def _of_sample(connection: Connection, root: Path, run: Run, id_: str, name: str) -> Any:
    column = name if name in COLUMNS else "original"
    row = one_row(
        connection, f"SELECT file, {column} AS value FROM samples WHERE snapshot = ? AND id = ?", [run.snapshot, id_]
    )
    if row is None or name in COLUMNS:
        return row and row["value"]
    pool = pool_of(connection, root, run)
    if not can_read(pool, name):
        return None
    return field_of(bytes(row["value"]), pool.schemas[row["file"]], name)
