"""The audit tables of the explorer, each from one model in the lineage database.

Belongs here: their parameterised queries and explanations. Does not: the models (`dbt_like_sql`), the page.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv

from novelsum_dagster.audit.near_misses import COUNT, near_misses
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run, removed_runs


@dataclass(frozen=True)
class AuditTable:
    """One table.

    Attributes:
        model: the table or view that it reads; it may be missing in a database of an earlier version.
        query: with one parameter, the value of `limited_by`; or a function that computes the table of a run.
        limited_by: the key of the run to which rows are limited; None reads all runs.
        about: one sentence of explanation for readers.
        if_missing: shown to readers where a run has no such table.
    """

    model: str
    query: str | Callable[[Connection, Path, Run], pa.Table | None]
    limited_by: Literal["run_id", "snapshot", "selection"] | None
    about: str
    if_missing: str = (
        "This lineage has no table for this yet: the models of the audit are built at the end of a run. The next"
        " `novelsum run` builds them."
    )


TABLES = {
    "picks": AuditTable(
        "picks",
        "SELECT rank, id, source, tokens, turns, score, margin, runner_up_id, nearest_distance, nearest_pick_id,"
        " nearest_pick_rank, density_factor, quality, file, line FROM picks WHERE selection = ? ORDER BY rank",
        "selection",
        "Every pick, in pick order. Score: its winning score; margin: its lead over the runner-up; nearest"
        " distance: cosine distance to the nearest earlier pick.",
    ),
    "near misses": AuditTable(
        "selection_audit",
        near_misses,
        "run_id",
        f"The {COUNT:,} samples left out whose scores were highest after the last pick, in order. The scores are exact."
        " Barred by: the limit that ruled it out at the last pick.",
        "There are no scores to compare: the strategy has none, or the selection was made in parts, or picks were"
        " exchanged at the end.",
    ),
    "sources": AuditTable(
        "source_coverage",
        "SELECT source, pool_samples, pool_share, subset_samples, subset_share, share_ratio, pool_tokens,"
        " subset_tokens FROM source_coverage WHERE run_id = ? ORDER BY pool_samples DESC, source",
        "run_id",
        "Each source's share of the pool and of the subset. A ratio above 1: the selection prefers this source.",
    ),
    "lengths": AuditTable(
        "length_bias",
        "SELECT unit, pool_median, subset_median, median_ratio, pool_mean, subset_mean, mean_ratio"
        " FROM length_bias WHERE run_id = ? ORDER BY unit",
        "run_id",
        "Length and turns in the pool and in the subset. A ratio above 1: the selection prefers longer samples.",
    ),
    "rejects": AuditTable(
        "rejects_by_reason",
        "SELECT source, reason, rejects, records_read, share_of_read, example_file, example_line, example_position,"
        " example_detail FROM rejects_by_reason WHERE snapshot = ? ORDER BY rejects DESC, source, reason",
        "snapshot",
        "Records that could not be read as samples, by source and reason, with one example each.",
    ),
    "near-duplicates": AuditTable(
        "near_duplicate_groups",
        "SELECT first_id, size, lowest_score, highest_score, array_to_string(found_by, ', ') AS found_by, first_source,"
        " others_dropped, array_to_string(sources_of_others, ', ') AS sources_of_others, first_file, first_position"
        " FROM near_duplicate_groups WHERE snapshot = ? ORDER BY size DESC, first_id",
        "snapshot",
        "Groups of samples that resemble each other, largest first. Scores are Jaccard similarities of texts (minhash)"
        " or cosines of vectors (embedding).",
    ),
    "measures": AuditTable(
        "measure_drift",
        "SELECT run_id, started_at, set_name, measure, set_size, measured, low, high, change, relative_change,"
        " previous_set_size FROM measure_drift ORDER BY started_at DESC, run_id, measure, set_name",
        None,
        "Every measure in every run, newest first, and its change since the previous run. Measures depend on the size"
        " of the set: compare equal sizes.",
    ),
    "runs": AuditTable(
        "run_costs",
        "SELECT run_id, started_at, run_finished, max(pool_samples) AS pool_samples, sum(seconds) AS seconds,"
        " sum(attempts)::BIGINT AS attempts, sum(failed_attempts)::BIGINT AS failed_attempts,"
        " max(bytes)::BIGINT AS bytes_of_vectors FROM run_costs"
        " GROUP BY run_id, started_at, run_finished ORDER BY started_at DESC",
        None,
        "Duration and size of each run, newest first, including failed runs.",
    ),
    "steps": AuditTable(
        "run_costs",
        "SELECT step, status, seconds, attempts, failed_attempts, bytes, step_started_at"
        " FROM run_costs WHERE run_id = ? ORDER BY step_started_at",
        "run_id",
        "The steps of the chosen run. A step whose output existed already takes almost no time.",
    ),
}


def read_table(connection: Connection, root: Path, name: str, run: Run) -> pa.Table | None:
    """Return one of `TABLES` for a run; None if the database has no such model, or the run no such table.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        name: key of `TABLES`.
        run: the chosen run.

    Raises:
        InputError: if another version built the model, with different columns.
    """
    import duckdb

    table = TABLES[name]
    known = all_rows(
        connection,
        "SELECT name FROM (SELECT table_name AS name FROM duckdb_tables() UNION ALL SELECT view_name"
        " FROM duckdb_views()) WHERE name = ?",
        [table.model],
    )
    if not known:
        return None
    if callable(table.query):
        return table.query(connection, root, run)
    try:
        found: Any = connection.sql(table.query, params=[getattr(run, table.limited_by)] if table.limited_by else [])
        return found.to_arrow_table()
    except duckdb.BinderException as error:
        raise InputError(
            f"the model {table.model} was built by another version of novelsum; the next run rebuilds it"
        ) from error


def finished_runs(connection: Connection) -> list[dict[str, Any]]:
    """Return the runs that have a subset, newest first: run_id, started_at, selection, strategy, k."""
    gone = removed_runs(connection)
    found = all_rows(
        connection,
        "SELECT runs.run_id, runs.started_at, outputs.selection, selections.strategy, selections.k"
        " FROM run_outputs AS outputs"
        " INNER JOIN runs ON runs.run_id = outputs.run_id"
        " INNER JOIN selections ON selections.selection = outputs.selection"
        " ORDER BY runs.started_at DESC, runs.run_id",
    )
    return [row for row in found if row["run_id"] not in gone]


def as_csv(table: pa.Table) -> bytes:
    """Return a table as CSV."""
    buffer = io.BytesIO()
    pa_csv.write_csv(table, buffer)
    return buffer.getvalue()
