"""Distinguishing live runs from runs whose process died.

Belongs here: a lock that a process holds as long as it lives. Does not: the treatment of dead runs.

The operating system releases the lock when the process ends, however it ends, so a lock file that nobody holds
names a run that has ended.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_held: "dict[Path, BaseFileLock]" = {}


def hold(root: Path, run_id: str) -> None:
    """Mark a run as alive until this process, which runs all of its steps, ends."""
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
    """Yield the marked runs whose process has ended, each once, and remove their marks."""
    from filelock import FileLock, Timeout

    for path in _marks(root):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        yield path.stem
        path.unlink(missing_ok=True)
        lock.release()


def live_runs(root: Path) -> list[str]:
    """Return the marked runs whose process is alive, without changing any mark."""
    return [path.stem for path in _marks(root) if is_held(path)]


def dead_runs(root: Path) -> list[str]:
    """Return the marked runs whose process has ended, without changing any mark."""
    return [path.stem for path in _marks(root) if not is_held(path)]


def is_held(path: Path) -> bool:
    """Return whether a living process holds a lock file."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _marks(root: Path) -> list[Path]:
    return sorted(_folder(root).glob("*.lock"))


def _folder(root: Path) -> Path:
    return root / "runs"
