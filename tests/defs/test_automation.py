"""Runs that start by themselves: real ticks of the sensors and the schedule on an instance, and a real daemon."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.definitions import CURATE_JOB, build_defs
from novelsum_dagster.defs.automation import BATCH_TAG, FILES_TAG, REASON_TAG
from novelsum_dagster.pool.landing import read_cursor
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Settings, load_settings
from tests.defs.conftest import Curation
from tests.pools import alpaca, write_jsonl, write_settings

AUTOMATION = {"watch": True, "carry": True, "settle_seconds": 0, "schedule": "0 3 * * *", "timezone": "Europe/Berlin"}


class Watched(Curation):
    """A curation whose sensor keeps its cursor between ticks."""

    cursor: str | None = None

    def tick(self, settings: Settings | None = None) -> Any:
        """Let the sensor look once, as the daemon does."""
        definitions = build_defs(settings or self.settings)
        sensor = definitions.resolve_sensor_def("landing")
        with dg.build_sensor_context(
            self.instance, self.cursor, definitions=definitions, sensor_name="landing"
        ) as context:
            found = sensor.evaluate_tick(context)
        self.cursor = found.cursor
        return found

    def says(self) -> str:
        """Let the sensor look once; it starts nothing; return why."""
        found = self.tick()
        assert not found.run_requests
        return str(found.skip_message)

    def batch(self) -> dg.RunRequest:
        """Look until there is one run to start: the second time, for the first only sees the files."""
        assert "may still be being written" in self.says()
        (request,) = self.tick().run_requests
        assert isinstance(request, dg.RunRequest)
        return request

    def start(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        job = build_defs(self.settings).resolve_job_def(CURATE_JOB)
        return job.execute_in_process(instance=self.instance, raise_on_error=False, tags=dict(request.tags))

    def nightly(self, settings: Settings | None = None) -> Any:
        """Let the schedule come to its time; return what it requests, or why nothing."""
        schedule = build_defs(settings or self.settings).resolve_schedule_def("recurate")
        with dg.build_schedule_context(self.instance, scheduled_execution_time=datetime(2026, 11, 23, 3)) as context:
            found = schedule.evaluate_tick(context)
        return found.run_requests[0].tags[REASON_TAG] if found.run_requests else found.skip_message


def unfinished(instance: dg.DagsterInstance, job: str = CURATE_JOB) -> dg.DagsterRun:
    """Put a run that is in progress on the instance."""
    run = dg.DagsterRun(job_name=job, status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    return run


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """A curation in which nothing has run yet."""
    write_jsonl(tmp_path / "pool" / "one.jsonl", alpaca(30))
    path = write_settings(tmp_path, automation=AUTOMATION)
    with dg.instance_for_test() as instance:
        yield Watched(tmp_path, path, instance)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A curation that the sensor started: its first batch was taken and the run succeeded."""
    folder = tmp_path_factory.mktemp("landing")
    write_jsonl(folder / "pool" / "one.jsonl", alpaca(30))
    path = write_settings(folder, automation=AUTOMATION)
    with dg.instance_for_test() as instance:
        watched = Watched(folder, path, instance)
        assert watched.start(watched.batch()).success
        yield watched


def test_nothing_starts_by_itself_unless_the_settings_say_so() -> None:
    definitions = build_defs(Settings())
    assert not definitions.schedules
    for name in ("landing", "carry"):
        sensor = definitions.resolve_sensor_def(name)
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    wanted = build_defs(Settings.model_validate({"automation": {**AUTOMATION, "interval_seconds": 7}}))
    for name in ("landing", "carry"):
        sensor = wanted.resolve_sensor_def(name)
        assert (sensor.default_status, sensor.minimum_interval_seconds) == (dg.DefaultSensorStatus.RUNNING, 7)
    schedule = wanted.resolve_schedule_def("recurate")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("timezone", "Mars/Olympus", "'Mars/Olympus' is not a time zone"),
        ("interval_seconds", 0, "greater than 0"),
        ("settle_seconds", -1, "greater than or equal to 0"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, key: str, value: object, says: str) -> None:
    path = write_settings(tmp_path, automation={key: value})
    with pytest.raises(InputError) as error:
        load_settings(path)
    assert f"{path}:2: automation.{key}: " in str(error.value) and says in str(error.value)


@pytest.mark.parametrize("times", ["every night", "0 0 31 2 *"])
def test_a_bad_schedule_is_named(times: str) -> None:
    with pytest.raises(InputError, match=r"automation\.schedule: .* is not a cron schedule; expected five fields"):
        build_defs(Settings.model_validate({"automation": {"schedule": times}}))


