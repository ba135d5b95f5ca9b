"""The inputs of a selection in which two runs differ, as far as they can change a pick.

Belongs here: comparing pools, fields, vectors, settings and code of two runs; renamed sources and moved files. Does
not: which input changed a pick (`attribution`), sentences (`cause_words`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from novelsum_dagster.artifacts.provenance import Provenance
from novelsum_dagster.audit.attribution import (
    ADDED,
    CODE,
    DENSITIES,
    DENSITY_SETTINGS,
    EXTENDS,
    LABELS,
    NEAR,
    OF_POOL,
    ORDER,
    QUALITY,
    REMOVED,
    TOKENS,
    VECTORS,
    fields_with,
)
from novelsum_dagster.audit.changed_settings import changed_settings, differing, flat
from novelsum_dagster.audit.run_selection import RunSelection
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.diversity.density import Search
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.pool.fields import COLUMNS, field_of
from novelsum_dagster.selection.extension import EXTENDS as OPTION
from novelsum_dagster.selection.strategies import STRATEGIES

SETTINGS = "settings"
"""Code of all settings that differ, where those of a run are of another version."""
_STEPS = {
    "raw_pool": "snapshot",
    "embeddings": "vectors",
    "distinct_pool": "snapshot",
    "density": "density",
    "selected_subset": "selection",
}
"""Steps on which a subset depends, and the key of the output of each."""
_OF_MATCH = ("fitted_on", "files", "revision")
"""Parts of a model's key that differ between pools: what PCA was fitted on, whose vector each row of a file is."""
_OF_DENSITY = {ORDER, *OF_POOL, VECTORS, CODE, SETTINGS, *(f"novelsum.{name}" for name in DENSITY_SETTINGS)}
"""Inputs that change densities, or the order of their table."""
_NOT_INPUTS = ("verify",)


@dataclass(frozen=True)
class Input:
    """An input that differs.

    Attributes:
        code: as `attribution` has them: `data_added`, `selection.seed`.
        facts: `samples`, how many (None: cannot be read); `keys`, old and new values by key; and as the input has them.
    """

    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def changed_inputs(
    connection: Connection, a: RunSelection, b: RunSelection, records: tuple[Mapping[str, Provenance], ...]
) -> tuple[Input, ...]:
    """Return the inputs that differ and can change a pick.

    Args:
        connection: to the lineage, for reading.
        a, b: the selections of both runs.
        records: of their outputs, by asset.

    Raises:
        InputError: if a pool's files are missing or damaged.
    """
    found = list(_pool(a, b))
    try:
        settings = list(_settings(a, b))
        found += _fields(connection, a, b)
        found += _vectors(connection, a, b)
    except InputError:
        settings = [Input(SETTINGS, {"keys": _pairs(changed_settings(a.run, b.run))})]
    found += settings
    if a.run.options.get(OPTION) != b.run.options.get(OPTION):
        found.append(Input(EXTENDS, {"subset": [one.run.options.get(OPTION) for one in (a, b)]}))
    found += _code(a, b, *records)
    if not _OF_DENSITY & {one.code for one in found}:
        found += _densities(a, b)
    return tuple(found)


def data_facts(connection: Connection, a: RunSelection, b: RunSelection) -> dict[str, list[dict[str, Any]]]:
    """Return sources that were renamed and files that were moved: the content is the same, so no sample changed."""
    mine, theirs = (
        {
            row["file"]: row
            for row in all_rows(
                connection, "SELECT file, source, sha256 FROM source_files WHERE snapshot = ? ORDER BY file",
                [one.run.snapshot],
            )
        }
        for one in (a, b)
    )  # fmt: skip
    pairs = [(row, theirs[file]) for file, row in mine.items() if file in theirs]
    new = [row for file, row in theirs.items() if file not in mine and row["sha256"]]
    moved = []
    for file, row in mine.items():
        again = next((one for one in new if one["sha256"] == row["sha256"]), None) if file not in theirs else None
        if again is not None:
            new.remove(again)
            moved.append({"from": file, "to": again["file"]})
            pairs.append((row, again))
    sources = dict.fromkeys((one["source"], other["source"]) for one, other in pairs)
    renamed = [(old, name) for old, name in sources if old != name]
    return {"sources_renamed": [{"from": old, "to": name} for old, name in renamed], "files_moved": moved}


