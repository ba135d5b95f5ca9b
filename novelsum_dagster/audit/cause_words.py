"""The causes of a changed pick as text, made of their facts alone.

Belongs here: phrases for inputs, and how they are joined by kind of cause. Does not: the facts (`changed_inputs`,
`attribution`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from novelsum_dagster.audit.attribution import (
    ADDED,
    CODE,
    DENSITIES,
    EXTENDS,
    IDS,
    LABELS,
    NEAR,
    ORDER,
    QUALITY,
    REMOVED,
    TOKENS,
    VECTORS,
    Cause,
    MovedSample,
)
from novelsum_dagster.common.progress import counted

Facts = Mapping[str, Any]

NOTHING = "no recorded input changed"


def cause_text(cause: Cause, facts: Mapping[str, Facts], sample: MovedSample, partner: str | None = None) -> str:
    """Return why a sample entered or left.

    Args:
        cause: its cause.
        facts: of every input that differs, by code.
        sample: whether it entered, and whether it is outside of the other run's pool.
        partner: the sample that it is a near-duplicate of, if that is why it is outside.
    """
    if not cause.codes:
        return NOTHING
    others = [phrase(code, facts.get(code, {})) for code in cause.codes if code != sample.outside]
    if sample.outside is not None:
        return _outside(sample.outside, sample.entered, partner) + _besides(cause, others)
    if len(others) == 1:
        return others[0] if cause.kind != "possible" else f"possibly {others[0]}"
    if cause.kind == "attributed":
        return f"{_listed(others, 'or')} (each alone)"
    if cause.kind == "together":
        alone = "neither alone" if len(others) == 2 else "no one and no two of them alone"
        return f"{_listed(others, 'and')} together ({alone})"
    return f"possibly {_listed(others, 'or')}, alone or together"


def _outside(code: str, entered: bool, partner: str | None) -> str:
    """Return why a sample is not in the other run's pool."""
    if code == IDS:
        return "the same record under another id: since release 0.2 more of a record is read"
    if code == NEAR and partner is not None:
        return f"a near-duplicate of {partner[:8]} in the {'old' if entered else 'new'} pool"
    return "new data: not in the pool before" if entered else "removed data: no longer in the pool"


def _besides(cause: Cause, others: Sequence[str]) -> str:
    """Return what else made a sample of new data a pick."""
    if cause.kind == "attributed" or not others:
        return ""
    if cause.kind == "possible":
        return f"; perhaps together with {_listed(others, 'or')}"
    alone = "not alone" if len(others) == 1 else "not alone, nor with one of them"
    return f"; together with {_listed(others, 'and')} ({alone})"


def difference_lines(found: Any) -> list[str]:
    """Return what differs between two runs, a line each: settings, renamed sources and moved files, other inputs.

    Args:
        found: a `difference.Difference`.
    """
    lines = [f"{key}: {_value(a)} -> {_value(b)}" for key, (a, b) in found.settings.items()]
    lines += [f"source renamed: {one['from']} -> {one['to']}" for one in found.data["sources_renamed"]]
    lines += [f"file moved: {one['from']} -> {one['to']}" for one in found.data["files_moved"]]
    for one in found.inputs:
        if one.code == CODE:
            lines += [f"code of {step}: {a} -> {b}" for step, (a, b) in one.facts["steps"].items()]
        elif one.code in _PHRASES:
            lines.append(phrase(one.code, one.facts))
    return lines


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)


def phrase(code: str, facts: Facts) -> str:
    """Return an input that changed as a phrase."""
    if code in _PHRASES:
        return _PHRASES[code](facts)
    keys = list(facts.get("keys") or [code])
    inner = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    return f"changed settings ({', '.join(inner)})"


def _samples(what: str, facts: Facts) -> str:
    count = facts.get("samples")
    return f"{what} ({counted(count, 'sample')})" if count else what


def _near(facts: Facts) -> str:
    verbs = {"dropped": "now dropped", "kept": "no longer dropped"}
    parts = [f"{counted(facts[name], 'sample')} {verb}" for name, verb in verbs.items() if facts.get(name)]
    rules = f" ({', '.join(facts['keys'])})" if facts.get("keys") else ""
    return f"{' and '.join(parts)} as near-duplicates{rules}"


def _quality(facts: Facts) -> str:
    if facts.get("samples") is None:
        return f"quality values ({facts.get('field')}) that cannot be compared"
    return f"quality values changed: {counted(facts['samples'], 'sample')}"


def _labels(facts: Facts) -> str:
    parts = [
        f"{column}: {'cannot be compared' if count is None else counted(count, 'sample')}"
        for column, count in facts.get("columns", {}).items()
    ]
    return f"changed values that quotas count ({', '.join(parts)})"


def _vectors(facts: Facts) -> str:
    keys = dict(facts.get("keys", {}))
    names = keys.pop("embedding.model", None)
    revision = keys.pop("embedding.revision", None)
    if names is not None:
        first = f"changed model ({names[0]} to {names[1]})"
    elif revision is not None:
        first = "another revision of the model"
    elif keys:
        first = ""
    else:
        return "other vectors of the same model"
    rest = f"changed settings ({', '.join(keys)})" if keys else ""
    return " with ".join(part for part in (first, rest) if part)


def _extends(facts: Facts) -> str:
    old, new = facts["subset"]
    return f"the subset {new[:8]} was kept and extended" if new else f"the subset {old[:8]} is no longer extended"


_PHRASES: dict[str, Callable[[Facts], str]] = {
    ORDER: lambda facts: "the order of the samples in the pool",
    ADDED: lambda facts: _samples("data added to the pool", facts),
    REMOVED: lambda facts: _samples("data removed from the pool", facts),
    NEAR: _near,
    VECTORS: _vectors,
    DENSITIES: lambda facts: "other densities under the same settings",
    QUALITY: _quality,
    LABELS: _labels,
    TOKENS: lambda facts: _samples("changed token counts", facts),
    EXTENDS: _extends,
    CODE: lambda facts: f"changed code ({', '.join(facts.get('steps', {}))})",
}


def _listed(phrases: Sequence[str], word: str) -> str:
    """Return phrases as a list in a sentence."""
    *first, last = phrases
    return f"{', '.join(first)} {word} {last}" if first else last
