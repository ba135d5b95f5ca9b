"""The lineage database: the one place that opens DuckDB for writing.

Belongs here: the file, its schema, short write transactions, read-only connections. Does not: what the rows mean to
a reader.

A write copies the database, changes the copy in one transaction and renames it over the original. Readers therefore
never wait and never block a run, in any process: they keep the file that they opened. A write that dies leaves the
original as it was. The database is small, because rows a sample stay in Parquet files, shown as views.
"""

import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novelsum_dagster.errors import InputError
from novelsum_dagster.files import replacing

if TYPE_CHECKING:
    import duckdb

FILE_NAME = "lineage.duckdb"
_LOCK_SECONDS = 60
_VIEWS = {
    "samples": "pool/snapshot=*/samples.parquet",
    "origins": "pool/snapshot=*/origins.parquet",
    "rejects": "pool/snapshot=*/rejects.parquet",
    "near_duplicates": "pool/snapshot=*/near_duplicates.parquet",
    "density": "density/density=*/density.parquet",
    "novelty": "novelty/novelty=*/novelty.parquet",
    "picks": "selections/selection=*/picks.parquet",
    "remaining": "selections/selection=*/remaining.parquet",
}
"""Views over Parquet; the folder names (`snapshot=...`, `selection=...`) become columns."""


class LineageStore:
    """The lineage database in a storage folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / FILE_NAME

    @contextmanager
    def reading(self) -> "Iterator[duckdb.DuckDBPyConnection]":
        """Open the database for reading.

        Raises:
            InputError: where there is none yet, or it is damaged.
        """
        if not self.path.exists():
            raise InputError(f"{self.path}: no lineage yet; run the pipeline first (novelsum run)")
        connection = _connect(self.path, read_only=True)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def writing(self) -> "Iterator[duckdb.DuckDBPyConnection]":
        """Open one write transaction; it takes effect as a whole when the block ends without an error.

        Raises:
            InputError: where another process writes for over a minute, or the database is damaged.
        """
        from filelock import FileLock, Timeout

        self._root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{self.path}: another process has been writing for {_LOCK_SECONDS} s; try again"
            ) from None
        try:
            with replacing(self.path) as copy:
                copy.unlink()
                if self.path.exists():
                    shutil.copyfile(self.path, copy)
                connection = _connect(copy, read_only=False)
                try:
                    connection.begin()
                    connection.execute(files(__package__).joinpath("schema.sql").read_text())
                    yield connection
                    self._refresh_views(connection)
                    connection.commit()
                finally:
                    connection.close()
        finally:
            lock.release()

    def start_run(self, run_id: str, settings: str) -> None:
        """Record a run, once."""
        row = {
            "run_id": run_id,
            "started_at": _now(),
            "settings": settings,
            "package_version": version("novelsum-dagster"),
            "git_revision": _git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
        with self.writing() as connection:
            insert(connection, "runs", [row])

    def start_step(self, run_id: str, step: str) -> int:
        """Record that a step begins; return its attempt, from 1."""
        with self.writing() as connection:
            found = connection.execute(
                "SELECT count(*) FROM steps WHERE run_id = ? AND step = ?", [run_id, step]
            ).fetchone()
            attempt = (found[0] if found else 0) + 1
            row = {"run_id": run_id, "step": step, "attempt": attempt, "started_at": _now(), "status": "running"}
            insert(connection, "steps", [row])
        return attempt

    def end_step(self, run_id: str, step: str, attempt: int, output: str | None, error: str | None) -> None:
        """Record how a step ended: with the key of its output, or with an error."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE steps SET ended_at = ?, status = ?, output = ?, error = ?"
                " WHERE run_id = ? AND step = ? AND attempt = ?",
                [_now(), "failed" if error else "done", output, error, run_id, step, attempt],
            )

    def open_steps(self, run_id: str) -> list[tuple[str, int]]:
        """Return the steps of a run that began and did not end, with their attempts."""
        if not self.path.exists():
            return []  # The process died before it wrote its first row.
        query = "SELECT step, attempt FROM steps WHERE run_id = ? AND status = 'running'"
        with self.reading() as connection:
            return connection.execute(query, [run_id]).fetchall()

    def _refresh_views(self, connection: "duckdb.DuckDBPyConnection") -> None:
        for name, pattern in _VIEWS.items():
            if next(self._root.glob(pattern), None) is not None:
                location = str(self._root / pattern).replace("'", "''")
                connection.execute(
                    f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM"
                    f" read_parquet('{location}', hive_partitioning = true, hive_types_autocast = false)"
                )


def insert(connection: "duckdb.DuckDBPyConnection", table: str, rows: list[Mapping[str, Any]]) -> None:
    """Insert rows whose key is not there yet; all rows have the same columns."""
    if not rows:
        return
    columns = list(rows[0])
    marks = ", ".join("?" for _ in columns)
    connection.executemany(
        f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})",
        [[row[column] for column in columns] for row in rows],
    )


def _connect(path: Path, read_only: bool) -> "duckdb.DuckDBPyConnection":
    import duckdb

    try:
        return duckdb.connect(str(path), read_only=read_only)
    except duckdb.Error as error:
        raise InputError(
            f"{path}: cannot be opened as a DuckDB database ({error}); if it is damaged, move it away: the next run"
            " writes a new one, and the Parquet files beside it are untouched"
        ) from error


def _now() -> datetime:
    return datetime.now(UTC)


def _git_revision() -> str | None:
    """Return the commit of a source checkout; None in an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
