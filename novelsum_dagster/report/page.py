"""The HTML report: one self-contained file, and its figures and tables as files beside it.

Belongs here: the page's text and numbers, writing the folder. Does not: measuring, drawing (`charts`), computing
(`tables`). The layout is in `page.html`.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.artifacts.provenance import flat
from novelsum_dagster.common.files import write_bytes, write_csv_and_table
from novelsum_dagster.common.progress import counted
from novelsum_dagster.report import charts, tables
from novelsum_dagster.report.explanation import RANDOM, SELECTED, Explanation
from novelsum_dagster.report.templates import render

if TYPE_CHECKING:
    import altair as alt

_TEMPLATE = Path(__file__).with_name("page.html")
_MOST_ROWS = 50
"""Sources in the page's table; the file beside it has all."""
_START = """
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const name = figure.dataset.chart;
  const spec = JSON.parse(document.getElementById(`spec-${name}`).textContent);
  figure.classList.add("live");
  vegaEmbed(figure.querySelector("div"), spec, { actions: false, renderer: figure.dataset.renderer })
    .catch((error) => {
      figure.classList.remove("live");
      console.error(name, error);
    });
}
"""
"""Replaces each static picture by an interactive figure; the picture remains if drawing fails, and for print."""


_OFFERED = (0.80, 0.85, 0.90, 0.95)
"""Cosine thresholds for which the page counts samples."""


@dataclass(frozen=True)
class Contents:
    """Contents of the report.

    Attributes:
        title: of the page.
        measures: one row per set and measure: set, measure (key), label, family (string), size (integer), value, low,
            high (float64, null or NaN if missing), higher_is_diverse (bool); rows keep their order.
        samples: the pool, (n,), in pool order: id, source, file, text (string), position, line, tokens, turns,
            characters (integer).
        vectors: float32, (n, d), in pool order.
        novelty: float64, (n,), of each sample within the pool.
        selected: int64, (k,), rows in pick order, k >= 1; may hold a row more than once.
        to_selected, to_random: float64, (n,), cosine distances of each sample to the nearest pick, and to the nearest
            of a random subset.
        cells: int64, (n,), the region of the pool to which each sample belongs.
        explanation: why measures differ, and which setting may help.
        settings: nested values, shown as a table.
        hashes: content hashes of what was measured, by name.
        notes: sentences on how it was measured.
        nearest: float64, cosine of each compared sample to its nearest neighbour, if vectors were compared for
            near-duplicates.
    """

    title: str
    measures: pa.Table
    samples: pa.Table
    vectors: NDArray[np.float32]
    novelty: NDArray[np.float64]
    selected: NDArray[np.int64]
    to_selected: NDArray[np.float64]
    to_random: NDArray[np.float64]
    cells: NDArray[np.int64]
    explanation: Explanation
    settings: dict[str, Any]
    hashes: dict[str, str]
    notes: tuple[str, ...]
    nearest: NDArray[np.float64] | None = None

    @property
    def similarity(self) -> float:
        """The least cosine of near-duplicates."""
        return float(self.settings["pool"]["near_duplicates"]["similarity"])


@dataclass(frozen=True)
class _Figure:
    """A figure of the page; `alternative` is its text alternative."""

    chart: "alt.TopLevelMixin"
    alternative: str
    renderer: str = "svg"
    scale_factor: float = 2


@dataclass(frozen=True)
class _Drawn:
    """A figure for the template; `spec` is JSON that is safe within a script element."""

    name: str
    alternative: str
    renderer: str
    spec: str
    still: str


