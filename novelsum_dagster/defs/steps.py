"""What every asset does around its work: it is recorded in the lineage, reports progress, and fails in plain words.

Belongs here: `Step`, metadata that several assets share. Does not: any one asset.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pyarrow as pa

from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.liveness import ended_runs, hold
from novelsum_dagster.pool.snapshot import Handle
from novelsum_dagster.progress import Reporter
from novelsum_dagster.workspace import Workspace

INTERRUPTED = "interrupted"
OWNERS = ["team:data"]
RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)


class Step:
    """One asset's work within a run: `reporter` shows progress, `output` is set to the handle that it made."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.output: Handle | None = None

    def result(self, output: Handle, **metadata: Any) -> dg.MaterializeResult[Any]:
        """Return what Dagster keeps: the handle, its key as the data version, and metadata."""
        self.output = output
        return dg.MaterializeResult(value=output, data_version=dg.DataVersion(output.key), metadata=metadata)


@contextmanager
def recorded(context: dg.AssetExecutionContext, workspace: Workspace, name: str | None = None) -> Iterator[Step]:
    """Record the step in the lineage; turn a user's mistake into a failure that is not retried.

    Args:
        context: of the asset.
        workspace: of the curation.
        name: of a step that makes several assets; default: the asset's.
    """
    lineage, name = workspace.lineage, name or context.asset_key.to_user_string()
    hold(workspace.root, context.run.run_id)
    lineage.start_run(context.run.run_id, workspace.settings.model_dump_json())
    attempt = lineage.start_step(context.run.run_id, name)
    step = Step(workspace.reporter_for(context.log.info))
    try:
        yield step
    except BaseException as error:
        lineage.end_step(context.run.run_id, name, attempt, None, str(error) or type(error).__name__)
        if isinstance(error, ValueError):
            raise dg.Failure(str(error), allow_retries=False) from error
        if isinstance(error, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
            # A retry policy would otherwise start the step again that a person has just stopped.
            raise dg.Failure(INTERRUPTED, allow_retries=False) from error
        raise
    lineage.end_step(context.run.run_id, name, attempt, step.output.key if step.output else None, None)


def close_dead_runs(instance: dg.DagsterInstance, workspace: Workspace) -> None:
    """Mark runs whose process died as failed and give back their pool slots, which a new run would wait for forever.

    The Dagster daemon does the same for runs that it launched; a command line run has no daemon.
    """
    for run_id in ended_runs(workspace.root):
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, "The process of this run ended before the run did.")
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        _close_steps(workspace.lineage, run_id)


def _close_steps(lineage: LineageStore, run_id: str) -> None:
    for step, attempt in lineage.open_steps(run_id):
        lineage.end_step(run_id, step, attempt, None, "the process ended")


def column_schema(schema: pa.Schema, **descriptions: str) -> dg.TableSchema:
    """Return an Arrow schema as Dagster shows it."""
    return dg.TableSchema(
        columns=[dg.TableColumn(field.name, str(field.type), descriptions.get(field.name)) for field in schema]
    )


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """Return a plot as metadata that the UI draws."""
    return dg.MetadataValue.md(f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode()})")
