"""Density and novelty of a pool as tables on disk.

Belongs here: the two steps between embeddings and everything that is measured or selected. Does not: the maths
(`density`, `novelsum`).
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.diversity.density import density, density_factor
from novelsum_dagster.diversity.novelsum import Aggregate, DensitySide, Powers, SelfDistance, novelsum_with_densities
from novelsum_dagster.files import KEY_LENGTH, content_key, write_table
from novelsum_dagster.pool.snapshot import Handle
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.settings import NovelSum


class DensityTable(Handle):
    """One row a sample: id, mean_squared_distance, density_factor (both float64).

    `neighbors` is K as asked for; `neighbors_used`, `index` and `recall` as in `Density`.
    """

    file: str
    vectors: str
    neighbors: int
    density_power: float
    reference_size: int
    neighbor_policy: str
    neighbors_used: int
    index: str
    recall: float

    def table(self, root: Path) -> pa.Table:
        """Read the table, in pool order."""
        return pq.read_table(root / self.file, partitioning=None)

    def factor(self, root: Path, density_power: float) -> NDArray[np.float64]:
        """Return the density factors at a power, float64, (n,), in pool order."""
        return density_factor(self.table(root)["mean_squared_distance"].to_numpy(), density_power)


class NoveltyTable(Handle):
    """One row a sample: id, novelty (float64). `novelsum` is their mean, or their sum: NovelSum of the whole pool."""

    file: str
    density: str
    density_power: float
    proximity_power: float
    self_distance: SelfDistance
    density_side: DensitySide
    aggregate: Aggregate
    novelsum: float

    def table(self, root: Path) -> pa.Table:
        """Read the table, in pool order."""
        return pq.read_table(root / self.file, partitioning=None)


def build_density(
    root: Path,
    ids: list[str],
    vectors: NDArray[np.float32],
    vectors_key: str,
    *,
    settings: NovelSum,
    progress: Progress = no_progress,
) -> DensityTable:
    """Search each sample's neighbours in the pool and write the density table.

    Args:
        root: the storage folder.
        ids: sample ids in pool order, (n,).
        vectors: float32, (n, d), in the same order.
        vectors_key: key of the vector set.
        settings: K, beta and how neighbours are searched.
        progress: called with samples searched and n.

    Raises:
        ValueError: as `density` does.
    """
    found = density(
        vectors,
        neighbors=settings.neighbors,
        neighbor_policy=settings.neighbor_policy,
        index=settings.density_index,
        min_recall=settings.min_recall,
        progress=progress,
    )
    columns = {
        "id": pa.array(ids, pa.string()),
        "mean_squared_distance": found.mean_squared_distance,
        "density_factor": found.factor(settings.density_power),
    }
    described = {
        "vectors": vectors_key,
        "neighbors": settings.neighbors,
        "density_power": settings.density_power,
        "neighbor_policy": settings.neighbor_policy,
    }
    searched = {"index": settings.density_index, "min_recall": settings.min_recall}
    key = _write(root, "density", columns, {**described, **searched})
    return DensityTable(
        key=key,
        file=_file("density", key),
        reference_size=found.reference_size,
        neighbors_used=found.neighbors_used,
        index=found.index,
        recall=found.recall,
        **described,
    )


def build_novelty(
    root: Path,
    density_table: DensityTable,
    vectors: NDArray[np.float32],
    *,
    settings: NovelSum,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> NoveltyTable:
    """Compute every sample's novelty within the pool and write the novelty table.

    Args:
        root: the storage folder.
        density_table: of the same pool.
        vectors: float32, (n, d), in pool order.
        settings: alpha and the variant of NovelSum.
        device: "cpu" (default), or a torch device.
        progress: called with samples done and n.

    Raises:
        ValueError: as `novelsum_with_densities` does.
    """
    table = density_table.table(root)
    powers = Powers(density_table.neighbors, density_table.density_power, settings.proximity_power)
    variant = {name: getattr(settings, name) for name in ("self_distance", "density_side", "aggregate")}
    found = novelsum_with_densities(
        vectors,
        {powers[:2]: table["density_factor"].to_numpy()},
        proximity_powers=(settings.proximity_power,),
        device=device,
        progress=progress,
        **variant,
    )
    result = found[powers]
    described = {"density": density_table.key, "proximity_power": settings.proximity_power, **variant}
    key = _write(root, "novelty", {"id": table["id"], "novelty": result.novelty}, described)
    return NoveltyTable(
        key=key,
        file=_file("novelty", key),
        density_power=density_table.density_power,
        novelsum=result.value,
        **described,
    )


def _file(kind: str, key: str) -> str:
    # DuckDB makes a column of the folder's name, which must not hide the table's own of that name.
    name = "sample_novelty" if kind == "novelty" else kind
    return f"{kind}/{name}={key}/{kind}.parquet"


def _write(root: Path, kind: str, columns: dict[str, Any], settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(content_key(settings).encode())
    for values in columns.values():
        if isinstance(values, np.ndarray):
            digest.update(values.tobytes())
    key = digest.hexdigest()[:KEY_LENGTH]
    write_table(pa.table(columns), root / _file(kind, key))
    return key
