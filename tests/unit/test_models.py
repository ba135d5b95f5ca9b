"""The SQL models: how they are read and ordered, what they say of a storage whose figures can be counted by hand."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_table
from novelsum_dagster.lineage.models import (
    Test,
    build,
    column_lineage,
    column_types,
    failures,
    models,
    sources,
)
from novelsum_dagster.lineage.store import LineageStore, insert

EVIL = "'; DROP TABLE runs; --"
START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCES = ["one", "one", "one", EVIL, EVIL, EVIL, "one"]
IDS = ["a", "b", "c", "d", EVIL, "f", "g"]
"""b and c are dropped near-duplicates (c of b, b of a); g is excluded by the settings."""
TOKENS = [10, 20, 30, 40, 50, 60, 70]
PICKS: dict[str, list[dict[str, Any]]] = {
    "s1": [
        {"rank": 1, "id": "a"},
        {"rank": 2, "id": EVIL, "score": 3.5, "runner_up_id": "f-is-long-id", "margin": 0.03, "nearest_pick_id": "a"},
        {"rank": 3, "id": "f", "score": 3.25},
    ],
    "s2": [{"rank": rank, "id": id_} for rank, id_ in enumerate(["d", "a", "d", "a"], 1)],
}


def _write(path: Path, rows: list[dict[str, Any]], schema: Mapping[str, str]) -> None:
    types = {"string": pa.string(), "long": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
    fields = pa.schema([(name, types[kind]) for name, kind in schema.items()])
    write_table(pa.Table.from_pylist([{name: row.get(name) for name in schema} for row in rows], fields), path)


def _places(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = dict(zip(IDS, SOURCES, strict=True))
    place = {id_: {"source": found[id_], "file": f"{found[id_]}.jsonl", "position": IDS.index(id_)} for id_ in IDS}
    return [{**place[row["id"]], **row} for row in rows]


PLACE = {"source": "string", "file": "string", "position": "long", "line": "long"}


def _write_files(root: Path) -> None:
    pool = root / "pool" / "snapshot=p"
    samples = [
        {"id": id_, "turns": 2, "characters": 4 * tokens, "tokens": tokens, "text": f"text of {id_}"}
        for id_, tokens in zip(IDS, TOKENS, strict=True)
    ]
    shape = {"form": "string", "turns": "long", "characters": "long", "tokens": "long", "text": "string"}
    _write(pool / "samples.parquet", _places(samples), {"id": "string", **PLACE, **shape})
    origins = [{"id": id_, "is_first": True} for id_ in IDS] + [{"id": "d", "is_first": False, "position": 90}] * 1
    _write(pool / "origins.parquet", _places(origins), {"id": "string", **PLACE, "is_first": "bool"})
    rejects = [{"source": EVIL, "file": "x", "position": p, "reason": "broken_json", "detail": EVIL} for p in (8, 7)]
    _write(pool / "rejects.parquet", rejects, {**PLACE, "reason": "string", "detail": "string"})
    near = [{"id": "b", "partner_id": "a", "score": 0.91}, {"id": "c", "partner_id": "b", "score": 0.85}]
    _write(pool / "near_duplicates.parquet", near, {"id": "string", "partner_id": "string", "score": "double"})
    measured = [{"id": id_, "mean_squared_distance": 1.0, "density_factor": 2.0, "novelty": 0.5} for id_ in IDS]
    columns = {"id": "string", "mean_squared_distance": "double", "density_factor": "double"}
    _write(root / "density" / "density=d" / "density.parquet", measured, columns)
    _write(root / "novelty/sample_novelty=n/novelty.parquet", measured, {"id": "string", "novelty": "double"})
    pick = {
        "rank": "long", "id": "string", "score": "double", "runner_up_id": "string", "runner_up_score": "double",
        "margin": "double", "nearest_pick_rank": "long", "nearest_pick_id": "string", "nearest_distance": "double",
        "quality": "double",
    }  # fmt: skip
    for selection, picks in PICKS.items():
        _write(root / f"selections/selection={selection}/picks.parquet", picks, pick)
    eligibility = [
        {"rank": 1, "chosen_by": "seed"},
        {"rank": 2, "chosen_by": "score", "eligible": 3, "must_exclude": 1},
        {"rank": 3, "chosen_by": "score", "eligible": 1, "must_exclude": 1, "cap": 1},
    ]
    counts = dict.fromkeys(("eligible", "must_exclude", "budget", "cap", "floor", "partition"), "long")
    _write(
        root / "selections/selection=s1/eligibility.parquet",
        eligibility,
        {"rank": "long", "chosen_by": "string", **counts},
    )
    remaining = [
        {"id": "a", "after_picks": 0, "is_exact": True},
        {"id": "d", "score": 3.2, "after_picks": 2, "is_exact": False, "eligible_picks": 1, "barred_by": "cap"},
        {"id": EVIL, "score": 3.5, "after_picks": 1, "is_exact": True, "eligible_picks": 1},
        {"id": "f", "score": 3.25, "after_picks": 2, "is_exact": True, "eligible_picks": 2},
        {"id": "g", "after_picks": 0, "is_exact": False, "eligible_picks": 0, "barred_by": "must_exclude"},
    ]
    _write(
        root / "selections/selection=s1/remaining.parquet",
        remaining,
        {
            "id": "string", "score": "double", "after_picks": "long", "is_exact": "bool", "eligible_picks": "long",
            "barred_by": "string",
        },
    )  # fmt: skip
    covering = [("a", 1, 0.0), ("d", 3, 0.25), (EVIL, 2, 0.0), ("f", 3, 0.0), ("g", 2, 0.5)]
    _write(
        root / "selections/selection=s1/covering.parquet",
        [{"id": id_, "rank_1": rank, "distance_1": distance} for id_, rank, distance in covering],
        {"id": "string", "rank_1": "long", "distance_1": "double"},
    )


def _record(store: LineageStore) -> None:
    keys = {"snapshot": "p", "vectors": "v", "density": "d"}
    powers = {"density_power": 0.5, "proximity_power": 1.0}
    runs = [
        {
            "run_id": f"r{number}", "started_at": START + timedelta(hours=number), "settings": EVIL,
            "package_version": "1", "python": "3", "platform": "x",
        }
        for number in (1, 2, 3)
    ]  # fmt: skip
    attempts = [("r1", "raw_pool", 1, 5, "done"), ("r3", "raw_pool", 1, 2, "failed"), ("r3", "raw_pool", 2, 4, "done")]
    attempts += [("r3", "embeddings", 1, 1, "failed"), ("r1", "embeddings", 1, 7, "done")]
    rows: dict[str, list[dict[str, Any]]] = {
        "runs": runs,
        "steps": [
            {
                "run_id": run, "step": step, "attempt": attempt, "started_at": START,
                "ended_at": START + timedelta(seconds=seconds), "status": status,
                "output": {"raw_pool": "p", "embeddings": "v"}[step] if status == "done" else None,
                "error": EVIL if status == "failed" else None,
            }
            for run, step, attempt, seconds, status in attempts
        ],
        "snapshots": [
            {
                "snapshot": "p", "folder": "", "read": 12, "kept": 5, "duplicates": 3, "rejects": 2,
                "near_duplicates": 2, "near_duplicates_dropped": True,
            }
        ],
        "source_files": [
            {
                "snapshot": "p", "source": source, "file": f"{source}.jsonl", "format": "jsonl", "complete": True,
                "read": 6, "kept": kept, "duplicates": 0, "rejects": 0,
            }
            for source, kept in (("one", 2), (EVIL, 3), ("empty", 0))
        ],
        "embeddings": [
            {
                "vectors": "v", "snapshot": "p", "folder": "", "model": "m", "revision": "r", "max_tokens": 9,
                "dtype": "float32", "dimension": 8, "samples": 5,
            }
        ],
        "selections": [
            {"selection": f"s{n}", **keys, "folder": "", "strategy": strategy, "k": 3, "seed": 1, **powers}
            for n, strategy in ((1, "novelselect"), (2, "duplicate"))
        ],
        "set_measures": [
            {
                "report": f"t{n}", "selection": f"s{n}", "set_name": "selected", "measure": "novelsum", "size": 3,
                "value": value, "low": 0.0, "high": 1.0,
            }
            for n, value in ((1, 0.5), (2, 0.25))
        ],
        "run_outputs": [
            {"run_id": f"r{n}", **keys, "novelty": "n", "selection": f"s{n}", "report": f"t{n}", "embedded": 3}
            for n in (1, 2)
        ],
        "provenance": [{"run_id": "r1", "asset": "embeddings", "output": "v", "bytes": 160, "record": EVIL}],
    }  # fmt: skip
    with store.writing() as connection:
        for table, added in rows.items():
            insert(connection, table, added)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LineageStore:
    root = tmp_path_factory.mktemp("storage") / EVIL
    _write_files(root)
    found = LineageStore(root)
    _record(found)
    build(found)
    return found


def _rows(store: LineageStore, query: str, *values: Any) -> list[Any]:
    with store.reading() as connection:
        return connection.execute(query, list(values)).fetchall()


def test_every_model_is_built_and_its_columns_are_described(store: LineageStore) -> None:
    with store.reading() as connection:
        for model in models():
            assert list(column_types(connection, model.name)) == list(model.columns), model.name
            assert all(model.columns.values()), model.name
            assert connection.execute(f"SELECT 1 FROM {model.name} LIMIT 1").fetchone() == (1,), model.name


def test_descriptions_are_in_the_database(store: LineageStore) -> None:
    with store.reading() as connection:
        said = dict(
            connection.execute(
                "SELECT view_name, comment FROM duckdb_views()"
                " UNION ALL SELECT table_name, comment FROM duckdb_tables()"
            ).fetchall()
        )
        columns = {
            (table, column): comment
            for table, column, comment in connection.execute(
                "SELECT table_name, column_name, comment FROM duckdb_columns()"
            ).fetchall()
        }
    assert {model.name: said[model.name] for model in models()} == {one.name: one.description for one in models()}
    assert {name: said[name] for name in sources()} == dict(sources())
    for model in models():
        assert {name: columns[model.name, name] for name in model.columns} == dict(model.columns)


def test_every_test_passes(store: LineageStore) -> None:
    with store.reading() as connection:
        failing = {
            (test.model, test.name) for model in models() for test in model.tests if failures(connection, test).count
        }
    assert failing == set()


def test_row_counts_are_given_where_they_are_cheap(store: LineageStore) -> None:
    counts = build(store)
    assert (counts["newest_run"], counts["source_coverage"], counts["run_costs"]) == (1, 6, 4)
    assert counts["selection_audit"] is None
    assert build(store, ["newest_run", "run_costs"]) == {"newest_run": 1, "run_costs": 4}


def test_reasons_are_in_words(store: LineageStore) -> None:
    found = dict(_rows(store, "SELECT id, reason FROM selection_audit WHERE run_id = 'r1'"))
    assert found == {
        "a": "picked 1st: the first pick is drawn at random",
        "b": "left out: near-duplicate (0.91) of a",
        "c": "left out: near-duplicate (0.85) of b",
        "d": "not picked: its score after 2 picks was at most 3.2; 3.25 won"
        "; at the last pick a cap on its label was reached; its nearest pick is f, at cosine distance 0.2500",
        EVIL: "picked 2nd with a score of 3.5; f-is-lon came second by 0.03; 3 samples were eligible",
        "f": "picked 3rd with a score of 3.25; 1 sample was eligible",
        "g": "not picked: eligible at no pick made by score; the settings exclude it"
        f"; its nearest pick is {EVIL[:8]}, at cosine distance 0.5000",
    }


def test_a_sample_that_is_picked_several_times_is_one_row(store: LineageStore) -> None:
    query = "SELECT id, picked, rank, times_picked, reason FROM selection_audit WHERE run_id = 'r2' AND in_pool"
    assert sorted(_rows(store, query)) == sorted(
        [
            ("a", True, 2, 2, "picked 2nd; no score is recorded (duplicate); picked 2 times in all"),
            ("d", True, 1, 2, "picked 1st; no score is recorded (duplicate); picked 2 times in all"),
            *((id_, False, None, 0, "not picked; no score is recorded (duplicate)") for id_ in (EVIL, "f", "g")),
        ]
    )


def test_the_audit_row_has_everything(store: LineageStore) -> None:
    (row,) = _rows(
        store,
        "SELECT source, file, position, tokens, picked, rank, score, score_is_exact, after_picks, margin, runner_up_id,"
        " nearest_pick_id, density_factor, novelty, duplicates_folded FROM selection_audit WHERE run_id = ? AND id = ?",
        "r1",
        EVIL,
    )
    assert row == (EVIL, f"{EVIL}.jsonl", 4, 50, True, 2, 3.5, True, 1, 0.03, "f-is-long-id", "a", 2.0, 0.5, 0)
    bound = (
        "SELECT score, score_is_exact, after_picks, duplicates_folded FROM selection_audit WHERE run_id = ? AND id = ?"
    )
    assert _rows(store, bound, "r1", "d") == [(3.2, False, 2, 1)]
    nearest = "SELECT id, nearest_pick_id, nearest_distance FROM selection_audit WHERE run_id = ? ORDER BY id"
    assert sorted(_rows(store, nearest, "r1")) == sorted(
        [
            ("a", None, None),
            *((near_duplicate, None, None) for near_duplicate in ("b", "c")),
            ("d", "f", 0.25),
            (EVIL, "a", None),
            ("f", None, None),
            ("g", EVIL, 0.5),
        ]
    )
    assert {row[1:] for row in _rows(store, nearest, "r2")} == {(None, None)}  # A run without that file.


@pytest.mark.parametrize(
    ("rank", "ordinal"),
    [(1, "1st"), (2, "2nd"), (11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (112, "112th")],
)
def test_ordinals(tmp_path: Path, rank: int, ordinal: str) -> None:
    _write_files(tmp_path)
    _write(
        tmp_path / "selections/selection=s1/picks.parquet",
        [{"rank": rank, "id": "a"}],
        {"rank": "long", "id": "string", "score": "double"},
    )
    store = LineageStore(tmp_path)
    _record(store)
    build(store)
    ((reason,),) = _rows(store, "SELECT reason FROM selection_audit WHERE run_id = 'r1' AND id = 'a'")
    assert reason.startswith(f"picked {ordinal}")


def test_a_subset_of_an_earlier_release_has_no_eligibility(tmp_path: Path) -> None:
    _write_files(tmp_path)
    (tmp_path / "selections/selection=s1/eligibility.parquet").unlink()
    _write(
        tmp_path / "selections/selection=s1/remaining.parquet",
        [{"id": "d", "score": 3.75, "after_picks": 1, "is_exact": True}, {"id": "g", "after_picks": 0}],
        {"id": "string", "score": "double", "after_picks": "long", "is_exact": "bool"},
    )
    store = LineageStore(tmp_path)
    _record(store)
    build(store)
    found = dict(_rows(store, "SELECT id, reason FROM selection_audit WHERE run_id = 'r1'"))
    assert found[EVIL] == "picked 2nd with a score of 3.5; f-is-lon came second by 0.03"
    assert found["a"] == "picked 1st; no score is recorded (novelselect)"
    assert found["d"].startswith("not picked: its score after 1 pick was 3.75; 3.5 won; its nearest")
    assert found["g"].startswith("not picked; no score is recorded (novelselect); its nearest")


def test_marts_say_what_can_be_counted_by_hand(store: LineageStore) -> None:
    diff = _rows(store, "SELECT run_id, previous_run_id, id, change, rank, previous_rank FROM selection_diff")
    assert sorted(diff) == [
        ("r2", "r1", EVIL, "left", None, 2),
        ("r2", "r1", "a", "stayed", 2, 1),
        ("r2", "r1", "d", "entered", 1, None),
        ("r2", "r1", "f", "left", None, 3),
    ]
    coverage = _rows(
        store, "SELECT source, pool_samples, pool_tokens, subset_samples, subset_share FROM source_coverage"
        " WHERE run_id = 'r1' ORDER BY source"
    )  # fmt: skip
    assert coverage == [
        (EVIL, 3, 150, 2, pytest.approx(2 / 3)),
        ("empty", 0, 0, 0, 0),
        ("one", 2, 80, 1, pytest.approx(1 / 3)),
    ]
    lengths = _rows(
        store, "SELECT unit, pool_median, pool_mean, subset_median, subset_mean, mean_ratio FROM length_bias"
        " WHERE run_id = 'r2' ORDER BY unit"
    )  # fmt: skip
    assert lengths == [
        ("characters", 200, 184, 100, 100, 100 / 184),
        ("tokens", 50, 46, 25, 25, 25 / 46),
        ("turns", 2, 2, 2, 2, 1),
    ]
    drift = _rows(
        store, "SELECT run_id, measured, previous_run_id, change, relative_change FROM measure_drift ORDER BY 1"
    )
    assert drift == [("r1", 0.5, None, None, None), ("r2", 0.25, "r1", -0.25, -0.5)]
    assert _rows(store, "FROM rejects_by_reason") == [
        ("p", EVIL, "broken_json", 2, 6, "x", 7, None, EVIL, pytest.approx(1 / 3))
    ]


def test_near_duplicates_are_grouped_by_the_earliest(store: LineageStore) -> None:
    columns = "first_id, size, lowest_score, highest_score, sources_of_others, others_dropped"
    assert _rows(store, f"SELECT {columns} FROM near_duplicate_groups") == [("a", 3, 0.85, 0.91, ["one"], True)]


def test_a_circle_of_near_duplicates_comes_to_an_end(tmp_path: Path) -> None:
    _write_files(tmp_path)
    circle = [{"id": "b", "partner_id": "c", "score": 0.9}, {"id": "c", "partner_id": "b", "score": 0.9}]
    columns = {"id": "string", "partner_id": "string", "score": "double"}
    _write(tmp_path / "pool/snapshot=p/near_duplicates.parquet", circle, columns)
    store = LineageStore(tmp_path)
    _record(store)
    build(store)
    assert _rows(store, "FROM near_duplicate_groups") == []


def test_a_run_that_failed_half_way_is_in_its_costs_alone(store: LineageStore) -> None:
    columns = "step, attempts, failed_attempts, status, seconds, run_finished, pool_samples, bytes"
    assert _rows(store, f"SELECT {columns} FROM run_costs WHERE run_id = 'r3' ORDER BY step") == [
        ("embeddings", 1, 1, "failed", 1, False, 5, None),
        ("raw_pool", 2, 1, "done", 6, False, 5, None),
    ]
    made = "SELECT samples_embedded, bytes FROM run_costs WHERE run_id = 'r1' AND step = 'embeddings'"
    assert _rows(store, made) == [(3, 160)]
    for mart in ("selection_audit", "selection_diff", "source_coverage", "measure_drift", "length_bias"):
        assert _rows(store, f"SELECT count(*) FROM {mart} WHERE run_id = 'r3'") == [(0,)]
    assert _rows(store, "SELECT run_id FROM newest_run") == [("r2",)]


def test_text_that_is_sql_does_nothing(store: LineageStore) -> None:
    with store.reading() as connection:
        found = failures(connection, Test("source_files", "accepted_values", ("source",), values=(EVIL, "one")))
    assert (found.count, found.examples[0]["source"]) == (1, "empty")
    assert _rows(store, "SELECT count(*) FROM runs") == [(3,)]
    assert _rows(store, "SELECT count(*) FROM selection_audit WHERE run_id = ?", EVIL) == [(0,)]


@pytest.mark.parametrize(
    ("test", "count", "example"),
    [
        (Test("samples", "not_null", ("form",)), 7, {"form": None}),
        (Test("picks", "unique", ("selection", "id")), 2, {"selection": "s2", "times": 2}),
        (Test("picks", "unique", ("id",), newest="selection"), 2, {"times": 2}),
        (Test("selections", "accepted_values", ("strategy",), values=("duplicate",)), 1, {"selection": "s1"}),
        (Test("samples", "relationships", ("id",), to="picks", field="id"), 3, {"snapshot": "p"}),
        (Test("steps", "not_null", ("error",)), 3, {"status": "done"}),
    ],
)  # fmt: skip
def test_a_test_that_must_fail_does(store: LineageStore, test: Test, count: int, example: dict[str, Any]) -> None:
    with store.reading() as connection:
        found = failures(connection, test)
    assert found.count == count
    assert found.examples[0].items() >= example.items()


def test_a_test_of_the_newest_run_passes_where_none_finished(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.start_run("r1", "{}")
    build(store)
    with store.reading() as connection:
        for model in models():
            for test in model.tests:
                assert failures(connection, test).count == 0, test


def test_the_files_run_in_order_through_a_plain_connection(store: LineageStore, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(store.path.read_bytes())
    expected = {model.name: sorted(map(str, _rows(store, f"FROM {model.name}"))) for model in models()}
    with duckdb.connect(str(copy)) as connection:
        for model in reversed(models()):
            connection.execute(f"DROP {model.kind} {model.name}")
        for model in models():
            connection.execute(model.sql)
        for name, rows in expected.items():
            assert sorted(map(str, connection.execute(f"FROM {name}").fetchall())) == rows, name


@pytest.mark.parametrize("name", ["remaining", "covering"])
def test_filters_on_run_and_id_reach_the_files(tmp_path: Path, name: str) -> None:
    """Spoil what another selection left: a query that reads it fails.

    The files are of a size at which DuckDB begins with the small table of runs.
    """
    _write_files(tmp_path)
    known: dict[str, Any] = {"score": 1.0, "after_picks": 0, "is_exact": True, "rank_1": 1, "distance_1": 0.5}
    rows = [{"id": str(row), **known} for row in range(50_000)] + [{"id": "d", "rank_1": 2}]
    files = {
        "remaining": {"id": "string", "score": "double", "after_picks": "long", "is_exact": "bool"},
        "covering": {"id": "string", "rank_1": "long", "distance_1": "double"},
    }
    for selection in PICKS:
        for file, columns in files.items():
            _write(tmp_path / f"selections/selection={selection}/{file}.parquet", rows, columns)
    store = LineageStore(tmp_path)
    _record(store)
    build(store)
    spoilt = tmp_path / f"selections/selection=s2/{name}.parquet"
    content = bytearray(spoilt.read_bytes())
    content[4:10_000] = bytes(9_996)
    spoilt.write_bytes(content)
    query = "SELECT count(*), count(reason) FROM selection_audit WHERE run_id = ?"
    assert _rows(store, f"{query} AND id = ?", "r1", "d") == [(1, 1)]
    assert _rows(store, query, "r1") == [(7, 7)]
    with pytest.raises((InputError, duckdb.Error)):
        _rows(store, query, "r2")


def test_every_model_of_a_large_pool_is_read_in_little_memory(tmp_path: Path) -> None:
    """DuckDB orders joins by estimates: one that pairs all samples of a pool takes many gigabytes."""
    n, near = 30_000, 12_000
    _write_files(tmp_path)
    pool = tmp_path / "pool" / "snapshot=p"
    place = {"source": "one", "file": "one.jsonl", "turns": 2, "characters": 40, "tokens": 10, "text": "text " * 20}
    samples = [{"id": f"{row:032x}", "position": row + 1, **place} for row in range(n)]
    shape = {"form": "string", "turns": "long", "characters": "long", "tokens": "long", "text": "string"}
    _write(pool / "samples.parquet", samples, {"id": "string", **PLACE, **shape})
    _write(
        pool / "origins.parquet",
        [{**one, "is_first": True} for one in samples],
        {"id": "string", **PLACE, "is_first": "bool"},
    )
    pairs = [
        {"id": samples[row]["id"], "partner_id": samples[row % 3000 if row % 400 else row - 4]["id"], "score": 0.9}
        for row in range(n - near, n)
    ]
    _write(pool / "near_duplicates.parquet", pairs, {"id": "string", "partner_id": "string", "score": "double"})
    measured = [
        {"id": one["id"], "mean_squared_distance": 1.0, "density_factor": 2.0, "novelty": 0.5} for one in samples
    ]
    columns = {"id": "string", "mean_squared_distance": "double", "density_factor": "double"}
    _write(tmp_path / "density" / "density=d" / "density.parquet", measured, columns)
    store = LineageStore(tmp_path)
    _record(store)
    build(store)
    with store.reading() as connection:
        connection.execute("SET memory_limit = '600MB'")
        connection.execute("SET max_temp_directory_size = '0KB'")
        for model in models():
            connection.execute(f"SELECT count(*) FROM (SELECT DISTINCT * FROM {model.name})")
            for test in model.tests:
                failures(connection, test)


def test_building_often_does_not_let_the_database_grow(store: LineageStore) -> None:
    for _ in range(3):
        build(store)
    before = store.path.stat().st_size
    for _ in range(5):
        build(store)
    assert store.path.stat().st_size <= 1.2 * before


def test_a_storage_that_was_moved_is_read_where_it_is_now(store: LineageStore, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    _write_files(moved)
    (moved / "lineage.duckdb").write_bytes(store.path.read_bytes())
    (moved / "selections/selection=s2/picks.parquet").unlink()
    build(LineageStore(moved))
    assert _rows(LineageStore(moved), "SELECT DISTINCT run_id FROM source_coverage WHERE subset_samples > 0") == [
        ("r1",)
    ]


# Reading models.

VIEW = "{{{{ config(materialized='view') }}}}\nSELECT {0} FROM {1}\n"


def _folder(path: Path, files: Mapping[str, str], **stated: str) -> Path:
    """Write a folder of models, by name; each yml describes column x from columns.md unless it is stated."""
    marts = path / "marts"
    marts.mkdir(parents=True, exist_ok=True)
    (marts / "sources.yml").write_text(
        "{version: 2, sources: [{name: lineage, schema: main, tables: [{name: runs, description: A run.}]}]}"
    )
    (marts / "columns.md").write_text("{% docs x %}A column of several models.{% enddocs %}\n")
    for name, sql in files.items():
        file = marts / f"{name}.sql"
        file.write_text(sql)
        own = stated.get(name, "columns: [{name: x, description: \"{{ doc('x') }}\"}]")
        file.with_suffix(".yml").write_text(f"{{version: 2, models: [{{name: {name}, description: A row., {own}}}]}}")
    return path


def _view(table: str) -> str:
    of_lineage = table == "runs"
    named = f"{{{{ source('lineage', '{table}') }}}}" if of_lineage else f"{{{{ ref('{table}') }}}}"
    return VIEW.format("run_id AS x" if of_lineage else "x", named)


def test_models_come_after_those_that_they_read(tmp_path: Path) -> None:
    chain = {"a": _view("b"), "b": _view("c"), "c": _view("runs")}
    found = models(_folder(tmp_path, chain, b="columns: [{name: x, description: A column of its own.}]"))
    assert [model.name for model in found] == ["c", "b", "a"]
    assert [model.depends_on for model in found] == [(), ("c",), ("b",)]
    assert [model.sources for model in found] == [("runs",), (), ()]
    assert (found[0].description, found[0].kind) == ("A row.", "view")
    assert found[0].sql == "CREATE OR REPLACE VIEW c AS\nSELECT run_id AS x FROM runs;\n"
    assert [model.columns["x"] for model in found] == [
        "A column of several models.", "A column of its own.", "A column of several models.",
    ]  # fmt: skip


def test_a_cte_is_no_table_that_is_read(tmp_path: Path) -> None:
    sql = (
        "{{ config(materialized='table') }}\nWITH t AS (SELECT x FROM {{ ref('c') }})\n"
        "SELECT x FROM t WHERE x IN (FROM {{ ref('c') }})"
    )
    found = models(_folder(tmp_path, {"a": sql, "c": _view("runs")}))
    assert (found[1].depends_on, found[1].kind) == (("c",), "table")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": _view("b"), "b": _view("a")}, r"\.sql: the models form a cycle: "),
        ({"a": _view("nowhere")}, r"a\.sql: reads nowhere, which is neither a model nor a table of sources"),
        ({"runs": _view("runs")}, r"runs\.sql: the lineage has a table of that name"),
        ({"a": _view("runs") + ";DROP TABLE runs;"}, r"a\.sql: a model is one query"),
        ({"a": "-- Nothing.\n"}, r"a\.sql: begins with .* config"),
        ({"a": VIEW.format("1 AS x", "runs")}, r"a\.sql: reads runs by its plain name"),
        ({"a": _view("runs").replace("'view'", "'incremental'")}, r"a\.sql: begins with .* config"),
        ({"a": _view("runs").replace("SELECT", "DROP")}, r"a\.sql: "),
        ({"a": _view("runs").replace("lineage", "other")}, r"a\.sql: .*write ref"),
        ({"a": _view("runs") + "{{ this }}"}, r"a\.sql: of dbt's calls"),
        ({"a": _view("runs") + "{% if x %}"}, r"a\.sql: of dbt's calls"),
        ({"a": VIEW.format("x", "read_parquet('x')")}, r"a\.sql: reads READ_PARQUET\('x'\)"),
        ({"a": VIEW.format("x", "other.runs")}, r"a\.sql: reads other\.runs"),
        ({}, "has no models"),
    ],
)  # fmt: skip
def test_files_that_are_no_models_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models(_folder(tmp_path / "bad", files))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("columns: [{name: y}]", "describes y, which the model does not select"),
        ("columns: [{name: x, data_tests: [rare]}]", "a.yml: "),
        ("columns: [{name: x, data_tests: [{accepted_values: [x]}]}]", "valid dictionary"),
        ("columns: [{name: 'x; DROP TABLE runs', data_tests: [not_null]}]", "should match pattern"),
        ("columns: [{name: x, data_tests: [{relationships: {arguments: {to: runs, field: 'a b'}}}]}]", "match pattern"),
        ("config: {meta: {newest: y}}, columns: [{name: x, data_tests: [unique]}]", "names a.y, which no model"),
        (
            "columns: [{name: x, data_tests: [{relationships: {arguments: {to: ref('b'), field: x}}}]}]",
            "names b.x, which no model selects",
        ),
        ("data_tests: [{unique_together: {arguments: {columns: [x, z]}}}]", "names a.z, which no model selects"),
        ("columns: [", "a.yml: "),
    ],
)  # fmt: skip
def test_a_yml_that_does_not_fit_is_named(tmp_path: Path, stated: str, message: str) -> None:
    folder = _folder(tmp_path / "bad", {"a": _view("runs")}, a=stated)
    with pytest.raises(InputError, match=message):
        models(folder)


def test_a_missing_yml_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "bad", {"a": _view("runs")})
    (folder / "marts" / "a.yml").unlink()
    with pytest.raises(InputError, match=r"a\.yml: is missing"):
        models(folder)


def test_a_model_may_turn_from_a_view_into_a_table(tmp_path: Path) -> None:
    store = LineageStore(tmp_path / "storage")
    store.start_run("r1", "{}")
    for number, kind in enumerate(("view", "table", "view")):
        folder = _folder(tmp_path / str(number), {"a": _view("runs").replace("view", kind)})
        assert build(store, folder=folder) == {"a": 1}
    assert _rows(store, "FROM a") == [("r1",)]


def test_a_model_whose_reading_was_never_built_is_refused(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.start_run("r1", "{}")
    with pytest.raises(InputError, match="near_duplicate_groups reads pool_samples, which was never built"):
        build(store, ["near_duplicate_groups"])
    with pytest.raises(InputError, match="no model is named 'costs'"):
        build(store, ["costs"])
    assert _rows(store, "SELECT count(*) FROM duckdb_views() WHERE view_name = 'near_duplicate_groups'") == [(0,)]


def test_columns_are_followed_to_what_they_are_made_of() -> None:
    lineage = column_lineage(models())
    assert lineage["newest_run"]["started_at"] == [("runs", "started_at")]
    assert lineage["newest_run"]["novelty_key"] == [("run_outputs", "novelty")]
    assert lineage["selection_audit"]["score"] == [("picked_samples", "score"), ("remaining", "score")]
    assert lineage["selection_audit"]["density_factor"] == [("density", "density_factor")]
    assert lineage["selection_audit"]["file"] == [("pool_samples", "file")]
    assert lineage["near_duplicate_groups"]["first_id"] == [("near_duplicates", "partner_id")]
    assert lineage["source_coverage"]["subset_tokens"] == [("samples", "tokens")]
    for model in models():
        assert list(lineage[model.name]) == list(model.columns), model.name
        read = {table for leaves in lineage[model.name].values() for table, _ in leaves}
        assert read <= {*model.depends_on, *model.sources}, model.name


def test_reading_models_imports_no_sqlglot_before_it_is_asked() -> None:
    program = (
        "import sys, novelsum_dagster.lineage.models; sys.exit('sqlglot' in sys.modules or 'duckdb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
