"""The lineage database over time: earlier and newer versions, damage, rebuilding, readers beside a writer."""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import SEAL, file_hash, write_table
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import LineageStore

ROOT = Path(__file__).resolve().parents[2]
TABLES = [
    "runs", "steps", "snapshots", "source_files", "embeddings", "densities", "novelties", "selections",
    "set_measures", "run_outputs",
]  # fmt: skip


def _outputs(run_id: str, number: int) -> dict[str, list[dict[str, Any]]]:
    """Return rows as a run writes them; what does not depend on `number` is shared by all runs."""
    return {
        "snapshots": [
            {"snapshot": "s", "folder": "pool/snapshot=s", "read": 5, "kept": 3, "duplicates": 1, "rejects": 1,
             "near_duplicates": 0, "near_duplicates_dropped": False}
        ],
        "source_files": [
            {"snapshot": "s", "source": "it's; DROP TABLE runs; --", "file": "a.jsonl", "format": "jsonl",
             "form": None, "sha256": "00", "complete": True, "read": 5, "kept": 3, "duplicates": 1, "rejects": 1}
        ],
        "embeddings": [
            {"vectors": "v", "snapshot": "s", "folder": "vectors/m", "model": "m", "revision": "r",
             "max_tokens": 256, "dtype": "float32", "dimension": 4, "samples": 3}
        ],
        "densities": [
            {"density": "d", "vectors": "v", "file": "f", "neighbors": 10, "density_power": 0.5,
             "reference_size": 3, "neighbor_policy": "published", "neighbors_used": 2, "index": "exact",
             "recall": 1.0}
        ],
        "novelties": [
            {"novelty": "n", "density": "d", "file": "f", "proximity_power": 1.0, "novelsum": 0.1 + 0.2,
             "self_distance": "included", "density_side": "row", "aggregate": "mean"}
        ],
        "selections": [
            {"selection": f"c{number}", "snapshot": "s", "vectors": "v", "density": "d", "folder": f"c{number}",
             "strategy": "novelselect", "k": number, "seed": 42, "density_power": 0.5, "proximity_power": 1.0,
             "options": '{"must_exclude": ["é"]}'}
        ],
        "set_measures": [
            {"report": f"p{number}", "selection": f"c{number}", "set_name": name, "measure": "novelsum", "size": 2,
             "value": 1 / 3 + number, "low": -1e-300, "high": 1e300}
            for name in ("selected", "random")
        ],
        "run_outputs": [
            {"run_id": run_id, "snapshot": "s", "vectors": "v", "density": "d", "novelty": "n",
             "selection": f"c{number}", "report": f"p{number}"}
        ],
    }  # fmt: skip


def _record(store: LineageStore, run_id: str, number: int) -> None:
    """Record a run as the pipeline does: a failed attempt, done steps, and outputs while the last step runs."""
    store.start_run(run_id, json.dumps({"selection": {"k": number}}))
    store.end_step(run_id, "raw_pool", store.start_step(run_id, "raw_pool"), None, 'broken; it\'s "bad"\nvery')
    store.end_step(run_id, "raw_pool", store.start_step(run_id, "raw_pool"), "s", None)
    last = store.start_step(run_id, "lineage")
    store.keep_run(run_id, _outputs(run_id, number))
    store.end_step(run_id, "lineage", last, "key", None)


