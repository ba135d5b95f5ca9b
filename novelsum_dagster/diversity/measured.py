"""The result of a measure: its value and the data for its confidence interval.

Belongs here: the result type that all measures but NovelSum share, the bootstrap. Does not: any measure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """The value of a measure.

    Attributes:
        value: of the whole set.
        influence: float64, (m,), mean 0: to first order, giving sample i the weight (1 + e) / m among m samples moves
            the value by e * influence[i] / m. Samples are those of the set, or of the pool where the value is a sum
            over the pool.
    """

    value: float
    influence: NDArray[np.float64]

    def interval(self, confidence: float = 0.95, seed: int = 42) -> tuple[float, float]:
        """Return a bootstrap percentile interval over 1,000 resamples of the samples, to first order.

        Each resample moves the value by the mean influence of the samples drawn. Recomputing the measure on resamples
        would be wrong: a sample drawn twice is an exact duplicate, which every diversity measure counts as a loss.
        """
        low, high = mean_interval(self.influence, confidence, seed)
        return self.value + low, self.value + high


def mean_interval(values: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """Return a bootstrap percentile interval of the mean of values, float64, (m,); the mean itself if m is 1."""
    size = len(values)
    if size < 2:
        return float(values.mean()), float(values.mean())
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, size, size)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
