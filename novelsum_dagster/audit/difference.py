"""Differences between two runs: `novelsum diff`.

Belongs here: which samples entered, left and stayed, the cause of each, the measures of both. Does not: why a sample
was picked (`explain`).
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from novelsum_dagster.artifacts.provenance import flat
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.settings import Settings

_MODEL = ("model", "model_revision")
_CODE = ("package_version", "git_revision")
_SELECTION = ("strategy", "k", "seed", "density_power", "proximity_power", "options")
_VECTORS = ("embedding.max_tokens", "embedding.dtype")
"""Settings besides the model that change the vectors."""
_SECTIONS = ("pool", "embedding", "novelsum", "selection")


@dataclass(frozen=True)
class Change:
    """A sample that entered or left the subset: its rank in the run that has it, and the cause as text."""

    id: str
    source: str
    rank: int
    cause: str


@dataclass(frozen=True)
class Difference:
    """Run b compared with run a.

    Attributes:
        entered, left: changes, by rank.
        stayed: samples in both subsets.
        settings: by key, the values in a and b, if they differ.
        same_code, same_model: whether versions and git revision, and the embedding model, are equal.
        measures: by set and measure, the values in a and b.
    """

    a: Run
    b: Run
    entered: tuple[Change, ...]
    left: tuple[Change, ...]
    stayed: int
    settings: dict[str, tuple[Any, Any]]
    same_code: bool
    same_model: bool
    measures: list[dict[str, Any]]


def difference(connection: Connection, a: Run, b: Run) -> Difference:
    """Compare the subsets of two runs.

    Args:
        connection: to the lineage, for reading.
        a, b: runs with a subset, b against a.
    """
    settings = changed_settings(a, b)
    same_model = all(getattr(a, name) == getattr(b, name) for name in _MODEL)
    same_code = all(getattr(a, name) == getattr(b, name) for name in _CODE)
    general = _general_cause(a, b, settings, same_model, same_code)
    entered = _only_in(connection, b, a)
    left = _only_in(connection, a, b)
    return Difference(
        a=a,
        b=b,
        entered=tuple(_change(row, _outside(row, "before"), general) for row in entered),
        left=tuple(_change(row, _outside(row, "now"), general) for row in left),
        stayed=_shared(connection, a, b),
        settings=settings,
        same_code=same_code,
        same_model=same_model,
        measures=_measures(connection, a, b),
    )


def changed_settings(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by key, as given by the launchpad or the settings file."""
    mine, theirs = (_settings_of(run) for run in (a, b))
    keys = [*mine, *(key for key in theirs if key not in mine)]
    return {key: (mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)}


def _settings_of(run: Run) -> dict[str, Any]:
    """Return a run's settings by key, with defaults for those that the recording release did not have."""
    settings = run.settings
    with suppress(ValidationError):
        settings = Settings.model_validate(settings).model_dump(mode="json")
    found = {
        key: value for key, value in flat({name: settings.get(name, {}) for name in _SECTIONS}).items() if value != {}
    }
    # The launchpad may have overridden the selection's settings of the file.
    found |= {f"selection.{name}": getattr(run, name) for name in _SELECTION}
    if EXTENDS in run.options:
        # k includes the kept samples, which are not in the settings.
        found["selection.k"] = run.settings["selection"]["k"]
        found["selection.options"] = {name: value for name, value in run.options.items() if name != EXTENDS}
    return found


def _general_cause(a: Run, b: Run, settings: dict[str, tuple[Any, Any]], same_model: bool, same_code: bool) -> str:
    """Return the possible causes of changed picks among samples in both pools, as text."""
    causes = []
    if EXTENDS in b.options:
        causes.append(f"the subset {b.options[EXTENDS][:8]} was kept and extended")
    if not same_model:
        causes.append(f"changed model ({a.model} to {b.model})")
    named = [key for key in settings if key.split(".")[0] in ("selection", "novelsum") or key in _VECTORS]
    if named:
        causes.append("changed settings (" + ", ".join(named) + ")")
    if a.snapshot != b.snapshot:
        causes.append("other samples were added to or removed from the pool")
    if not same_code:
        causes.append("changed code")
    return "; ".join(causes) or "no recorded input changed"


def _outside(row: dict[str, Any], when: str) -> str:
    """Return why a sample is not in the other run's pool; `when` is "before" or "now"."""
    if row["other_id"] is not None:
        return "the same record under another id: since release 0.2 more of a record is read"
    if row["near_duplicate_of"] is not None:
        pool = "old" if when == "before" else "new"
        return f"a near-duplicate of {row['near_duplicate_of'][:8]} in the {pool} pool"
    return "new data: not in the pool before" if when == "before" else "removed data: no longer in the pool"


def _change(row: dict[str, Any], outside: str, general: str) -> Change:
    return Change(row["id"], row["source"], row["rank"], general if row["in_other_pool"] else outside)


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
