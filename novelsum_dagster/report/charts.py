"""The figures of a report, readable in print and without colour.

Belongs here: drawing tables and arrays as altair charts, and a chart as PNG. Does not: computing (`tables`), the page.

The pool is light and filled, the subset dark; each is labelled beside its marks or recognisable by their shape.
"""

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from novelsum_dagster.report.tables import QUANTITIES, SNIPPET, shortened

if TYPE_CHECKING:
    import altair as alt

MAX_POOL_POINTS = 20_000
MAX_PICKS = 10_000
MAX_SOURCES = 20
_WIDTH = 660
_MAX_BINS = 50
_TOP = 0.999
"""Quantile of the pool's novelty at which the histogram ends; higher values are counted in the last bin."""
_POOL, _SUBSET, _INK, _FAINT = "#aeb8c2", "#0b4f8a", "#1f2933", "#e4e7eb"
_FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
_POINTS_BYTES = 5_000_000
"""Bytes of the map's points in the page, so that the whole page stays below 8 MB."""
_MAP_TIPS = {
    "source": ("source", "source"),
    "rank": ("pick", "picked"),
    "id": ("id", "id"),
    "snippet": ("snippet", "text"),
}
"""Columns in the tooltip of a sample: field and title."""
_LENGTH_KEYS = {"low": "p5", "lower": "p25", "median": "median", "upper": "p75", "high": "p95"}
_LENGTH_TIPS = {"low": "5% have at most", "lower": "25%", "median": "half", "upper": "75%", "high": "95%"}


def png(chart: "alt.TopLevelMixin", scale_factor: float = 1.5) -> bytes:
    """Return a chart as PNG, `scale_factor` pixels for each of its own; equal bytes for equal charts."""
    buffer = io.BytesIO()
    chart.save(buffer, format="png", scale_factor=scale_factor)
    return buffer.getvalue()


def novelty_histogram(pool: NDArray[np.float64], selected: NDArray[np.float64]) -> "alt.TopLevelMixin":
    """Draw how novelty is distributed in the pool and among the selected samples.

    Args:
        pool: float64, (n,).
        selected: float64, (k,), empty if nothing is selected yet.
    """
    import altair as alt

    rows, top = _bins(pool, selected)
    sets = [f"pool ({len(pool):,})", *([f"subset ({len(selected):,})"] if len(selected) else [])]
    legend = alt.Legend(title=None, orient="top", symbolType="square", symbolStrokeWidth=0)
    colour = alt.Color("set:N", scale=alt.Scale(domain=sets, range=[_POOL, _SUBSET][: len(sets)]), legend=legend)
    layers = _columns(rows, top, sets, colour)
    medians = [("pool", float(np.median(pool)), _INK, [5, 3], 1.16 * top)]
    if len(selected):
        layers.append(_outline(rows, sets[1], colour))
        medians.append(("subset", float(np.median(selected)), _SUBSET, [1, 0], 1.06 * top))
    middle = (rows[0]["low"] + rows[-1]["high"]) / 2
    for name, value, ink, dash, height in medians:
        layers += _marked(f"{name} median {value:.3g}", value, height, ink, dash, value < middle)
    return _styled(alt.layer(*layers), "Histogram of novelty in the pool and in the subset", 260)