def test_a_dead_run_is_closed_once(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.start_run("aaaa-1", "{}")
    store.end_step("aaaa-1", "raw_pool", store.start_step("aaaa-1", "raw_pool"), "s", None)
    store.start_step("aaaa-1", "lineage")
    store.keep_run("aaaa-1", _outputs("aaaa-1", 1))
    for error in ("the process ended", "looked at again"):
        store.close_run("aaaa-1", error)
    store.close_run("never-started", "the process ended")
    before = _rows(store)
    assert len(before["run_outputs"]) == 1
    with store.reading() as connection:
        found = connection.execute("SELECT step, status, error FROM steps ORDER BY step").fetchall()
    assert found == [("lineage", "failed", "the process ended"), ("raw_pool", "done", None)]
    assert store.rebuild() == 1
    assert _rows(store) == before


def test_changed_run_files_are_imported_when_the_database_is_opened(store: LineageStore, tmp_path: Path) -> None:
    """Steps change the run's file alone, so a whole run writes the database a few times."""
    before = store.path.stat().st_ino
    store.end_step("bbbb-3", "raw_pool", store.start_step("bbbb-3", "raw_pool"), "key", None)
    store.start_step("aaaa-1", "audit")
    assert store.path.stat().st_ino == before
    expected = _rows(store, ["steps"])
    found = {(*row[:3], row[5], row[6]) for row in expected["steps"]}
    assert {("bbbb-3", "raw_pool", 2, "done", "key"), ("aaaa-1", "audit", 1, "running", None)} <= found
    after = store.path.stat().st_ino
    assert after != before
    assert _rows(store, ["steps"]) == expected
    assert store.path.stat().st_ino == after

    other = LineageStore(tmp_path / "another machine")
    _record(other, "dddd-9", 9)
    shutil.copy(other.root / "runs" / "dddd-9.json", store.root / "runs")
    with store.reading() as connection:
        assert find_run(connection, "dddd-9").k == 9
    store.path.unlink()
    assert len(_rows(store)["runs"]) == 4


def test_a_reader_of_a_folder_in_use_gets_the_rows_of_before(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novelsum_dagster.lineage.store._READER_SECONDS", 0)
    before = _rows(store)
    store.start_step("aaaa-1", "audit")
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.lineage.store import LineageStore\n"
        "with LineageStore(Path(sys.argv[1])).exclusive(): print('holds', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", program, str(store.root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        assert _rows(store) == before
        holder.communicate("\n")
    assert len(_rows(store)["steps"]) == len(before["steps"]) + 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole runs and one that failed."""
    made = LineageStore(tmp_path_factory.mktemp("lineage"))
    _record(made, "aaaa-1", 1)
    _record(made, "aaaa-2", 2)
    made.start_run("bbbb-3", "{}")
    made.end_step("bbbb-3", "raw_pool", made.start_step("bbbb-3", "raw_pool"), None, "no such file")
    return made.path.parent


@pytest.fixture
def store(written: Path, tmp_path: Path) -> LineageStore:
    """A copy of that, to damage."""
    return LineageStore(Path(shutil.copytree(written, tmp_path / "it's here")))


def _rows(store: LineageStore, tables: list[str] = TABLES) -> dict[str, list[tuple[Any, ...]]]:
    with store.reading() as connection:
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in tables}


def _names(store: LineageStore) -> list[str]:
    return sorted(path.name for path in store.path.parent.iterdir())


def _of_version_1(folder: Path) -> LineageStore:
    """Write a database as the first version had it: fewer columns, one table more, no word of its version."""
    folder.mkdir(parents=True)
    statements = files("novelsum_dagster.lineage").joinpath("schema.sql").read_text().split(";")
    newer = ("schema_version", "set_measures", "ALTER TABLE")
    with duckdb.connect(str(folder / "lineage.duckdb")) as connection:
        for statement in statements:
            if not any(word in statement for word in newer):
                connection.execute(statement)
        connection.execute("CREATE TABLE measures (report VARCHAR, set_name VARCHAR, novelsum DOUBLE)")
        connection.execute("INSERT INTO measures VALUES ('p', 'selected', 0.5)")
        connection.execute(
            "INSERT INTO runs VALUES ('old-run', '2026-01-01 00:00:00+00', '{\"k\": 3}', '0.1', NULL, '3.11', 'x')"
        )
        connection.execute("INSERT INTO selections VALUES ('c', 's', 'v', 'd', 'f', 'random', 3, 42, 0.5, 1.0)")
        connection.execute("INSERT INTO embeddings VALUES ('v', 's', 'f', 'm', 'r', 256, 'float32', 4, 3)")
        connection.execute("INSERT INTO run_outputs VALUES ('old-run', 's', 'v', 'd', 'n', 'c', 'p')")
    return LineageStore(folder)


def _version(path: Path) -> Any:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute("SELECT version FROM schema_version").fetchall()


@pytest.mark.parametrize("by", ["reading", "writing"])
def test_a_database_of_version_1_is_brought_up_to_date_and_kept(tmp_path: Path, by: str) -> None:
    store = _of_version_1(tmp_path / "old")
    before = store.path.read_bytes()
    if by == "reading":
        with store.reading() as connection:
            assert connection.execute("SELECT options FROM selections").fetchall() == [(None,)]
    else:
        store.start_run("new-run", "{}")
    kept = store.path.with_name("lineage.duckdb.v1")
    assert kept.read_bytes() == before
    assert _names(store) == ["lineage.duckdb", "lineage.duckdb.v1", "lineage.lock"] + ["runs"] * (by == "writing")
    assert _version(store.path) == [(5,)]
    with store.reading() as connection:
        run = find_run(connection, "old-run")
        assert (run.strategy, run.k, run.options, run.settings) == ("random", 3, {}, {"k": 3})
        assert connection.execute("SELECT * FROM measures").fetchall() == [("p", "selected", 0.5)]
        assert connection.execute("SELECT count(*) FROM picks").fetchall() == [(0,)]
    stamp = kept.stat().st_mtime_ns
    store.start_run("newer-run", "{}")
    assert (kept.read_bytes(), kept.stat().st_mtime_ns) == (before, stamp)


def test_a_database_without_a_version_table_keeps_all_its_rows(store: LineageStore) -> None:
    expected = _rows(store)
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("DROP TABLE schema_version")
    before = file_hash(store.path)
    assert _rows(store) == expected
    assert file_hash(store.path.with_name("lineage.duckdb.v1")) == before
    assert _version(store.path) == [(5,)]


def test_a_database_of_version_3_shows_how_near_duplicates_were_found(store: LineageStore) -> None:
    """Its view has no such column, and its pools have no such tables but those by text."""
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE schema_version SET version = 3")
        connection.execute(
            "CREATE OR REPLACE VIEW near_duplicates AS"
            " SELECT NULL::VARCHAR AS id, NULL::VARCHAR AS partner_id, NULL::DOUBLE AS score, NULL::VARCHAR AS snapshot"
            " WHERE false"
        )
    near = pa.table({"id": ["a"], "partner_id": ["b"], "score": [0.9]})
    write_table(near, store.root / "pool" / "snapshot=s" / "near_duplicates.parquet")
    expected = [("a", "b", 0.9, None, "s")]
    query = "SELECT id, partner_id, score, found_by, snapshot FROM near_duplicates"
    with store.reading() as connection:
        assert connection.execute(query).fetchall() == expected
    assert _version(store.path) == [(5,)]
    assert store.path.with_name("lineage.duckdb.v3").exists()


def test_a_newer_database_is_refused_and_left_untouched(store: LineageStore) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE schema_version SET version = 7")
    before, names = file_hash(store.path), _names(store)
    with pytest.raises(InputError, match=r"newer version of novelsum \(schema 7 > 5\)"):
        _rows(store)
    with pytest.raises(InputError, match="newer version of novelsum"):
        store.start_run("r9", "{}")
    assert (file_hash(store.path), _names(store)) == (before, names)


def test_readers_that_find_version_1_at_once_all_succeed(tmp_path: Path) -> None:
    store = _of_version_1(tmp_path / "old")
    before = file_hash(store.path)
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.lineage.store import LineageStore\n"
        "with LineageStore(Path(sys.argv[1])).reading() as c: print(c.execute('SELECT run_id FROM runs').fetchall())"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "old")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [reader.communicate(timeout=120)[0] for reader in readers] == ["[('old-run',)]\n"] * 3
    assert file_hash(store.path.with_name("lineage.duckdb.v1")) == before


@pytest.mark.parametrize("part", [0, 1, 4096, 0.1, 0.3])
def test_a_truncated_database_is_named_and_can_be_rebuilt(store: LineageStore, part: float) -> None:
    expected = _rows(store)
    whole = store.path.read_bytes()
    length = int(len(whole) * part) if 0 < part < 1 else int(part)
    store.path.write_bytes(whole[:length])
    with pytest.raises(InputError, match=re.escape(str(store.path)) + r": .*rebuild-lineage"):
        store.start_run("r9", "{}")
    assert store.path.read_bytes() == whole[:length]
    with pytest.raises(InputError, match=re.escape(str(store.path)) + r": .*rebuild-lineage"):
        _rows(store)
    assert store.rebuild() == 3
    assert store.path.with_name("lineage.duckdb.old").read_bytes() == whole[:length]
    assert _rows(store) == expected
    assert _names(store) == ["lineage.duckdb", "lineage.duckdb.old", "lineage.lock", "runs"]


def test_a_rebuilt_database_goes_on(store: LineageStore) -> None:
    """Also where it was not damaged, or is missing, and a second time."""
    expected = _rows(store)
    assert store.rebuild() == 3
    store.path.unlink()
    assert store.rebuild() == 3
    assert _rows(store) == expected
    _record(store, "cccc-4", 4)
    expected = _rows(store)
    assert len(expected["runs"]) == 4
    assert store.rebuild() == 4
    assert _rows(store) == expected
    with store.reading() as connection:
        assert find_run(connection, "cccc").k == 4
        assert find_run(connection, None).run_id == "cccc-4"
        with pytest.raises(InputError, match="run bbbb-3 has no subset: its step raw_pool failed: no such file"):
            find_run(connection, "bbbb")


def test_there_is_nothing_to_rebuild_from(tmp_path: Path) -> None:
    store = _of_version_1(tmp_path / "old")
    before = file_hash(store.path)
    with pytest.raises(InputError, match="runs: has no run files"):
        store.rebuild()
    assert file_hash(store.path) == before


@pytest.mark.parametrize(
    "content",
    [
        "", '{"runs": [{"run_id": "x"', "[]", '"text"', '{"runs": [{"run_id": "x"}]}', '{"runs": 3}', "\udcff",
        '{"runs; DROP TABLE steps; --": [{"a": 1}]}', '{"steps": [{"run_id": "x", "no_such": 1}]}',
    ],
)  # fmt: skip
def test_a_damaged_run_file_is_named_and_the_database_stays(store: LineageStore, content: str) -> None:
    before = file_hash(store.path)
    bad = store.path.parent / "runs" / "aaaa-2.json"
    bad.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=re.escape(f"{bad}: damaged") + "(.|\n)*move it away"):
        store.rebuild()
    assert file_hash(store.path) == before
    assert _names(store) == ["lineage.duckdb", "lineage.lock", "runs"]
    bad.unlink()
    assert store.rebuild() == 2
    assert [row[0] for row in _rows(store)["runs"]] == ["aaaa-1", "bbbb-3"]


def test_a_step_that_ends_later_is_in_the_run_file(store: LineageStore) -> None:
    """Steps that come after the lineage was written, as checks and models, are not lost."""
    path = store.path.parent / "runs" / "aaaa-1.json"
    assert "audit" not in path.read_text()
    store.end_step("aaaa-1", "audit", store.start_step("aaaa-1", "audit"), "key", None)
    kept = json.loads(path.read_text())
    assert {(row["step"], row["attempt"], row["status"]) for row in kept["steps"]} == {
        ("raw_pool", 1, "failed"), ("raw_pool", 2, "done"), ("lineage", 1, "done"), ("audit", 1, "done"),
    }  # fmt: skip
    assert set(kept) == {*TABLES, SEAL}
    path.write_text("half a fi")
    with pytest.raises(InputError, match=re.escape(f"{path}: damaged")):
        store.start_step("aaaa-1", "more")
    store.close_run("aaaa-1", "the process ended")
    assert path.read_text() == "half a fi"


def test_how_a_run_without_a_subset_ended_is_said(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.start_run("one", "{}")
    for asked in (None, "one"):
        with store.reading() as connection, pytest.raises(InputError, match=r"one.* did not finish"):
            find_run(connection, asked)
    store.end_step("one", "raw_pool", store.start_step("one", "raw_pool"), None, "first try")
    with store.reading() as connection, pytest.raises(InputError, match="its step raw_pool failed: first try"):
        find_run(connection, None)
    store.end_step("one", "raw_pool", store.start_step("one", "raw_pool"), "s", None)
    store.start_step("one", "embeddings")
    with store.reading() as connection, pytest.raises(InputError, match="embeddings is running, or was killed"):
        find_run(connection, "on")


def test_runs_are_found_by_prefix_and_the_newest_by_time(store: LineageStore) -> None:
    with store.writing() as connection:  # Ids say nothing about age.
        connection.execute("UPDATE runs SET started_at = ? WHERE run_id = 'aaaa-1'", [datetime.now(UTC)])
    with store.reading() as connection:
        assert find_run(connection, None).run_id == "aaaa-1"
        assert find_run(connection, "aaaa-2").run_id == "aaaa-2"
        with pytest.raises(InputError, match="2 runs begin with aaaa: aaaa-1, aaaa-2"):
            find_run(connection, "aaaa")
        with pytest.raises(InputError, match="no run begins with zz; the newest are aaaa-1"):
            find_run(connection, "zz")
        with pytest.raises(InputError, match="no run begins with ' OR 1=1"):
            find_run(connection, "' OR 1=1; DROP TABLE runs; --")
        with pytest.raises(InputError, match="3 runs begin with"):
            find_run(connection, "")


def _parquet(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    duckdb.execute("COPY (SELECT 'x' || range AS id, 0.5 AS density_factor FROM range(5000)) TO ? (FORMAT parquet)",
                   [str(path)])  # fmt: skip
    return path


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_file_behind_a_view_is_named(store: LineageStore, part: float) -> None:
    folder = store.path.parent / "density"
    _parquet(folder / "density=good" / "density.parquet")
    bad = _parquet(folder / "density=bad" / "density.parquet")
    store.start_run("r4", "{}")
    whole, before = bad.read_bytes(), file_hash(store.path)
    bad.write_bytes(whole[: int(len(whole) * part)])
    with store.reading() as connection:  # What does not need the file is not hindered.
        assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(4,)]
    for use in (lambda: _rows(store, ["density"]), lambda: store.start_run("r5", "{}")):
        with pytest.raises(InputError) as caught:
            use()
        assert str(bad) in str(caught.value)
        assert "delete the damaged file" in str(caught.value)
        assert "rebuild-lineage" not in str(caught.value)
    assert file_hash(store.path) == before
    shutil.rmtree(bad.parent)
    assert len(_rows(store, ["density"])["density"]) == 5000


def test_a_mistake_of_a_program_is_no_damage(store: LineageStore) -> None:
    with pytest.raises(duckdb.CatalogException), store.reading() as connection:
        connection.execute("SELECT * FROM no_such_table")
    with pytest.raises(duckdb.ConstraintException), store.writing() as connection:
        connection.execute("INSERT INTO runs SELECT * FROM runs")


@pytest.mark.slow
def test_readers_meet_no_error_while_one_writes(store: LineageStore) -> None:
    """Four processes read in a loop, each time opening the database anew, while this one writes thirty times."""
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.lineage.store import LineageStore\n"
        "store, seen, stop = LineageStore(Path(sys.argv[1])), [], Path(sys.argv[2])\n"
        "while not stop.exists():\n"
        "    with store.reading() as c:\n"
        "        runs = c.execute('SELECT count(*) FROM runs').fetchone()[0]\n"
        "        c.execute('SELECT count(*) FROM picks').fetchone()\n"
        "        assert c.execute('SELECT count(*) FROM runs').fetchone()[0] == runs\n"
        "    seen.append(runs)\n"
        "    if len(seen) == 1: print('reads', flush=True)\n"
        "assert seen == sorted(seen)\n"
        "print(len(seen), len(set(seen)))"
    )
    stop = store.path.parent / "stop"
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(store.path.parent), str(stop)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reads\n"
        started = datetime.now(UTC)
        for number in range(30):
            store.start_run(f"w{number}", "{}")
        assert datetime.now(UTC) - started < timedelta(seconds=60)
    finally:
        stop.touch()
        ended = [reader.communicate(timeout=60) for reader in readers]
    for reader, (out, errors) in zip(readers, ended, strict=True):
        assert (reader.returncode, errors) == (0, "")
        reads, states = map(int, out.split())
        assert reads >= states > 1
    assert len(_rows(store)["runs"]) == 33


def test_a_storage_folder_can_be_moved(store: LineageStore, tmp_path: Path) -> None:
    """Views name files by absolute paths; where the folder is another now, they are made anew."""
    file = store.root / "density" / "density=d" / "density.parquet"
    write_table(pa.table({"id": ["a"], "mean_squared_distance": [1.0], "density_factor": [2.0]}), file)
    store.start_run("one-more", "{}")
    expected, moved = _rows(store), tmp_path / "somewhere else"
    store.root.rename(moved)
    for _ in range(2):
        assert _rows(LineageStore(moved)) == expected
        assert _rows(LineageStore(moved), ["density"]) == {"density": [("a", 1.0, 2.0, "d")]}
