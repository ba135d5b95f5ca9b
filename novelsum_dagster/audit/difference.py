"""Differences between two runs: `novelsum diff`.

Belongs here: which samples entered, left and stayed, the cause of each, the measures of both. Does not: which inputs
differ (`changed_inputs`), the replays that find a cause (`attribution`), why a sample was picked (`explain`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novelsum_dagster.audit.attribution import (
    ADDED,
    CODE,
    IDS,
    NEAR,
    PAIRS,
    REMOVED,
    VECTORS,
    Attribution,
    Kind,
    MovedSample,
    NotKnown,
    Replays,
    attribute,
    grows,
    require_within,
)
from novelsum_dagster.audit.cause_words import cause_text
from novelsum_dagster.audit.changed_inputs import Input, changed_inputs, data_facts
from novelsum_dagster.audit.changed_settings import changed_settings
from novelsum_dagster.audit.run_selection import RunSelection
from novelsum_dagster.audit.run_states import states_of
from novelsum_dagster.audit.verified import records_in
from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run


@dataclass(frozen=True)
class Change:
    """A sample that entered or left the subset.

    Attributes:
        id, source: the sample.
        rank: in the run that has it.
        cause: as text.
        causes, kind: codes of the inputs, and how they caused it (`attribution.Cause`).
    """

    id: str
    source: str
    rank: int
    cause: str
    causes: tuple[str, ...]
    kind: Kind


@dataclass(frozen=True)
class Difference:
    """Run b compared with run a.

    Attributes:
        entered, left: changes, by rank.
        stayed: samples in both subsets.
        settings: by key, the values in a and b, if they differ.
        inputs: those that differ and can change a pick.
        data: `sources_renamed` and `files_moved`.
        replayed: the number of selections replayed to find the causes.
        not_replayed: why some causes are only possible; None if none is.
        measures: by set and measure, the values in a and b.
    """

    a: Run
    b: Run
    entered: tuple[Change, ...]
    left: tuple[Change, ...]
    stayed: int
    settings: dict[str, tuple[Any, Any]]
    inputs: tuple[Input, ...]
    data: dict[str, list[dict[str, Any]]]
    replayed: int
    not_replayed: str | None
    measures: list[dict[str, Any]]

    @property
    def same_code(self) -> bool:
        """Whether no step on which the subset depends had another version of its code."""
        return not any(one.code == CODE for one in self.inputs)

    @property
    def same_model(self) -> bool:
        """Whether all parts of the model's key are equal."""
        return not any(one.code == VECTORS for one in self.inputs)


def difference(
    connection: Connection, root: Path, a: Run, b: Run, pairs: int = PAIRS, progress: Progress = no_progress
) -> Difference:
    """Compare the subsets of two runs.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        a, b: runs with a subset, b against a.
        pairs: the most pairs of samples that replays may score; over that, causes are only possible.
        progress: called with the number of selections replayed.

    Raises:
        InputError: if a pool's files are missing or damaged.
    """
    one, other = (RunSelection(connection, root, run) for run in (a, b))
    records = records_in(connection, a.run_id), records_in(connection, b.run_id)
    entered, left = _only_in(connection, b, a), _only_in(connection, a, b)
    inputs = changed_inputs(connection, one, other, records)
    changes = {
        **{row["id"]: MovedSample(False, _outside(row, REMOVED)) for row in left},
        **{row["id"]: MovedSample(True, _outside(row, ADDED)) for row in entered},
    }

    def replays() -> Replays:
        try:
            sizes = [(made.pool.kept, made.run.k, made.selection) for made in (one, other)]
        except InputError as error:  # Settings of another version.
            raise NotKnown(str(error)) from error
        require_within(pairs, sizes)  # Before vectors are read.
        return Replays(
            *states_of(one, other),
            [found.code for found in inputs],
            pairs=pairs,
            device=cuda_or_cpu("auto"),
            progress=progress,
        )

    found = attribute(changes, [one.code for one in inputs], _grows(one, other), replays)
    facts = {found.code: found.facts for found in inputs}
    return Difference(
        a=a,
        b=b,
        entered=tuple(_change(row, changes[row["id"]], found, facts) for row in entered),
        left=tuple(_change(row, changes[row["id"]], found, facts) for row in left),
        stayed=_shared(connection, a, b),
        settings=changed_settings(a, b),
        inputs=inputs,
        data=data_facts(connection, one, other),
        replayed=found.replayed,
        not_replayed=found.not_replayed,
        measures=_measures(connection, a, b),
    )


