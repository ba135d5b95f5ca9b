"""The SQL models of the audit: read from `dbt_like_sql`, sorted by dependency, built and tested.

Belongs here: model files and their tests, dependencies, running them. Does not: the content of a model (its own
file), the database (`store`), Dagster.

`dbt_like_sql` is a project that dbt can run. This module reads the same files without dbt. A model is a file
`marts/NAME.sql`: `{{ config(materialized='view') }}` or `'table'`, then one query that names other models as
`{{ ref('NAME') }}` and the tables that `marts/sources.yml` lists as `{{ source('lineage', 'NAME') }}`. `NAME.yml`
beside it, in dbt's form, describes the model and its columns and states tests; `marts/columns.md` describes columns of
several models. Names in these files come from this repository and are checked; values from data are passed to DuckDB as
parameters.
"""

import graphlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

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
SOURCE = "lineage"
"""dbt's name of the lineage database's own tables."""
_CALL = re.compile(r"\{\{\s*(config|ref|source)\((.*?)\)\s*\}\}")
_TO = re.compile(r"(?:ref\('(\w+)'\)|source\('lineage', '(\w+)'\))")
_DOC = re.compile(r"\{\{ doc\('(\w+)'\) \}\}")
_DOCS = re.compile(r"\{% docs (\w+) %\}(.*?)\{% enddocs %\}", re.DOTALL)
_TEXT = re.compile(r"'([^']*)'")


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
        folder: with `marts`; None takes that of the repository or of the installed package.

    Raises:
        InputError: naming the file, for an invalid model, an unknown table, a cycle, or an invalid yml.
    """
    return _read(folder or _own_folder())


def sources(folder: Path | None = None) -> Mapping[str, str]:
    """Return the descriptions of the lineage's tables and views that models read, by name; `folder` as in `models`.

    Raises:
        InputError: for an invalid sources.yml.
    """
    stated: _Sources = _yaml((folder or _own_folder()) / "marts" / "sources.yml", _Sources)
    return stated.tables


@cache
def _read(folder: Path) -> tuple[Model, ...]:
    known_sources = sources(folder).keys()
    try:
        shared = {name: text.strip() for name, text in _DOCS.findall((folder / "marts" / "columns.md").read_text())}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: is missing") from None
    paths = {path.stem: path for path in sorted((folder / "marts").glob("*.sql"))}
    if not paths:
        raise InputError(f"{folder}: has no models")
    if known := sorted(paths.keys() & known_sources):
        raise InputError(f"{paths[known[0]]}: the lineage has a table of that name; rename the model")
    found = {name: _model(path, paths.keys(), known_sources, shared) for name, path in paths.items()}
    for model in found.values():
        _require_known_columns(model, found, known_sources, paths[model.name].with_suffix(".yml"))
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
    kind, sql, named = _rendered(path, path.read_text())
    query = _query(path, sql)
    if wrong := sorted(named - known - sources):
        raise InputError(f"{path}: reads {wrong[0]}, which is neither a model nor a table of sources.yml")
    if plain := sorted(_tables(path, query) - named):
        raise InputError(f"{path}: reads {plain[0]} by its plain name; write ref or source")
    stated = _stated(path.with_suffix(".yml"), path.stem)
    if foreign := sorted({column.name for column in stated.columns} - set(query.named_selects)):
        raise InputError(f"{path.with_suffix('.yml')}: describes {foreign[0]}, which the model does not select")
    described = {
        column.name: _DOC.sub(lambda doc: shared.get(doc[1], ""), column.description) for column in stated.columns
    }
    return Model(
        name=path.stem,
        kind=kind,
        sql=f"CREATE OR REPLACE {kind.upper()} {path.stem} AS\n{sql.strip()};\n",
        description=stated.description,
        depends_on=tuple(sorted(named & known)),
        sources=tuple(sorted(named & sources)),
        columns={name: described.get(name, "") for name in query.named_selects},
        tests=tuple(stated.all_tests()),
    )


def _rendered(path: Path, text: str) -> tuple[str, str, frozenset[str]]:
    """Return a model's kind, its query with plain names, and the models and tables that it names."""
    kinds: list[str] = []
    named: set[str] = set()

    def value(call: re.Match[str]) -> str:
        texts = _TEXT.findall(call[2])
        if call[1] == "config":
            kinds.extend(texts)
            return ""
        if len(texts) != (1 if call[1] == "ref" else 2) or (call[1] == "source" and texts[0] != SOURCE):
            raise InputError(f"{path}: {call[0]}: write ref('MODEL') or source('{SOURCE}', 'TABLE')")
        name = str(texts[-1])
        named.add(name)
        return name

    sql = _CALL.sub(value, text)
    if len(kinds) != 1 or kinds[0] not in ("view", "table"):
        raise InputError(f"{path}: begins with {{{{ config(materialized='view') }}}}, or 'table'")
    if "{{" in sql or "{%" in sql:
        raise InputError(f"{path}: of dbt's calls only config, ref and source are understood")
    return kinds[0], sql, frozenset(named)


