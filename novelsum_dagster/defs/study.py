"""The assets of the correlation study: its pool, and for every set (a partition) the set, its measures, its proxy."""

from typing import Any

import dagster as dg

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.steps import OWNERS, picture, recorded
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Settings
from novelsum_dagster.study.correlate import StudyCorrelation
from novelsum_dagster.study.correlation import ALL_SETS, records
from novelsum_dagster.study.pool import StudyData, StudyPool, build_study_pool
from novelsum_dagster.study.run import correlated
from novelsum_dagster.study.sets import (
    StudyMeasures,
    StudyPerformance,
    StudySet,
    build_set,
    measure_set,
    performance_of,
    recipes,
    study_evaluator,
    train_on_set,
)
from novelsum_dagster.study.views import build_view, views_of
from novelsum_dagster.workspace import Workspace

GROUP = "study"


@dg.asset(group_name=GROUP, kinds={"faiss", "parquet"}, owners=OWNERS, code_version=code_version("study_pool"))
def study_pool(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    distinct_pool: PoolSnapshot,
    embeddings: VectorSet,
) -> dg.MaterializeResult[StudyPool]:
    """The pool from which the study's sets are selected, without the samples held out for evaluation."""
    settings = workspace.settings
    used = {"distinct_pool": distinct_pool, "embeddings": embeddings}
    with recorded(context, workspace, used) as step, step.reporter.step("study pool") as progress:
        pool = build_study_pool(workspace.root, distinct_pool, embeddings, settings.novelsum, settings.study, progress)
        return step.result(pool, samples=pool.samples, held_out=pool.held_out, neighbors=list(pool.neighbors))


def study_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the study's assets; each partition is a set named in the settings."""
    planned = recipes(settings.study)
    partitions = dg.StaticPartitionsDefinition(list(planned))

    @dg.asset(
        group_name=GROUP,
        kinds={"parquet"},
        owners=OWNERS,
        code_version=code_version("study_set"),
        partitions_def=partitions,
    )
    def study_set(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        distinct_pool: PoolSnapshot,
        embeddings: VectorSet,
        study_pool: StudyPool,
    ) -> dg.MaterializeResult[StudySet]:
        """One set of the study, selected by its strategy."""
        data = StudyData(workspace.root, distinct_pool, embeddings, study_pool)
        recipe = planned[context.partition_key]
        with (
            recorded(context, workspace, _inputs(data)) as step,
            step.reporter.step(f"choosing {recipe.name}") as progress,
        ):
            by = next((one for one in settings.study.representations if one.name == recipe.representation), None)
            view = None if by is None else build_view(data, by, settings, step.reporter)
            chosen = build_set(data, recipe, settings.novelsum, progress, view)
            return step.result(chosen, **recipe.described)

    @dg.asset(
        group_name=GROUP,
        kinds={"torch"},
        owners=OWNERS,
        code_version=code_version("study_measures"),
        partitions_def=partitions,
        **gpu_op(settings),
    )
    def study_measures(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        distinct_pool: PoolSnapshot,
        embeddings: VectorSet,
        study_pool: StudyPool,
        study_set: StudySet,
    ) -> dg.MaterializeResult[StudyMeasures]:
        """All measures of one set: NovelSum at every K, beta and alpha; vector measures for each representation."""
        data = StudyData(workspace.root, distinct_pool, embeddings, study_pool)
        with recorded(context, workspace, _inputs(data, study_set)) as step:
            evaluator = study_evaluator(data, settings)
            found = measure_set(data, study_set, settings, evaluator, step.reporter)
            for view in views_of(data, settings, step.reporter).values():
                # These measures stay in the storage folder, for the tables.
                measure_set(data, study_set, settings, study_evaluator(data, settings, view), step.reporter, view)
            return step.result(found, **{name: one.value for name, one in found.values.items()})

    @dg.asset(
        group_name=GROUP,
        kinds={"torch"},
        owners=OWNERS,
        code_version=code_version("study_performance"),
        partitions_def=partitions,
        **gpu_op(settings),
    )
    def study_performance(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        distinct_pool: PoolSnapshot,
        embeddings: VectorSet,
        study_pool: StudyPool,
        study_set: StudySet,
    ) -> dg.MaterializeResult[StudyPerformance]:
        """The proxy for performance: bits per byte on held-out text, of small models trained on one set."""
        data = StudyData(workspace.root, distinct_pool, embeddings, study_pool)
        with recorded(context, workspace, _inputs(data, study_set)) as step, step.reporter.step("training") as progress:
            study, trained = settings.study, {}
            for seed in study.seeds_of_training:
                trained[seed] = train_on_set(data, study_set, study.training, seed, progress, settings.device)
            performance = performance_of(trained)
            return step.result(performance, **performance.losses)

    of_sets: dict[str, Any] = {"study_measures": dict[str, StudyMeasures]}
    trained: list[dg.AssetsDefinition] = []
    if settings.study.performance is None:
        of_sets["study_performance"] = dict[str, StudyPerformance]
        trained = [study_performance]

    @dg.asset(
        group_name=GROUP,
        kinds={"altair", "parquet"},
        owners=OWNERS,
        code_version=code_version("study_correlation"),
        ins={name: dg.AssetIn(dagster_type=kind) for name, kind in of_sets.items()},
        description=(
            "Correlation of each measure with the performance "
            + ("of models trained on the sets." if trained else "figures named in the settings.")
        ),
    )
    def study_correlation(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace], **found: dict[str, Any]
    ) -> dg.MaterializeResult[StudyCorrelation]:
        used = {f"{asset}[{name}]": one for asset, by_set in found.items() for name, one in by_set.items()}
        with recorded(context, workspace, used) as step:
            # In the order of the settings, independent of the order in which partitions were loaded.
            measured, performance = (
                {name: by_set[name] for name in planned if name in by_set}
                for by_set in (found["study_measures"], found.get("study_performance", {}))
            )
            kept, outcome = correlated(workspace.root, measured, performance, settings)
            folder = workspace.root / kept.folder
            overall = [row for row in records(outcome.correlations) if row["group"] == ALL_SETS]
            return step.result(
                kept,
                sets=kept.sets,
                performance=kept.performance,
                correlations=dg.MetadataValue.table([dg.TableRecord(row) for row in overall]),
                novelsum=picture((folder / "scatter.png").read_bytes(), "NovelSum against performance"),
                measures=picture((folder / "measures.png").read_bytes(), "Every measure against performance"),
                path=dg.MetadataValue.path(str(folder)),
            )

    return [study_pool, study_set, study_measures, *trained, study_correlation]


def _inputs(data: StudyData, study_set: StudySet | None = None) -> dict[str, Artifact]:
    used: dict[str, Artifact] = {"distinct_pool": data.snapshot, "embeddings": data.vector_set, "study_pool": data.pool}
    return {**used, f"study_set[{study_set.recipe.name}]": study_set} if study_set else used
