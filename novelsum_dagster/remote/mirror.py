"""A local mirror of a prefix on S3: work happens on local files, which are published when done and fetched when needed.

Belongs here: what is sent or fetched, and in which order. Does not: how (`s3`), when (the steps and commands).

Content-addressed files never change, so a file on S3 is either right or damaged. The small files that name others
(records, verdicts, runs, newest artifacts) are sent last, so a killed process leaves only files that nothing names.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import is_name, known_hash
from novelsum_dagster.remote.s3 import Remote, RemoteFile
from novelsum_dagster.settings import S3, S3Place, Settings

LAST = ("provenance/", "checks/", "runs/", "assets/")
"""Folders of small files that name others, in the order of sending, after everything else."""
THREADS = 8
Item = TypeVar("Item")


class StoredFile(Protocol):
    """The recorded size and hash of a file (`artifacts.provenance.StoredFile`)."""

    @property
    def sha256(self) -> str: ...
    @property
    def bytes(self) -> int: ...


class Mirror:
    """A local folder that mirrors a prefix of a bucket. Names are paths within it, with forward slashes.

    Args:
        root: the local folder.
        remote: the prefix.
        threads: transfers at once.
    """

    def __init__(self, root: Path, remote: Remote, threads: int = THREADS) -> None:
        self.root = root
        self.remote = remote
        self._threads = threads

    def publish(self, files: Mapping[str, StoredFile]) -> int:
        """Send files that are missing on S3, those that name others last; return the number sent.

        Raises:
            InputError: if a local file is missing or damaged, or S3 fails.
        """
        sent = 0
        for names in _in_order(files):
            sent += sum(self._each(lambda name: self._send(name, files[name].sha256), names))
        return sent

    def fetch(self, files: Mapping[str, StoredFile]) -> int:
        """Fetch files that are missing or damaged locally; return their number.

        Raises:
            InputError: if a file is missing or damaged on S3 too, or S3 fails.
        """
        wanted = [name for name, file in files.items() if not self._is_here(name, file)]

        def fetched(name: str) -> bool:
            self.remote.download(name, self._path(name), files[name].sha256)
            return True

        return sum(self._each(fetched, wanted))

    def put(self, *names: str) -> int:
        """Send mutable files in the order given; return the number sent."""
        return sum(self._send(name, None) for name in names)

    def get(self, name: str) -> bool:
        """Update a mutable local file from S3; return False, without changing it, if S3 has none."""
        there = self.remote.stat(name)
        if there is None:
            return False
        self._refresh(name, there)
        return True

    def get_folder(self, folder: str) -> int:
        """Update all local files of a folder from S3; return the number fetched. Other local files are kept."""
        there = self.remote.files(f"{folder.rstrip('/')}/")
        return sum(self._each(lambda name: self._refresh(name, there[name]), there))

    def put_folder(self, folder: str) -> int:
        """Send all files of a local folder that differ from those on S3; return the number sent."""
        there = self.remote.files(f"{folder.rstrip('/')}/")
        found = (path for path in sorted((self.root / folder).rglob("*")) if path.is_file())
        local = {path.relative_to(self.root).as_posix(): path for path in found}
        seen = {name: path for name, path in local.items() if not any(p.startswith(".") for p in name.split("/"))}
        changed = [n for n, path in seen.items() if n not in there or not self._is_same(path, n, there[n])]
        return sum(self._each(lambda name: self._send(name, None), changed))

    def _send(self, name: str, sha256: str | None) -> bool:
        path = self._path(name)
        if not path.is_file():
            # Either a step in another working folder has published it already, or it is lost.
            there = self.remote.stat(name) if sha256 else None
            if there is not None and there.sha256 == sha256:
                return False
            raise InputError(f"{path}: is missing, so it cannot be sent to {self.remote.place}; rebuild it")
        return self.remote.upload(path, name, sha256)

    def _refresh(self, name: str, there: RemoteFile) -> bool:
        path = self._path(name)
        if path.is_file() and self._is_same(path, name, there):
            return False
        self.remote.download(name, path)
        return True

    def _is_same(self, path: Path, name: str, there: RemoteFile) -> bool:
        """Return whether a local file matches an object.

        Multipart ETags are not content hashes, so such objects are compared by their stored SHA-256.
        """
        if path.stat().st_size != there.size or "-" not in there.etag:
            return _has_etag(path, there)
        known = there if there.sha256 else self.remote.stat(name)
        return known is not None and known.sha256 == known_hash(path)

    def _is_here(self, name: str, file: StoredFile) -> bool:
        path = self._path(name)
        return path.is_file() and path.stat().st_size == file.bytes and known_hash(path) == file.sha256

    def _path(self, name: str) -> Path:
        if not is_name(name):
            raise InputError(f"{name!r}: cannot be the name of a stored file")
        return self.root / name

    def _each(self, action: Callable[[str], bool], names: Iterable[str]) -> list[bool]:
        """Apply an action to every name, several at once; stop at the first failure."""
        todo = list(names)
        if len(todo) < 2:
            return [action(name) for name in todo]
        self.remote.connect()  # Once, so that a failure is not raised by every thread.
        with ThreadPoolExecutor(min(self._threads, len(todo))) as threads:
            try:
                return list(threads.map(action, todo))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)


def mirror_of(settings: Settings) -> Mirror | None:
    """Return the mirror for the settings, one per place and process; None if storage is a folder."""
    place = settings.s3_place
    return None if place is None else Mirror(settings.storage_path, _remote(place, settings.s3))


@cache
def _remote(place: S3Place, s3: S3) -> Remote:
    return Remote(place, s3)


def _in_order(names: Iterable[str]) -> list[list[str]]:
    """Return names in groups, each to be sent after the previous one."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(next((i for i, folder in enumerate(LAST) if name.startswith(folder)), -1), []).append(name)
    return [groups[rank] for rank in sorted(groups)]


def _has_etag(path: Path, there: RemoteFile) -> bool:
    """Return whether a file matches an object by size and ETag, which is the MD5 of an object sent in one part."""
    if path.stat().st_size != there.size or "-" in there.etag:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == there.etag
