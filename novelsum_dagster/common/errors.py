"""What a user can mend: the one exception for mistakes, and a disk that is full.

Belongs here: `InputError`, telling a full disk. Does not: programming errors, which keep
their own types and tracebacks.
"""

import errno
import shutil
from pathlib import Path

_LITTLE = 1 << 20
"""Bytes on a disk that is as good as full."""


class InputError(ValueError):
    """Bad input or settings. The message says what is wrong, where, and what to do.

    The command line prints it without a traceback (exit code 2); Dagster fails the step without retrying.
    """


def is_disk_full(error: BaseException | None, place: Path) -> bool:
    """Tell whether an error, or one behind it, came of a full disk or a used-up quota; `place` was written to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # DuckDB, SQLite and Arrow have errors of their own.
        if any(words in str(error) for words in ("No space left on device", "database or disk is full")):
            return True
        if "disk I/O error" in str(error) and shutil.disk_usage(place).free < _LITTLE:
            return True  # As SQLite says it where not even its index of changes can be written.
        error = error.__cause__ or error.__context__
    return False


def disk_full(place: Path) -> str:
    """Return what to say of it."""
    return f"the disk of {place} is full; make room (novelsum gc --dry-run says what could go), and run again"
