"""Lineage as OpenLineage events, for catalogues that read the standard: appended to a file, or posted to an endpoint.

Belongs here: the content of an event, sending it within a few seconds, reporting once that it cannot be sent. Does
not: when a step begins and ends (`defs.steps`), the project's own lineage (`store`).

A curation never fails because of an event, and waits for one no longer than `seconds`. Transports are made here, not by
`OpenLineageClient`: the client takes its target, filters and facets from environment variables and files in the working
and home folders, and adds the address of the git remote to each event.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from novelsum_dagster.lineage.sending import NotSentError, session_to, within

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, RunEvent
    from openlineage.client.facet_v2 import DatasetFacet, RunFacet

API_KEY_VARIABLE = "OPENLINEAGE_API_KEY"
JOB = "curate"
"""The job of a whole run; a step's job is `curate.<step>`."""
_PACKAGE = "novelsum-dagster"


@dataclass(frozen=True, slots=True)
class Dataset:
    """An input or output of a step."""

    name: str
    """An asset such as `raw_pool`, or a source file's path."""
    version: str | None = None
    """Hash of the content."""
    fields: tuple[tuple[str, str], ...] = ()
    """Columns, each with its type."""
    rows: int | None = None
    bytes: int | None = None
    namespace: str | None = None
    """Default: the one of the jobs. The standard calls that of local files `file`, their names absolute paths."""


class Events:
    """Sends the events of steps to one place.

    Args:
        namespace: of the jobs, and of datasets without one of their own.
        file: events are appended to it, one per line.
        url: instead of `file`: base of an endpoint, e.g. `http://127.0.0.1:5000`, without a secret in it. The key in
            `OPENLINEAGE_API_KEY`, if set, is sent as a bearer token.
        say: called once with a message if events cannot be sent.
        seconds: the longest wait for an event.

    Raises:
        ValueError: if not exactly one of `file` and `url` is given.
    """

    def __init__(
        self,
        namespace: str,
        *,
        file: Path | None = None,
        url: str | None = None,
        say: Callable[[str], object],
        seconds: float = 5,
    ) -> None:
        self._deliver: Callable[[RunEvent], None]
        if file is not None and url is None:
            self._place = str(file)
            self._deliver = partial(_append, file.absolute())
        elif url is not None and file is None:
            self._place = url
            self._deliver = partial(_post, url, seconds)
        else:
            raise ValueError("give either file or url")
        self._namespace = namespace
        self._say = say
        self._seconds = seconds
        self._has_said = False

    def start(self, run_id: str, step: str, attempt: int, inputs: Sequence[Dataset]) -> None:
        """Send that a step began; `run_id` is the Dagster run's UUID."""
        self._emit("START", run_id, step, attempt, inputs)

    def complete(
        self, run_id: str, step: str, attempt: int, inputs: Sequence[Dataset], outputs: Sequence[Dataset]
    ) -> None:
        """Send that a step completed, with its output."""
        self._emit("COMPLETE", run_id, step, attempt, inputs, outputs)

    def fail(self, run_id: str, step: str, attempt: int, message: str) -> None:
        """Send that a step failed."""
        self._emit("FAIL", run_id, step, attempt, message=message)

    def _emit(
        self,
        state: str,
        run_id: str,
        step: str,
        attempt: int,
        inputs: Sequence[Dataset] = (),
        outputs: Sequence[Dataset] = (),
        message: str | None = None,
    ) -> None:
        try:
            from openlineage.client.event_v2 import Run, RunEvent, RunState

            event = RunEvent(
                eventType=RunState[state],
                eventTime=datetime.now(UTC).isoformat(),
                producer=_producer(),
                run=Run(step_run_id(run_id, step, attempt), _run_facets(self._namespace, run_id, message)),
                job=_job(self._namespace, step),
                inputs=[_input(self._namespace, dataset) for dataset in inputs],
                outputs=[_output(self._namespace, dataset) for dataset in outputs],
            )
            within(self._seconds, partial(self._deliver, event), "openlineage")
        except Exception as error:  # A failed event must not stop a curation.
            if not self._has_said:
                self._has_said = True
                self._say(f"{self._place}: lineage events cannot be sent: {_reason(error)}; the curation continues")


