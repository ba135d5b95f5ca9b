"""A deployment as docker/ ships it: PostgreSQL, S3, code server, webserver and daemon, all real, all on loopback.

Containers are not needed for it: what runs in them is run here, with the shipped commands, environments and files.
"""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.curated import curate
from tests.deployed import BIN, LINEAGE_KEY, WEBHOOK_TOKEN, Deployment, deployed
from tests.machines import Machine
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings
from tests.s3 import BUCKET, free_port


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment over 60 samples, in which a run that was started over GraphQL has ended."""
    folder = tmp_path_factory.mktemp("deployed")
    write_jsonl(folder / "pool" / "one.jsonl", alpaca(60))
    with deployed(folder) as running:
        assert running.wait_for_end(running.launch())["parentRunId"] is None
        yield running


def subset(deployment: Deployment) -> bytes:
    """Return the newest subset on S3."""
    folder = json.loads(deployment.objects("main/assets/selected_subset.json").popitem()[1])["folder"]
    return deployment.objects(f"main/{folder}/subset.jsonl").popitem()[1]


def local(folder: Path, pool: Path) -> bytes:
    """Return the subset of a plain `novelsum run` over the same pool in a local folder."""
    settings = write_settings(folder, pool={"sources": [{"path": f"{pool}/*"}]}, embedding=REAL_MODEL)
    return Path(Machine(settings, folder / "cache").run()["subset"]).read_bytes()


@pytest.mark.slow
def test_the_subset_is_on_s3_and_the_one_made_without_dagster(deployment: Deployment, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, pool={"sources": [{"path": f"{deployment.folder / 'pool'}/*"}]})
    plain = curate(settings, until="selected_subset")
    assert subset(deployment) == (plain.root / plain.made["selected_subset"].folder / "subset.jsonl").read_bytes()
    assert deployment.objects("dagster-logs/"), "what steps print is not kept"
    assert "CREATE TABLE public.event_logs" in deployment.postgres.dump()
    assert not list(deployment.home.rglob("*.db")), "Dagster wrote to SQLite"


@pytest.mark.slow
def test_no_secret_is_written_anywhere(deployment: Deployment) -> None:
    assert any(headers.get("Authorization") == f"Bearer {LINEAGE_KEY}" for _, headers in deployment.receiver.got)
    require_no_secret(deployment)


def require_no_secret(deployment: Deployment) -> None:
    """See that no log, no event, no object, no file and no table of the lineage holds a secret."""
    server = deployment.postgres
    texts = {"the database": server.dump(), "what is packed in it": server.packed(), "its log": server.log()}
    assert "selected_subset" in texts["what is packed in it"], "Dagster's snapshots of its jobs are nowhere"
    for path in deployment.folder.rglob("*"):
        if path.is_file() and path.relative_to(deployment.folder).parts[0] != "s3":
            texts[str(path)] = text(path)
    stored = deployment.folder / "fetched"
    stored.mkdir()
    for number, (key, data) in enumerate(deployment.objects().items()):
        path = stored / f"{number}{Path(key).suffix}"
        path.write_bytes(data)
        texts[f"s3 {key}"] = text(path)
    run_id = deployment.runs()[0]["runId"]
    for ending in ("the database", "code.log", "lineage.duckdb", ".parquet", ".json", ".err"):
        places = [name for name, found in texts.items() if name.endswith(ending) and run_id in found]
        assert places, f"the run is nowhere in {ending}: the search misses what is there"
    assert [(name, secret) for name, found in texts.items() for secret in deployment.secrets if secret in found] == []


def text(path: Path) -> str:
    """Return what a file holds as text, with the values of tables, which are packed in it."""
    found = path.read_bytes().decode(errors="replace")
    if path.suffix == ".parquet":
        found += str(pq.read_table(path).to_pylist())
    elif path.suffix == ".duckdb":
        with duckdb.connect(str(path), read_only=True) as connection:
            tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
            for schema, table in tables:
                found += str(connection.execute(f'SELECT * FROM "{schema}"."{table}"').fetchall())
    return found


@pytest.mark.slow
def test_what_prepares_may_run_at_every_start(deployment: Deployment) -> None:
    deployment.prepare()
    pools = deployment.ask("{ instance { concurrencyLimits { concurrencyKey limit } } }")["instance"]
    assert pools == {"concurrencyLimits": [{"concurrencyKey": "gpu", "limit": 1}]}


def test_the_webserver_is_open_to_this_machine_only_unless_told_otherwise(tmp_path: Path) -> None:
    port = free_port()
    command = [str(BIN / "dagster-webserver"), "--port", str(port), "--empty-workspace"]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            raise AssertionError("it did not start")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), 1)
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_every_process_may_be_restarted_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """The run whose process died starts again by itself, and goes on where it was; then new data lands."""
    samples = 400
    write_jsonl(tmp_path / "pool" / "one.jsonl", alpaca(samples))
    with deployed(tmp_path, embedding={**REAL_MODEL, "shard_size": 4}) as deployment:
        run_id = deployment.launch()

        def shards() -> int:
            names = deployment.s3.client.list_objects_v2(Bucket=BUCKET, Prefix="main/vectors/").get("Contents", [])
            return sum(one["Key"].endswith(".parquet") for one in names)

        wait_until(lambda: shards() > 2, deployment)
        for name in ("daemon", "webserver"):
            deployment.stop(name)
        deployment.postgres.stop()
        deployment.postgres.start()
        deployment.s3.stop()
        deployment.s3.start()
        before = shards()
        wait_until(lambda: shards() > before, deployment)  # The run has outlived all that.
        deployment.stop("code", signal.SIGKILL)
        embedded = shards()
        assert embedded * 4 < samples, "the run was over too soon for the test to mean anything"
        deployment.start()
        last = deployment.wait_for_end(run_id, seconds=400)
        assert last["parentRunId"] == run_id
        assert {run["runId"]: run["status"] for run in deployment.runs()}[run_id] == "FAILURE"
        assert subset(deployment) == local(tmp_path / "local", tmp_path / "pool")

        write_jsonl(tmp_path / "pool" / "two.jsonl", alpaca(10, start=samples))
        deployment.wait_for_end(deployment.launch())
        assert any(path == f"/{WEBHOOK_TOKEN}" for path, _ in deployment.receiver.got)
        require_no_secret(deployment)


def wait_until(what: Callable[[], bool], deployment: Deployment, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, deployment.said()
        time.sleep(0.1)
