"""The sets of a study: their list, and choosing, measuring and training on one of them.

Belongs here: one set's steps, each stored on disk once done. Does not: the outcome over all sets (`correlate`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.files import content_key, write_table
from novelsum_dagster.common.progress import Progress, Reporter, no_progress
from novelsum_dagster.diversity.lexical import Occurrences
from novelsum_dagster.diversity.measures import Evaluator, Samples, Value
from novelsum_dagster.diversity.novelsum import Grid
from novelsum_dagster.selection.scoring import Scoring, Side
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.settings import (
    OWN_REPRESENTATION,
    NovelSum,
    Settings,
    Strategy,
    Study,
    Training,
    Variant,
)
from novelsum_dagster.study.pool import Represented, StudyData, once
from novelsum_dagster.study.training import named_model_hash, train_and_evaluate

UNSEEDED: frozenset[Strategy] = frozenset({"farthest", "qdit"})
"""Strategies without randomness: one set of each size."""


class Recipe(BaseModel):
    """The recipe of a set; `copies` above 1 repeat a random subset.

    Attributes:
        variant: name of the variant, if any.
        density_side, swap_rounds: of NovelSelect.
        representation: the vectors that the strategy uses.
        options: of the strategy, if they differ from its defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    strategy: Strategy
    size: int
    seed: int
    copies: int = 1
    variant: str | None = None
    density_side: Side = "both"
    swap_rounds: int = 0
    representation: str = OWN_REPRESENTATION
    options: dict[str, Any] = {}

    @property
    def described(self) -> dict[str, Any]:
        """The values that the set depends on; without a variant, in the form used before variants existed."""
        later = {"variant", "density_side", "swap_rounds", "representation", "options"}
        return {**self.model_dump(exclude=later), **self.model_dump(include=later, exclude_defaults=True)}


class StudySet(Artifact):
    """A chosen set: `file` has one row per sample in pick order: id, row (in the study's pool)."""

    recipe: Recipe
    pool: str
    file: str

    def rows(self, root: Path) -> NDArray[np.int64]:
        """Return the rows of the study's pool, int64, (size,), in pick order."""
        return np.asarray(pq.read_table(root / self.file, columns=["row"], partitioning=None)["row"].to_numpy())


class GridValue(BaseModel):
    """NovelSum at one setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbors: int
    density_power: float
    proximity_power: float
    value: float


class StudyMeasures(Artifact):
    """The measures of a set, of `measured` of its samples; TTR is missing if they have too few words."""

    study_set: str
    recipe: Recipe
    measured: int
    values: dict[str, Value]
    grid: tuple[GridValue, ...]


class StudyTraining(Artifact):
    """The result of one model trained on a set: bits per byte of each source's held-out texts, lower is better."""

    study_set: str
    recipe: Recipe
    losses: dict[str, float]


class StudyPerformance(Artifact):
    """The results of the models trained on a set, bits per byte by training seed and source; `losses` has the means.

    Those of earlier releases have no trials.
    """

    study_set: str
    recipe: Recipe
    losses: dict[str, float]
    trials: dict[int, dict[str, float]] = Field(default_factory=dict)


def recipes(study: Study) -> dict[str, Recipe]:
    """Return all sets of a study by name, as `kmeans-1000-s42`, `duplicate-1000-s42-x5`, `novelselect-column-1000-s42`.

    The last is of a variant with the name column.
    """
    planned: dict[str, Recipe] = {}
    for size in study.sizes:
        for strategy in dict.fromkeys(study.strategies):
            for seed in study.seeds[:1] if strategy in UNSEEDED else dict.fromkeys(study.seeds):
                for copies in dict.fromkeys(study.copies) if strategy == "duplicate" else (1,):
                    name = f"{strategy}-{size}-s{seed}" + (f"-x{copies}" if strategy == "duplicate" else "")
                    planned[name] = Recipe(name=name, strategy=strategy, size=size, seed=seed, copies=copies)
        for variant in study.variants:
            for seed in study.seeds[:1] if variant.strategy in UNSEEDED else dict.fromkeys(study.seeds):
                name = f"{variant.strategy}-{variant.name}-{size}-s{seed}"
                planned[name] = _of_variant(variant, name, size, seed)
    return planned


def _of_variant(variant: Variant, name: str, size: int, seed: int) -> Recipe:
    selection = variant.selection()
    repeats = variant.strategy == "duplicate"
    return Recipe(
        name=name,
        strategy=variant.strategy,
        size=size,
        seed=seed,
        copies=selection.duplicate.copies if repeats else 1,
        variant=variant.name,
        density_side=variant.density_side,
        swap_rounds=variant.swap_rounds,
        representation=variant.representation or OWN_REPRESENTATION,
        options={} if repeats else selection.options,
    )