def test_every_asset_with_a_condition_is_the_carry_sensors() -> None:
    """Else Dagster adds a sensor of its own."""
    definitions = build_defs(Settings.model_validate({"study": {}}))
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    without = {name for name, spec in specs.items() if spec.automation_condition is None}
    assert without == {"raw_pool"} | {name for name, spec in specs.items() if spec.group_name == "study"}
    sensors = definitions.get_repository_def().sensor_defs
    assert {sensor.name for sensor in sensors} == {"landing", "dead_runs", "carry"}


def test_one_request_for_a_batch_and_its_tags(watched: Watched) -> None:
    write_jsonl(watched.folder / "pool" / "two.jsonl", alpaca(5, start=30))
    request = watched.batch()
    assert request.tags[BATCH_TAG] == "+2 files, 0 overwritten, 0 removed"
    assert request.tags[FILES_TAG] == "pool/one.jsonl, pool/two.jsonl"
    taken = read_cursor(watched.cursor)
    assert taken is not None and request.run_key == taken.batch
    assert watched.says().startswith("Nothing new since the last batch (2 files), but its run made no pool: it failed")
    run = unfinished(watched.instance)
    assert watched.says() == f"Nothing new since the last batch; run {run.run_id[:8]} is in progress."


@pytest.mark.parametrize("job", [CURATE_JOB, "__ASSET_JOB"])
def test_what_lands_during_a_run_waits_and_comes_at_once(watched: Watched, job: str) -> None:
    run = unfinished(watched.instance, job)
    for number in range(3):
        write_jsonl(watched.folder / "pool" / f"more{number}.jsonl", alpaca(2, start=30 + number))
        assert (
            watched.says()
            == f"Run {run.run_id[:8]} is in progress; +{number + 2} files, 0 overwritten, 0 removed since."
        )
    watched.instance.report_run_canceled(run)
    (request,) = watched.tick().run_requests
    assert request.tags[BATCH_TAG] == "+4 files, 0 overwritten, 0 removed"


def dead(watched: Watched) -> dg.DagsterRun:
    """Put a run on the instance that was in progress when its process died."""
    run = unfinished(watched.instance)
    lock = watched.root / "runs" / f"{run.run_id}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return run


STARTED = dg.DagsterEvent(event_type_value="PIPELINE_START", job_name=CURATE_JOB)


def test_a_run_whose_process_died_is_closed_though_others_wait_behind_it(watched: Watched) -> None:
    """Or they would wait for ever, for they come after it."""
    run, behind = dead(watched), dg.DagsterRun(job_name=CURATE_JOB, status=dg.DagsterRunStatus.STARTING)
    watched.instance.add_run(behind)
    sensor = build_defs(watched.settings).resolve_sensor_def("dead_runs")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING

    def look() -> tuple[Any, Any]:
        with dg.build_sensor_context(watched.instance) as context:
            found = sensor.evaluate_tick(context)
        assert not found.run_requests
        closed = watched.instance.get_run_by_id(run.run_id)
        assert closed is not None
        return found.skip_message, closed.status

    watched.instance.report_dagster_event(STARTED, run.run_id, timestamp=time.time())
    assert look()[1] == dg.DagsterRunStatus.STARTED
    watched.instance.report_dagster_event(STARTED, run.run_id, timestamp=time.time() - 3600)
    assert look() == (f"Run {behind.run_id[:8]} is in progress.", dg.DagsterRunStatus.FAILURE)


def test_a_run_whose_process_died_is_not_waited_for(watched: Watched) -> None:
    run = dead(watched)
    watched.instance.report_dagster_event(STARTED, run.run_id, timestamp=time.time())
    assert "is in progress" in watched.says()
    watched.instance.report_dagster_event(STARTED, run.run_id, timestamp=time.time() - 3600)
    (request,) = watched.tick().run_requests
    assert request.tags[BATCH_TAG].startswith("+1 file")
    found = watched.instance.get_run_by_id(run.run_id)
    assert found is not None and found.status == dg.DagsterRunStatus.FAILURE


def test_a_pool_that_a_run_would_refuse_starts_none(watched: Watched) -> None:
    write_jsonl(watched.folder / "pool" / "one.jsonl", alpaca(30))
    watched.batch()
    (watched.folder / "pool" / "one.jsonl").unlink()
    before = watched.cursor
    assert "A run would fail: pool/*: no such file" in watched.says()
    assert watched.cursor == before
    (watched.folder / "pool" / "notes.txt").touch()
    assert "unknown format" in watched.says()
    empty = watched.settings.model_copy(update={"pool": Settings().pool})
    assert "there is nothing to watch" in str(watched.tick(empty).skip_message)