def step_run_id(run_id: str, step: str, attempt: int) -> str:
    """Return the UUID of one attempt at a step: the same for all of its events, different for a retry."""
    return str(uuid5(UUID(run_id), f"{step}/{attempt}"))


def _producer() -> str:
    return f"https://pypi.org/project/{_PACKAGE}/{version(_PACKAGE)}/"


def _run_facets(namespace: str, run_id: str, message: str | None) -> "dict[str, RunFacet]":
    from openlineage.client.facet_v2 import error_message_run, parent_run, processing_engine_run

    producer = _producer()
    facets: dict[str, RunFacet] = {
        "parent": parent_run.ParentRunFacet(
            run=parent_run.Run(str(UUID(run_id)), facets=None),
            job=parent_run.Job(namespace, JOB, facets=None),
            producer=producer,
        ),
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version("dagster"), "dagster", version(_PACKAGE), producer=producer
        ),
    }
    if message is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message, "PYTHON", producer=producer)
    return facets


def _job(namespace: str, step: str) -> "Job":
    from openlineage.client.event_v2 import Job
    from openlineage.client.facet_v2 import job_type_job

    kind = job_type_job.JobTypeJobFacet("BATCH", "DAGSTER", "STEP", producer=_producer())
    return Job(namespace, f"{JOB}.{step}", {"jobType": kind})


def _input(namespace: str, dataset: Dataset) -> "InputDataset":
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import InputDatasetFacet, input_statistics_input_dataset

    sizes: dict[str, InputDatasetFacet] = {}
    if (dataset.rows, dataset.bytes) != (None, None):
        sizes["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            dataset.rows, dataset.bytes, producer=_producer()
        )
    return InputDataset(dataset.namespace or namespace, dataset.name, sizes, facets=_dataset_facets(dataset))


def _output(namespace: str, dataset: Dataset) -> "OutputDataset":
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import OutputDatasetFacet, output_statistics_output_dataset

    sizes: dict[str, OutputDatasetFacet] = {}
    if (dataset.rows, dataset.bytes) != (None, None):
        sizes["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            dataset.rows, dataset.bytes, producer=_producer()
        )
    return OutputDataset(dataset.namespace or namespace, dataset.name, sizes, facets=_dataset_facets(dataset))


def _dataset_facets(dataset: Dataset) -> "dict[str, DatasetFacet]":
    from openlineage.client.facet_v2 import dataset_version_dataset, schema_dataset

    facets: dict[str, DatasetFacet] = {}
    if dataset.version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(dataset.version, producer=_producer())
    if dataset.fields:
        columns = [schema_dataset.SchemaDatasetFacetFields(name, kind, fields=None) for name, kind in dataset.fields]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(columns, producer=_producer())
    return facets


def _append(file: Path, event: "RunEvent") -> None:
    from openlineage.client.transport.file import FileConfig, FileTransport

    file.parent.mkdir(parents=True, exist_ok=True)
    FileTransport(FileConfig(str(file), append=True)).emit(event)


def _post(url: str, seconds: float, event: "RunEvent") -> None:
    """Post an event, once, to this endpoint and no other.

    Raises:
        NotSentError: as `session_to` does.
    """
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

    key = os.environ.get(API_KEY_VARIABLE)
    with session_to(url, seconds) as session:
        config = HttpConfig(
            url=f"{url.rstrip('/')}/",  # The slash keeps the last part of a path.
            timeout=seconds,
            auth=ApiKeyTokenProvider({"apiKey": key}) if key else TokenProvider({}),
            session=session,
            retry={"total": 0},
        )
        HttpTransport(config).emit(event)


def _reason(error: Exception) -> str:
    """Return the reason of a failure, without the text of any error that could contain a secret."""
    if isinstance(error, NotSentError):
        return str(error)
    cause = error.__cause__ or error  # The file transport wraps the error of the file system.
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else type(error).__name__
