"""Export of a run's pool for embedding-atlas, another viewer of embeddings.

Belongs here: the file's columns and each sample's nearest neighbours. Does not: the page, computing the map.

The format is that of embedding-atlas' documentation (https://apple.github.io/embedding-atlas/tool.html, "Visualizing
Embeddings"): `--x`, `--y` and `--text` name columns, and `--neighbors` one of `{"ids": [...], "distances": [...]}`,
where ids are rows of the file, from 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.common.files import write_table
from novelsum_dagster.diversity.density import ExactSearch, Found
from novelsum_dagster.diversity.vectors import searchable_rows, unit_rows
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.explore.pool_map import load_map
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.runs import Run

NEIGHBORS = 15
EXACT = 50_000
"""Samples up to which neighbours are exact; beyond, a twentieth of the pool is searched."""
_TILE = 1024
_TRAINED_ON = 40
"""Training points per inverted list."""


def export(connection: Connection, root: Path, run: Run, path: Path) -> int:
    """Write a run's pool for embedding-atlas; return the number of samples.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        run: a run with a map.
        path: the file, .parquet: id, x, y, text, source, tokens, picked, rank, neighbors.

    Raises:
        InputError: if the run has no map, or samples no vectors.
    """
    pool = load_map(connection, root, run)
    places = pa.table({"row": np.arange(len(pool.x)), "id": pool.ids})
    connection.register("explored_places", places)
    found: Any = connection.sql(
        "SELECT samples.text FROM explored_places AS places"
        " LEFT JOIN samples ON samples.id = places.id AND samples.snapshot = ? ORDER BY places.row",
        params=[run.snapshot],
    )
    vectors = load_vectors(root / run.vectors_folder, pool.ids.to_pylist())
    names: Any = pa.array(pool.sources, pa.string())
    table = pa.table(
        {
            "id": pool.ids,
            "x": pool.x,
            "y": pool.y,
            "text": found.to_arrow_table()["text"],
            "source": names.take(pa.array(pool.source)),
            "tokens": pool.tokens,
            "picked": pool.rank > 0,
            "rank": pa.array(pool.rank, mask=pool.rank == 0),
            "neighbors": neighbors(vectors, NEIGHBORS),
        }
    )
    write_table(table, path)
    return len(table)


def neighbors(vectors: NDArray[np.float32], count: int) -> pa.StructArray:
    """Return each row's nearest other rows, nearest first: `{ids: list<int32>, distances: list<float>}`.

    Args:
        vectors: float32, (n, d).
        count: of neighbours; fewer in a smaller pool.

    Distances are cosine distances. Up to `EXACT` rows, neighbours are exact.
    """
    units = unit_rows(searchable_rows(vectors, "vectors"))
    count = max(0, min(count, len(units) - 1))
    squared, ids = _nearest(units, count + 1)
    # Among equal rows, the row itself is not always the first, and may be missing.
    own = ids == np.arange(len(units))[:, None]
    own[~own.any(axis=1), -1] = True
    kept, distances = ids[~own], squared[~own] / 2
    offsets = pa.array(np.arange(len(units) + 1, dtype=np.int32) * count)
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(kept.astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(distances)),
    ]
    return pa.StructArray.from_arrays(lists, names=["ids", "distances"])


def _nearest(units: NDArray[np.float32], count: int) -> Found:
    """Return squared distances and rows of the nearest rows, including the row itself."""
    search: Callable[[NDArray[np.float32], int], Found]
    if len(units) > EXACT:
        import faiss

        lists = int(4 * len(units) ** 0.5)
        index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(units.shape[1]), units.shape[1], lists)
        index.nprobe = lists // 20
        chosen = np.random.default_rng(0).permutation(len(units))[: _TRAINED_ON * lists]
        index.train(units[np.sort(chosen)])
        index.add(units)
        search = index.search
    else:
        search = ExactSearch(units).search
    parts = [search(units[start : start + _TILE], count) for start in range(0, len(units), _TILE)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
