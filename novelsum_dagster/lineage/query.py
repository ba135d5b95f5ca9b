"""Rows of a parameterised query as dictionaries. No query belongs here."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Connection(Protocol):
    """The methods used of a DuckDB connection; only `store` opens one."""

    def execute(self, query: str, parameters: Any = ...) -> Any: ...

    def sql(self, query: str, *, params: Any = ...) -> Any: ...

    def register(self, view_name: str, python_object: object) -> Any: ...


def all_rows(
    connection: Connection, query: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> list[dict[str, Any]]:
    """Return all rows of a query, each as a dictionary by column; `values` are its parameters."""
    found = connection.execute(query, values)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def one_row(connection: Connection, query: str, values: Sequence[Any] = ()) -> dict[str, Any] | None:
    """Return the first row of a query as a dictionary by column; None for an empty result."""
    return next(iter(all_rows(connection, query, values)), None)
