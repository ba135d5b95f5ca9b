"""The report page: its figures against plain computations, untrusted text, odd shapes, and that it loads nothing."""

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.diversity.measures import Value
from novelsum_dagster.report import charts, tables
from novelsum_dagster.report.explanation import Compared, Explanation, Recommendation, explain, facts_of
from novelsum_dagster.report.page import Contents, write_page
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.settings import Settings

FIGURES = ("novelty", "map", "coverage", "lengths")
TABLES = ("measures", "novelty", "map", "pool_coverage", "least_covered", "coverage", "lengths", "nearest_pairs")
ATTACK = "</script><script>window.broken = true</script><!-- \u2028 <img src=x onerror=broken> \"quoted\", 'and' & more"


def contents(n: int = 60, k: int = 12, sources: tuple[str, ...] = ("a", "b", "c"), text: str = "text") -> Contents:
    """Return contents of a made-up pool; every text and source name is as given."""
    generator = np.random.default_rng(0)
    names = generator.integers(0, len(sources), n)
    samples = pa.table(
        {
            "id": [f"{row:03}" for row in range(n)],
            "source": [sources[name] for name in names],
            "file": [f"{sources[name]}.jsonl" for name in names],
            "position": np.arange(1, n + 1),
            "line": pa.array([row + 1 if row % 2 else None for row in range(n)], pa.int64()),
            "tokens": generator.integers(5, 500, n),
            "turns": generator.integers(2, 6, n).astype(np.int32),
            "characters": generator.integers(20, 3000, n),
            "text": [f"{text} {row}" for row in range(n)],
        }
    )
    vectors = generator.normal(size=(n, 8)).astype(np.float32)
    novelty, selected, random = generator.random(n), generator.permutation(n)[:k], generator.permutation(n)[:k]
    to_selected, to_random = (covering(vectors, rows, 1).distance[:, 0] for rows in (selected, random))
    facts = facts_of(
        vectors, samples["source"], selected, random, to_selected, to_random, near_duplicates=2, unread=0.0, seed=0
    )
    compared = [Compared("radius", Value(0.7, 0.65, 0.75), Value(0.5, 0.45, 0.55))]
    return Contents(
        title="Report",
        measures=measures(("one", "Measure one", True, 0.5, 0.7), ("two", "Measure two", False, 12.0, 11.0)),
        samples=samples,
        vectors=vectors,
        novelty=novelty,
        selected=selected,
        to_selected=to_selected,
        to_random=to_random,
        cells=generator.integers(0, 12, n),
        explanation=explain(compared, facts, Settings()),
        settings={"selection": {"k": k, "quality": None}, "list": [1, "x"]},
        hashes={"pool": "0f" * 16},
        notes=("Each set was measured on 12 samples.",),
    )


def measures(*rows: tuple[str, str, bool, float, float], margin: float = 0.05) -> pa.Table:
    found = []
    for key, label, higher, *values in rows:
        for name, value in zip(("random", "selected"), values, strict=True):
            row: dict[str, Any] = {"set": name, "size": 12, "measure": key, "label": label, "family": "distance"}
            bounds = {"low": value - margin, "high": value + margin}
            found.append({**row, "value": value, **bounds, "higher_is_diverse": higher})
    return pa.Table.from_pylist(found)


