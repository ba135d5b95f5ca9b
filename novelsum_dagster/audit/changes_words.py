"""A comparison as text: a short summary, and a page of Markdown.

Belongs here: sentences and tables about a comparison. Does not: comparing (`changes`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from novelsum_dagster.audit.comparison import Comparison, MeasureChange, Moved, PickChange, PoolChange
from novelsum_dagster.common.progress import counted
from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.report.novelsum_report import SELECTED
from novelsum_dagster.report.templates import plain

_NAMED = 3
"""The most files, sources, reasons and settings that a sentence names."""
_LONGEST = 60
"""The most characters of a name in a sentence."""
_NOTABLE = 0.01
"""A source whose share changed by more than this is reported."""


def summary(compared: Comparison) -> list[str]:
    """Return a summary of at most 15 lines; the first line is a headline."""
    if compared.before is None:
        return [_nothing_to_compare(compared.earlier_is_gone)]
    assert compared.files is not None and compared.pool is not None and compared.picks is not None
    files, pool, picks = compared.files, compared.pool, compared.picks
    lines = [
        _headline(pool, picks),
        _sentence("Files", [(name, getattr(files, name)) for name in ("added", "overwritten", "removed")]),
        *_moved("entered the pool", pool.entered),
        *_moved("left the pool", pool.left),
        *_shares(pool),
        f"Picks: {picks.entered.count:,} entered, {picks.left.count:,} left, {picks.stayed:,} stayed.",
        *_causes("Entered", picks.entered),
        *_causes("Left", picks.left),
        *_novelsum(compared),
        *_other_measures(compared),
        *_given_up(compared),
        *_settings(compared.settings),
        f"Details: novelsum diff {compared.runs['before'][:8]} {compared.runs['after'][:8]}",
    ]
    return lines


def _nothing_to_compare(earlier_is_gone: bool) -> str:
    if earlier_is_gone:
        return "There is nothing to compare with: the files of every earlier pool or subset were deleted."
    return "There is nothing to compare with: this is the first subset of this curation."


def _headline(pool: PoolChange, picks: PickChange) -> str:
    if pool.entered.count or pool.left.count:
        still = pool.size_before == pool.size_after
        size = f"still has {pool.size_after:,}" if still else f"went from {pool.size_before:,} to {pool.size_after:,}"
        grown = f"The pool {size} samples ({pool.entered.count:,} added, {pool.left.count:,} removed)"
    else:
        grown = f"The pool has the same {pool.size_after:,} samples"
    if not picks.entered.count and not picks.left.count:
        return f"{grown}, and the same {picks.after:,} are picked."
    return f"{grown}; of {picks.after:,} picks {picks.entered.count:,} are new, {picks.left.count:,} were dropped."


def _sentence(what: str, parts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a sentence that counts names and gives the first of them."""
    said = [f"{len(names):,} {verb} ({_listed(names)})" for verb, names in parts if names]
    return f"{what}: {', '.join(said) or 'none changed'}."


def _moved(verb: str, moved: Moved) -> list[str]:
    if not moved.count:
        return []
    by_reason, by_source = _counted(moved.by_reason), _counted(moved.by_source)
    return [f"{counted(moved.count, 'sample')} {verb}: {by_reason}. By source: {by_source}."]


def _causes(what: str, moved: Moved) -> list[str]:
    return [f"{what} because: {_counted(moved.by_reason, 4 * _LONGEST)}."] if moved.count else []


def _shares(pool: PoolChange) -> list[str]:
    moved = sorted(pool.sources, key=lambda one: -abs(one.share_after - one.share_before))
    shares = [
        f"{_short(one.source)} {one.share_before:.1%} to {one.share_after:.1%}"
        for one in moved[:_NAMED]
        if abs(one.share_after - one.share_before) > _NOTABLE
    ]
    return [f"Shares of the pool: {', '.join(shares)}."] if shares else []


def _novelsum(compared: Comparison) -> list[str]:
    row = compared.measure(SELECTED, "novelsum")
    if row is None:
        return []
    line = f"NovelSum of the subset: {row.before:.4f} to {row.after:.4f}"
    if row.difference is None:
        why = compared.other_yardstick or f"{row.size_before:,} and {row.size_after:,} samples"
        return [f"{line}; the two cannot be compared: {why}."]
    share = f", {row.difference / abs(row.before):+.1%}" if row.before else ""
    where = "outside of" if row.is_outside else "within"
    pools = (
        ", each against its own pool" if compared.before and compared.before.snapshot != compared.after.snapshot else ""
    )
    return [
        f"{line} ({row.difference:+.4f}{share}), {where} its earlier 95 % interval"
        f" ({row.low:.4f} to {row.high:.4f}){pools}."
    ]


