"""The asset `lineage`: the last step, which records the run's outputs in the lineage database."""

import dagster as dg

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import run_file
from novelsum_dagster.artifacts.outputs import publish
from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.audit.record import Outputs, record_outputs
from novelsum_dagster.common.files import content_key
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.steps import OWNERS, recorded
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.lineage.store import FILE_NAME
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.workspace import Workspace


class LineageRecord(Artifact):
    """Record that a set of outputs is in the lineage database."""

    database: str


@dg.asset(
    group_name="selection",
    kinds={"duckdb"},
    owners=OWNERS,
    code_version=code_version("lineage"),
    automation_condition=CARRY,
)
def lineage(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    raw_pool: PoolSnapshot,
    embeddings: VectorSet,
    distinct_pool: PoolSnapshot,
    density: DensityTable,
    sample_novelty: NoveltyTable,
    selected_subset: Subset,
    novelsum_report: NovelSumReport,
) -> dg.MaterializeResult[LineageRecord]:
    """Origins of samples, their measures, and the picks: tables and views in DuckDB."""
    outputs = Outputs(raw_pool, embeddings, distinct_pool, density, sample_novelty, selected_subset, novelsum_report)
    with recorded(context, workspace, outputs._asdict()) as step:
        store = workspace.lineage
        record_outputs(store, context.run.run_id, outputs)
        publish(workspace.mirror, run_file(context.run.run_id), *(store.export() if workspace.mirror else ()))
        with store.reading() as connection:
            # Per-sample rows are behind views; counting them would read all files.
            found = connection.execute(
                "SELECT table_name, estimated_size FROM duckdb_tables() ORDER BY table_name"
            ).fetchall()
        rows = [dg.TableRecord({"table": name, "rows": size}) for name, size in found]
        return step.result(
            LineageRecord(key=content_key(outputs.keys_of_run()), database=FILE_NAME),
            tables=dg.MetadataValue.table(rows),
            path=dg.MetadataValue.path(str(store.path)),
        )