def _pool(a: RunSelection, b: RunSelection) -> Iterable[Input]:
    if a.run.snapshot == b.run.snapshot:
        return
    mine, theirs = set(a.ids), set(b.ids)
    if [id_ for id_ in a.ids if id_ in theirs] != [id_ for id_ in b.ids if id_ in mine]:
        yield Input(ORDER)
    new, gone = theirs - mine, mine - theirs
    kept, dropped = new & a.dropped, gone & b.dropped
    if len(new) > len(kept):
        yield Input(ADDED, {"samples": len(new) - len(kept)})
    if len(gone) > len(dropped):
        yield Input(REMOVED, {"samples": len(gone) - len(dropped)})
    if kept or dropped:
        rules = differing(
            *(flat(one.run.settings["pool"]["near_duplicates"], "pool.near_duplicates") for one in (a, b))
        )
        yield Input(NEAR, {"dropped": len(dropped), "kept": len(kept), "keys": _pairs(rules)})


def _fields(connection: Connection, a: RunSelection, b: RunSelection) -> Iterable[Input]:
    """Return the fields that the selections use and that differ for samples of both pools."""
    mine, theirs = a.selection, b.selection
    if a.run.snapshot == b.run.snapshot:
        return
    if mine.quality is not None and mine.quality == theirs.quality:
        changed = _changed_values(connection, a, b, mine.quality)
        if changed != 0:
            yield Input(QUALITY, {"field": mine.quality, "samples": changed})
    columns = dict.fromkeys(quota.column for one in (mine, theirs) for quota in one.quotas)
    counts = {column: _changed_values(connection, a, b, column) for column in columns}
    if labels := {column: count for column, count in counts.items() if count != 0}:
        yield Input(LABELS, {"columns": labels})
    counts_tokens = mine.token_budget is not None or theirs.token_budget is not None
    if counts_tokens and (changed := _changed_values(connection, a, b, "tokens")):
        yield Input(TOKENS, {"samples": changed})


def _changed_values(connection: Connection, a: RunSelection, b: RunSelection, name: str) -> int | None:
    """Return how many samples of both pools have another value of a field; None if it cannot be read."""
    common = set(a.ids) & set(b.ids)
    column = name if name in COLUMNS else "original"
    rows = connection.execute(
        f"SELECT mine.id, mine.file, mine.{column}, theirs.file, theirs.{column} FROM samples AS mine"
        " INNER JOIN samples AS theirs ON theirs.id = mine.id AND theirs.snapshot = ?"
        f" WHERE mine.snapshot = ? AND mine.{column} IS DISTINCT FROM theirs.{column}",
        [b.run.snapshot, a.run.snapshot],
    ).fetchall()
    rows = [row for row in rows if row[0] in common]
    if column == name or not rows:
        return len(rows)
    if not (a.can_read(name) and b.can_read(name)):
        return None
    mine, theirs = a.pool.schemas, b.pool.schemas
    values = (
        (field_of(bytes(one), mine[file], name), field_of(bytes(other), theirs[other_file], name))
        for _, file, one, other_file, other in rows
    )
    return sum(1 for one, other in values if one != other)


