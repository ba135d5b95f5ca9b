"""The page of one or several studies: one self-contained HTML file, and its numbers as files beside it.

Belongs here: the page's sentences and tables, writing the files. Does not: any number (`findings`), drawing
(`figures`). The layout is in `page.html`.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from novelsum_dagster.common.files import replacing, write_bytes, write_json
from novelsum_dagster.common.progress import counted
from novelsum_dagster.report.templates import render
from novelsum_dagster.settings import OWN_REPRESENTATION
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING
from novelsum_dagster.study.figures import coefficients_chart, gains_chart
from novelsum_dagster.study.findings import (
    EVERY_CELL,
    GIVEN,
    GROUPS,
    RANDOM,
    WITHIN,
    Findings,
    Found,
    Gain,
    main_findings,
)
from novelsum_dagster.study.tables import SEEN

if TYPE_CHECKING:
    import altair as alt

_TEMPLATE = Path(__file__).with_name("page.html")
_NOVELSUM = "novelsum"
_MOST_NAMED = 12
"""Most strategies named in a sentence."""
_OVER = {ALL_SETS: "over all sets", SELECTING: "among selection strategies", WITHIN: "within strategies"}
"""The groups of sets as a sentence names them."""
_TABLES = ("correlations", "gains", "power", "detectable")


@dataclass(frozen=True)
class _Cell:
    """A value of a table; sure if its interval does not contain 0."""

    value: str
    interval: str = ""
    is_sure: bool = False


@dataclass(frozen=True)
class _Row:
    label: str
    cells: list[_Cell]
    is_plain: bool = False


@dataclass(frozen=True)
class _Table:
    """A table; each of `heads` spans several columns."""

    title: str
    first: str
    columns: list[str]
    rows: list[_Row]
    heads: list[tuple[str, int]]


@dataclass(frozen=True)
class _Figure:
    name: str
    svg: bytes
    alternative: str
    caption: str

    @property
    def picture(self) -> str:
        """The figure as a data URL."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class _Section:
    id: str
    title: str
    sentences: list[str]
    figures: list[_Figure]
    tables: list[_Table]


def write_study_page(found: Findings, path: Path) -> None:
    """Write the page and, in the same folder, outcome.json, each table as CSV and each figure as SVG.

    Equal findings give equal bytes.

    Args:
        found: the findings.
        path: of the page; files of these names are replaced, the page last.
    """
    sections = [*_gain_sections(found), *_measure_sections(found), _power_section(found)]
    records = found.records()
    for name in _TABLES:
        if records[name]:
            with replacing(path.parent / f"{name}.csv") as temporary:
                pa_csv.write_csv(pa.Table.from_pylist(records[name]), temporary)
    write_json(records, path.parent / "outcome.json")
    figures = [figure for section in sections for figure in section.figures]
    for figure in figures:
        write_bytes(figure.svg, path.parent / f"{figure.name}.svg")
    files = ["outcome.json", *(f"{name}.csv" for name in _TABLES if records[name])]
    write_bytes(_html(found, sections, [*files, *(f"{one.name}.svg" for one in figures)]).encode(), path)


def summary(found: Findings) -> list[str]:
    """Return the findings as sentences, each made from the numbers."""
    seen = {group: main_findings(found, SEEN, group) for group in GROUPS}
    return [
        _what_was_done(found),
        *_random_overall(found),
        *_closest(seen[ALL_SETS], SEEN),
        *_of_novelsum(seen),
        *_plain_facts(seen[ALL_SETS]),
        *_how_many_hold(seen),
        *_what_could_be_seen(found),
    ]


def _html(found: Findings, sections: Sequence[_Section], files: Sequence[str]) -> str:
    names = dict.fromkeys(name for facts in found.pools.values() for name in facts)
    return render(
        _TEMPLATE,
        title="Which measures of diversity predict what a model learns",
        summary=summary(found),
        sections=sections,
        run=[_what_was_done(found), *(_cell_sentence(cell) for cell in found.cells)],
        pools=list(found.pools),
        facts=[(name, [facts.get(name) or "not set" for facts in found.pools.values()]) for name in names],
        how=_how(found),
        files=files,
    )


def _svg(chart: "alt.TopLevelMixin") -> bytes:
    buffer = io.StringIO()
    chart.save(buffer, format="svg")
    return buffer.getvalue().encode()


# Sentences.


def _what_was_done(found: Findings) -> str:
    sets = sum(cell["sets"] for cell in found.cells)
    trainings = sum(cell["sets"] * cell["training_seeds"] for cell in found.cells)
    tokens = sorted({int(facts["training_tokens"]) for facts in found.pools.values()})
    models = list(dict.fromkeys(facts["training_model"] for facts in found.pools.values()))
    return (
        f"From {counted(len(found.pools), 'pool')}, {counted(sets, 'set')} were chosen and measured, and"
        f" {counted(trainings, 'model')} trained on them ({_listed(models)}; {_listed([f'{one:,}' for one in tokens])}"
        " tokens each). Performance is the loss of a model on held-out text in bits per byte; lower is better."
    )


