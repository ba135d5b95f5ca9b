"""Whole runs on Ray: the engine `ray`, and Dagster's runs and steps as jobs of a cluster, as docs/ray.md says."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance, DagsterRun

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.defs.dead_runs import close_dead_runs
from novelsum_dagster.embedding.store import embed
from novelsum_dagster.engine.ray_engine import RayEngine
from novelsum_dagster.settings import Embedding, Ray, load_settings
from novelsum_dagster.workspace import Workspace
from tests.machines import Machine, kill_ray_head, wait_for
from tests.pools import alpaca, pairs, write_jsonl, write_settings
from tests.s3 import free_port

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "ray-dagster.yaml"
BIN = Path(sys.executable).parent
NO_DAEMON = {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"}
"""Runs are launched at once, not by the daemon."""


POOL = {"sources": [{"path": "pool/*"}], "near_duplicates": {"by": "both", "similarity": 0.95}}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The summary of a run on the local engine, over the pool of every test."""
    folder = tmp_path_factory.mktemp("here")
    write_jsonl(folder / "pool" / "one.jsonl", alpaca(60))
    return Machine(write_settings(folder, pool=POOL), folder / "cache").run()


def _curation(folder: Path) -> Path:
    write_jsonl(folder / "pool" / "one.jsonl", alpaca(60))
    return write_settings(folder, engine="ray", pool=POOL)


def _subset(summary: dict[str, object]) -> bytes:
    return Path(str(summary["subset"])).read_bytes()


def test_a_run_on_ray_makes_what_a_run_here_makes(here: dict[str, object], tmp_path: Path) -> None:
    done = Machine(_curation(tmp_path), tmp_path / "cache").novelsum("run", "--json")
    assert done.returncode == 0, done.stderr
    storages = tmp_path / "curated", Path(str(here["subset"])).parents[2]
    for asset in ("raw_pool", "embeddings", "distinct_pool", "density", "sample_novelty", "selected_subset"):
        there, own = ([path.stem for path in (storage / "provenance" / asset).glob("*")] for storage in storages)
        assert len(there) == 1 and there == own, asset


def test_a_lost_head_keeps_the_vectors(tmp_path: Path) -> None:
    texts = [f"{question}\n{answer}" for question, answer in pairs(300)]
    ids = [str(number) for number in range(len(texts))]
    settings = Embedding(shard_size=50, batch_size=4)
    engine = RayEngine(Ray())

    def kill(*_: str) -> None:
        kill_ray_head()
        # Looked after at every block, not every few seconds.
        engine._cluster._looked = 0.0

    with pytest.raises(InputError, match=r"the Ray cluster is lost: its head .* Finished work is kept"):
        embed(tmp_path, settings, ids, texts, "pool", committed=kill, encoder_of=engine.encoder)
    shards = list(tmp_path.glob("vectors/*/*.parquet"))
    assert 0 < len(shards) < 6
    found = embed(tmp_path, settings, ids, texts, "pool")
    assert 0 < found.embedded < len(texts)
    assert found.key == embed(tmp_path / "anew", settings, ids, texts, "pool").key


@dataclass(frozen=True)
class Cluster:
    """A cluster of one machine that takes jobs, and the environment of those who submit them."""

    dashboard: str
    environment: dict[str, str]


@contextmanager
def _running(log: Path, folder: Path) -> Iterator[Cluster]:
    (folder / "token").write_text(secrets.token_hex(32))
    dashboard = free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Everything listens on 127.0.0.1.
        "RAY_DASHBOARD": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    ports = {
        "port": free_port(),
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 2,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--temp-dir", str(folder)]
    command += [part for name, value in ports.items() for part in (f"--{name}", str(value))]
    with log.open("wb") as out:
        head = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        token = (folder / "token").read_text()
        wait_for(f"http://127.0.0.1:{dashboard}/api/jobs/", head, log, Authorization=f"Bearer {token}")
        yield Cluster(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if find_spec("aiohttp") is None:
        pytest.skip("needs ray[default], as the extra ray installs it")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # Short: sockets lie in it.
    try:
        with _running(tmp_path_factory.mktemp("cluster") / "log", folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dagster(cluster: Cluster, folder: Path, *arguments: str) -> DagsterInstance:
    """Run a command of Dagster on the example configuration, and return its instance."""
    home = folder / "home"
    home.mkdir()
    example = yaml.safe_load(EXAMPLE.read_text())
    del example["concurrency"]["runs"]  # The daemon's queue.
    (home / "dagster.yaml").write_text(yaml.safe_dump({**example, "run_coordinator": NO_DAEMON}))
    own = {"DAGSTER_HOME": str(home), "NOVELSUM_SETTINGS": str(_curation(folder))}
    done = subprocess.run(
        [str(BIN / "dagster"), *arguments, "-d", str(folder)],
        env={**cluster.environment, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return DagsterInstance.from_config(str(home))


def _ended(instance: DagsterInstance, folder: Path) -> DagsterRun:
    workspace = Workspace(load_settings(folder / "curation.yaml"))
    for _ in range(600):
        close_dead_runs(instance, workspace)  # As the sensor does; also between two steps this one is alive.
        (run,) = instance.get_runs()
        if run.is_finished:
            return run
        time.sleep(1)
    pytest.fail("the run did not end in ten minutes")


def _messages(instance: DagsterInstance, run: DagsterRun) -> list[str]:
    return [entry.message for entry in instance.all_logs(run.run_id)]


def test_a_run_is_a_job_of_the_cluster(
    cluster: Cluster, here: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DASHBOARD", cluster.dashboard)
    instance = _dagster(cluster, tmp_path, "job", "launch", "-j", "curate", "-m", "novelsum_dagster.definitions")
    run = _ended(instance, tmp_path)
    messages = _messages(instance, run)
    assert run.is_success, [message for message in messages if "rror" in message][-3:]
    assert any("Ray run job created" in message for message in messages)
    (subset,) = (tmp_path / "curated" / "selections").glob("*/subset.jsonl")
    assert subset.read_bytes() == _subset(here)


def test_every_step_is_a_job_of_the_cluster(
    cluster: Cluster, here: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DASHBOARD", cluster.dashboard)
    on_ray = "novelsum_dagster.definitions_on_ray"
    instance = _dagster(cluster, tmp_path, "asset", "materialize", "--select", "*selected_subset", "-m", on_ray)
    run = _ended(instance, tmp_path)
    assert run.is_success
    started = [message for message in _messages(instance, run) if "Executing step" in message]
    assert {"raw_pool", "embeddings", "density", "selected_subset"} <= {one.split('"')[1] for one in started}
    assert all("in Ray job dagster-step-" in message for message in started)
    (subset,) = (tmp_path / "curated" / "selections").glob("*/subset.jsonl")
    assert subset.read_bytes() == _subset(here)
