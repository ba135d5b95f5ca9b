"""The asset `embeddings`."""

from functools import partial

import dagster as dg
import pyarrow as pa

from novelsum_dagster.artifacts.outputs import publish
from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.steps import OWNERS, RETRY, column_schema, recorded
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.embedding.vectors_of_pool import Work, vectors_of_pool
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace


def embeddings_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset."""
    made = dg.asset(
        group_name="data",
        kinds={"torch", "parquet"},
        owners=OWNERS,
        code_version=code_version("embeddings"),
        retry_policy=RETRY,
        automation_condition=CARRY,
        **gpu_op(settings, on_engine=True),
    )
    return made(embeddings)


def embeddings(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace], raw_pool: PoolSnapshot
) -> dg.MaterializeResult[VectorSet]:
    """A vector for each sample, optionally transformed. Only new samples are embedded; each shard is committed."""
    with recorded(context, workspace, {"raw_pool": raw_pool}) as step:
        settings, mirror = workspace.settings, workspace.mirror
        pool = PoolAt(raw_pool, workspace.root, settings.base)
        with step.reporter.step("embedding") as progress:
            work = Work(
                progress,
                fetched=mirror.get_folder if mirror else lambda name: None,
                committed=partial(publish, mirror),
                device=settings.device,
                engine=engine_of(settings),
            )
            vectors = vectors_of_pool(pool, settings.embedding, workspace.root, work)
        schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), vectors.dimension))])
        return step.result(
            vectors,
            **{
                "dagster/row_count": vectors.samples,
                "dagster/column_schema": column_schema(schema),
                "embedded_now": vectors.embedded,
                "dimension": vectors.dimension,
                **({} if vectors.rank is None else {"rank": vectors.rank}),
                "model": vectors.model,
                "revision": vectors.revision,
                "device": vectors.device,
                "dtype": vectors.dtype,
                "cut_samples": vectors.cut_samples,
                "unread_fraction": vectors.unread_fraction,
                "path": dg.MetadataValue.path(str(workspace.root / vectors.folder)),
            },
        )