def _cell_sentence(cell: dict[str, Any]) -> str:
    return (
        f"{cell['pool']}: {counted(cell['sets'], 'set')} of {counted(cell['size'], 'sample')}, each trained on with"
        f" {counted(cell['training_seeds'], 'seed')}."
    )


def _random_overall(found: Findings) -> Iterator[str]:
    for kind in dict.fromkeys(one.kind for one in found.gains):
        gains = [one for one in found.gains if one.kind == kind]
        verdicts: dict[str, list[str]] = {}
        for one in gains:
            verdicts.setdefault(one.strategy, []).append(one.verdict)
        every = [verdict for of_strategy in verdicts.values() for verdict in of_strategy]
        wins = [strategy for strategy in sorted(verdicts) if set(verdicts[strategy]) == {"better"}]
        places = len({(one.pool, one.size) for one in gains})
        yield (
            f"On {kind} sources, strategies beat random in {every.count('better')} of"
            f" {counted(len(gains), 'comparison')} and lose in {every.count('worse')}; in the others the interval"
            f" contains 0. {_named(wins) if wins else 'No strategy'} {'beat' if len(wins) > 1 else 'beats'} random"
            + (f" in each of the {places} pools and sizes." if places > 1 else ".")
            + f" Of {len(gains)} intervals of 95 %, chance alone would put {0.025 * len(gains):.1f} above 0."
        )


def _known(ranked: Sequence[Found], *, is_measure: bool = True) -> list[Found]:
    """Return the coefficients of measures, or of plain facts, that are defined."""
    return [one for one in ranked if one.is_measure == is_measure and one.value is not None]


def _closest(ranked: Sequence[Found], kind: str) -> Iterator[str]:
    if measures := _known(ranked):
        first, last = measures[0], measures[-1]
        yield (
            f"Over all sets, of {counted(len(measures), 'measure')}, {first.label} correlates best with performance on"
            f" {kind} sources: Spearman {_in_words(first)}; {last.label} worst: {_in_words(last)}."
        )


def _of_novelsum(seen: dict[str, list[Found]]) -> Iterator[str]:
    parts, ranks = [], []
    for group, ranked in seen.items():
        measures = _known(ranked)
        for rank, one in enumerate(measures, 1):
            if one.measure == _NOVELSUM:
                parts.append(f"{_in_words(one)} {_OVER[group]}")
                ranks.append(f"{rank} of {len(measures)} {_OVER[group]}")
    if parts:
        yield f"NovelSum: Spearman {_listed(parts)}. Its rank among the measures: {_listed(ranks)}."


def _plain_facts(ranked: Sequence[Found]) -> Iterator[str]:
    plain, measures = _known(ranked, is_measure=False), _known(ranked)
    if not plain or not measures:
        return
    best, value = measures[0], measures[0].value or 0.0
    above = [one for one in plain if (one.value or 0.0) >= value]
    if above:
        named = _listed([f"{_small(one.label)}, {_in_words(one)}" for one in above])
        yield f"These plain facts correlate with performance at least as well as {best.label}: {named}."
    else:
        first = plain[0]
        yield (
            f"No plain fact of the sets correlates with performance as well as {best.label}; the best is"
            f" {_small(first.label)}: {_in_words(first)}."
        )


def _how_many_hold(seen: dict[str, list[Found]]) -> Iterator[str]:
    parts = []
    for group, ranked in seen.items():
        if measures := _known(ranked):
            above, below = sum(one.is_positive for one in measures), sum(one.is_negative for one in measures)
            parts.append(f"{_OVER[group]} {above} above 0 and {below} below")
    if parts:
        yield f"Measures whose whole interval is on one side of 0: {'; '.join(parts)}."


def _what_could_be_seen(found: Findings) -> Iterator[str]:
    whole = found.power[0]
    if whole.correlation is not None:
        yield (
            f"With {counted(whole.sets, 'set')}, a true correlation of {whole.correlation:.2f} would be detected with a"
            " probability of 0.8; smaller ones may be missed."
        )
    seen = [one for one in found.detectable if one.kind == SEEN and one.share is not None]
    if seen:
        shares = sorted(one.share or 0.0 for one in seen)
        span = f"{shares[0]:.2%}" if len(shares) == 1 else f"{shares[0]:.2%} to {shares[-1]:.2%}"
        yield (
            "Between a strategy and random, given how sets and models of different seeds vary, a difference of"
            f" {span} of random's loss would be detected with that probability."
        )


