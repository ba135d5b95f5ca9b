"""Two steps that use a GPU never run at once: real runs, on instances of the dagster.yaml files as they are shipped."""

import multiprocessing
import runpy
import shutil
import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from novelsum_dagster.definitions import build_defs
from novelsum_dagster.settings import Settings
from tests.postgres import running_postgres
from tests.s3 import BUCKET, Server

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_gpu_steps_never_meet_on_one_machine(tmp_path: Path) -> None:
    shutil.copy(ROOT / "novelsum_dagster" / "dagster.yaml", tmp_path)
    require_apart(tmp_path)


@pytest.mark.slow
def test_two_gpu_steps_never_meet_in_a_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Server) -> None:
    shutil.copy(ROOT / "docker" / "dagster.yaml", tmp_path)
    with running_postgres() as postgres:
        places = {"DAGSTER_LOGS_BUCKET": BUCKET, "DAGSTER_LOGS_ENDPOINT": s3.endpoint}
        for name, value in {**postgres.environment, **places}.items():
            monkeypatch.setenv(name, value)
        require_apart(tmp_path)


def require_apart(home: Path) -> None:
    pool = build_defs(Settings()).resolve_assets_def("embeddings").op.pool
    assert pool == "gpu"
    make_pool = runpy.run_path(str(ROOT / "docker" / "prepare.py"))["make_pool"]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for _ in range(2):  # A deployment does so at every start.
            make_pool(instance)
    assert not meet(home, pool, 5)
    assert meet(home, None, 60), "without the pool they must meet, or this shows nothing"


def meet(home: Path, pool: str | None, seconds: float) -> bool:
    """Run a step in each of two runs at the same time, which wait for each other; return whether they met."""
    processes = multiprocessing.get_context("spawn")
    begin, both, met = processes.Barrier(2), processes.Barrier(2), processes.Queue()
    runs = [processes.Process(target=execute, args=(home, pool, seconds, begin, both, met)) for _ in range(2)]
    for run in runs:
        run.start()
    found = [met.get(timeout=120) for _ in runs]
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    return all(found)


def execute(home: Path, pool: str | None, seconds: float, begin: Barrier, both: Barrier, met: Any) -> None:
    """Run one step in a pool, which tells whether the other was there."""

    @dg.op(pool=pool)
    def step() -> None:
        try:
            both.wait(seconds)
            met.put(True)
        except threading.BrokenBarrierError:
            met.put(False)

    @dg.job(executor_def=dg.in_process_executor)
    def run() -> None:
        step()

    begin.wait(60)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert run.execute_in_process(instance=instance).success
