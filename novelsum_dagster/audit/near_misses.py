"""The samples that came nearest to being picked, by their exact scores after the last pick.

Belongs here: finding them without scoring the whole pool. Does not: scores (`run_scores`), why one was left out
(`explain`).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.audit.run_fields import can_read, full_labels, pool_of
from novelsum_dagster.audit.run_scores import RunScores, Unpicked
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import COLUMNS, field_values, positive_numbers

COUNT = 100
"""Number of samples returned."""
_MOST_PAIRS = 2**28
"""Distances that are computed at most: a minute of two processors."""
_FIRST_BATCH = 512


def near_misses(connection: Connection, root: Path, run: Run, count: int = COUNT) -> pa.Table | None:
    """Return the left-out samples with the highest scores after the last pick, in order of score.

    Columns: place (from 1), id, source, tokens, turns, score, density_factor, novelty, barred_by (what ruled it out at
    the last pick, null for nothing) and reason. Samples that `must_exclude`, a reached cap or a partition rules out are
    not among them. The scores are exact, and so is the order; equal scores are in pool order.

    Args:
        connection: to the lineage, for reading, with the model selection_audit.
        root: the storage folder.
        run: which run.
        count: of samples, default 100.

    Returns:
        None if the run has no scores to compare: another strategy, partitions, exchanges at the end, fields of an
        earlier pool that can no longer be read, or too many samples that may be among the first.
    """
    options = run.options
    scores = RunScores.of(connection, root, run)
    if scores is None or options.get("partitions") is not None:
        return None
    columns = {quota["column"] for quota in options.get("quotas", ()) if quota.get("caps")}
    pool = pool_of(connection, root, run)
    if not all(can_read(pool, name) for name in (*columns, *([options["quality"]] if options.get("quality") else []))):
        return None
    full = full_labels(connection, root, run)
    others = Unpicked.of(connection, run, {name: labels for name, labels in full.items() if name in COLUMNS})
    ids: list[str] = pool.samples(root, ["id"])["id"].to_pylist()
    row_of = {id_: row for row, id_ in enumerate(ids)}
    rows = np.array([row_of[id_] for id_ in others.ids], np.int64)
    is_open = np.ones(len(rows), np.bool_)
    for name, labels in full.items():
        if name not in COLUMNS and labels:
            values = np.array([str(value) for value in field_values(pool, root, name)])
            is_open &= ~np.isin(values[rows], labels)
    quality = np.ones(len(rows))
    if options.get("quality"):
        quality = np.array(positive_numbers(pool, root, options["quality"]))[rows]
    found = _highest(scores, others, load_vectors(root / run.vectors_folder, ids), rows, quality, is_open, count)
    return None if found is None else _table(connection, run, [(others.ids[at], score) for at, score in found])


def _highest(
    scores: RunScores,
    others: Unpicked,
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    quality: NDArray[np.float64],
    is_open: NDArray[np.bool_],
    count: int,
) -> list[tuple[int, float]] | None:
    """Return places in `others` and exact scores of the `count` highest, best first; None if that takes too long.

    In order of their bounds, until no bound reaches the lowest of the best.
    """
    bound = scores.bounds_at_end(others.score / quality, others.after_picks, others.factors) * quality
    order = np.argsort(-np.where(is_open, bound, -np.inf), kind="stable")[: int(is_open.sum())]
    exact, start, size = np.empty(0), 0, max(_FIRST_BATCH, count)
    while start < len(order):
        if len(exact) >= count and bound[order[start]] < np.partition(exact, -count)[-count]:
            break
        if (start + size) * len(scores.picks) > _MOST_PAIRS:
            return None
        batch = order[start : start + size]
        exact = np.append(exact, scores.at_end(vectors[rows[batch]], others.factors[batch]) * quality[batch])
        start, size = start + len(batch), 2 * size
    best = np.lexsort((rows[order[: len(exact)]], -exact))[:count]
    return [(int(order[at]), float(exact[at])) for at in best]


def _table(connection: Connection, run: Run, found: list[tuple[str, float]]) -> pa.Table:
    known = all_rows(
        connection,
        "SELECT id, source, tokens, turns, density_factor, novelty, barred_by, reason FROM selection_audit"
        " WHERE run_id = ? AND list_contains(?::VARCHAR[], id)",
        [run.run_id, [id_ for id_, _ in found]],
    )
    row_of = {row["id"]: row for row in known}
    fields = [
        ("place", pa.int64()), ("id", pa.string()), ("source", pa.string()), ("tokens", pa.int64()),
        ("turns", pa.int64()), ("score", pa.float64()), ("density_factor", pa.float64()), ("novelty", pa.float64()),
        ("barred_by", pa.string()), ("reason", pa.string()),
    ]  # fmt: skip
    rows = [{"place": place, **row_of[id_], "score": score} for place, (id_, score) in enumerate(found, 1)]
    return pa.Table.from_pylist(rows, pa.schema(fields))
