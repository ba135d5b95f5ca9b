"""The explorer's figures: the map of the pool, shares of sources, measures over runs.

Belongs here: drawing arrays with plotly. Does not: which samples (`pool_map`), the page.

Plotly interprets a small subset of HTML in texts and names, including links: all text from data is escaped. Arrays are
passed as NumPy arrays, which are sent as bytes, not as decimal text.
"""

import html
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.explore.pool_map import PoolMap
from novelsum_dagster.report.tables import shortened

if TYPE_CHECKING:
    import plotly.graph_objects as go  # type: ignore[import-untyped]

Colour = Literal["picked or not", "source"]
TIPS = 30_000
"""Up to this number of samples, all have tooltips; beyond, only picks, to keep the page fast."""
NAMED = 9
"""Sources with a colour of their own; all others share one."""
BARS = 20
"""Sources whose shares are drawn; the table has all."""
POOL, PICK, FOUND = "#9fb0c0", "#2f7fd1", "#d62728"
EDGE, QUIET = "#6b7785", "rgba(128, 138, 150, 0.25)"
"""Readable on a light and on a dark page, as the other colours are."""
# Distinguishable with any colour vision, and in print by their lightness.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#7f6bb3", "#8c6d31", "#17becf", "#b5bd00")
_OTHERS = "#a0a0a0"
_TIP_LINE, _FEW = 75, 2_000
_HEIGHT = 640


