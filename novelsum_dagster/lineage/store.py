"""The lineage database: the only place that opens DuckDB for writing.

Belongs here: the file, its schema, short write transactions, read-only connections. Does not: the interpretation of the
rows.

A write copies the database, changes the copy in one transaction and renames it over the original. Readers therefore
never wait and never block a run, in any process: they keep the file that they opened. A write that dies leaves the
original unchanged. The database is small, because per-sample rows stay in Parquet files, shown as views.
"""

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novelsum_dagster.artifacts.layout import outputs_glob, run_file
from novelsum_dagster.artifacts.provenance import git_revision
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import read_json, replacing, write_json, write_table
from novelsum_dagster.lineage.query import all_rows
from novelsum_dagster.lineage.runs import REMOVED

if TYPE_CHECKING:
    import duckdb
    from filelock import BaseFileLock

FILE_NAME = "lineage.duckdb"
EXPORT = "lineage"
"""Folder of the Parquet copies of the tables."""
RUN_FILES = "runs/*.json"
"""Files with each run's rows, from which the database can be rebuilt."""
_VERSION = 4
"""Version of the schema. A database of version 1 has no table `schema_version`."""
_LOCK_SECONDS = 60
_NO_LINEAGE = "no lineage yet; run the pipeline first (novelsum run), or fetch what is on S3 (novelsum restore)"
_PLACE = "source VARCHAR, file VARCHAR, position BIGINT, line BIGINT"
_VIEWS = {
    "samples": (
        outputs_glob("pool", "samples.parquet"),
        f"id VARCHAR, {_PLACE}, form VARCHAR, turns INTEGER, characters BIGINT, tokens BIGINT, text_tokens BIGINT,"
        " former_id VARCHAR, text VARCHAR, original BLOB, snapshot VARCHAR",
    ),
    "origins": (outputs_glob("pool", "origins.parquet"), f"id VARCHAR, {_PLACE}, is_first BOOLEAN, snapshot VARCHAR"),
    "rejects": (
        outputs_glob("pool", "rejects.parquet"),
        f"{_PLACE}, reason VARCHAR, detail VARCHAR, original BLOB, snapshot VARCHAR",
    ),
    "near_duplicates": (
        outputs_glob("pool", "near_duplicates.parquet"),
        "id VARCHAR, partner_id VARCHAR, score DOUBLE, found_by VARCHAR, snapshot VARCHAR",
    ),
    "density": (
        outputs_glob("density", "density.parquet"),
        "id VARCHAR, mean_squared_distance DOUBLE, density_factor DOUBLE, density VARCHAR",
    ),
    "novelty": (
        outputs_glob("novelty", "novelty.parquet"),
        "id VARCHAR, novelty DOUBLE, sample_novelty VARCHAR",
    ),
    "picks": (
        outputs_glob("selections", "picks.parquet"),
        f"rank BIGINT, id VARCHAR, {_PLACE}, turns INTEGER, tokens BIGINT, score DOUBLE, runner_up_id VARCHAR,"
        " runner_up_score DOUBLE, margin DOUBLE, nearest_pick_rank BIGINT, nearest_pick_id VARCHAR,"
        " nearest_distance DOUBLE, density_factor DOUBLE, quality DOUBLE, selection VARCHAR",
    ),
    "covering": (
        outputs_glob("selections", "covering.parquet"),
        "id VARCHAR, rank_1 BIGINT, distance_1 DOUBLE, rank_2 BIGINT, distance_2 DOUBLE, rank_3 BIGINT,"
        " distance_3 DOUBLE, selection VARCHAR",
    ),
    "remaining": (
        outputs_glob("selections", "remaining.parquet"),
        "id VARCHAR, score DOUBLE, after_picks BIGINT, is_exact BOOLEAN, selection VARCHAR",
    ),
}
"""Views over Parquet: the glob of the files, and the columns of a view without files.

The folder names (`snapshot=...`, `selection=...`) become columns.
"""