def _vectors(connection: Connection, a: RunSelection, b: RunSelection) -> Iterable[Input]:
    mine, theirs = a.model, b.model
    if a.run.vectors_folder == b.run.vectors_folder:
        pools = {
            row["vectors"]: row["snapshot"]
            for row in all_rows(
                connection, "SELECT vectors, snapshot FROM embeddings WHERE vectors IN (?, ?)",
                [a.run.vectors, b.run.vectors],
            )
        }  # fmt: skip
        if a.run.vectors != b.run.vectors and pools[a.run.vectors] == pools[b.run.vectors]:
            yield Input(VECTORS, {"keys": {}})
        return
    keys = {f"embedding.{name}": values for name, values in _pairs(differing(mine, theirs)).items()}
    by_pool = [f"embedding.{name}" for name in _OF_MATCH] if a.has_own_vectors and b.has_own_vectors else []
    by_pool.append("embedding.fitted_on")
    if set(keys) - set(by_pool) or (a.has_own_vectors and b.has_own_vectors and not _equal_vectors(a, b)):
        yield Input(VECTORS, {"keys": {key: values for key, values in keys.items() if key != "embedding.fitted_on"}})


def _equal_vectors(a: RunSelection, b: RunSelection) -> bool:
    """Return whether samples of both pools have equal vectors; True where PCA, fitted on each pool, changes them."""
    if a.is_fitted and b.is_fitted:
        return True
    common = [id_ for id_ in a.ids if id_ in b.row_of]
    mine, theirs = (one.vectors[[one.row_of[id_] for id_ in common]] for one in (a, b))
    return np.array_equal(mine, theirs)


def _settings(a: RunSelection, b: RunSelection) -> Iterable[Input]:
    """Return the settings that differ and that one of the selections uses; what counts together as one input."""
    mine, theirs = a.selection, b.selection
    used = {mine.strategy, theirs.strategy}
    seen: set[str] = set()
    for name in type(mine).model_fields:
        group = tuple(one for one in fields_with(name) if one not in STRATEGIES or one in used)
        if name in seen or name in _NOT_INPUTS or name not in group:
            continue
        seen.update(group)
        values = [{one: selection.model_dump(mode="json")[one] for one in group} for selection in (mine, theirs)]
        keys = differing(*(flat(one, "selection") for one in values))
        if keys:
            first = next(one for one in group if values[0][one] != values[1][one])
            yield Input(f"selection.{first}", {"keys": _pairs(keys)})
    if "novelselect" not in used:
        return
    names = ["density_power", "proximity_power"]
    if "objective" in (mine.density_side, theirs.density_side):
        names += ["density_side", "self_distance"]
    if a.run.density != b.run.density:
        names += _of_density(a, b)
    for name in names:
        old, new = (getattr(one.novelsum, name) for one in (a, b))
        if old != new:
            yield Input(f"novelsum.{name}", {"keys": {f"novelsum.{name}": [old, new]}})


def _of_density(a: RunSelection, b: RunSelection) -> list[str]:
    """Return the settings that change densities; those of the tuned index only if it is tried."""
    tuned = any(Search.of(one.novelsum).tries_lists(len(one.ids), len(one.ids)) for one in (a, b))
    return [name for name in DENSITY_SETTINGS if tuned or name not in ("density_index", "min_recall")]


def _densities(a: RunSelection, b: RunSelection) -> Iterable[Input]:
    """Return the densities if they differ, though everything that they depend on is equal."""
    if a.run.density == b.run.density:
        return
    try:
        if np.array_equal(a.squared, b.squared):
            return
    except InputError:
        pass
    yield Input(DENSITIES)


def _code(
    a: RunSelection, b: RunSelection, mine: Mapping[str, Provenance], theirs: Mapping[str, Provenance]
) -> Iterable[Input]:
    steps = {
        asset: [mine[asset].code_version, theirs[asset].code_version]
        for asset, key in _STEPS.items()
        if asset in mine
        and asset in theirs
        and mine[asset].code_version != theirs[asset].code_version
        and getattr(a.run, key) != getattr(b.run, key)
    }
    if steps:
        yield Input(CODE, {"steps": steps})


def _pairs(values: Mapping[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
    return {key: list(pair) for key, pair in values.items()}
