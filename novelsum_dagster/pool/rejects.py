"""Rejected records as a file: place, reason and the record itself."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes, write_table
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.pool.table_reader import json_record


def require_name(path: Path) -> None:
    """Require a file name to which rejects can be written.

    Raises:
        InputError: if it ends neither in .jsonl nor in .parquet.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: the name of a file for rejects must end in .jsonl or .parquet")


class RejectsFile:
    """Rejects of several snapshots, written to one file.

    Args:
        path: of the file; None to write none.

    Raises:
        InputError: as `require_name` does.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            require_name(path)
        self.path = path
        self._tables: list[pa.Table] = []
        self._schemas: dict[str, pa.Schema | None] = {}

    def take(self, snapshot: PoolSnapshot, root: Path) -> None:
        """Add the rejects of a snapshot and write the file; `root` is the storage folder."""
        if self.path is None:
            return
        self._tables.append(snapshot.table(root, "rejects"))
        self._schemas.update(snapshot.schemas)
        write_rejects(pa.concat_tables(self._tables), self._schemas, self.path)


def write_rejects(table: pa.Table, schemas: Mapping[str, pa.Schema | None], path: Path) -> None:
    """Write rejects as JSON Lines or Parquet, by the file's name.

    Args:
        table: rows of the table `rejects` of a snapshot.
        schemas: of the rows of each file; None if they are JSON text.
        path: of the file to write.

    Raises:
        InputError: as `require_name` does.
    """
    require_name(path)
    if path.suffix == ".parquet":
        write_table(table, path)
        return
    lines = []
    for row in table.to_pylist():
        original, schema = row.pop("original"), schemas.get(row["file"])
        # A broken record need not be JSON or text: it is written as a string.
        shown = json_record(original, schema) if schema and original else original.decode(errors="backslashreplace")
        lines.append(json.dumps({**row, "original": shown}, ensure_ascii=False) + "\n")
    write_bytes("".join(lines).encode(errors="backslashreplace"), path)
