"""Rows that a finished run writes into the lineage.

Belongs here: turning the pipeline's outputs into rows. Does not: the database (`store`).
"""

import json
from typing import Any, NamedTuple

from novelsum_dagster.artifacts.provenance import Provenance, read_record
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset


class Outputs(NamedTuple):
    """Outputs of a run, by asset."""

    raw_pool: PoolSnapshot
    embeddings: VectorSet
    distinct_pool: PoolSnapshot
    density: DensityTable
    sample_novelty: NoveltyTable
    selected_subset: Subset
    novelsum_report: NovelSumReport

    def keys_of_run(self) -> list[str]:
        """Return the keys stored in `run_outputs`."""
        return [
            self.distinct_pool.key,
            self.embeddings.key,
            *(output.key for output in (self.density, self.sample_novelty, self.selected_subset, self.novelsum_report)),
        ]


_OF_POOL = ("folder", "read", "kept", "duplicates", "rejects", "near_duplicates", "near_duplicates_dropped")
_OF_FILE = {"source", "file", "format", "form", "sha256", "complete", "read", "kept", "duplicates", "rejects"}
_OF_VECTORS = {"folder", "model", "revision", "max_tokens", "dtype", "dimension", "samples"}
"""Columns that the database has of a file and of a pool's vectors; the rest is only in the artifacts."""


def record_outputs(store: LineageStore, run_id: str, outputs: Outputs) -> None:
    """Write all outputs of a run in one transaction; rows written by an earlier run are left unchanged."""
    read, vectors, snapshot, density, novelty, subset, report = outputs
    # The two are the same if no vectors were compared.
    pools = {pool.key: pool for pool in (read, snapshot)}.values()
    keys = {"vectors": vectors.key, "density": density.key, "novelty": novelty.key}
    store.keep_run(
        run_id,
        {
            "snapshots": [{"snapshot": pool.key, **{name: getattr(pool, name) for name in _OF_POOL}} for pool in pools],
            "source_files": [
                {"snapshot": pool.key, **file.model_dump(include=_OF_FILE)} for pool in pools for file in pool.files
            ],
            "embeddings": [
                {
                    "vectors": vectors.key,
                    "snapshot": vectors.ids_from,
                    **vectors.model_dump(include=_OF_VECTORS),
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
                {
                    "run_id": run_id,
                    "snapshot": snapshot.key,
                    **keys,
                    "selection": subset.key,
                    "report": report.key,
                    "embedded": vectors.embedded,
                }
            ],
            "provenance": [
                _provenance(run_id, read_record(store.root, asset, output.key))
                for asset, output in outputs._asdict().items()
            ],
        },
    )


def _provenance(run_id: str, made: Provenance) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "asset": made.asset,
        "output": made.output,
        "bytes": sum(file.bytes for file in made.files.values()),
        "record": made.model_dump_json(),
    }
