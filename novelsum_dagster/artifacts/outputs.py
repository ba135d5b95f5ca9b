"""Outputs of steps on S3: the newest artifacts, their records and their files.

Belongs here: which files of an output are sent and fetched, in which order. Does not: sending (`mirror`), the steps.

Each function takes a mirror, or None if storage is a folder, and then does nothing.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from novelsum_dagster.artifacts.layout import SYNCED, newest_file, record_file, run_file
from novelsum_dagster.artifacts.provenance import Provenance, read_record
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.liveness import dead_runs
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.remote.mirror import Mirror


def fetch_newest(mirror: Mirror | None, asset: str, partition: str | None = None) -> None:
    """Update the local copy of an asset's newest artifact from S3."""
    if mirror is not None:
        mirror.get(newest_file(asset, partition))


def fetch_output(mirror: Mirror | None, asset: str, key: str) -> None:
    """Fetch an output's record, and its files that are missing or damaged locally.

    Raises:
        InputError: if a file is missing or damaged on S3, too.
    """
    if mirror is None:
        return
    mirror.get(record_file(asset, key))
    try:
        made = read_record(mirror.root, asset, key)
    except InputError:
        return  # The check of the records reports it, with every other mismatch.
    mirror.fetch(made.files)


def publish_output(mirror: Mirror | None, made: Provenance) -> None:
    """Send an output's files, and then its record; the artifact that names it is sent last, by the IO manager."""
    if mirror is not None:
        mirror.publish(made.files)
        mirror.put(record_file(made.asset, made.output))


def publish(mirror: Mirror | None, *names: str) -> None:
    """Send mutable files in the order given."""
    if mirror is not None:
        mirror.put(*names)


def exchange_runs(mirror: Mirror | None) -> int:
    """Send the run files of runs that died here, and fetch those of others; return the number fetched."""
    if mirror is None:
        return 0
    written = (run_file(run_id) for run_id in dead_runs(mirror.root))
    # Sent first: the version on S3 is older, and would replace it.
    mirror.put(*(name for name in written if (mirror.root / name).exists()))
    return mirror.get_folder("runs")


def fetch_everything(mirror: Mirror, progress: Progress = no_progress) -> int:
    """Update the local folder from the storage on S3; return the number of files fetched. Other files are kept."""
    fetched = exchange_runs(mirror)
    for number, folder in enumerate(SYNCED):
        progress(number, len(SYNCED))
        fetched += mirror.get_folder(folder)
    progress(len(SYNCED), len(SYNCED))
    return fetched


def remove(mirror: Mirror, paths: Iterable[str]) -> int:
    """Delete files and folders on S3 that were removed here; return the number of files."""
    gone = {PurePosixPath(path) for path in paths}
    names = [
        name for name in mirror.remote.files() if gone.intersection([PurePosixPath(name), *PurePosixPath(name).parents])
    ]
    for name in names:
        mirror.remote.delete(name)
    return len(names)
