"""The nearest picks of each sample of the pool.

Belongs here: finding them. Does not: facility location, the measure made of the nearest one (`diversity.distances`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.density import ExactSearch
from novelsum_dagster.diversity.vectors import as_rows, unit_rows

_TILE = 4096
NEAREST = 3
"""Number of nearest picks stored for each sample."""


@dataclass(frozen=True)
class Covering:
    """The nearest picks of n samples, nearest first; with fewer picks than requested, fewer columns.

    Attributes:
        rank: int64, (n, c): places in the picks, from 0.
        distance: float64, (n, c): cosine distances.
    """

    rank: NDArray[np.int64]
    distance: NDArray[np.float64]


def covering(embeddings: ArrayLike, picks: NDArray[np.int64], count: int = NEAREST) -> Covering:
    """Return the nearest picks of every sample; a pick's nearest is itself, of equally near ones the earlier is first.

    Args:
        embeddings: (n, d), the pool.
        picks: int64, (k,), rows in pick order; of a repeated row the first counts.
        count: picks a sample, default 3.

    Raises:
        ValueError: for bad rows.
    """
    units = unit_rows(as_rows(embeddings))
    # A repeated row would fill all places with itself.
    first = np.sort(np.unique(picks, return_index=True)[1])
    points = units[picks[first]]
    count = min(count, len(points))
    search = ExactSearch(points)
    rank, distance = np.empty((len(units), count), np.int64), np.empty((len(units), count))
    for start in range(0, len(units), _TILE):
        tile = slice(start, start + _TILE)
        squared, found = search.search(units[tile], count)
        rank[tile] = first[found]
        distance[tile] = squared / 2
    return Covering(rank, distance)
