"""The figures of a study's page: coefficients and gains with their intervals.

Belongs here: drawing findings. Does not: computing them (`findings`), the pictures of a single outcome (`scatter`).

Measures of diversity are filled, plain facts hollow; a gain whose interval contains 0 is grey. Axis labels name all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from novelsum_dagster.study.findings import GROUPS, Found, Gain
from novelsum_dagster.study.look import BLUE, INK, LABEL_LIMIT, LINE, RED, look

if TYPE_CHECKING:
    import altair as alt

_TONES = {
    "measure": BLUE,
    "fact": "#ffffff",
    "better": BLUE,
    "not distinguished": LINE,
    "worse": RED,
}
"""Fill of a mark by the kind of predictor, or by the verdict on a gain."""


def coefficients_chart(found: Sequence[Found]) -> "alt.TopLevelMixin":
    """Draw coefficients with performance: one panel per group of sets, one row per predictor, in the order given.

    Args:
        found: of one kind and method, for every group.
    """
    import altair as alt

    panels = {
        group: [_row(one.label, one, "measure" if one.is_measure else "fact") for one in found if one.group == group]
        for group in GROUPS
    }
    return _side_by_side(panels, 175, "correlation", alt.Scale(domain=[-1, 1]))


def gains_chart(gains: Sequence[Gain]) -> "alt.TopLevelMixin":
    """Draw the gains over random of the strategies of one pool and size, one panel per kind of sources.

    Args:
        gains: in the order of the rows.
    """
    import altair as alt

    panels = {
        f"{kind} sources": [_row(one.strategy, one, one.verdict) for one in gains if one.kind == kind]
        for kind in dict.fromkeys(one.kind for one in gains)
    }
    return _side_by_side(panels, 250, "gain over random, bits per byte", alt.Scale(zero=True))


def _row(label: str, one: Found | Gain, tone: str) -> dict[str, Any]:
    ends = (one.low, one.high) if one.low is not None else (one.value, one.value)
    return {"label": label, "value": one.value, "low": ends[0], "high": ends[1], "tone": tone}


def _side_by_side(
    panels: Mapping[str, Sequence[dict[str, Any]]], width: int, title: str, scale: "alt.Scale"
) -> "alt.TopLevelMixin":
    """Draw a dot and a line per row, and a line at 0, in each panel; the names of the rows are at the left."""
    import altair as alt

    order = list(dict.fromkeys(row["label"] for rows in panels.values() for row in rows))
    tone = alt.Fill("tone:N", legend=None, scale=alt.Scale(domain=list(_TONES), range=list(_TONES.values())))
    x = alt.X("low:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    names = alt.Axis(ticks=False, grid=True, minExtent=LABEL_LIMIT, maxExtent=LABEL_LIMIT)
    zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color=INK, strokeDash=[3, 3]).encode(x="at:Q")
    drawn: list[alt.LayerChart | alt.FacetChart] = []
    for heading, rows in panels.items():
        known = alt.Chart(alt.InlineData(values=[row for row in rows if row["value"] is not None]))
        axis = None if drawn else names
        y = alt.Y("label:N", sort=order, title=None, axis=axis, scale=alt.Scale(domain=order))
        lines = known.mark_rule(color=INK).encode(x=x, x2="high:Q", y=y)
        dots = known.mark_point(size=55, stroke=INK, strokeWidth=1, opacity=1).encode(x="value:Q", y=y, fill=tone)
        above = alt.TitleParams(heading, fontSize=13, frame="group", offset=6)
        drawn.append(alt.layer(zero, lines, dots).properties(width=width, height=20 * len(order), title=above))
    return alt.hconcat(*drawn, spacing=18, **look(frame=None, domain=False))