def write_page(folder: Path, contents: Contents) -> None:
    """Write report.html, and each figure (PNG) and table (CSV, Parquet) of it; equal contents give equal bytes.

    Args:
        folder: created if missing; files of the same names are replaced, the page last.
        contents: of the page.

    Raises:
        ValueError: if the arrays differ in length, nothing is selected, or a picked vector is all zeros.
    """
    _check(contents)
    points, explained = tables.map_points(contents.vectors, contents.selected)
    found = _tables(contents, points)
    for name, table in found.items():
        write_csv_and_table(table, folder / name)
    drawn = {}
    for name, figure in _figures(contents, found, explained).items():
        picture = charts.png(figure.chart, figure.scale_factor)
        write_bytes(picture, folder / f"{name}.png")
        drawn[name] = _drawn(name, figure, picture)
    write_bytes(_html(contents, found, drawn).encode(), folder / "report.html")


def _check(contents: Contents) -> None:
    n = len(contents.samples)
    for name in ("vectors", "novelty", "to_selected", "to_random", "cells"):
        size = len(getattr(contents, name))
        if size != n:
            raise ValueError(f"{name}: {size:,} rows, but the pool has {n:,} samples")
    if not len(contents.selected):
        raise ValueError("selected: no rows; a report needs a subset of at least one sample")
    if contents.selected.min() < 0 or contents.selected.max() >= n:
        raise ValueError(f"selected: rows {contents.selected.min()} to {contents.selected.max()}; the pool has {n:,}")


def _tables(contents: Contents, points: pa.Table) -> dict[str, pa.Table]:
    samples, selected = contents.samples, contents.selected
    return {
        "measures": contents.measures,
        "novelty": pa.table(
            {
                "id": samples["id"],
                "novelty": contents.novelty,
                "selected": np.isin(np.arange(len(samples)), selected),
            }
        ),
        "map": pa.table(
            {
                "id": samples["id"],
                "x": points["x"],
                "y": points["y"],
                "source": samples["source"],
                "rank": points["rank"],
                "snippet": tables.snippets(samples["text"]),
            }
        ),
        "pool_coverage": tables.pool_coverage(samples["source"], contents.to_selected, contents.to_random),
        "least_covered": tables.least_covered(
            samples, contents.to_selected, contents.to_random, contents.cells, selected
        ),
        "coverage": tables.coverage(samples["source"], selected),
        "lengths": tables.lengths(samples, selected),
        "nearest_pairs": tables.nearest_pairs(samples, contents.vectors, selected),
    }


def _figures(contents: Contents, found: dict[str, pa.Table], explained: tuple[float, float]) -> dict[str, _Figure]:
    picked = contents.novelty[contents.selected]
    middle = f"{_number(np.median(contents.novelty))} in the pool and {_number(np.median(picked))} in the subset"
    sources = "; ".join(
        f"{_short(row['source'])}: {row['pool_share']:.1%} of the pool, {row['selected_share']:.1%} of the subset"
        for row in found["coverage"].slice(0, 10).to_pylist()
    )
    return {
        "novelty": _Figure(
            charts.novelty_histogram(contents.novelty, picked), f"Histogram of novelty. The median is {middle}."
        ),
        # Twenty thousand points are too many for SVG elements, and their picture is large.
        "map": _Figure(
            charts.pool_map(found["map"], explained),
            "Scatter plot of the pool on its first two principal components, the picked samples as triangles.",
            "canvas",
            1.5,
        ),
        "coverage": _Figure(charts.coverage_bars(found["coverage"]), f"Bars of each source's share. {sources}."),
        "lengths": _Figure(
            charts.length_ranges(found["lengths"]),
            "Ranges of tokens, turns and characters. " + " ".join(_length_sentences(found["lengths"])),
        ),
        **_near_figure(contents),
    }


def _near_figure(contents: Contents) -> dict[str, _Figure]:
    """Return the histogram of similarities, if they are known."""
    if contents.nearest is None:
        return {}
    words = ", ".join(f"{count:,} from {least:.2f}" for least, count in _as_similar(contents.nearest))
    return {
        "nearest": _Figure(
            charts.similarity_histogram(contents.nearest, contents.similarity),
            f"Histogram of the cosine of each sample to the one nearest to it. Samples by cosine: {words}.",
        )
    }


