"""The figures of a study's page: coefficients and gains with their intervals.

Belongs here: drawing findings. Does not: computing them (`findings`), the pictures of a single outcome (`scatter`).

Measures of diversity are filled, plain facts hollow; a gain whose interval contains 0 is grey. Axis labels name all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from novelsum_dagster.study.findings import GROUPS, Found, Gain

if TYPE_CHECKING:
    import altair as alt

_INK, _FAINT = "#1f2933", "#e4e7eb"
_TONES = {
    "measure": "#0072b2",
    "fact": "#ffffff",
    "better": "#0072b2",
    "not distinguished": "#9aa5b1",
    "worse": "#d55e00",
}
"""Fill of a mark by the kind of predictor, or by the verdict on a gain."""
_FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
_ROW, _PANEL, _GAINS = 20, 175, 250
_LABELS = 250
_LOOK: dict[str, Any] = {
    "background": "white",
    "config": {
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": _INK, "labelFontSize": 12, "labelLimit": _LABELS, "titleColor": _INK, "titleFontSize": 12,
            "gridColor": _FAINT, "domain": False, "tickColor": _FAINT,
        },
        "title": {"color": _INK, "fontSize": 13, "anchor": "start", "frame": "group"},
    },
}  # fmt: skip


def coefficients_chart(found: Sequence[Found]) -> "alt.TopLevelMixin":
    """Draw coefficients with performance: one panel per group of sets, one row per predictor, in the order given.

    Args:
        found: of one kind and method, for every group.
    """
    import altair as alt

    order = list(dict.fromkeys(one.label for one in found))
    scale = alt.Scale(domain=[-1, 1])
    panels: list[alt.LayerChart | alt.FacetChart] = []
    for group in GROUPS:
        rows = [_row(one.label, one, "measure" if one.is_measure else "fact") for one in found if one.group == group]
        panel = _intervals(rows, order, "correlation", scale, names=not panels)
        panels.append(panel.properties(width=_PANEL, title=group))
    return alt.hconcat(*panels, spacing=18, **_LOOK)


def gains_chart(gains: Sequence[Gain]) -> "alt.TopLevelMixin":
    """Draw the gains over random of the strategies of one pool and size, one panel per kind of sources.

    Args:
        gains: in the order of the rows.
    """
    import altair as alt

    order = list(dict.fromkeys(one.strategy for one in gains))
    panels: list[alt.LayerChart | alt.FacetChart] = []
    for kind in dict.fromkeys(one.kind for one in gains):
        rows = [_row(one.strategy, one, one.verdict) for one in gains if one.kind == kind]
        panel = _intervals(rows, order, "gain over random, bits per byte", alt.Scale(zero=True), names=not panels)
        panels.append(panel.properties(width=_GAINS, title=f"{kind} sources"))
    return alt.hconcat(*panels, spacing=18, **_LOOK)


def _row(label: str, one: Found | Gain, tone: str) -> dict[str, Any]:
    ends = (one.low, one.high) if one.low is not None else (one.value, one.value)
    return {"label": label, "value": one.value, "low": ends[0], "high": ends[1], "tone": tone}


def _intervals(
    rows: Sequence[dict[str, Any]], order: Sequence[str], title: str, scale: "alt.Scale", *, names: bool
) -> "alt.LayerChart | alt.FacetChart":
    """Draw a dot and a line per row, and a line at 0; `names` are at the left."""
    import altair as alt

    known = alt.Chart(alt.InlineData(values=[row for row in rows if row["value"] is not None]))
    axis = alt.Axis(ticks=False, grid=True, minExtent=_LABELS, maxExtent=_LABELS) if names else None
    y = alt.Y("label:N", sort=list(order), title=None, axis=axis, scale=alt.Scale(domain=list(order)))
    tone = alt.Fill("tone:N", legend=None, scale=alt.Scale(domain=list(_TONES), range=list(_TONES.values())))
    along = alt.Axis(tickCount=5)
    lines = known.mark_rule(color=_INK).encode(x=alt.X("low:Q", title=title, scale=scale, axis=along), x2="high:Q", y=y)
    dots = known.mark_point(size=55, stroke=_INK, strokeWidth=1, opacity=1).encode(x="value:Q", y=y, fill=tone)
    zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color=_INK, strokeDash=[3, 3]).encode(x="at:Q")
    return alt.layer(zero, lines, dots).properties(height=_ROW * len(order))
