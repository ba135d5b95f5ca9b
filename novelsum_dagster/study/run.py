"""The whole correlation study at once: every set chosen, measured and trained on, then correlated.

Belongs here: the order of the steps over all sets. Does not: any step (`sets`, `correlate`).
"""

from pathlib import Path

from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.errors import InputError
from novelsum_dagster.pool.export import chosen_records, write_records
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.progress import Reporter
from novelsum_dagster.settings import Settings
from novelsum_dagster.study.correlate import (
    Outcome,
    StudyCorrelation,
    joined,
    keep_outcome,
    proxy_performance,
    read_performance,
)
from novelsum_dagster.study.pool import StudyData, build_study_pool
from novelsum_dagster.study.sets import (
    StudyMeasures,
    StudyPerformance,
    StudySet,
    build_set,
    measure_set,
    recipes,
    study_yardstick,
    train_on_set,
)


def correlate(
    root: Path, snapshot: PoolSnapshot, vectors: VectorSet, settings: Settings, reporter: Reporter
) -> tuple[StudyCorrelation, Outcome]:
    """Run the study that the settings describe; what was done before is not done again.

    Args:
        root: the storage folder.
        snapshot, vectors: the pool.
        settings: of the curation.
        reporter: shows progress.

    Raises:
        InputError: for a performance file that does not fit, or sources too small for the held-out samples.
        ValueError: as the strategies and measures do.
    """
    study = settings.study
    if study.performance is not None:  # A file that does not fit is refused before hours of work.
        read_performance(performance_path(settings), list(recipes(study)))
    data, chosen = _chosen(root, snapshot, vectors, settings, reporter)
    yardstick = study_yardstick(data, settings.novelsum, settings.measures, study, settings.device)
    measured = {name: measure_set(data, one, settings, yardstick, reporter) for name, one in chosen.items()}
    trained = _trained(data, chosen, settings, reporter)
    outcome = outcome_of(measured, trained, settings)
    inputs = [one.key for one in measured.values()] + [one.key for one in trained.values()]
    return keep_outcome(root, outcome, inputs), outcome


def write_sets(
    root: Path, snapshot: PoolSnapshot, vectors: VectorSet, settings: Settings, folder: Path, reporter: Reporter
) -> int:
    """Choose all sets and write the original records of each as `folder`/NAME.jsonl; return how many sets.

    Args:
        root: the storage folder.
        snapshot, vectors: the pool.
        settings: of the curation.
        folder: where to; files of these names are replaced.
        reporter: shows progress.

    Raises:
        InputError, ValueError: as `correlate` does.
    """
    data, chosen = _chosen(root, snapshot, vectors, settings, reporter)
    with reporter.step("writing") as progress:
        for done, (name, one) in enumerate(chosen.items(), 1):
            ids = [data.ids[row] for row in one.rows(root)]
            write_records(chosen_records(snapshot, root, ids), folder / f"{name}.jsonl")
            progress(done, len(chosen))
    return len(chosen)


def outcome_of(measured: dict[str, StudyMeasures], trained: dict[str, StudyPerformance], settings: Settings) -> Outcome:
    """Join measures with the settings' performance file, or where they name none with the trained models.

    Raises:
        InputError: for a performance file that does not fit.
    """
    if settings.study.performance is not None:
        path = performance_path(settings)
        return joined(measured, read_performance(path, list(measured)), f"figures of {path.name}")
    training = settings.study.training
    name = training.model or "a language model of 1.3 million weights, trained from scratch"
    words = f"{name}, {training.tokens:,} tokens a set: z-score of held-out bits per byte, mean over sources"
    return joined(measured, proxy_performance(trained), words)


def performance_path(settings: Settings) -> Path:
    """Return the settings' performance file; relative paths start at the settings file's folder."""
    return (settings.base / Path(settings.study.performance or "").expanduser()).resolve()


def _chosen(
    root: Path, snapshot: PoolSnapshot, vectors: VectorSet, settings: Settings, reporter: Reporter
) -> tuple[StudyData, dict[str, StudySet]]:
    study = settings.study
    with reporter.step("study pool") as progress:
        pool = build_study_pool(root, snapshot, vectors, settings.novelsum, study, progress)
    if max(study.sizes) > pool.samples:
        raise InputError(
            f"study.sizes: {max(study.sizes):,} is more than the {pool.samples:,} samples that are not held out"
        )
    data = StudyData(root, snapshot, vectors, pool)
    chosen = {}
    for name, recipe in recipes(study).items():
        with reporter.step(f"choosing {name}") as progress:
            chosen[name] = build_set(data, recipe, settings.novelsum, progress)
    return data, chosen


def _trained(
    data: StudyData, chosen: dict[str, StudySet], settings: Settings, reporter: Reporter
) -> dict[str, StudyPerformance]:
    if settings.study.performance is not None:
        return {}
    trained = {}
    for name, one in chosen.items():
        with reporter.step(f"training on {name}") as progress:
            trained[name] = train_on_set(data, one, settings.study, progress, settings.device)
    return trained
