"""The vectors of a pool, by a model or the user's own, raw or transformed by PCA: the only place that chooses.

Belongs here: filling the store for a pool, truncation of its texts. Does not: models (`encoder`), the store, PCA
(`whitening`).

Transformed vectors have their own folder in the store, named after the pool's vectors on which PCA was fitted, with
the map in `whitening.safetensors`. The model's vectors are kept, so a growing pool embeds only new samples; all are
transformed again then.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.embedding.cut import Cut, cut_of
from novelsum_dagster.embedding.encoder import Encoder, Model, identify, load_encoder, special_tokens
from novelsum_dagster.embedding.own_vectors import OwnVectors, PoolAt, own_vectors
from novelsum_dagster.embedding.store import VectorSet, VectorStore, embed, load_vectors, vectors_key
from novelsum_dagster.embedding.whitening import NoDirection, Whitening
from novelsum_dagster.settings import Embedding


class Models(Protocol):
    """The part of an engine (`engine.Engine`) that embeds."""

    def device(self, wanted: str) -> str:
        """Return the device, given that of the settings."""
        ...

    def encoder(self, settings: Embedding, dtype: str | None, device: str) -> Encoder:
        """Return the encoder of the settings."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """Parameters of computing vectors.

    Attributes:
        progress: called after every shard with the numbers of samples done and in total.
        fetched: called with the name of the store's folder, within the storage folder, before it is read.
        committed: called with the names of the files of each shard, once it is complete.
        device: as the setting `device`.
        engine: that runs the model; None: this process.
    """

    progress: Progress = no_progress
    fetched: Callable[[str], object] = lambda name: None
    committed: Callable[..., object] = lambda *names: None
    device: str = "auto"
    engine: Models | None = None


_PLAIN = Work()
_MAP = "whitening.safetensors"


def vectors_of_pool(pool: PoolAt, settings: Embedding, storage: Path, work: Work = _PLAIN) -> VectorSet:
    """Return the vectors of a pool; missing ones are embedded, or read from `embedding.vectors`.

    Args:
        pool: the samples.
        settings: the model, or the user's own vectors.
        storage: the folder with the store.
        work: parameters of computing vectors.

    Raises:
        InputError: as `load_encoder` and `own_vectors` do, or if the vectors cannot be transformed as configured.
    """
    if settings.vectors is None:
        model = identify(settings)
        found = _by_model(pool, settings, storage, work)
    else:
        own = own_vectors(pool, settings)
        model, found = own.model, _by_own(own, settings, storage, work)
    if settings.whiten or settings.reduce is not None:
        found = _transformed(pool, found, model, settings, storage, work)
    cut = cut_of_pool(pool, settings)
    return found.model_copy(update={"cut_samples": cut.cut, "unread_fraction": cut.fraction})


def cut_of_pool(pool: PoolAt, settings: Embedding) -> Cut:
    """Return the truncation of a pool's texts."""
    special = 0 if settings.long == "windows" or settings.vectors is not None else special_tokens(settings)
    return cut_of(pool.column("text_tokens"), settings, special)


def _transformed(
    pool: PoolAt, found: VectorSet, model: Model, settings: Embedding, storage: Path, work: Work
) -> VectorSet:
    """Return a pool's vectors whitened or reduced; stored ones are reused.

    Raises:
        InputError: if they vary too little, or one equals their mean.
    """
    fitted = replace(model, whiten=settings.whiten, reduce=settings.reduce, fitted_on=found.key)
    store, ids = VectorStore(storage, fitted), pool.column("id")
    work.fetched(store.name)
    if not (store.folder / _MAP).exists() or not store.ids().issuperset(ids):
        # All of them: existing ones may come from another processor.
        _transform(pool, found, store, settings, work)
    vectors = load_vectors(store.folder, ids)
    changed = {
        "key": vectors_key(ids, vectors),
        "folder": store.name,
        "dimension": vectors.shape[1],
        "transformed_from": found.folder,
        "rank": Whitening.load(store.folder / _MAP).rank,
    }
    return found.model_copy(update=changed)


def _transform(pool: PoolAt, found: VectorSet, store: VectorStore, settings: Embedding, work: Work) -> None:
    """Fit PCA on a pool's vectors; write the transformed ones, then the map."""
    ids = pool.column("id")
    vectors = load_vectors(store.folder.parents[1] / found.folder, ids)
    name = "reduce" if settings.reduce is not None else "whiten"
    try:
        fitted = Whitening.of(vectors, whiten=settings.whiten, reduce=settings.reduce)
    except ValueError as error:
        raise InputError(f"embedding.{name}: {error}") from error
    for start in range(0, len(ids), settings.shard_size):
        part = slice(start, start + settings.shard_size)
        try:
            rows = fitted.apply(vectors[part])
        except NoDirection as error:
            record = pool.snapshot.record_at(pool.root, start + error.row)
            raise InputError(
                f"embedding.{name}: the vector of {record} equals the mean of the pool's, so nothing is left of it;"
                " remove the record from the sources, or remove the setting"
            ) from error
        work.committed(*store.add(ids[part], rows, found.dtype))
    fitted.save(store.folder / _MAP)
    work.committed(f"{store.name}/{_MAP}")


def _by_model(pool: PoolAt, settings: Embedding, storage: Path, work: Work) -> VectorSet:
    work.fetched(VectorStore(storage, identify(settings)).name)
    return embed(
        storage,
        settings,
        pool.column("id"),
        pool.column("text"),
        pool.snapshot.key,
        work.progress,
        committed=work.committed,
        device=work.device if work.engine is None else work.engine.device(work.device),
        encoder_of=load_encoder if work.engine is None else work.engine.encoder,
    )


def _by_own(own: OwnVectors, settings: Embedding, storage: Path, work: Work) -> VectorSet:
    store = VectorStore(storage, own.model)
    work.fetched(store.name)
    added = 0
    work.progress(added, len(own.ids))
    for count, names in own.add_to(store, settings.shard_size):
        work.committed(*names)
        added += count
        work.progress(added, len(own.ids))
    vectors = load_vectors(store.folder, own.ids)
    return VectorSet(
        key=vectors_key(own.ids, vectors),
        folder=store.name,
        ids_from=own.pool.snapshot.key,
        model=own.model.name,
        revision=own.model.revision,
        max_tokens=own.model.max_tokens,
        dtype=own.model.dtype,
        device="none",
        dimension=vectors.shape[1],
        samples=len(own.ids),
        embedded=added,
    )