def _other_measures(compared: Comparison) -> list[str]:
    others = [
        row
        for row in compared.measures
        if row.set_name == SELECTED and row.measure != "novelsum" and row.is_outside is not None
    ]
    if not others:
        return []
    outside = [f"{_label(row)} {row.before:,.4f} to {row.after:,.4f}" for row in others if row.is_outside]
    named = f" ({_listed(outside)})" if outside else ""
    return [f"Of the {len(others)} other measures {len(outside)} left their earlier intervals{named}."]


def _label(row: MeasureChange) -> str:
    return MEASURES[row.measure].label if row.measure in MEASURES else row.measure


def _given_up(compared: Comparison) -> list[str]:
    if compared.fresh is None or compared.given_up is None:
        return []
    share = f" ({compared.given_up / abs(compared.fresh):z.1%})" if compared.fresh else ""
    return [f"A fresh selection has NovelSum {compared.fresh:.4f}: extending gives up {compared.given_up:z.4f}{share}."]


def _settings(settings: Mapping[str, tuple[Any, Any]]) -> list[str]:
    if not settings:
        return []
    said = [f"{key} {_short(a)} to {_short(b)}" for key, (a, b) in settings.items()]
    return [f"Changed settings: {_listed(said, 2 * _LONGEST)}."]


def _counted(counts: Mapping[str, int], longest: int = _LONGEST) -> str:
    return _listed([f"{count:,} {name}" for name, count in counts.items()], longest)


def _listed(names: Sequence[str], longest: int = _LONGEST) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(_short(name, longest) for name in names[:_NAMED]) + more


def _short(value: object, longest: int = _LONGEST) -> str:
    """Return a value in one line; names come from data and may contain anything."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def page(compared: Comparison) -> str:
    """Return the comparison as Markdown."""
    blocks = ["# What changed", in_markdown(summary(compared))]
    if compared.files is not None and compared.pool is not None and compared.picks is not None:
        files = [(verb, name) for verb in ("added", "overwritten", "removed") for name in getattr(compared.files, verb)]
        blocks += [
            *_table("Files", ["change", "file"], files),
            *_moved_tables("Samples that entered the pool", compared.pool.entered),
            *_moved_tables("Samples that left the pool", compared.pool.left),
            *_table(
                "Sources",
                ["source", "samples before", "samples after", "share before", "share after"],
                [
                    (
                        one.source,
                        f"{one.before:,}",
                        f"{one.after:,}",
                        f"{one.share_before:.1%}",
                        f"{one.share_after:.1%}",
                    )
                    for one in compared.pool.sources
                ],
            ),
            *_moved_tables("Picks that entered", compared.picks.entered),
            *_moved_tables("Picks that left", compared.picks.left),
            *_table(
                "Measures", ["set", "measure", "samples", "before", "after", "difference"], _rows(compared.measures)
            ),
        ]
    return "\n\n".join(blocks) + "\n"


def in_markdown(lines: Iterable[str]) -> str:
    """Return lines as a Markdown list, with all markup escaped."""
    return "\n".join(f"- {plain(line)}" for line in lines)


def _moved_tables(title: str, moved: Moved) -> list[str]:
    reasons = [(reason, f"{count:,}", " ".join(moved.examples[reason])) for reason, count in moved.by_reason.items()]
    sources = [(source, f"{count:,}") for source, count in moved.by_source.items()]
    return [
        *_table(title, ["reason", "samples", "such as"], reasons),
        *_table(f"{title}, by source", ["source", "samples"], sources),
    ]


def _rows(measures: Iterable[MeasureChange]) -> list[tuple[str, ...]]:
    return [
        (
            row.set_name,
            _label(row),
            f"{row.size_before:,}"
            if row.size_before == row.size_after
            else f"{row.size_before:,} to {row.size_after:,}",
            f"{row.before:,.4f} ({row.low:,.4f} to {row.high:,.4f})",
            f"{row.after:,.4f}" + (", outside" if row.is_outside else ""),
            "not comparable" if row.difference is None else f"{row.difference:+,.4f}",
        )
        for row in measures
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [columns, ["---"] * len(columns), *([plain(cell) for cell in row] for row in rows)]
    return [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
