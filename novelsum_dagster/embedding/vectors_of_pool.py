"""The vectors of a pool, by a model or of one's own: the one place that chooses.

Belongs here: filling the store for a pool, what of its texts is cut. Does not: models (`encoder`), the store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from novelsum_dagster.embedding.cut import Cut, cut_of
from novelsum_dagster.embedding.encoder import identify, load_encoder, special_tokens
from novelsum_dagster.embedding.own_vectors import OwnVectors, PoolAt, own_vectors
from novelsum_dagster.embedding.store import VectorSet, VectorStore, embed, load_vectors, vectors_key
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.settings import Embedding

if TYPE_CHECKING:
    from novelsum_dagster.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Work:
    """How vectors are made.

    Attributes:
        progress: called after every shard with samples done and to do.
        fetched: called with the name of the store's folder, within the storage folder, before it is read.
        committed: called with the names of the files of each shard, once it is whole.
        device: as the setting `device`.
        engine: where the model runs; None: in this process.
    """

    progress: Progress = no_progress
    fetched: Callable[[str], object] = lambda name: None
    committed: Callable[..., object] = lambda *names: None
    device: str = "auto"
    engine: "Engine | None" = None


_PLAIN = Work()


def vectors_of_pool(pool: PoolAt, settings: Embedding, storage: Path, work: Work = _PLAIN) -> VectorSet:
    """Return the vectors of a pool; those that the store does not have are embedded, or read from `embedding.vectors`.

    Args:
        pool: the samples.
        settings: the model, or the vectors of one's own.
        storage: the folder with the store.
        work: how vectors are made.

    Raises:
        InputError: as `load_encoder` and `own_vectors` do.
    """
    if settings.vectors is None:
        found = _by_model(pool, settings, storage, work)
    else:
        found = _by_own(own_vectors(pool, settings), settings, storage, work)
    cut = cut_of_pool(pool, settings)
    return found.model_copy(update={"cut_samples": cut.cut, "unread_fraction": cut.fraction})


def cut_of_pool(pool: PoolAt, settings: Embedding) -> Cut:
    """Return what the model does not read of a pool's texts."""
    special = 0 if settings.long == "windows" or settings.vectors is not None else special_tokens(settings)
    return cut_of(pool.column("text_tokens"), settings, special)


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
