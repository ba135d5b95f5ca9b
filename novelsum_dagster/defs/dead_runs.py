"""Closing runs whose process died, so that nothing waits for them, and the sensor `dead_runs`, which looks for them.

Belongs here: marking a dead run in Dagster and in the lineage. Does not: detecting one (`liveness`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from novelsum_dagster.artifacts.layout import run_file
from novelsum_dagster.artifacts.outputs import publish
from novelsum_dagster.common.liveness import ended_runs
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ASSET_JOB = "__ASSET_JOB"
"""Dagster's name for the job of hand-picked assets; its runs write the same outputs."""
_DEAD_AFTER_SECONDS = 60
"""A younger run is not checked for liveness: it may not have marked itself yet."""


@contextmanager
def open_instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of `DAGSTER_HOME`, after closing runs whose process died."""
    with dg.DagsterInstance.get() as instance:
        close_dead_runs(instance, workspace)
        yield instance


def close_dead_runs(instance: dg.DagsterInstance, workspace: Workspace) -> None:
    """Mark runs whose process died as failed and free their pool slots, for which a new run would wait forever.

    The Dagster daemon does the same for runs that it launched; a command-line run has no daemon.
    """
    for run_id in ended_runs(workspace.root):
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, "The process of this run ended before the run did.")
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        workspace.lineage.close_run(run_id, "the process ended")
        if (workspace.root / run_file(run_id)).exists():  # The run may have died before sending its last run file.
            publish(workspace.mirror, run_file(run_id))


def dead_runs_sensor(settings: Settings, job: str) -> dg.SensorDefinition:
    """Return the sensor that closes runs whose process died together with the code server that started it.

    Dagster's own launcher does not: it asks only the code server, and a new one does not know these runs. An open run
    would keep its place in the queue, and block other runs, forever.

    Args:
        settings: all settings.
        job: name of the job whose runs are checked, besides those of hand-picked assets.
    """
    workspace = Workspace(settings)

    @dg.sensor(
        name="dead_runs",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs whose process has died as failed, so that others can start. Starts nothing.",
    )
    def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        running = unfinished_run(context.instance, workspace, job)
        return dg.SkipReason(f"Run {running.run_id[:8]} is in progress." if running else "No run is in progress.")

    return dead_runs


def unfinished_run(instance: dg.DagsterInstance, workspace: Workspace, job: str) -> dg.DagsterRun | None:
    """Return a run that is in progress; runs whose process died are closed first, or others would wait forever."""
    found = _unfinished(instance, job)
    begun = [record.start_time for record in found if record.start_time]  # Queued runs have no start time.
    if begun and time.time() - max(begun) > _DEAD_AFTER_SECONDS:
        close_dead_runs(instance, workspace)
        found = _unfinished(instance, job)
    return found[0].dagster_run if found else None


def _unfinished(instance: dg.DagsterInstance, job: str) -> list[dg.RunRecord]:
    records = instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED))
    return [record for record in records if record.dagster_run.job_name in (job, _ASSET_JOB)]
