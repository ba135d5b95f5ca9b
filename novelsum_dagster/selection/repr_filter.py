"""Repr Filter: go through the samples from the best down and skip those that resemble a kept sample.

Belongs here: that strategy. Does not: the removal of near-duplicates from the pool.
"""

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.diversity.vectors import cosine_distances
from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.picks import PickLog

_BLOCK = 512


def repr_filter(inputs: Inputs, *, threshold: float = 0.9) -> PickLog:
    """Keep the next sample in order of quality unless its cosine to a kept one is above `threshold`; stop at k.

    Order: highest quality first, the lowest index first among equals; without quality a seeded random order. A pick's
    score is its quality. (Liu et al., "What Makes Good Data for Alignment?", ICLR 2024, DEITA. Its code,
    hkust-nlp/deita, does the same with batches of one sample; in larger batches it also rejects what resembles a
    rejected sample of the same batch.)

    Args:
        inputs: its seed is that of the random order, its progress of samples kept.
        threshold: -1 to 1, default 0.9; 1 keeps every sample.

    Raises:
        ValueError: for `threshold` out of range, or if fewer than k pass.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; a cosine is from -1 to 1")
    units, quality, k = inputs.units, inputs.quality, inputs.k
    n = len(units)
    if quality is None:
        order = np.random.default_rng(inputs.seed).permutation(n)
    else:
        order = np.argsort(-quality, kind="stable")
    kept = np.empty(k, np.int64)
    kept_rows = np.empty((k, units.shape[1]), np.float32)
    count = 0
    for start in range(0, n, _BLOCK):
        block = order[start : start + _BLOCK]
        passed = block[_passing(units[block], kept_rows[:count], threshold)][: k - count]
        kept[count : count + len(passed)] = passed
        kept_rows[count : count + len(passed)] = units[passed]
        count += len(passed)
        inputs.progress(count, k)
        if count == k:
            return PickLog.of(kept, None if quality is None else quality[kept])
    raise ValueError(
        f"repr_filter: {count:,} of {n:,} samples pass at threshold {threshold} and k is {k:,}; raise threshold, or"
        f" lower k to {count:,}"
    )


def _passing(rows: NDArray[np.float32], kept_rows: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Return the rows of a block that are kept, given the rows kept before it: int64, ascending."""
    # Distances are exact and never negative, so a threshold of 1 keeps every sample.
    least = 1 - threshold
    candidates = np.arange(len(rows))
    if len(kept_rows):
        candidates = candidates[cosine_distances(rows, kept_rows).min(axis=1) >= least]
    alike = cosine_distances(rows[candidates], rows[candidates]) < least
    is_kept = np.ones(len(candidates), np.bool_)
    for position in range(len(candidates)):
        if is_kept[position]:
            is_kept[position + 1 :] &= ~alike[position, position + 1 :]
    return candidates[is_kept]
