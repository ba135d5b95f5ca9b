"""The asset `novelsum_report`."""

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.steps import OWNERS, Step, picture, recorded
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.lineage.provenance import code_version
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import REPORT_COLUMNS, NovelSumReport, build_report
from novelsum_dagster.selection.chosen import choose_from_pool
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.selection.subset import Subset, rows_of
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace

_PICTURES = {
    "novelty": "Histogram of novelty, pool and subset",
    "map": "Map of the pool and the chosen samples",
    "coverage": "Share of each source in the pool and in the subset",
    "lengths": "Tokens, turns and characters, pool and subset",
}


def report_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset."""
    made = dg.asset(
        group_name="diversity",
        kinds={"altair", "parquet"},
        owners=OWNERS,
        code_version=code_version("novelsum_report"),
        automation_condition=CARRY,
        **gpu_op(settings),
    )
    return made(novelsum_report)


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
        selected = rows_of(ids, selected_subset.picks(root, ["id"])["id"])
        report = build_report(
            root,
            raw_pool.samples(root, REPORT_COLUMNS),
            vectors,
            density.table(root)["density_factor"].to_numpy(),
            sample_novelty.table(root)["novelty"].to_numpy(),
            selected,
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
            fresh=_fresh(workspace, step, raw_pool, vectors, density, selected_subset),
        )
        folder = root / report.folder
        given_up = {} if report.given_up is None else {"novelsum_given_up": report.given_up}
        return step.result(
            report,
            **given_up,
            **{f"{row.measure}_{row.set_name.replace(' ', '_')}": row.value for row in report.sets},
            measures=dg.MetadataValue.table([dg.TableRecord(row.model_dump()) for row in report.sets]),
            **{name: picture((folder / f"{name}.png").read_bytes(), text) for name, text in _PICTURES.items()},
            page=dg.MetadataValue.url((folder / "report.html").as_uri()),
            path=dg.MetadataValue.path(str(folder)),
        )


def _fresh(
    workspace: Workspace,
    step: Step,
    pool: PoolSnapshot,
    vectors: NDArray[np.float32],
    density: DensityTable,
    subset: Subset,
) -> NDArray[np.int64] | None:
    """Return the rows of a fresh selection of the subset's size, where the subset extends an earlier one."""
    then = subset.settings
    if EXTENDS not in then.options:
        return None
    selection = workspace.settings.selection.model_copy(update={"k": then.k, "seed": then.seed, "extend_by": None})
    with step.reporter.step("selecting anew") as progress:
        picks = choose_from_pool(
            pool,
            workspace.root,
            vectors,
            density.factor(workspace.root, then.density_power),
            selection,
            proximity_power=then.proximity_power,
            device=workspace.settings.device,
            progress=progress,
        )
    return picks.indices
