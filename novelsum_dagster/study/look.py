"""The look that the pictures of all studies share: colours, fonts, axes, titles.

Belongs here: configuration of altair. Does not: any picture (`scatter`, `figures`, `pictures`).
"""

from typing import Any

INK, GREY, FAINT, LINE = "#1f2933", "#52606d", "#e4e7eb", "#9aa5b1"
BLUE, RED = "#0072b2", "#d55e00"
LABEL_LIMIT = 260


def look(frame: str | None = FAINT, **axis: Any) -> dict[str, Any]:
    """Return the properties of a whole picture: the colour of the plots' frames, and what differs for its axes.

    They are passed in when a picture is assembled: altair's `configure` methods would each copy all plots.
    """
    return {
        "background": "white",
        "padding": 14,
        "config": {
            "font": "Helvetica, Arial, 'Liberation Sans', sans-serif",
            "view": {"stroke": frame},
            "axis": {
                "labelColor": INK, "labelFontSize": 12, "labelLimit": LABEL_LIMIT, "titleColor": INK,
                "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8, "gridColor": FAINT,
                "domainColor": LINE, "tickColor": LINE, **axis,
            },
            "legend": {
                "labelFontSize": 12, "labelColor": INK, "labelLimit": LABEL_LIMIT, "rowPadding": 5,
                "columnPadding": 22,
            },
            "title": {
                "anchor": "start", "offset": 14, "color": INK, "fontSize": 16,
                "subtitleColor": GREY, "subtitleFontSize": 12, "subtitlePadding": 6, "subtitleLineHeight": 17,
            },
        },
    }  # fmt: skip
