"""Telling a run that works from one whose process died.

Belongs here: a lock that a process holds as long as it lives. Does not: what becomes of a dead run.

The operating system gives the lock back when the process ends, however it ends, so a lock file that nobody holds
names a run that is over.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_held: "dict[Path, BaseFileLock]" = {}


def hold(root: Path, run_id: str) -> None:
    """Mark a run, all steps of which this process runs, as alive until the process ends."""
    from filelock import FileLock, Timeout

    path = _folder(root) / f"{run_id}.lock"
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    _held[path] = lock


def ended_runs(root: Path) -> Iterator[str]:
    """Yield the runs that were marked and whose process has ended, each once."""
    from filelock import FileLock, Timeout

    for path in sorted(_folder(root).glob("*.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        yield path.stem
        path.unlink(missing_ok=True)
        lock.release()


def live_runs(root: Path) -> list[str]:
    """Return the runs that were marked and whose process lives; no mark is changed."""
    from filelock import FileLock, Timeout

    found = []
    for path in sorted(_folder(root).glob("*.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(path.stem)
        else:
            lock.release()
    return found


def dead_runs(root: Path) -> list[str]:
    """Return the runs that were marked and whose process has ended; no mark is changed."""
    alive = set(live_runs(root))
    return [path.stem for path in sorted(_folder(root).glob("*.lock")) if path.stem not in alive]


def _folder(root: Path) -> Path:
    return root / "runs"
