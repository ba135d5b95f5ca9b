"""At which picks of a run a sample was not eligible, and which limit ruled it out.

Belongs here: the replay of a run's limits for one sample. Does not: the limits (`selection.limits`), how many samples
they ruled out at a pick, which `eligibility.parquet` of the subset records, sentences (`explanation_text`).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from novelsum_dagster.audit.run_fields import can_read, label_of_sample, labels_of_picks, pool_of
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import field_values
from novelsum_dagster.selection.limits import Limits, Quota, Wanted


def barred_picks(connection: Connection, root: Path, run: Run, sample: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the picks made by score at which a sample that NovelSelect left out was not eligible, in order.

    Each entry is for the picks `first` to `last`, from 1, with one reason: `by`, one of `selection.picks.BARS`; `left`,
    what was left of k or of the token budget before pick `first`; `cost`, the sample's tokens, or 1 where k counts;
    `column`, `label`, `cap` and `reserved` of caps and floors, None for other reasons.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        run: which run.
        sample: id and tokens.

    Returns:
        None if the limits depend on a field that can no longer be read, or if picks were exchanged at the end: their
        order is not the order in which they were made.
    """
    options = run.options
    picks = all_rows(
        connection, "SELECT id, tokens, score FROM picks WHERE selection = ? ORDER BY rank", [run.selection]
    )
    made = [rank for rank, pick in enumerate(picks, 1) if pick["score"] is not None]
    if options.get("swap_rounds") and made:
        return None
    if options.get("partitions"):
        return _outside_the_parts(connection, run, sample, made)
    if not made or not any(options.get(name) for name in ("must_exclude", "quotas", "token_budget")):
        return []
    replayed = _limits(connection, root, run, [*picks, sample])
    if replayed is None:
        return None
    limits, rows = replayed
    found: list[dict[str, Any]] = []
    for rank, row in enumerate(rows[:-1], 1):
        barred = limits.barred(rows[-1]) if rank >= made[0] else None
        limits.add(row)
        if barred is None:
            continue
        before = found[-1] if found else None
        if before and before["last"] == rank - 1 and (before["by"], before["column"]) == (barred.by, barred.column):
            before["last"] = rank
        else:
            cap = _cap(run, barred.column, barred.label) if barred.by == "cap" else None
            found.append({"first": rank, "last": rank, **asdict(barred), "cap": cap})
    return found


def _outside_the_parts(
    connection: Connection, run: Run, sample: dict[str, Any], made: list[int]
) -> list[dict[str, Any]]:
    """Return all picks, if a sample was not picked within its part, so that the last selection did not score it."""
    scored = connection.execute(
        "SELECT score FROM remaining WHERE selection = ? AND id = ? AND score IS NOT NULL",
        [run.selection, sample["id"]],
    ).fetchone()
    if scored or not made:
        return []
    nothing = dict.fromkeys(("column", "label", "reserved", "cap"))
    return [{"first": made[0], "last": made[-1], "by": "partition", "left": len(made), "cost": 1, **nothing}]


def _limits(
    connection: Connection, root: Path, run: Run, asked: list[dict[str, Any]]
) -> tuple[Limits, list[int]] | None:
    """Return the limits of a run before its first pick, and the rows by which they know samples; None if not readable.

    Only what floors reserve of a token budget depends on the whole pool; everything else, on the samples asked for.
    """
    quotas, budget = run.options.get("quotas", ()), run.options.get("token_budget")
    columns = [quota["column"] for quota in quotas]
    ids, tokens = [one["id"] for one in asked], [one["tokens"] for one in asked]
    labels: dict[str, list[str]] = {}
    if budget is not None and any(quota.get("floors") for quota in quotas):
        pool = pool_of(connection, root, run)
        if not all(can_read(pool, column) for column in columns):
            return None
        ids, tokens = (list(field_values(pool, root, name)) for name in ("id", "tokens"))
        labels = {column: [str(value) for value in field_values(pool, root, column)] for column in columns}
    else:
        for column in columns:
            last = label_of_sample(connection, root, run, asked[-1]["id"], column)
            if last is None:
                return None
            labels[column] = [*labels_of_picks(connection, root, run, column), last]
    row_of = {id_: row for row, id_ in enumerate(ids)}
    excluded = set(run.options.get("must_exclude", ()))
    if asked[-1].get("former_id") in excluded:
        excluded.add(asked[-1]["id"])
    wanted = Wanted(
        run.k if budget is None else None,
        cost=None if budget is None else np.array(tokens, np.float64),
        budget=budget,
        quotas=[_quota(quota, labels[quota["column"]]) for quota in quotas],
        must_exclude=[row_of[id_] for id_ in excluded if id_ in row_of],
    )
    return wanted.limits(len(ids)), [row_of[one["id"]] for one in asked]


def _quota(quota: dict[str, Any], labels: list[str]) -> Quota:
    """Return a quota of the settings, with the limits of the labels that occur."""
    caps, floors = (
        {label: count for label, count in quota.get(name, {}).items() if label in labels} for name in ("caps", "floors")
    )
    return Quota(labels, caps, floors, quota["column"])


def _cap(run: Run, column: str | None, label: Any) -> int:
    return next(
        int(quota["caps"][label])
        for quota in run.options["quotas"]
        if quota["column"] == column and label in quota.get("caps", {})
    )
