"""The NovelSum report of a selection: the pool, a random subset and the selected subset, at equal size.

Belongs here: which sets are measured, and the report's files. Does not: the measure, the plots' drawing (`plots`).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from novelsum_dagster.diversity.novelsum import novelsum_with_density
from novelsum_dagster.files import content_key, write_json, write_table
from novelsum_dagster.pool.snapshot import Handle
from novelsum_dagster.progress import Progress, no_progress

POOL_DRAWS = 10
"""Samples of the pool that are measured; the report gives their mean and range."""


class SetMeasure(BaseModel):
    """NovelSum of one set.

    `low` and `high`: a 95 % bootstrap interval over the set's samples; for the pool sample the least and greatest of
    its draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set_name: str
    size: int
    novelsum: float
    low: float
    high: float


class NovelSumReport(Handle):
    """NovelSum of sets of equal size, with density taken from the pool."""

    folder: str
    sets: tuple[SetMeasure, ...]

    def of(self, set_name: str) -> SetMeasure:
        """Return the row of one set: `pool sample`, `random` or `selected`."""
        return next(row for row in self.sets if row.set_name == set_name)


def build_report(
    root: Path,
    vectors: NDArray[np.float32],
    density_factor: NDArray[np.float64],
    selected: NDArray[np.int64],
    *,
    inputs: dict[str, str],
    proximity_power: float,
    seed: int,
    progress: Progress = no_progress,
) -> NovelSumReport:
    """Measure the three sets and write `novelsum.json` and `novelsum.parquet` under `root/reports`.

    Args:
        root: the storage folder.
        vectors: float32, (n, d), the pool.
        density_factor: float64, (n,), against the pool.
        selected: int64, (k,), rows of the selected subset.
        inputs: keys of what was measured.
        proximity_power: alpha.
        seed: of the random subset and the pool's draws.
        progress: called with sets measured and to measure.
    """
    size = len(selected)
    generator = np.random.default_rng(seed)
    draws = [generator.permutation(len(vectors))[:size] for _ in range(POOL_DRAWS + 1)]
    results = []
    for rows in [selected, *draws]:
        results.append(novelsum_with_density(vectors[rows], density_factor[rows], proximity_power=proximity_power))
        progress(len(results), len(draws) + 1)
    pool = np.array([result.value for result in results[2:]])
    sets = [
        SetMeasure(set_name="pool sample", size=size, novelsum=pool.mean(), low=pool.min(), high=pool.max()),
        *(
            SetMeasure(
                set_name=name, size=size, novelsum=result.value, low=result.interval()[0], high=result.interval()[1]
            )
            for name, result in (("random", results[1]), ("selected", results[0]))
        ),
    ]
    settings = {"inputs": inputs, "proximity_power": proximity_power, "seed": seed}
    key = content_key({**settings, "sets": [row.model_dump() for row in sets]})
    folder = f"reports/report={key}"
    write_json({**settings, "sets": [row.model_dump() for row in sets]}, root / folder / "novelsum.json")
    write_table(pa.Table.from_pylist([row.model_dump() for row in sets]), root / folder / "novelsum.parquet")
    return NovelSumReport(key=key, folder=folder, sets=tuple(sets))