def _query(path: Path, sql: str) -> "exp.Query":
    import sqlglot
    from sqlglot import exp

    try:
        statements = [one for one in sqlglot.parse(sql, read="duckdb") if one is not None]
    except sqlglot.errors.SqlglotError as error:
        raise InputError(f"{path}: {error}") from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise InputError(f"{path}: a model is one query")
    return statements[0]


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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Arguments(_Strict):
    columns: list[Name] = []
    values: list[str | int | bool] = []
    to: str = ""
    field: Name | None = None


class _Stating(_Strict):
    arguments: _Arguments


_DataTest = (
    Literal["unique", "not_null"] | dict[Literal["unique_together", "accepted_values", "relationships"], _Stating]
)


class _Column(_Strict):
    name: Name
    description: str = ""
    data_tests: list[_DataTest] = []


class _Meta(_Strict):
    newest: Name | None = None


class _Config(_Strict):
    meta: _Meta = _Meta()


class _Stated(_Strict):
    """A model in dbt's form. `meta.newest` names the column by which tests are limited to the newest finished run."""

    name: Name
    description: str
    config: _Config = _Config()
    data_tests: list[_DataTest] = []
    columns: list[_Column] = []

    def all_tests(self) -> Iterator[Test]:
        """Yield all tests of the model."""
        for stated in self.data_tests:
            yield from self._tests(stated, ())
        for column in self.columns:
            for stated in column.data_tests:
                yield from self._tests(stated, (column.name,))

    def _tests(self, stated: _DataTest, columns: tuple[str, ...]) -> Iterator[Test]:
        newest = self.config.meta.newest
        if isinstance(stated, str):
            yield Test(self.name, stated, columns, newest=newest)
            return
        for kind, given in stated.items():
            to = _TO.fullmatch(given.arguments.to)
            yield Test(
                self.name,
                "unique" if kind == "unique_together" else kind,
                tuple(given.arguments.columns) or columns,
                values=tuple(given.arguments.values),
                to=to and (to[1] or to[2]),
                field=given.arguments.field,
                newest=newest,
            )


class _Described(_Strict):
    version: Literal[2]
    models: list[_Stated]


class _Table(_Strict):
    name: Name
    description: str


class _Source(_Strict):
    name: Literal["lineage"]
    schema_: str = Field(alias="schema")
    tables: list[_Table]


class _Sources(_Strict):
    version: Literal[2]
    sources: list[_Source]

    @property
    def tables(self) -> dict[str, str]:
        """Descriptions by name."""
        return {table.name: table.description for source in self.sources for table in source.tables}


def _stated(path: Path, name: str) -> _Stated:
    described: _Described = _yaml(path, _Described)
    if [one.name for one in described.models] != [name]:
        raise InputError(f"{path}: describes the model {name} and no other")
    return described.models[0]


def _yaml(path: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(yaml.safe_load(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing; each model needs a yml beside it, the folder a sources.yml and a columns.md"
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

    query = _query(Path(f"{model.name}.sql"), model.sql.split(" AS\n", 1)[1])
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
        for name, text in sources(folder).items():
            if name in kinds:
                _comment(connection, kinds[name], name, text)
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
    _comment(connection, model.kind, model.name, model.description, model.columns)
    connection.execute("INSERT OR IGNORE INTO contents (name) VALUES (?)", [model.name])


def _comment(connection: Connection, kind: str, name: str, text: str, columns: Mapping[str, str] | None = None) -> None:
    """Describe a table or view, and its columns, in the database. COMMENT takes no parameters."""

    def literal(value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    connection.execute(f"COMMENT ON {kind.upper()} {name} IS {literal(text)}")
    for column, said in (columns or {}).items():
        connection.execute(f"COMMENT ON COLUMN {name}.{column} IS {literal(said)}")


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