def similarity_histogram(nearest: NDArray[np.float64], similarity: float) -> "alt.TopLevelMixin":
    """Draw the histogram of each sample's cosine to its nearest neighbour, with the threshold of near-duplicates.

    Args:
        nearest: float64, (n,): cosine of each sample to its nearest neighbour.
        similarity: threshold of near-duplicates.
    """
    import altair as alt

    low = min(similarity, float(np.quantile(nearest, 1 - _TOP))) if len(nearest) else similarity
    low = np.floor(20 * min(low, 0.95)) / 20
    edges = np.linspace(low, 1, int(np.clip(2 * np.sqrt(len(nearest)), 8, _MAX_BINS)) + 1)
    counts = np.histogram(np.clip(nearest, low, 1), edges)[0]
    shares = counts / max(1, len(nearest))
    rows = [
        {
            "low": round(float(start), 5),
            "high": round(float(end), 5),
            "share": round(float(share), 7),
            "count": int(count),
        }
        for start, end, share, count in zip(edges[:-1], edges[1:], shares, counts, strict=True)
    ]
    top = max(float(shares.max(initial=0)), 1e-9)
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(binSpacing=0, color=_POOL)
        .encode(
            x=_binned("cosine of a sample to the one nearest to it", alt.Axis(tickCount=10, format=".2f")),
            x2="high:Q",
            y=_shares("share", top * 1.15),
            tooltip=[
                alt.Tooltip("low:Q", title="cosine from", format=".3f"),
                alt.Tooltip("high:Q", title="to", format=".3f"),
                alt.Tooltip("count:Q", title="samples", format=","),
            ],
        )
    )
    over = similarity < (low + 1) / 2
    line = _marked(f"near-duplicates from {similarity:g}", similarity, 1.08 * top, _INK, [5, 3], over)
    return _styled(alt.layer(bars, *line), "Histogram of the cosine of each sample to the one nearest to it", 220)


def _binned(title: str, axis: "alt.Axis") -> "alt.X":
    """Return the x axis of columns from `low` to `high`."""
    import altair as alt

    return alt.X("low:Q", title=title, bin="binned", scale=alt.Scale(zero=False, nice=False), axis=axis)


def _shares(field: str, end: float) -> "alt.Y":
    """Return the y axis of shares of the samples, from 0 to `end`."""
    import altair as alt

    return alt.Y(
        f"{field}:Q",
        title="share of the samples",
        scale=alt.Scale(domain=[0, end], nice=False),
        axis=alt.Axis(format="%", tickCount=5),
    )


def _bins(pool: NDArray[np.float64], selected: NDArray[np.float64]) -> tuple[list[dict[str, float]], float]:
    low, high = float(pool.min()), float(np.quantile(pool, _TOP))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    # With few samples, many bins would look like noise.
    bins = int(np.clip(2 * np.sqrt(len(selected) or len(pool)), 8, _MAX_BINS))
    edges = np.linspace(low, high, bins + 1)
    shares = []
    for values in (pool, selected):
        counts = np.histogram(np.clip(values, low, high), edges)[0]
        shares.append(counts / max(1, len(values)))
    columns = {"low": edges[:-1], "high": edges[1:], "pool": shares[0], "subset": shares[1]}
    rounded = {name: [float(f"{value:.5g}") for value in column] for name, column in columns.items()}
    rows = [dict(zip(rounded, row, strict=True)) for row in zip(*rounded.values(), strict=True)]
    return rows, float(np.max(shares))


