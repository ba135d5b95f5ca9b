"""Measuring and selecting files directly, without Dagster, settings file or storage folder.

Belongs here: what `novelsum measure` and `novelsum select` do. Does not: printing (`cli.main`), the computations.

Vectors are cached in the user's cache folder, so that a text is embedded once; everything else is temporary.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.diversity.distinct import distinct_pool
from novelsum_dagster.diversity.measures import Comparison, Evaluator, Samples, measure_sets
from novelsum_dagster.diversity.novelsum import Factors, Grid, NovelSumOptions, density_factors
from novelsum_dagster.diversity.vectors import distinct_rows
from novelsum_dagster.embedding.cut import Cut
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.embedding.vectors_of_pool import Work, cut_of_pool, vectors_of_pool
from novelsum_dagster.embedding.whitening import NoDirection, Whitening
from novelsum_dagster.pool.export import ChosenRecord, chosen_records
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.explanation import RANDOM, SELECTED, Compared, random_rows
from novelsum_dagster.report.explanation import compare as compare_measures
from novelsum_dagster.selection.chosen import PoolSelection, require_possible
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.subset import SAMPLE_COLUMNS, picks_table
from novelsum_dagster.settings import Embedding, Measures, NovelSum, Pool, Selection, cache_path


@dataclass(frozen=True)
class EmbeddedFiles:
    """Files read and embedded: the snapshot lies under `root`; `vectors` is float32, (n, d), in snapshot order.

    `cut` counts the text that the model did not read.
    """

    snapshot: PoolSnapshot
    root: Path
    vectors: NDArray[np.float32]
    cut: Cut

    def records(self) -> tuple[Samples, list[str]]:
        """Return every record read as a sample, including exact duplicates, and their ids."""
        table = self.snapshot.samples(self.root, ["id", "text"])
        texts, row_of = table["text"].to_pylist(), {id_: row for row, id_ in enumerate(table["id"].to_pylist())}
        # A dropped near-duplicate has a position but no row.
        ids = [id_ for id_ in self.snapshot.table(self.root, "origins", ["id"])["id"].to_pylist() if id_ in row_of]
        rows = [row_of[id_] for id_ in ids]
        return Samples(self.vectors[rows], [texts[row] for row in rows]), ids


@dataclass(frozen=True)
class Choice:
    """A subset in pick order.

    Attributes:
        table: the picks.
        records: the picked records, unchanged.
        rows: int64, (k,), rows of the pool.
        factors: density factors of the pool's samples.
        reached: `objective_facts` of a selection with density_side `objective`; empty for other selections.
    """

    table: pa.Table
    records: list[ChosenRecord]
    rows: NDArray[np.int64]
    factors: Factors
    reached: dict[str, Any]


@contextmanager
def embedded_files(
    pool: Pool,
    embedding: Embedding,
    reporter: Reporter,
    device: str = "auto",
    rejects_file: Path | None = None,
    require: Callable[[PoolSnapshot, Path], None] | None = None,
) -> Iterator[EmbeddedFiles]:
    """Read and embed files; the snapshot is deleted when the block ends.

    Args:
        pool: the files and the settings for reading them.
        embedding: the model.
        reporter: shows progress.
        device: as the setting `device`.
        rejects_file: where the rejects are written if they exceed the limit; default: in the cache folder.
        require: called with the snapshot and its root before anything is embedded.

    Raises:
        InputError: for missing files, bad records over the limit, an empty pool, a model that cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="novelsum-") as temporary:
        root = Path(temporary)
        with reporter.step("reading") as progress:
            snapshot = build_snapshot(
                pool,
                Path.cwd(),
                root,
                token_counter(embedding),
                progress,
                rejects_file or cache_path() / "rejects.parquet",
                text=embedding.text_rule,
            )
        if require is not None:
            require(snapshot, root)
        read = PoolAt(snapshot, root, Path.cwd())
        with reporter.step("embedding") as progress:
            found = vectors_of_pool(read, embedding, cache_path(), Work(progress, device=device))
        folder = cache_path() / found.folder
        vectors = load_vectors(folder, read.column("id"))
        distinct, rule = snapshot, pool.near_duplicates
        if rule.by_vectors:
            with reporter.step("near-duplicates") as progress:
                distinct = distinct_pool(root, snapshot, vectors, found.key, rule, device=device, progress=progress)
            vectors = load_vectors(folder, distinct.samples(root, ["id"])["id"].to_pylist())
        yield EmbeddedFiles(distinct, root, vectors, cut_of_pool(read, embedding))