class LineageStore:
    """The lineage database in a storage folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / FILE_NAME

    @cached_property
    def _lock(self) -> "BaseFileLock":
        from filelock import FileLock

        return FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Prevent other processes from writing, and runs from starting, until the block ends.

        Raises:
            InputError: if another process has been writing for over a minute.
        """
        from filelock import Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(
                f"{self.path}: another process has been writing for {_LOCK_SECONDS} s; try again"
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def reading(self) -> "Iterator[duckdb.DuckDBPyConnection]":
        """Open the database for reading; upgrade one of an earlier version, or from another path, first.

        Raises:
            InputError: if it is missing, damaged or from a newer version, or a file behind a view is damaged.
        """
        import duckdb

        if not self.path.exists():
            raise InputError(f"{self.path}: {_NO_LINEAGE}")
        connection = _connect(self.path, read_only=True)
        try:
            if _version(connection, self.path) < _VERSION or self._has_moved(connection):
                connection.close()
                with self.writing():
                    pass
                connection = _connect(self.path, read_only=True)
            yield connection
        except duckdb.Error as error:
            damage = _damage(error, self.path, self.path)
            if damage is None:
                raise
            raise damage from error
        finally:
            connection.close()

    @contextmanager
    def writing(self, from_empty: bool = False) -> "Iterator[duckdb.DuckDBPyConnection]":
        """Open one write transaction; it is committed when the block ends without an error.

        A database of an earlier version is kept beside the new one, as `lineage.duckdb.v1`.

        Args:
            from_empty: start from an empty database; the existing one is kept as `lineage.duckdb.old`.

        Raises:
            InputError: if another process has been writing for over a minute, the database is damaged or from a newer
                version, or a file behind a view is damaged.
        """
        import duckdb

        with self.exclusive(), replacing(self.path) as copy:
            copy.unlink()
            if self.path.exists() and not from_empty:
                shutil.copyfile(self.path, copy)
            try:
                with closing(_connect(copy, read_only=False, shown=self.path)) as connection:
                    self._keep_earlier(_version(connection, self.path))
                    connection.begin()
                    connection.execute(files(__package__).joinpath("schema.sql").read_text())
                    connection.execute("DELETE FROM schema_version")
                    connection.execute("INSERT INTO schema_version VALUES (?, ?)", [_VERSION, str(self.root)])
                    yield connection
                    self.refresh_views(connection)
                    connection.commit()
            except duckdb.Error as error:
                damage = _damage(error, copy, self.path)
                if damage is None:
                    raise
                raise damage from error
            if from_empty and self.path.exists():
                self._keep(f"{FILE_NAME}.old")

    @contextmanager
    def removing(self, run_ids: Sequence[str]) -> Iterator[None]:
        """Record that the data of runs is removed by the block; refresh the views when it ends.

        If the block does not finish, the next reader refreshes the views.
        """
        now = _now()
        for path in map(self._run_file, run_ids):
            with suppress(FileNotFoundError, ValueError):  # A damaged run file is skipped.
                kept = read_json(path)
                rows = [{**row, REMOVED: now.isoformat()} for row in kept.get("run_outputs", [])]
                write_json({**kept, "run_outputs": rows}, path)
        with self.writing() as connection:
            for run_id in run_ids:
                connection.execute(f"UPDATE run_outputs SET {REMOVED} = ? WHERE run_id = ?", [now, run_id])
            connection.execute("UPDATE schema_version SET root = NULL")
        yield
        with self.writing() as connection:
            # Of novelties stored in two layouts, the one that a view reads is kept.
            for path in self.root.glob(_VIEWS["novelty"][0]):
                connection.execute(
                    "UPDATE novelties SET file = ? WHERE novelty = ?",
                    [path.relative_to(self.root).as_posix(), path.parent.name.partition("=")[2]],
                )

    def tables(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Return whole tables without writing; a table missing from the database is empty.

        Raises:
            InputError: if the database is missing, damaged or from a newer version.
        """
        if not self.path.exists():
            raise InputError(f"{self.path}: {_NO_LINEAGE}")
        with closing(_connect(self.path, read_only=True)) as connection:
            _version(connection, self.path)
            there = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            return {name: all_rows(connection, f"SELECT * FROM {name}") if name in there else [] for name in names}

    def _has_moved(self, connection: "duckdb.DuckDBPyConnection") -> bool:
        return connection.execute("SELECT root FROM schema_version").fetchone() != (str(self.root),)

    def _keep_earlier(self, version: int) -> None:
        """Back up a database of an earlier version before it is changed."""
        name = f"{FILE_NAME}.v{version}"
        if version < _VERSION and self.path.exists() and not self.path.with_name(name).exists():
            self._keep(name)

    def _keep(self, name: str) -> None:
        with replacing(self.path.with_name(name)) as copy:
            shutil.copyfile(self.path, copy)

    def keep_run(self, run_id: str, outputs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write a run's rows, and beside the database a file from which `rebuild` restores them.

        Args:
            run_id: of a run that is recorded.
            outputs: rows by table; rows written by an earlier run are left unchanged.
        """
        with self.writing() as connection:
            for table, rows in outputs.items():
                insert(connection, table, rows)
            # Before the rows are committed: `close_run` adds rows that only the file has, not the reverse.
            write_json({**_ended(connection, run_id), **outputs}, self._run_file(run_id))

    def rebuild(self) -> int:
        """Rebuild the database from the files that every run wrote beside it; return the number of runs.

        An existing database, damaged or not, is kept as `lineage.duckdb.old`; it stays in place if rebuilding fails.

        Raises:
            InputError: if there is no run file, or one is damaged.
        """
        found = sorted(self.root.glob(RUN_FILES))
        if not found:
            raise InputError(f"{self.root / 'runs'}: has no run files to rebuild the lineage database from")
        with self.writing(from_empty=True) as connection:
            for path in found:
                _put_back(connection, path)
        return len(found)

    def start_run(self, run_id: str, settings: str) -> None:
        """Record a run, if it is not recorded yet."""
        row = {
            "run_id": run_id,
            "started_at": _now(),
            "settings": settings,
            "package_version": version("novelsum-dagster"),
            "git_revision": git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
        with self.writing() as connection:
            insert(connection, "runs", [row])

    def start_step(self, run_id: str, step: str) -> int:
        """Record the start of a step; return the number of the attempt, from 1."""
        with self.writing() as connection:
            found = connection.execute(
                "SELECT count(*) FROM steps WHERE run_id = ? AND step = ?", [run_id, step]
            ).fetchone()
            attempt = (found[0] if found else 0) + 1
            row = {"run_id": run_id, "step": step, "attempt": attempt, "started_at": _now(), "status": "running"}
            insert(connection, "steps", [row])
        return attempt

    def end_step(self, run_id: str, step: str, attempt: int, output: str | None, error: str | None) -> None:
        """Record the end of a step: the key of its output, or its error."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE steps SET ended_at = ?, status = ?, output = ?, error = ?"
                " WHERE run_id = ? AND step = ? AND attempt = ?",
                [_now(), "failed" if error else "done", output, error, run_id, step, attempt],
            )
            own = _ended(connection, run_id)
        self._write_run_file(run_id, own)

    def _write_run_file(self, run_id: str, own: Mapping[str, Any]) -> None:
        path = self._run_file(run_id)
        outputs: dict[str, Any] = {}
        if path.exists():
            with suppress(ValueError):  # A damaged file is overwritten.
                outputs = read_json(path)
        write_json({**outputs, **own}, path)

    def export(self) -> list[str]:
        """Write every table as Parquet under `lineage/`, for other programs; return the file names."""
        names = []
        with self.reading() as connection:
            tables = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY table_name").fetchall()
            for (table,) in tables:
                names.append(f"{EXPORT}/{table}.parquet")
                write_table(connection.execute(f"SELECT * FROM {table}").to_arrow_table(), self.root / names[-1])
        return names

    def import_runs(self) -> int:
        """Import runs that have a run file but no row yet, e.g. from another machine; return their number.

        Raises:
            InputError: if such a file is damaged.
        """
        found = sorted(self.root.glob(RUN_FILES))
        if self.path.exists():
            with self.reading() as connection:
                known = {row[0] for row in connection.execute("SELECT run_id FROM runs").fetchall()}
            found = [path for path in found if path.stem not in known]
        if found:
            with self.writing() as connection:
                for path in found:
                    _put_back(connection, path)
        return len(found)

    def _run_file(self, run_id: str) -> Path:
        return self.root / run_file(run_id)

    def close_run(self, run_id: str, error: str) -> None:
        """Reconcile a dead run: sync its rows with its run file, and mark unfinished steps as failed.

        Args:
            run_id: the run.
            error: recorded for the unfinished steps.
        """
        if not self.path.exists():
            return  # The process died before it wrote its first row.
        with suppress(FileNotFoundError, InputError), self.writing() as connection:
            _put_back(connection, self._run_file(run_id))
        with self.writing() as connection:
            connection.execute(
                "UPDATE steps SET ended_at = ?, status = 'failed', error = ? WHERE run_id = ? AND status = 'running'",
                [_now(), error, run_id],
            )
            own = _ended(connection, run_id)
        if own["runs"]:
            self._write_run_file(run_id, own)

    def refresh_views(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Point the views at the files that exist now; called at the end of every write."""
        for name, (pattern, columns) in _VIEWS.items():
            empty = ", ".join("NULL::{1} AS {0}".format(*column.split()) for column in columns.split(", "))
            source = f"SELECT {empty} WHERE false"
            if next(self.root.glob(pattern), None) is not None:
                # Files of earlier releases may lack a column.
                location = str(self.root / pattern).replace("'", "''")
                source = (
                    f"SELECT * FROM read_parquet('{location}', hive_partitioning = true, hive_types_autocast = false,"
                    f" union_by_name = true) UNION ALL BY NAME {source}"
                )
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS {source}")


def insert(connection: "duckdb.DuckDBPyConnection", table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose key does not exist yet; all rows have the same columns."""
    if not rows:
        return
    columns = list(rows[0])
    marks = ", ".join("?" for _ in columns)
    connection.executemany(
        f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})",
        [[row[column] for column in columns] for row in rows],
    )


def _connect(path: Path, read_only: bool, shown: Path | None = None) -> "duckdb.DuckDBPyConnection":
    """Open a database; error messages name the path `shown`."""
    import duckdb

    try:
        connection = duckdb.connect(str(path), read_only=read_only)
    except duckdb.Error as error:
        raise _damaged_database(error, path, shown or path) from error
    connection.execute("SET enable_progress_bar = false")  # It would be mixed with a command's results.
    return connection


def _damage(error: "duckdb.Error", opened: Path, shown: Path) -> InputError | None:
    """Return an InputError for a DuckDB error caused by a damaged file; None for any other.

    Args:
        error: of DuckDB.
        opened: the path by which the database was opened.
        shown: the path of the database to name in messages.
    """
    import duckdb

    # For a damaged Parquet header, DuckDB raises its most general error.
    kinds = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
    if not isinstance(error, kinds) and type(error) is not duckdb.Error:
        return None
    if str(opened) in str(error):
        return _damaged_database(error, opened, shown)
    return InputError(f"{error}; delete the damaged file, and the next run rebuilds it")


def _damaged_database(error: Exception, opened: Path, shown: Path) -> InputError:
    return InputError(
        f"{shown}: cannot be opened as a DuckDB database ({str(error).replace(str(opened), str(shown))}); if it is"
        " damaged, run novelsum rebuild-lineage. Or move it away: the next run writes a new one. The Parquet files"
        " beside it are untouched"
    )


def _put_back(connection: "duckdb.DuckDBPyConnection", path: Path) -> None:
    """Insert the rows of a run file.

    Raises:
        InputError: if the file is damaged.
    """
    import duckdb

    try:
        tables: dict[str, list[dict[str, Any]]] = read_json(path)
        for table, rows in tables.items():
            insert(connection, table, rows)
    except (ValueError, TypeError, AttributeError, KeyError, duckdb.Error) as error:
        raise InputError(f"{path}: damaged ({error}); move it away, and rebuild without that run") from error


def _ended(connection: "duckdb.DuckDBPyConnection", run_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return a run's own row and those of its steps that have ended, by table."""
    own = {
        table: [
            {name: _as_json(value) for name, value in row.items()}
            for row in all_rows(connection, f"SELECT * FROM {table} WHERE run_id = ?", [run_id])
        ]
        for table in ("runs", "steps")
    }
    return {**own, "steps": [row for row in own["steps"] if row["status"] != "running"]}


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _version(connection: "duckdb.DuckDBPyConnection", path: Path) -> int:
    """Return the version of a database's schema; an empty database has the current one.

    Raises:
        InputError: for a newer one.
    """
    tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return _VERSION
    found = connection.execute("SELECT version FROM schema_version").fetchone() if "schema_version" in tables else None
    version = found[0] if found else 1
    if version > _VERSION:
        raise InputError(
            f"{path}: written by a newer version of novelsum (schema {version} > {_VERSION}); update novelsum"
        )
    return int(version)


def _now() -> datetime:
    return datetime.now(UTC)