def _columns(rows: list[dict[str, float]], top: float, sets: list[str], colour: "alt.Color") -> "list[alt.Chart]":
    """Draw the pool's shares as columns, with invisible full-height columns so that tooltips work on low ones."""
    import altair as alt

    base = alt.Chart(alt.InlineData(values=[{**row, "set": sets[0], "top": top} for row in rows]))
    x, y = _binned("novelty of a sample within the pool", alt.Axis(tickCount=10)), _shares("pool", top * 1.22)
    tips = [
        alt.Tooltip("low:Q", title="novelty from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        *(alt.Tooltip(f"{name}:Q", title=f"of the {name}", format=".2%") for name in ("pool", "subset")[: len(sets)]),
    ]
    seen = base.mark_bar(binSpacing=0).encode(x=x, x2="high:Q", y=y, color=colour)
    unseen = base.mark_bar(binSpacing=0, opacity=0).encode(x=x, x2="high:Q", y="top:Q", tooltip=tips)
    return [seen, unseen]


def _outline(rows: list[dict[str, float]], name: str, colour: "alt.Color") -> "alt.Chart":
    """Draw the subset's shares as a step line that starts and ends at zero."""
    import altair as alt

    steps = [{"at": rows[0]["low"], "share": 0.0}, *({"at": row["low"], "share": row["subset"]} for row in rows)]
    steps += [{"at": rows[-1]["high"], "share": rows[-1]["subset"]}, {"at": rows[-1]["high"], "share": 0.0}]
    numbered = [{"order": order, "set": name, **step} for order, step in enumerate(steps)]
    line = alt.Chart(alt.InlineData(values=numbered)).mark_line(
        interpolate="step-after", strokeWidth=2, strokeJoin="miter"
    )
    drawn: alt.Chart = line.encode(x="at:Q", y="share:Q", order="order:Q", color=colour)
    return drawn


def _marked(
    label: str, value: float, height: float, ink: str, dash: list[int], to_the_right: bool
) -> "list[alt.Chart]":
    """Draw a vertical line at `value` with its label at the top."""
    import altair as alt

    base = alt.Chart(alt.InlineData(values=[{"at": value, "foot": 0, "height": height, "label": label}]))
    rule = base.mark_rule(color=ink, strokeDash=dash, strokeWidth=1.5).encode(x="at:Q", y="foot:Q", y2="height:Q")
    text: dict[str, Any] = {"align": "left", "dx": 5} if to_the_right else {"align": "right", "dx": -5}
    text |= {"color": ink, "baseline": "middle", "fontSize": 12}
    # The outline keeps the letters readable across the other line.
    edge = base.mark_text(**text, stroke="white", strokeWidth=5)
    labels = [mark.encode(x="at:Q", y="height:Q", text="label:N") for mark in (edge, base.mark_text(**text))]
    return [rule, *labels]


def pool_map(points: pa.Table, explained: tuple[float, float]) -> "alt.TopLevelMixin":
    """Draw the pool and the picks on two axes; of samples not picked at most `MAX_POOL_POINTS`, drawn with a seed.

    Args:
        points: a row a sample: x, y (float64) and rank (int64, null where not picked); with id, source and snippet
            (string), pointing at a sample shows them.
        explained: the axes' shares of the pool's variance.
    """
    import altair as alt

    shown = points.take(pa.array(_drawn(points["rank"].is_valid().to_numpy())))
    others = points["rank"].null_count
    names = [f"picked ({len(points) - others:,})", f"in the pool, not picked ({others:,})"]
    size = 9 + 27 * max(0.0, 1 - len(shown) / 5000)  # Few points may be large.
    legend = alt.Legend(
        title=None,
        orient="top",
        labelExpr=f"datum.label == 'picked' ? '{names[0]}' : '{names[1]}'",
        symbolOpacity=1,
        symbolSize=60,
    )

    def by_set(range_: list[str]) -> dict[str, Any]:
        return {"scale": alt.Scale(domain=["picked", "pool"], range=range_), "legend": legend}

    chart = (
        alt.Chart(alt.InlineData(values=_csv(shown), format=_format(shown)))
        .transform_calculate(set="datum.rank ? 'picked' : 'pool'", pick="datum.rank ? 'as number ' + datum.rank : 'no'")
        .mark_point(filled=True, stroke="white", strokeWidth=0.4, opacity=0.9)
        .encode(
            x=alt.X("x:Q", **_unmarked("first", explained[0])),
            y=alt.Y("y:Q", **_unmarked("second", explained[1])),
            shape=alt.Shape("set:N", **by_set(["triangle-up", "circle"])),
            color=alt.Color("set:N", **by_set([_SUBSET, _POOL])),
            size=alt.when(alt.datum.set == "picked").then(alt.value(1.7 * size + 20)).otherwise(alt.value(size)),
            tooltip=[
                alt.Tooltip(f"{field}:N", title=title)
                for name, (field, title) in _MAP_TIPS.items()
                if name in shown.column_names
            ],
        )
    )
    return _styled(chart, "Map of the pool and the picked samples on two principal components", 440)


def _unmarked(which: str, share: float) -> dict[str, Any]:
    """Return an axis without numbers, which would be meaningless to a reader."""
    import altair as alt

    return {
        "title": f"{which} principal component ({share:.0%} of the variance)",
        "axis": alt.Axis(labels=False, ticks=False, grid=False, domainColor=_FAINT),
        "scale": alt.Scale(zero=False, nice=False, padding=8),
    }


def _drawn(picked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rows to draw, int64, picks last so that they lie on top."""
    generator = np.random.default_rng(0)
    drawn = []
    for rows, most in ((np.flatnonzero(~picked), MAX_POOL_POINTS), (np.flatnonzero(picked), MAX_PICKS)):
        drawn.append(np.sort(generator.permutation(rows)[:most]))
    return np.concatenate(drawn)


def _csv(points: pa.Table) -> str:
    """Return the points as CSV with the longest snippets that keep the page small.

    CSV, because altair would validate each of 20,000 objects.
    """
    for length in (SNIPPET, 120, 80, 50, 30, 15):
        sink = pa.BufferOutputStream()
        pa_csv.write_csv(_shortened(points, length), sink)
        text = str(sink.getvalue().to_pybytes(), "utf-8")
        # Size after escaping: < > and & take six bytes each, a quote two.
        if len(text.encode()) + 5 * sum(map(text.count, "<>&")) + text.count('"') < _POINTS_BYTES:
            break
    return text


def _shortened(points: pa.Table, length: int) -> pa.Table:
    for name, most in (("source", min(40, length // 2)), ("snippet", length)):
        if name in points.column_names:
            texts = [shortened(text, most) for text in points[name].to_pylist()]
            points = points.set_column(points.column_names.index(name), name, pa.array(texts, pa.string()))
    return points


def _format(points: pa.Table) -> "alt.CsvDataFormat":
    import altair as alt

    # Explicit types, because an id such as 007 would be parsed as a number.
    kinds = {name: "number" if name in ("x", "y", "rank") else "string" for name in points.column_names}
    return alt.CsvDataFormat(type="csv", parse=kinds)


def coverage_bars(coverage: pa.Table) -> "alt.TopLevelMixin":
    """Draw each source's share of the pool and of the subset; sources beyond `MAX_SOURCES` together.

    Args:
        coverage: source, pool, pool_share, selected, selected_share, as `tables.coverage` returns it.
    """
    import altair as alt

    rows = _gathered(coverage)
    bars = [
        {
            "row": number,
            "source": shortened(row["source"], 60),
            "set": name,
            "share": round(row[share], 5),
            "samples": row[count],
            "label": f"{row[share]:.1%} {name}",
        }
        for number, row in enumerate(rows)
        for name, count, share in (("pool", "pool", "pool_share"), ("subset", "selected", "selected_share"))
    ]
    base = alt.Chart(alt.InlineData(values=bars)).encode(
        # By number, because two long names may start the same.
        y=alt.Y("row:O", title=None, axis=_names([shortened(row["source"], 22) for row in rows])),
        yOffset=alt.YOffset("set:N", sort=["pool", "subset"]),
        x=alt.X(
            "share:Q",
            title="share of the samples",
            axis=alt.Axis(format="%", tickCount=5),
            scale=alt.Scale(domainMin=0, domainMax=_roomy(max(bar["share"] for bar in bars)), nice=False),
        ),
    )
    tips = ["source:N", "set:N", alt.Tooltip("samples:Q", format=","), alt.Tooltip("share:Q", format=".2%")]
    bar = base.mark_bar().encode(color=_of_set(), tooltip=tips)
    text = base.mark_text(align="left", dx=5, color=_INK, fontSize=12).encode(text="label:N")
    return _styled(alt.layer(bar, text), "Bars: each source's share of the pool and of the subset", 46 * len(rows))


def _gathered(coverage: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of the first `MAX_SOURCES`, and one for all others."""
    rows: list[dict[str, Any]] = coverage.slice(0, MAX_SOURCES).to_pylist()
    rest = coverage.slice(MAX_SOURCES)
    if len(rest):
        total = {name: pc.sum(rest[name]).as_py() for name in coverage.column_names[1:]}
        rows.append({"source": f"{len(rest):,} other sources", **total})
    return rows


def length_ranges(lengths: pa.Table) -> "alt.TopLevelMixin":
    """Draw the length distribution of the pool and of the subset: middle 90 %, middle half and median.

    Args:
        lengths: quantity, statistic, pool, subset, as `tables.lengths` returns it.
    """
    import altair as alt

    rows = _length_rows(lengths)
    most = max(row["high_at"] for row in rows)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("row:O", title=None, axis=_names(list(QUANTITIES))),
        yOffset=alt.YOffset("set:N", sort=["pool", "subset"]),
        tooltip=[
            "quantity:N",
            "set:N",
            *(alt.Tooltip(f"{key}:Q", title=title, format=",.0f") for key, title in _LENGTH_TIPS.items()),
        ],
    )
    scale = alt.Scale(type="log", domainMin=1, domainMax=_roomy(most, log=True), nice=False)
    axis = alt.Axis(format=",d", values=[10**power for power in range(9)], labelBound=True)
    title = "count in a sample (each step is ten times as many)"

    def across(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=scale, axis=axis, title=title)

    whiskers = base.mark_rule(strokeWidth=2).encode(x=across("low_at"), x2="high_at:Q", color=_of_set())
    boxes = base.mark_bar(height={"band": 0.72}).encode(x=across("lower_at"), x2="upper_at:Q", color=_of_set())
    medians = base.mark_point(filled=True, size=70, color="white", stroke=_INK, strokeWidth=1.5, opacity=1)
    text = base.mark_text(align="left", dx=10, color=_INK, fontSize=12).encode(x=across("high_at"), text="label:N")
    description = "Ranges of tokens, turns and characters in the pool and in the subset"
    return _styled(
        alt.layer(whiskers, boxes, medians.encode(x=across("median_at")), text), description, 66 * len(QUANTITIES)
    )


def _length_rows(lengths: pa.Table) -> list[dict[str, Any]]:
    found = {(row["quantity"], row["statistic"]): row for row in lengths.to_pylist()}
    rows = []
    for number, quantity in enumerate(QUANTITIES):
        for name in ("pool", "subset"):
            values = {key: found[quantity, statistic][name] for key, statistic in _LENGTH_KEYS.items()}
            # The scale is logarithmic and has no zero; the tooltip shows the clipped values.
            drawn = {f"{key}_at": max(1.0, value) for key, value in values.items()}
            label = f"{name} {values['median']:,.0f}"
            rows.append({"row": number, "quantity": quantity, "set": name, "label": label, **values, **drawn})
    return rows


def _roomy(most: float, *, log: bool = False) -> "alt.ExprRef":
    """Return the end of an x axis from 0 (from 1 if `log`) that leaves room for a label, however narrow the chart."""
    import altair as alt

    stretch = "width / max(80, width - 95)"
    return alt.ExprRef(expr=f"pow({max(most, 2)}, {stretch})" if log else f"{most} * {stretch}")


def _names(names: list[str]) -> "alt.Axis":
    """Return an axis that shows a name for each row number."""
    import altair as alt

    return alt.Axis(
        labelExpr=f"{json.dumps(names)}[datum.value]", labelLimit=150, ticks=False, domain=False, labelPadding=8
    )


def _of_set() -> "alt.Color":
    import altair as alt

    return alt.Color("set:N", scale=alt.Scale(domain=["pool", "subset"], range=[_POOL, _SUBSET]), legend=None)


def _styled(chart: Any, description: str, height: int) -> "alt.TopLevelMixin":
    styled: alt.TopLevelMixin = (
        chart.properties(width=_WIDTH, height=height, description=description, background="white")
        .configure(font=_FONT, padding={"left": 4, "top": 4, "right": 16, "bottom": 4})
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_INK, titleColor=_INK, labelFontSize=12, titleFontSize=12, titleFontWeight="normal",
            gridColor=_FAINT, domainColor="#9aa5b1", tickColor="#9aa5b1", titlePadding=8,
        )
        .configure_legend(labelFontSize=12, labelColor=_INK, labelLimit=260, padding=0, offset=8)
    )  # fmt: skip
    return styled
