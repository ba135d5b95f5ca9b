"""Runs that are killed with -9 at seeded moments, and started again: nothing is lost, repeated or left locked.

`NOVELSUM_KILLS=30 pytest -s tests/integration/test_kills.py` kills more often and prints where.
"""

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from novelsum_dagster.lineage.models import failures, models
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.remote.lock import StorageLock
from novelsum_dagster.settings import load_settings
from tests.machines import Machine, kill
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings
from tests.s3 import BUCKET, Server

KILLS = int(os.environ.get("NOVELSUM_KILLS", "2"))
STEPS = (None, "raw_pool", "embeddings", "density", "selected_subset", "novelsum_report", "lineage", "audit")
"""A run is killed soon after one of them began; None: anywhere in the run. In turn, so that short ones are hit, too."""
_SHARD = 40
"""Samples a shard: several are committed, so that a kill may fall between them."""


def _settings(folder: Path, **storage: Any) -> Path:
    write_jsonl(folder / "pool" / "some.jsonl", alpaca(160))
    embedding = {**REAL_MODEL, "shard_size": _SHARD, "dtype": "bfloat16"}
    return write_settings(folder, selection={"k": 20}, embedding=embedding, **storage)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The subset of a run that nobody disturbs, and the seconds from its first file to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    machine = Machine(_settings(folder), folder / "cache")
    process = machine.start("run", "--json")
    started = _wait_for(lambda: (folder / "curated" / "runs").exists(), process)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return Path(json.loads(output)["subset"]).read_bytes(), time.monotonic() - started


def _wait_for(ready: Callable[[], bool], process: Any) -> float:
    for _ in range(30_000):
        if ready():
            return time.monotonic()
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError("nothing was written in five minutes")


def _moments(seconds: float) -> Iterator[tuple[str | None, float]]:
    """Yield steps, and how many seconds after their begin a run is killed."""
    chance = random.Random(17)
    for number in range(KILLS):
        step = STEPS[number % len(STEPS)]
        yield step, chance.random() * (seconds if step is None else 3 if step == "embeddings" else 0.3)


def _killed_and_restarted(machine: Machine, root: Path, moment: tuple[str | None, float]) -> tuple[str, dict[str, Any]]:
    """Kill a run at a moment, and run again; return the step that it was in, and the summary."""
    step, after = moment
    process = machine.start("run", "--json")
    _wait_for(lambda: (root / "runs").exists() if step is None else _has_begun(root, step), process)
    time.sleep(after)
    kill(process)
    found = _running_step(root)
    return found, machine.run()


def _has_begun(root: Path, step: str) -> bool:
    if not (root / "lineage.duckdb").exists():
        return False
    with duckdb.connect(str(root / "lineage.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT count(*) FROM steps WHERE step = ?", [step]).fetchall() != [(0,)]


def _running_step(root: Path) -> str:
    if not (root / "lineage.duckdb").exists():
        return "before the first step"
    with duckdb.connect(str(root / "lineage.duckdb"), read_only=True) as connection:
        rows = connection.execute("SELECT step FROM steps WHERE status = 'running'").fetchall()
    return ", ".join(row[0] for row in rows) or "between steps"


def _require_sound(summary: dict[str, Any], root: Path, expected: bytes) -> None:
    assert Path(summary["subset"]).read_bytes() == expected
    with LineageStore(root).reading() as connection:
        assert connection.execute("SELECT count(*) FROM steps WHERE status = 'running'").fetchall() == [(0,)]
        finished = connection.execute("SELECT count(*), count(DISTINCT run_id) FROM run_outputs").fetchall()[0]
        assert finished[0] == finished[1] >= 1
        failing = [test.name for model in models() for test in model.tests if failures(connection, test).count]
        assert failing == []
    with dg.DagsterInstance.from_config(str(root / "dagster")) as instance:
        held = instance.event_log_storage.get_concurrency_info("gpu")
        assert (held.claimed_slots, held.pending_steps) == ([], [])
        assert not instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))


@pytest.mark.slow
def test_a_run_that_is_killed_is_as_if_it_was_not(undisturbed: tuple[bytes, float], tmp_path: Path) -> None:
    expected, seconds = undisturbed
    found: Counter[str] = Counter()
    for number, moment in enumerate(_moments(seconds)):
        folder = tmp_path / str(number)
        machine = Machine(_settings(folder), folder / "cache")
        root = load_settings(machine.settings).storage_path
        step, summary = _killed_and_restarted(machine, root, moment)
        found[step] += 1
        _require_sound(summary, root, expected)
        with StorageLock(root).held("another"):
            pass
        shutil.rmtree(folder)
    print(f"\nkilled in: {dict(found)}")


@pytest.mark.slow
def test_a_run_on_s3_that_is_killed_is_as_if_it_was_not(
    undisturbed: tuple[bytes, float], s3: Server, tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    found: Counter[str] = Counter()
    for number, moment in enumerate(_moments(1.5 * seconds)):
        folder = tmp_path / str(number)
        storage = {"storage": f"s3://{BUCKET}/{s3.prefix}/{number}", "s3": {"endpoint_url": s3.endpoint}}
        machine = Machine(_settings(folder, **storage), folder / "cache")
        root = folder / "cache" / _local_place(machine)
        step, summary = _killed_and_restarted(machine, root, moment)
        found[step] += 1
        _require_sound(summary, root, expected)
        # Another machine finds the same, and makes nothing anew.
        other = Machine(machine.settings, folder / "other")
        assert other.novelsum("restore").returncode == 0
        place = folder / "other" / _local_place(machine)
        again = json.loads((place / "assets" / "selected_subset.json").read_bytes())
        assert (place / again["folder"] / "subset.jsonl").read_bytes() == expected
        assert _finished(place) == _finished(root)
        shutil.rmtree(folder)
    print(f"\nkilled on S3 in: {dict(found)}")


def _local_place(machine: Machine) -> Path:
    """Return where a machine keeps its copy, below its cache folder."""
    before = os.environ.get("NOVELSUM_CACHE")
    os.environ["NOVELSUM_CACHE"] = "/cache"
    try:
        return load_settings(machine.settings).storage_path.relative_to("/cache")
    finally:
        os.environ.pop("NOVELSUM_CACHE") if before is None else os.environ.update(NOVELSUM_CACHE=before)


def _finished(root: Path) -> list[tuple[Any, ...]]:
    with LineageStore(root).reading() as connection:
        return connection.execute("SELECT * FROM run_outputs ORDER BY run_id").fetchall()
