"""The workspace of one curation: its settings, its storage folder and its progress reporter.

Belongs here: what both the command line and Dagster need to start work. Does not: the work, Dagster.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from novelsum_dagster.artifacts.outputs import exchange_runs
from novelsum_dagster.common.progress import LogReporter, Reporter
from novelsum_dagster.lineage.openlineage import Events
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.remote.lock import hold_storage
from novelsum_dagster.remote.mirror import Mirror, mirror_of
from novelsum_dagster.settings import Settings


@dataclass(frozen=True)
class Workspace:
    """Settings, storage and progress of one curation.

    Attributes:
        settings: all settings.
        reporter: shows progress; None writes it to the log of the step.
        steps_apart: whether every step has its own process, so that a run may be alive without a running process.
    """

    settings: Settings
    reporter: Reporter | None = None
    steps_apart: bool = False

    @property
    def root(self) -> Path:
        """The storage folder."""
        return self.settings.storage_path

    @property
    def lineage(self) -> LineageStore:
        """The lineage database."""
        return LineageStore(self.root)

    @property
    def mirror(self) -> Mirror | None:
        """The mirror of storage on S3; None if storage is a folder."""
        return mirror_of(self.settings)

    def hold(self, run_id: str) -> None:
        """Lock the storage for a run; when newly locked, fetch the runs that other machines have written meanwhile.

        Raises:
            InputError: if another run uses it, or S3 cannot be reached.
        """
        mirror = self.mirror
        is_new = hold_storage(self.root, run_id, mirror.remote if mirror else None)
        if is_new and mirror is not None:
            exchange_runs(mirror)

    def events(self, say: Callable[[str], object]) -> Events | None:
        """Return the sender of OpenLineage events; None if the settings name no destination. `say` gets failures."""
        wanted = self.settings.openlineage
        if wanted.file is not None:
            place = self.settings.base / Path(wanted.file).expanduser()
            return Events(wanted.namespace, file=place, say=say)
        return Events(wanted.namespace, url=wanted.url, say=say) if wanted.url else None

    def reporter_for(self, log: Callable[[str], object]) -> Reporter:
        """Return the reporter in force."""
        return self.reporter or LogReporter(log)
