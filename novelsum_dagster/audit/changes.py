"""Changes between the two newest different states of a curation: its files, pool, picks and measures.

Belongs here: choosing the earlier run to compare with, comparing, the folder. Does not: the stored model
(`comparison`), its text (`changes_words`), sending it (`notify`), the causes of picks (`difference`).

A run in which nothing changed has the same state as the one before; it is compared with the same earlier run, and
produces no new output.

| file | content |
|---|---|
| changes.json | the comparison (`Comparison`) |
| changes.md | the same as Markdown |
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from novelsum_dagster.artifacts.layout import CHANGES, output_folder
from novelsum_dagster.audit.attribution import FEW_PAIRS, VECTORS
from novelsum_dagster.audit.cause_words import phrase
from novelsum_dagster.audit.changes_words import page
from novelsum_dagster.audit.comparison import (
    EXAMPLES,
    Changes,
    Comparison,
    Files,
    MeasureChange,
    Moved,
    PickChange,
    PoolChange,
    SourceSize,
    State,
)
from novelsum_dagster.audit.difference import Change, Difference, difference
from novelsum_dagster.audit.verified import COMPARED, REPLAYED, verified_run
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key, place_folder, temporary_folder, write_bytes
from novelsum_dagster.lineage.query import Connection, all_rows, one_row
from novelsum_dagster.lineage.runs import Run, find_run
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.report.novelsum_report import FRESH, SELECTED

_FILES = ("changes.json", "changes.md")
_VERSION = 2
"""Version of a folder's content, so that a folder of an earlier version is not reused."""
_ENTERED = {
    "near": "no longer a near-duplicate",
    "only_here": "new file",
    "differs": "changed file",
    "rejected": "no longer rejected",
    "unknown": "changed dataset",
    "same": "changed settings or code",
}
_LEFT = {**_ENTERED, "near": "now a near-duplicate", "only_here": "removed file", "rejected": "now rejected"}
_DROPPING = {_ENTERED["near"]: "near-duplicates are kept now", _LEFT["near"]: "near-duplicates are dropped now"}
"""Reasons used instead of those two if the setting that drops near-duplicates changed."""
_OTHER_SAMPLE = re.compile(r" of [0-9a-f]{6,}\b")


def build_changes(store: LineageStore, run_id: str) -> Changes:
    """Compare a run with the newest earlier run of a different state; write the comparison under `root/changes`.

    Args:
        store: the lineage, in which the run is recorded.
        run_id: of the run; if it recorded no outputs of its own, the newest run with outputs is taken.

    Raises:
        InputError: if no run ended with a subset, or a file to compare is damaged.
    """
    with store.reading() as connection:
        known = one_row(connection, "SELECT run_id FROM run_outputs WHERE run_id = ?", [run_id])
        run = find_run(connection, run_id if known else None)
        after, earlier = _state(run), _earlier(connection, run)
        for row in earlier:
            before = State(snapshot=row["snapshot"], selection=row["selection"], report=row["report"])
            number = _number(connection, run, before)
            changes = _changes(number, before, after)
            if _is_there(store.root, changes):  # Even if the earlier run's files have been deleted since.
                return changes
            if (whole := _whole(connection, store.root, row)) is not None:
                return _written(store.root, changes, compare(connection, store.root, whole, run, number))
    changes = _changes(0, None, after, earlier_is_gone=bool(earlier))
    if _is_there(store.root, changes):
        return changes
    nothing = Comparison(number=0, earlier_is_gone=bool(earlier), runs={"after": run.run_id}, before=None, after=after)
    return _written(store.root, changes, nothing)


def _changes(number: int, before: State | None, after: State, earlier_is_gone: bool = False) -> Changes:
    states = [one and one.model_dump() for one in (before, after)]
    key = content_key({"version": _VERSION, "number": number, "gone": earlier_is_gone, "states": states})
    return Changes(key=key, folder=output_folder("changes", key))


def _is_there(root: Path, changes: Changes) -> bool:
    return all((root / changes.folder / name).exists() for name in _FILES)


