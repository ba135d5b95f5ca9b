"""The page of one or several studies: one self-contained HTML file, and its numbers as files beside it.

Belongs here: the page's sentences and tables, writing the files. Does not: any number (`findings`), drawing
(`figures`). The layout is in `page.html`.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from novelsum_dagster.common.files import write_bytes, write_json
from novelsum_dagster.common.progress import counted
from novelsum_dagster.report.templates import render
from novelsum_dagster.settings import OWN_REPRESENTATION
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING
from novelsum_dagster.study.figures import against_random, coefficients_chart, gains_chart
from novelsum_dagster.study.findings import (
    EVERY_CELL,
    GIVEN,
    GROUPS,
    RANDOM,
    WITHIN,
    Findings,
    Found,
    Gain,
    estimate,
    main_findings,
)
from novelsum_dagster.study.statistics import Estimate
from novelsum_dagster.study.tables import SEEN

if TYPE_CHECKING:
    import altair as alt

_TEMPLATE = Path(__file__).with_name("page.html")
_NOVELSUM = "novelsum"
_MOST_NAMED = 12
"""Most strategies named in a sentence."""
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
            sink = pa.BufferOutputStream()
            pa_csv.write_csv(pa.Table.from_pylist(records[name]), sink)
            write_bytes(sink.getvalue().to_pybytes(), path.parent / f"{name}.csv")
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
        *_of_novelsum(found),
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
    kinds = dict.fromkeys(one.kind for one in found.gains)
    for kind in kinds:
        gains = [one for one in found.gains if one.kind == kind]
        verdicts = [against_random(one) for one in gains]
        better, worse = verdicts.count("better"), verdicts.count("worse")
        always = sorted({one.strategy for one in gains})
        wins = [
            name for name in always if all(against_random(one) == "better" for one in gains if one.strategy == name)
        ]
        places = len({(one.pool, one.size) for one in gains})
        yield (
            f"On {kind} sources, strategies beat random in {better} of {counted(len(gains), 'comparison')} and lose in"
            f" {worse}; in the others the interval contains 0. "
            + (
                f"{_named(wins)} beat random"
                if len(wins) > 1
                else f"{wins[0]} beats random"
                if wins
                else "No strategy beats random"
            )
            + (f" in each of the {places} pools and sizes." if places > 1 else ".")
            + f" Of {len(gains)} intervals of 95 %, chance alone would put {0.025 * len(gains):.1f} above 0."
        )


def _closest(ranked: Sequence[Found], kind: str) -> Iterator[str]:
    measures = [one for one in ranked if one.is_measure and one.value is not None]
    if measures:
        first, last = measures[0], measures[-1]
        yield (
            f"Over all sets, of {counted(len(measures), 'measure')}, {first.label} correlates best with performance on"
            f" {kind} sources: Spearman {_in_words(first)}; {last.label} worst: {_in_words(last)}."
        )


def _of_novelsum(found: Findings) -> Iterator[str]:
    by_group = {group: _main(found, SEEN, group, _NOVELSUM) for group in GROUPS}
    known = {group: one for group, one in by_group.items() if one is not None and one.value is not None}
    if known:
        parts = [f"{_in_words(one)} {_over(group)}" for group, one in known.items()]
        ranks = [f"{_rank(found, group)} {_over(group)}" for group in known]
        yield f"NovelSum: Spearman {_listed(parts)}. Its rank among the measures: {_listed(ranks)}."


def _plain_facts(ranked: Sequence[Found]) -> Iterator[str]:
    plain = [one for one in ranked if not one.is_measure and one.value is not None]
    measures = [one for one in ranked if one.is_measure and one.value is not None]
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
        measures = [estimate(one) for one in ranked if one.is_measure and one.value is not None]
        if measures:
            above, below = sum(one.is_positive for one in measures), sum(one.is_negative for one in measures)
            parts.append(f"{_over(group)} {above} above 0 and {below} below")
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
    first = gains[0]
    by_verdict: dict[str, list[Gain]] = {"better": [], "not distinguished": [], "worse": []}
    for one in gains:
        by_verdict[against_random(one)].append(one)
    beaten = [f"{one.strategy} ({_gain_in_words(one)})" for one in by_verdict["better"]]
    parts = ["Better than random: " + _named(beaten) if beaten else "No strategy is better than random"]
    if by_verdict["not distinguished"] and beaten:
        parts.append(f"not distinguished: {_named([one.strategy for one in by_verdict['not distinguished']])}")
    if by_verdict["worse"]:
        worse = [f"{one.strategy} ({_gain_in_words(one)})" for one in by_verdict["worse"]]
        parts.append(f"worse than random: {_named(worse)}")
    return f"{first.kind.capitalize()} sources: {'; '.join(parts)}."


def _gain_in_words(one: Gain) -> str:
    interval = "" if one.low is None else f", {one.low:+.4f} to {one.high:+.4f}"
    return f"{one.value:+.4f} bits per byte{interval}"


def _in_words(one: Found) -> str:
    interval = "" if one.low is None else f" ({one.low:.2f} to {one.high:.2f})"
    return f"{one.value:.2f}{interval}"


def _over(group: str) -> str:
    return {ALL_SETS: "over all sets", SELECTING: "among selection strategies", WITHIN: "within strategies"}[group]


def _rank(found: Findings, group: str) -> str:
    measures = [one for one in main_findings(found, SEEN, group) if one.is_measure and one.value is not None]
    place = next(at for at, one in enumerate(measures, 1) if one.measure == _NOVELSUM)
    return f"{place} of {len(measures)}"


def _main(found: Findings, kind: str, group: str, measure: str) -> Found | None:
    return next((one for one in main_findings(found, kind, group) if one.measure == measure), None)


def _named(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMED:
        return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"
    return _listed(names)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


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
    return _Cell(f"{one.value:+.4f}", interval, against_random(one) != "not distinguished")


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
        tables = [_correlation_table(found, kind, ranked), _partial_table(found, kind, ranked)]
        if by_representation := _representation_table(found, kind):
            tables.append(by_representation)
        title = f"What predicts performance on {kind} sources"
        yield _Section(f"measures-{kind}", title, list(_closest(ranked, kind)), [figure], tables)


def _correlation_table(found: Findings, kind: str, ranked: Sequence[Found]) -> _Table:
    by_key = _by_key(found, kind)
    rows = []
    for one in ranked:
        cells = [
            _cell(by_key.get((one.measure, one.representation, group, method, "")))
            for group in GROUPS
            for method in ("spearman", "pearson")
        ]
        rows.append(_Row(one.label, cells, not one.is_measure))
    return _Table(
        f"Correlation with performance on {kind} sources; in italics, plain facts of the sets",
        "predictor",
        ["Spearman", "Pearson"] * len(GROUPS),
        rows,
        [(group, 2) for group in GROUPS],
    )


def _partial_table(found: Findings, kind: str, ranked: Sequence[Found]) -> _Table:
    by_key = _by_key(found, kind)
    rows = [
        _Row(
            one.label,
            [
                _cell(by_key.get((one.measure, one.representation, group, "spearman", given)))
                for group in (ALL_SETS, SELECTING)
                for given in GIVEN
            ],
            not one.is_measure,
        )
        for one in ranked
    ]
    return _Table(
        f"Spearman with performance on {kind} sources, others held fixed",
        "predictor",
        [str(given or "nothing") for given in GIVEN] * 2,
        rows,
        [(group, len(GIVEN)) for group in (ALL_SETS, SELECTING)],
    )


def _representation_table(found: Findings, kind: str) -> _Table | None:
    by_key = _by_key(found, kind)
    names = [name for name in dict.fromkeys(one.representation for one in found.correlations) if name]
    if len(names) < 2:
        return None
    labels = {one.measure: one.label for one in found.correlations if one.representation == OWN_REPRESENTATION}
    rows = [
        _Row(
            label,
            [
                _cell(by_key.get((measure, name, group, "spearman", "")))
                for group in (ALL_SETS, SELECTING)
                for name in names
            ],
        )
        for measure, label in labels.items()
    ]
    return _Table(
        f"Spearman with performance on {kind} sources, by the vectors under which sets are measured",
        "measure",
        names * 2,
        rows,
        [(group, len(names)) for group in (ALL_SETS, SELECTING)],
    )


def _by_key(found: Findings, kind: str) -> dict[tuple[str, str, str, str, str], Found]:
    return {
        (one.measure, one.representation, one.group, one.method, one.given): one
        for one in found.correlations
        if one.kind == kind and one.cell == EVERY_CELL
    }


def _cell(one: Found | None) -> _Cell:
    if one is None or one.value is None:
        return _Cell("none")
    found: Estimate = estimate(one)
    interval = "" if one.low is None else f"{one.low:.2f} to {one.high:.2f}"
    return _Cell(f"{one.value:.2f}", interval, found.is_positive or found.is_negative)


def _power_section(found: Findings) -> _Section:
    power = _Table(
        "Correlations that would be detected with a probability of 0.8 (two-sided test at 5 %)",
        "group",
        ["sets", "correlation"],
        [
            _Row(
                one.group,
                [_Cell(f"{one.sets:,}"), _Cell("none" if one.correlation is None else f"{one.correlation:.2f}")],
            )
            for one in found.power
        ],
        [],
    )
    tables = [power]
    if found.detectable:
        tables.append(
            _Table(
                f"Differences between a strategy and {RANDOM} that would be detected with a probability of 0.8",
                "pool and size",
                ["sources", "sets", "random sets", "bits per byte", "share"],
                [
                    _Row(
                        f"{one.pool}, {one.size:,}",
                        [
                            _Cell(one.kind),
                            _Cell(str(one.sets)),
                            _Cell(str(one.random_sets)),
                            _Cell("none" if one.difference is None else f"{one.difference:.4f}"),
                            _Cell("none" if one.share is None else f"{one.share:.2%}"),
                        ],
                    )
                    for one in found.detectable
                ],
                [],
            )
        )
    return _Section("power", "What could have been detected", list(_what_could_be_seen(found)), [], tables)
