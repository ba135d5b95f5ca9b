"""The asset `novelsum_report`."""

import dagster as dg
import numpy as np
import pyarrow as pa

from novelsum_dagster.defs.steps import OWNERS, picture, recorded
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport, build_report
from novelsum_dagster.report.plots import novelty_histogram
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.workspace import Workspace


@dg.asset(group_name="diversity", kinds={"matplotlib", "parquet"}, owners=OWNERS, code_version="1")
def novelsum_report(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    raw_pool: PoolSnapshot,
    embeddings: VectorSet,
    density: DensityTable,
    sample_novelty: NoveltyTable,
    selected_subset: Subset,
) -> dg.MaterializeResult[NovelSumReport]:
    """NovelSum of pool samples, a random subset and the selected one, at equal size, density from the pool."""
    root = workspace.root
    with recorded(context, workspace) as step:
        ids, vectors = pool_vectors(root, raw_pool, embeddings)
        picked = selected_subset.picks(root, ["id"])["id"]
        selected = np.asarray(pa.compute.index_in(picked, value_set=pa.array(ids, pa.string())), dtype=np.int64)
        with step.reporter.step("measuring") as progress:
            report = build_report(
                root,
                vectors,
                density.table(root)["density_factor"].to_numpy(),
                selected,
                inputs={"density": density.key, "selection": selected_subset.key},
                proximity_power=workspace.settings.novelsum.proximity_power,
                seed=selected_subset.settings.seed,
                progress=progress,
            )
        novelty = sample_novelty.table(root)["novelty"].to_numpy()
        values = {f"novelsum_{row.set_name.replace(' ', '_')}": row.novelsum for row in report.sets}
        return step.result(
            report,
            **values,
            sets=dg.MetadataValue.table([dg.TableRecord(row.model_dump()) for row in report.sets]),
            histogram=picture(novelty_histogram(novelty, novelty[selected]), "Histogram of novelty, pool and subset"),
            path=dg.MetadataValue.path(str(root / report.folder)),
        )
