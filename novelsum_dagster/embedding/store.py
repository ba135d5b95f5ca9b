"""The vector store: every sample is embedded once per model, and its vector stored in a shard.

Belongs here: shards of vectors by sample id for one model, adding missing vectors, reading in any order.
Does not: models (`encoder`).

Layout: `vectors/<model key>/model.json` and `vectors/<model key>/<hash of ids>.parquet` with columns `id` and
`vector` (fixed-size list of float32). A shard is written atomically, so a killed run loses one at most.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.artifact import Artifact, Key
from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import KEY_LENGTH, read_json, write_json, write_table
from novelsum_dagster.common.memory import require_memory
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.embedding.encoder import EncoderOf, Model, identify, load_encoder
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Embedding

_KEPT_BYTES = 2**30
"""Most bytes of vectors that are kept in memory after use."""
_BYTES_PER_ID = 400
"""Memory per sample for its id as text, its position, and whether it was found."""


class VectorSet(Artifact):
    """The vectors of a pool, in its order.

    `embedded` of its `samples` were new to the store. `cut_samples` have texts that the model did not read to the end,
    `unread_fraction` is the fraction of all tokens that it did not read. For the user's own vectors, `model` is the
    name given, `revision` the SHA-256 of their file, and `max_tokens` 0. If PCA transforms them (`whitening`),
    `transformed_from` is the folder of the model's vectors, and the transformed ones vary in `rank` directions.
    """

    folder: str
    ids_from: Key
    """Key of the pool snapshot whose order the vectors follow."""
    model: str
    revision: str
    max_tokens: int
    dtype: str
    device: str
    dimension: int
    samples: int
    embedded: int
    cut_samples: int = 0
    unread_fraction: float = 0.0
    transformed_from: str | None = None
    rank: int | None = None

    def files_in(self, root: Path, folder: Path) -> Iterable[Path]:
        """Yield the files with vectors of the pool; shards of other pools alone can be removed with those."""
        files = list(super().files_in(root, folder))
        samples = root / output_folder("pool", self.ids_from) / "samples.parquet"
        if not samples.exists():
            return files
        ids = set(pq.read_table(samples, columns=["id"], partitioning=None)["id"].to_pylist())
        shards = [path for path in files if path.suffix == ".parquet"]
        others = set(shards) - set(shards_with(shards, ids))
        return [path for path in files if path not in others]


class VectorStore:
    """The vectors of one model under `root/vectors`."""

    def __init__(self, root: Path, model: Model) -> None:
        self.model = model
        self.name = f"vectors/{model.key}"
        self.folder = root / self.name

    def dtype(self) -> str | None:
        """Return the number type of the model that made the stored vectors; None for an empty store."""
        path = self.folder / "model.json"
        return str(read_json(path)["weights_dtype"]) if path.exists() else None

    def ids(self) -> set[str]:
        """Return the ids of all samples that have a vector."""
        found: set[str] = set()
        for path in _shards(self.folder):
            found.update(_read(path, ["id"])["id"].to_pylist())
        return found

    def add(self, ids: Sequence[str], vectors: NDArray[np.float32], dtype: str) -> tuple[str, ...]:
        """Commit one shard; return the names of its files within the storage folder.

        Args:
            ids: sample ids, (n,).
            vectors: float32, (n, d).
            dtype: number type of the model's weights.
        """
        if not (self.folder / "model.json").exists():
            facts = {**asdict(self.model), "weights_dtype": dtype, "dimension": vectors.shape[1]}
            write_json(facts, self.folder / "model.json")
        rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:KEY_LENGTH]
        write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": rows}), self.folder / f"{name}.parquet")
        return f"{self.name}/model.json", f"{self.name}/{name}.parquet"


def embed(
    root: Path,
    settings: Embedding,
    ids: Sequence[str],
    texts: Sequence[str],
    ids_from: str,
    progress: Progress = no_progress,
    committed: Callable[..., object] = lambda *names: None,
    device: str = "auto",
    encoder_of: EncoderOf = load_encoder,
) -> VectorSet:
    """Embed the samples that have no vector yet, and return the set of all.

    Args:
        root: the storage folder.
        settings: the model and its parameters.
        ids, texts: the pool in order, (n,).
        ids_from: key of the pool snapshot.
        progress: called after every shard with the numbers of samples done and in total.
        committed: called with the names of the files of each shard, once it is complete.
        device: as the setting `device`.
        encoder_of: returns the encoder; default: in this process.
    """
    store = VectorStore(root, identify(settings))
    known = store.ids()
    missing = [row for row, id_ in enumerate(ids) if id_ not in known]
    used = "none"
    progress(0, len(missing))
    if missing:
        # The model is loaded only if needed; all vectors of a store are computed with one number type.
        dtype = None if settings.dtype == "auto" else settings.dtype
        encoder = encoder_of(settings, store.dtype() or dtype, device)
        used = encoder.device
        done = 0
        for rows, vectors in _shards_of(encoder.batches([texts[row] for row in missing]), settings.shard_size):
            committed(*store.add([ids[missing[row]] for row in rows], vectors, encoder.dtype))
            done += len(rows)
            progress(done, len(missing))
    vectors = load_vectors(store.folder, ids)
    return VectorSet(
        key=vectors_key(ids, vectors),
        folder=store.name,
        ids_from=ids_from,
        model=settings.model,
        revision=store.model.revision,
        max_tokens=settings.max_tokens,
        dtype=store.dtype() or "",
        device=used,
        dimension=vectors.shape[1],
        samples=len(ids),
        embedded=len(missing),
    )


def vectors_key(ids: Sequence[str], vectors: NDArray[np.float32]) -> str:
    """Return the key of a pool's vectors, (n, d), in its order."""
    digest = hashlib.sha256("\n".join(ids).encode())
    digest.update(vectors.data)
    return digest.hexdigest()[:KEY_LENGTH]


