"""The storage lock: one run at a time in a storage folder, local or on S3.

Belongs here: acquiring the folder for a run, naming the holder, detecting a dead holder. Does not: what runs do.

Every process of a run has its own lock under `locks/`, so a run holds the folder until its last process has ended.
Locally the operating system releases a dead process's lock. On S3 the lock is a lease, renewed by a thread: an object
that was not renewed in time belongs to a dead process. All times are the server's, so clocks may differ.

Taking a lease is safe without conditional writes: each process writes its own object and then lists them all. S3 lists
everything written before, so of two that try at once at least one sees the other; both withdraw if neither holds yet.
"""

import atexit
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes
from novelsum_dagster.common.liveness import is_held
from novelsum_dagster.remote.faults import Patience
from novelsum_dagster.remote.s3 import Remote, RemoteFile

if TYPE_CHECKING:
    from filelock import BaseFileLock

FOLDER = "locks"
LEASE_SECONDS = 60.0
_PATIENCE = Patience(attempts=4, connect_seconds=5, read_seconds=10)
_TRIES = 5
"""Attempts of a process that meets another one which does not hold the folder yet either."""


_of_this_process: "dict[Path, tuple[str, StorageLock]]" = {}


def hold_storage(root: Path, run_id: str, remote: Remote | None = None) -> bool:
    """Keep other runs out of a storage folder until this process ends, or acquires it for its next run.

    Args:
        root: the local storage folder.
        run_id: of the run.
        remote: the remote, if storage is on S3.

    Returns:
        whether the folder was newly acquired for this run.

    Raises:
        InputError: naming the run that holds it, or if the lock was lost.
    """
    held = _of_this_process.get(root)
    if held is not None and held[0] == run_id:
        held[1].require()
        return False
    if held is not None:
        held[1].release()
        del _of_this_process[root]
    lock = StorageLock(root, remote)
    lock.acquire(run_id)
    _of_this_process[root] = (run_id, lock)
    return True


