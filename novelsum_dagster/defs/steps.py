"""The frame of every step: recording in the lineage, progress, and clear error messages.

Belongs here: `Step`, metadata that several assets share. Does not: any one asset.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import run_file
from novelsum_dagster.artifacts.outputs import fetch_output, publish, publish_output
from novelsum_dagster.artifacts.provenance import Provenance, record, record_path, require_matching
from novelsum_dagster.common.errors import InputError, disk_full, is_disk_full
from novelsum_dagster.common.liveness import hold
from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.lineage.openlineage import Dataset
from novelsum_dagster.workspace import Workspace

INTERRUPTED = "interrupted"
OWNERS = ["team:data"]
RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)


@dataclass
class Step:
    """One asset's work within a run.

    Attributes:
        name: of the asset.
        run_id: of the run.
        workspace: of the curation.
        reporter: shows progress.
        inputs: artifacts that the output is built from, by asset.
        config: values from the launchpad.
        output: the artifact that was built.
    """

    name: str
    run_id: str
    workspace: Workspace
    reporter: Reporter
    inputs: Mapping[str, Artifact]
    config: Mapping[str, Any]
    output: Artifact | None = None
    datasets: tuple[Sequence[Dataset], Sequence[Dataset]] = ((), ())
    """Inputs and outputs, for OpenLineage."""

    def result(self, output: Artifact, **metadata: Any) -> dg.MaterializeResult[Any]:
        """Record the output's provenance; return the result for Dagster: the artifact, its key as version, metadata."""
        root, settings = self.workspace.root, self.workspace.settings
        made = record(root, settings, self.name, output, self.inputs, self.run_id, self.config)
        publish_output(self.workspace.mirror, made)
        self.output = output
        self.datasets = (_read(made), [_made(made, metadata)])
        metadata["provenance"] = dg.MetadataValue.path(str(record_path(root, self.name, output.key)))
        metadata["explore"] = dg.MetadataValue.url(f"{settings.explore_url.rstrip('/')}/?run={self.run_id}")
        return dg.MaterializeResult(value=output, data_version=dg.DataVersion(output.key), metadata=metadata)


@contextmanager
def recorded(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    inputs: Mapping[str, Artifact],
    *,
    name: str | None = None,
    config: dg.Config | None = None,
) -> Iterator[Step]:
    """Check the step's inputs, and record the step in the lineage; user errors are not retried.

    Args:
        context: of the asset.
        workspace: of the curation.
        inputs: artifacts that the step uses, by asset; of a partition as `asset[partition]`.
        name: of a step that builds several assets; default: the asset's.
        config: values from the launchpad.
    """
    name = name or context.asset_key.to_user_string()
    attempt = _begin(workspace, context.run.run_id, name)
    reporter = workspace.reporter_for(context.log.info)
    step = Step(name, context.run.run_id, workspace, reporter, inputs, config.model_dump() if config else {})
    events = workspace.events(context.log.warning)
    if events:
        events.start(context.run.run_id, name, attempt, [Dataset(asset, one.key) for asset, one in inputs.items()])
    try:
        for asset, one in inputs.items():
            fetch_output(workspace.mirror, asset.partition("[")[0], one.key)
        require_matching(workspace.root, workspace.settings, inputs)
        yield step
    except BaseException as error:
        message = (
            disk_full(workspace.root) if is_disk_full(error, workspace.root) else str(error) or type(error).__name__
        )
        _record_failure(workspace, context.run.run_id, name, attempt, message)
        if events:
            events.fail(context.run.run_id, name, attempt, message)
        if isinstance(error, ValueError) or is_disk_full(error, workspace.root):
            raise dg.Failure(message, allow_retries=False) from error
        if isinstance(error, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
            # Otherwise the retry policy would restart a step that was stopped on purpose.
            raise dg.Failure(INTERRUPTED, allow_retries=False) from error
        raise
    workspace.lineage.end_step(context.run.run_id, name, attempt, step.output.key if step.output else None, None)
    publish(workspace.mirror, run_file(context.run.run_id))
    if events:
        events.complete(context.run.run_id, name, attempt, *step.datasets)


def _begin(workspace: Workspace, run_id: str, name: str) -> int:
    """Lock the storage for a step's run and record the start of the step; return its attempt."""
    try:
        workspace.hold(run_id)
        if not workspace.steps_apart:
            hold(workspace.root, run_id)
        workspace.lineage.start_run(run_id, workspace.settings.model_dump_json())
        return workspace.lineage.start_step(run_id, name)
    except Exception as error:
        if is_disk_full(error, workspace.root):
            raise dg.Failure(disk_full(workspace.root), allow_retries=False) from error
        if isinstance(error, ValueError):  # Storage in use, S3, or a damaged file behind a view of the lineage.
            raise dg.Failure(str(error), allow_retries=False) from error
        raise


def _record_failure(workspace: Workspace, run_id: str, name: str, attempt: int, message: str) -> None:
    """Record that a step failed; a failure of recording must not hide the original error."""
    try:
        workspace.lineage.end_step(run_id, name, attempt, None, message)
        publish(workspace.mirror, run_file(run_id))
    except Exception as error:
        if not isinstance(error, InputError) and not is_disk_full(error, workspace.root):
            raise


def _read(made: Provenance) -> list[Dataset]:
    """Return the inputs of an output: assets, or the source files of a pool."""
    return [Dataset(name, key or None) for name, key in made.inputs.items()]


def _made(made: Provenance, metadata: Mapping[str, Any]) -> Dataset:
    schema = metadata.get("dagster/column_schema")
    return Dataset(
        made.asset,
        made.output,
        fields=tuple((column.name, column.type) for column in schema.columns) if schema else (),
        rows=metadata.get("dagster/row_count"),
        bytes=sum(file.bytes for file in made.files.values()) or None,
    )


def column_schema(schema: pa.Schema, **descriptions: str) -> dg.TableSchema:
    """Return an Arrow schema in Dagster's form."""
    return dg.TableSchema(
        columns=[dg.TableColumn(field.name, str(field.type), descriptions.get(field.name)) for field in schema]
    )


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """Return a plot as metadata for the UI."""
    return dg.MetadataValue.md(f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode()})")
