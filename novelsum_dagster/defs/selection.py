"""The asset `selected_subset`."""

from dataclasses import replace

import dagster as dg
import pyarrow as pa

from novelsum_dagster.artifacts.outputs import fetch_output
from novelsum_dagster.artifacts.provenance import code_version
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.gpu import gpu_op
from novelsum_dagster.defs.io_manager import newest_artifact
from novelsum_dagster.defs.steps import OWNERS, column_schema, picture, recorded
from novelsum_dagster.diversity.tables import DensityTable
from novelsum_dagster.embedding.store import StoredVectors, VectorSet, pool_vectors
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.quality.suites import Subject
from novelsum_dagster.quality.validate import require_passed
from novelsum_dagster.report.charts import png, pool_map
from novelsum_dagster.report.tables import map_points
from novelsum_dagster.selection.chosen import PoolSelection, with_config
from novelsum_dagster.selection.extension import Earlier, earlier_subset, subset_to_extend
from novelsum_dagster.selection.subset import PICK_COLUMNS, Subset, rows_of
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace


def selection_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset; in the launchpad, the settings' values are the defaults."""

    class SelectionConfig(dg.Config):
        strategy: str = settings.selection.strategy
        k: int | None = settings.selection.k
        token_budget: int | None = settings.selection.token_budget
        quality: str | None = settings.selection.quality
        seed: int = settings.selection.seed
        density_side: str = settings.selection.density_side
        swap_rounds: int = settings.selection.swap_rounds
        density_power: float = settings.novelsum.density_power
        proximity_power: float = settings.novelsum.proximity_power

    @dg.asset(
        group_name="selection",
        kinds={"numba", "parquet"},
        owners=OWNERS,
        code_version=code_version("selected_subset"),
        automation_condition=CARRY,
        **gpu_op(settings, on_engine=True),
    )
    def selected_subset(
        context: dg.AssetExecutionContext,
        config: SelectionConfig,
        workspace: dg.ResourceParam[Workspace],
        raw_pool: PoolSnapshot,
        distinct_pool: PoolSnapshot,
        embeddings: VectorSet,
        density: DensityTable,
    ) -> dg.MaterializeResult[Subset]:
        """The picked samples in pick order, with the record of each pick and the original records."""
        root = workspace.root
        used = {
            "raw_pool": raw_pool,
            "distinct_pool": distinct_pool,
            "embeddings": embeddings,
            "density": density,
        }
        with recorded(context, workspace, used, config=config) as step:
            # Dagster blocks the steps after a failed check only within one run; this gate works across runs.
            require_passed("raw_pool", Subject(raw_pool, root, workspace.settings))
            embedded = StoredVectors.of_pool(root, raw_pool, embeddings)
            require_passed("embeddings", Subject(embeddings, root, workspace.settings, raw_pool, embedded))
            require_passed("distinct_pool", Subject(distinct_pool, root, workspace.settings))
            require_passed("density", Subject(density, root, workspace.settings, distinct_pool))
            ids, vectors = pool_vectors(root, distinct_pool, embeddings)
            chosen, options = with_config(settings, config.model_dump())
            earlier = _earlier(workspace, distinct_pool) if chosen.extend_by else None
            if earlier is not None:
                context.log.info(
                    f"extends {earlier.key}: {len(earlier.kept):,} samples kept, {len(earlier.gone):,} left the pool"
                )
            engine = engine_of(workspace.settings)
            with step.reporter.step("selecting") as progress:
                options = replace(
                    options,
                    device=engine.device(workspace.settings.device),
                    search_on=engine.search,
                    progress=progress,
                )
                asked = PoolSelection(root, distinct_pool, vectors, chosen, options, earlier, engine.spread)
                subset = asked.subset(embeddings.key, density)
            table = subset.picks(root)
            rows = rows_of(ids, table["id"])
            return step.result(
                subset,
                **{
                    "dagster/row_count": len(table),
                    "dagster/column_schema": column_schema(table.schema, **PICK_COLUMNS),
                    **({"extends": earlier.key, "kept": len(earlier.kept)} if earlier else {}),
                    "strategy": config.strategy,
                    **subset.reached(root),
                    "seed": config.seed,
                    "map": picture(png(pool_map(*map_points(vectors, rows))), "Map of the pool and the picked samples"),
                    "first_picks": dg.MetadataValue.table(_first_rows(table)),
                    "path": dg.MetadataValue.path(str(root / subset.folder)),
                },
            )

    return selected_subset


def _earlier(workspace: Workspace, pool: PoolSnapshot) -> Earlier | None:
    """Return the subset to extend; None if this is the first one."""
    key = subset_to_extend(pool, newest_artifact(workspace, "selected_subset", Subset))
    if key is None:
        return None
    fetch_output(workspace.mirror, "selected_subset", key)
    return earlier_subset(workspace.root, pool, key)


def _first_rows(table: pa.Table) -> list[dg.TableRecord]:
    columns = ["rank", "id", "source", "file", "position", "score", "margin", "nearest_distance", "density_factor"]
    return [dg.TableRecord(row) for row in table.select(columns).slice(0, 10).to_pylist()]
