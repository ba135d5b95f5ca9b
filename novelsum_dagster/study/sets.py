"""The sets of a study: which there are, choosing, measuring and training on one of them.

Belongs here: one set's steps, each kept on disk once done. Does not: what becomes of all sets (`correlate`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from novelsum_dagster.diversity.lexical import Occurrences
from novelsum_dagster.diversity.measures import Grid, Samples, Yardstick
from novelsum_dagster.files import content_key, write_table
from novelsum_dagster.pool.snapshot import Handle
from novelsum_dagster.progress import Progress, Reporter, no_progress
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.settings import Measures, NovelSum, Settings, Strategy, Study
from novelsum_dagster.study.pool import StudyData, once
from novelsum_dagster.study.training import named_model_hash, train_and_evaluate

UNSEEDED: frozenset[Strategy] = frozenset({"farthest", "qdit"})
"""Strategies that draw nothing: one set of each size."""


class Recipe(BaseModel):
    """How a set is made; `copies` above 1 repeat a random subset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    strategy: Strategy
    size: int
    seed: int
    copies: int = 1


class StudySet(Handle):
    """A chosen set: `file` has a row a sample in pick order: id, row (in the study's pool)."""

    recipe: Recipe
    pool: str
    file: str

    def rows(self, root: Path) -> NDArray[np.int64]:
        """Return the rows of the study's pool, int64, (size,), in pick order."""
        return np.asarray(pq.read_table(root / self.file, columns=["row"], partitioning=None)["row"].to_numpy())


class Measurement(BaseModel):
    """One measure of one set, with its interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float


class GridValue(BaseModel):
    """NovelSum at one setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbors: int
    density_power: float
    proximity_power: float
    value: float


class StudyMeasures(Handle):
    """The measures of a set, of `measured` of its samples; TTR is missing where they have too few words."""

    study_set: str
    recipe: Recipe
    measured: int
    values: dict[str, Measurement]
    grid: tuple[GridValue, ...]


class StudyPerformance(Handle):
    """What a model trained on a set achieves: bits per byte of each source's held-out texts, lower is better."""

    study_set: str
    recipe: Recipe
    losses: dict[str, float]


def recipes(study: Study) -> dict[str, Recipe]:
    """Return all sets of a study by name, as `kmeans-1000-s42` or `duplicate-1000-s42-x5`."""
    planned = {}
    for size in study.sizes:
        for strategy in dict.fromkeys(study.strategies):
            for seed in study.seeds[:1] if strategy in UNSEEDED else dict.fromkeys(study.seeds):
                for copies in dict.fromkeys(study.copies) if strategy == "duplicate" else (1,):
                    name = f"{strategy}-{size}-s{seed}" + (f"-x{copies}" if strategy == "duplicate" else "")
                    planned[name] = Recipe(name=name, strategy=strategy, size=size, seed=seed, copies=copies)
    return planned


def build_set(data: StudyData, recipe: Recipe, novelsum: NovelSum, progress: Progress = no_progress) -> StudySet:
    """Choose a set from a study's pool.

    Args:
        data: the pool.
        recipe: how.
        novelsum: K, beta and alpha of NovelSelect.
        progress: called as the strategy says.

    Raises:
        ValueError: as the strategy does, as for a size over the pool's.
    """
    powers = [novelsum.neighbors, novelsum.density_power, novelsum.proximity_power]
    key = content_key({"pool": data.pool.key, "recipe": recipe.model_dump(), "powers": powers})
    folder = f"study/set={key}"

    def build() -> StudySet:
        options: dict[str, dict[str, Any]] = {
            "novelselect": {"proximity_power": novelsum.proximity_power},
            "duplicate": {"copies": recipe.copies},
        }
        picks = select(
            recipe.strategy,
            data.vectors,
            recipe.size,
            density_factor=data.factor(novelsum.neighbors, novelsum.density_power),
            seed=recipe.seed,
            progress=progress,
            **options.get(recipe.strategy, {}),
        )
        rows = np.asarray(picks.indices, dtype=np.int64)
        ids = pa.array([data.ids[row] for row in rows], pa.string())
        write_table(pa.table({"id": ids, "row": rows}), data.root / folder / "set.parquet")
        return StudySet(key=key, recipe=recipe, pool=data.pool.key, file=f"{folder}/set.parquet")

    return once(data.root, f"{folder}/study_set.json", StudySet, build)


