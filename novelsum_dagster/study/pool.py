"""The pool of a study: the samples to choose from, the held-out samples, and density at every K.

Belongs here: the split, stored on disk, and reading it back. Does not: other vectors of its samples (`views`), the sets
(`sets`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key, write_bytes, write_table
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import Search, densities, density_factor
from novelsum_dagster.diversity.novelsum import Factors
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import NovelSum, Study
from novelsum_dagster.study.training import held_out_rows, train_tokenizer

AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)


class StudyPool(Artifact):
    """The split of a pool.

    `file` has one row per sample: id, held_out and, for those that sets are chosen from, the mean squared distance to
    their K nearest others, one column for each K. Sets are not chosen from the source `unseen`, whose other samples
    are not used.
    """

    snapshot: str
    vectors: str
    file: str
    tokenizer: str
    neighbors: tuple[int, ...]
    samples: int
    held_out: int
    unseen: str | None = None


def once(root: Path, file: str, kind: type[AnyArtifact], build: Callable[[], AnyArtifact]) -> AnyArtifact:
    """Return the content of `file` under the storage folder; if it is missing, build and write it.

    This is how an interrupted study resumes.

    Raises:
        ValueError: if the file is damaged.
    """
    path = root / file
    if path.exists():
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it; the next run rebuilds it") from error
    built = build()
    write_bytes((built.model_dump_json(indent=2) + "\n").encode(), path)
    return built


def build_study_pool(
    root: Path,
    snapshot: PoolSnapshot,
    vectors: VectorSet,
    novelsum: NovelSum,
    study: Study,
    progress: Progress = no_progress,
) -> StudyPool:
    """Split a pool, search density within what is not held out, and train the tokenizer that all models share.

    Args:
        root: the storage folder.
        snapshot, vectors: the pool.
        novelsum: how neighbours are searched.
        study: settings of the study.
        progress: called with samples searched and n.

    Raises:
        InputError: if a source has too few samples for the held-out ones or is missing, or vectors belong to
            another pool.
        ValueError: as `densities` does.
    """
    wanted = neighbors_wanted(novelsum, study)
    asked = {
        "snapshot": snapshot.key,
        "vectors": vectors.key,
        "neighbors": wanted,
        "search": [novelsum.neighbor_policy, novelsum.density_index, novelsum.min_recall],
        "held_out": study.held_out,
        "seed": study.seeds[0],
        "vocabulary": study.training.vocabulary,
        **({} if study.unseen is None else {"unseen": study.unseen}),
    }
    key = content_key(asked)
    folder = f"study/pool={key}"

    def build() -> StudyPool:
        ids, rows = pool_vectors(root, snapshot, vectors)
        samples = snapshot.samples(root, ["source", "text"])
        held_out, offered = _split(samples["source"].to_pylist(), study)
        found = mean_squared_distances(rows[offered], wanted, novelsum, progress)
        columns = {name: _spread(values, offered) for name, values in found.items()}
        table = pa.table({"id": pa.array(ids, pa.string()), "held_out": held_out, **columns})
        write_table(table, root / folder / "pool.parquet")
        texts = samples["text"].filter(pa.array(offered)).to_pylist()
        tokenizer = f"{folder}/tokenizer.json"
        write_bytes(train_tokenizer(texts, study.training.vocabulary).encode(), root / tokenizer)
        return StudyPool(
            key=key,
            snapshot=snapshot.key,
            vectors=vectors.key,
            file=f"{folder}/pool.parquet",
            tokenizer=tokenizer,
            neighbors=wanted,
            samples=int(offered.sum()),
            held_out=int(held_out.sum()),
            unseen=study.unseen,
        )

    return once(root, f"{folder}/study_pool.json", StudyPool, build)


def neighbors_wanted(novelsum: NovelSum, study: Study) -> tuple[int, ...]:
    """Return every K at which a study needs density."""
    return tuple(dict.fromkeys([*study.neighbors, novelsum.neighbors]))


def mean_squared_distances(
    rows: NDArray[np.float32], neighbors: tuple[int, ...], novelsum: NovelSum, progress: Progress = no_progress
) -> dict[str, NDArray[np.float64]]:
    """Return the mean squared distance of each row, (n, d), to its K nearest others, float64, (n,), by column's name.

    Raises:
        ValueError: as `densities` does.
    """
    found = densities(rows, None, neighbors, Search.of(novelsum), progress=progress)
    return {_column(k): found[k].mean_squared_distance for k in neighbors}


@dataclass(frozen=True)
class Represented:
    """The samples that sets are chosen from, under one representation; each part is read on first use.

    Attributes:
        root: the storage folder.
        key: hash of vectors and densities.
        snapshot, vector_set: the pool, and its vectors.
        file: table with the mean squared distances, one row per sample of the pool or per sample offered.
        offered: bool, (n,), which samples of the pool sets are chosen from.
        kept: how many of the pool's samples have no text of this kind and use the text that they have in the pool.
    """

    root: Path
    key: str
    snapshot: PoolSnapshot
    vector_set: VectorSet
    file: str
    offered: NDArray[np.bool_] = field(compare=False)
    kept: int = 0

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors of the samples offered: float32, (n, d)."""
        _, rows = pool_vectors(self.root, self.snapshot, self.vector_set)
        return rows[self.offered]

    def factor(self, neighbors: int, density_power: float) -> NDArray[np.float64]:
        """Return the density factors of the samples offered: float64, (n,)."""
        return density_factor(self._densities[_column(neighbors)].drop_null().to_numpy(), density_power)

    def factors(self, rows: NDArray[np.int64], neighbors: tuple[int, ...], powers: tuple[float, ...]) -> Factors:
        """Return the density factors of some rows by (K, beta)."""
        return {(k, float(beta)): self.factor(k, beta)[rows] for k in neighbors for beta in powers}

    @cached_property
    def _densities(self) -> pa.Table:
        return pq.read_table(self.root / self.file, partitioning=None)


