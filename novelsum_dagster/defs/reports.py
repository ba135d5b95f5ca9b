"""The asset `novelsum_report`."""

import dagster as dg

from novelsum_dagster.defs.steps import OWNERS, picture, recorded
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.lineage.provenance import code_version
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import REPORT_COLUMNS, NovelSumReport, build_report
from novelsum_dagster.selection.subset import Subset, rows_of
from novelsum_dagster.workspace import Workspace

_PICTURES = {
    "novelty": "Histogram of novelty, pool and subset",
    "map": "Map of the pool and the chosen samples",
    "coverage": "Share of each source in the pool and in the subset",
    "lengths": "Tokens, turns and characters, pool and subset",
}


@dg.asset(
    group_name="diversity", kinds={"altair", "parquet"}, owners=OWNERS, code_version=code_version("novelsum_report")
)
def novelsum_report(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    raw_pool: PoolSnapshot,
    embeddings: VectorSet,
    density: DensityTable,
    sample_novelty: NoveltyTable,
    selected_subset: Subset,
) -> dg.MaterializeResult[NovelSumReport]:
    """NovelSum and the eleven other measures of the selected subset beside a random one; a page to look at."""
    root = workspace.root
    used = {
        "raw_pool": raw_pool,
        "embeddings": embeddings,
        "density": density,
        "sample_novelty": sample_novelty,
        "selected_subset": selected_subset,
    }
    with recorded(context, workspace, used) as step:
        ids, vectors = pool_vectors(root, raw_pool, embeddings)
        picked = selected_subset.picks(root, ["id"])["id"]
        report = build_report(
            root,
            raw_pool.samples(root, REPORT_COLUMNS),
            vectors,
            density.table(root)["density_factor"].to_numpy(),
            sample_novelty.table(root)["novelty"].to_numpy(),
            rows_of(ids, picked),
            inputs={
                "snapshot": raw_pool.key,
                "vectors": embeddings.key,
                "density": density.key,
                "novelty": sample_novelty.key,
                "selection": selected_subset.key,
            },
            settings=workspace.settings,
            seed=selected_subset.settings.seed,
            reporter=step.reporter,
        )
        folder = root / report.folder
        return step.result(
            report,
            **{f"{row.measure}_{row.set_name.replace(' ', '_')}": row.value for row in report.sets},
            measures=dg.MetadataValue.table([dg.TableRecord(row.model_dump()) for row in report.sets]),
            **{name: picture((folder / f"{name}.png").read_bytes(), text) for name, text in _PICTURES.items()},
            page=dg.MetadataValue.url((folder / "report.html").as_uri()),
            path=dg.MetadataValue.path(str(folder)),
        )
