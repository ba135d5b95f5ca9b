"""The SQL models of the audit: read from `dbt_like_sql`, sorted by dependency, built and tested.

Belongs here: model files and their tests, dependencies, running them. Does not: the content of a model (its own
file), the database (`store`), Dagster.

A model is a file `marts/NAME.sql` with one `CREATE OR REPLACE VIEW` or `TABLE` of its own name; the first line of its
comment says what a row is. It reads other models and the tables that `sources.yml` lists. `NAME.yml` beside it
describes columns and states tests; columns of several models are described in `columns.yml`. Names in these files come
from this repository and are checked; values from data are passed to DuckDB as parameters.
"""

import graphlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.store import LineageStore

if TYPE_CHECKING:
    from sqlglot import exp

FOLDER = "dbt_like_sql"
NEWEST = "newest_run"
"""The model with the newest finished run's keys, to which tests of large models are limited."""
EXAMPLES = 5
"""Failing rows that are shown."""
TestKind = Literal["unique", "not_null", "accepted_values", "relationships"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
"""Safe to be inserted into SQL unquoted."""
Reference = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$")]
"""A column of a model or table, as `table.column`."""


@dataclass(frozen=True)
class Test:
    """One test of a model.

    Attributes:
        model: its name.
        kind: as dbt calls it.
        columns: tested together for `unique`, else a single one.
        values: that `accepted_values` accepts.
        to, field: for `relationships`, the model or table, and its column that has all values.
        newest: the column that limits rows to the newest finished run; None tests all rows.
    """

    # Otherwise pytest collects it as a test class.
    __test__ = False

    model: str
    kind: TestKind
    columns: tuple[str, ...]
    values: tuple[Any, ...] = ()
    to: str | None = None
    field: str | None = None
    newest: str | None = None

    @property
    def name(self) -> str:
        """Unique within the model."""
        return "_".join([self.kind, *self.columns])

    @property
    def description(self) -> str:
        """The condition that must hold, as a sentence."""
        columns = ", ".join(self.columns)
        said = {
            "unique": f"{columns}: no two rows are equal",
            "not_null": f"{columns}: never empty",
            "accepted_values": f"{columns}: one of {', '.join(map(str, self.values))}",
            "relationships": f"{columns}: a {self.field} of {self.to}",
        }[self.kind]
        return f"{said} (newest run)" if self.newest else said


@dataclass(frozen=True)
class Failures:
    """Result of a test: the number of failing rows (for `unique`: of repeated keys), and the first few."""

    count: int
    examples: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Model:
    """A model, as defined by its files.

    Attributes:
        kind: "view" or "table".
        description: what a row is.
        depends_on: the models that it reads.
        sources: the tables of the lineage that it reads.
        columns: descriptions by column, in the order of the SQL.
    """

    name: str
    kind: str
    sql: str
    description: str
    depends_on: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, str]
    tests: tuple[Test, ...]

    @property
    def code_version(self) -> str:
        """Hash of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()[:12]


def models(folder: Path | None = None) -> tuple[Model, ...]:
    """Return all models, each after those that it reads.

    Args:
        folder: with `marts`, `sources.yml` and `columns.yml`; None takes that of the repository or of the installed
            package.

    Raises:
        InputError: naming the file, for an invalid model, an unknown table, a cycle, or an invalid yml.
    """
    return _read(folder or _own_folder())


@cache
def _read(folder: Path) -> tuple[Model, ...]:
    sources = _yaml(folder / "sources.yml", dict[Name, str]).keys()
    shared = _yaml(folder / "columns.yml", dict[Name, str])
    paths = {path.stem: path for path in sorted((folder / "marts").glob("*.sql"))}
    if not paths:
        raise InputError(f"{folder}: has no models")
    if known := sorted(paths.keys() & sources):
        raise InputError(f"{paths[known[0]]}: the lineage has a table of that name; rename the model")
    found = {name: _model(path, paths.keys(), sources, shared) for name, path in paths.items()}
    for model in found.values():
        _require_known_columns(model, found, sources, paths[model.name].with_suffix(".yml"))
    try:
        order = list(graphlib.TopologicalSorter({name: one.depends_on for name, one in found.items()}).static_order())
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1]
        raise InputError(f"{paths[circle[0]]}: the models form a cycle: {' <- '.join(circle)}") from None
    return tuple(found[name] for name in order)


def _own_folder() -> Path:
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / FOLDER
    return checkout if checkout.is_dir() else package / FOLDER


def _model(path: Path, known: Set[str], sources: Set[str], shared: Mapping[str, str]) -> Model:
    sql = path.read_text()
    kind, query = _statement(path, sql)
    read = _tables(path, query)
    if wrong := sorted(read - known - sources):
        raise InputError(f"{path}: reads {wrong[0]}, which is neither a model nor a table of sources.yml")
    stated: _Stated = _yaml(path.with_suffix(".yml"), _Stated)
    if foreign := sorted(stated.columns.keys() - set(query.named_selects)):
        raise InputError(f"{path.with_suffix('.yml')}: describes {foreign[0]}, which the model does not select")
    return Model(
        name=path.stem,
        kind=kind,
        sql=sql,
        description=_description(path, sql),
        depends_on=tuple(sorted(read & known)),
        sources=tuple(sorted(read & sources)),
        columns={name: stated.columns.get(name) or shared.get(name, "") for name in query.named_selects},
        tests=tuple(stated.all_tests(path.stem)),
    )


def _statement(path: Path, sql: str) -> tuple[str, "exp.Query"]:
    """Return whether a file creates a view or a table, and its query."""
    import sqlglot
    from sqlglot import exp

    try:
        statements = [one for one in sqlglot.parse(sql, read="duckdb") if one is not None]
    except sqlglot.errors.SqlglotError as error:
        raise InputError(f"{path}: {error}") from None
    if len(statements) != 1:
        raise InputError(f"{path}: has {len(statements)} statements; a model is one CREATE OR REPLACE VIEW or TABLE")
    made = statements[0]
    if not (
        isinstance(made, exp.Create)
        and made.kind in ("VIEW", "TABLE")
        and made.args.get("replace")
        and isinstance(made.expression, exp.Query)
    ):
        raise InputError(f"{path}: is not a CREATE OR REPLACE VIEW or TABLE ... AS SELECT")
    if made.this.sql("duckdb") != path.stem:
        raise InputError(f"{path}: creates {made.this.sql('duckdb')}, but the file name says {path.stem}")
    return made.kind.lower(), made.expression


def _tables(path: Path, query: "exp.Query") -> frozenset[str]:
    """Return the tables that a query reads, except its own CTEs."""
    from sqlglot import exp
    from sqlglot.optimizer.scope import traverse_scope

    read = [source for scope in traverse_scope(query) for source in scope.sources.values()]
    tables = [source for source in read if isinstance(source, exp.Table)]
    for table in tables:
        if not isinstance(table.this, exp.Identifier) or table.db:
            raise InputError(f"{path}: reads {table.sql('duckdb')}; a model reads tables by their plain names")
    return frozenset(table.name for table in tables)


def _description(path: Path, sql: str) -> str:
    first = sql.split("\n", 1)[0]
    if not first.startswith("-- "):
        raise InputError(f"{path}: has no comment at its start; the first line must say what a row is")
    return first.removeprefix("-- ").strip()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Tests(_Strict):
    """The tests of a model: of columns together (`unique`), of each column, or of columns with what they must have."""

    unique: list[Name] = []
    not_null: list[Name] = []
    accepted_values: dict[Name, list[str | int | bool]] = {}
    relationships: dict[Name, Reference] = {}


class _Stated(_Strict):
    """A model's yml. `newest` names the column by which tests are limited to the newest finished run."""

    newest: Name | None = None
    columns: dict[Name, str] = {}
    tests: _Tests = _Tests()

    def all_tests(self, model: str) -> Iterator[Test]:
        """Yield all tests of the model of that name."""
        if self.tests.unique:
            yield Test(model, "unique", tuple(self.tests.unique), newest=self.newest)
        for column in self.tests.not_null:
            yield Test(model, "not_null", (column,), newest=self.newest)
        for column, values in self.tests.accepted_values.items():
            yield Test(model, "accepted_values", (column,), values=tuple(values), newest=self.newest)
        for column, reference in self.tests.relationships.items():
            to, _, field = reference.partition(".")
            yield Test(model, "relationships", (column,), to=to, field=field, newest=self.newest)


