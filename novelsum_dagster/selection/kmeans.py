"""K-means: cluster the pool, then draw evenly from the clusters.

Belongs here: that strategy. Does not: the clustering measures of diversity.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.clusters import centres_of, nearest_centre
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.picks import Picks, recorded


def kmeans(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
    clusters: int | None = None,
) -> Picks:
    """Cluster the unit rows, then draw one sample of each cluster in turn until there are k picks.

    Clusters take their turns in a seeded random order that stays the same, a cluster's samples come in a seeded
    random order, and a cluster that is used up is passed over. (K-means of the paper's comparison; FAISS k-means, 20
    iterations.)

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,), for the record.
        seed: of the clustering and the draw, default 42.
        progress: called once, at the end.
        clusters: number of clusters, 1 to n; None takes the square root of n, rounded up, at most k.

    Raises:
        ValueError: for bad rows, factors or qualities, or k or `clusters` out of range.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    n = len(inputs.units)
    wanted = min(k, math.ceil(math.sqrt(n))) if clusters is None else clusters
    if not 1 <= wanted <= n:
        raise ValueError(f"clusters is {wanted:,} and the pool has {n:,} samples; clusters must be from 1 to {n:,}")
    labels = nearest_centre(inputs.units, centres_of(inputs.units, wanted, seed))
    progress(k, k)
    return recorded(_drawn_in_turn(labels, wanted, seed)[:k], *inputs)


def _drawn_in_turn(labels: NDArray[np.int64], clusters: int, seed: int) -> NDArray[np.int64]:
    """Return all rows in the order of the draw: int64, (n,)."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    turn = generator.permutation(clusters)
    by_cluster = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels, minlength=clusters)
    first_of_cluster = np.cumsum(sizes) - sizes
    sorted_labels = labels[by_cluster]
    rounds = np.arange(len(labels)) - first_of_cluster[sorted_labels]
    return by_cluster[np.lexsort((turn[sorted_labels], rounds))]