def measure_set(
    data: StudyData, study_set: StudySet, settings: Settings, yardstick: Yardstick, reporter: Reporter
) -> StudyMeasures:
    """Measure a set, on as many samples as the study's smallest sets have.

    Args:
        data: the pool, which is the reference.
        study_set: the set.
        settings: of NovelSum, the other measures and the study.
        yardstick: made by `study_yardstick`.
        reporter: shows progress.

    Raises:
        ValueError: as the measures do.
    """
    study = settings.study
    size = min(study.sizes)
    described = {
        "set": study_set.key,
        "novelsum": settings.novelsum.model_dump(),
        "measures": settings.measures.model_dump(),
        "grid": [study.neighbors, study.density_powers, study.proximity_powers],
        "size": size,
        "seed": study.seeds[0],
    }
    key = content_key(described)

    def build() -> StudyMeasures:
        rows = study_set.rows(data.root)
        rows = rows[np.sort(np.random.default_rng(study.seeds[0]).permutation(len(rows))[:size])]
        texts = [data.texts[row] for row in rows]
        grid = yardstick.grid
        found = yardstick.measure(
            study_set.recipe.name,
            Samples(data.vectors[rows], texts),
            np.arange(len(rows)),
            factors=data.factors(rows, grid.neighbors, grid.density_powers),
            words=Occurrences.of(texts),
            ttr_tokens=settings.measures.ttr_tokens,
            reporter=reporter,
        )
        return StudyMeasures(
            key=key,
            study_set=study_set.key,
            recipe=study_set.recipe,
            measured=len(rows),
            values={name: Measurement(**vars(value)) for name, value in found.values.items()},
            grid=tuple(GridValue(**powers._asdict(), value=one.value) for powers, one in found.grid.items()),
        )

    return once(data.root, f"study/measures={key}.json", StudyMeasures, build)


def study_yardstick(data: StudyData, novelsum: NovelSum, measures: Measures, study: Study, device: str) -> Yardstick:
    """Return what a study's sets are measured against; the settings' own K, beta and alpha come first in its grid."""
    grid = Grid(
        tuple(dict.fromkeys([novelsum.neighbors, *study.neighbors])),
        tuple(dict.fromkeys([novelsum.density_power, *study.density_powers])),
        tuple(dict.fromkeys([novelsum.proximity_power, *study.proximity_powers])),
    )
    return Yardstick(data.vectors, novelsum, measures, grid=grid, seed=study.seeds[0], device=device)


def train_on_set(
    data: StudyData, study_set: StudySet, study: Study, progress: Progress = no_progress, device: str = "auto"
) -> StudyPerformance:
    """Train the proxy on a set and evaluate it on the held-out texts.

    Args:
        data: the pool.
        study_set: the set.
        study: settings of the training.
        progress: called with tokens trained on and all.
        device: as the setting `device`.

    Raises:
        InputError: as `train_and_evaluate` does.
    """
    training = study.training
    described = {
        "set": study_set.key,
        "training": {**training.model_dump(), "files": named_model_hash(training)},
        "seed": study.seeds[0],
    }
    key = content_key(described)

    def build() -> StudyPerformance:
        texts = [data.texts[row] for row in study_set.rows(data.root)]
        losses = train_and_evaluate(texts, data.held_out, training, data.tokenizer, study.seeds[0], progress, device)
        return StudyPerformance(key=key, study_set=study_set.key, recipe=study_set.recipe, losses=losses)

    return once(data.root, f"study/performance={key}.json", StudyPerformance, build)