def _gain_sentence(gains: Sequence[Gain]) -> str:
    better = _named([_gain_in_words(one) for one in gains if one.verdict == "better"])
    neither = _named([one.strategy for one in gains if one.verdict == "not distinguished"])
    worse = _named([_gain_in_words(one) for one in gains if one.verdict == "worse"])
    parts = [f"Better than random: {better}" if better else "No strategy is better than random"]
    if neither and better:
        parts.append(f"not distinguished: {neither}")
    if worse:
        parts.append(f"worse than random: {worse}")
    return f"{gains[0].kind.capitalize()} sources: {'; '.join(parts)}."


def _gain_in_words(one: Gain) -> str:
    interval = "" if one.low is None else f", {one.low:+.4f} to {one.high:+.4f}"
    return f"{one.strategy} ({one.value:+.4f} bits per byte{interval})"


def _in_words(one: Found) -> str:
    interval = "" if one.low is None else f" ({one.low:.2f} to {one.high:.2f})"
    return f"{one.value:.2f}{interval}"


def _named(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMED:
        return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"
    return _listed(names)


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _small(label: str) -> str:
    return label[:1].lower() + label[1:]


def _how(found: Findings) -> list[str]:
    return [
        "Sets are compared only within a cell: one pool and one size. Performance of a set under a training seed is the"
        " mean over sources of the z-score, within the cell, of the negative bits per byte; of a set, the mean over"
        " seeds. Of seen sources, other samples are in the sets; of an unseen one, none. Coefficients over all cells"
        " are means of the cells' coefficients, weighted by their numbers of sets, which is the coefficient of the"
        " z-scores (of the standardised ranks) within cells.",
        "Signs are reversed if lower is more diverse, and for near-duplicates and the loss of the bigram model, so"
        " that a number above 0 means that more diversity, greater length, fewer near-duplicates or a lower bigram loss"
        " go with better models.",
        "Within strategies: measure and performance minus the mean of their strategy's sets. It shows whether a measure"
        " distinguishes sets that one strategy chose with different seeds.",
        "Intervals of coefficients are of 95 %, by a hierarchical bootstrap of 2,000 draws with a fixed seed: sets"
        " within a cell (within a strategy, for deviations), then training seeds within a set; draws are centred on the"
        " coefficient in Fisher's z. Sets of one strategy are taken as independent.",
        "Gains over random are paired by training seed; sets of each strategy and the common training seeds are"
        " resampled, m - 1 of m (Rao and Wu, 1988). A strategy that draws nothing has one set, whose choice is not"
        " resampled: its interval is that of random's sets and of training.",
        "Length is the logarithm of a set's tokens; near-duplicates are the share of samples with a cosine of at least"
        " 0.9 to another of the set. The bigram model is trained on the set, add-k smoothed, and scored on the same"
        " held-out text.",
        "No correction is made for the number of comparisons. The models are small, and trained on few tokens: what"
        " holds for them need not hold for large ones.",
    ]


# Sections.


def _gain_sections(found: Findings) -> Iterator[_Section]:
    places = list(dict.fromkeys((one.pool, one.size) for one in found.gains))
    if not places:
        yield _Section(
            "selection", "Which selection wins", ["The studies have no random sets to compare strategies with."], [], []
        )
        return
    sentences, figures, shown = [], [], []
    for number, (pool, size) in enumerate(places):
        here = [one for one in found.gains if (one.pool, one.size) == (pool, size)]
        by_kind = {kind: [one for one in here if one.kind == kind] for kind in dict.fromkeys(one.kind for one in here)}
        place = f"{pool}, {counted(size, 'sample')}"
        sentences.append(f"{place}. " + " ".join(_gain_sentence(of_kind) for of_kind in by_kind.values()))
        name = f"gains-{number + 1}"
        alternative = f"Gains over random with intervals: {place}."
        caption = f"{place}: gain over random with 95 % interval, ranked. Blue: above 0; red: below; grey: neither."
        figures.append(_Figure(name, _svg(gains_chart(here)), alternative, caption))
        shown.append(_gain_table(place, by_kind))
    yield _Section("selection", "Which selection wins", sentences, figures, shown)


def _gain_table(place: str, by_kind: dict[str, list[Gain]]) -> _Table:
    first = next(iter(by_kind.values()))
    rows = []
    for one in first:
        cells = [_Cell(f"{one.sets} x {one.training_seeds}")]
        for gains in by_kind.values():
            of_kind = next(other for other in gains if other.strategy == one.strategy)
            cells += [_Cell(f"{of_kind.loss:.4f}"), _gain_cell(of_kind), _Cell(f"{of_kind.share:+.2%}")]
        rows.append(_Row(one.strategy, cells))
    columns = ["sets x seeds"] + ["bits per byte", "gain", "share"] * len(by_kind)
    of_random = _listed([f"{gains[0].loss + gains[0].value:.4f} on {kind} sources" for kind, gains in by_kind.items()])
    title = f"{place}; random ({first[0].random_sets} sets) has a loss of {of_random}"
    return _Table(title, "strategy", columns, rows, [("", 1), *((f"{kind} sources", 3) for kind in by_kind)])


def _gain_cell(one: Gain) -> _Cell:
    interval = "" if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}"
    return _Cell(f"{one.value:+.4f}", interval, one.verdict != "not distinguished")


