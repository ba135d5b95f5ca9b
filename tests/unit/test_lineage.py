"""The lineage database: whole transactions, readers that never wait, damage that is named."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.store import LineageStore, insert

ROOT = Path(__file__).resolve().parents[2]


def _count(store: LineageStore, table: str) -> int:
    with store.reading() as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else -1


def test_runs_and_steps_are_recorded_once(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    for _ in range(2):
        store.start_run("r1", "{}")
    first = store.start_step("r1", "raw_pool")
    store.end_step("r1", "raw_pool", first, None, "broken; DROP TABLE runs; --'")
    second = store.start_step("r1", "raw_pool")
    store.end_step("r1", "raw_pool", second, "key", None)
    with store.reading() as connection:
        rows = connection.execute("SELECT attempt, status, output, error FROM steps ORDER BY attempt").fetchall()
    assert rows == [(1, "failed", None, "broken; DROP TABLE runs; --'"), (2, "done", "key", None)]
    assert _count(store, "runs") == 1


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.start_run("r1", "{}")
    before = store.path.read_bytes()
    with pytest.raises(RuntimeError), store.writing() as connection:
        connection.execute("DELETE FROM runs")
        raise RuntimeError
    assert store.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lineage.duckdb", "lineage.lock", "runs"]


def test_readers_in_other_processes_never_block_a_writer(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.start_run("r0", "{}")
    program = (
        "import sys, duckdb\n"
        "c = duckdb.connect(sys.argv[1], read_only=True)\n"
        "print('open', flush=True); sys.stdin.readline()\n"
        "print(c.execute('SELECT count(*) FROM runs').fetchone()[0])"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
    for number in range(1, 6):
        store.start_run(f"r{number}", "{}")
    assert [reader.communicate("\n")[0] for reader in readers] == ["1\n"] * 4
    assert _count(store, "runs") == 6


def test_writers_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.lineage.store import LineageStore\n"
        "for n in range(5): LineageStore(Path(sys.argv[1])).start_run(f'{sys.argv[2]}-{n}', '{}')"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(number)], cwd=ROOT) for number in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert _count(LineageStore(tmp_path), "runs") == 15


def test_rows_with_a_known_key_are_left_as_they_are(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    row = {
        "density": "d", "vectors": "v", "file": "f", "neighbors": 10, "density_power": 0.5, "reference_size": 3,
    }  # fmt: skip
    for value in (10, 99):
        with store.writing() as connection:
            insert(connection, "densities", [{**row, "neighbors": value}])
    with store.reading() as connection:
        assert connection.execute("SELECT neighbors FROM densities").fetchall() == [(10,)]


def test_no_lineage_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="novelsum run"), LineageStore(tmp_path).reading():
        pass


@pytest.mark.parametrize("content", [b"not a database", b"\0" * 4096])
def test_a_damaged_database_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    store = LineageStore(tmp_path)
    store.path.write_bytes(content)
    with pytest.raises(InputError, match="move it away"):
        store.start_run("r1", "{}")
    assert store.path.read_bytes() == content


def test_views_show_finished_folders_also_under_a_name_with_a_quote(tmp_path: Path) -> None:
    root = tmp_path / "it's; here"
    store = LineageStore(root)
    table = root / "density" / "density=abc" / "density.parquet"
    table.parent.mkdir(parents=True)
    half_built = root / "density" / ".building-1" / "density.parquet"
    half_built.parent.mkdir()
    half_built.write_bytes(b"half a file")
    duckdb.execute("COPY (SELECT 'x' AS id, 0.5 AS density_factor) TO ? (FORMAT parquet)", [str(table)])
    store.start_run("r1", "{}")
    with store.reading() as connection:
        assert connection.execute("SELECT id, density_factor, density FROM density").fetchall() == [("x", 0.5, "abc")]
