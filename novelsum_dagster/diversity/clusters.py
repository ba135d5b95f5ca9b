"""Measures that cluster: cluster inertia, partition entropy.

Belongs here: k-means and the measures made of it. Does not: selection by clusters (`selection.kmeans`).
"""

from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.vectors import distinct_rows, searchable_rows

_ITERATIONS = 20
_TRAINED_ON = 256
"""Most samples per cluster that k-means is trained on, as in FAISS."""
_SECOND_DRAW = 1
"""Offset that FAISS adds to the seed when drawing the first centres."""
_SPLIT_SEED, _SPLIT = 1234, 1 / 1024
"""FAISS's seed for choosing clusters to split, and the relative shift of the coordinates of their centres."""
_TILE = 1024


def centres_of(rows: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float32]:
    """Return the centres of k-means, 20 iterations on at most 256 samples a cluster: float32, (clusters, d).

    Samples and first centres are drawn, and clusters without samples filled, as FAISS does it, so the centres are those
    of FAISS but for the rounding of float32. Here products are exact (`_rounded`), so that centres are the same on
    every processor. Of equally near centres a sample belongs to the first. (Lloyd, 1982; published `entropy.py`.)

    Args:
        rows: float32, (n, d).
        clusters: 1 to n.
        seed: of the sampled and the first centres.
    """
    from novelsum_dagster.diversity.cluster_kernels import add_rows

    if len(rows) > _TRAINED_ON * clusters:
        rows = rows[_drawn(len(rows), seed)[: _TRAINED_ON * clusters]]
    rounded = _rounded(rows)
    if len(rows) == clusters:
        return rounded
    centres = rounded[_drawn(len(rows), seed + _SECOND_DRAW)[:clusters]]
    for _ in range(_ITERATIONS):
        nearest = _nearest(rounded, centres)
        sums, counts = np.zeros(centres.shape), np.bincount(nearest, minlength=clusters)
        add_rows(rows, nearest, sums)
        means = sums / np.maximum(counts, 1)[:, None]
        _split(means, counts)
        centres = _rounded(means)
    return centres


def nearest_centre(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centre of each row, of equally near ones the first: int64, (n,)."""
    starts = range(0, len(rows), _TILE)
    return np.concatenate([_nearest(_rounded(rows[start : start + _TILE]), centres) for start in starts])


def _nearest(rounded: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centre of each row that is rounded: int64, (n,)."""
    wide = centres.astype(np.float64)
    half_squares = np.square(wide).sum(axis=1) / 2
    nearest = np.empty(len(rounded), dtype=np.int64)
    for start in range(0, len(rounded), _TILE):
        products = rounded[start : start + _TILE].astype(np.float64) @ wide.T
        np.subtract(half_squares, products, out=products)
        nearest[start : start + _TILE] = products.argmin(axis=1)
    return nearest


def _split(centres: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Split another cluster for each one without samples, as FAISS does, in place: large ones are drawn more often.

    The two centres are moved apart a little, each coordinate up or down in turn.

    Args:
        centres: float64, (clusters, d).
        counts: int64, (clusters,), samples of each; fewer clusters than samples.
    """
    import faiss

    generator = faiss.RandomGenerator(_SPLIT_SEED)  # type: ignore[attr-defined]
    apart = np.where(np.arange(centres.shape[1]) % 2 == 0, _SPLIT, -_SPLIT)
    sizes = counts.astype(np.float64)
    for empty in np.flatnonzero(counts == 0):
        chances = (sizes - 1) / (counts.sum() - len(counts))
        other = next(one for one in cycle(range(len(sizes))) if generator.rand_float() < np.float32(chances[one]))
        centres[empty], centres[other] = centres[other] * (1 + apart), centres[other] * (1 - apart)
        sizes[empty] = sizes[other] = sizes[other] / 2


def _squared(
    rows: NDArray[np.float32], centres: NDArray[np.float32], nearest: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the squared distance of each row to its centre: float64, (n,)."""
    squared = np.empty(len(rows))
    for start in range(0, len(rows), _TILE):
        tile = slice(start, start + _TILE)
        squared[tile] = np.square(rows[tile].astype(np.float64) - centres[nearest[tile]]).sum(axis=1)
    return squared


def _rounded(rows: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float32]:
    """Return rows, (n, d), with coordinates rounded to 2^-25 of the power of two over the row's length: float32.

    As with `unit_rows`, products of two such rows are then exact in float64 in any order of summation.
    """
    rounded = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _TILE):
        tile = rows[start : start + _TILE].astype(np.float64)
        _, exponents = np.frexp(np.sqrt(np.square(tile).sum(axis=1, keepdims=True)))
        scale = np.ldexp(1.0, 25 - exponents)
        tile *= scale
        np.rint(tile, out=tile)
        tile /= scale
        rounded[start : start + _TILE] = tile
    return rounded


def _drawn(size: int, seed: int) -> NDArray[np.int32]:
    """Return a permutation of `size` rows, as FAISS's k-means draws it."""
    import faiss

    permutation = np.empty(size, dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(permutation), size, seed)  # type: ignore[attr-defined]
    return permutation


def cluster_inertia(target: ArrayLike, *, clusters: int = 200, seed: int = 42) -> Measured:
    """Return the inertia of k-means: the sum of squared L2 distances to the nearest centre, rows as given.

    200 clusters are the paper's for 10,000 samples; if there are no more distinct samples than clusters, each is
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
        squared = _squared(rows, centres, nearest_centre(rows, centres))
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
            raise ValueError(
                f"clusters is {clusters:,}; the reference allows 1 to {len(rows):,}, its number of samples"
            )
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
        partition: of the reference, if already computed.

    Raises:
        ValueError: for bad rows, rows too long to square in float32, unequal dimensions, or more clusters than
            reference samples.
    """
    rows = searchable_rows(target, "target")
    if partition is None:
        partition = Partition.of(rows if reference is None else reference, clusters=clusters, seed=seed)
    cells = partition.cells(rows)
    counts = np.bincount(cells, minlength=len(partition.centres))
    shares = counts[counts > 0] / len(cells)
    value = float(abs((shares * np.log2(shares)).sum()))
    return Measured(value, -np.log2(counts[cells] / len(cells)) - value)
