"""A run whose process was killed gives back what it held, so that the next one need not wait for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from novelsum_dagster.common.liveness import ended_runs, hold
from novelsum_dagster.defs.dead_runs import close_dead_runs
from novelsum_dagster.settings import load_settings
from novelsum_dagster.workspace import Workspace
from tests.instances import in_memory
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings


def test_a_run_lives_as_long_as_its_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.common.liveness import hold\n"
        "hold(Path(sys.argv[1]), 'run-1'); print('held', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    hold(tmp_path, "run-2")
    assert list(ended_runs(tmp_path)) == []
    process.kill()
    process.wait()
    assert list(ended_runs(tmp_path)) == ["run-1"]
    assert list(ended_runs(tmp_path)) == []


@pytest.fixture
def killed(tmp_path: Path) -> Workspace:
    """A curation whose run was killed while it embedded, and so held the pool slot of the GPU."""
    write_jsonl(tmp_path / "pool" / "one.jsonl", alpaca(120))
    settings = write_settings(tmp_path, embedding={**REAL_MODEL, "shard_size": 4})
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    command = [sys.executable, "-m", "novelsum_dagster", "run", "-s", str(settings)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "curated" / "vectors").glob("*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return Workspace(load_settings(settings))


@pytest.mark.slow
def test_a_killed_run_is_closed_and_its_slot_given_back(killed: Workspace) -> None:
    with dg.DagsterInstance.from_config(str(killed.root / "dagster")) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 1
        close_dead_runs(instance, killed)
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.FAILURE
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
    with duckdb.connect(str(killed.lineage.path), read_only=True) as connection:
        found = connection.execute("SELECT step, status, error FROM steps ORDER BY started_at").fetchall()
    assert found == [("raw_pool", "done", None), ("embeddings", "failed", "the process ended")]


def test_closing_needs_no_lineage(tmp_path: Path) -> None:
    workspace = Workspace(load_settings(write_settings(tmp_path)))
    lock = workspace.root / "runs" / "run-1.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with in_memory() as instance:
        close_dead_runs(instance, workspace)
    assert not lock.exists()