def _grows(a: RunSelection, b: RunSelection) -> bool | None:
    try:
        return grows(a.selection, b.selection)
    except InputError:  # Settings of another version.
        return None


def _outside(row: Mapping[str, Any], code: str) -> str | None:
    """Return the input because of which a sample is not in the other run's pool; None if it is."""
    if row["in_other_pool"]:
        return None
    if row["other_id"] is not None:
        return IDS
    return NEAR if row["near_duplicate_of"] is not None else code


def _change(
    row: Mapping[str, Any], sample: MovedSample, found: Attribution, facts: Mapping[str, Mapping[str, Any]]
) -> Change:
    cause = found.causes[row["id"]]
    text = cause_text(cause, facts, sample, row["near_duplicate_of"])
    return Change(row["id"], row["source"], row["rank"], text, cause.codes, cause.kind)


def _only_in(connection: Connection, run: Run, other: Run) -> list[dict[str, Any]]:
    """Return the picks that only this run has, by rank, and whether they are in the other run's pool."""
    dropped = other.settings["pool"]["near_duplicates"]["drop"]
    return all_rows(
        connection,
        """
        WITH mine AS (SELECT id, source, min(rank) AS rank FROM picks WHERE selection = ? GROUP BY id, source),
        theirs AS (SELECT DISTINCT id FROM picks WHERE selection = ?),
        pool AS (SELECT id FROM samples WHERE snapshot = ?),
        renamed AS (
            SELECT former_id AS id, min(id) AS other_id
            FROM samples WHERE snapshot = ? AND former_id IS NOT NULL GROUP BY former_id
            UNION ALL
            SELECT id, former_id FROM samples WHERE snapshot = ? AND former_id IS NOT NULL
        ),
        near AS (SELECT id, partner_id FROM near_duplicates WHERE snapshot = ? AND ?)
        SELECT
            mine.id, mine.source, mine.rank, renamed.other_id, near.partner_id AS near_duplicate_of,
            pool.id IS NOT NULL AND near.id IS NULL AS in_other_pool
        FROM mine
        ANTI JOIN theirs ON theirs.id = mine.id
        LEFT JOIN pool ON pool.id = mine.id
        LEFT JOIN near ON near.id = mine.id
        LEFT JOIN renamed ON renamed.id = mine.id
        ORDER BY mine.rank
        """,
        [run.selection, other.selection, other.snapshot, other.snapshot, run.snapshot, other.snapshot, dropped],
    )


def _shared(connection: Connection, a: Run, b: Run) -> int:
    row = connection.execute(
        "SELECT count(*) FROM"
        " (SELECT id FROM picks WHERE selection = ? INTERSECT SELECT id FROM picks WHERE selection = ?)",
        [a.selection, b.selection],
    ).fetchone()
    return int(row[0]) if row else 0


def _measures(connection: Connection, a: Run, b: Run) -> list[dict[str, Any]]:
    return all_rows(
        connection,
        """
        SELECT
            mine.set_name, mine.measure, mine.size AS size_a, theirs.size AS size_b, mine.value AS a, theirs.value AS b
        FROM set_measures AS mine
        INNER JOIN set_measures AS theirs
            ON theirs.report = ? AND theirs.set_name = mine.set_name AND theirs.measure = mine.measure
        WHERE mine.report = ?
        """,
        [b.report, a.report],
    )
