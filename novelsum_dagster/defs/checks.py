"""Asset checks: every suite of `quality` as one check, all suites of an asset in one step."""

from collections.abc import Iterator

import dagster as dg

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import verdicts_file
from novelsum_dagster.artifacts.outputs import publish
from novelsum_dagster.artifacts.verdicts import Verdict, describe
from novelsum_dagster.audit.comparison import Changes
from novelsum_dagster.defs.io_manager import current_artifact
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.quality.suites import Subject, suites_of
from novelsum_dagster.quality.validate import check
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.workspace import Workspace

_OUTPUTS: dict[str, type[Artifact]] = {
    "raw_pool": PoolSnapshot,
    "embeddings": VectorSet,
    "distinct_pool": PoolSnapshot,
    "density": DensityTable,
    "sample_novelty": NoveltyTable,
    "selected_subset": Subset,
    "novelsum_report": NovelSumReport,
    "changes": Changes,
}

_BEFORE_DISTINCT = ("raw_pool", "embeddings")
"""Steps before `distinct_pool`."""


def asset_checks() -> list[dg.AssetChecksDefinition]:
    """Return one multi-check for each asset that has suites."""
    return [_checks_of(step) for step in _OUTPUTS]


def _checks_of(step: str) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(suite.name, asset=step, description=suite.description, blocking=suite.blocking)
        for suite in suites_of(step)
    ]

    @dg.multi_asset_check(name=f"{step}_checks", specs=specs, can_subset=True)
    def run(
        context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.AssetCheckResult]:
        root = workspace.root
        # Vectors belong to the pool as read; later outputs belong to the pool after comparing vectors.
        pool = "raw_pool" if step in _BEFORE_DISTINCT else "distinct_pool"
        snapshot = current_artifact(workspace, pool, PoolSnapshot)
        output = current_artifact(workspace, step, _OUTPUTS[step])
        vectors = pool_vectors(root, snapshot, output)[1] if isinstance(output, VectorSet) else None
        verdicts = check(step, Subject(output, root, workspace.settings, snapshot, vectors))
        publish(workspace.mirror, verdicts_file(step, output.key))
        for verdict in verdicts:
            if dg.AssetCheckKey(dg.AssetKey(step), verdict.name) in context.selected_asset_check_keys:
                yield _result(verdict)

    return run


def _result(verdict: Verdict) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=verdict.name,
        asset_key=verdict.step,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR if verdict.blocking else dg.AssetCheckSeverity.WARN,
        description=describe(verdict.failures) or None,
        metadata={
            "expectations": verdict.expectations,
            "output": verdict.key,
            "failures": dg.MetadataValue.table([dg.TableRecord(one.model_dump()) for one in verdict.failures])
            if verdict.failures
            else "none",
        },
    )