class Holder(BaseModel):
    """A process that holds a storage folder, or requests it.

    Attributes:
        run_id: of its run.
        host: name of its machine.
        pid: its process id there.
        token: names its lock.
        since: when it started, by its own clock.
        is_asking: whether it has only requested the folder.
        expires: when a lease ends unless it is renewed, by its own clock; for information only.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    host: str
    pid: int
    token: str
    since: datetime
    is_asking: bool = False
    expires: datetime | None = None

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host} (process {self.pid}, since {self.since:%Y-%m-%d %H:%M:%S} UTC)"


class StorageLock:
    """Keeps other runs out of a storage folder. Processes and threads of one run may each have a lock on it.

    Args:
        root: the local storage folder, or the one that mirrors the remote.
        remote: the remote, if storage is on S3.
        seconds: validity of a lease.
    """

    def __init__(self, root: Path, remote: Remote | None = None, seconds: float = LEASE_SECONDS) -> None:
        self._root = root
        self._remote = remote
        self._seconds = seconds
        self._local: _LocalLock | None = None
        self._lease: _Lease | None = None

    def acquire(self, run_id: str) -> None:
        """Acquire the folder for a run.

        Raises:
            InputError: naming the run that holds it, or if S3 cannot be reached.
        """
        if self._local is not None:
            return
        me = Holder(run_id=run_id, host=socket.gethostname(), pid=os.getpid(), token=uuid4().hex, since=_now())
        self._local = _LocalLock(self._root, me)
        try:
            self._local.acquire()
            if self._remote is not None:
                lease = _Lease(self._root, self._remote, me, self._seconds)
                lease.acquire()
                self._lease = lease
            self._local.clear()
        except BaseException:
            self.release()
            raise
        atexit.register(self.release)

    def release(self) -> None:
        """Release the folder, if it is held. An unreachable S3 is not an error: the lease expires."""
        atexit.unregister(self.release)
        lease, self._lease = self._lease, None
        local, self._local = self._local, None
        if lease is not None:
            lease.release()
        if local is not None:
            local.release()

    def require(self) -> None:
        """Require that the folder is still held, before writing something that other runs read.

        Raises:
            InputError: if the lease could not be renewed in time (e.g. the machine slept), or is not held at all.
        """
        if self._local is None:
            raise InputError(f"{self._remote.place if self._remote else self._root}: is not held by this process")
        if self._lease is not None:
            self._lease.require()

    @contextmanager
    def held(self, run_id: str) -> Iterator["StorageLock"]:
        """Hold the folder for a run during the block."""
        self.acquire(run_id)
        try:
            yield self
        finally:
            self.release()


@dataclass
class _LocalLock:
    """A lock that the operating system releases when its process ends."""

    root: Path
    me: Holder
    lock: "BaseFileLock | None" = None
    dead: tuple[Path, ...] = ()

    def acquire(self) -> None:
        from filelock import FileLock, Timeout

        folder = self.root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".guard", timeout=30):
                self._require_no_other(folder)
                write_bytes(self.me.model_dump_json(indent=2).encode(), folder / f"{self.me.token}.json")
                self.lock = FileLock(folder / f"{self.me.token}.lock")
                self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{folder / '.guard'}: has been held by another process for too long; try again") from None

    def clear(self) -> None:
        """Remove lock files of dead processes, once their leases are released too."""
        for path in self.dead:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)

    def _require_no_other(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.json")):
            if _is_dead(self.root, path.stem):
                self.dead = (*self.dead, path)
                continue
            other = _parsed(path.read_bytes())
            if other is None or other.run_id != self.me.run_id:
                raise _in_use(str(self.root), other)

    def release(self) -> None:
        if self.lock is None:
            return
        path = self.root / FOLDER / f"{self.me.token}.json"
        path.unlink(missing_ok=True)
        self.lock.release()
        path.with_suffix(".lock").unlink(missing_ok=True)


class _Lease:
    """An object that names the holder of a prefix of a bucket, renewed by a thread."""

    def __init__(self, root: Path, remote: Remote, me: Holder, seconds: float) -> None:
        self._root = root
        self._remote = Remote(remote.place, remote.s3, _PATIENCE)
        self._me = me
        self._seconds = seconds
        self._name = f"{FOLDER}/{me.token}.json"
        self._renewed = 0.0
        self._is_lost = False
        self._ended = Event()
        self._thread = Thread(target=self._renew_until_end, name="storage lease", daemon=True)

    def acquire(self) -> None:
        try:
            for number in range(_TRIES):
                self._write(is_asking=True)
                other = self._other()
                if other is None:
                    self._renewed = self._write(is_asking=False)
                    self._thread.start()
                    return
                self._remote.delete(self._name)
                if not other.is_asking or number == _TRIES - 1:
                    raise _in_use(str(self._remote.place), other, self._seconds)
                # Random, so that one of the two comes first.
                time.sleep(random.uniform(0, 2**number))  # noqa: S311
        except BaseException:
            self._forget()
            raise

    def release(self) -> None:
        self._ended.set()
        self._thread.join(timeout=2 * self._seconds)
        self._forget()

    def require(self) -> None:
        if self._is_lost or time.monotonic() - self._renewed > self._seconds:
            raise InputError(
                f"{self._remote.place}: the lease of run {self._me.run_id} was not renewed in {self._seconds:g} s, so "
                "another run may have begun; start this one again, and it resumes"
            )

    def _forget(self) -> None:
        try:
            self._remote.delete(self._name)
        except InputError:
            return  # It expires.

    def _renew_until_end(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            is_late = time.monotonic() - self._renewed > self._seconds
            try:
                begun = self._write(is_asking=False)
                if is_late and self._other() is not None:
                    self._is_lost = True
                    self._forget()
                    return
                self._renewed = begun
            except InputError:
                continue  # `require` raises once it is too late.

    def _write(self, *, is_asking: bool) -> float:
        """Write the lease; return the start of the write, by this process's monotonic clock."""
        begun = time.monotonic()
        expires = _now() + timedelta(seconds=self._seconds)
        lease = self._me.model_copy(update={"is_asking": is_asking, "expires": expires})
        self._remote.write(self._name, lease.model_dump_json(indent=2).encode())
        return begun

    def _other(self) -> Holder | None:
        """Return a live process of another run, preferably one that holds the folder; remove leases of dead processes.

        The age of a lease is its time before our own, which was just written: only the server's clock counts.
        """
        leases = self._remote.files(f"{FOLDER}/")
        mine = leases.pop(self._name, None)
        if mine is None:
            raise InputError(f"{self._remote.place}: the lock {self._name} was deleted while it was written; try again")
        found = [self._judged(name, lease, mine) for name, lease in leases.items()]
        return min((other for other in found if other), key=lambda other: other.is_asking, default=None)

    def _judged(self, name: str, lease: RemoteFile, mine: RemoteFile) -> Holder | None:
        token = name.removeprefix(f"{FOLDER}/").removesuffix(".json")
        expired = mine.modified - lease.modified > timedelta(seconds=self._seconds)
        if expired or _is_dead(self._root, token):
            self._remote.delete(name)
            return None
        data = self._remote.read(name)
        if data is None:
            return None
        unknown = Holder(run_id="unknown", host="unknown", pid=0, token=token, since=lease.modified.astimezone(UTC))
        other = _parsed(data) or unknown
        return None if other.run_id == self._me.run_id else other


def _is_dead(root: Path, token: str) -> bool:
    """Return whether a lock was taken on this machine, in this folder, by a process that has ended."""
    path = root / FOLDER / f"{token}.lock"
    return not is_held(path) if path.exists() else path.with_suffix(".json").exists()


def _in_use(place: str, other: Holder | None, lease: float | None = None) -> InputError:
    after = f". If its process has died, try again in {lease:g} s, when its lease has expired" if lease else ""
    return InputError(f"{place} is in use by {other or 'another run'}; wait until it has ended, or stop it{after}")


def _parsed(data: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(data)
    except ValidationError:
        return None


def _now() -> datetime:
    return datetime.now(UTC)
