"""The explorer's data: what the map, the tables and the export hold, against independent computation; its page."""

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from novelsum_dagster.cli.explore import streamlit_command
from novelsum_dagster.cli.main import app as app_of_cli
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_table
from novelsum_dagster.explore import page
from novelsum_dagster.explore.atlas import export, neighbors
from novelsum_dagster.explore.audit_tables import TABLES, as_csv, finished_runs, read_table
from novelsum_dagster.explore.map_figure import NAMED, TIPS, map_figure
from novelsum_dagster.explore.pool_map import fitting, load_map, search, thinned
from novelsum_dagster.lineage.models import build
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import LineageStore, insert
from tests.pools import write_settings

ATTACK = "<script>window.broken = true</script><b>*bold*</b> [a](http://example.org/a) $x$"
SOURCES = ("plain", ATTACK, "rare")
PAGE = str(Path(page.__file__))


def write_storage(root: Path, n: int = 300, k: int = 20, runs: int = 2, dimension: int = 8) -> None:
    """Write a storage as `runs` runs leave it, with made-up samples; a second run picks other samples."""
    generator = np.random.default_rng(7)
    ids = [f"{number:032x}" for number in generator.permutation(n)]
    texts = [f"sample number {row}, said {ATTACK if row % 2 else 'plainly'}" for row in range(n)]
    sources = [SOURCES[0 if row % 10 < 7 else 1 if row % 10 < 9 else 2] for row in range(n)]
    place = {"source": sources, "file": ["a.jsonl"] * n, "position": range(n), "line": range(1, n + 1)}
    tokens = generator.integers(5, 400, n)
    samples = {"id": ids, **place, "form": ["alpaca"] * n, "turns": np.full(n, 2, np.int32), "tokens": tokens}
    characters = [len(text) for text in texts]
    write_table(
        pa.table({**samples, "characters": characters, "text": texts, "original": [b""] * n}),
        root / "pool" / "snapshot=s" / "samples.parquet",
    )
    vectors = generator.standard_normal((n, dimension)).astype(np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension)
    write_table(pa.table({"id": ids, "vector": rows}), root / "vectors" / "m" / "0.parquet")
    store = LineageStore(root)
    for number in range(runs):
        picked = generator.permutation(n)[:k]
        _write_selection(root, f"c{number}", pa.table(samples).select(["id", *place, "turns", "tokens"]), picked)
        rank = np.zeros(n, np.int64)
        rank[picked] = np.arange(1, k + 1)
        points = {"id": ids, "x": vectors[:, 0].astype(float), "y": vectors[:, 1].astype(float), "source": sources}
        snippets = [text[:160] for text in texts]
        table = pa.table({**points, "rank": pa.array(rank, mask=rank == 0), "snippet": snippets})
        write_table(table, root / "reports" / f"report=r{number}" / "map.parquet")
        with store.writing() as connection:
            for name, row in _rows(number, n, k, dimension).items():
                insert(connection, name, [row])


def _write_selection(root: Path, selection: str, samples: pa.Table, picked: Any) -> None:
    k = len(picked)
    picks = {
        "rank": range(1, k + 1), **{name: samples[name].take(pa.array(picked)) for name in samples.column_names},
        "score": np.linspace(9, 1, k), "runner_up_id": pa.nulls(k, pa.string()),
        "runner_up_score": pa.nulls(k, pa.float64()), "margin": np.full(k, 0.5),
        "nearest_pick_rank": pa.nulls(k, pa.int64()), "nearest_pick_id": pa.nulls(k, pa.string()),
        "nearest_distance": np.full(k, 0.25), "density_factor": np.ones(k), "quality": pa.nulls(k, pa.float64()),
    }  # fmt: skip
    write_table(pa.table(picks), root / "selections" / f"selection={selection}" / "picks.parquet")


