"""The asset `raw_pool`."""

import dagster as dg

from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.defs.steps import OWNERS, column_schema, recorded
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import SAMPLES, PoolSnapshot
from novelsum_dagster.selection.chosen import require_possible
from novelsum_dagster.workspace import Workspace

_SHOWN = {"source", "file", "form", "read", "kept", "duplicates", "rejects", "unread"}


@dg.asset(group_name="data", kinds={"parquet"}, owners=OWNERS, code_version=code_version("raw_pool"))
def raw_pool(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[PoolSnapshot]:
    """All sources as one snapshot: distinct samples, duplicates with their partners, rejects with reasons."""
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
                text=settings.embedding.text_rule,
                quality=settings.selection.quality,
            )
        require_possible(snapshot, workspace.root, settings.selection)
        files = [
            dg.TableRecord(
                {
                    **file.model_dump(include=_SHOWN),
                    "read_as_content": ", ".join(file.content_columns),
                    "not_read": ", ".join(file.other_columns),
                    "folded_differ_in": ", ".join(f"{one.column} ({one.records:,})" for one in file.folded),
                }
            )
            for file in snapshot.files
        ]
        return step.result(
            snapshot,
            **{
                "dagster/row_count": snapshot.kept,
                "dagster/column_schema": column_schema(SAMPLES, id="hash of the training content"),
                "records_read": snapshot.read,
                "duplicates": snapshot.duplicates,
                "rejects": snapshot.rejects,
                "unread": snapshot.unread,
                "near_duplicates": snapshot.near_duplicates,
                "samples_with_media": sum(file.with_media for file in snapshot.files),
                "samples_without_last_answer": sum(file.open_ended for file in snapshot.files),
                "files": dg.MetadataValue.table(files) if files else "none",
                "path": dg.MetadataValue.path(str(workspace.root / snapshot.folder)),
            },
        )
