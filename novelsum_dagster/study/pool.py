"""The pool of a study: what sets are chosen from, what is held out for evaluation, and density at every K.

Belongs here: the split, kept on disk, and reading it back. Does not: the sets (`sets`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.diversity.density import densities, density_factor
from novelsum_dagster.diversity.measures import Factors
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.files import content_key, write_bytes, write_table
from novelsum_dagster.pool.snapshot import Handle, PoolSnapshot
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.settings import NovelSum, Study
from novelsum_dagster.study.training import held_out_rows, train_tokenizer

AnyHandle = TypeVar("AnyHandle", bound=Handle)


class StudyPool(Handle):
    """The split of a pool.

    `file` has a row a sample: id, held_out, and of those not held out the mean squared distance to their K nearest
    others, a column for each K.
    """

    snapshot: str
    vectors: str
    file: str
    tokenizer: str
    neighbors: tuple[int, ...]
    samples: int
    held_out: int


def once(root: Path, file: str, kind: type[AnyHandle], build: Callable[[], AnyHandle]) -> AnyHandle:
    """Return what `file` under the storage folder holds; where it is not there, build it and write it.

    A study that was broken off goes on where it was.

    Raises:
        ValueError: where the file is damaged.
    """
    path = root / file
    if path.exists():
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it, and it is made again") from error
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
        InputError: where a source has too few samples for the held-out ones, or vectors belong to another pool.
        ValueError: as `densities` does.
    """
    wanted = tuple(dict.fromkeys([*study.neighbors, novelsum.neighbors]))
    asked = {
        "snapshot": snapshot.key,
        "vectors": vectors.key,
        "neighbors": wanted,
        "search": [novelsum.neighbor_policy, novelsum.density_index, novelsum.min_recall],
        "held_out": study.held_out,
        "seed": study.seeds[0],
        "vocabulary": study.training.vocabulary,
    }
    key = content_key(asked)
    folder = f"study/pool={key}"

    def build() -> StudyPool:
        ids, rows = pool_vectors(root, snapshot, vectors)
        samples = snapshot.samples(root, ["source", "text"])
        held_out = np.zeros(len(ids), dtype=np.bool_)
        held_out[held_out_rows(samples["source"].to_pylist(), study.held_out, study.seeds[0])] = True
        found = densities(
            rows[~held_out],
            neighbors=wanted,
            neighbor_policy=novelsum.neighbor_policy,
            index=novelsum.density_index,
            min_recall=novelsum.min_recall,
            progress=progress,
        )
        columns = {f"mean_squared_distance_{k}": _spread(found[k].mean_squared_distance, held_out) for k in wanted}
        table = pa.table({"id": pa.array(ids, pa.string()), "held_out": held_out, **columns})
        write_table(table, root / folder / "pool.parquet")
        texts = samples["text"].filter(pa.array(~held_out)).to_pylist()
        tokenizer = f"{folder}/tokenizer.json"
        write_bytes(train_tokenizer(texts, study.training.vocabulary).encode(), root / tokenizer)
        return StudyPool(
            key=key,
            snapshot=snapshot.key,
            vectors=vectors.key,
            file=f"{folder}/pool.parquet",
            tokenizer=tokenizer,
            neighbors=wanted,
            samples=int((~held_out).sum()),
            held_out=int(held_out.sum()),
        )

    return once(root, f"{folder}/study_pool.json", StudyPool, build)


@dataclass(frozen=True)
class StudyData:
    """A study's pool in memory, each part read when it is first asked for.

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
    def vectors(self) -> NDArray[np.float32]:
        """Of the samples that are not held out: float32, (n, d)."""
        _, rows = pool_vectors(self.root, self.snapshot, self.vector_set)
        return rows[self._chosen]

    @cached_property
    def ids(self) -> list[str]:
        """Of the samples that are not held out."""
        ids: list[str] = self._split["id"].filter(pa.array(self._chosen)).to_pylist()
        return ids

    @cached_property
    def texts(self) -> list[str]:
        """Of the samples that are not held out."""
        texts: list[str] = self._samples["text"].filter(pa.array(self._chosen)).to_pylist()
        return texts

    @cached_property
    def held_out(self) -> dict[str, list[str]]:
        """The held-out texts by source."""
        rows = self._samples.filter(pa.array(~self._chosen)).to_pylist()
        return {source: [row["text"] for row in rows if row["source"] == source] for source in _sources(rows)}

    @property
    def tokenizer(self) -> str:
        """The tokenizer of models from scratch, as JSON."""
        return (self.root / self.pool.tokenizer).read_text(encoding="utf-8")

    def factor(self, neighbors: int, density_power: float) -> NDArray[np.float64]:
        """Return the density factors of the samples that are not held out: float64, (n,)."""
        column = self._split[f"mean_squared_distance_{neighbors}"].filter(pa.array(self._chosen))
        return density_factor(column.to_numpy(), density_power)

    def factors(self, rows: NDArray[np.int64], neighbors: tuple[int, ...], powers: tuple[float, ...]) -> Factors:
        """Return the density factors of some rows by (K, beta)."""
        return {(k, float(beta)): self.factor(k, beta)[rows] for k in neighbors for beta in powers}

    @cached_property
    def _split(self) -> pa.Table:
        return pq.read_table(self.root / self.pool.file, partitioning=None)

    @cached_property
    def _chosen(self) -> NDArray[np.bool_]:
        return np.asarray(~self._split["held_out"].to_numpy())

    @cached_property
    def _samples(self) -> pa.Table:
        return self.snapshot.samples(self.root, ["source", "text"])


def _spread(values: NDArray[np.float64], held_out: NDArray[np.bool_]) -> pa.Array:
    """Return values of the samples that are not held out as a column of all, null elsewhere."""
    column = np.full(len(held_out), np.nan)
    column[~held_out] = values
    return pa.array(column, from_pandas=True)


def _sources(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["source"] for row in rows))
