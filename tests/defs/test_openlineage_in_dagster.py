"""OpenLineage events of runs through Dagster: each step begins and ends in them, and they never stop a run."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
import yaml

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.lineage.openlineage import step_run_id
from novelsum_dagster.pool.snapshot import PoolSnapshot
from tests.curated import hashes, short, write_wrong
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.pools import write_jsonl, write_settings

pytestmark = pytest.mark.slow

STEPS = (
    "raw_pool", "embeddings", "distinct_pool", "density", "sample_novelty", "selected_subset", "novelsum_report",
    "data_card", "lineage", "audit",
)  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Curation, dg.ExecuteInProcessResult]]:
    """A small pool, run once, with events in a file."""
    folder = tmp_path_factory.mktemp("openlineage")
    write_jsonl(folder / "pool" / "one.jsonl", short(20))
    settings = write_settings(folder, selection={"k": 6}, openlineage={"file": "log/events.jsonl", "namespace": "lab"})
    with in_memory() as instance:
        curation = Curation(folder, settings, instance)
        result = curation.run()
        assert result.success
        yield curation, result


def _events(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """Return the events of one run, in the order in which they were written."""
    events = [json.loads(line) for line in (folder / "log" / "events.jsonl").read_text().splitlines()]
    return [one for one in events if one["run"]["facets"]["parent"]["run"]["runId"] == run_id]


def _warnings(curation: Curation, run_id: str) -> list[tuple[str | None, str]]:
    """Return what the log of a run warned of, with the step that did."""
    logs = curation.instance.all_logs(run_id)
    found = [(one.step_key, one.user_message) for one in logs if one.dagster_event is None and int(one.level) >= 30]
    return [(step, message) for step, message in found if "lineage events" in message]


def test_every_step_begins_and_ends_in_the_events(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    curation, result = ran
    events = _events(curation.folder, result.run_id)
    by_step: dict[str, list[str]] = {}
    for event in events:
        assert event["job"]["namespace"] == "lab"
        by_step.setdefault(event["job"]["name"], []).append(event["eventType"])
    assert set(by_step) >= {f"curate.{step}" for step in STEPS}
    assert all(states == ["START", "COMPLETE"] for states in by_step.values())


def test_the_parent_of_each_is_the_run(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    curation, result = ran
    lines = (curation.folder / "log" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if result.run_id in line]
    assert len(events) >= 2 * len(STEPS)
    for event in events:
        parent = event["run"]["facets"]["parent"]
        assert parent["run"]["runId"] == result.run_id == str(UUID(result.run_id))
        assert parent["job"] == {"namespace": "lab", "name": "curate"}
        step = event["job"]["name"].removeprefix("curate.")
        assert event["run"]["runId"] == step_run_id(result.run_id, step, 1)


def test_what_a_step_read_and_made_is_told_with_its_versions(
    ran: tuple[Curation, dg.ExecuteInProcessResult],
) -> None:
    curation, result = ran
    keys = {path.stem: json.loads(path.read_text())["key"] for path in (curation.root / "assets").glob("*.json")}
    done = {
        event["job"]["name"].removeprefix("curate."): event
        for event in _events(curation.folder, result.run_id)
        if event["eventType"] == "COMPLETE"
    }
    for step in STEPS[:-1]:
        [output] = done[step]["outputs"]
        assert output["name"] == step
        assert output["facets"]["version"]["datasetVersion"] == keys[step]
        inputs = {one["name"]: one["facets"]["version"]["datasetVersion"] for one in done[step]["inputs"]}
        if step != "raw_pool":
            assert inputs and inputs == {name: keys[name] for name in inputs}
    [source] = done["raw_pool"]["inputs"]
    [sha256] = hashes(curation.folder / "pool").values()
    assert source["name"].endswith("pool/one.jsonl")
    assert source["facets"]["version"]["datasetVersion"] == sha256
    snapshot = read_newest(curation.root, "raw_pool", PoolSnapshot)
    [made] = done["raw_pool"]["outputs"]
    statistics = made["outputFacets"]["outputStatistics"]
    sizes = [path.stat().st_size for path in (curation.root / snapshot.folder).iterdir()]
    assert (statistics["rowCount"], statistics["size"]) == (20, sum(sizes))
    assert made["facets"]["schema"]["fields"][0] == {"name": "id", "type": "string"}


def test_a_step_that_fails_says_so_and_why(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    curation, _ = ran
    failed = curation.materialise("selected_subset", ops={"selected_subset": {"config": {"k": 21}}})
    assert not failed.success
    start, end = _events(curation.folder, failed.run_id)
    assert (start["eventType"], end["eventType"]) == ("START", "FAIL")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert "k must be from 1 to 20" in end["run"]["facets"]["errorMessage"]["message"]
    assert end.get("outputs", []) == []


def test_a_step_that_is_refused_says_what_does_not_match(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    curation, _ = ran
    [path] = curation.root.glob("density/*/density.parquet")
    whole = write_wrong(path)
    try:
        refused = curation.materialise("selected_subset")
    finally:
        path.write_bytes(whole)
    assert not refused.success
    end = _events(curation.folder, refused.run_id)[-1]
    assert end["eventType"] == "FAIL"
    assert f"{path} is damaged" in end["run"]["facets"]["errorMessage"]["message"]


@pytest.mark.parametrize("place", ["an endpoint that nobody listens at", "a file that cannot be written"])
def test_events_that_cannot_be_sent_stop_nothing(
    ran: tuple[Curation, dg.ExecuteInProcessResult], tmp_path: Path, place: str
) -> None:
    """Each step warns once; what is made is the same."""
    curation, _ = ran
    values = yaml.safe_load(curation.settings_file.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # Bound and not listening: refused at once, and nobody else can take it.
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        (tmp_path / "file").write_text("")
        values["openlineage"] = {"url": url} if "endpoint" in place else {"file": str(tmp_path / "file" / "events")}
        other = curation.folder / "other.yaml"
        other.write_text(yaml.safe_dump(values))
        before = hashes(curation.root / "assets")
        elsewhere = Curation(curation.folder, other, curation.instance)
        for asset in ("raw_pool", "density"):
            result = elsewhere.materialise(asset)
            assert result.success
            [(step, message)] = _warnings(curation, result.run_id)
            assert step == asset
            assert "lineage events cannot be sent" in message and "the curation continues" in message
    assert hashes(curation.root / "assets") == before


def test_without_a_place_there_are_no_events(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    curation, _ = ran
    values = yaml.safe_load(curation.settings_file.read_text())
    del values["openlineage"]
    other = curation.folder / "none.yaml"
    other.write_text(yaml.safe_dump(values))
    log = curation.folder / "log" / "events.jsonl"
    before = log.read_bytes()
    assert Curation(curation.folder, other, curation.instance).materialise("density").success
    assert log.read_bytes() == before
