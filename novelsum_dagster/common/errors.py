"""Errors that a user can fix: `InputError`, and a full disk.

Belongs here: `InputError`, recognising a full disk. Does not: programming errors, which keep their own types and
tracebacks.
"""

import errno
import shutil
from pathlib import Path

_LITTLE = 1 << 20
"""Free bytes below which a disk counts as full."""


class InputError(ValueError):
    """Bad input or settings. The message names the place, the problem and the remedy.

    The command line prints it without a traceback (exit code 2); Dagster fails the step without retrying.
    """


def is_disk_full(error: BaseException | None, place: Path) -> bool:
    """Return whether an error or one of its causes means a full disk or quota; `place` was written to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # DuckDB, SQLite and Arrow raise their own error types.
        if any(words in str(error) for words in ("No space left on device", "database or disk is full")):
            return True
        if "disk I/O error" in str(error) and shutil.disk_usage(place).free < _LITTLE:
            return True  # SQLite's message if not even its journal can be written.
        error = error.__cause__ or error.__context__
    return False


def disk_full(place: Path) -> str:
    """Return the message for a full disk."""
    return f"the disk of {place} is full; free space (novelsum gc --dry-run lists what can be removed), and run again"
