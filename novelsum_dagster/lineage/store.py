"""The lineage: a file for each run, which is the truth, and a DuckDB database built from these files for queries.

Belongs here: run files, the database and its schema, short write transactions, read-only connections. Does not: the
interpretation of the rows.

A step changes its run's file only. Whoever opens the database next imports the files that have changed since. A write
to the database copies it, changes the copy and renames it over the original. Readers therefore never block a run, in
any process: they keep the file that they opened. A write that dies leaves the original unchanged. The database is
small, because per-sample rows stay in Parquet files, shown as views.

A run file has the SHA-256 of its content, and the database hashes of its tables and views (table `contents`), so that
what another program changed is not believed. It is no protection against somebody who knows this and writes these, too.
"""

import logging
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from novelsum_dagster.common.files import read_json, replacing, sealed, unsealed, write_json, write_table
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import REMOVED, RUNNING

if TYPE_CHECKING:
    import duckdb
    from filelock import BaseFileLock

_log = logging.getLogger(__name__)

FILE_NAME = "lineage.duckdb"
EXPORT = "lineage"
"""Folder of the Parquet copies of the tables."""
RUN_FILES = "runs/*.json"
"""Files with each run's rows, by table, from which the database is built."""
_TABLES_OF_A_RUN = {"runs", "steps", "run_outputs", "provenance"}
"""Tables whose rows belong to one run, so that its file alone determines them. Rows of others are shared by runs."""
_VERSION = 5
"""Version of the schema. A database of version 1 has no table `schema_version`; one before 5 has no `contents`."""
TABLES = (
    "runs",
    "steps",
    "snapshots",
    "source_files",
    "embeddings",
    "densities",
    "novelties",
    "selections",
    "set_measures",
    "provenance",
    "run_outputs",
)
"""Tables with the rows of run files. The first column is the run or the output that a row belongs to."""
_LOCK_SECONDS = 60
_READER_SECONDS = 5
_NO_LINEAGE = "no lineage yet; run the pipeline first (novelsum run), or fetch what is on S3 (novelsum restore)"
_PLACE = "source VARCHAR, file VARCHAR, position BIGINT, line BIGINT"
VIEWS = {
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
        " nearest_distance DOUBLE, density_factor DOUBLE, quality DOUBLE, by_exchange BOOLEAN, selection VARCHAR",
    ),
    "covering": (
        outputs_glob("selections", "covering.parquet"),
        "id VARCHAR, rank_1 BIGINT, distance_1 DOUBLE, rank_2 BIGINT, distance_2 DOUBLE, rank_3 BIGINT,"
        " distance_3 DOUBLE, selection VARCHAR",
    ),
    "remaining": (
        outputs_glob("selections", "remaining.parquet"),
        "id VARCHAR, score DOUBLE, after_picks BIGINT, is_exact BOOLEAN, eligible_picks BIGINT, barred_by VARCHAR,"
        " selection VARCHAR",
    ),
    "eligibility": (
        outputs_glob("selections", "eligibility.parquet"),
        "rank BIGINT, chosen_by VARCHAR, eligible BIGINT, must_exclude BIGINT, budget BIGINT, cap BIGINT, floor BIGINT,"
        " partition BIGINT, selection VARCHAR",
    ),
}
"""Views over Parquet: the glob of the files, and the columns of a view without files.

The folder names (`snapshot=...`, `selection=...`) become columns.
"""


_OWN = {*TABLES, "run_files", *VIEWS}
"""Tables and views whose contents are recorded, besides those of models."""


