"""The pictures of the simulation: which measures rank correctly, and the selections that they rank.

Belongs here: drawing the simulation's tables. Does not: computing them (`simulate`), the figures of a report.

Every share is written in its cell; colour only repeats it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from novelsum_dagster.report.charts import png
from novelsum_dagster.study.look import FAINT, GREY, INK, look

if TYPE_CHECKING:
    import altair as alt

_POOL, _SELECTED = "#c3cad1", "#0b4f8a"
_SHADES = ["#e0894a", "#f5cda6", "#ffffff"]
_COLUMN, _ROW, _TALL_ROW, _LABELS = 78, 24, 40, 230
_PANEL = 112
_POOL_STRIDE = 3
"""Only one in this number of points of the pool is drawn, as otherwise dots would merge."""
_DOT, _LARGE_DOT = 7, 26

_AXIS: dict[str, Any] = {"ticks": False, "domain": False, "labelPadding": 6}

Cell = dict[str, Any]


def ranking_png(scores: pa.Table, pairs: pa.Table, note: str) -> bytes:
    """Return a table of measures, best first, by pool and by pair: the fraction of the pairs ranked correctly.

    Args:
        scores: measure, label, pool (string), dimensions (int64, null if the row is of every pool), right, pairs
            (int64), share, lowest, highest (float64).
        pairs: measure, better, worse (string), right (bool).
        note: the last line under the title.
    """
    import altair as alt

    overall = scores.filter(pc.is_null(scores["dimensions"])).sort_by([("share", "descending")])
    labels = dict(zip(overall["measure"].to_pylist(), map(_on_two_lines, overall["label"].to_pylist()), strict=True))
    order = list(labels.values())
    by_pool = _cells_by_pool(scores.filter(pc.is_valid(scores["dimensions"])), labels)
    parts = [
        _block(_cells_overall(overall, labels), order, None),
        _block(by_pool, order, "by pool"),
        _block(_cells_by_pair(pairs, labels), order, "by pair: more diverse > less diverse"),
    ]
    title = alt.TitleParams(
        "Which measures rank simulated selections as a person would by eye",
        subtitle=[
            "Share of the comparisons that are ranked as stated (their number in brackets), and below it the worst and"
            " the best draw. Guessing reaches 50%.",
            "The darker a cell, the more are ranked wrongly; equal values count as wrong. For facility location, lower"
            " is more diverse.",
            note,
        ],
    )
    return png(alt.vconcat(*parts, spacing=14, title=title, **look(**_AXIS)))


def _on_two_lines(label: str) -> str:
    """Split a label of two words into two lines; put a single word on the second line."""
    broken = label.replace("-", "-|").replace(" ", "|", 1)
    return broken if "|" in broken else f"|{broken}"


def _cells_overall(overall: pa.Table, labels: Mapping[str, str]) -> list[Cell]:
    return [
        {
            "column": labels[row["measure"]],
            "row": f"every pool ({row['pairs']:,})",
            "share": row["share"],
            "text": f"{row['share']:.0%}|{100 * row['lowest']:.0f} to {row['highest']:.0%}",
        }
        for row in overall.to_pylist()
    ]


def _cells_by_pool(scores: pa.Table, labels: Mapping[str, str]) -> list[Cell]:
    return [
        {
            "column": labels[row["measure"]],
            "row": f"{_space(row['dimensions'])}, {row['pool']} ({row['pairs']:,})",
            "share": row["share"],
            "text": f"{row['share']:.0%}",
        }
        for row in scores.to_pylist()
    ]


def _cells_by_pair(pairs: pa.Table, labels: Mapping[str, str]) -> list[Cell]:
    judged: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for row in pairs.to_pylist():
        judged.setdefault((row["better"], row["worse"]), {}).setdefault(row["measure"], []).append(row["right"])
    first = list(dict.fromkeys(better for better, _ in judged))
    return [
        {
            "column": labels[measure],
            "row": f"{better} > {worse} ({len(right):,})",
            "share": float(np.mean(right)),
            "text": f"{np.mean(right):.0%}",
        }
        for better, worse in sorted(judged, key=lambda pair: first.index(pair[0]))
        for measure, right in judged[better, worse].items()
    ]


def _space(dimensions: int) -> str:
    return "plane" if dimensions == 2 else f"{dimensions} dimensions"


def _block(cells: list[Cell], columns: list[str], title: str | None) -> "alt.LayerChart | alt.FacetChart":
    """Draw one block of the table, rows in the order of the cells; the block without a title heads the columns."""
    import altair as alt

    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    height = _ROW if title else _TALL_ROW
    heads = alt.Axis(
        orient="top", labelExpr="split(datum.label, '|')", labelAngle=0, labelFontWeight="bold", labelPadding=20
    )
    base = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X("column:N", sort=columns, title=None, axis=None if title else heads),
        y=alt.Y("row:N", sort=rows, title=None, axis=alt.Axis(minExtent=_LABELS, maxExtent=_LABELS)),
    )
    shade = alt.Color("share:Q", legend=None, scale=alt.Scale(domain=[0, 0.5, 1], range=_SHADES, interpolate="rgb"))
    boxes = base.mark_rect(stroke=FAINT).encode(color=shade)
    text = base.mark_text(lineBreak="|", dy=0 if title else -7, lineHeight=15, fontSize=12, color=INK)
    block = alt.layer(boxes, text.encode(text="text:N"))
    block = block.properties(width=_COLUMN * len(columns), height=height * len(rows))
    if title is None:
        return block
    return block.properties(title=alt.TitleParams(title, frame="bounds", fontSize=12, color=GREY, offset=4))


def selections_png(points: pa.Table, captions: Mapping[str, str]) -> bytes:
    """Return small pictures of the pools in the plane, one pool per row, one selection per column.

    Args:
        points: pool (string), x, y (float64), selection (string, null for the pool's own points).
        captions: what each selection is, by name, in the order of the columns; lines end with a line break.
    """
    import altair as alt

    reach = 1.05 * max(float(np.abs(points[name].to_numpy()).max()) for name in ("x", "y"))
    grid = []
    for row, pool in enumerate(points["pool"].unique().to_pylist()):
        within = points.filter(pc.equal(points["pool"], pool))
        panels = [
            _panel(within, name, reach, pool if column == 0 else None, caption if row == 0 else None)
            for column, (name, caption) in enumerate(captions.items())
        ]
        grid.append(alt.hconcat(*panels, spacing=6))
    title = alt.TitleParams(
        "The pools in the plane and their selections, first draw",
        subtitle=[
            "Dark: the selected samples, the same number in each picture; a large dot is a sample that is repeated."
            f" Light: the pool, one sample in {_POOL_STRIDE}."
        ],
    )
    return png(alt.vconcat(*grid, spacing=6, title=title, **look(**_AXIS)))


def _panel(
    points: pa.Table, name: str, reach: float, pool: str | None, caption: str | None
) -> "alt.LayerChart | alt.FacetChart":
    """Draw a selection over its pool; the first panel of a row names the pool, the first of a column the selection."""
    import altair as alt

    scale = alt.Scale(domain=[-reach, reach], nice=False)
    row_title = alt.Axis(labels=False, ticks=False, grid=False, domain=False)
    x = alt.X("x:Q", scale=scale, axis=None)
    y = alt.Y("y:Q", scale=scale, axis=row_title if pool else None, title=pool)
    everything = points.filter(pc.is_null(points["selection"])).select(["x", "y"])
    shown = everything.take(pa.array(range(0, len(everything), _POOL_STRIDE)))
    chosen = points.filter(pc.equal(points["selection"], name)).group_by(["x", "y"], use_threads=False)
    dots = chosen.aggregate([("x", "count")])
    area = alt.condition("datum.x_count > 1", alt.value(_LARGE_DOT), alt.value(_DOT))
    under, over = (alt.Chart(alt.InlineData(values=table.to_pylist())) for table in (shown, dots))
    panel = alt.layer(
        under.mark_circle(size=4, color=_POOL, opacity=1).encode(x=x, y=y),
        over.mark_circle(color=_SELECTED, opacity=0.85).encode(x=x, y=y, size=area),
    ).properties(width=_PANEL, height=_PANEL)
    if caption is None:
        return panel
    heading = alt.TitleParams(
        name,
        subtitle=caption.split("\n"),
        fontSize=12,
        subtitleFontSize=10,
        anchor="middle",
        offset=4,
        subtitlePadding=3,
    )
    return panel.properties(title=heading)