def _written(root: Path, changes: Changes, compared: Comparison) -> Changes:
    texts = (compared.model_dump_json(indent=2) + "\n", page(compared))
    with temporary_folder(root / CHANGES) as folder:
        for name, text in zip(_FILES, texts, strict=True):
            write_bytes(text.encode(), folder / name)
        place_folder(folder, root / changes.folder)
    return changes


def _state(run: Run) -> State:
    return State(snapshot=run.snapshot, selection=run.selection, report=run.report)


def _earlier(connection: Connection, run: Run) -> list[dict[str, Any]]:
    """Return the earlier runs with a different pool or subset, newest first."""
    return all_rows(
        connection,
        """
        SELECT
            outputs.run_id, outputs.snapshot, outputs.selection, outputs.report, snapshots.folder AS pool,
            selections.folder AS subset
        FROM run_outputs AS outputs
        INNER JOIN runs ON runs.run_id = outputs.run_id
        INNER JOIN snapshots ON snapshots.snapshot = outputs.snapshot
        INNER JOIN selections ON selections.selection = outputs.selection
        WHERE runs.started_at < ? AND (outputs.snapshot <> ? OR outputs.selection <> ?)
        ORDER BY runs.started_at DESC
        """,
        [run.started_at, run.snapshot, run.selection],
    )


def _whole(connection: Connection, root: Path, row: dict[str, Any]) -> Run | None:
    """Return the run if all its files exist, else None."""
    if not all(
        path.exists() for path in (root / row["pool"] / "samples.parquet", root / row["subset"] / "picks.parquet")
    ):
        return None
    try:
        return verified_run(connection, root, row["run_id"], COMPARED, REPLAYED)
    except InputError:  # Some of its data was removed, or is damaged.
        return None


def _number(connection: Connection, run: Run, before: State) -> int:
    """Return how often this exact change has occurred: a change that is undone and repeated counts again."""
    row = one_row(
        connection,
        """
        WITH states AS (
            SELECT
                runs.started_at, outputs.snapshot, outputs.selection,
                lag(outputs.snapshot) OVER runs_in_order AS earlier_snapshot,
                lag(outputs.selection) OVER runs_in_order AS earlier_selection
            FROM run_outputs AS outputs
            INNER JOIN runs ON runs.run_id = outputs.run_id
            WINDOW runs_in_order AS (ORDER BY runs.started_at, runs.run_id)
        )
        SELECT count(*) AS changes FROM states
        WHERE started_at <= ? AND snapshot = ? AND selection = ? AND earlier_snapshot = ? AND earlier_selection = ?
        """,
        [run.started_at, run.snapshot, run.selection, before.snapshot, before.selection],
    )
    return int(row["changes"]) if row else 0


def compare(connection: Connection, root: Path, before: Run, run: Run, number: int) -> Comparison:
    """Compare a run with an earlier one.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        before, run: the runs.
        number: how often this exact change has occurred.
    """
    files, pool = _pool(connection, before, run)
    found = difference(connection, root, before, run, FEW_PAIRS)
    fresh = _fresh(connection, run)
    yardstick = _other_yardstick(found)
    return Comparison(
        number=number,
        runs={"before": before.run_id, "after": run.run_id},
        before=_state(before),
        after=_state(run),
        files=files,
        pool=pool,
        picks=_picks(found),
        settings=found.settings,
        measures=tuple(_measures(connection, before, run, yardstick is None)),
        other_yardstick=yardstick,
        fresh=fresh and fresh["fresh"],
        given_up=fresh and fresh["fresh"] - fresh["selected"],
    )


def _pool(connection: Connection, before: Run, run: Run) -> tuple[Files, PoolChange]:
    sizes = {
        row["snapshot"]: row
        for row in all_rows(
            connection,
            "SELECT snapshot, kept, near_duplicates_dropped AS drops FROM snapshots WHERE snapshot IN (?, ?)",
            [before.snapshot, run.snapshot],
        )
    }
    old, new = sizes[before.snapshot], sizes[run.snapshot]
    # A pool may have a million rows: an unchanged one is not read.
    changed = before.snapshot != run.snapshot
    entered = _only_in(connection, new, old) if changed else []
    left = _only_in(connection, old, new) if changed else []
    moved = {row["file"] for row in [*entered, *left] if row["code"] == "unknown"}
    return _files(connection, before, run, moved), PoolChange(
        size_before=old["kept"],
        size_after=new["kept"],
        entered=_moved(_in_words(entered, _ENTERED, old["drops"] != new["drops"])),
        left=_moved(_in_words(left, _LEFT, old["drops"] != new["drops"])),
        sources=tuple(_sources(connection, before, run)),
    )


