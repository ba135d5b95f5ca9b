"""The assets `density` and `sample_novelty`."""

import dagster as dg
import numpy as np

from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.io_manager import reusable_artifact
from novelsum_dagster.defs.steps import OWNERS, column_schema, picture, recorded
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable, build_density, build_novelty
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.charts import novelty_histogram, png
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace


def novelty_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return both assets."""
    return [
        dg.asset(
            group_name="diversity",
            kinds={kind, "parquet"},
            owners=OWNERS,
            code_version=code_version(step.__name__),
            automation_condition=CARRY,
            **gpu_op(settings, on_engine=step is density),
        )(step)
        for step, kind in ((density, "faiss"), (sample_novelty, "numpy"))
    ]


def density(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    distinct_pool: PoolSnapshot,
    embeddings: VectorSet,
) -> dg.MaterializeResult[DensityTable]:
    """Density around each sample: mean squared distance to its K nearest neighbours.

    For a grown pool, new samples are compared with all others, and earlier samples only with the new ones.
    """
    searched: list[str] = []
    with recorded(context, workspace, {"distinct_pool": distinct_pool, "embeddings": embeddings}) as step:
        ids, vectors = pool_vectors(workspace.root, distinct_pool, embeddings)
        engine = engine_of(workspace.settings)
        with step.reporter.step("density") as progress:
            table = build_density(
                workspace.root,
                ids,
                vectors,
                embeddings.key,
                settings=workspace.settings.novelsum,
                among=distinct_pool.key if distinct_pool.read_as else None,
                earlier=reusable_artifact(workspace, "density", DensityTable),
                spread=engine.spread,
                device=engine.device(workspace.settings.device),
                say=searched.append,
                progress=progress,
            )
        context.log.info(f"distinct vectors searched: {searched[0]}")
        if table.neighbors_used < table.neighbors:
            context.log.warning(
                f"the pool has {table.reference_size:,} distinct vectors, too few for novelsum.neighbors ="
                f" {table.neighbors}; {table.neighbors_used} were used"
            )
        rows = table.table(workspace.root)
        return step.result(
            table,
            **{
                "dagster/row_count": len(rows),
                "dagster/column_schema": column_schema(rows.schema),
                "neighbors": table.neighbors,
                "neighbors_used": table.neighbors_used,
                "neighbor_policy": table.neighbor_policy,
                "index": table.index,
                "recall": table.recall,
                "reference_size": table.reference_size,
                "searched": searched[0],
                "mean_density_factor": float(np.mean(rows["density_factor"].to_numpy())),
                "path": dg.MetadataValue.path(str(workspace.root / table.file)),
            },
        )


def sample_novelty(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    distinct_pool: PoolSnapshot,
    embeddings: VectorSet,
    density: DensityTable,
) -> dg.MaterializeResult[NoveltyTable]:
    """Each sample's novelty within the pool; their mean is the pool's NovelSum."""
    inputs = {"distinct_pool": distinct_pool, "embeddings": embeddings, "density": density}
    with recorded(context, workspace, inputs) as step:
        _, vectors = pool_vectors(workspace.root, distinct_pool, embeddings)
        with step.reporter.step("novelty") as progress:
            table = build_novelty(
                workspace.root,
                density,
                vectors,
                settings=workspace.settings.novelsum,
                device=workspace.settings.device,
                progress=progress,
            )
        rows = table.table(workspace.root)
        novelty = rows["novelty"].to_numpy()
        return step.result(
            table,
            **{
                "dagster/row_count": len(rows),
                "dagster/column_schema": column_schema(rows.schema),
                "pool_novelsum": table.novelsum,
                "median_novelty": float(np.median(novelty)),
                "histogram": picture(png(novelty_histogram(novelty, novelty[:0])), "Histogram of novelty in the pool"),
                "path": dg.MetadataValue.path(str(workspace.root / table.file)),
            },
        )
