"""Pictures of the correlation of diversity and performance: scatter plots, coefficients with their intervals.

Belongs here: drawing sets and correlations. Does not: computing them (`correlation`), building or measuring sets.

Every strategy has its own colour and shape; the sets that no strategy chose are hollow and grey.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from novelsum_dagster.common.progress import counted
from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.report.charts import png
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING, Correlation, Method
from novelsum_dagster.study.look import BLUE, GREY, INK, RED, look

if TYPE_CHECKING:
    import altair as alt

_STAR = "M0,-1.2L0.3,-0.4L1.15,-0.38L0.48,0.15L0.72,0.98L0,0.5L-0.72,0.98L-0.48,0.15L-1.15,-0.38L-0.3,-0.4Z"
_SALTIRE = "M0,-.4L.55,-1L1,-.55L.4,0L1,.55L.55,1L0,.4L-.55,1L-1,.55L-.4,0L-1,-.55L-.55,-1Z"
_HEXAGON = "M-0.5,-0.87L0.5,-0.87L1,0L0.5,0.87L-0.5,0.87L-1,0Z"
_HOURGLASS = "M-0.9,-0.9L0.9,-0.9L0.25,0L0.9,0.9L-0.9,0.9L-0.25,0Z"
_CHOSEN = [
    ("#d55e00", _STAR), ("#0072b2", "circle"), ("#009e73", "square"), ("#cc79a7", "triangle-up"),
    ("#332288", "diamond"), ("#e69f00", "triangle-down"), ("#56b4e9", "cross"), ("#882255", _SALTIRE),
    ("#777711", _HEXAGON), ("#7a4a12", _HOURGLASS),
]  # fmt: skip
"""Fill and shape of the strategies in turn: colour-blind safe palettes (Okabe and Ito's, and Tol's)."""
_NOT_CHOSEN = {"random": (INK, "circle"), "duplicate": ("#7b8794", "square")}
"""Outline and shape."""
_DOTS: dict[Method, tuple[str, str]] = {"pearson": (BLUE, "circle"), "spearman": (RED, "diamond")}
_FILLED, _HOLLOW, _SMALLER = 175, 85, 0.45
"""Areas of filled and of hollow marks, and their scale for many sets; filled ones lose some area to a white edge."""
_WIDTH, _HEIGHT = 640, 440
_PANEL, _PANELS_A_ROW = 200, 4
_INTERVALS_WIDTH, _ROW = 300, 38
_COLUMNS = {"Pearson": 58, "Spearman": 124, "sets": 160}
"""The columns of numbers beside the intervals, and the offset of the right edge of each."""

_READING = "Above 0, the more diverse sets perform better."
_TURNED = "Lower is more diverse here, so the sign is reversed."
_INDEPENDENT = "95% intervals; they treat sets as independent, which sets of one strategy are not quite."
_NONE = "\N{EN DASH}"


def scatter_png(sets: pa.Table, correlations: Sequence[Correlation], measure: str, label: str) -> bytes:
    """Return one measure of each set against its performance.

    Args:
        sets: set, strategy (string), performance (float64) and the measure by its key (float64, null if none).
        correlations: those of the measure over all sets and among selection strategies are printed as text.
        measure: the key.
        label: of the measure.
    """
    import altair as alt

    lower = _lower_is_diverse(measure)
    title = alt.TitleParams(
        f"{label} and performance",
        subtitle=[
            *(_in_words(correlations, measure, group) for group in (ALL_SETS, SELECTING)),
            f"{_READING} {_TURNED}" if lower else _READING,
            f"In brackets, {_INDEPENDENT}",
        ],
    )
    axis = f"{label} ({'lower' if lower else 'higher'} is more diverse)"
    points = _points(sets, measure, axis, "performance")
    return png(points.properties(width=_WIDTH, height=_HEIGHT, title=title, **look()))


def scatters_png(sets: pa.Table, correlations: Sequence[Correlation], labels: Mapping[str, str]) -> bytes:
    """Return one small scatter plot per measure, in falling order of the Pearson coefficient over all sets.

    Args:
        sets: as of `scatter_png`, with all measures of `labels`.
        correlations: those over all sets head the plots.
        labels: of the measures, by key.
    """
    import altair as alt

    panels = []
    for number, measure in enumerate(_ranked(correlations, labels)):
        x_title = "lower is more diverse" if _lower_is_diverse(measure) else None
        y_title = "performance" if number % _PANELS_A_ROW == 0 else None
        heading = alt.TitleParams(
            labels[measure],
            subtitle=_heading(correlations, measure, sets.num_rows),
            fontSize=13,
            subtitlePadding=3,
            offset=6,
        )
        panel = _points(sets, measure, x_title, y_title, many=True)
        panels.append(panel.properties(width=_PANEL, height=_PANEL, title=heading))
    title = alt.TitleParams(
        f"Each measure of diversity and performance, {sets.num_rows} sets",
        subtitle=[
            "Across: the measure; up: performance. The measure with the highest Pearson coefficient comes first.",
            f"{_READING} Where lower is more diverse, the sign is reversed.",
        ],
        offset=20,
    )
    grid = alt.concat(*panels, columns=_PANELS_A_ROW, spacing=22, title=title, **look())
    return png(grid.resolve_scale(fill="shared", stroke="shared", shape="shared", size="shared"))


def correlations_png(correlations: Sequence[Correlation], labels: Mapping[str, str]) -> bytes:
    """Return every measure's Pearson and Spearman coefficients with their 95 % intervals, one row per measure.

    Args:
        correlations: those over all sets and among selection strategies are drawn.
        labels: of the measures, by key.
    """
    import altair as alt

    order = _ranked(correlations, labels)
    shown = [one for one in correlations if one.group in (ALL_SETS, SELECTING) and one.method in _DOTS]
    least = min((end for one in shown for end in (one.r, one.low) if end is not None), default=0.0)
    scale = alt.Scale(domain=[max(-1.0, min(-0.2, math.floor(5 * least) / 5)), 1], nice=False)
    panels = [
        _coefficients([one for one in shown if one.group == group], group, order, names, scale)
        for group, names in ((ALL_SETS, [labels[measure] for measure in order]), (SELECTING, None))
    ]
    undefined = (
        f" {_NONE} is not defined: too few sets, or equal values." if any(one.r is None for one in shown) else ""
    )
    title = alt.TitleParams(
        "Correlation of each measure of diversity with performance",
        subtitle=[
            f"{_READING} Where lower is more diverse, the sign is reversed.{undefined}",
            f"Lines, {_INDEPENDENT}",
        ],
        offset=20,
    )
    return png(alt.hconcat(*panels, spacing=36, title=title, **look()).resolve_scale(color="shared", shape="shared"))


def _points(
    sets: pa.Table, measure: str, x_title: str | None, y_title: str | None, *, many: bool = False
) -> "alt.Chart":
    """Draw the sets that have the measure, and a legend of all strategies."""
    import altair as alt

    strategies = list(dict.fromkeys(sets["strategy"].to_pylist()))
    looks = _looks(strategies, _SMALLER if many else 1)
    known = sets.filter(pc.and_(pc.is_finite(sets[measure]), pc.is_finite(sets["performance"])))
    rows = [
        {"measured": row[measure], **{key: row[key] for key in ("set", "strategy", "performance")}}
        # Sets that no strategy chose are drawn first, so that the others are on top.
        for row in sorted(known.to_pylist(), key=lambda row: row["strategy"].lower() not in _NOT_CHOSEN)
    ]
    legend = alt.Legend(
        title=None, orient="bottom" if many else "right", columns=5 if many else 1, symbolOpacity=1, offset=22
    )

    def of_strategy(part: int) -> dict[str, Any]:
        scale = alt.Scale(type="ordinal", domain=strategies, range=[look[part] for look in looks])
        return {"shorthand": "strategy:N", "scale": scale, "legend": legend}

    def along(name: str, title: str | None, values: list[float]) -> dict[str, Any]:
        axis = alt.Axis(
            tickCount=4 if many else 8,
            labelOverlap="greedy",
            labels=bool(values),
            ticks=bool(values),
            grid=bool(values),
            **_format(values),
        )
        return {"shorthand": f"{name}:Q", "title": title, "scale": _scale(values), "axis": axis}

    # The scale covers all sets, so that plots side by side have the same scale even if one of them lacks sets.
    heights = sets["performance"].filter(pc.is_finite(sets["performance"])).to_pylist()
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(strokeWidth=0.8 if many else 1.3, opacity=0.95)
        .encode(
            x=alt.X(**along("measured", x_title, [row["measured"] for row in rows])),
            y=alt.Y(**along("performance", y_title, heights)),
            fill=alt.Fill(**of_strategy(0)),
            stroke=alt.Stroke(**of_strategy(1)),
            shape=alt.Shape(**of_strategy(2)),
            size=alt.Size(**of_strategy(3)),
        )
    )
    return chart


def _looks(strategies: Sequence[str], smaller: float) -> list[tuple[str, str, str, float]]:
    """Return fill, outline, shape and area of each strategy; after ten, fills and shapes repeat."""
    chosen = [strategy for strategy in strategies if strategy.lower() not in _NOT_CHOSEN]
    looks = []
    for strategy in strategies:
        if strategy in chosen:
            fill, shape = _CHOSEN[chosen.index(strategy) % len(_CHOSEN)]
            looks.append((fill, "white", shape, _FILLED * smaller))
        else:
            outline, shape = _NOT_CHOSEN[strategy.lower()]
            looks.append(("transparent", outline, shape, _HOLLOW * smaller))
    return looks


def _scale(values: Sequence[float]) -> "alt.Scale":
    """Return a scale with a margin around the values, also if there are none or all are equal."""
    import altair as alt

    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False)


def _format(values: Sequence[float]) -> dict[str, Any]:
    """Return the format of numbers at an axis that would be long: 20k, 2e-5."""
    most = max(map(abs, values), default=0.0)
    if most >= 10_000:
        return {"format": "~s"}
    return {"format": "~e"} if 0 < most < 0.001 else {}


def _coefficients(
    shown: Sequence[Correlation], group: str, measures: Sequence[str], names: list[str] | None, scale: "alt.Scale"
) -> "alt.LayerChart | alt.FacetChart":
    """Draw one row per measure: dots for coefficients, lines for intervals, and numbers; `names` are at the left."""
    import altair as alt

    rows, texts = [], []
    for number, measure in enumerate(measures):
        found = {method: _one(shown, measure, group, method) for method in _DOTS}
        for method, one in found.items():
            if one and one.r is not None:
                ends = (one.r, one.r) if one.low is None or one.high is None else (one.low, one.high)
                rows.append({"row": number, "method": method.title(), "r": one.r, "low": ends[0], "high": ends[1]})
        in_numbers = [_NONE if one is None or one.r is None else _number(one.r) for one in found.values()]
        sets = str(max((one.sets for one in found.values() if one), default=0))
        texts.append({"row": number, **dict(zip(_COLUMNS, [*in_numbers, sets], strict=True))})
    y = alt.Y("row:O", title=None, axis=_names(names), scale=alt.Scale(domain=list(range(len(measures)))))
    x = alt.X("r:Q", title="correlation with performance", scale=scale, axis=alt.Axis(format=".1~f", tickCount=6))
    legend = alt.Legend(title=None, orient="bottom", symbolSize=90, symbolStrokeWidth=0, offset=14)
    methods = [method.title() for method in _DOTS]

    def of_method(part: int) -> dict[str, Any]:
        scale = alt.Scale(domain=methods, range=[dot[part] for dot in _DOTS.values()])
        return {"shorthand": "method:N", "scale": scale, "legend": legend}

    drawn = alt.Chart(alt.InlineData(values=rows)).encode(
        y=y,
        yOffset=alt.YOffset("method:N", scale=alt.Scale(domain=methods, paddingOuter=0.6)),
        color=alt.Color(**of_method(0)),
    )
    zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color=GREY, strokeWidth=1.5)
    layers = [
        zero.encode(x=alt.X("at:Q", scale=scale)),
        drawn.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        drawn.mark_point(filled=True, size=75, opacity=1).encode(x=x, shape=alt.Shape(**of_method(1))),
    ]
    for name, at in _COLUMNS.items():
        place = alt.value(_INTERVALS_WIDTH + at)
        column = alt.Chart(alt.InlineData(values=texts)).mark_text(align="right", fontSize=12, color=INK)
        head = alt.Chart(alt.InlineData(values=[{"head": name}])).mark_text(
            align="right", baseline="bottom", fontSize=12, color=GREY
        )
        layers += [column.encode(x=place, y=y, text=f"{name}:N"), head.encode(x=place, y=alt.value(-6), text="head:N")]
    heading = alt.TitleParams(group.capitalize(), fontSize=13, offset=6, frame="group")
    panel: alt.LayerChart | alt.FacetChart = alt.layer(*layers).properties(
        width=_INTERVALS_WIDTH, height=_ROW * len(measures), title=heading
    )
    return panel


def _names(names: Sequence[str] | None) -> "alt.Axis":
    """Return an axis that shows a name for each row number."""
    import altair as alt

    look: dict[str, Any] = {"grid": True, "ticks": False, "domain": False, "labelPadding": 10}
    return alt.Axis(labelExpr=f"{json.dumps(names)}[datum.value]", **look) if names else alt.Axis(labels=False, **look)


def _one(correlations: Sequence[Correlation], measure: str, group: str, method: Method) -> Correlation | None:
    key = (measure, group, method)
    return next((one for one in correlations if (one.measure, one.group, one.method) == key), None)


def _ranked(correlations: Sequence[Correlation], labels: Mapping[str, str]) -> list[str]:
    """Return the measures in falling order of the Pearson coefficient over all sets, those without one last."""

    def place(measure: str) -> float:
        one = _one(correlations, measure, ALL_SETS, "pearson")
        return math.inf if one is None or one.r is None else -one.r

    return sorted(labels, key=place)


def _heading(correlations: Sequence[Correlation], measure: str, sets: int) -> str:
    """Return the coefficients over all sets, with the number of sets if the measure lacks some."""
    found = {method: _one(correlations, measure, ALL_SETS, method) for method in _DOTS}
    measured = max((one.sets for one in found.values() if one), default=0)
    lacking = "" if measured == sets else f" ({counted(measured, 'set')})"
    if all(one is None or one.r is None for one in found.values()):
        return f"correlation not defined{lacking}"
    parts = [f"{method.title()} {_number(one.r if one else None)}" for method, one in found.items()]
    return f"{', '.join(parts)}{lacking}"


def _in_words(correlations: Sequence[Correlation], measure: str, group: str) -> str:
    """Return a line of a group's coefficients, as: All 39 sets: Pearson 0.98 (0.95 to 0.99), Spearman 0.98 ..."""
    found = [one for method in _DOTS for one in [_one(correlations, measure, group, method)] if one]
    parts = []
    for one in found:
        ends = "" if one.low is None or one.high is None else f" ({_number(one.low)} to {_number(one.high)})"
        parts.append(f"{one.method.title()} {_number(one.r)}{ends}")
    sets = counted(max((one.sets for one in found), default=0), "set")
    whose = f"All {sets}" if group == ALL_SETS else f"{group.capitalize()}, {sets}"
    return f"{whose}: {', '.join(parts) or 'no coefficient'}"


def _number(r: float | None) -> str:
    if r is None:
        return "not defined"
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(r, 2) + 0:.2f}".replace("-", "\N{MINUS SIGN}")


def _lower_is_diverse(measure: str) -> bool:
    return measure in MEASURES and not MEASURES[measure].higher_is_diverse
