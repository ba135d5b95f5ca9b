"""NovelSum: the diversity of a set as the mean novelty of its samples.

Belongs here: the measure and its confidence interval. Does not: density (`density`), choosing a subset
(`selection`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.vectors import as_rows, unit_rows
from novelsum_dagster.progress import Progress, no_progress

_TILE_VALUES = 2**24
"""Distances held at a time: 64 MiB of float32."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class NovelSumResult:
    """The diversity of a set of n samples.

    Attributes:
        value: NovelSum, the mean novelty.
        novelty: float64, (n,): each sample's density-weighted, proximity-weighted distance to the set.
    """

    value: float
    novelty: NDArray[np.float64]

    def interval(self, confidence: float = 0.95, seed: int = 42) -> tuple[float, float]:
        """Return a bootstrap percentile interval of the mean novelty over 1,000 resamples of the set's samples.

        It tells how far the value depends on single samples; distances are not recomputed for each resample.
        """
        if len(self.novelty) < 2:
            return self.value, self.value
        generator = np.random.default_rng(seed)
        size = len(self.novelty)
        means = [self.novelty[generator.integers(0, size, size)].mean() for _ in range(_RESAMPLES)]
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)


def novelsum(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    neighbors: int = 10,
    density_power: float = 0.5,
    proximity_power: float = 1.0,
    progress: Progress = no_progress,
) -> NovelSumResult:
    """Return NovelSum of a set, as the published code computes it.

    `v_i = s_i * sum_r r^-alpha d_(r)(i) / sum_r r^-alpha` over the whole ascending row of cosine distances, the
    sample itself included at rank 1; NovelSum is the mean of `v_i`. It depends on n: compare sets of equal size.
    (Paper, section 4; UmeanNever/NovelSum.)

    Args:
        target: (n, d) embeddings of the set.
        reference: (r, d) embeddings that define density, normally the pool; None takes the target. Not used where
            `density_power` is 0.
        neighbors: K of the density factor, default 10.
        density_power: beta, default 0.5.
        proximity_power: alpha, default 1.0.
        progress: called with rows done and n.

    Raises:
        ValueError: for bad rows, unequal dimensions, or negative powers.
    """
    rows = as_rows(target, "target")
    if density_power == 0:
        factor = np.ones(len(rows))
    else:
        factor = density(rows, reference, neighbors=neighbors).factor(density_power)
    return novelsum_with_density(rows, factor, proximity_power=proximity_power, progress=progress)


def novelsum_with_density(
    target: ArrayLike,
    density_factor: NDArray[np.float64],
    *,
    proximity_power: float = 1.0,
    progress: Progress = no_progress,
) -> NovelSumResult:
    """Return NovelSum of a set whose density factors are known.

    Args:
        target: (n, d) embeddings of the set.
        density_factor: float64, (n,).
        proximity_power: alpha, default 1.0.
        progress: called with rows done and n.

    Raises:
        ValueError: for bad rows or a negative power.
    """
    rows = unit_rows(as_rows(target, "target"), "target")
    size = len(rows)
    weights = rank_weights(size, proximity_power)
    novelty = np.empty(size)
    tile = max(1, _TILE_VALUES // size)
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        distances = 1 - rows[start:stop] @ rows.T
        distances.sort(axis=1)
        novelty[start:stop] = distances @ weights
        progress(stop, size)
    novelty *= density_factor / weights.sum()
    return NovelSumResult(float(novelty.mean()), novelty)


def rank_weights(size: int, proximity_power: float) -> NDArray[np.float64]:
    """Return the proximity weights `r ** -proximity_power` of ranks 1 to `size`: float64, (size,).

    Raises:
        ValueError: for a negative power.
    """
    if not proximity_power >= 0:
        raise ValueError(f"proximity_power is {proximity_power}; it must be 0 or more")
    return np.arange(1, size + 1, dtype=np.float64) ** -proximity_power
