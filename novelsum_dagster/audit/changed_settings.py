"""The settings of a run as its selection used them, and those in which two runs differ.

Belongs here: the values that the launchpad overrode, keys and values that differ. Does not: which of them changed a
pick (`changed_inputs`, `attribution`).
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.settings import Selection, Settings, problems

_SECTIONS = ("pool", "embedding", "novelsum", "selection")
_MEASURED = {"measured_side": "density_side", "self_distance": "self_distance"}
"""Settings of the measure that are recorded with a subset by density_side `objective`, and their names there."""
_SOURCES = "pool.sources"
_NAMED_BY = ("column", "path", "dataset")
"""Keys that name an entry of a list: a quota, a source."""


def settings_of(run: Run) -> Settings:
    """Return a run's settings, with the values that the launchpad overrode.

    Raises:
        InputError: if they are those of another version.
    """
    try:
        settings = Settings.model_validate(run.settings)
        selection = Selection.model_validate(_selection(run))
    except ValidationError as error:
        raise InputError(f"run {run.short} has settings of another version: {problems(error)}") from None
    recorded = {name: run.options[option] for option, name in _MEASURED.items() if option in run.options}
    powers = {"density_power": run.density_power, "proximity_power": run.proximity_power}
    novelsum = settings.novelsum.model_copy(update={**powers, **recorded})
    return settings.model_copy(update={"selection": selection, "novelsum": novelsum})


def _selection(run: Run) -> dict[str, Any]:
    """Return the section `selection`; the record leaves out defaults, and counts all picks."""
    given = run.settings.get("selection", {})
    known = {name: value for name, value in run.options.items() if name in Selection.model_fields}
    own = {name: value for name, value in run.options.items() if name not in {*known, *_MEASURED, EXTENDS}}
    # In an extended subset the picks include the kept samples.
    k = given.get("k", run.k) if EXTENDS in run.options else run.k
    values = {"strategy": run.strategy, "seed": run.seed, "k": None if "token_budget" in known else k, **known}
    return {"verify": given.get("verify", 0), **values, **({run.strategy: own} if own else {})}


def changed_settings(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by key as `selection.quotas.source.caps.chat`; None where a run has none."""
    mine, theirs = (_flat_settings(run) for run in (a, b))
    # That a source came or went says the list of them; its own settings are no news.
    moved = set(mine.get(_SOURCES, ())) ^ set(theirs.get(_SOURCES, ()))
    return {
        key: values
        for key, values in differing(mine, theirs).items()
        if not any(key.startswith(f"{_SOURCES}.{name}.") for name in moved)
    }


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values that differ, by key; None for a missing one."""
    keys = [*mine, *(key for key in theirs if key not in mine)]
    return {key: (mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)}


def _flat_settings(run: Run) -> dict[str, Any]:
    """Return a run's settings by key, with defaults for those that the recording release did not have."""
    try:
        settings = settings_of(run).model_dump(mode="json")
    except InputError:
        settings = {**run.settings, "selection": _selection(run)}
    return flat({name: settings.get(name, {}) for name in _SECTIONS})


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by key; entries of a list are named by their column or path, and its order is a value."""
    if isinstance(values, list | tuple) and any(isinstance(entry, dict) for entry in values):
        entries = _named(values)
        return {prefix: list(entries)} | flat(entries, prefix)
    if not isinstance(values, dict):
        return {prefix: values}
    dotted = f"{prefix}." if prefix else ""
    found: dict[str, Any] = {}
    for name, inner in values.items():
        found |= {key: value for key, value in flat(inner, f"{dotted}{name}").items() if value not in (None, [], ())}
    return found


def _named(entries: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    """Return the entries of a list by name, without the key that names them."""
    names = [
        next((str(entry[key]) for key in _NAMED_BY if entry.get(key)), str(at)) for at, entry in enumerate(entries)
    ]
    seen: Counter[str] = Counter()
    found = {}
    for name, entry in zip(names, entries, strict=True):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        found[unique] = {key: value for key, value in entry.items() if str(value) != name}
    return found