def _only_in(connection: Connection, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Count the samples that only one of the pools has, by source, file and cause."""
    return all_rows(
        connection,
        """
        WITH near AS (
            SELECT id, snapshot FROM near_duplicates
            WHERE (snapshot = ? AND ?) OR (snapshot = ? AND ?)
        ),
        mine AS (
            SELECT samples.id, samples.source, samples.file, samples.position
            FROM samples
            ANTI JOIN near ON near.id = samples.id AND near.snapshot = samples.snapshot
            WHERE samples.snapshot = ?
        ),
        theirs AS (
            SELECT samples.id, near.id IS NOT NULL AS is_dropped
            FROM samples
            LEFT JOIN near ON near.id = samples.id AND near.snapshot = samples.snapshot
            WHERE samples.snapshot = ?
        ),
        files AS (
            SELECT
                one.file,
                CASE
                    WHEN other.file IS NULL THEN 'only_here'
                    WHEN one.sha256 IS NULL AND other.sha256 IS NULL THEN 'unknown'
                    WHEN one.sha256 IS DISTINCT FROM other.sha256 THEN 'differs'
                    ELSE 'same'
                END AS state
            FROM source_files AS one
            LEFT JOIN source_files AS other ON other.snapshot = ? AND other.file = one.file
            WHERE one.snapshot = ?
        ),
        bad AS (SELECT DISTINCT file, position FROM rejects WHERE snapshot = ?)
        SELECT
            mine.source,
            mine.file,
            CASE
                WHEN theirs.is_dropped THEN 'near'
                WHEN bad.file IS NOT NULL AND files.state IN ('same', 'unknown') THEN 'rejected'
                ELSE coalesce(files.state, 'same')
            END AS code,
            count(*) AS count,
            min(mine.id, ?) AS examples
        FROM mine
        LEFT JOIN theirs ON theirs.id = mine.id
        LEFT JOIN files ON files.file = mine.file
        LEFT JOIN bad ON bad.file = mine.file AND bad.position = mine.position
        WHERE theirs.id IS NULL OR theirs.is_dropped
        GROUP BY ALL
        ORDER BY ALL
        """,
        [
            *(value for pool in (here, there) for value in (pool["snapshot"], pool["drops"])),
            here["snapshot"], there["snapshot"], there["snapshot"], here["snapshot"], there["snapshot"], EXAMPLES,
        ],
    )  # fmt: skip


def _in_words(
    rows: Iterable[Mapping[str, Any]], words: Mapping[str, str], other_dropping: bool
) -> list[tuple[str, str, int, Sequence[str]]]:
    """Return source, reason, count and some ids of every row."""
    reasons = ((row, words[row["code"]]) for row in rows)
    return [
        (row["source"], _DROPPING.get(reason, reason) if other_dropping else reason, row["count"], row["examples"])
        for row, reason in reasons
    ]


def _moved(rows: Sequence[tuple[str, str, int, Sequence[str]]]) -> Moved:
    """Return counts of rows of source, reason, count and some ids."""
    by_source: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for source, reason, count, ids in rows:
        by_source[source] += count
        by_reason[reason] += count
        known = examples.setdefault(reason, [])
        known.extend(ids[: EXAMPLES - len(known)])
    return Moved(
        count=by_reason.total(),
        by_source=_commonest_first(by_source),
        by_reason=_commonest_first(by_reason),
        examples={reason: tuple(examples[reason]) for reason in _commonest_first(by_reason)},
    )


def _commonest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _files(connection: Connection, before: Run, run: Run, moved: set[str]) -> Files:
    """Return the files by kind of change; `moved` are datasets that gained or lost samples."""
    rows = all_rows(
        connection,
        """
        SELECT
            coalesce(new.file, old.file) AS file, old.file IS NULL AS is_new, new.file IS NULL AS is_gone,
            new.sha256 IS DISTINCT FROM old.sha256 OR (new.sha256 IS NULL AND new.read <> old.read) AS differs
        FROM (SELECT * FROM source_files WHERE snapshot = ?) AS old
        FULL JOIN (SELECT * FROM source_files WHERE snapshot = ?) AS new ON new.file = old.file
        ORDER BY 1
        """,
        [before.snapshot, run.snapshot],
    )
    in_both = [row for row in rows if not row["is_new"] and not row["is_gone"]]
    return Files(
        added=tuple(row["file"] for row in rows if row["is_new"]),
        overwritten=tuple(row["file"] for row in in_both if row["differs"] or row["file"] in moved),
        removed=tuple(row["file"] for row in rows if row["is_gone"]),
    )


def _sources(connection: Connection, before: Run, run: Run) -> list[SourceSize]:
    rows = all_rows(
        connection,
        """
        SELECT
            source,
            coalesce(sum(kept) FILTER (snapshot = ?), 0)::BIGINT AS before,
            coalesce(sum(kept) FILTER (snapshot = ?), 0)::BIGINT AS after
        FROM source_files WHERE snapshot IN (?, ?) GROUP BY source ORDER BY source
        """,
        [before.snapshot, run.snapshot, before.snapshot, run.snapshot],
    )
    totals = {name: max(1, sum(row[name] for row in rows)) for name in ("before", "after")}
    return [SourceSize(**row, **{f"share_{name}": row[name] / totals[name] for name in totals}) for row in rows]


def _picks(found: Difference) -> PickChange:
    return PickChange(
        before=found.a.k,
        after=found.b.k,
        entered=_of_picks(found.entered),
        left=_of_picks(found.left),
        stayed=found.stayed,
    )


def _of_picks(changes: Iterable[Change]) -> Moved:
    # Causes name single samples, which would make each cause unique.
    return _moved([(one.source, _OTHER_SAMPLE.sub(" of another", one.cause), 1, [one.id]) for one in changes])


def _measures(connection: Connection, before: Run, run: Run, same_yardstick: bool) -> list[MeasureChange]:
    """Return the measures in both reports; values of sets of different sizes or settings cannot be compared."""
    rows = all_rows(
        connection,
        """
        SELECT
            new.set_name, new.measure, old.size AS size_before, new.size AS size_after, old.value AS before,
            old.low, old.high, new.value AS after,
            CASE WHEN ? AND old.size = new.size THEN new.value - old.value END AS difference,
            CASE WHEN ? AND old.size = new.size THEN new.value NOT BETWEEN old.low AND old.high END AS is_outside
        FROM set_measures AS new
        INNER JOIN set_measures AS old
            ON old.report = ? AND old.set_name = new.set_name AND old.measure = new.measure
        WHERE new.report = ? AND isfinite(old.value + old.low + old.high) AND isfinite(new.value)
        ORDER BY new.set_name, new.measure
        """,
        [same_yardstick, same_yardstick, before.report, run.report],
    )
    return [MeasureChange(**row) for row in rows]


def _other_yardstick(found: Difference) -> str | None:
    """Return why the values of two reports cannot be compared at all; None if they can."""
    for one in found.inputs:
        if one.code == VECTORS:
            return f"the vectors differ: {phrase(one.code, one.facts)}"
    changed = [
        f"{section}.{name}"
        for section in ("novelsum", "measures")
        for name, value in found.b.settings.get(section, {}).items()
        # A setting that the earlier version did not have does not count as changed.
        if found.a.settings.get(section, {}).get(name, value) != value
    ]
    return f"settings of the measures changed ({', '.join(changed)})" if changed else None


def _fresh(connection: Connection, run: Run) -> dict[str, Any] | None:
    return one_row(
        connection,
        """
        SELECT fresh.value AS fresh, own.value AS selected
        FROM set_measures AS fresh
        INNER JOIN set_measures AS own
            ON own.report = fresh.report AND own.measure = fresh.measure AND own.set_name = ? AND own.size = fresh.size
        WHERE fresh.report = ? AND fresh.set_name = ? AND fresh.measure = 'novelsum'
        """,
        [SELECTED, run.report, FRESH],
    )