class LineageStore:
    """The lineage database in a storage folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / FILE_NAME

    @cached_property
    def _lock(self) -> "BaseFileLock":
        from filelock import FileLock

        return FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS)

    @property
    def _log_of_others(self) -> Path:
        """DuckDB's write-ahead log, which only another program leaves beside the database: here, copies are written."""
        return self.path.with_name(f"{FILE_NAME}.wal")

    @contextmanager
    def exclusive(self, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
        """Prevent other processes from writing, and runs from starting, until the block ends.

        Args:
            seconds: to wait for another process that writes; default: 60.

        Raises:
            InputError: if another process has been writing for that long.
        """
        from filelock import Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            raise InputError(f"{self.path}: another process has been writing for {seconds:g} s; try again") from None
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def reading(self) -> "Iterator[duckdb.DuckDBPyConnection]":
        """Open the database for reading; import changed run files first, or upgrade a database of an earlier version.

        If changed run files cannot be imported, because another process writes for over five seconds or the folder is
        read-only, the database is read as it is.

        Raises:
            InputError: if it is missing, damaged, changed by another program or from a newer version, or a file behind
                a view is damaged.
        """
        if not self.path.exists() and not self._run_files():
            raise InputError(f"{self.path}: {_NO_LINEAGE}")
        with _naming_damage(self.path, self.path):
            is_usable = False
            if self.path.exists():
                with closing(_connect(self.path, read_only=True)) as connection:
                    is_usable = self._is_usable(connection)
                    self._require_unchanged(connection)
                    if is_usable and not self._changed(connection):
                        yield connection
                        return
            if is_usable:
                with suppress(InputError, OSError), self.exclusive(_READER_SECONDS), self.writing():
                    pass
            else:
                with self.writing():
                    pass
            with closing(_connect(self.path, read_only=True)) as connection:
                yield connection

    @contextmanager
    def as_it_is(self) -> "Iterator[duckdb.DuckDBPyConnection | None]":
        """Open the database for reading without importing or requiring anything; None if it cannot be opened."""
        import duckdb

        connection = None
        try:
            with suppress(duckdb.Error, InputError):
                connection = _connect(self.path, read_only=True) if self.path.exists() else None
            yield connection
        finally:
            if connection is not None:
                connection.close()

    @contextmanager
    def writing(self, from_empty: bool = False) -> "Iterator[duckdb.DuckDBPyConnection]":
        """Open one write transaction on current data; it is committed when the block ends without an error.

        Changed run files are imported first, and views point at the files that exist. A damaged run file is logged,
        and its rows stay as they were. A database of an earlier version is kept beside the new one, as
        `lineage.duckdb.v1`.

        Args:
            from_empty: start from an empty database; the existing one is kept as `lineage.duckdb.old`.

        Raises:
            InputError: if another process has been writing for over a minute, the database is damaged, changed by
                another program or from a newer version, or a file behind a view is damaged.
        """
        with self.exclusive(), replacing(self.path) as copy:
            copy.unlink()
            if self.path.exists() and not from_empty:
                shutil.copyfile(self.path, copy)
            with (
                _naming_damage(copy, self.path),
                closing(_connect(copy, read_only=False, shown=self.path)) as connection,
            ):
                self._keep_earlier(_known_version(connection, self.path))
                if not from_empty:
                    self._require_unchanged(connection)
                connection.execute(files(__package__).joinpath("schema.sql").read_text())
                connection.execute("DELETE FROM schema_version")
                connection.execute("INSERT INTO schema_version VALUES (?, ?)", [_VERSION, str(self.root)])
                self._import(connection)
                connection.begin()
                self._create_views(connection)
                yield connection
                _record_contents(connection)
                connection.commit()
            if from_empty and self.path.exists():
                self._keep(f"{FILE_NAME}.old")
                self._log_of_others.unlink(missing_ok=True)

    def rebuild(self) -> int:
        """Rebuild the database from the run files; return the number of runs.

        An existing database, damaged or not, is kept as `lineage.duckdb.old`; it stays in place if rebuilding fails.

        Raises:
            InputError: if there is no run file, or one is damaged.
        """
        found = self._run_files()
        if not found:
            raise InputError(f"{self.root / 'runs'}: has no run files to rebuild the lineage database from")
        with self.writing(from_empty=True) as connection:
            _require_whole(connection)
        return len(found)

    @contextmanager
    def removing(self, run_ids: Sequence[str]) -> Iterator[None]:
        """Record that the data of runs is removed by the block; refresh the views when it ends.

        If the block does not finish, the next reader refreshes the views.
        """
        now = _now()
        for run_id in run_ids:
            with suppress(InputError), self._changing(run_id) as rows:
                for row in rows.get("run_outputs", []):
                    row[REMOVED] = now.isoformat()
        with self.writing() as connection:
            for run_id in run_ids:  # Also those whose run file is damaged or missing.
                connection.execute(f"UPDATE run_outputs SET {REMOVED} = ? WHERE run_id = ?", [now, run_id])
            connection.execute("UPDATE schema_version SET root = NULL")
        yield
        with self.writing() as connection:
            # Of novelties stored in two layouts, the one that a view reads is kept.
            for path in self.root.glob(VIEWS["novelty"][0]):
                connection.execute(
                    "UPDATE novelties SET file = ? WHERE novelty = ?",
                    [path.relative_to(self.root).as_posix(), path.parent.name.partition("=")[2]],
                )

    def tables(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Return whole tables.

        Raises:
            InputError: as `reading` does, or if the file of a run that the database does not have is damaged.
        """
        with self.reading() as connection:
            _require_whole(connection)
            return {name: all_rows(connection, f"SELECT * FROM {name}") for name in names}

    def _keep_earlier(self, version: int) -> None:
        """Back up a database of an earlier version before it is changed."""
        name = f"{FILE_NAME}.v{version}"
        if version < _VERSION and self.path.exists() and not self.path.with_name(name).exists():
            self._keep(name)

    def _keep(self, name: str) -> None:
        with replacing(self.path.with_name(name)) as copy:
            shutil.copyfile(self.path, copy)

    def start_run(self, run_id: str, settings: str) -> None:
        """Record a run, if it is not recorded yet.

        Raises:
            InputError: as `writing` does, so that a run does not start work that it could not record.
        """
        path = self.root / run_file(run_id)
        if path.exists():
            return
        row = {
            "run_id": run_id,
            "started_at": _now().isoformat(),
            "settings": settings,
            "package_version": version("novelsum-dagster"),
            "git_revision": git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
        with self.writing() as connection:
            insert(connection, "runs", [row])
            write_json(sealed({"runs": [row]}), path)

    def start_step(self, run_id: str, step: str) -> int:
        """Record the start of a step; return the number of the attempt, from 1."""
        with self._changing(run_id) as tables:
            attempt = 1 + len([row for row in tables["steps"] if row["step"] == step])
            tables["steps"].append(
                {
                    "run_id": run_id,
                    "step": step,
                    "attempt": attempt,
                    "started_at": _now().isoformat(),
                    "status": RUNNING,
                }
            )
        return attempt

    def end_step(self, run_id: str, step: str, attempt: int, output: str | None, error: str | None) -> None:
        """Record the end of a step: the key of its output, or its error.

        The database is brought up to date if the step failed or the run has its outputs, so that it is current after a
        run for programs that open it themselves.
        """
        with self._changing(run_id) as tables:
            for row in tables["steps"]:
                if (row["step"], row["attempt"]) == (step, attempt):
                    _end(row, output, error)
        if error or "run_outputs" in tables:
            with self.reading():
                pass

    def keep_run(self, run_id: str, outputs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Record the rows of a run's outputs, by table; rows written by an earlier run are left unchanged."""
        with self._changing(run_id) as tables:
            tables.update({table: [dict(row) for row in rows] for table, rows in outputs.items()})

    def close_run(self, run_id: str, error: str) -> None:
        """Mark the unfinished steps of a dead run as failed, with this error; without a run file, nothing is done."""
        with suppress(InputError):
            with self._changing(run_id) as tables:
                for row in tables["steps"]:
                    if row["status"] == RUNNING:
                        _end(row, None, error)
            with self.reading():
                pass

    @contextmanager
    def _changing(self, run_id: str) -> "Iterator[dict[str, list[dict[str, Any]]]]":
        """Yield the rows of a run's file, by table; they are written when the block ends without an error.

        Raises:
            InputError: if the file is missing or damaged.
        """
        path = self.root / run_file(run_id)
        with self.exclusive():
            try:
                tables = unsealed(read_json(path))
            except (FileNotFoundError, ValueError) as error:
                raise _damaged_run_file(path, error) from error
            tables.setdefault("steps", [])
            yield tables
            write_json(sealed(tables), path)

    def export(self) -> list[str]:
        """Write every table as Parquet under `lineage/`, for other programs; return the file names."""
        names = []
        with self.reading() as connection:
            tables = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY table_name").fetchall()
            for (table,) in tables:
                names.append(f"{EXPORT}/{table}.parquet")
                write_table(connection.execute(f"SELECT * FROM {table}").to_arrow_table(), self.root / names[-1])
        return names

    def _run_files(self) -> dict[str, tuple[Path, str]]:
        """Return the run files, by run: the path, and the state of the file, which differs after a change."""
        found = {}
        for path in sorted(self.root.glob(RUN_FILES)):
            with suppress(FileNotFoundError):
                status = path.stat()
                found[path.stem] = path, f"{status.st_size} {status.st_mtime_ns}"
        return found

    def _changed(self, connection: "duckdb.DuckDBPyConnection") -> dict[str, tuple[Path, str]]:
        """Return the run files that were not imported in their current state."""
        imported = dict(connection.execute("SELECT run_id, state FROM run_files").fetchall())
        return {run_id: file for run_id, file in self._run_files().items() if imported.get(run_id) != file[1]}

    def _import(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Import changed run files, each in a transaction; a damaged one is logged."""
        import duckdb

        for run_id, (path, state) in self._changed(connection).items():
            damage = None
            connection.begin()
            try:
                for table, rows in unsealed(read_json(path)).items():
                    insert(connection, table, rows, replace=table in _TABLES_OF_A_RUN)
                connection.commit()
            except (ValueError, TypeError, AttributeError, KeyError, duckdb.Error) as error:
                connection.rollback()
                damage = str(_damaged_run_file(path, error))
                _log.warning(damage)
            connection.execute("INSERT OR REPLACE INTO run_files VALUES (?, ?, ?)", [run_id, state, damage])

    def _require_unchanged(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Require that no other program has changed the database since it was written.

        Raises:
            InputError: naming the tables and views that differ.
        """
        if changed := changed_contents(connection) or self._log_of_others.exists() * ["its write-ahead log"]:
            raise InputError(
                f"{self.path}: changed by another program ({', '.join(changed)}); run novelsum rebuild-lineage, which"
                f" builds it from the run files and keeps this one as {FILE_NAME}.old"
            )

    def _is_usable(self, connection: "duckdb.DuckDBPyConnection") -> bool:
        """Return whether a database has the current schema, and its views point into this folder."""
        if _known_version(connection, self.path) < _VERSION or "run_files" not in table_names(connection):
            return False
        return connection.execute("SELECT root FROM schema_version").fetchone() == (str(self.root),)

    def _create_views(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Point the views at the files that exist now."""
        for name, (pattern, columns) in VIEWS.items():
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


def changed_contents(connection: Connection) -> list[str] | None:
    """Return the tables and views that differ from what novelsum last wrote.

    None if an earlier version of the schema, or another version of DuckDB, wrote them, so that they cannot be compared.
    """
    import duckdb

    tables = table_names(connection)
    if not tables or _version(connection) < _VERSION:
        return None
    if "contents" not in tables:
        return ["contents"]
    rows = connection.execute("SELECT name, content, duckdb FROM contents").fetchall()
    if any(version != duckdb.__version__ for *_, version in rows):
        return None
    then = {name: content for name, content, _ in rows}
    names = then.keys() | _OWN
    now = _contents(connection, names)
    return sorted(name for name in names if now.get(name) != then.get(name))


def _record_contents(connection: "duckdb.DuckDBPyConnection") -> None:
    """Record the tables and views of the lineage, and those that are registered in `contents`, as they are now."""
    import duckdb

    registered = connection.execute("SELECT name FROM contents").fetchall()
    names = _OWN | {row[0] for row in registered}
    connection.execute("DELETE FROM contents")
    connection.executemany(
        "INSERT INTO contents VALUES (?, ?, ?)",
        [[name, content, duckdb.__version__] for name, content in _contents(connection, names).items()],
    )


def _contents(connection: Connection, names: Collection[str]) -> dict[str, str]:
    """Return a hash of the rows of tables, in any order, and of the SQL of views, for those that exist."""
    views = "SELECT view_name, hash(sql)::VARCHAR FROM duckdb_views() WHERE NOT internal"
    found = {name: content for name, content in connection.execute(views).fetchall() if name in names}
    tables = sorted(table_names(connection).intersection(names))
    queries = [
        f"SELECT {quoted(name, chr(39))}, concat_ws(' ', count(*), sum(hash(one))) FROM {quoted(name)} AS one"
        for name in tables
    ]
    return found | dict(connection.execute(" UNION ALL ".join(queries)).fetchall() if queries else [])


def insert(
    connection: "duckdb.DuckDBPyConnection", table: str, rows: Sequence[Mapping[str, Any]], replace: bool = False
) -> None:
    """Insert rows; one whose key exists already is left as it is, or replaced. A column that a row lacks is empty."""
    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    marks = ", ".join("?" for _ in columns)
    connection.executemany(
        f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO {table} ({', '.join(columns)}) VALUES ({marks})",
        [[row.get(column) for column in columns] for row in rows],
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


@contextmanager
def _naming_damage(opened: Path, shown: Path) -> Iterator[None]:
    """Raise an InputError for a DuckDB error that is caused by a damaged file.

    Args:
        opened: the path by which the database was opened.
        shown: the path of the database to name in messages.
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        # For a damaged Parquet header, DuckDB raises its most general error.
        kinds = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
        if not isinstance(error, kinds) and type(error) is not duckdb.Error:
            raise
        if str(opened) in str(error):
            raise _damaged_database(error, opened, shown) from error
        raise InputError(f"{error}; delete the damaged file, and the next run rebuilds it") from error


def _damaged_database(error: Exception, opened: Path, shown: Path) -> InputError:
    return InputError(
        f"{shown}: cannot be opened as a DuckDB database ({str(error).replace(str(opened), str(shown))}); if it is"
        " damaged, run novelsum rebuild-lineage. Or move it away: the next run writes a new one. The Parquet files"
        " beside it are untouched"
    )


def _require_whole(connection: "duckdb.DuckDBPyConnection") -> None:
    """Raise an InputError for the damaged file of a run that the database does not have."""
    damage = connection.execute(
        "SELECT damage FROM run_files WHERE damage IS NOT NULL AND run_id NOT IN (SELECT run_id FROM runs) LIMIT 1"
    ).fetchone()
    if damage is not None:
        raise InputError(damage[0])


def _damaged_run_file(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: damaged ({error}); restore it (novelsum restore, or a backup), or move it away and run novelsum"
        " rebuild-lineage, which leaves that run out"
    )


def _end(row: dict[str, Any], output: str | None, error: str | None) -> None:
    """Record the end of a step in its row."""
    row.update(ended_at=_now().isoformat(), status="failed" if error else "done", output=output, error=error)


def quoted(name: str, mark: str = '"') -> str:
    """Return a name as an SQL identifier, or with `mark` ' as text."""
    return f"{mark}{name.replace(mark, 2 * mark)}{mark}"


def table_names(connection: Connection) -> set[str]:
    """Return the names of all tables of a database."""
    return {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}


def _version(connection: Connection) -> int:
    """Return the version of a database's schema; an empty database has the current one."""
    tables = table_names(connection)
    if not tables:
        return _VERSION
    found = connection.execute("SELECT version FROM schema_version").fetchone() if "schema_version" in tables else None
    return int(found[0]) if found else 1


def _known_version(connection: "duckdb.DuckDBPyConnection", path: Path) -> int:
    """Return the version of a database's schema.

    Raises:
        InputError: if it is a newer one.
    """
    version = _version(connection)
    if version > _VERSION:
        raise InputError(
            f"{path}: written by a newer version of novelsum (schema {version} > {_VERSION}); update novelsum"
        )
    return version


def _now() -> datetime:
    return datetime.now(UTC)
