"""The SQL models of the audit: read from `dbt_like_sql`, sorted by dependency, built and tested.

Belongs here: model files and their tests, dependencies, running them. Does not: the content of a model (its own
file), the database (`store`), Dagster.

A model is a file `staging/NAME.sql` or `marts/NAME.sql` with one `CREATE OR REPLACE VIEW` or `TABLE` of its own name;
the first line of its comment says what a row is. `NAME.yml` beside it describes columns and states tests. Staging
models read the tables that `sources.yml` lists, marts read models. Names in these files come from this repository and
are checked; values from data are passed to DuckDB as parameters.
"""

import graphlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.store import LineageStore

if TYPE_CHECKING:
    from sqlglot import exp

FOLDER = "dbt_like_sql"
STAGING, MARTS = "staging", "marts"
NEWEST = "newest_run"
"""The model with the newest finished run's keys, to which tests of large models are limited."""
EXAMPLES = 5
"""Failing rows that are shown."""
TestKind = Literal["unique", "not_null", "accepted_values", "relationships"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
"""Safe to be inserted into SQL unquoted."""


@dataclass(frozen=True)
class Test:
    """One test of a model.

    Attributes:
        model: its name.
        kind: as dbt calls it.
        columns: tested together for `unique`, else a single one.
        values: that `accepted_values` accepts.
        to, field: for `relationships`, the model and its column that has all values.
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
        layer: "staging" or "marts".
        kind: "view" or "table".
        description: what a row is.
        depends_on: the models that it reads.
        sources: the tables of the lineage that it reads.
        columns: descriptions by column, in the order of its yml.
    """

    name: str
    layer: str
    kind: str
    sql: str
    description: str
    depends_on: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    tests: tuple[Test, ...] = ()

    @property
    def code_version(self) -> str:
        """Hash of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()[:12]


def models(folder: Path | None = None) -> tuple[Model, ...]:
    """Return all models, each after those that it reads.

    Args:
        folder: with `staging`, `marts` and `sources.yml`; None takes that of the repository or of the installed
            package.

    Raises:
        InputError: naming the file, for an invalid model, an unknown table, two models of one name, a cycle, or an
            invalid yml.
    """
    return _read(folder or _own_folder())


@cache
def _read(folder: Path) -> tuple[Model, ...]:
    sources = _sources(folder / "sources.yml")
    paths: dict[str, Path] = {}
    for path in (path for layer in (STAGING, MARTS) for path in sorted((folder / layer).glob("*.sql"))):
        if path.stem in paths:
            raise InputError(f"{path}: {paths[path.stem]} is a model of the same name; rename one")
        if path.stem in sources:
            raise InputError(f"{path}: the lineage has a table of that name; rename the model")
        paths[path.stem] = path
    if not paths:
        raise InputError(f"{folder}: has no models")
    found = {name: _model(path, paths.keys(), sources) for name, path in paths.items()}
    _require_known_tests(found, paths)
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


def _sources(path: Path) -> frozenset[str]:
    return frozenset(source.name for source in _yaml(path, _Sources).sources)


def _model(path: Path, known: Iterable[str], sources: frozenset[str]) -> Model:
    sql = path.read_text()
    layer = path.parent.name
    kind, query = _statement(path, sql)
    read = _tables(path, query)
    upstream = sources if layer == STAGING else frozenset(known)
    if wrong := sorted(read - upstream):
        raise InputError(
            f"{path}: reads {wrong[0]}, which is not a {'table of sources.yml' if layer == STAGING else 'model'}"
        )
    stated = _yaml(path.with_suffix(".yml"), _Stated)
    if stated.name != path.stem:
        raise InputError(f"{path.with_suffix('.yml')}: describes {stated.name!r}, but the file name says {path.stem!r}")
    return Model(
        name=path.stem,
        layer=layer,
        kind=kind,
        sql=sql,
        description=_description(path, sql),
        depends_on=tuple(sorted(read)) if layer == MARTS else (),
        sources=tuple(sorted(read)) if layer == STAGING else (),
        columns={column.name: column.description for column in stated.columns},
        tests=tuple(stated.all_tests(path.with_suffix(".yml"))),
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


class _Source(_Strict):
    name: Name
    description: str


class _Sources(_Strict):
    sources: list[_Source]


class _Values(_Strict):
    values: list[str | int | bool]


class _Reference(_Strict):
    to: Name
    field: Name


class _ColumnTest(_Strict):
    accepted_values: _Values | None = None
    relationships: _Reference | None = None


class _Column(_Strict):
    name: Name
    description: str = ""
    tests: list[Literal["unique", "not_null"] | _ColumnTest] = []


class _Together(_Strict):
    unique: list[Name]


class _Stated(_Strict):
    """A model's yml. `newest` names the column by which tests are limited to the newest finished run."""

    name: Name
    newest: Name | None = None
    columns: list[_Column]
    tests: list[_Together] = []

    def all_tests(self, path: Path) -> Iterator[Test]:
        """Yield all tests; those of column combinations come first."""
        for together in self.tests:
            yield Test(self.name, "unique", tuple(together.unique), newest=self.newest)
        for column in self.columns:
            for asked in column.tests:
                yield self._test(column.name, asked, path)

    def _test(self, column: str, asked: str | _ColumnTest, path: Path) -> Test:
        match asked:
            case "unique" | "not_null":
                return Test(self.name, asked, (column,), newest=self.newest)
            case _ColumnTest(accepted_values=_Values(values=values), relationships=None):
                return Test(self.name, "accepted_values", (column,), values=tuple(values), newest=self.newest)
            case _ColumnTest(accepted_values=None, relationships=_Reference(to=to, field=key)):
                return Test(self.name, "relationships", (column,), to=to, field=key, newest=self.newest)
        raise InputError(f"{path}: a test of {column} must name exactly one kind")


def _yaml(path: Path, kind: type[BaseModel]) -> Any:
    try:
        return kind.model_validate(yaml.safe_load(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; each model needs a yml beside it, the folder a sources.yml") from None
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}") from None


def _require_known_tests(found: Mapping[str, Model], paths: Mapping[str, Path]) -> None:
    """Refuse tests of columns or models that no yml describes, and repeated tests."""
    for model in found.values():
        path = paths[model.name].with_suffix(".yml")
        names = [test.name for test in model.tests]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: repeats a test")
        for test in model.tests:
            named = [(model.name, column) for column in (*test.columns, *([test.newest] if test.newest else []))]
            if test.to and test.field:
                named.append((test.to, test.field))
            for table, column in named:
                if table not in found or column not in found[table].columns:
                    raise InputError(f"{path}: a test names {table}.{column}, which no yml describes")


def column_lineage(found: Sequence[Model]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Return for each column of each model the (table, column) pairs from which it is computed directly.

    Args:
        found: all models, as `models` returns them.
    """
    columns: dict[str, Any] = {}
    lineage = {}
    for model in found:
        lineage[model.name] = _lineage_of(model, columns)
        columns[model.name] = dict.fromkeys(lineage[model.name], "UNKNOWN")
    return lineage


def _lineage_of(model: Model, columns: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    from sqlglot import exp
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    query = _statement(Path(f"{model.name}.sql"), model.sql)[1]
    # The tables of the lineage are not in `columns`: a staging model names every column that it reads.
    qualified: Any = qualify(query, dialect="duckdb", schema=columns, validate_qualify_columns=False, identify=False)
    scope = build_scope(qualified)
    made = {}
    for column in qualified.named_selects:
        top = lineage(column, qualified, schema=columns, dialect="duckdb", scope=scope, trim_selects=False)
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
    found = models(folder)
    asked = {model.name for model in found} if names is None else set(names)
    if unknown := sorted(asked - {model.name for model in found}):
        raise InputError(f"no model is named {unknown[0]!r}; models: {', '.join(model.name for model in found)}")
    with store.writing() as connection:
        for model in found:
            if model.name in asked:
                _create(connection, model)
        return {model.name: _count(connection, model, found) for model in found if model.name in asked}


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


def _count(connection: Connection, model: Model, found: Sequence[Model]) -> int | None:
    """Count a model's rows if that only reads small tables or the footers of Parquet files."""
    if model.kind == "view" and model.layer == MARTS and _reads_files(connection, model, found):
        return None
    return int(connection.execute(f"SELECT count(*) FROM {model.name}").fetchone()[0])


def _reads_files(connection: Connection, model: Model, found: Sequence[Model]) -> bool:
    by_name = {model.name: model for model in found}
    waiting, sources = [model.name], set[str]()
    while waiting:
        current = by_name[waiting.pop()]
        waiting.extend(current.depends_on)
        sources.update(current.sources)
    kinds = _kinds(connection)
    return any(kinds.get(source) == "view" for source in sources)


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
    rows = connection.execute(f"SELECT * FROM ({query}) LIMIT {EXAMPLES}", values)
    names = [column[0] for column in rows.description]
    return Failures(count, tuple(dict(zip(names, row, strict=True)) for row in rows.fetchall()))


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
        accepted = {f"value{number}": value for number, value in enumerate(test.values)}
        marks = ", ".join(f"${name}" for name in accepted)
        return f"SELECT * FROM {rows} WHERE {column} NOT IN ({marks})", accepted
    known = f"SELECT {test.field} FROM {test.to} WHERE {test.field} IS NOT NULL"
    return f"SELECT * FROM {rows} WHERE {column} IS NOT NULL AND {column} NOT IN ({known})", {}
