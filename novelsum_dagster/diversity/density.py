"""The density factor: how densely the sample space is filled around a sample.

In a dense region a small distance means more, so the factor is large there; it is largest among near-duplicates.

Belongs here: K-nearest-neighbour distances and the factor made of them. Does not: distances between samples of a
set (`novelsum`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.vectors import as_rows
from novelsum_dagster.progress import Progress, no_progress

_TILE = 4096
_EPSILON = 1e-9
"""Keeps the factor finite where K neighbours are at distance 0 (published code)."""


@dataclass(frozen=True)
class Density:
    """Distances of n samples to their neighbours in a reference set of r distinct points.

    Attributes:
        mean_squared_distance: float64, (n,): mean squared L2 distance to the `neighbors` nearest reference points.
        neighbors: K as used.
        reference_size: r.
    """

    mean_squared_distance: NDArray[np.float64]
    neighbors: int
    reference_size: int

    def factor(self, density_power: float = 0.5) -> NDArray[np.float64]:
        """Return the density factor `(q + 1e-9) ** -density_power`: float64, (n,); larger where space is denser.

        Raises:
            ValueError: for a negative power.
        """
        return density_factor(self.mean_squared_distance, density_power)


def density_factor(mean_squared_distance: NDArray[np.float64], density_power: float) -> NDArray[np.float64]:
    """Return `(mean_squared_distance + 1e-9) ** -density_power`, elementwise.

    Raises:
        ValueError: for a negative power.
    """
    if not density_power >= 0:
        raise ValueError(f"density_power is {density_power}; it must be 0 or more")
    return np.asarray((mean_squared_distance + _EPSILON) ** -density_power, dtype=np.float64)


def density(
    target: ArrayLike, reference: ArrayLike | None = None, *, neighbors: int = 10, progress: Progress = no_progress
) -> Density:
    """Search each target's nearest points in the reference, exactly.

    As in the published code: exact duplicates are taken out of the reference, `neighbors + 1` points are asked for
    and the first is always dropped as the sample itself. (Paper, section 4; UmeanNever/NovelSum.)

    Args:
        target: (n, d) embeddings, as given (not normalised here).
        reference: (r, d) embeddings; None takes the target.
        neighbors: K, default 10.
        progress: called with targets searched and n.

    Raises:
        ValueError: for bad rows, unequal dimensions, or a reference of fewer than K + 1 distinct points.
    """
    import faiss

    rows = as_rows(target, "target")
    points = np.unique(rows if reference is None else as_rows(reference, "reference"), axis=0)
    if points.shape[1] != rows.shape[1]:
        raise ValueError(f"target has {rows.shape[1]} dimensions, reference {points.shape[1]}; embed both alike")
    if neighbors < 1:
        raise ValueError(f"neighbors is {neighbors}; it must be 1 or more")
    if len(points) <= neighbors:
        raise ValueError(
            f"the reference has {len(points)} distinct points; {neighbors} neighbors need at least {neighbors + 1}"
        )
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    squared = np.empty((len(rows), neighbors + 1), dtype=np.float32)
    for start in range(0, len(rows), _TILE):
        stop = min(start + _TILE, len(rows))
        squared[start:stop], _ = index.search(rows[start:stop], neighbors + 1)
        progress(stop, len(rows))
    # FAISS computes |x|^2 + |y|^2 - 2xy, which rounding can take below zero.
    nearest = np.maximum(squared[:, 1:], 0)
    return Density(nearest.mean(1, dtype=np.float64), neighbors, len(points))