def _as_similar(nearest: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Return candidate thresholds, each with the number of samples that have another at least as similar."""
    return [(least, int(np.count_nonzero(nearest >= least))) for least in _OFFERED]


def _drawn(name: str, figure: _Figure, picture: bytes) -> _Drawn:
    spec = {**figure.chart.to_dict(), "width": "container", "description": figure.alternative}
    still = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return _Drawn(name, figure.alternative, figure.renderer, _in_script(spec), still)


def _in_script(value: Any) -> str:
    """Return a value as JSON that cannot close a script element, whatever texts it contains."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _html(contents: Contents, found: dict[str, pa.Table], drawn: dict[str, _Drawn]) -> str:
    scripts = [_bundle(), _START]
    measured = contents.measures.to_pylist()
    compared = [row for name in (SELECTED, RANDOM) for row in measured if row["set"] == name]
    sets, families = _measures(compared)
    other_sets, others = _measures([row for row in measured if row["set"] not in (SELECTED, RANDOM)])
    return render(
        _TEMPLATE,
        title=contents.title,
        summary=_summary(contents, found),
        sets=sets,
        families=families,
        other_sets=other_sets,
        others=others,
        explanation=contents.explanation,
        most_rows=_MOST_ROWS,
        pool_coverage=found["pool_coverage"].to_pylist(),
        regions=found["least_covered"].to_pylist(),
        region_count=len(np.unique(contents.cells)),
        notes=contents.notes,
        nearest=[] if contents.nearest is None else _as_similar(contents.nearest),
        figures=drawn,
        shown=min(charts.MAX_POOL_POINTS, found["map"]["rank"].null_count),
        picks_shown=min(charts.MAX_PICKS, len(found["map"]) - found["map"]["rank"].null_count),
        pool_size=len(contents.samples),
        coverage=found["coverage"].to_pylist(),
        lengths=_lengths(found["lengths"]),
        length_sentences=_length_sentences(found["lengths"]),
        pairs=found["nearest_pairs"].to_pylist(),
        repeats=len(contents.selected) - len(tables.first_picks(contents.selected)),
        settings=[(key, _setting(value)) for key, value in flat(contents.settings).items()],
        hashes=contents.hashes,
        scripts=scripts,
        script_hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    )


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which sets `vegaEmbed`."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # These sequences close a script element even inside a string; browsers hash a script with plain line ends.
    return script.replace("</script", "<\\/script").replace("<!--", "\\x3c!--").replace("\r\n", "\n")


@dataclass(frozen=True)
class _Cell:
    """One value of the table of measures."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class _Row:
    """A measure; `ahead` names the most diverse set, with "narrowly" if another's interval overlaps."""

    label: str
    higher_is_diverse: bool
    cells: dict[str, _Cell]
    ahead: str


def _measures(measured: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, list[_Row]]]:
    """Return the sets with their sizes as text, and the rows of each family by its name."""
    sizes: dict[str, list[int]] = {}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in measured:
        sizes.setdefault(row["set"], []).append(row["size"])
        rows.setdefault(row["measure"], {})[row["set"]] = row
    families: dict[str, list[_Row]] = {}
    for by_set in rows.values():
        one = next(iter(by_set.values()))
        best, close = _best(by_set)
        cells = {name: _Cell(*_value_and_interval(row), name in best) for name, row in by_set.items()}
        ahead = (_listed(best) if best else "neither") + (", narrowly" if close else "")
        families.setdefault(one["family"], []).append(_Row(one["label"], one["higher_is_diverse"], cells, ahead))
    return {name: _size_words(of) for name, of in sizes.items()}, families