def _yaml(path: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(yaml.safe_load(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing; each model needs a yml beside it, the folder a sources.yml and a columns.yml"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}") from None


def _require_known_columns(model: Model, found: Mapping[str, Model], sources: Set[str], path: Path) -> None:
    """Refuse tests of columns that a model does not select, or of a table that does not exist.

    The columns of the lineage's tables are not known here.
    """
    for test in model.tests:
        named = [(model.name, column) for column in (*test.columns, *([test.newest] if test.newest else []))]
        if test.to and test.field and test.to not in sources:
            named.append((test.to, test.field))
        for table, column in named:
            if table not in found or column not in found[table].columns:
                raise InputError(f"{path}: a test names {table}.{column}, which no model selects")


def column_lineage(found: Sequence[Model]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Return for each column of each model the (table, column) pairs from which it is computed directly.

    Args:
        found: all models, as `models` returns them.
    """
    schema = {model.name: dict.fromkeys(model.columns, "UNKNOWN") for model in found}
    return {model.name: _lineage_of(model, schema) for model in found}


def _lineage_of(model: Model, schema: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    from sqlglot import exp
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    query = _statement(Path(f"{model.name}.sql"), model.sql)[1]
    # The tables of the lineage are not in `schema`: a model names every column that it reads of them.
    qualified: Any = qualify(query, dialect="duckdb", schema=schema, validate_qualify_columns=False, identify=False)
    scope = build_scope(qualified)
    made = {}
    for column in qualified.named_selects:
        top = lineage(column, qualified, schema=schema, dialect="duckdb", scope=scope, trim_selects=False)
        leaves = {(node.source.name, node.name) for node in top.walk() if isinstance(node.source, exp.Table)}
        made[column] = sorted({(table, name.rpartition(".")[2].strip('"')) for table, name in leaves})
    return made


def build(store: LineageStore, names: Iterable[str] | None = None, folder: Path | None = None) -> dict[str, int | None]:
    """Build models in one transaction, each after those that it reads.

    Args:
        store: of the storage.
        names: of the models to build; None builds all.
        folder: as in `models`.

    Returns:
        the number of rows by model; None if counting is costly.

    Raises:
        InputError: for an unknown name, or a model that reads one that was never built.
    """
    found = {model.name: model for model in models(folder)}
    asked = found.keys() if names is None else set(names)
    if unknown := sorted(asked - found.keys()):
        raise InputError(f"no model is named {unknown[0]!r}; models: {', '.join(found)}")
    with store.writing() as connection:
        for name, model in found.items():
            if name in asked:
                _create(connection, model)
        kinds = _kinds(connection)
        return {name: _count(connection, name, found, kinds) for name in found if name in asked}


def _create(connection: Connection, model: Model) -> None:
    kinds = _kinds(connection)
    if missing := [name for name in model.depends_on if name not in kinds]:
        raise InputError(f"{model.name} reads {missing[0]}, which was never built; build it first, or all models")
    if kinds.get(model.name, model.kind) != model.kind:
        # CREATE OR REPLACE cannot turn a view into a table.
        connection.execute(f"DROP {kinds[model.name]} {model.name}")
    try:
        connection.execute(model.sql)
    except Exception as error:
        error.add_note(f"in the model {model.name}")
        raise


def _kinds(connection: Connection) -> dict[str, str]:
    """Return whether each name in the database is a table or a view."""
    query = (
        "SELECT table_name, 'table' FROM duckdb_tables()"
        " UNION ALL SELECT view_name, 'view' FROM duckdb_views() WHERE NOT internal"
    )
    return dict(connection.execute(query).fetchall())


def _count(connection: Connection, name: str, found: Mapping[str, Model], kinds: Mapping[str, str]) -> int | None:
    """Count a model's rows if that reads tables alone."""

    def reads_files(name: str) -> bool:
        model = found.get(name)
        return kinds[name] == "view" and (model is None or any(map(reads_files, (*model.depends_on, *model.sources))))

    if reads_files(name):
        return None
    return int(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0])


def column_types(connection: Connection, model: str) -> dict[str, str]:
    """Return the types of a model's columns, in order; `model` is the name of one of `models`."""
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {model}").fetchall()}


def failures(connection: Connection, test: Test) -> Failures:
    """Run a test; it only reads.

    Args:
        connection: to a database in which the test's models are built.
        test: of `models`.
    """
    query, values = _failing(test)
    if test.newest:
        newest = connection.execute(f"SELECT {test.newest} FROM {NEWEST}").fetchone()
        if newest is None:
            return Failures(0)
        # With a constant, unlike a join, DuckDB knows beforehand which Parquet files to read.
        values["newest"] = newest[0]
    count = int(connection.execute(f"SELECT count(*) FROM ({query})", values).fetchone()[0])
    if not count:
        return Failures(0)
    return Failures(count, tuple(all_rows(connection, f"SELECT * FROM ({query}) LIMIT {EXAMPLES}", values)))


def _failing(test: Test) -> tuple[str, dict[str, Any]]:
    """Return the query for failing rows, and its parameters by name."""
    column = test.columns[0]
    rows = f"(SELECT * FROM {test.model} WHERE {test.newest} = $newest)" if test.newest else test.model
    if test.kind == "unique":
        columns = ", ".join(test.columns)
        filled = " AND ".join(f"{name} IS NOT NULL" for name in test.columns)
        return f"SELECT {columns}, count(*) AS times FROM {rows} WHERE {filled} GROUP BY ALL HAVING times > 1", {}
    if test.kind == "not_null":
        return f"SELECT * FROM {rows} WHERE {column} IS NULL", {}
    if test.kind == "accepted_values":
        return f"SELECT * FROM {rows} WHERE {column} != ALL($accepted)", {"accepted": list(test.values)}
    known = f"SELECT {test.field} FROM {test.to} WHERE {test.field} IS NOT NULL"
    return f"SELECT * FROM {rows} WHERE {column} IS NOT NULL AND {column} NOT IN ({known})", {}
