"""How near one sample came to being picked by NovelSelect: its score after every pick, beside the score that won.

Belongs here: that sample's scores, exactly, without those of the others; bounds of the others' from what a selection
left behind. Does not: every sample's place among all (`exact`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows

_TILE_VALUES = 2**22
"""Distances held at a time: 32 MiB of float64."""


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
    own = unit_rows(np.ascontiguousarray(vector[None, :], dtype=np.float32), "sample")
    chosen = unit_rows(np.ascontiguousarray(picks, dtype=np.float32), "picks")
    distances = cosine_distances(own, chosen)[0] * (factor + pick_factors)
    weights = rank_weights(len(distances), proximity_power)
    ascending, score = np.empty(len(distances)), np.empty(len(distances))
    for made, distance in enumerate(distances):
        place = ascending[:made].searchsorted(distance)
        ascending[place + 1 : made + 1] = ascending[place:made]
        ascending[place] = distance
        score[made] = quality * (ascending[: made + 1] @ weights[: made + 1])
    return Trajectory(score)


def bounds_at_end(
    score: NDArray[np.float64],
    after_picks: NDArray[np.int64],
    factors: NDArray[np.float64],
    pick_factors: NDArray[np.float64],
    *,
    proximity_power: float = 1.0,
) -> NDArray[np.float64]:
    """Return upper bounds of samples' scores after all picks, float64, (n,), from what held after some of them.

    A pick raises a score by `r^-alpha D` at most, where r is the pick's rank; no cosine distance is over 2.

    Args:
        score: float64, (n,), exact or upper bounds, of quality 1; NaN where nothing is known.
        after_picks: int64, (n,), how many picks had been made then.
        factors: float64, (n,), the samples' density factors.
        pick_factors: float64, (k,), those of the picks in order.
        proximity_power: alpha, default 1.0.
    """
    weights = rank_weights(len(pick_factors), proximity_power)
    known = ~np.isnan(score)
    seen = np.where(known, after_picks, 0)
    later_w, later_g = (
        sums[-1] - sums[seen] for sums in (_sums(weights), _sums(weights * np.asarray(pick_factors, np.float64)))
    )
    return np.asarray(np.where(known, score, 0.0) + 2 * (factors * later_w + later_g))


def scores_at_end(
    vectors: NDArray[np.float32],
    factors: NDArray[np.float64],
    picks: NDArray[np.float32],
    pick_factors: NDArray[np.float64],
    *,
    proximity_power: float = 1.0,
) -> NDArray[np.float64]:
    """Return the scores of samples after all picks, float64, (n,), as `trajectory` does for one.

    Args:
        vectors: float32, (n, d), of the samples.
        factors: float64, (n,), their density factors.
        picks: float32, (k, d), vectors of the picks in order.
        pick_factors: float64, (k,), their density factors.
        proximity_power: alpha, default 1.0.

    Raises:
        ValueError: for a vector of zeros.
    """
    units = unit_rows(np.ascontiguousarray(vectors, dtype=np.float32), "samples")
    chosen = unit_rows(np.ascontiguousarray(picks, dtype=np.float32), "picks")
    weights = rank_weights(len(chosen), proximity_power)
    scores = np.empty(len(units))
    tile = max(1, _TILE_VALUES // len(chosen))
    for start in range(0, len(units), tile):
        part = slice(start, start + tile)
        distances = cosine_distances(units[part], chosen) * (factors[part, None] + pick_factors)
        distances.sort(axis=1)
        scores[part] = distances @ weights
    return scores


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])
