"""Density and novelty of a pool as tables on disk.

Belongs here: the two steps between embedding and measuring or selecting. Does not: the maths
(`density`, `novelsum`).
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.files import KEY_LENGTH, content_key, write_table
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.density import Search, densities, density_factor
from novelsum_dagster.diversity.growth import Nearest, nearest_in_pool
from novelsum_dagster.diversity.novelsum import (
    Aggregate,
    DensitySide,
    NovelSumOptions,
    SelfDistance,
    novelsum_with_densities,
)
from novelsum_dagster.settings import NovelSum

_NEAREST = "nearest.parquet"


class DensityTable(Artifact):
    """One row per sample: id, mean_squared_distance, density_factor (both float64).

    `neighbors` is the requested K; `neighbors_used`, `index` and `recall` as in `Density`. After an exact search,
    `nearest.parquet` beside the table keeps its result (`Nearest`), so that a pool that grows is searched faster.
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

    @property
    def place(self) -> str:
        """The folder: both files are the output."""
        return Path(self.file).parent.as_posix()

    def table(self, root: Path) -> pa.Table:
        """Read the table, in pool order."""
        return pq.read_table(root / self.file, partitioning=None)

    def factor(self, root: Path, density_power: float) -> NDArray[np.float64]:
        """Return the density factors at a power, float64, (n,), in pool order."""
        return density_factor(self.table(root)["mean_squared_distance"].to_numpy(), density_power)

    def nearest(self, root: Path) -> Nearest | None:
        """Read the result of the exact search; None if the file is missing or damaged."""
        try:
            table = pq.read_table(root / self.place / _NEAREST, partitioning=None)
        except (pa.ArrowException, OSError):
            return None
        return Nearest.of_table(table, self.neighbors)


class NoveltyTable(Artifact):
    """One row per sample: id, novelty (float64). `novelsum`, of the whole pool, is their mean or their sum."""

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
    among: str | None = None,
    earlier: DensityTable | None = None,
    device: str = "cpu",
    spread: Spread = in_turn,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = no_progress,
) -> DensityTable:
    """Search each sample's neighbours in the pool and write the density table.

    Args:
        root: the storage folder.
        ids: sample ids in pool order, (n,).
        vectors: float32, (n, d), in the same order.
        vectors_key: key of the vector set.
        settings: K, beta and how neighbours are searched.
        among: key of the pool, if `vectors_key` is that of a pool with more samples.
        earlier: table of an earlier state of the pool, or of any other pool: vectors in it are compared only with those
            that are not. The table is the same, bit for bit, with and without it. The tuned index, which `auto` takes
            for more than 50,000 samples, searches all again, and so does an `ivf` index that proves no faster.
        device, spread: as in `density`; the table is the same with any.
        say: called with a phrase that says what was searched among what.
        progress: called with vectors searched and their number.

    Raises:
        ValueError, NotEnoughMemory: as `density` does.
    """
    size, neighbors, nearest = len(vectors), settings.neighbors, None
    search = Search.of(settings, device)
    if search.tries_lists(size, size):
        found = densities(vectors, None, (neighbors,), search, spread=spread, progress=progress)[neighbors]
        say(f"all {size:,} against all ({found.index})")
    else:
        known, reason = None, "no earlier densities"
        if earlier is not None:
            known = earlier.nearest(root) if earlier.neighbors == neighbors else None
            reason = f"the earlier densities have no sound {_NEAREST} for {neighbors} neighbours"
        pool = nearest_in_pool(
            vectors, neighbors, known, reason=reason, device=device, spread=spread, progress=progress
        )
        say(pool.searched)
        found, nearest = pool.density(neighbors), pool.nearest
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
    searched = {
        "index": settings.density_index,
        "min_recall": settings.min_recall,
        **({"among": among} if among else {}),
    }
    key = _write(root, "density", columns, {**described, **searched}, nearest)
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
    variant = {name: getattr(settings, name) for name in ("self_distance", "density_side", "aggregate")}
    factors = {(density_table.neighbors, density_table.density_power): table["density_factor"].to_numpy()}
    found = novelsum_with_densities(vectors, factors, NovelSumOptions.of(settings, device=device), progress)
    result = next(iter(found.values()))
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
    return f"{output_folder(kind, key)}/{kind}.parquet"


def _write(
    root: Path, kind: str, columns: dict[str, Any], settings: dict[str, Any], nearest: Nearest | None = None
) -> str:
    digest = hashlib.sha256(content_key(settings).encode())
    for values in columns.values():
        if isinstance(values, np.ndarray):
            digest.update(values.tobytes())
    key = digest.hexdigest()[:KEY_LENGTH]
    path = root / _file(kind, key)
    if nearest is not None:
        write_table(nearest.table(), path.with_name(_NEAREST))
    write_table(pa.table(columns), path)
    return key