def _measure_sections(found: Findings) -> Iterator[_Section]:
    for kind in dict.fromkeys(one.kind for one in found.correlations):
        ranked = main_findings(found, kind, ALL_SETS)
        drawn = [one for group in GROUPS for one in main_findings(found, kind, group)]
        order = [one.label for one in ranked]
        figure = _Figure(
            f"correlations-{kind}",
            _svg(coefficients_chart(sorted(drawn, key=lambda one: order.index(one.label)))),
            f"Spearman coefficients with performance on {kind} sources, with intervals.",
            f"Spearman with performance on {kind} sources, 95 % intervals. Filled: measures of diversity; hollow: plain"
            " facts of the sets.",
        )
        tables = list(_coefficient_tables(found, kind, ranked))
        title = f"What predicts performance on {kind} sources"
        yield _Section(f"measures-{kind}", title, list(_closest(ranked, kind)), [figure], tables)


def _coefficient_tables(found: Findings, kind: str, ranked: Sequence[Found]) -> Iterator[_Table]:
    by_key: dict[tuple[str, ...], Found] = {
        (one.measure, one.representation, one.group, one.method, one.given): one
        for one in found.correlations
        if one.kind == kind and one.cell == EVERY_CELL
    }

    def table(
        title: str,
        first: str,
        shown: Iterable[Found],
        groups: Sequence[str],
        columns: Mapping[str, tuple[str, str, str | None]],
    ) -> _Table:
        """Return a row for each predictor shown; a column has its method, controls and representation, if another."""
        rows = [
            _Row(
                one.label,
                [
                    _cell(
                        by_key.get((one.measure, one.representation if under is None else under, group, method, given))
                    )
                    for group in groups
                    for method, given, under in columns.values()
                ],
                not one.is_measure,
            )
            for one in shown
        ]
        heads = [(group, len(columns)) for group in groups]
        return _Table(title, first, list(columns) * len(groups), rows, heads)

    two = (ALL_SETS, SELECTING)
    yield table(
        f"Correlation with performance on {kind} sources; in italics, plain facts of the sets",
        "predictor",
        ranked,
        GROUPS,
        {"Spearman": ("spearman", "", None), "Pearson": ("pearson", "", None)},
    )
    yield table(
        f"Spearman with performance on {kind} sources, others held fixed",
        "predictor",
        ranked,
        two,
        {given or "nothing": ("spearman", given, None) for given in GIVEN},
    )
    names = [name for name in dict.fromkeys(one.representation for one in found.correlations) if name]
    if len(names) > 1:
        own = {one.measure: one for one in found.correlations if one.representation == OWN_REPRESENTATION}
        yield table(
            f"Spearman with performance on {kind} sources, by the vectors under which sets are measured",
            "measure",
            own.values(),
            two,
            {name: ("spearman", "", name) for name in names},
        )


def _cell(one: Found | None) -> _Cell:
    if one is None or one.value is None:
        return _Cell("none")
    interval = "" if one.low is None else f"{one.low:.2f} to {one.high:.2f}"
    return _Cell(f"{one.value:.2f}", interval, one.is_positive or one.is_negative)


def _power_section(found: Findings) -> _Section:
    correlations = [
        _Row(one.group, [_Cell(f"{one.sets:,}"), _Cell(_number(one.correlation, ".2f"))]) for one in found.power
    ]
    differences = [
        _Row(
            f"{one.pool}, {one.size:,}",
            [
                _Cell(one.kind),
                _Cell(str(one.sets)),
                _Cell(str(one.random_sets)),
                _Cell(_number(one.difference, ".4f")),
                _Cell(_number(one.share, ".2%")),
            ],
        )
        for one in found.detectable
    ]
    tables = [
        _Table(
            "Correlations that would be detected with a probability of 0.8 (two-sided test at 5 %)",
            "group",
            ["sets", "correlation"],
            correlations,
            [],
        ),
        _Table(
            f"Differences between a strategy and {RANDOM} that would be detected with a probability of 0.8",
            "pool and size",
            ["sources", "sets", "random sets", "bits per byte", "share"],
            differences,
            [],
        ),
    ]
    shown = [table for table in tables if table.rows]
    return _Section("power", "What could have been detected", list(_what_could_be_seen(found)), [], shown)


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)
