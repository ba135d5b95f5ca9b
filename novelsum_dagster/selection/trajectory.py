"""How near one sample came to being picked by NovelSelect: its score after every pick, beside the score that won.

Belongs here: that sample's scores, exactly, without those of the others. Does not: its place among all (`exact`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import unit_rows


@dataclass(frozen=True)
class Trajectory:
    """The scores of one sample, `y F`, float64, (k,): `score[m]` once m + 1 picks were made."""

    score: NDArray[np.float64]

    def closest(self, winning: NDArray[np.float64]) -> int | None:
        """Return the pick, from 0, at which the sample's score was the largest part of the one that won.

        Args:
            winning: float64, (k,): the score of each pick; NaN where it was not picked by score.

        Returns:
            None where no pick was made by score after the first.
        """
        # Before pick m the sample's score is that after m picks: score[m - 1].
        share = self.score[:-1] / winning[1:]
        return None if np.isnan(share).all() else int(np.nanargmax(share)) + 1


def trajectory(
    vector: NDArray[np.float32],
    factor: float,
    picks: NDArray[np.float32],
    pick_factors: NDArray[np.float64],
    *,
    proximity_power: float = 1.0,
    quality: float = 1.0,
) -> Trajectory:
    """Return a sample's score after every pick, as NovelSelect defines it.

    Args:
        vector: float32, (d,), of the sample.
        factor: its density factor.
        picks: float32, (k, d), vectors of the picks in order.
        pick_factors: float64, (k,), their density factors.
        proximity_power: alpha, default 1.0.
        quality: of the sample, default 1.

    Raises:
        ValueError: for a vector of zeros.
    """
    own = unit_rows(np.ascontiguousarray(vector[None, :], dtype=np.float32), "sample")[0]
    cosines = unit_rows(np.ascontiguousarray(picks, dtype=np.float32), "picks").astype(np.float64) @ own
    distances = (1 - cosines) * (factor + pick_factors)
    weights = rank_weights(len(distances), proximity_power)
    ascending = np.empty(0)
    score = np.empty(len(distances))
    for made, distance in enumerate(distances):
        ascending = np.insert(ascending, np.searchsorted(ascending, distance), distance)
        score[made] = quality * (ascending @ weights[: made + 1])
    return Trajectory(score)
