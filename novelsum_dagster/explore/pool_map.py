"""Data of the explorer's map: reading, filtering, thinning and searching samples.

Does not belong here: drawing (`map_figure`), the page, computing the map (`report.tables`).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run

DRAWN = 100_000
"""Default number of samples drawn, in addition to all picks."""
HITS = 100
"""Maximum number of search results."""
_SHOWN_LETTERS = 160
Picked = Literal["all", "picked", "not picked"]


@dataclass(frozen=True)
class PoolMap:
    """All samples of a run's pool, in pool order.

    Attributes:
        ids: string, (n,).
        x, y: float32, (n,): the place on the map.
        source: int32, (n,): row of `sources`.
        sources: names, most frequent first.
        rank: int64, (n,): rank of the sample's first pick, from 1; 0 if it was not picked.
        tokens: int64, (n,).
        snippets: string, (n,): the beginnings of the texts.
    """

    ids: pa.Array
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    source: NDArray[np.int32]
    sources: tuple[str, ...]
    rank: NDArray[np.int64]
    tokens: NDArray[np.int64]
    snippets: pa.Array

    def after_picks(self, count: int) -> "PoolMap":
        """Return the map after the first `count` picks: later picks count as not picked."""
        return replace(self, rank=np.where(self.rank <= count, self.rank, 0))

    def rows(self, chosen: NDArray[np.int64]) -> pa.Table:
        """Return samples as a table: id, source, rank (null if not picked), tokens, x, y, snippet."""
        rank = self.rank[chosen]
        return pa.table(
            {
                "id": self.ids.take(pa.array(chosen)),
                "source": pa.array([self.sources[code] for code in self.source[chosen]], pa.string()),
                "rank": pa.array(rank, mask=rank == 0),
                "tokens": self.tokens[chosen],
                "x": self.x[chosen],
                "y": self.y[chosen],
                "snippet": self.snippets.take(pa.array(chosen)),
            }
        )

    def row_of(self, id_: str) -> int | None:
        """Return the row of a sample; None if it is not on the map, e.g. a dropped near-duplicate."""
        found = pc.index(self.ids, pa.scalar(id_, self.ids.type)).as_py()
        return None if found < 0 else int(found)


def load_map(connection: Connection, root: Path, run: Run) -> PoolMap:
    """Read the map of a run from its report.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        run: a run with a report.

    Raises:
        InputError: if the report has no map.
    """
    path = root / output_folder("reports", run.report) / "map.parquet"
    if not path.exists():
        raise InputError(
            f"run {run.short} has no map: {path} is missing, because the run is of an earlier version or the file was"
            " deleted; the next run with these settings writes one (novelsum run)"
        )
    table: Any = connection.sql(
        """
        SELECT
            points.id, points.x::FLOAT AS x, points.y::FLOAT AS y, points.source, points.snippet,
            coalesce(points.rank, 0)::BIGINT AS rank, coalesce(samples.tokens, 0)::BIGINT AS tokens
        FROM read_parquet(?, file_row_number = true, hive_partitioning = false) AS points
        LEFT JOIN samples ON samples.snapshot = ? AND samples.id = points.id
        ORDER BY points.file_row_number
        """,
        params=[str(path), run.snapshot],
    )
    return map_of(table.to_arrow_table())


def map_of(table: pa.Table) -> PoolMap:
    """Return a map from a table: id, x, y, source, snippet, rank (0 if not picked), tokens."""
    codes, names = _by_frequency(table["source"])
    return PoolMap(
        ids=table["id"].combine_chunks(),
        x=table["x"].to_numpy().astype(np.float32),
        y=table["y"].to_numpy().astype(np.float32),
        source=codes,
        sources=names,
        rank=table["rank"].to_numpy(),
        tokens=table["tokens"].to_numpy(),
        snippets=table["snippet"].combine_chunks(),
    )


def _by_frequency(sources: pa.ChunkedArray) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    encoded = sources.combine_chunks().dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    order = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    place = np.empty(len(names), dtype=np.int32)
    place[order] = np.arange(len(names), dtype=np.int32)
    return place[codes], tuple(names[code] for code in order)


def fitting(
    pool: PoolMap, sources: Collection[str] = (), picked: Picked = "all", tokens: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return which samples pass the filters.

    Args:
        pool: the map.
        sources: names; empty means all.
        picked: picks, other samples, or all.
        tokens: minimum and maximum of a sample's tokens.
    """
    mask = np.ones(len(pool.x), dtype=bool)
    if sources:
        mask &= np.isin(pool.source, [code for code, name in enumerate(pool.sources) if name in sources])
    if picked != "all":
        mask &= (pool.rank > 0) == (picked == "picked")
    if tokens is not None:
        mask &= (pool.tokens >= tokens[0]) & (pool.tokens <= tokens[1])
    return mask


def thinned(mask: NDArray[np.bool_], rank: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """Return the rows to draw, int64, ascending: all picks that pass the filters, and at most `most` others.

    Samples have a fixed random order, so they do not flicker when filters change.

    Args:
        mask: bool, (n,): samples that pass the filters.
        rank: int64, (n,): 0 if not picked.
        most: samples besides the picks; None draws all.
    """
    others = np.flatnonzero(mask & (rank == 0))
    if most is not None and len(others) > most:
        order = np.random.default_rng(0).random(len(mask))[others]
        others = others[np.argpartition(order, most)[:most]] if most else others[:0]
    return np.sort(np.concatenate([others, np.flatnonzero(mask & (rank > 0))]))


def search(connection: Connection, run: Run, query: str) -> list[dict[str, Any]]:
    """Return samples whose id begins with, or whose text contains, the query: picks first, by rank; `HITS` + 1 at most.

    Args:
        connection: to the lineage, for reading.
        run: whose snapshot is searched, including dropped near-duplicates.
        query: case-insensitive literal text.
    """
    return all_rows(
        connection,
        """
        WITH chosen AS (SELECT id, min(rank) AS rank FROM picks WHERE selection = ? GROUP BY id)
        SELECT samples.id, chosen.rank, samples.source, samples.tokens, left(samples.text, ?) AS text
        FROM samples
        LEFT JOIN chosen ON chosen.id = samples.id
        WHERE samples.snapshot = ? AND (starts_with(samples.id, lower(?)) OR contains(lower(samples.text), lower(?)))
        ORDER BY chosen.rank NULLS LAST, samples.id
        LIMIT ?
        """,
        [run.selection, _SHOWN_LETTERS, run.snapshot, query, query, HITS + 1],
    )
