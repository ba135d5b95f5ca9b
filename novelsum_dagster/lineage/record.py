"""What a finished run writes into the lineage.

Belongs here: turning the pipeline's outputs into rows. Does not: the database (`store`).
"""

import json

from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset


def record_outputs(
    store: LineageStore,
    run_id: str,
    snapshot: PoolSnapshot,
    vectors: VectorSet,
    density: DensityTable,
    novelty: NoveltyTable,
    subset: Subset,
    report: NovelSumReport,
) -> None:
    """Write all outputs of a run in one transaction; what an earlier run wrote already is left as it is."""
    counts = {name: getattr(snapshot, name) for name in ("read", "kept", "duplicates", "rejects", "near_duplicates")}
    keys = {"vectors": vectors.key, "density": density.key, "novelty": novelty.key}
    store.keep_run(
        run_id,
        {
            "snapshots": [
                {
                    "snapshot": snapshot.key,
                    "folder": snapshot.folder,
                    **counts,
                    "near_duplicates_dropped": snapshot.near_duplicates_dropped,
                }
            ],
            "source_files": [
                {"snapshot": snapshot.key, **file.model_dump(exclude={"arrow_schema"})} for file in snapshot.files
            ],
            "embeddings": [
                {
                    "vectors": vectors.key,
                    "snapshot": vectors.ids_from,
                    **vectors.model_dump(exclude={"key", "ids_from", "device", "embedded"}),
                }
            ],
            "densities": [{"density": density.key, **density.model_dump(exclude={"key"})}],
            "novelties": [{"novelty": novelty.key, **novelty.model_dump(exclude={"key", "density_power"})}],
            "selections": [
                {
                    "selection": subset.key,
                    "folder": subset.folder,
                    **subset.settings.model_dump(exclude={"key", "options"}),
                    "options": json.dumps(subset.settings.options, sort_keys=True),
                }
            ],
            "set_measures": [
                {"report": report.key, "selection": subset.key, **row.model_dump()} for row in report.sets
            ],
            "run_outputs": [
                {"run_id": run_id, "snapshot": snapshot.key, **keys, "selection": subset.key, "report": report.key}
            ],
        },
    )
