"""Changes at the pool's sources: files at the sources, files new since the last batch, and whether they are complete.

Belongs here: the listing of all sources, the cursor between two scans, the listing that a snapshot was read
from. Does not: starting runs (`defs.automation`), reading records (`readers`), samples (`ingest`).

A batch is everything that was added, overwritten and removed since the last one. It is taken as a whole, because a run
reads every existing file: while one file is still being written, the others wait for it.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key, file_hash, read_json, write_json
from novelsum_dagster.common.progress import counted
from novelsum_dagster.pool.buckets import BucketFile, bucket_files, is_in_bucket
from novelsum_dagster.pool.datasets_reader import is_saved_dataset
from novelsum_dagster.pool.readers import find_files, shown_name, unfinished_folders
from novelsum_dagster.settings import S3, Source

GONE = ""
"""The mark of a missing file."""
HASHED_BYTES = 2 * 2**30
"""Files beyond this total size are not hashed to compare them with the newest pool: a scan must stay short."""
_AWS = S3()
_MARK_LENGTH = 12
_NAMES = 5


@dataclass(frozen=True)
class Landed:
    """One file at a source.

    Attributes:
        name: as a snapshot shows it.
        size: in bytes.
        version: changes whenever the file does: its modification time in nanoseconds, or its ETag.
        modified: seconds since 1970 by the writer's clock; None if files appear atomically.
        is_finished: whether its folder has a success marker.
    """

    name: str
    size: int
    version: str
    modified: float | None
    is_finished: bool = False

    @property
    def mark(self) -> str:
        """A short hash of size and version."""
        return content_key([self.size, self.version])[:_MARK_LENGTH]


@dataclass(frozen=True)
class Listing:
    """All files at the sources, by name, and folders whose files are ignored until their success marker exists."""

    files: Mapping[str, Landed]
    unfinished: frozenset[str] = frozenset()

    @property
    def marks(self) -> dict[str, str]:
        """The files' marks by name."""
        return {name: file.mark for name, file in self.files.items()}


@dataclass(frozen=True)
class Changes:
    """Names of files that differ from the last batch."""

    added: tuple[str, ...]
    overwritten: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.overwritten or self.removed)

    def __str__(self) -> str:
        return f"+{counted(len(self.added), 'file')}, {len(self.overwritten)} overwritten, {len(self.removed)} removed"

    @property
    def names(self) -> str:
        """The first names; those of removed files have a minus sign in front."""
        return short([*self.added, *self.overwritten, *(f"-{name}" for name in self.removed)])


class Seen(BaseModel):
    """A file that differs from the last batch: its mark, and the time of that first observation, by our clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mark: str
    since: float


class Cursor(BaseModel):
    """State kept between two scans.

    Attributes:
        kind: distinguishes this cursor from others.
        batch: key of the last batch; the next batch's key is derived from it, so that none is repeated.
        taken: marks of the last batch's files, by name.
        seen: what differed from it at the last scan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["novelsum landing 1"] = "novelsum landing 1"
    batch: str
    taken: dict[str, str]
    seen: dict[str, Seen] = {}


@dataclass(frozen=True)
class Look:
    """Result of one scan.

    Attributes:
        changes: since the last batch.
        unsettled: names of files that may still be being written.
        waiting: the cursor while the changes are not taken.
        taken: the cursor once they are; its `batch` is the new batch's key.
    """

    changes: Changes
    unsettled: tuple[str, ...]
    waiting: Cursor
    taken: Cursor


def read_cursor(text: str | None) -> Cursor | None:
    """Return the cursor stored in a text; None if there is none, or it is another program's."""
    try:
        return Cursor.model_validate_json(text or "")
    except ValidationError:
        return None


