"""A pool on disk after the search for near-duplicates by vectors.

Belongs here: the folder of such a pool, reading it back. Does not: the search (`similar`), pools as they are read
(`pool.ingest`).

The folder has the tables of the pool that was read, near_duplicates with both kinds, and:

| table | a row is |
|---|---|
| similar | a sample whose vector was compared: id, cosine to its nearest neighbour (null if it is the only one) |
| neighbours | a distinct direction, in the order of the walk (`Neighbours`): a pool that grows is compared faster |
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.files import content_key, place_folder, temporary_folder, write_table
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.similar import Neighbours, Similar, similar_samples
from novelsum_dagster.pool.keeping import keeping_order
from novelsum_dagster.pool.snapshot import ALL_NEAR_DUPLICATES, BY_TEXT, BY_VECTORS, PoolSnapshot
from novelsum_dagster.settings import NearDuplicates

_SHARED = ("samples", "origins", "rejects")
"""Tables of the pool that was read."""


def distinct_pool(
    root: Path,
    read: PoolSnapshot,
    vectors: NDArray[np.float32],
    vectors_key: str,
    rule: NearDuplicates,
    quality: str | None = None,
    *,
    earlier: PoolSnapshot | None = None,
    device: str = "cpu",
    spread: Spread = in_turn,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = no_progress,
) -> PoolSnapshot:
    """Find near-duplicates by vectors and write the pool with them; return the pool read if the rule needs no vectors.

    Samples that MinHash has flagged are skipped: each sample is a near-duplicate at most once.

    Args:
        root: the storage folder.
        read: the pool.
        vectors: float32, (n, d), in its order.
        vectors_key: key of the vector set.
        rule: the least similarity, which of a group stays, whether the others are dropped.
        quality: field of the records that decides which sample is kept, if the rule uses one.
        earlier: another such pool, whose comparisons are reused; the result is the same without it.
        device, spread: as in `similar_samples`.
        say: called with a phrase: how many vectors were compared with how many.
        progress: called with vectors compared and their number.

    Raises:
        InputError: if a quality is missing.
        ValueError, NotEnoughMemory: as `similar_samples` does.
    """
    if not rule.by_vectors:
        return read
    samples = read.samples(root, ["id", "file"])
    flagged = read.table(root, "near_duplicates")
    looked_at = pc.invert(pc.is_in(samples["id"], value_set=flagged["id"])).to_numpy()
    order = keeping_order(read, root, rule, quality)
    place = np.cumsum(looked_at) - 1
    found = similar_samples(
        vectors[looked_at] if not looked_at.all() else vectors,
        place[order[looked_at[order]]],
        rule.similarity,
        neighbours_of(earlier, root) if earlier is not None else None,
        device=device,
        spread=spread,
        progress=progress,
    )
    say(found.compared)
    compared = samples.filter(pa.array(looked_at))
    near = pa.concat_tables(
        [
            flagged.append_column("found_by", pa.array([BY_TEXT] * len(flagged), pa.string())),
            _rows(compared["id"], found),
        ]
    ).cast(ALL_NEAR_DUPLICATES)
    snapshot = _written(root, read, vectors_key, rule, near, compared["id"], found)
    return snapshot.without(compared["file"].take(pa.array(found.rows)).to_pylist()) if rule.drop else snapshot


def neighbours_of(pool: PoolSnapshot, root: Path) -> Neighbours | None:
    """Read the neighbours stored with a pool; None if no vectors were compared, or the table is damaged."""
    if pool.read_as is None:
        return None
    try:
        return Neighbours.of_table(pool.table(root, "neighbours"))
    except (pa.ArrowException, OSError):
        return None


def similarities(pool: PoolSnapshot, root: Path) -> NDArray[np.float64] | None:
    """Return the cosine of each compared sample to its nearest neighbour; None if none were compared."""
    if pool.read_as is None:
        return None
    found: NDArray[np.float64] = pool.table(root, "similar", ["similarity"])["similarity"].drop_null().to_numpy()
    return found


def _rows(ids: pa.ChunkedArray, found: Similar) -> pa.Table:
    columns = {
        "id": ids.take(pa.array(found.rows)),
        "partner_id": ids.take(pa.array(found.partners)),
        "score": found.similarity,
        "found_by": pa.array([BY_VECTORS] * len(found.rows), pa.string()),
    }
    return pa.table(columns, schema=ALL_NEAR_DUPLICATES)


def _written(
    root: Path,
    read: PoolSnapshot,
    vectors_key: str,
    rule: NearDuplicates,
    near: pa.Table,
    ids: pa.ChunkedArray,
    found: Similar,
) -> PoolSnapshot:
    made_of = {"snapshot": read.key, "vectors": vectors_key, "near": near.to_pylist()}
    key = content_key({**made_of, **rule.model_dump(include={"similarity", "keep", "drop"})})
    with temporary_folder(root / "pool") as folder:
        for name in _SHARED:
            _share(root / read.folder / f"{name}.parquet", folder / f"{name}.parquet")
        pq.write_table(near, folder / "near_duplicates.parquet")
        similar = pa.table({"id": ids, "similarity": pa.array(found.nearest, from_pandas=True)})
        write_table(similar, folder / "similar.parquet")
        write_table(found.neighbours.table(), folder / "neighbours.parquet")
        place_folder(folder, root / output_folder("pool", key))
    facts = {"key": key, "folder": output_folder("pool", key), "read_as": read.key, "near_duplicates": len(near)}
    return read.model_copy(update={**facts, "near_duplicates_dropped": rule.drop})


def _share(path: Path, place: Path) -> None:
    """Hard-link a file, which never changes; copy it if the file system does not support hard links."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)
