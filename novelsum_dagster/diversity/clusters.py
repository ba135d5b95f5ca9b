"""Measures that cluster: cluster inertia, partition entropy.

Belongs here: k-means and the measures made of it. Does not: selection by clusters (`selection.kmeans`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.vectors import distinct_rows, searchable_rows

_ITERATIONS = 20
_TILE = 4096


def centres_of(rows: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float32]:
    """Return the centres of k-means (FAISS, 20 iterations, on at most 256 samples a cluster): float32, (clusters, d).

    Args:
        rows: float32, (n, d).
        clusters: 1 to n.
        seed: of the sampled and the first centres.
    """
    import faiss

    # Small clusters are fine here; without this FAISS warns on standard output.
    trained = faiss.Kmeans(rows.shape[1], clusters, niter=_ITERATIONS, seed=seed, min_points_per_centroid=1)
    trained.train(rows)
    return np.asarray(trained.centroids, dtype=np.float32)


def nearest_centre(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centre of each row: int64, (n,)."""
    import faiss

    nearest = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _TILE):
        nearest[start : start + _TILE] = faiss.knn(rows[start : start + _TILE], centres, 1)[1][:, 0]
    return nearest


def cluster_inertia(target: ArrayLike, *, clusters: int = 200, seed: int = 42) -> Measured:
    """Return the inertia of k-means: the sum of squared L2 distances to the nearest centre, rows as given.

    200 clusters are the paper's for 10,000 samples; where there are no more distinct samples than clusters, each is
    its own centre and the inertia 0. (Du and Black, 2019; paper, section 3.)

    Args:
        target: (n, d) embeddings.
        clusters: default 200.
        seed: default 42.

    Raises:
        ValueError: for bad rows, rows too long to square in float32, or clusters below 1.
    """
    if clusters < 1:
        raise ValueError(f"clusters is {clusters}; it must be 1 or more")
    rows = searchable_rows(target, "target")
    squared = np.zeros(len(rows))
    if clusters < len(distinct_rows(rows)[0]):
        centres = centres_of(rows, clusters, seed)
        nearest = nearest_centre(rows, centres)
        for start in range(0, len(rows), _TILE):
            tile = slice(start, start + _TILE)
            squared[tile] = np.square(rows[tile].astype(np.float64) - centres[nearest[tile]]).sum(axis=1)
    return Measured(float(squared.sum()), len(rows) * (squared - squared.mean()))


@dataclass(frozen=True)
class Partition:
    """A partition of the sample space into the cells of k-means centres: float32, (clusters, d)."""

    centres: NDArray[np.float32]

    @classmethod
    def of(cls, reference: ArrayLike, *, clusters: int = 100, seed: int = 42) -> "Partition":
        """Cluster a reference, (r, d), rows as given.

        Raises:
            ValueError: for bad rows, rows too long to square in float32, or more clusters than samples.
        """
        rows = searchable_rows(reference, "reference")
        if not 1 <= clusters <= len(rows):
            raise ValueError(f"clusters is {clusters:,} and the reference has {len(rows):,} samples; give 1 to as many")
        return cls(centres_of(rows, clusters, seed))

    def cells(self, target: ArrayLike) -> NDArray[np.int64]:
        """Return the cell of each row, (n, d): int64, (n,).

        Raises:
            ValueError: for bad rows, rows too long to square in float32, or dimensions other than the reference's.
        """
        rows = searchable_rows(target, "target")
        if rows.shape[1] != self.centres.shape[1]:
            raise ValueError(
                f"target has {rows.shape[1]} dimensions, reference {self.centres.shape[1]}; embed both alike"
            )
        return nearest_centre(rows, self.centres)

    def counts(self, target: ArrayLike) -> NDArray[np.int64]:
        """Return how many rows lie in each cell: int64, (clusters,). Counts of parts of a set add up.

        Raises:
            ValueError: as `cells` does.
        """
        return np.bincount(self.cells(target), minlength=len(self.centres))


def entropy(counts: NDArray[np.int64]) -> float:
    """Return `-sum p log2 p` of counts, in bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(abs((shares * np.log2(shares)).sum()))


def partition_entropy(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    clusters: int = 100,
    seed: int = 42,
    partition: Partition | None = None,
) -> Measured:
    """Return the entropy of the set over the cells of k-means on the reference, in bits: 0 to log2(clusters).

    (Han et al., 2022; published as `entropy.py`, whose 100 clusters, 20 iterations and seed are the defaults.)

    Args:
        target: (n, d) embeddings.
        reference: (r, d) embeddings, normally the pool; None takes the target.
        clusters: default 100.
        seed: default 42.
        partition: of the reference, where it is known.

    Raises:
        ValueError: for bad rows, rows too long to square in float32, unequal dimensions, or more clusters than
            reference samples.
    """
    rows = searchable_rows(target, "target")
    if partition is None:
        partition = Partition.of(rows if reference is None else reference, clusters=clusters, seed=seed)
    cells = partition.cells(rows)
    counts = np.bincount(cells, minlength=len(partition.centres))
    value = entropy(counts)
    return Measured(value, -np.log2(counts[cells] / len(cells)) - value)
