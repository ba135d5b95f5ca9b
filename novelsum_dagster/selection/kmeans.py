"""K-means: cluster the pool, then draw evenly from the clusters.

Belongs here: that strategy. Does not: the clustering measures of diversity.
"""

import math

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.diversity.clusters import centres_of, nearest_centre
from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.picks import PickLog


def kmeans(inputs: Inputs, *, clusters: int | None = None) -> PickLog:
    """Cluster the unit rows, then draw one sample of each cluster in turn until there are k picks.

    Clusters take their turns in a seeded random order that stays the same, a cluster's samples come in a seeded
    random order, and a cluster that is used up is passed over. Progress is reported once, at the end. (K-means of the
    paper's comparison; FAISS k-means, 20 iterations.)

    Args:
        inputs: its seed is that of the clustering and the draw.
        clusters: number of clusters, 1 to n; None takes the square root of n, rounded up, at most k.

    Raises:
        ValueError: for `clusters` out of range.
    """
    n, k = len(inputs.units), inputs.k
    wanted = min(k, math.ceil(math.sqrt(n))) if clusters is None else clusters
    if not 1 <= wanted <= n:
        raise ValueError(f"clusters is {wanted:,} and the pool has {n:,} samples; clusters must be from 1 to {n:,}")
    labels = nearest_centre(inputs.units, centres_of(inputs.units, wanted, inputs.seed))
    inputs.progress(k, k)
    return PickLog.of(_drawn_in_turn(labels, wanted, inputs.seed)[:k])


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
