"""The whole correlation study: every set chosen, measured and trained on, then correlated.

Belongs here: the order of the steps over all sets. Does not: any step (`sets`, `views`, `facts`, `correlate`).

Cheap steps come first, and all sets are trained on with one training seed before the next, so that an interrupted study
has complete seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import Reporter, counted
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.pool.export import chosen_records, write_records
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import OWN_REPRESENTATION, Settings
from novelsum_dagster.study.correlate import (
    Outcome,
    StudyCorrelation,
    joined,
    keep_outcome,
    proxy_performance,
    read_performance,
)
from novelsum_dagster.study.facts import StudyFacts, Tokens, facts_of_set
from novelsum_dagster.study.pool import Represented, StudyData, build_study_pool
from novelsum_dagster.study.sets import (
    StudyMeasures,
    StudyPerformance,
    StudySet,
    StudyTraining,
    build_set,
    measure_set,
    performance_of,
    recipes,
    study_evaluator,
    train_on_set,
    training_file,
)
from novelsum_dagster.study.trainers import train_on_sets
from novelsum_dagster.study.views import views_of


@dataclass(frozen=True)
class Studied:
    """The results of a study so far.

    Attributes:
        data: its pool.
        views: the other representations, by name.
        sets: by name.
        measures: by representation and set; under `OWN_REPRESENTATION` all measures, under others those of vectors.
        facts: by set.
        trainings: by set and training seed; empty if the figures come from a file.
    """

    data: StudyData
    views: dict[str, Represented]
    sets: dict[str, StudySet]
    measures: dict[str, dict[str, StudyMeasures]]
    facts: dict[str, StudyFacts]
    trainings: dict[str, dict[int, StudyTraining]] = field(default_factory=dict)

    @property
    def performance(self) -> dict[str, StudyPerformance]:
        """The trainings by set, for sets that a model has been trained on."""
        return {name: performance_of(trained) for name, trained in self.trainings.items() if trained}


def correlate(
    root: Path,
    snapshot: PoolSnapshot,
    vectors: VectorSet,
    settings: Settings,
    reporter: Reporter,
    keep: Callable[[Studied], None] = lambda _: None,
) -> tuple[StudyCorrelation, Outcome]:
    """Run the study that the settings describe; finished work is not repeated.

    Args:
        root: the storage folder.
        snapshot, vectors: the pool.
        settings: of the curation.
        reporter: shows progress.
        keep: called with the results so far, once all sets are measured and whenever a training seed is complete.

    Raises:
        InputError: for a performance file that does not fit, or sources too small for the held-out samples.
        ValueError: as the strategies and measures do.
    """
    if settings.study.performance is not None:  # An unsuitable file raises an error before hours of work.
        read_performance(performance_path(settings), list(recipes(settings.study)))
    found = _measured(root, snapshot, vectors, settings, reporter)
    keep(found)
    if settings.study.performance is None:
        _train(found, settings, reporter, keep)
    return correlated(root, found.measures[OWN_REPRESENTATION], found.performance, settings)


def write_sets(
    root: Path, snapshot: PoolSnapshot, vectors: VectorSet, settings: Settings, folder: Path, reporter: Reporter
) -> int:
    """Choose all sets and write the original records of each as `folder`/NAME.jsonl; return how many sets.

    Args:
        root: the storage folder.
        snapshot, vectors: the pool.
        settings: of the curation.
        folder: target; files of these names are replaced.
        reporter: shows progress.

    Raises:
        InputError, ValueError: as `correlate` does.
    """
    data, _, chosen = _chosen(root, snapshot, vectors, settings, reporter)
    with reporter.step("writing") as progress:
        for done, (name, one) in enumerate(chosen.items(), 1):
            ids = [data.ids[row] for row in one.rows(root)]
            write_records(chosen_records(snapshot, root, ids), folder / f"{name}.jsonl")
            progress(done, len(chosen))
    return len(chosen)


def correlated(
    root: Path, measured: dict[str, StudyMeasures], trained: dict[str, StudyPerformance], settings: Settings
) -> tuple[StudyCorrelation, Outcome]:
    """Join measures with the performance file of the settings or, if they name none, with the trained models.

    The outcome is written under the storage folder `root`.

    Raises:
        InputError: for a performance file that does not fit.
    """
    study = settings.study
    if study.performance is not None:
        path = performance_path(settings)
        performance, source = read_performance(path, list(measured)), f"figures of {path.name}"
    else:
        name = study.training.model or "a language model of 1.3 million weights, trained from scratch"
        seeds = len(study.seeds_of_training)
        each = "a set" if seeds == 1 else f"a set and each of {counted(seeds, 'training seed')}"
        performance = proxy_performance(trained, study.unseen)
        source = (
            f"{name}, {study.training.tokens:,} tokens {each}: z-score of held-out bits per byte, mean over sources"
        )
    outcome = joined(measured, performance, source)
    return keep_outcome(root, outcome, [one.key for one in (*measured.values(), *trained.values())]), outcome


def performance_path(settings: Settings) -> Path:
    """Return the settings' performance file; relative paths start at the settings file's folder."""
    return (settings.base / Path(settings.study.performance or "").expanduser()).resolve()


def _chosen(
    root: Path, snapshot: PoolSnapshot, vectors: VectorSet, settings: Settings, reporter: Reporter
) -> tuple[StudyData, dict[str, Represented], dict[str, StudySet]]:
    study = settings.study
    with reporter.step("study pool") as progress:
        pool = build_study_pool(root, snapshot, vectors, settings.novelsum, study, progress)
    if max(study.sizes) > pool.samples:
        raise InputError(
            f"study.sizes: {max(study.sizes):,} is more than the {pool.samples:,} samples that are not held out"
        )
    data = StudyData(root, snapshot, vectors, pool)
    views = views_of(data, settings, reporter)
    chosen = {}
    for name, recipe in recipes(study).items():
        with reporter.step(f"choosing {name}") as progress:
            chosen[name] = build_set(data, recipe, settings.novelsum, progress, views.get(recipe.representation))
    return data, views, chosen


def _measured(
    root: Path, snapshot: PoolSnapshot, vectors: VectorSet, settings: Settings, reporter: Reporter
) -> Studied:
    data, views, chosen = _chosen(root, snapshot, vectors, settings, reporter)
    measures: dict[str, dict[str, StudyMeasures]] = {}
    for representation, view in {OWN_REPRESENTATION: None, **views}.items():
        evaluator = study_evaluator(data, settings, view)
        measures[representation] = {
            name: measure_set(data, one, settings, evaluator, reporter, view) for name, one in chosen.items()
        }
    tokens, facts = Tokens(data), {}
    with reporter.step("bigram models") as progress:
        for done, (name, one) in enumerate(chosen.items(), 1):
            facts[name] = facts_of_set(tokens, one, settings.study.training)
            progress(done, len(chosen))
    return Studied(data, views, chosen, measures, facts)


def _train(found: Studied, settings: Settings, reporter: Reporter, keep: Callable[[Studied], None]) -> None:
    """Train on every set with the first seed, then on every set with the next; fills `found.trainings`."""
    study, data = settings.study, found.data
    left = {
        seed: [
            one for one in found.sets.values() if not (data.root / training_file(one, study.training, seed)).exists()
        ]
        for seed in study.seeds_of_training
    }
    count = sum(map(len, left.values()))
    before, whole = 0, count * study.training.tokens
    with reporter.step(f"training {counted(count, 'model')}, in tokens") as progress:
        for seed, sets in left.items():

            def report(trained: int, _: int, before: int = before) -> None:
                progress(before + trained, whole)

            train_on_sets(data, sets, study.training, seed, report, settings.device, study.training_workers)
            before += len(sets) * study.training.tokens
            for name, one in found.sets.items():
                found.trainings.setdefault(name, {})[seed] = train_on_set(data, one, study.training, seed)
            keep(found)
