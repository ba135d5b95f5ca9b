"""The asset `raw_pool`."""

import dagster as dg

from novelsum_dagster.defs.steps import OWNERS, column_schema, recorded
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.lineage.provenance import code_version
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import SAMPLES, PoolSnapshot
from novelsum_dagster.selection.chosen import require_possible
from novelsum_dagster.workspace import Workspace


@dg.asset(group_name="data", kinds={"parquet"}, owners=OWNERS, code_version=code_version("raw_pool"))
def raw_pool(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[PoolSnapshot]:
    """Every source read into one snapshot: distinct samples, duplicates with their partners, rejects with reasons."""
    settings = workspace.settings
    with recorded(context, workspace, {}) as step:
        with step.reporter.step("reading") as progress:
            snapshot = build_snapshot(
                settings.pool,
                settings.base,
                workspace.root,
                token_counter(settings.embedding),
                progress,
                s3=settings.s3,
            )
        require_possible(snapshot, workspace.root, settings.selection)
        files = [
            dg.TableRecord(file.model_dump(include={"source", "file", "form", "read", "kept", "duplicates", "rejects"}))
            for file in snapshot.files
        ]
        return step.result(
            snapshot,
            **{
                "dagster/row_count": snapshot.kept,
                "dagster/column_schema": column_schema(SAMPLES, id="content hash of roles and texts"),
                "records_read": snapshot.read,
                "duplicates": snapshot.duplicates,
                "rejects": snapshot.rejects,
                "near_duplicates": snapshot.near_duplicates,
                "files": dg.MetadataValue.table(files) if files else "none",
                "path": dg.MetadataValue.path(str(workspace.root / snapshot.folder)),
            },
        )
