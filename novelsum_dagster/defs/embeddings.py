"""The asset `embeddings`."""

from functools import partial

import dagster as dg
import pyarrow as pa

from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.steps import OWNERS, RETRY, column_schema, recorded
from novelsum_dagster.embedding.encoder import identify
from novelsum_dagster.embedding.store import VectorSet, embed
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.lineage.provenance import code_version
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Settings
from novelsum_dagster.storage.outputs import publish
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
    """A vector for each sample. Only samples without one are embedded; each shard is committed as it is done."""
    with recorded(context, workspace, {"raw_pool": raw_pool}) as step:
        samples = raw_pool.samples(workspace.root, ["id", "text"])
        ids, texts = samples["id"].to_pylist(), samples["text"].to_pylist()
        settings, mirror = workspace.settings.embedding, workspace.mirror
        engine = engine_of(workspace.settings)
        if mirror is not None:
            mirror.get_folder(f"vectors/{identify(settings).key}")
        with step.reporter.step("embedding") as progress:
            vectors = embed(
                workspace.root,
                settings,
                ids,
                texts,
                raw_pool.key,
                progress,
                committed=partial(publish, mirror),
                device=engine.device(workspace.settings.device),
                encoder_of=engine.encoder,
            )
        schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), vectors.dimension))])
        return step.result(
            vectors,
            **{
                "dagster/row_count": vectors.samples,
                "dagster/column_schema": column_schema(schema),
                "embedded_now": vectors.embedded,
                "dimension": vectors.dimension,
                "model": vectors.model,
                "revision": vectors.revision,
                "device": vectors.device,
                "dtype": vectors.dtype,
                "path": dg.MetadataValue.path(str(workspace.root / vectors.folder)),
            },
        )