def landed_file(path: Path, base: Path, is_finished: bool = False) -> Landed | None:
    """Return the current state of a file; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Landed(
        name=shown_name(path, base),
        size=status.st_size,
        version=str(status.st_mtime_ns),
        modified=status.st_mtime,
        is_finished=is_finished,
    )


def landed_object(file: BucketFile, is_finished: bool = False) -> Landed:
    """Return the current state of an object in a bucket."""
    return Landed(file.name, file.found.size, file.found.etag, None, is_finished)


def located(source: Source, base: Path) -> Source:
    """Return a source with a `save_to_disk` folder as its path as a dataset; any other unchanged."""
    if source.path is None or is_in_bucket(source.path) or not is_saved_dataset(base / Path(source.path).expanduser()):
        return source
    return source.model_copy(update={"path": None, "dataset": source.path})


def landed_source(source: Source, base: Path) -> list[Landed]:
    """Return the local files of one source: those of its path, or of a dataset that is a folder.

    Raises:
        InputError: as `find_files` does.
    """
    source = located(source, base)
    if source.path is not None:
        paths = find_files(source.path, base, source.success_marker)
    else:
        assert source.dataset is not None
        folder = base / Path(source.dataset).expanduser()
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    found = (landed_file(path, base, source.success_marker) for path in paths)
    return [file for file in found if file is not None]


def list_sources(sources: Iterable[Source], base: Path, s3: S3 = _AWS) -> Listing:
    """Return the files of all sources.

    Args:
        sources: as the settings have them.
        base: folder to which relative paths refer.
        s3: connection for sources in buckets.

    Raises:
        InputError: if a run would refuse the sources: one has no file, or a file of unknown format.
    """
    files: dict[str, Landed] = {}
    unfinished: set[str] = set()
    for source in sources:
        found, not_yet = _listed(source, base, s3)
        unfinished |= not_yet
        for file in found:
            files.setdefault(file.name, file)
    return Listing(files, frozenset(unfinished))


def _listed(source: Source, base: Path, s3: S3) -> tuple[list[Landed], set[str]]:
    marked = source.success_marker
    if source.path is not None and is_in_bucket(source.path):
        found, unfinished = bucket_files(source.path, s3, marked)
        return [landed_object(file, marked) for file in found], unfinished
    folders = unfinished_folders(source.path, base) if source.path is not None and marked else set()
    return landed_source(source, base), {shown_name(folder, base) for folder in folders}


def require_unchanged(files: Iterable[Landed], base: Path) -> None:
    """Require that files did not change while they were read.

    Raises:
        InputError: naming the first that did.
    """
    for before in files:
        if before.modified is None:  # Fetched atomically.
            continue
        now = landed_file(base / before.name, base)
        if now is None or now.mark != before.mark:
            what = "was deleted after" if now is None else "changed while"
            raise InputError(f"{before.name} {what} it was read; run again when nothing is writing there")


def look(cursor: Cursor, listing: Listing, now: float, settle_seconds: float) -> Look:
    """Compare the files at the sources with the last batch and the last scan.

    Args:
        cursor: of the last scan.
        listing: the files at the sources.
        now: seconds since 1970.
        settle_seconds: how old a file must be.
    """
    marks, taken = listing.marks, cursor.taken
    changes = Changes(
        added=tuple(name for name in marks if name not in taken),
        overwritten=tuple(name for name in marks if name in taken and marks[name] != taken[name]),
        removed=tuple(name for name in taken if name not in marks),
    )
    seen: dict[str, Seen] = {}
    unsettled: list[str] = []
    for name in (*changes.added, *changes.overwritten, *changes.removed):
        before = cursor.seen.get(name)
        mark = marks.get(name, GONE)
        is_known = before is not None and before.mark == mark
        # Otherwise, after the clock is set back, a file would wait until the clock has caught up.
        since = min(before.since, now) if is_known and before is not None else now
        seen[name] = Seen(mark=mark, since=since)
        if not _is_settled(listing, name, is_known, since, now, settle_seconds):
            unsettled.append(name)
    return Look(
        changes=changes,
        unsettled=tuple(unsettled),
        waiting=cursor.model_copy(update={"seen": seen}),
        taken=Cursor(batch=content_key([cursor.batch, marks]), taken=marks),
    )


def _is_settled(listing: Listing, name: str, is_known: bool, since: float, now: float, settle_seconds: float) -> bool:
    file = listing.files.get(name)
    if file is None:
        # A folder that is being rewritten counts as present.
        return is_known and now - since >= settle_seconds and (name.rpartition("/")[0] or ".") not in listing.unfinished
    if file.is_finished:
        return True
    if file.size == 0:
        return False
    if file.modified is None:
        return is_known
    # If the writer's clock is ahead of ours, the time of our own scan counts.
    written = file.modified if file.modified <= now else since
    return is_known and now - written >= settle_seconds


def start_cursor(listing: Listing, base: Path, start: str, read: Mapping[str, str], sums: Mapping[str, str]) -> Cursor:
    """Return an initial cursor, with the newest pool as the last batch.

    Args:
        listing: the files at the sources.
        base: folder to which relative names refer.
        start: distinguishes this start from others.
        read: marks of the files that the newest pool was read from, by name, if known.
        sums: their SHA-256; a file whose mark differs and whose SHA-256 does not is the same file.
    """
    same = {name for name, mark in listing.marks.items() if read.get(name) == mark}
    in_question = [
        file for name, file in listing.files.items() if name not in same and sums.get(name) and file.modified
    ]
    if sum(file.size for file in in_question) <= HASHED_BYTES:
        same |= {file.name for file in in_question if _sum(base / file.name) == sums[file.name]}
    names = dict.fromkeys([*read, *(name for name, sha256 in sums.items() if sha256)])
    return Cursor(
        batch=content_key(start), taken={name: listing.files[name].mark if name in same else GONE for name in names}
    )


def _sum(path: Path) -> str | None:
    try:
        return file_hash(path)
    except OSError:
        return None


def write_listing(root: Path, snapshot: str, files: Iterable[Landed]) -> None:
    """Store the listing that a snapshot was read from.

    Args:
        root: the storage folder.
        snapshot: key of the snapshot.
        files: as they were when it was read.
    """
    write_json({file.name: file.mark for file in files}, _listing_path(root, snapshot))


def read_listing(root: Path, snapshot: str) -> dict[str, str] | None:
    """Return the marks of the files that a snapshot was last read from, by name; None if unknown."""
    try:
        found = read_json(_listing_path(root, snapshot))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _listing_path(root: Path, snapshot: str) -> Path:
    return root / "landing" / f"{snapshot}.json"


def short(names: Collection[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    shown = ", ".join(name.encode("utf-8", "replace").decode() for name in list(names)[:_NAMES])
    return shown + (f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else "")
