"""A whole curation whose storage is on a real S3 server: runs, empty machines, faults, two at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from tests.machines import Machine, called
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings
from tests.s3 import BUCKET, FaultProxy, Server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(s3: Server, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pool" / "old.jsonl", alpaca(60))
    return write_settings(
        tmp_path, storage=f"s3://{BUCKET}/{s3.prefix}", s3={"endpoint_url": s3.endpoint}, selection={"k": 12}
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The subset of the same pool, chosen in a folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_jsonl(folder / "pool" / "old.jsonl", alpaca(60))
    settings = write_settings(folder, selection={"k": 12})
    return Path(Machine(settings, folder / "cache").run()["subset"]).read_bytes()


def _runs(summary: dict[str, Any]) -> list[tuple[str, int]]:
    with duckdb.connect(summary["lineage"], read_only=True) as connection:
        return connection.execute(
            "SELECT run_id, embedded FROM run_outputs JOIN runs USING (run_id) ORDER BY started_at"
        ).fetchall()


@pytest.mark.slow
def test_a_curation_lives_on_s3(settings: Path, s3: Server, tmp_path: Path, undisturbed: bytes) -> None:
    first = Machine(settings, tmp_path / "one").run()
    assert Path(first["subset"]).read_bytes() == undisturbed
    there = s3.remote().files()
    assert {name.split("/")[0] for name in there} >= {"pool", "vectors", "selections", "lineage", "runs", "assets"}
    assert any(name.startswith("logs/") for name in there), "what steps print is kept on S3"

    # A machine that has nothing fetches what it needs, embeds nothing, and knows the run before.
    write_jsonl(tmp_path / "pool" / "new.jsonl", alpaca(10, start=60))
    second = Machine(settings, tmp_path / "two").run()
    assert [embedded for _, embedded in _runs(second)] == [60, 10]

    # An empty machine is restored by one command, and can answer for both runs.
    third = Machine(settings, tmp_path / "three")
    restored = third.novelsum("restore")
    assert restored.returncode == 0, restored.stderr
    assert "2 runs" in restored.stderr
    picked = json.loads(third.novelsum("why", "old.jsonl:1", "--run", _runs(second)[0][0], "--json").stdout)
    assert picked["run"] == _runs(second)[0][0]
    # What only the first run had goes, here and there; the second is whole.
    settings.write_text(settings.read_text() + "retention: {runs: 1}\n")
    before = set(s3.remote().files())
    cleared = third.novelsum("gc")
    assert cleared.returncode == 0, cleared.stderr
    gone = {name.split("/")[0] for name in before - set(s3.remote().files())}
    assert gone >= {"pool", "selections", "density"} and "assets" not in gone
    lost = third.novelsum("why", "old.jsonl:1", "--run", _runs(second)[0][0])
    assert lost.returncode == 2 and "removed" in lost.stderr
    again = third.novelsum("reproduce")
    assert again.returncode == 0, again.stderr + again.stdout


READ = """
import sys
from pathlib import Path
from tests.defs.conftest import Curation
from tests.instances import in_memory

settings = Path(sys.argv[1])
with in_memory() as instance:
    assert Curation(settings.parent, settings, instance).materialise("raw_pool").success
"""


def test_what_one_machine_made_is_restored_on_another(settings: Path, s3: Server, tmp_path: Path) -> None:
    """The first is a process of its own: a process holds the storage until it ends."""
    environment = {**os.environ, "NOVELSUM_CACHE": str(tmp_path / "one")}
    subprocess.run([sys.executable, "-c", READ, str(settings)], env=environment, cwd=ROOT, check=True)
    (samples,) = (tmp_path / "one").rglob("samples.parquet")
    done = called(tmp_path, "restore", "--settings", str(settings), NOVELSUM_CACHE=str(tmp_path / "two"))
    assert done.code == 0, done.err
    assert f"fetched from s3://{BUCKET}/{s3.prefix}" in done.err
    (again,) = (tmp_path / "two").rglob("samples.parquet")
    assert again.read_bytes() == samples.read_bytes()


@pytest.mark.slow
def test_faults_on_a_fifth_of_the_requests_change_nothing(
    settings: Path, faulty: FaultProxy, tmp_path: Path, undisturbed: bytes
) -> None:
    text = settings.read_text()
    settings.write_text(text.replace(text.split("endpoint_url: ")[1].split("\n")[0], faulty.endpoint))
    faulty.fault, faulty.rate, faulty.seed = "any", 0.2, 1
    summary = Machine(settings, tmp_path / "disturbed").run()
    assert faulty.faults > 5
    assert Path(summary["subset"]).read_bytes() == undisturbed


@pytest.mark.slow
def test_two_runs_at_once_on_two_machines_are_refused(settings: Path, s3: Server, tmp_path: Path) -> None:
    write_settings(tmp_path, **{**yaml.safe_load(settings.read_text()), "embedding": REAL_MODEL})  # Takes its time.
    one, two = (Machine(settings, tmp_path / name) for name in ("one", "two"))
    running = one.start("run", "--json")
    try:
        for _ in range(1200):
            if s3.remote().files("locks/"):
                break
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        refused = two.novelsum("run", "--json")
        assert refused.returncode == 2
        assert "is in use by run" in refused.stderr and "Traceback" not in refused.stderr
    finally:
        _, errors = running.communicate(timeout=500)
        assert running.returncode == 0, errors
    assert not s3.remote().files("locks/")
