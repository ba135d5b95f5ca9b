"""The asset `novelsum_report`."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.steps import OWNERS, Step, picture, recorded
from novelsum_dagster.diversity.distinct import similarities
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.explanation import Explanation
from novelsum_dagster.report.novelsum_report import REPORT_COLUMNS, NovelSumReport, build_report
from novelsum_dagster.selection.chosen import PoolSelection
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.subset import Subset, rows_of
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace

_PICTURES = {
    "novelty": "Histogram of novelty, pool and subset",
    "map": "Map of the pool and the picked samples",
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
    distinct_pool: PoolSnapshot,
    embeddings: VectorSet,
    density: DensityTable,
    sample_novelty: NoveltyTable,
    selected_subset: Subset,
) -> dg.MaterializeResult[NovelSumReport]:
    """NovelSum and the other measures of the selected subset and a random one, with an HTML page."""
    root = workspace.root
    used = {
        "distinct_pool": distinct_pool,
        "embeddings": embeddings,
        "density": density,
        "sample_novelty": sample_novelty,
        "selected_subset": selected_subset,
    }
    with recorded(context, workspace, used) as step:
        ids, vectors = pool_vectors(root, distinct_pool, embeddings)
        picked = selected_subset.picks(root, ["id"])["id"]
        selected = rows_of(ids, picked)
        report = build_report(
            root,
            distinct_pool.samples(root, REPORT_COLUMNS),
            vectors,
            density.table(root)["density_factor"].to_numpy(),
            sample_novelty.table(root)["novelty"].to_numpy(),
            selected,
            _to_picks(root, selected_subset),
            inputs={
                "snapshot": distinct_pool.key,
                "vectors": embeddings.key,
                "density": density.key,
                "novelty": sample_novelty.key,
                "selection": selected_subset.key,
            },
            near_duplicates=_near_duplicates(root, distinct_pool, picked),
            settings=_made_with(workspace.settings, selected_subset),
            seed=selected_subset.settings.seed,
            reporter=step.reporter,
            nearest=similarities(distinct_pool, root),
            fresh=_fresh(workspace, step, distinct_pool, vectors, density, selected_subset),
        )
        folder = root / report.folder
        given_up = {} if report.given_up is None else {"novelsum_given_up": report.given_up}
        return step.result(
            report,
            **given_up,
            **{f"{row.measure}_{row.set_name.replace(' ', '_')}": row.value for row in report.sets},
            measures=dg.MetadataValue.table([dg.TableRecord(row.model_dump()) for row in report.sets]),
            compared=dg.MetadataValue.table([dg.TableRecord(row.record()) for row in report.compared]),
            **_explained(report.explanation),
            **{name: picture((folder / f"{name}.png").read_bytes(), text) for name, text in _PICTURES.items()},
            page=dg.MetadataValue.url((folder / "report.html").as_uri()),
            path=dg.MetadataValue.path(str(folder)),
        )


def _explained(explanation: Explanation | None) -> dict[str, Any]:
    """Return metadata on why measures differ and what may help; empty for a report of an earlier version."""
    if explanation is None:
        return {}
    wanted = explanation.recommendation
    return {
        "explanation": " ".join(explanation.sentences),
        "recommendation": wanted.words if wanted else "none",
        "facts": dg.MetadataValue.json(explanation.facts.model_dump()),
    }


def _made_with(settings: Settings, subset: Subset) -> Settings:
    """Return the settings with the strategy that selected the subset: the launchpad may have named another one."""
    selection = settings.selection.model_copy(update={"strategy": subset.settings.strategy})
    return settings.model_copy(update={"selection": selection})


def _near_duplicates(root: Path, pool: PoolSnapshot, picked: pa.ChunkedArray) -> int:
    """Return how many picks are near-duplicates of another sample of the pool."""
    flagged = set(pool.table(root, "near_duplicates", ["id"])["id"].to_pylist())
    return sum(id_ in flagged for id_ in picked.to_pylist())


def _to_picks(root: Path, subset: Subset) -> NDArray[np.float64]:
    """Return the cosine distance of each sample of the pool to the nearest pick: float64, (n,), in pool order.

    Raises:
        InputError: if the file is missing or damaged.
    """
    path = root / subset.folder / "covering.parquet"
    try:
        found: NDArray[np.float64] = pq.read_table(path, columns=["distance_1"], partitioning=None)[
            "distance_1"
        ].to_numpy()
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: missing or damaged ({error}); delete {path.parent}, and materialise selected_subset again"
        ) from None
    return found


def _fresh(
    workspace: Workspace,
    step: Step,
    pool: PoolSnapshot,
    vectors: NDArray[np.float32],
    density: DensityTable,
    subset: Subset,
) -> NDArray[np.int64] | None:
    """Return the rows of a fresh selection of the subset's size, if the subset extends an earlier one."""
    then = subset.settings
    if EXTENDS not in then.options:
        return None
    selection = workspace.settings.selection.model_copy(update={"k": then.k, "seed": then.seed, "extend_by": None})
    with step.reporter.step("fresh selection") as progress:
        options = NovelSelectOptions(
            scoring=Scoring.recorded(then.options, then.proximity_power),
            device=workspace.settings.device,
            progress=progress,
        )
        fresh = PoolSelection(workspace.root, pool, vectors, selection, options)
        return fresh.picks(density.factor(workspace.root, then.density_power)).indices