def choose(
    files: EmbeddedFiles, selection: Selection, settings: NovelSum, reporter: Reporter, device: str = "auto"
) -> Choice:
    """Select a subset.

    Args:
        files: the pool, which is also the reference for density.
        selection: the settings of the selection.
        settings: of the measure.
        reporter: shows progress.
        device: as the setting `device`.

    Raises:
        ValueError: as the strategy does.
    """
    require_possible(files.snapshot, files.root, selection)
    with reporter.step("density") as progress:
        factors, _ = density_factors(files.vectors, None, NovelSumOptions.of(settings, device=device), progress)
    (factor,) = factors.values()
    with reporter.step("selecting") as progress:
        options = NovelSelectOptions(Scoring.of(selection, settings), device=device, progress=progress)
        asked = PoolSelection(files.root, files.snapshot, files.vectors, selection, options)
        picks = asked.picks(factor)
        reached = asked.reached(picks, factor)
    table = picks_table(files.snapshot.samples(files.root, SAMPLE_COLUMNS), picks)
    records = chosen_records(files.snapshot, files.root, table["id"].to_pylist())
    return Choice(table, records, picks.indices, factors, reached)


def beside_random(
    files: EmbeddedFiles, choice: Choice, selection: Selection, settings: NovelSum, reporter: Reporter, device: str
) -> tuple[Compared, ...]:
    """Return the measures of a subset and of a random one of the same size, the same as in a report.

    The result is empty if the subset is random or the whole pool.

    Args:
        files: the pool.
        choice: the subset.
        selection: the settings of the selection; its seed draws the random subset.
        settings: of the measure.
        reporter: shows progress.
        device: as the setting `device`.

    Raises:
        ValueError: as `measure_sets` does.
    """
    size = len(files.vectors)
    if selection.strategy == "random" or len(choice.rows) >= size:
        return ()
    texts = files.snapshot.samples(files.root, ["text"])["text"]
    random = random_rows(size, len(choice.rows), np.random.default_rng(selection.seed))
    sets = {SELECTED: choice.rows, RANDOM: random}
    with reporter.step("preparing"):
        evaluator = Evaluator(files.vectors, settings, Measures(), seed=selection.seed, device=device)
    measured = measure_sets(
        {name: Samples(files.vectors[rows], texts.take(pa.array(rows)).to_pylist()) for name, rows in sets.items()},
        evaluator,
        factors={name: {key: factor[rows] for key, factor in choice.factors.items()} for name, rows in sets.items()},
        seed=selection.seed,
        reporter=reporter,
    )
    values = {one.name: one.values for one in measured.sets}
    return compare_measures(values[SELECTED], values[RANDOM])


def untransformed(embedding: Embedding) -> Embedding:
    """Return the settings without PCA: sets to compare are embedded one by one and transformed together afterwards."""
    return embedding.model_copy(update={"whiten": False, "reduce": None})


def transformed(
    sets: Mapping[str, Samples], reference: NDArray[np.float32] | None, embedding: Embedding
) -> tuple[dict[str, Samples], NDArray[np.float32] | None]:
    """Return sets and reference whitened or reduced according to the settings, by PCA of the reference.

    Args:
        sets: by name.
        reference: float32, (r, d), the pool; None takes the distinct vectors of all sets together.
        embedding: the settings.

    Raises:
        InputError: if the vectors vary too little, or one equals their mean.
    """
    if not embedding.whiten and embedding.reduce is None:
        return dict(sets), reference
    # Sorted by name: the order of arguments must not change a value.
    pool = np.concatenate([sets[name].vectors for name in sorted(sets)]) if reference is None else reference
    try:
        fitted = Whitening.of(distinct_rows(pool)[0], whiten=embedding.whiten, reduce=embedding.reduce)
    except ValueError as error:
        raise InputError(f"{'--whiten' if embedding.reduce is None else '--reduce'}: {error}") from error
    found, name = {}, "--reference"
    try:
        moved = None if reference is None else fitted.apply(reference)
        for name, samples in sets.items():
            found[name] = Samples(fitted.apply(samples.vectors), samples.texts)
    except NoDirection as error:
        raise InputError(f"{name}: {error}; remove that record, or omit --whiten and --reduce") from error
    return found, moved


def compare(
    sets: Mapping[str, Samples],
    reference: NDArray[np.float32] | None,
    settings: NovelSum,
    grid: Grid,
    seed: int,
    device: str,
    reporter: Reporter,
) -> Comparison:
    """Measure sets at equal size with all measures, those other than NovelSum at their default settings.

    Args:
        sets: by name.
        reference: float32, (r, d), the pool; None takes all sets together.
        settings: variants of NovelSum.
        grid: its K, beta and alpha.
        seed: of sampling, clusterings and draws.
        device: as `Evaluator` takes it.
        reporter: shows progress.

    Raises:
        ValueError: as `measure_sets` does.
    """
    # Sorted by name: k-means is seeded by position, and the order of arguments must not change a value.
    together = [sets[name].vectors for name in sorted(sets)]
    pool = np.concatenate(together) if reference is None else reference
    with reporter.step("preparing"):
        evaluator = Evaluator(pool, settings, Measures(), grid=grid, seed=seed, device=device)
    return measure_sets(sets, evaluator, seed=seed, reporter=reporter)
