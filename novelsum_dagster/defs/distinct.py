"""The asset `distinct_pool`: the pool that all later steps work on."""

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import NO_GPU, gpu_op
from novelsum_dagster.defs.io_manager import reusable_artifact
from novelsum_dagster.defs.steps import OWNERS, column_schema, picture, recorded
from novelsum_dagster.diversity.distinct import distinct_pool as find_distinct
from novelsum_dagster.diversity.distinct import similarities
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.pool.snapshot import SAMPLES, PoolSnapshot
from novelsum_dagster.report.charts import png, similarity_histogram
from novelsum_dagster.selection.chosen import require_possible
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace


def distinct_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset; it uses the settings' device if vectors are compared."""
    made = dg.asset(
        group_name="data",
        kinds={"numpy", "parquet"},
        owners=OWNERS,
        code_version=code_version("distinct_pool"),
        automation_condition=CARRY,
        **(gpu_op(settings, on_engine=True) if settings.pool.near_duplicates.by_vectors else NO_GPU),
    )
    return made(distinct_pool)


def distinct_pool(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    raw_pool: PoolSnapshot,
    embeddings: VectorSet,
) -> dg.MaterializeResult[PoolSnapshot]:
    """The pool with its near-duplicates by text and by vectors, flagged or dropped according to the settings.

    If vectors are not compared, it is the pool as read. For a grown pool, only new samples are compared with all
    others.
    """
    root, settings = workspace.root, workspace.settings
    rule = settings.pool.near_duplicates
    compared: list[str] = []
    with recorded(context, workspace, {"raw_pool": raw_pool, "embeddings": embeddings}) as step:
        pool = raw_pool
        if rule.by_vectors:
            engine = engine_of(settings)
            with step.reporter.step("near-duplicates") as progress:
                pool = find_distinct(
                    root,
                    raw_pool,
                    pool_vectors(root, raw_pool, embeddings)[1],
                    embeddings.key,
                    rule,
                    settings.selection.quality,
                    earlier=reusable_artifact(workspace, "distinct_pool", PoolSnapshot),
                    device=engine.device(settings.device),
                    spread=engine.spread,
                    say=compared.append,
                    progress=progress,
                )
            context.log.info(f"vectors compared: {compared[0]}")
            require_possible(pool, root, settings.selection)
        nearest = similarities(pool, root)
        shown = {} if nearest is None else {"compared": compared[0], "similarities": _drawn(nearest, rule.similarity)}
        return step.result(
            pool,
            **shown,
            **{
                "dagster/row_count": pool.kept,
                "dagster/column_schema": column_schema(SAMPLES, id="hash of the training content"),
                "near_duplicates_by_text": raw_pool.near_duplicates,
                "near_duplicates_by_vectors": pool.near_duplicates - raw_pool.near_duplicates,
                "near_duplicates_dropped": pool.near_duplicates_dropped,
                "path": dg.MetadataValue.path(str(root / pool.folder)),
            },
        )


def _drawn(nearest: NDArray[np.float64], similarity: float) -> dg.MarkdownMetadataValue:
    return picture(png(similarity_histogram(nearest, similarity)), "Histogram of cosines to the nearest sample")