class Page(HTMLParser):
    """The page as a browser reads it: its elements, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.lasttag != "style":
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.lasttag = ""

    def specs(self) -> dict[str, Any]:
        return {
            str(attrs["id"]).removeprefix("spec-"): json.loads(text)
            for attrs, text in self.scripts
            if attrs.get("type") == "application/json"
        }


def written(folder: Path, of: Contents) -> Page:
    write_page(folder, of)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def hostile(explanation: Explanation) -> Explanation:
    """Return an explanation whose texts try to run scripts."""
    advice = Recommendation(settings={ATTACK: {"caps": {ATTACK: 3}}}, because=ATTACK)
    return explanation.model_copy(update={"sentences": (ATTACK, ATTACK), "recommendation": advice})


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents, Page]:
    folder = tmp_path_factory.mktemp("page") / "new"
    of = contents(sources=(ATTACK, "plain", "a,b;c\n=1+1"), text=ATTACK)
    of = replace(of, title=ATTACK, settings={ATTACK: ATTACK}, hashes={ATTACK: ATTACK}, notes=(ATTACK,))
    of = replace(of, explanation=hostile(of.explanation))
    return folder, of, written(folder, of)


def test_every_figure_and_table_is_a_file(attacked: tuple[Path, Contents, Page]) -> None:
    folder, of, _ = attacked
    expected = {"report.html", *(f"{name}.png" for name in FIGURES)}
    expected |= {f"{name}.{kind}" for name in TABLES for kind in ("csv", "parquet")}
    assert {path.name for path in folder.iterdir()} == expected
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    novelty = pq.read_table(folder / "novelty.parquet")
    assert novelty["novelty"].to_pylist() == of.novelty.tolist()
    assert set(np.flatnonzero(novelty["selected"].to_numpy())) == set(of.selected)
    points = pq.read_table(folder / "map.parquet")
    assert [points["rank"][int(row)].as_py() for row in of.selected] == list(range(1, 13))
    assert points["rank"].null_count == 48
    assert pq.read_table(folder / "measures.parquet").equals(of.measures)
    assert (folder / "coverage.csv").read_text().startswith('"source","pool","pool_share"')


def test_the_page_loads_nothing(attacked: tuple[Path, Contents, Page]) -> None:
    html = (attacked[0] / "report.html").read_text(encoding="utf-8")
    beside = {path.name for path in attacked[0].iterdir()}
    for tag, attributes in attacked[2].elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/png;base64,")) or target in beside, target
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    assert not any("http" in json.dumps(spec).replace(spec["$schema"], "") for spec in attacked[2].specs().values())
    policy = next(attrs["content"] for _, attrs in attacked[2].elements if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_untrusted_text_stays_text(attacked: tuple[Path, Contents, Page]) -> None:
    _, _, page = attacked
    kinds = [attrs.get("type") for attrs, _ in page.scripts]
    assert kinds == ["application/json"] * len(FIGURES) + [None, None]
    assert {tag for tag, attrs in page.elements if tag == "img" and "alt" not in attrs} == set()
    assert not any("\u2028" in text or "<" in text for attrs, text in page.scripts if "type" in attrs)
    bundle, start = (text for attrs, text in page.scripts if "type" not in attrs)
    assert "window.vegaEmbed=" in bundle
    assert "broken" not in bundle + start
    assert page.text.count("window.broken = true") >= 5
    (points,) = page.specs()["map"]["datasets"].values()
    assert "</script><script>window.broken = true</script>" in points


def test_the_map_holds_what_pointing_at_it_shows(tmp_path: Path) -> None:
    page = written(tmp_path, contents())
    assert set(page.specs()) == set(FIGURES)
    assert all(spec["width"] == "container" and spec["description"] for spec in page.specs().values())
    (points,) = page.specs()["map"]["datasets"].values()
    header, *rows = points.splitlines()
    assert header == '"id","x","y","source","rank","snippet"'
    assert len(rows) == 60
    assert page.specs()["map"]["data"]["format"]["parse"]["id"] == "string"


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    hashes = []
    for name in ("first", "second"):
        write_page(tmp_path / name, contents())
        files = sorted((tmp_path / name).iterdir())
        hashes.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (contents(n=1, k=1, sources=("only",)), ["All samples come from one source, “only”.", "there are no pairs"]),
        (contents(n=20, k=20), ["a subset of 20 samples with the pool of 20", "about as many tokens as the pool's"]),
        (contents(sources=("one",)), ["All samples come from one source, “one”."]),
        (replace(contents(), measures=measures()), ["No measures were taken."]),
        (replace(contents(), novelty=np.zeros(60), vectors=np.ones((60, 1), np.float32)), ["Report"]),
        (replace(contents(), selected=np.array([3, 3, 5])), ["1 of the picks repeat", "subset of 3 samples"]),
    ],
)
def test_odd_shapes(tmp_path: Path, of: Contents, expected: list[str]) -> None:
    text = written(tmp_path, of).text
    for part in expected:
        assert part in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selected": np.array([], dtype=np.int64)}, "at least one sample"),
        ({"selected": np.array([60])}, "rows 60 to 60; the pool has 60"),
        ({"novelty": np.zeros(3)}, "novelty: 3 rows, but the pool has 60"),
        ({"vectors": np.zeros((60, 2), np.float32)}, "row 0 is all zeros"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path, replace(contents(), **change))
    assert not list(tmp_path.iterdir())


def test_coverage_is_a_count() -> None:
    of = contents()
    selected = np.concatenate([of.selected, of.selected[:2]])
    found = tables.coverage(of.samples["source"], selected).to_pylist()
    sources = of.samples["source"].to_pylist()
    assert [row["pool"] for row in found] == sorted((sources.count(name) for name in set(sources)), reverse=True)
    for row in found:
        assert row["pool"] == sources.count(row["source"])
        assert row["pool_share"] == row["pool"] / 60
        assert row["selected"] == sum(sources[index] == row["source"] for index in selected)
        assert row["selected_share"] == row["selected"] / 14


def test_lengths_are_quantiles() -> None:
    of = contents(n=21, k=5)
    samples = of.samples.set_column(6, "turns", pa.array([0] * 21))
    for row in tables.lengths(samples, of.selected).to_pylist():
        whole = sorted(samples[row["quantity"]].to_pylist())
        part = [samples[row["quantity"]][int(index)].as_py() for index in of.selected]
        # Of 21 values the quantiles at 5, 25, 50, 75 and 95 % are values themselves.
        at = {"p5": 1, "p25": 5, "median": 10, "p75": 15, "p95": 19}
        expected = sum(whole) / 21 if row["statistic"] == "mean" else whole[at[row["statistic"]]]
        assert row["pool"] == pytest.approx(expected)
        if row["statistic"] == "median":
            assert row["subset"] == sorted(part)[2]
        assert row["ratio"] == (pytest.approx(row["subset"] / row["pool"]) if row["pool"] else None)


def test_the_words_on_length_say_the_ratio(tmp_path: Path) -> None:
    of = contents(n=30, k=10)
    tokens = np.full(30, 100)
    tokens[of.selected] = 250
    samples = of.samples.set_column(5, "tokens", pa.array(tokens)).set_column(6, "turns", pa.array([0] * 30))
    text = written(tmp_path, replace(of, samples=samples)).text
    assert "The subset's median sample has 2.5 times as many tokens as the pool's (250 against 100)." in text
    assert "On average its samples have 0 turns, where the pool's has none." in text


@pytest.mark.parametrize("tile", [7, 2048])
def test_nearest_pairs_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(tables, "_TILE", tile)
    of = contents(n=200, k=90)
    vectors = of.vectors.copy()
    vectors[of.selected[40]] = 2 * vectors[of.selected[3]]
    vectors[of.selected[41]] = vectors[of.selected[4]] + np.float32(1e-4)
    selected = np.concatenate([of.selected, of.selected[:30]])
    wide = vectors[of.selected].astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    plain = [(1 - wide[a] @ wide[b], a, b) for a in range(90) for b in range(a + 1, 90)]
    expected = sorted(plain)[:20]
    found = tables.nearest_pairs(of.samples, vectors, selected)
    np.testing.assert_allclose(found["distance"].to_numpy(), [pair[0] for pair in expected], rtol=1e-4, atol=1e-9)
    ids = of.samples["id"].take(pa.array(of.selected)).to_pylist()
    assert found["id_a"].to_pylist() == [ids[a] for _, a, _ in expected]
    assert found["id_b"].to_pylist() == [ids[b] for _, _, b in expected]
    assert found["snippet_a"][0].as_py() == f"text {of.selected[3]}"


def test_pairs_of_many_equal_vectors_come_in_pick_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_TILE", 16)
    first, second, distance = tables.closest(np.ones((100, 1), np.float32), 20)
    assert first.tolist() == [0] * 20
    assert second.tolist() == list(range(1, 21))
    assert not distance.any()


def test_the_map_is_a_projection_on_principal_components() -> None:
    of = contents()
    points, explained = tables.map_points(of.vectors, np.array([7, 2, 7]))
    centred = of.vectors.astype(np.float64) - of.vectors.mean(0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    for name, axis in zip("xy", axes, strict=False):
        np.testing.assert_allclose(np.abs(points[name].to_numpy()), np.abs(centred @ axis), atol=1e-3)
    np.testing.assert_allclose(explained, (singular**2 / (singular**2).sum())[:2], rtol=1e-4)
    assert (points["rank"][7].as_py(), points["rank"][2].as_py()) == (1, 2)


def test_histogram_shares_add_up_and_hold_what_lies_beyond() -> None:
    pool = np.concatenate([np.linspace(0, 1, 5000), [50.0]])
    rows, top = charts._bins(pool, np.array([0.5, 99.0]))
    assert sum(row["pool"] for row in rows) == pytest.approx(1, abs=1e-3)
    assert [row["subset"] for row in rows if row["subset"]] == [0.5, 0.5]
    assert (rows[-1]["subset"], top) == (0.5, 0.5)


def test_at_most_so_many_points_of_the_pool_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "MAX_POOL_POINTS", 10)
    picked = np.zeros(100, dtype=bool)
    picked[[3, 50]] = True
    drawn = charts._drawn(picked)
    assert len(drawn) == 12
    assert drawn[-2:].tolist() == [3, 50]
    np.testing.assert_array_equal(drawn, charts._drawn(picked))


def test_sources_beyond_the_most_are_drawn_together() -> None:
    counts = np.arange(30, 0, -1)
    names = [f"s{number}" for number, count in enumerate(counts) for _ in range(count)]
    coverage = tables.coverage(pa.chunked_array([names]), np.arange(10))
    rows = charts._gathered(coverage)
    assert len(rows) == 21
    assert rows[-1]["source"] == "10 other sources"
    assert rows[-1]["pool"] == 55
    assert sum(row["pool_share"] for row in rows) == pytest.approx(1)


def test_snippets_are_one_visible_line() -> None:
    texts = pa.chunked_array([["a\n\n b\u2028c\x00\u202ed", "x" * 400, ""]])
    assert tables.snippets(texts).to_pylist() == ["a b cd", "x" * 159 + "…", ""]


def test_long_texts_are_cut_until_the_map_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_POINTS_BYTES", 1000)
    points = pa.table({"x": [0.5] * 5, "snippet": ["<" * 160] * 5})
    assert len(charts._csv(points)) < 500
    monkeypatch.setattr(charts, "_POINTS_BYTES", 10_000)
    assert charts._csv(points).count("<") == 800


def _cells(page: str) -> list[str]:
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", page)]


def test_the_more_diverse_set_of_each_measure_is_named(tmp_path: Path) -> None:
    of = replace(
        contents(),
        measures=measures(
            ("up", "Up", True, 1.0, 2.0), ("down", "Down", False, 1.0, 2.0), ("near", "Near", True, 1.0, 1.01),
            ("equal", "Equal", True, 3.0, 3.0), ("none", "None", True, float("nan"), 4.0),
        ),
    )  # fmt: skip
    text = " ".join(written(tmp_path, of).text.split())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    cells = _cells(html[html.index('<table class="measures"') : html.index("</table>")])
    assert cells[2::3] == ["selected", "random", "selected, narrowly", "neither", "neither"]
    assert cells[0].startswith("2.000 1.950 to 2.050")
    assert cells[1].startswith("1.000 0.950 to 1.050")
    assert html.count("<b>") == 3
    assert "lower ↓ is more diverse" in text
    assert "not measured" in text
    assert "Other sets" not in text


def test_other_sets_have_a_table_of_their_own(tmp_path: Path) -> None:
    of = contents()
    rows = of.measures.to_pylist()
    more = pa.Table.from_pylist([*rows, {**rows[0], "set": "pool sample", "value": 0.6}])
    text = " ".join(written(tmp_path, replace(of, measures=more)).text.split())
    first, _, others = text.partition("Other sets")
    assert "Measurepool sample12 samples Distance Measure onehigher ↑ is more diverse 0.6000" in others
    assert "Measureselected12 samplesrandom12 samplesMore diverse" in first
    assert "pool sample12" not in first


def test_the_page_says_why_and_what_may_help_in_this_order(tmp_path: Path) -> None:
    of = contents()
    explanation = of.explanation.model_copy(
        update={
            "sentences": ("Some differ.", "Because of this."),
            "recommendation": Recommendation(settings={"a.b": True, "c": [{"d": 1}]}, because="of that"),
        }
    )
    text = " ".join(written(tmp_path, replace(of, explanation=explanation)).text.split())
    parts = [
        "picked from. Some differ. The subset's median",
        "More diverse",
        "Why they differ Because of this.",
        "What may help a.b: true, c: [{d: 1}] in the settings file, because of that.",
        "How well the subset covers the pool",
        "The least covered regions",
        "Where the picked samples lie",
    ]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)


def test_an_agreement_needs_no_reason_and_no_help(tmp_path: Path) -> None:
    text = written(tmp_path, contents()).text
    assert "The measures agree: 1 of 1 find the selected subset the more diverse one." in text
    assert "Why they differ" not in text
    assert "Nothing is recommended." in text


@pytest.mark.parametrize("sources", [("a", "b", "c"), ("only",)])
def test_coverage_of_the_pool_is_that_of_brute_force(sources: tuple[str, ...]) -> None:
    of = contents(n=90, k=15, sources=sources)
    names = of.samples["source"].to_pylist()
    found = tables.pool_coverage(of.samples["source"], of.to_selected, of.to_random).to_pylist()
    assert [row["source"] for row in found][: len(sources) > 1] == ([tables.WHOLE] if len(sources) > 1 else [])
    assert {row["source"] for row in found} - {tables.WHOLE} == set(sources)
    for row in found:
        members = [at for at, name in enumerate(names) if row["source"] in (name, tables.WHOLE)]
        assert row["samples"] == len(members)
        for name, distances in (("selected", of.to_selected), ("random", of.to_random)):
            part = sorted(distances[members])
            assert row[f"{name}_mean"] == pytest.approx(sum(part) / len(part))
            for key, share in (("median", 0.5), ("p90", 0.9)):
                below = int(share * (len(part) - 1))
                weight = share * (len(part) - 1) - below
                expected = part[below] + weight * (part[min(below + 1, len(part) - 1)] - part[below])
                assert row[f"{name}_{key}"] == pytest.approx(expected)


def test_the_least_covered_regions_are_those_of_brute_force() -> None:
    of = contents(n=200, k=20)
    selected = np.concatenate([of.selected, of.selected[:3]])
    rows = of.samples.to_pylist()
    regions = []
    for cell in set(of.cells.tolist()):
        members = sorted((of.to_selected[at], at) for at in range(200) if of.cells[at] == cell)
        at = members[(len(members) - 1) // 2][1]
        regions.append((-sum(distance for distance, _ in members) / len(members), cell, at, [at for _, at in members]))
    found = tables.least_covered(of.samples, of.to_selected, of.to_random, of.cells, selected).to_pylist()
    assert len(found) == tables.REGIONS < len(regions)
    for row, (mean, _, example, of_region) in zip(found, sorted(regions), strict=False):
        assert row["selected_mean"] == pytest.approx(-mean)
        assert row["random_mean"] == pytest.approx(of.to_random[of_region].mean())
        assert row["samples"] == len(of_region)
        assert row["picks"] == sum(at in of_region for at in selected)
        assert (row["id"], row["source"]) == (rows[example]["id"], rows[example]["source"])
        assert row["place"] == tables.place_of(rows[example])
        names = [rows[at]["source"] for at in of_region]
        for part in row["sources"].split(", "):
            name, share = part.split(" ")
            assert share == f"{names.count(name) / len(names):.0%}"


def test_regions_that_are_picked_whole_are_left_out() -> None:
    of = contents(n=6, k=6)
    cells = np.array([0, 0, 2, 2, 2, 2])
    none = tables.least_covered(of.samples, np.zeros(6), of.to_random, cells, of.selected)
    assert len(none) == 0
    assert none.schema.field("snippet").type == pa.string()
    distances = np.array([0, 0, 0.4, 0.2, 0.2, 0.0])
    (row,) = tables.least_covered(of.samples, distances, of.to_random, cells, of.selected).to_pylist()
    assert (row["samples"], row["id"]) == (4, "003")


def test_regions_name_their_three_largest_sources() -> None:
    names = ["a"] * 300 + ["b"] * 150 + ["c"] * 2 + ["d"] * 2
    assert tables._mix(pa.chunked_array([names])) == "a 66%, b 33%, 2 more"
    assert tables._mix(pa.chunked_array([["x", "y", "z", "w"]])) == "w 25%, x 25%, y 25%, 1 more"
    assert tables._mix(pa.chunked_array([["x"]])) == "x 100%"


def test_regions_show_two_hundred_characters_of_an_example(tmp_path: Path) -> None:
    of = contents(text="<b>" + "y" * 400)
    page = written(tmp_path, of)
    found = pq.read_table(tmp_path / "least_covered.parquet")
    assert all(text == "<b>" + "y" * 196 + "…" for text in found["snippet"].to_pylist())
    assert page.text.count("<b>" + "y" * 196 + "…") == len(found)


def test_samples_without_lines_stand_at_their_record() -> None:
    assert tables.place_of({"file": "a.json", "line": 7, "position": 2}) == "a.json#2 (line 7)"
    assert tables.place_of({"file": "a.parquet", "line": None, "position": 2}) == "a.parquet#2"


def test_how_similar_samples_are_is_shown_where_vectors_were_compared(tmp_path: Path) -> None:
    of = contents()
    of = replace(of, nearest=np.linspace(0.5, 1, 60), settings=Settings().model_dump(mode="json"))
    page = written(tmp_path, of)
    assert "nearest" in page.specs()
    assert "12 at 0.90" in page.text
