"""The asset `changes`: what a run changed, as a report and a notification."""

from typing import Any

import dagster as dg

from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.audit.changes import build_changes
from novelsum_dagster.audit.changes_words import in_markdown, summary
from novelsum_dagster.audit.comparison import Changes, Comparison
from novelsum_dagster.audit.notify import notify
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.lineage import LineageRecord
from novelsum_dagster.defs.marts import GROUP
from novelsum_dagster.defs.steps import OWNERS, recorded
from novelsum_dagster.report.novelsum_report import SELECTED
from novelsum_dagster.workspace import Workspace


@dg.asset(
    group_name=GROUP,
    kinds={"markdown", "duckdb"},
    owners=OWNERS,
    code_version=code_version("changes"),
    automation_condition=CARRY,
)
def changes(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace], lineage: LineageRecord
) -> dg.MaterializeResult[Changes]:
    """Changes since the newest earlier run with a different pool or subset: files, samples, picks, measures."""
    root = workspace.root
    with recorded(context, workspace, {"lineage": lineage}) as step:
        made = build_changes(workspace.lineage, context.run.run_id)
        compared = made.comparison(root)
        metadata = _metadata(compared)
        variable = workspace.settings.notify.webhook_variable
        if variable is not None:
            metadata["notification"] = notify(root, made, variable, context.log.warning)
        return step.result(made, **metadata, path=dg.MetadataValue.path(str(root / made.folder)))


def _metadata(compared: Comparison) -> dict[str, Any]:
    shown: dict[str, Any] = {"summary": dg.MetadataValue.md(in_markdown(summary(compared)))}
    if compared.files is None or compared.pool is None or compared.picks is None:
        return shown
    shown |= {f"files_{verb}": len(names) for verb, names in compared.files}
    for name, part in (("samples", compared.pool), ("picks", compared.picks)):
        shown |= {f"{name}_entered": part.entered.count, f"{name}_left": part.left.count}
    measure = compared.measure(SELECTED, "novelsum")
    if measure is not None and measure.difference is not None:
        shown["novelsum_difference"] = measure.difference
    if compared.given_up is not None:
        shown["novelsum_given_up"] = compared.given_up
    return shown
