"""A selection that was broken off and goes on where it stopped.

Belongs here: the file of the picks made so far with their scores. Does not: the search, whose state follows from the
picks in one pass.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.common.files import content_key, write_table

_KEY = b"selection"


@dataclass(frozen=True)
class Trace:
    """Picks in order with what the search said of each; `count` of them are made, arrays have room for all.

    Attributes:
        indices: int64. score, runner_up_score: float64, NaN for given picks. runner_up: int64, -1 for given picks.
    """

    indices: NDArray[np.int64]
    score: NDArray[np.float64]
    runner_up: NDArray[np.int64]
    runner_up_score: NDArray[np.float64]

    @staticmethod
    def empty(size: int) -> "Trace":
        """Return a trace of given picks without scores."""
        return Trace(np.full(size, -1), np.full(size, np.nan), np.full(size, -1), np.full(size, np.nan))

    def head(self, count: int) -> "Trace":
        """Return the first picks."""
        return Trace(self.indices[:count], self.score[:count], self.runner_up[:count], self.runner_up_score[:count])


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

    def save(self, trace: Trace) -> None:
        """Write the picks made so far, whole or not at all."""
        table = pa.table({name: pa.array(values) for name, values in vars(trace).items()})
        write_table(table.replace_schema_metadata({_KEY: self._mark(trace)}), self._path)

    def load(self) -> Trace | None:
        """Return the picks of the selection when it was broken off; None where there is no file.

        Raises:
            ValueError: for a file of another selection, or one that is damaged.
        """
        if not self._path.exists():
            return None
        try:
            table = pq.read_table(self._path, partitioning=None)
            trace = Trace(**{name: table[name].to_numpy().copy() for name in vars(Trace.empty(0))})
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{self._path}: no checkpoint of a selection ({error}); delete it") from error
        if (table.schema.metadata or {}).get(_KEY) != self._mark(trace):
            raise ValueError(
                f"{self._path}: damaged, or of a selection from other data or settings; delete it or name another file"
            )
        return trace

    def _mark(self, trace: Trace) -> bytes:
        return selection_key({"selection": self._key}, **vars(trace)).encode()

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self._path.unlink(missing_ok=True)