@pytest.mark.parametrize("cursor", [None, "", "{", '{"last": 7}', "s3://bucket/key"])
def test_a_cursor_that_is_lost_or_damaged_starts_no_needless_run(curated: Watched, cursor: str | None) -> None:
    curated.cursor = cursor
    assert curated.says() == "Nothing new: 1 file, as in the newest pool."
    (curated.root / "landing").rename(curated.root / "elsewhere")
    try:
        curated.cursor = cursor
        assert curated.says().startswith("Nothing new")
    finally:
        (curated.root / "elsewhere").rename(curated.root / "landing")


def test_files_that_a_run_by_hand_has_read_start_no_second_one(curated: Watched) -> None:
    """Its listing is beside the pool; the cursor knew nothing of it."""
    assert curated.says().startswith("Nothing new")
    listing = curated.root / "landing" / f"{read_newest(curated.root, 'raw_pool', PoolSnapshot).key}.json"
    before = listing.read_text()
    os.utime(curated.folder / "pool" / "one.jsonl")
    taken = read_cursor(curated.cursor)
    (request,) = [curated.says(), curated.tick()][1].run_requests
    assert request.tags[BATCH_TAG] == "+0 files, 1 overwritten, 0 removed"
    now = read_cursor(curated.cursor)
    assert taken is not None and now is not None
    listing.write_text(json.dumps(now.taken))
    curated.cursor = taken.model_dump_json()
    assert curated.says() == "The newest pool has it already (+0 files, 1 overwritten, 0 removed)."
    assert curated.says().startswith("Nothing new")
    assert before != listing.read_text()


def test_the_schedule_starts_a_run_only_when_something_changed(curated: Watched, tmp_path: Path) -> None:
    assert curated.nightly() == "Nothing changed since the last successful run: files, settings and code are the same."
    settings = curated.settings
    wider = settings.model_copy(update={"novelsum": settings.novelsum.model_copy(update={"neighbors": 5})})
    assert "novelsum.neighbors for density" in curated.nightly(wider)
    np.save(curated.folder / "own.npy", np.ones((2, 3)))
    own = settings.model_copy(update={"embedding": settings.embedding.model_copy(update={"vectors": "own.npy"})})
    assert "own.npy has changed" in curated.nightly(own)
    late = write_jsonl(curated.folder / "pool" / "late.jsonl", alpaca(3, start=40))
    assert curated.nightly() == "+1 file, 0 overwritten, 0 removed (pool/late.jsonl)"
    late.unlink()
    one = curated.folder / "pool" / "one.jsonl"
    text = one.read_text()
    one.unlink()
    assert "A run would fail: pool/*: no such file" in curated.nightly()
    one.write_text(text)
    assert curated.nightly() == "+0 files, 1 overwritten, 0 removed (pool/one.jsonl)"


