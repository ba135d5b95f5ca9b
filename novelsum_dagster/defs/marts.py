"""The audit: the SQL models as assets, and their tests as checks.

Belongs here: the presentation of models in Dagster. Does not: the models (`dbt_like_sql`), reading and building them
(`lineage.models`).
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import dagster as dg

from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.steps import OWNERS, recorded
from novelsum_dagster.lineage.models import (
    Failures,
    Model,
    Test,
    build,
    column_lineage,
    column_types,
    failures,
    models,
)
from novelsum_dagster.workspace import Workspace

GROUP = "audit"
STEP = "audit"
"""The step's name in the lineage."""
LINEAGE = "lineage"
"""The asset whose tables the models read."""
_ERRORS = {"unique", "not_null"}
"""Tests whose failure is an error; failures of others are warnings."""


def audit_assets() -> dg.AssetsDefinition:
    """Return all models as one asset definition; the selected ones are built in one transaction."""
    found = models()

    @dg.multi_asset(name=STEP, specs=[_spec(model) for model in found], can_subset=True)
    def run(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        asked = {key.to_user_string() for key in context.selected_asset_keys}
        with recorded(context, workspace, {}, name=STEP):
            counts = build(workspace.lineage, asked)
            lineage = _lineage_of_columns()
            with workspace.lineage.reading() as connection:
                results = [
                    _result(model, column_types(connection, model.name), lineage[model.name], counts[model.name])
                    for model in found
                    if model.name in counts
                ]
        yield from results

    return run


def audit_checks() -> dg.AssetChecksDefinition:
    """Return the tests of all models as checks of one step; none blocks."""
    tests = {(test.model, test.name): test for model in models() for test in model.tests}
    specs = [
        dg.AssetCheckSpec(test.name, asset=test.model, description=test.description, blocking=False)
        for test in tests.values()
    ]

    @dg.multi_asset_check(name=f"{STEP}_checks", specs=specs, can_subset=True)
    def run(
        context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.AssetCheckResult]:
        asked = {(key.asset_key.to_user_string(), key.name) for key in context.selected_asset_check_keys}
        with workspace.lineage.reading() as connection:
            for key, test in tests.items():
                if key in asked:
                    yield _verdict(test, failures(connection, test))

    return run


@cache
def _lineage_of_columns() -> dict[str, dict[str, list[tuple[str, str]]]]:
    return column_lineage(models())


def _spec(model: Model) -> dg.AssetSpec:
    return dg.AssetSpec(
        model.name,
        deps=[*model.depends_on, *([LINEAGE] if model.sources else [])],
        description=model.description,
        group_name=GROUP,
        kinds={"sql", "duckdb"},
        owners=OWNERS,
        code_version=model.code_version,
        automation_condition=CARRY,
    )


def _result(
    model: Model, types: dict[str, str], lineage: dict[str, list[tuple[str, str]]], rows: int | None
) -> dg.MaterializeResult[Any]:
    columns = [dg.TableColumn(name, kind.lower(), model.columns.get(name) or None) for name, kind in types.items()]
    metadata: dict[str, Any] = {
        "dagster/column_schema": dg.TableSchema(columns),
        "dagster/column_lineage": _shown_lineage(model, lineage),
        "sql": dg.MetadataValue.md(f"```sql\n{model.sql}```"),
        "kind": model.kind,
    }
    if rows is not None:
        metadata["dagster/row_count"] = rows
    return dg.MaterializeResult(asset_key=model.name, metadata=metadata)


def _shown_lineage(model: Model, lineage: dict[str, list[tuple[str, str]]]) -> dg.TableColumnLineage:
    """Return the lineage in Dagster's form: tables of the database are columns `table.column` of the asset lineage."""

    def dependency(table: str, column: str) -> dg.TableColumnDep:
        if table in model.sources:
            return dg.TableColumnDep(dg.AssetKey(LINEAGE), f"{table}.{column}")
        return dg.TableColumnDep(dg.AssetKey(table), column)

    return dg.TableColumnLineage({name: [dependency(*leaf) for leaf in leaves] for name, leaves in lineage.items()})


def _verdict(test: Test, found: Failures) -> dg.AssetCheckResult:
    severe = test.kind in _ERRORS
    metadata: dict[str, Any] = {"failing": found.count}
    if found.examples:
        metadata["examples"] = dg.MetadataValue.table([dg.TableRecord(_texts(row)) for row in found.examples])
    return dg.AssetCheckResult(
        check_name=test.name,
        asset_key=test.model,
        passed=not found.count,
        severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
        description=f"{found.count:,} fail: {test.description}" if found.count else None,
        metadata=metadata,
    )


def _texts(row: dict[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in row.items()}