def build_set(
    data: StudyData,
    recipe: Recipe,
    novelsum: NovelSum,
    progress: Progress = no_progress,
    view: Represented | None = None,
) -> StudySet:
    """Choose a set from a study's pool.

    Args:
        data: the pool.
        recipe: how.
        novelsum: K, beta and alpha of NovelSelect, and which NovelSum its side "objective" increases.
        progress: called as the strategy says.
        view: the vectors that the strategy uses; None: the pool's.

    Raises:
        ValueError: as the strategy does, as for a size over the pool's.
    """
    powers = [novelsum.neighbors, novelsum.density_power, novelsum.proximity_power]
    scoring = Scoring(
        recipe.density_side,
        novelsum.proximity_power,
        novelsum.density_side,
        novelsum.self_distance,
        recipe.swap_rounds,
    )
    described = {"pool": data.pool.key, "recipe": recipe.described, "powers": powers, **scoring.measured()}
    key = content_key(described if view is None else {**described, "view": view.key})
    seen = view or data.own
    folder = f"study/set={key}"

    def build() -> StudySet:
        options = dict(recipe.options)
        if recipe.strategy == "novelselect":
            options |= scoring.options()
        elif recipe.strategy == "duplicate":
            options["copies"] = recipe.copies
        picks = select(
            recipe.strategy,
            seen.vectors,
            recipe.size,
            density_factor=seen.factor(novelsum.neighbors, novelsum.density_power),
            seed=recipe.seed,
            progress=progress,
            **options,
        )
        rows = np.asarray(picks.indices, dtype=np.int64)
        ids = pa.array([data.ids[row] for row in rows], pa.string())
        write_table(pa.table({"id": ids, "row": rows}), data.root / folder / "set.parquet")
        return StudySet(key=key, recipe=recipe, pool=data.pool.key, file=f"{folder}/set.parquet")

    return once(data.root, f"{folder}/study_set.json", StudySet, build)


def measure_set(
    data: StudyData,
    study_set: StudySet,
    settings: Settings,
    evaluator: Evaluator,
    reporter: Reporter,
    view: Represented | None = None,
) -> StudyMeasures:
    """Measure a whole set.

    Args:
        data: the pool, which is the reference.
        study_set: the set.
        settings: of NovelSum, the other measures and the study.
        evaluator: made by `study_evaluator`, of the same view.
        reporter: shows progress.
        view: the vectors of the measures, without the measures of texts; None: the pool's, with them.

    Raises:
        ValueError: as the measures do.
    """
    study, grid = settings.study, evaluator.options.grid
    described = {
        "set": study_set.key,
        "novelsum": settings.novelsum.model_dump(),
        "measures": settings.measures.model_dump(),
        "grid": [study.neighbors, study.density_powers, study.proximity_powers],
        "size": study_set.recipe.size,
        "seed": study.seeds[0],
    }
    key = content_key(described if view is None else {**described, "grid": None, "view": view.key})

    def build() -> StudyMeasures:
        rows = study_set.rows(data.root)
        seen = view or data.own
        texts = [data.texts[row] for row in rows]
        found = evaluator.measure(
            study_set.recipe.name,
            Samples(seen.vectors[rows], texts if view is None else None),
            np.arange(len(rows)),
            factors=seen.factors(rows, grid.neighbors, grid.density_powers),
            words=Occurrences.of(texts) if view is None else None,
            ttr_tokens=settings.measures.ttr_tokens,
            reporter=reporter,
        )
        return StudyMeasures(
            key=key,
            study_set=study_set.key,
            recipe=study_set.recipe,
            measured=len(rows),
            values=found.values,
            grid=tuple(GridValue(**powers._asdict(), value=one.value) for powers, one in found.grid.items()),
        )

    return once(data.root, f"study/measures={key}.json", StudyMeasures, build)


def study_evaluator(data: StudyData, settings: Settings, view: Represented | None = None) -> Evaluator:
    """Return the evaluator of a study's sets.

    Under the pool's own vectors NovelSum has every K, beta and alpha of the study, those of the settings first; under a
    view those alone.
    """
    novelsum, study, seed = settings.novelsum, settings.study, settings.study.seeds[0]
    grid = Grid(
        tuple(dict.fromkeys([novelsum.neighbors, *study.neighbors])),
        tuple(dict.fromkeys([novelsum.density_power, *study.density_powers])),
        tuple(dict.fromkeys([novelsum.proximity_power, *study.proximity_powers])),
    )
    return Evaluator(
        (view or data.own).vectors,
        novelsum,
        settings.measures,
        grid=grid if view is None else None,
        seed=seed,
        device=settings.device,
    )


def training_file(study_set: StudySet, training: Training, seed: int) -> str:
    """Return the path of a training's outcome in the storage folder."""
    described = {
        "set": study_set.key,
        "training": {**training.model_dump(), "files": named_model_hash(training)},
        "seed": seed,
    }
    return f"study/performance={content_key(described)}.json"


def train_on_set(
    data: StudyData,
    study_set: StudySet,
    training: Training,
    seed: int,
    progress: Progress = no_progress,
    device: str = "auto",
) -> StudyTraining:
    """Train the proxy on a set and evaluate it on the held-out texts.

    Args:
        data: the pool.
        study_set: the set.
        training: its settings.
        seed: of initial weights and order.
        progress: called with tokens trained on and all.
        device: as the setting `device`.

    Raises:
        InputError: as `train_and_evaluate` does.
    """
    file = training_file(study_set, training, seed)

    def build() -> StudyTraining:
        texts = [data.texts[row] for row in study_set.rows(data.root)]
        losses = train_and_evaluate(texts, data.held_out, training, data.tokenizer, seed, progress, device)
        key = file.partition("=")[2].removesuffix(".json")
        return StudyTraining(key=key, study_set=study_set.key, recipe=study_set.recipe, losses=losses)

    return once(data.root, file, StudyTraining, build)


def performance_of(trained: Mapping[int, StudyTraining]) -> StudyPerformance:
    """Return the combined results of the models trained on one set, by training seed."""
    trainings = list(trained.values())
    first = trainings[0]
    means = {source: float(np.mean([one.losses[source] for one in trainings])) for source in first.losses}
    return StudyPerformance(
        key=first.key if len(trainings) == 1 else content_key([one.key for one in trainings]),
        study_set=first.study_set,
        recipe=first.recipe,
        losses=means,
        trials={seed: one.losses for seed, one in trained.items()},
    )
