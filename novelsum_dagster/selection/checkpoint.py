"""Checkpoints, from which an interrupted selection resumes.

Belongs here: the file of the picks made so far with their scores. Does not: the search, whose state follows from the
picks in one pass.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.common.files import content_key, write_table
from novelsum_dagster.selection.picks import PickLog

_KEY = b"selection"


def selection_key(settings: dict[str, Any], **arrays: NDArray[Any] | None) -> str:
    """Return a hash of all that a selection depends on."""
    digest = hashlib.blake2b(content_key(settings).encode(), digest_size=16)
    for name, array in arrays.items():
        described = "none" if array is None else f"{array.dtype.str} {array.shape}"
        digest.update(f"/{name} {described}/".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Checkpoint:
    """The file of one selection.

    Args:
        path: of the file.
        key: hash of all that the selection depends on.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def save(self, trace: PickLog) -> None:
        """Write the picks made so far, atomically."""
        table = pa.table({name: pa.array(values) for name, values in vars(trace).items()})
        write_table(table.replace_schema_metadata({_KEY: self._mark(trace)}), self._path)

    def load(self) -> PickLog | None:
        """Return the picks saved when the selection was interrupted; None if there is no file.

        Raises:
            ValueError: for a file of another selection, or one that is damaged.
        """
        if not self._path.exists():
            return None
        try:
            table = pq.read_table(self._path, partitioning=None)
            trace = PickLog(**{name: table[name].to_numpy().copy() for name in vars(PickLog.empty(0))})
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{self._path}: not a checkpoint of a selection ({error}); delete it") from error
        if (table.schema.metadata or {}).get(_KEY) != self._mark(trace):
            raise ValueError(
                f"{self._path}: damaged, or of a selection from other data or settings; delete it or name another file"
            )
        return trace

    def _mark(self, trace: PickLog) -> bytes:
        return selection_key({"selection": self._key}, **vars(trace)).encode()

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self._path.unlink(missing_ok=True)