def map_figure(
    pool: PoolMap, rows: NDArray[np.int64], colour: Colour, found: int | None = None
) -> "tuple[go.Figure, list[NDArray[np.int64]]]":
    """Draw samples: the pool as small circles, picks as larger diamonds with an edge.

    Args:
        pool: the map.
        rows: int64: samples to draw.
        colour: meaning of colours.
        found: a row to mark with a ring.

    Returns:
        The figure; and for each of its traces, in order, the rows of its points.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    curves = _draw_pool(figure, pool, rows, colour) + _draw_picks(figure, pool, rows[pool.rank[rows] > 0], colour)
    if found is not None:
        ring = {"color": FOUND, "size": 20, "symbol": "circle-open", "opacity": 1.0, "line": {"width": 3}}
        curves.append(np.array([found]))
        _add(figure, pool, curves[-1], "sample looked up", ring, True)
    # A constant revision keeps the zoom after a search or a filter.
    figure.update_layout(**_layout(), uirevision="map")
    return figure, curves


def _draw_pool(figure: "go.Figure", pool: PoolMap, rows: NDArray[np.int64], colour: Colour) -> list[NDArray[np.int64]]:
    """Draw samples that were not picked; a source with only picks still has a legend entry."""
    picked = pool.rank[rows] > 0
    size = 6 if len(rows) <= _FEW else 4 if len(rows) <= TIPS else 3
    curves = []
    for name, shade, mine in _groups(pool, rows, colour):
        chosen = rows[mine & ~picked]
        count = len(rows[mine]) if colour == "source" else len(chosen)
        marker = {"color": shade, "size": size, "opacity": 0.55, "symbol": "circle"}
        if count:
            _add(figure, pool, chosen, f"{_escaped(name, 40)} ({count:,})", marker, len(rows) <= TIPS)
            curves.append(chosen)
    return curves


def _groups(pool: PoolMap, rows: NDArray[np.int64], colour: Colour) -> list[tuple[str, str, NDArray[np.bool_]]]:
    if colour == "picked or not":
        return [("pool", POOL, np.ones(len(rows), dtype=bool))]
    codes = pool.source[rows]
    groups = [(name, _COLOURS[code], codes == code) for code, name in enumerate(pool.sources[:NAMED])]
    return [*groups, (f"{len(pool.sources) - NAMED:,} other sources", _OTHERS, codes >= NAMED)]


def _draw_picks(
    figure: "go.Figure", pool: PoolMap, picks: NDArray[np.int64], colour: Colour
) -> list[NDArray[np.int64]]:
    if not len(picks):
        return []
    name = f"picked ({len(picks):,})"
    # Many large marks would hide each other.
    looks = {"size": 9 if len(picks) <= _FEW else 5, "opacity": 1.0, "symbol": "diamond"}
    if colour == "picked or not":
        _add(figure, pool, picks, name, {**looks, "color": PICK, "line": {"color": "#ffffff", "width": 0.7}}, True)
        return [picks]
    edge = {"color": EDGE, "width": 1}
    shades = np.array([_shade(code) for code in pool.source[picks]])
    _add(figure, pool, picks, name, {**looks, "color": shades, "line": edge}, True)
    # Otherwise the legend would show the first pick's colour for all.
    figure.data[-1].showlegend = False
    _add(figure, pool, picks[:0], name, {**looks, "color": "#ffffff", "line": edge}, True)
    return [picks, picks[:0]]


def _shade(code: int) -> str:
    return _COLOURS[code] if code < NAMED else _OTHERS


def _add(
    figure: "go.Figure", pool: PoolMap, rows: NDArray[np.int64], name: str, marker: dict[str, Any], tips: bool
) -> None:
    figure.add_scattergl(
        # A trace without points has no legend entry; one with a point at null coordinates has.
        x=pool.x[rows] if len(rows) else [None],
        y=pool.y[rows] if len(rows) else [None],
        mode="markers",
        name=name,
        marker=marker,
        text=_tips(pool, rows) if tips else None,
        hovertemplate="%{text}<extra></extra>" if tips else "click for the text<extra></extra>",
        # A click marks its point and does not dim the others.
        selected={"marker": {"color": FOUND, "size": 14, "opacity": 1}},
        unselected={"marker": {"opacity": marker["opacity"]}},
    )


def _tips(pool: PoolMap, rows: NDArray[np.int64]) -> list[str]:
    snippets = pool.snippets.take(pa.array(rows)).to_pylist()
    return [_tip(pool, row, text) for row, text in zip(rows.tolist(), snippets, strict=True)]


def _tip(pool: PoolMap, row: int, text: str) -> str:
    rank = int(pool.rank[row])
    head = (
        f"pick {rank:,} · " if rank else ""
    ) + f"{_escaped(pool.sources[pool.source[row]], 40)} · {pool.tokens[row]:,} tokens"
    # Broken at a space; textwrap would take a second for a large pool.
    at = text.rfind(" ", 0, _TIP_LINE) if len(text) > _TIP_LINE else len(text)
    at = at if at > 0 else _TIP_LINE
    lines = [head, html.escape(text[:at]), _escaped(text[at:].strip(), _TIP_LINE)]
    return "<br>".join(line for line in lines if line)


def _escaped(text: str, length: int) -> str:
    return html.escape(shortened(text, length))


def _layout() -> dict[str, Any]:
    small = {"size": 12}
    axis = {"showgrid": True, "gridcolor": QUIET, "zeroline": False, "showticklabels": False}
    return {
        "height": _HEIGHT,
        "margin": {"l": 30, "r": 5, "t": 5, "b": 30},
        # The page's own background and letters, light or dark.
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 13},
        "dragmode": "pan",
        "hovermode": "closest",
        # Beside the points, where it does not hide the legend.
        "modebar": {"orientation": "v", "bgcolor": "rgba(255,255,255,0)"},
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": "#1f2933"}, "align": "left"},
        # Constant mark sizes in the legend: three pixels would be too small to distinguish.
        "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        "xaxis": {**axis, "title": {"text": "first principal component", "font": small}},
        "yaxis": {**axis, "title": {"text": "second principal component", "font": small}},
    }


def shares_figure(coverage: pa.Table) -> "go.Figure":
    """Draw each source's share of the pool and of the subset, for the `BARS` most frequent in the pool.

    Args:
        coverage: source, pool_share, subset_share, most frequent first.
    """
    import plotly.graph_objects as go

    rows = list(reversed(coverage.slice(0, BARS).to_pylist()))
    figure = go.Figure()
    for name, column, shade in (("subset", "subset_share", PICK), ("pool", "pool_share", POOL)):
        shares = [row[column] or 0.0 for row in rows]
        figure.add_bar(
            x=shares,
            y=list(range(len(rows))),
            orientation="h",
            name=name,
            marker={"color": shade},
            text=[f"{share:.1%}" for share in shares],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"{name}: %{{x:.2%}}<extra></extra>",
        )
    figure.update_layout(**{**_layout(), "height": 110 + 52 * len(rows), "dragmode": False})
    figure.update_layout(legend_traceorder="reversed", bargap=0.3)
    figure.update_xaxes(title_text="share of the samples", showticklabels=True, tickformat=".0%", rangemode="tozero")
    # By position, not by name: two truncated names may be equal.
    names = [_escaped(row["source"], 40) for row in rows]
    ticks = {
        "tickvals": list(range(len(rows))),
        "ticktext": names,
        "automargin": True,
        "showgrid": False,
        "ticklabelstandoff": 8,
    }
    figure.update_yaxes(title_text="", showticklabels=True, **ticks)
    return figure


def drift_figure(measures: pa.Table, measure: str) -> "go.Figure":
    """Draw one measure of each set over runs, with intervals.

    Args:
        measures: run_id, started_at, set_name, measure, set_size, measured, low, high.
        measure: which one.
    """
    import plotly.graph_objects as go

    rows = [row for row in reversed(measures.to_pylist()) if row["measure"] == measure]
    runs = list(dict.fromkeys(row["run_id"] for row in rows))
    figure = go.Figure()
    looks = [(PICK, "diamond"), ("#e69f00", "square"), (EDGE, "circle"), ("#009e73", "cross")]
    names = sorted({row["set_name"] for row in rows}, key=lambda name: (name != "selected", name))
    for number, name in enumerate(names):
        mine = [row for row in rows if row["set_name"] == name]
        shade, symbol = looks[number % len(looks)]
        figure.add_scatter(
            x=[runs.index(row["run_id"]) for row in mine],
            y=[row["measured"] for row in mine],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row["high"] - row["measured"] for row in mine],
                "arrayminus": [row["measured"] - row["low"] for row in mine],
                "thickness": 1,
            },
            mode="lines+markers",
            line={"width": 1, "dash": "dot", "color": shade},
            marker={"symbol": symbol, "size": 9, "color": shade},
            name=_escaped(name, 40),
            text=[f"{row['run_id'][:8]}, {row['set_size']:,} samples: {row['measured']:.4f}" for row in mine],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(**{**_layout(), "height": 340, "dragmode": False})
    ticks = {"tickvals": list(range(len(runs))), "ticktext": [run[:8] for run in runs], "showticklabels": True}
    figure.update_xaxes(title_text="run, oldest first", **ticks)
    figure.update_yaxes(title_text="", showticklabels=True)
    return figure
