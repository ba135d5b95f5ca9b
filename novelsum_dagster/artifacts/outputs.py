"""Outputs of steps on S3: the newest artifacts, their records and their files.

Belongs here: what of an output is sent and fetched, and in which order. Does not: sending (`mirror`), the steps.

Each function takes a mirror, or None where storage is a folder, and then does nothing.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from novelsum_dagster.artifacts.layout import run_file
from novelsum_dagster.artifacts.newest import newest_file
from novelsum_dagster.artifacts.provenance import Provenance, read_record, record_path
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.liveness import dead_runs
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.remote.mirror import Mirror

FOLDERS = (
    "pool",
    "vectors",
    "density",
    "novelty",
    "selections",
    "reports",
    "cards",
    "changes",
    "checks",
    "provenance",
    "runs",
    "assets",
)
"""Everything that a storage folder has on S3."""


def fetch_newest(mirror: Mirror | None, asset: str, partition: str | None = None) -> None:
    """Make the local copy of an asset's newest artifact as it is on S3."""
    if mirror is not None:
        mirror.get(newest_file(asset, partition))


def fetch_output(mirror: Mirror | None, asset: str, key: str) -> None:
    """Fetch an output's record, and those of its files that are missing or damaged here.

    Raises:
        InputError: where a file is missing or damaged on S3, too.
    """
    if mirror is None:
        return
    mirror.get(_record_name(mirror.root, asset, key))
    try:
        made = read_record(mirror.root, asset, key)
    except InputError:
        return  # The check of the records says so, with all else that does not match.
    mirror.fetch(made.files)


def publish_output(mirror: Mirror | None, made: Provenance) -> None:
    """Send an output's files, and then its record; the artifact that names it comes last, by another hand."""
    if mirror is not None:
        mirror.publish(made.files)
        mirror.put(_record_name(mirror.root, made.asset, made.output))


def publish(mirror: Mirror | None, *names: str) -> None:
    """Send files that change, each whole, in the order given."""
    if mirror is not None:
        mirror.put(*names)


def exchange_runs(mirror: Mirror | None) -> int:
    """Send what runs that died here wrote last, and fetch what others wrote; return how many files were fetched."""
    if mirror is None:
        return 0
    written = (run_file(run_id) for run_id in dead_runs(mirror.root))
    # First: what is on S3 is older, and would replace it.
    mirror.put(*(name for name in written if (mirror.root / name).exists()))
    return mirror.get_folder("runs")


def fetch_everything(mirror: Mirror, progress: Progress = no_progress) -> int:
    """Make the local folder as the storage on S3 is; return how many files were fetched. Others here are left."""
    fetched = exchange_runs(mirror)
    for number, folder in enumerate(FOLDERS):
        progress(number, len(FOLDERS))
        fetched += mirror.get_folder(folder)
    progress(len(FOLDERS), len(FOLDERS))
    return fetched


def remove(mirror: Mirror, paths: Iterable[str]) -> int:
    """Delete files and folders on S3 that were removed here; return how many files."""
    gone = {PurePosixPath(path) for path in paths}
    names = [
        name for name in mirror.remote.files() if gone.intersection([PurePosixPath(name), *PurePosixPath(name).parents])
    ]
    for name in names:
        mirror.remote.delete(name)
    return len(names)


def _record_name(root: Path, asset: str, key: str) -> str:
    return record_path(root, asset, key).relative_to(root).as_posix()