def test_the_schedule_sees_other_code_and_waits_for_a_run(curated: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novelsum_dagster.defs.automation.code_version", lambda _: "0")
    assert "the code of raw_pool" in curated.nightly()
    run = unfinished(curated.instance)
    try:
        assert curated.nightly() == f"Run {run.run_id[:8]} is in progress."
    finally:
        curated.instance.report_run_canceled(run)


def test_the_schedule_starts_the_first_run(watched: Watched) -> None:
    assert watched.nightly() == "no run has succeeded yet"


class Carried:
    """Ticks of the sensor `carry`."""

    def __init__(self, curation: Watched) -> None:
        self.curation = curation
        self.cursor: Any = None

    def requested(self) -> set[str]:
        """Let it look once; return the assets that it requests."""
        definitions = build_defs(self.curation.settings)
        found = dg.evaluate_automation_conditions(
            definitions, self.curation.instance, asset_selection=dg.AssetSelection.all(), cursor=self.cursor
        )
        self.cursor = found.cursor
        return {
            spec.key.to_user_string()
            for spec in definitions.resolve_all_asset_specs()
            if found.get_num_requested(spec.key)
        }

    def run(self, selection: dg.AssetSelection) -> None:
        """Run a part of the pipeline by hand."""
        jobs = dg.Definitions(jobs=[dg.define_asset_job("a_part", selection)])
        job = dg.Definitions.merge(build_defs(self.curation.settings), jobs).resolve_job_def("a_part")
        job.execute_in_process(instance=self.curation.instance, raise_on_error=False)

    def make(self, asset: str) -> None:
        """Materialise one asset without its checks."""
        self.run(dg.AssetSelection.assets(asset).without_checks())

    def check(self, asset: str) -> None:
        """Run the checks of one asset."""
        self.run(dg.AssetSelection.checks_for_assets(dg.AssetKey(asset)))


@pytest.mark.slow
def test_a_change_is_carried_on_past_passed_checks_only(curated: Watched) -> None:
    carried, pool = Carried(curated), curated.folder / "pool"
    assert carried.requested() == set()
    carried.make("raw_pool")
    carried.check("raw_pool")
    assert carried.requested() == set(), "the same pool again is no change"

    cut = pool / "cut.json"
    cut.write_text('[{"instruction": "Say yes.", "output": "Yes."}, {"instruction": "Say no.", "outp')
    settings = curated.settings_file.read_text()
    curated.settings_file.write_text(settings.replace("pool:\n", "pool:\n  max_reject_fraction: 0.5\n"))
    carried.make("raw_pool")
    assert carried.requested() == set(), "no check has looked at it yet"
    carried.check("raw_pool")
    assert carried.requested() == set(), "a blocking check failed"
    cut.unlink()
    curated.settings_file.write_text(settings)

    write_jsonl(pool / "new.jsonl", alpaca(3, start=50))
    carried.make("raw_pool")
    assert carried.requested() == set(), "no check has looked at it yet"
    carried.check("raw_pool")
    found = carried.requested()
    assert {"embeddings", "density", "selected_subset", "novelsum_report", "data_card", "lineage"} <= found
    assert "raw_pool" not in found
    assert carried.requested() == set(), "once"


@pytest.mark.slow
def test_what_a_landing_run_made_is_not_carried_on_again(curated: Watched) -> None:
    carried = Carried(curated)
    carried.requested()
    write_jsonl(curated.folder / "pool" / "newer.jsonl", alpaca(3, start=60))
    curated.tick()
    (request,) = curated.tick().run_requests
    assert curated.start(request).success
    assert carried.requested() == set()
    assert curated.says().startswith("Nothing new")


def members(group: int) -> list[int]:
    """Return the processes of a group that are not mere remains."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_the_daemon_starts_a_run_for_a_dropped_file(tmp_path: Path) -> None:
    """The processes that `novelsum ui` starts, without the webserver; at first there is no file at all."""
    path = write_settings(
        tmp_path, automation={"watch": True, "interval_seconds": 1, "settle_seconds": 1}, checks={"max_source_share": 1}
    )
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {**os.environ, "DAGSTER_HOME": str(home), "NOVELSUM_SETTINGS": str(path)}
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "novelsum_dagster.definitions"]
    # The instance comes first: two processes that make its tables at once get into each other's way.
    with dg.DagsterInstance.from_config(str(home)) as instance, (tmp_path / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=Path(__file__).parents[2]
        )
        try:
            skipped(instance)
            write_jsonl(tmp_path / "pool" / "one.jsonl", alpaca(25))
            run = finished(instance)
        finally:
            os.killpg(daemon.pid, signal.SIGINT)
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait(15)
            while members(daemon.pid):
                os.killpg(daemon.pid, signal.SIGKILL)
                time.sleep(0.1)
    assert run.status == dg.DagsterRunStatus.SUCCESS, (tmp_path / "daemon.log").read_text()
    assert (run.job_name, run.tags["dagster/sensor_name"]) == (CURATE_JOB, "landing")
    assert (run.tags[BATCH_TAG], run.tags[FILES_TAG]) == ("+1 file, 0 overwritten, 0 removed", "pool/one.jsonl")
    assert read_newest(load_settings(path).storage_path, "raw_pool", PoolSnapshot).kept == 25
    assert not members(daemon.pid)


def skipped(instance: dg.DagsterInstance) -> None:
    """Wait until the sensor has looked once."""

    def ticks() -> list[Any]:
        landing = [state for state in instance.all_instigator_state() if state.instigator_name == "landing"]
        return [tick for state in landing for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)]

    wait_for(ticks, 200)
    assert not instance.get_runs_count()


def finished(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """Wait until there is a run that has ended."""
    wait_for(lambda: [run for run in instance.get_runs() if run.is_finished], 200)
    (run,) = instance.get_runs()
    return run


def wait_for(what: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
