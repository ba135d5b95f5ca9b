"""The pictures of diversity and performance: what they draw, in which order and in which words."""

import csv
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.study import scatter
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING, Correlation, Method, correlations
from novelsum_dagster.study.scatter import correlations_png, scatter_png, scatters_png

PAPER = Path(__file__).parents[1] / "golden" / "paper-scatter.csv"
LABELS = {key: measure.label for key, measure in MEASURES.items()}
LOWER = frozenset(key for key, measure in MEASURES.items() if not measure.higher_is_diverse)
MINUS = "\N{MINUS SIGN}"
TEN = [f"strategy {number}" for number in range(10)]


def _study(strategies: list[str], performance: np.ndarray, novelsum: np.ndarray) -> tuple[pa.Table, list[Correlation]]:
    """Sets with all measures; one is null in places, one everywhere, one constant, one negative."""
    generator = np.random.default_rng(0)
    values = {key: performance + number * generator.normal(size=len(performance)) for number, key in enumerate(LABELS)}
    values["novelsum"] = novelsum
    values["facility_location"] = -performance
    values["ttr"][:3] = math.nan
    values["knn_distance"][:] = math.nan
    values["vendi_score"][:] = 1.0
    values["log_determinant"] = -1500 - 100 * performance
    table = {
        "set": [f"set {number}" for number in range(len(strategies))],
        "strategy": strategies,
        "size": [10_000] * len(strategies),
        "performance": performance,
        **{key: pa.array(column, from_pandas=True) for key, column in values.items()},
    }
    return pa.table(table), correlations(values, performance, strategies, LOWER)


@pytest.fixture(scope="module")
def paper() -> tuple[pa.Table, list[Correlation]]:
    """The 39 sets that the paper draws."""
    rows = list(csv.DictReader(PAPER.read_text().splitlines()))
    performance, novelsum = (np.array([float(row[name]) for row in rows]) for name in ("performance", "novelsum"))
    return _study([row["strategy"] for row in rows], performance, novelsum)


def _small(strategies: list[str], n: int = 19) -> tuple[pa.Table, list[Correlation]]:
    generator = np.random.default_rng(1)
    performance = generator.normal(size=n)
    named = [strategies[number % len(strategies)] for number in range(n)]
    return _study(named, performance, performance + generator.normal(size=n))


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Draw, and return the chart's specification in place of a picture."""
    charts: list[Any] = []

    def kept(chart: Any) -> bytes:
        charts.append(chart)
        return b""

    monkeypatch.setattr(scatter, "png", kept)

    def draw(draws: Callable[..., bytes], *arguments: Any) -> dict[str, Any]:
        draws(*arguments)
        found: dict[str, Any] = charts.pop().to_dict()
        return found

    yield draw