@dataclass(frozen=True)
class StudyData:
    """A study's pool in memory; each part is read on first use.

    Attributes:
        root: the storage folder.
        snapshot, vector_set: the pool.
        pool: its split.
    """

    root: Path
    snapshot: PoolSnapshot
    vector_set: VectorSet
    pool: StudyPool

    @cached_property
    def own(self) -> Represented:
        """The samples that sets are chosen from, under the vectors of the pool."""
        return Represented(
            self.root, self.pool.key, self.snapshot, self.vector_set, self.pool.file, self._offered.to_numpy()
        )

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the samples that sets are chosen from."""
        ids: list[str] = self._split["id"].filter(self._offered).to_pylist()
        return ids

    @cached_property
    def texts(self) -> list[str]:
        """The texts of the samples that sets are chosen from."""
        texts: list[str] = self._samples["text"].filter(self._offered).to_pylist()
        return texts

    @cached_property
    def held_out(self) -> dict[str, list[str]]:
        """The held-out texts by source, including the unseen source."""
        rows = self._samples.filter(self._split["held_out"]).to_pylist()
        return {source: [row["text"] for row in rows if row["source"] == source] for source in _sources(rows)}

    @property
    def tokenizer(self) -> str:
        """The tokenizer of models from scratch, as JSON."""
        return (self.root / self.pool.tokenizer).read_text(encoding="utf-8")

    @cached_property
    def _split(self) -> pa.Table:
        return pq.read_table(self.root / self.pool.file, partitioning=None)

    @cached_property
    def _offered(self) -> pa.ChunkedArray:
        # Density is defined by those samples alone.
        return self._split[_column(self.pool.neighbors[0])].is_valid()

    @cached_property
    def _samples(self) -> pa.Table:
        return self.snapshot.samples(self.root, ["source", "text"])


def _split(sources: list[str], study: Study) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which samples are held out, and which sets are chosen from: bool, (n,).

    Raises:
        InputError: as `held_out_rows` does, or if no source has the name `unseen`, or there is no other source.
    """
    names = np.array(sources)
    is_unseen = np.zeros(len(names), dtype=np.bool_) if study.unseen is None else names == study.unseen
    if study.unseen is not None and (not is_unseen.any() or is_unseen.all()):
        there = ", ".join(sorted(set(sources)))
        raise InputError(f"study.unseen: {study.unseen!r} must be one of several sources; the pool has {there}")
    seed, held_out = study.seeds[0], np.zeros(len(names), dtype=np.bool_)
    for part in (~is_unseen, is_unseen):
        if part.any():
            held_out[np.flatnonzero(part)[held_out_rows(names[part].tolist(), study.held_out, seed)]] = True
    return held_out, ~held_out & ~is_unseen


def _column(neighbors: int) -> str:
    return f"mean_squared_distance_{neighbors}"


def _spread(values: NDArray[np.float64], offered: NDArray[np.bool_]) -> pa.Array:
    """Return values of the samples that sets are chosen from as a column of all, null elsewhere."""
    column = np.full(len(offered), np.nan)
    column[offered] = values
    return pa.array(column, from_pandas=True)


def _sources(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["source"] for row in rows))