def _rows(number: int, n: int, k: int, dimension: int) -> dict[str, dict[str, Any]]:
    run_id, started = f"run{number}-0000", f"2026-01-0{number + 1} 12:00:00+00"
    settings = json.dumps({"pool": {"near_duplicates": {"drop": True}}, "selection": {"k": k}})
    keys = {"snapshot": "s", "vectors": "v", "density": "d"}
    selection = f"c{number}"
    counts = {"read": n, "kept": n, "duplicates": 0, "rejects": 0}
    return {
        "runs": {"run_id": run_id, "started_at": started, "settings": settings, "package_version": "0",
                 "git_revision": None, "python": "3", "platform": "x"},
        "snapshots": {"snapshot": "s", "folder": "pool/snapshot=s", **counts, "near_duplicates": 0,
                      "near_duplicates_dropped": True},
        "embeddings": {"vectors": "v", "snapshot": "s", "folder": "vectors/m", "model": "m", "revision": "1",
                       "max_tokens": 256, "dtype": "float32", "dimension": dimension, "samples": n},
        "selections": {"selection": selection, **keys, "folder": f"selections/selection={selection}",
                       "strategy": "novelselect", "k": k, "seed": 42, "density_power": 0.5, "proximity_power": 1.0},
        "run_outputs": {"run_id": run_id, **keys, "novelty": "n", "selection": selection, "report": f"r{number}"},
        "set_measures": {"report": f"r{number}", "selection": selection, "set_name": "selected",
                         "measure": "novelsum", "size": k, "value": 1.0 + number, "low": 0.9, "high": 2.1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explore") / "curated"
    write_storage(root)
    build(LineageStore(root))
    return root


def _picks(root: Path, number: int = 1) -> list[str]:
    ids: list[str] = pq.read_table(root / f"selections/selection=c{number}/picks.parquet", partitioning=None)[
        "id"
    ].to_pylist()
    return ids


def test_the_map_is_that_of_the_report(root: Path) -> None:
    with LineageStore(root).reading() as connection:
        run = find_run(connection, None)
        of = load_map(connection, root, run)
    written = pq.read_table(root / "reports/report=r1/map.parquet", partitioning=None)
    samples = pq.read_table(root / "pool/snapshot=s/samples.parquet", partitioning=None)
    assert run.run_id == "run1-0000"
    assert of.ids.to_pylist() == written["id"].to_pylist()
    assert of.x.dtype == of.y.dtype == np.float32
    np.testing.assert_allclose(of.x, written["x"].to_numpy(), rtol=1e-6)
    assert [of.sources[code] for code in of.source] == written["source"].to_pylist()
    assert of.tokens.tolist() == samples["tokens"].to_pylist()
    by_rank = {int(rank): id_ for rank, id_ in zip(of.rank, of.ids.to_pylist(), strict=True) if rank}
    assert [by_rank[rank] for rank in sorted(by_rank)] == _picks(root)
    assert of.row_of(of.ids[17].as_py()) == 17
    assert of.row_of("nowhere") is None


def test_filters_are_those_of_a_loop(root: Path) -> None:
    with LineageStore(root).reading() as connection:
        of = load_map(connection, root, find_run(connection, None))
    for sources in ((), ("rare",), ("rare", "plain")):
        for picked in ("all", "picked", "not picked"):
            expected = [
                (not sources or of.sources[of.source[row]] in sources)
                and (picked == "all" or (of.rank[row] > 0) == (picked == "picked"))
                and 50 <= of.tokens[row] <= 300
                for row in range(len(of.x))
            ]
            assert fitting(of, sources, picked, (50, 300)).tolist() == expected


@pytest.mark.parametrize("most", [0, 1, 50, 279, 280, 1000, None])
def test_thinning_keeps_all_picks(most: int | None) -> None:
    rank = np.zeros(300, np.int64)
    rank[::15] = np.arange(1, 21)
    mask = np.ones(300, dtype=bool)
    rows = thinned(mask, rank, most)
    assert set(np.flatnonzero(rank)) <= set(rows)
    assert len(rows) == 20 + min(280, 280 if most is None else most)
    assert (np.diff(rows) > 0).all()
    mask[:150] = False
    fewer = thinned(mask, rank, most)
    assert set(rows[rows >= 150]) <= set(fewer)


def test_search_finds_ids_and_texts_and_reads_no_patterns(root: Path) -> None:
    with LineageStore(root).reading() as connection:
        run = find_run(connection, None)
        id_ = _picks(root)[3]
        assert [hit["id"] for hit in search(connection, run, id_.upper())] == [id_]
        hits = search(connection, run, "SAMPLE number")
        assert len(hits) == 101
        assert [hit["rank"] for hit in hits[:20]] == list(range(1, 21))
        assert search(connection, run, "%") == []
        assert search(connection, run, "'; DROP TABLE runs; --") == []


def test_the_map_after_some_picks_and_its_rows_as_a_table(root: Path) -> None:
    with LineageStore(root).reading() as connection:
        pool = load_map(connection, root, find_run(connection, None))
    early = pool.after_picks(5)
    assert early.rank.max() == 5 and (early.rank > 0).sum() == 5
    assert (pool.rank > 0).sum() == 20
    chosen = np.flatnonzero(early.rank > 0)
    table = early.rows(np.append(chosen, np.flatnonzero(early.rank == 0)[0]))
    picks = _picks(root)
    assert {row["id"]: row["rank"] for row in table.to_pylist()[:5]} == dict(zip(picks[:5], range(1, 6), strict=True))
    assert table["rank"][5].as_py() is None
    assert table["source"].to_pylist()[0] in SOURCES


def test_the_tables_agree_with_the_files(root: Path) -> None:
    samples = pq.read_table(root / "pool/snapshot=s/samples.parquet", partitioning=None).to_pylist()
    picked = set(_picks(root))
    with LineageStore(root).reading() as connection:
        run = find_run(connection, None)
        tables = {name: read_table(connection, root, name, run) for name in TABLES}
        assert [row["run_id"] for row in finished_runs(connection)] == ["run1-0000", "run0-0000"]
    assert all(table is not None for name, table in tables.items() if name != "near misses")
    picks, lengths, measures = (tables[name] for name in ("picks", "lengths", "measures"))
    assert picks is not None and lengths is not None and measures is not None
    assert picks["id"].to_pylist() == _picks(root)
    of = {row["unit"]: row for row in lengths.to_pylist()}["tokens"]
    assert of["pool_mean"] == pytest.approx(np.mean([row["tokens"] for row in samples]))
    assert of["subset_median"] == np.median([row["tokens"] for row in samples if row["id"] in picked])
    assert [row["change"] for row in measures.to_pylist()] == [1.0, None]
    assert next(csv.reader(as_csv(picks).decode().splitlines())) == picks.column_names


def test_a_lineage_without_models_has_no_tables(tmp_path: Path) -> None:
    write_storage(tmp_path, n=30, k=5, runs=1)
    with LineageStore(tmp_path).reading() as connection:
        run = find_run(connection, None)
        found = {name for name in TABLES if read_table(connection, tmp_path, name, run) is not None}
    assert found == {"picks"}


def test_a_model_of_another_version_is_named(tmp_path: Path) -> None:
    write_storage(tmp_path, n=30, k=5, runs=1)
    store = LineageStore(tmp_path)
    with store.writing() as connection:
        connection.execute("CREATE TABLE length_bias AS SELECT 'run0-0000' AS run_id")
    with store.reading() as connection, pytest.raises(InputError, match="length_bias was built by another version"):
        read_table(connection, tmp_path, "lengths", find_run(connection, None))


def test_the_figure_escapes_and_knows_its_rows(root: Path) -> None:
    with LineageStore(root).reading() as connection:
        of = load_map(connection, root, find_run(connection, None))
    rows = thinned(fitting(of), of.rank, 100)
    assert len(rows) <= TIPS
    assert len(of.sources) <= NAMED
    for colour in ("picked or not", "source"):
        figure, curves = map_figure(of, rows, colour, found=5)
        drawn = figure.to_json()
        assert "<script" not in drawn.replace("\\u003c", "<")
        assert "&lt;script" in drawn.replace("\\u0026", "&")
        for trace, points in zip(figure.data, curves, strict=True):
            if len(points):
                np.testing.assert_array_equal(trace.x, of.x[points])
        assert sorted(np.concatenate(curves[:-1]).tolist()) == rows.tolist()
        assert curves[-1].tolist() == [5]
        assert {str(trace.marker.symbol) for trace in figure.data} == {"circle", "diamond", "circle-open"}


def test_arrays_travel_as_bytes(root: Path) -> None:
    with LineageStore(root).reading() as connection:
        of = load_map(connection, root, find_run(connection, None))
    figure, _ = map_figure(of, np.arange(300), "picked or not")
    spec = json.loads(figure.to_json())
    assert {trace["x"]["dtype"] for trace in spec["data"]} == {"f4"}


def test_neighbours_are_those_of_a_full_sort() -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    vectors[40] = vectors[41] = vectors[42]  # Equal rows, whose own place may not come first.
    found = neighbors(vectors, 5).to_pylist()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = 1 - units @ units.T
    np.fill_diagonal(distance, np.inf)
    for row, one in enumerate(found):
        assert row not in one["ids"]
        np.testing.assert_allclose(one["distances"], np.sort(distance[row])[:5], atol=1e-5)
        np.testing.assert_allclose(distance[row][one["ids"]], one["distances"], atol=1e-5)
    assert neighbors(vectors[:1], 5).to_pylist() == [{"ids": [], "distances": []}]


def test_the_export_has_what_embedding_atlas_reads(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    with LineageStore(root).reading() as connection:
        assert export(connection, root, find_run(connection, None), path) == 300
    table = pq.read_table(path)
    lists = {"ids": pa.list_(pa.int32()), "distances": pa.list_(pa.float32())}
    kind = table.schema.field("neighbors").type
    assert {field.name: pa.list_(field.type.value_type) for field in kind} == lists
    samples = pq.read_table(root / "pool/snapshot=s/samples.parquet", partitioning=None)
    assert table["text"].to_pylist() == samples["text"].to_pylist()
    assert {
        id_ for id_, chosen in zip(table["id"].to_pylist(), table["picked"].to_pylist(), strict=True) if chosen
    } == set(_picks(root))
    by_duckdb = duckdb.connect().execute(
        "SELECT min(len(neighbors.ids)), max(neighbors.ids[1]) < 300 FROM read_parquet(?)", [str(path)]
    )
    assert by_duckdb.fetchall() == [(15, True)]


def test_the_command_exports_and_names_mistakes(root: Path, tmp_path: Path) -> None:
    settings = str(write_settings(root.parent))
    path = tmp_path / "pool.parquet"
    found = CliRunner().invoke(app_of_cli, ["explore", "-s", settings, "--run", "run0", "--export", str(path)])
    assert found.exit_code == 0, found.output
    assert pq.read_metadata(path).num_rows == 300
    for given in (["--run", "nobody"], ["--export", "pool.csv"]):
        found = CliRunner().invoke(app_of_cli, ["explore", "-s", settings, *given])
        assert isinstance(found.exception, InputError)


def test_the_page_is_served_to_this_machine_alone() -> None:
    command = streamlit_command(8501)
    assert "--server.address=127.0.0.1" in command
    assert "--browser.gatherUsageStats=false" in command


@pytest.fixture
def app(root: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("NOVELSUM_SETTINGS", str(write_settings(root.parent)))
    return AppTest.from_file(PAGE, default_timeout=60)


def test_the_page_shows_every_view_and_a_sample(app: AppTest, root: Path) -> None:
    app.run()
    assert not app.exception and not app.error
    app.text_input(key="query").set_value(_picks(root)[0]).run()
    assert app.code[0].value.startswith("sample number")
    assert any("Picked as number 1 of 20" in text.value for text in app.text)
    for view in page._views():
        app.button_group(key="view").set_value([view]).run()
        assert not app.exception, view
        assert not app.error, view


def test_filters_count_what_fits(app: AppTest) -> None:
    app.run()
    app.radio(key="picked").set_value("picked").run()
    assert "20 of 300 samples pass the filters, 20 of them picked" in " ".join(one.value for one in app.caption)


@pytest.mark.parametrize("damage", ["none", "damaged", "no map"])
def test_damage_is_told_in_a_sentence(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVELSUM_SETTINGS", str(write_settings(tmp_path)))
    root = tmp_path / "curated"
    if damage != "none":
        write_storage(root, n=30, k=5, runs=1)
    if damage == "damaged":
        (root / "lineage.duckdb").write_bytes(b"nothing of the kind")
    if damage == "no map":
        (root / "reports/report=r0/map.parquet").unlink()
    app = AppTest.from_file(PAGE, default_timeout=60).run()
    assert not app.exception
    assert len(app.error) == 1
    words = app.error[0].value.replace("\\", "")
    assert {"none": "no lineage yet", "damaged": "cannot be opened", "no map": "has no map"}[damage] in words