def _shards_of(
    batches: Iterable[tuple[list[int], NDArray[np.float32]]], size: int
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Regroup batches into shards of `size` rows; the last one may be smaller."""
    rows: list[int] = []
    parts: list[NDArray[np.float32]] = []
    for batch, vectors in batches:
        rows += batch
        parts.append(vectors)
        if len(rows) >= size:
            waiting = np.concatenate(parts)
            while len(rows) >= size:
                yield rows[:size], waiting[:size]
                rows, waiting = rows[size:], waiting[size:]
            parts = [waiting]
    if rows:
        yield rows, np.concatenate(parts)


def pool_vectors(root: Path, snapshot: PoolSnapshot, vectors: VectorSet) -> tuple[list[str], NDArray[np.float32]]:
    """Return the pool's ids and vectors, in pool order: (n,) and float32 (n, d).

    Raises:
        InputError: if the vectors belong to another snapshot.
    """
    if vectors.ids_from not in (snapshot.key, snapshot.read_as):
        raise InputError(
            f"embeddings belong to pool snapshot {vectors.ids_from}, the pool is {snapshot.key}; materialise"
            " embeddings again"
        )
    ids = snapshot.samples(root, ["id"])["id"].to_pylist()
    return ids, load_vectors(root / vectors.folder, ids)


@dataclass(frozen=True)
class _Loaded:
    """Vectors that were loaded last, and what determines them: the shards in their state then, and the ids."""

    shards: list[tuple[Path, int, int]]
    ids: list[str]
    vectors: NDArray[np.float32]


_last_loaded: _Loaded | None = None


def load_vectors(folder: Path, ids: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of `ids` from a model's folder, in that order: float32, (len(ids), d), read-only.

    Holds one shard in memory besides the result. The last result of up to 1 GiB is kept, because most steps of a run
    load the same vectors.

    Raises:
        InputError: if vectors are missing, or a shard is damaged.
        NotEnoughMemory: if they would not fit into memory.
    """
    global _last_loaded
    shards, ids = [_state(path) for path in _shards(folder)], list(ids)
    found = _last_loaded
    if found is None or (found.shards, found.ids) != (shards, ids):
        found = _last_loaded = None  # Their memory is free before others are loaded.
        found = _Loaded(shards, ids, _load(folder, ids))
        found.vectors.flags.writeable = False
        if found.vectors.nbytes <= _KEPT_BYTES:
            _last_loaded = found
    return found.vectors


def _load(folder: Path, ids: Sequence[str]) -> NDArray[np.float32]:
    place = {id_: row for row, id_ in enumerate(ids)}
    result: NDArray[np.float32] | None = None
    filled = np.zeros(len(ids), dtype=bool)
    for path in _shards(folder):
        shard = _read(path)
        rows = shard["vector"].combine_chunks().flatten().to_numpy().reshape(len(shard), -1)
        if result is None:
            require_memory(
                memory_needed(len(ids), rows.shape[1]),
                f"holding {len(ids):,} vectors of {rows.shape[1]} dimensions",
                "use a smaller pool, or a machine with more memory",
            )
            result = np.empty((len(ids), rows.shape[1]), dtype=np.float32)
        wanted = [(at, place[id_]) for at, id_ in enumerate(shard["id"].to_pylist()) if id_ in place]
        if wanted:
            source, target = np.array(wanted).T
            result[target] = rows[source]
            filled[target] = True
    if result is None or not filled.all():
        raise InputError(f"{folder}: {np.sum(~filled):,} of {len(ids):,} samples have no vector; embed first")
    return result


def memory_needed(samples: int, dimension: int) -> int:
    """Return the bytes of the vectors of this many samples in memory, including the samples' ids."""
    return samples * (4 * dimension + _BYTES_PER_ID)


@dataclass(frozen=True)
class StoredVectors:
    """Lazily read vectors of a model's folder: NumPy converts them to an array, float32, (len(ids), d).

    Attributes:
        folder: of the model, `<storage>/<VectorSet.folder>`.
        ids: samples, in the order of the rows.
    """

    folder: Path
    ids: Sequence[str]

    @staticmethod
    def of_pool(root: Path, snapshot: PoolSnapshot, vectors: VectorSet) -> "StoredVectors":
        """Return the vectors of a pool, in its order."""
        return StoredVectors(root / vectors.folder, snapshot.samples(root, ["id"])["id"].to_pylist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(load_vectors(self.folder, self.ids), dtype=dtype)


def shards_with(shards: Iterable[Path], ids: Container[str]) -> list[Path]:
    """Return the shards that contain a vector of one of the samples, or that cannot be read."""
    found = []
    for path in shards:
        try:
            if any(id_ in ids for id_ in _read(path, ["id"])["id"].to_pylist()):
                found.append(path)
        except InputError:
            found.append(path)
    return found


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _state(path: Path) -> tuple[Path, int, int]:
    """Return a file's path, size and modification time, which differ after a change."""
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: damaged shard ({error}); delete it, and the next run embeds its samples again"
        ) from error
