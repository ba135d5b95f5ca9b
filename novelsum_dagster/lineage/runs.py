"""Looking up runs and their outputs.

Belongs here: finding a run by a prefix of its id, its outputs and settings. Does not: samples (`explain`), comparing
runs (`difference`).
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection, all_rows, one_row


@dataclass(frozen=True)
class Run:
    """A run that ended with a subset: the keys of its outputs, its settings and versions."""

    run_id: str
    started_at: datetime
    package_version: str
    git_revision: str | None
    settings: dict[str, Any]
    snapshot: str
    vectors: str
    density: str
    novelty: str
    selection: str
    report: str
    strategy: str
    k: int
    seed: int
    density_power: float
    proximity_power: float
    options: dict[str, Any]
    folder: str
    model: str
    model_revision: str
    vectors_folder: str

    @property
    def short(self) -> str:
        """The first eight characters of the id."""
        return self.run_id[:8]


REMOVED = "data_removed_at"
"""Column of `run_outputs`: the time at which gc removed data of the run."""
RUNNING = "running"
"""Status of a step that has not ended."""
_RUN = """
    SELECT
        runs.run_id, runs.started_at, runs.package_version, runs.git_revision, runs.settings,
        outputs.snapshot, outputs.vectors, outputs.density, outputs.novelty, outputs.selection, outputs.report,
        selections.strategy, selections.k, selections.seed, selections.density_power, selections.proximity_power,
        selections.options, selections.folder,
        embeddings.model, embeddings.revision AS model_revision, embeddings.folder AS vectors_folder
    FROM run_outputs AS outputs
    INNER JOIN runs ON runs.run_id = outputs.run_id
    INNER JOIN selections ON selections.selection = outputs.selection
    INNER JOIN embeddings ON embeddings.vectors = outputs.vectors
"""


def find_run(connection: Connection, name: str | None, without_data: bool = False) -> Run:
    """Return a run that ended with a subset.

    Args:
        connection: to the lineage.
        name: its id or a prefix of it; None takes the newest.
        without_data: also return a run whose data gc removed.

    Raises:
        InputError: if no run or several runs match, the run ended without a subset, gc removed its data, or its run
            file is damaged.
    """
    if name is None:
        found = all_rows(connection, f"{_RUN} ORDER BY runs.started_at DESC LIMIT 1", [])
        if not found:
            last = one_row(connection, "SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1")
            ended = f"; run {last['run_id']} has none: {_ending(connection, last['run_id'])}" if last else ""
            raise InputError(f"no run has ended with a subset yet{ended}. Run the pipeline: novelsum run")
        return _undamaged(connection, found[0])
    known = connection.execute(
        "SELECT run_id FROM runs WHERE starts_with(run_id, ?) ORDER BY started_at DESC", [name]
    ).fetchall()
    if len(known) > 1 and (name,) not in known:
        raise InputError(f"{len(known)} runs begin with {name}: {', '.join(row[0] for row in known[:5])}")
    if not known:
        newest = connection.execute("SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 3").fetchall()
        raise InputError(f"no run begins with {name}; the newest are {', '.join(row[0] for row in newest) or 'none'}")
    run_id = name if (name,) in known else known[0][0]
    found = all_rows(connection, f"{_RUN} WHERE runs.run_id = ?", [run_id])
    if not found:
        raise InputError(f"run {run_id} has no subset: {_ending(connection, run_id)}")
    if not without_data and run_id in (gone := removed_runs(connection)):
        raise InputError(
            f"the data of run {run_id} was removed by novelsum gc on {gone[run_id]:%Y-%m-%d %H:%M}; its settings, steps"
            " and measures are still in the lineage, and novelsum reproduce rebuilds its subset"
        )
    return _undamaged(connection, found[0])


def first_run_with(connection: Connection, selection: str) -> str | None:
    """Return the id of the first finished run that made a subset; None if no run that has finished did."""
    row = one_row(
        connection,
        "SELECT runs.run_id FROM run_outputs AS outputs INNER JOIN runs ON runs.run_id = outputs.run_id"
        " WHERE outputs.selection = ? ORDER BY runs.started_at, runs.run_id LIMIT 1",
        [selection],
    )
    return str(row["run_id"]) if row else None


def removed_runs(connection: Connection) -> dict[str, datetime]:
    """Return the runs whose data gc removed, each with the time of removal."""
    rows = all_rows(connection, f"SELECT run_id, {REMOVED} AS at FROM run_outputs WHERE {REMOVED} IS NOT NULL")
    return {row["run_id"]: row["at"] for row in rows}


def _ending(connection: Connection, run_id: str) -> str:
    """Describe how a run without a subset ended."""
    # If a step was retried, the last attempt counts.
    last = {
        row["step"]: row
        for row in all_rows(
            connection,
            "SELECT step, status, error FROM steps WHERE run_id = ? ORDER BY started_at, attempt",
            [run_id],
        )
    }
    for row in reversed(last.values()):
        if row["status"] == "failed":
            return f"its step {row['step']} failed: {row['error']}"
    running = [row["step"] for row in last.values() if row["status"] == RUNNING]
    return f"its step {running[0]} is running, or was killed" if running else "it did not finish"


def _undamaged(connection: Connection, row: dict[str, Any]) -> Run:
    """Return the run of a row.

    Raises:
        InputError: if its run file is damaged: the rows are of before, and nothing confirms them.
    """
    found = one_row(connection, "SELECT damage FROM run_files WHERE run_id = ?", [row["run_id"]])
    if found and found["damage"]:
        raise InputError(found["damage"])
    # Rows of an earlier version have no options.
    return Run(**{**row, "settings": json.loads(row["settings"]), "options": json.loads(row["options"] or "{}")})