def _best(by_set: dict[str, dict[str, Any]]) -> tuple[list[str], bool]:
    """Return a measure's most diverse sets (none if all are equal), and whether another's interval overlaps."""
    known = {name: row for name, row in by_set.items() if not _missing(row["value"])}
    values = {row["value"] for row in known.values()}
    if len(values) < 2:
        return [], False
    top = (max if next(iter(known.values()))["higher_is_diverse"] else min)(values)
    winners = [name for name, row in known.items() if row["value"] == top]
    close = any(
        _overlap(known[winner], row) for winner in winners for name, row in known.items() if name not in winners
    )
    return winners, close


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if any(_missing(row[bound]) for row in (a, b) for bound in ("low", "high")):
        return False
    return bool(a["low"] <= b["high"] and b["low"] <= a["high"])


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _size_words(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return counted(low, "sample") if low == high else f"{low:,} to {counted(high, 'sample')}"


def _value_and_interval(row: dict[str, Any]) -> tuple[str, str]:
    if _missing(row["value"]):
        return "not measured", ""
    places = _places(row["value"])
    if _missing(row["low"]) or _missing(row["high"]):
        return _number(row["value"], places), ""
    return _number(row["value"], places), f"{_number(row['low'], places)} to {_number(row['high'], places)}"


def _places(value: float) -> int:
    """Return the decimal places that show four significant digits; none beyond a thousand."""
    return 3 if value == 0 else min(9, max(0, 3 - math.floor(math.log10(abs(value)))))


def _number(value: float, places: int | None = None) -> str:
    return f"{value:,.{_places(value) if places is None else places}f}"


def _summary(contents: Contents, found: dict[str, pa.Table]) -> list[str]:
    picks, n = len(contents.selected), len(contents.samples)
    first = f"This report compares a subset of {counted(picks, 'sample')} with the pool of {n:,} it was picked from."
    length = _length_sentences(found["lengths"])[0]
    verdict = contents.explanation.sentences[0]
    return [first, verdict, length, *_largest_shift(found["coverage"].to_pylist())]


def _largest_shift(coverage: list[dict[str, Any]]) -> Iterator[str]:
    if len(coverage) == 1:
        yield f"All samples come from one source, “{_short(coverage[0]['source'])}”."
        return
    row = max(coverage, key=lambda row: abs(row["selected_share"] - row["pool_share"]))
    shares = f"{row['pool_share']:.1%} of the pool and {row['selected_share']:.1%} of the subset"
    yield f"Of {len(coverage):,} sources, “{_short(row['source'])}” changes most: it is {shares}."


def _short(source: str) -> str:
    return tables.shortened(source, 40)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _length_sentences(lengths: pa.Table) -> list[str]:
    """Return one sentence each on the subset's tokens, characters and turns, compared with the pool's."""
    rows = {(row["quantity"], row["statistic"]): row for row in lengths.to_pylist()}
    sentences = [
        f"The subset's median sample has {_times(rows[quantity, 'median'], quantity)}."
        for quantity in ("tokens", "characters")
    ]
    # The median number of turns is nearly always 2.
    return [*sentences, f"On average its samples have {_times(rows['turns', 'mean'], 'turns')}."]


def _times(row: dict[str, Any], quantity: str) -> str:
    pool, subset = _length(row["pool"]), _length(row["subset"])
    numbers = f"({subset} against {pool})"
    if row["ratio"] is None:
        return f"{subset} {quantity}, where the pool's has none"
    if 0.95 <= row["ratio"] <= 1.05:
        return f"about as many {quantity} as the pool's {numbers}"
    return f"{row['ratio']:.2g} times as many {quantity} as the pool's {numbers}"


def _lengths(lengths: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of the page's table: a quantity and a set, or their ratio."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in lengths.to_pylist():
        by_set = found.setdefault(row["quantity"], {"pool": [], "subset": [], "subset / pool": []})
        for name in ("pool", "subset"):
            by_set[name].append(_length(row[name]))
        by_set["subset / pool"].append("none" if row["ratio"] is None else f"{row['ratio']:.2f}")
    return [
        {"quantity": quantity, "set": name, "values": values}
        for quantity, by_set in found.items()
        for name, values in by_set.items()
    ]


def _length(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")


def _setting(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return "not set"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False, default=str)