def _rows(chart: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    data = chart["data"]
    rows: list[dict[str, Any]] = data["values"] if "values" in data else whole["datasets"][data["name"]]
    return rows


def _opened(picture: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(picture))
    opened.load()
    assert opened.format == "PNG"
    assert len(opened.convert("L").getcolors() or []) > 20
    return opened


@pytest.mark.parametrize("measure", ["novelsum", "facility_location", "ttr", "knn_distance", "vendi_score"])
def test_a_large_plot_of_the_papers_sets(paper: tuple[pa.Table, list[Correlation]], measure: str) -> None:
    width, height = _opened(scatter_png(*paper, measure, LABELS[measure])).size
    assert 1000 < width < 1600 and 700 < height < 1100


@pytest.mark.parametrize("strategies", [["novelselect"], ["random"], ["a", "Random", "Duplicate"], TEN])
def test_small_plots_and_intervals_are_drawn_for_any_strategies(strategies: list[str]) -> None:
    sets, found = _small(strategies)
    width, height = _opened(scatters_png(sets, found, LABELS)).size
    assert 1200 < width < 2000 and 1200 < height < 2000
    width, height = _opened(correlations_png(found, LABELS)).size
    assert 1200 < width < 2000 and 700 < height < 1200


def test_equal_data_give_equal_pictures(paper: tuple[pa.Table, list[Correlation]]) -> None:
    assert scatter_png(*paper, "novelsum", "NovelSum") == scatter_png(*paper, "novelsum", "NovelSum")


@pytest.mark.parametrize("strategies", [["novelselect"], [*TEN, "Random", "Duplicate"]])
def test_each_strategy_has_its_own_colour_and_shape(spec: Callable[..., dict[str, Any]], strategies: list[str]) -> None:
    sets, found = _small(strategies)
    encoding = spec(scatter_png, sets, found, "novelsum", "NovelSum")["encoding"]
    for channel in ("fill", "stroke", "shape", "size"):
        assert encoding[channel]["field"] == "strategy"
        assert encoding[channel]["scale"]["domain"] == strategies
    looks = {channel: encoding[channel]["scale"]["range"] for channel in ("fill", "stroke", "shape")}
    hollow = [fill == "transparent" for fill in looks["fill"]]
    assert hollow == [name in ("Random", "Duplicate") for name in strategies]
    colours = [
        stroke if empty else fill for fill, stroke, empty in zip(looks["fill"], looks["stroke"], hollow, strict=True)
    ]
    assert len(set(colours)) == len(strategies)
    assert len(set(zip(looks["shape"], hollow, strict=True))) == len(strategies)


def test_sets_without_a_value_are_not_drawn(
    spec: Callable[..., dict[str, Any]], paper: tuple[pa.Table, list[Correlation]]
) -> None:
    sets, found = paper
    for measure, drawn in {"novelsum": 39, "ttr": 36, "knn_distance": 0}.items():
        chart = spec(scatter_png, sets, found, measure, LABELS[measure])
        rows = _rows(chart, chart)
        assert {(row["set"], row["measured"], row["performance"]) for row in rows} == {
            (row["set"], row[measure], row["performance"]) for row in sets.to_pylist() if row[measure] is not None
        }
        assert len(rows) == drawn
        assert f"All {drawn} sets: " in chart["title"]["subtitle"][0]
        # The legend and the scale of performance are those of all sets.
        assert chart["encoding"]["shape"]["scale"]["domain"][0] == "NovelSelect"
        assert chart["encoding"]["y"]["scale"]["domain"][0] < -6.39


def test_the_coefficients_are_told_in_words(
    spec: Callable[..., dict[str, Any]], paper: tuple[pa.Table, list[Correlation]]
) -> None:
    chart = spec(scatter_png, *paper, "novelsum", "NovelSum")
    assert chart["title"]["subtitle"][:2] == [
        "All 39 sets: Pearson 0.98 (0.95 to 0.99), Spearman 0.98 (0.95 to 0.99)",
        "Selection strategies, 12 sets: Pearson 0.81 (0.45 to 0.95), Spearman 0.75 (0.22 to 0.94)",
    ]
    assert chart["encoding"]["x"]["title"] == "NovelSum (higher is more diverse)"
    assert chart["encoding"]["y"]["title"] == "performance"
    constant = spec(scatter_png, *paper, "vendi_score", "Vendi score")
    assert constant["title"]["subtitle"][0] == "All 39 sets: Pearson not defined, Spearman not defined"
    low, high = constant["encoding"]["x"]["scale"]["domain"]
    assert low < 1 < high


def test_facility_location_says_that_lower_is_more_diverse(
    spec: Callable[..., dict[str, Any]], paper: tuple[pa.Table, list[Correlation]]
) -> None:
    chart = spec(scatter_png, *paper, "facility_location", "Facility location")
    assert chart["encoding"]["x"]["title"] == "Facility location (lower is more diverse)"
    assert "sign is reversed" in chart["title"]["subtitle"][2]
    panels = spec(scatters_png, *paper, LABELS)["concat"]
    titles = {panel["title"]["text"]: panel["encoding"]["x"]["title"] for panel in panels}
    assert {label for label, title in titles.items() if title == "lower is more diverse"} == {"Facility location"}


def test_panels_are_in_the_order_of_their_coefficients(
    spec: Callable[..., dict[str, Any]], paper: tuple[pa.Table, list[Correlation]]
) -> None:
    sets, found = paper
    chart = spec(scatters_png, sets, found, LABELS)
    pearson = {row.measure: row.r for row in found if (row.group, row.method) == (ALL_SETS, "pearson")}
    order = sorted((key for key in LABELS if pearson[key] is not None), key=lambda key: -(pearson[key] or 0))
    order += ["knn_distance", "vendi_score"]
    assert [panel["title"]["text"] for panel in chart["concat"]] == [LABELS[key] for key in order]
    headings = {panel["title"]["text"]: panel["title"]["subtitle"] for panel in chart["concat"]}
    assert headings["NovelSum"] == "Pearson 0.98, Spearman 0.98"
    assert headings["TTR"].endswith(" (36 sets)")
    assert headings["KNN distance"] == "correlation not defined (0 sets)"
    assert headings["Vendi score"] == "correlation not defined"
    assert headings["Log-determinant"] == f"Pearson {MINUS}1.00, Spearman {MINUS}1.00"
    assert chart["resolve"]["scale"] == dict.fromkeys(("fill", "stroke", "shape", "size"), "shared")


def test_intervals_are_drawn_by_group(
    spec: Callable[..., dict[str, Any]], paper: tuple[pa.Table, list[Correlation]]
) -> None:
    sets, found = paper
    chart = spec(correlations_png, found, LABELS)
    order = [panel["title"]["text"] for panel in spec(scatters_png, sets, found, LABELS)["concat"]]
    assert [panel["title"]["text"] for panel in chart["hconcat"]] == ["All sets", "Selection strategies"]
    for panel, group in zip(chart["hconcat"], (ALL_SETS, SELECTING), strict=True):
        zero, lines, dots, *texts = panel["layer"]
        assert _rows(zero, chart) == [{"at": 0}]
        assert dots["encoding"]["shape"]["field"] == dots["encoding"]["color"]["field"] == "method"
        drawn = {
            (order[row["row"]], row["method"].lower(), row["r"], row["low"], row["high"]) for row in _rows(lines, chart)
        }
        assert drawn == {
            (LABELS[row.measure], row.method, row.r, row.low, row.high)
            for row in found
            if row.group == group and row.method != "kendall" and row.r is not None
        }
        first = _rows(texts[0], chart)
        assert len(first) == len(LABELS) == 14
        assert first[-1] == {"row": 13, "Pearson": "\N{EN DASH}", "Spearman": "\N{EN DASH}", "sets": first[0]["sets"]}
    assert order[0] in chart["hconcat"][0]["layer"][1]["encoding"]["y"]["axis"]["labelExpr"]
    assert "is not defined" in chart["title"]["subtitle"][0]


def test_a_coefficient_without_an_interval_is_a_dot(spec: Callable[..., dict[str, Any]]) -> None:
    coefficients: dict[Method, float] = {"pearson": -0.001, "spearman": 1.0}
    found = [
        Correlation("novelsum", group, method, 3, r, None, None)
        for group in (ALL_SETS, SELECTING)
        for method, r in coefficients.items()
    ]
    chart = spec(correlations_png, found, {"novelsum": "NovelSum"})
    _, lines, _, texts, *_ = chart["hconcat"][0]["layer"]
    assert [(row["low"], row["r"], row["high"]) for row in _rows(lines, chart)] == [(-0.001,) * 3, (1.0,) * 3]
    assert _rows(texts, chart) == [{"row": 0, "Pearson": "0.00", "Spearman": "1.00", "sets": "3"}]
    sets = pa.table({"set": ["a"], "strategy": ["b"], "performance": [0.5], "novelsum": [-2.0]})
    words = spec(scatter_png, sets, found, "novelsum", "NovelSum")["title"]["subtitle"]
    assert words[1] == "Selection strategies, 3 sets: Pearson 0.00, Spearman 1.00"
