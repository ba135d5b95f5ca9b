"""Score trajectories: a sample's NovelSelect score after every pick, compared with the score that won.

Belongs here: exact scores of single samples; bounds of the others' scores, from those that a selection stored. Does
not: every sample's rank among all (`exact`).
"""

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows
from novelsum_dagster.selection.scoring import PUBLISHED, Scoring

_TILE_VALUES = 2**22
"""Number of distances held at a time: 32 MiB of float64."""


def trajectory(
    vector: NDArray[np.float32],
    factor: float,
    picks: NDArray[np.float32],
    pick_factors: NDArray[np.float64],
    *,
    scoring: Scoring = PUBLISHED,
    quality: float = 1.0,
) -> NDArray[np.float64]:
    """Return a sample's score `y F` after every pick, as NovelSelect defines it: float64, (k,), [m] after m + 1 picks.

    Args:
        vector: float32, (d,), of the sample.
        factor: its density factor.
        picks: float32, (k, d), vectors of the picks in order.
        pick_factors: float64, (k,), their density factors.
        scoring: which score; default: the published one.
        quality: of the sample, default 1.

    Raises:
        ValueError: for a vector of zeros.
    """
    own = unit_rows(np.ascontiguousarray(vector[None, :], dtype=np.float32), "sample")
    chosen = unit_rows(np.ascontiguousarray(picks, dtype=np.float32), "picks")
    if scoring.density_side == "objective":
        from novelsum_dagster.selection.search.objective import objective_trajectory

        return objective_trajectory(own, factor, chosen, pick_factors, scoring)
    ranked, summed = _ranked_and_summed(
        cosine_distances(own, chosen), np.array([factor]), np.asarray(pick_factors, np.float64), scoring
    )
    k = len(chosen)
    weights = rank_weights(k, scoring.proximity_power)
    ascending, values, score = np.empty(k), np.empty(k), np.empty(k)
    for made in range(k):
        # Among equally distant picks, the earlier comes first.
        place = ascending[:made].searchsorted(ranked[0, made], side="right")
        for held, new in ((ascending, ranked), (values, summed)):
            held[place + 1 : made + 1] = held[place:made]
            held[place] = new[0, made]
        score[made] = quality * (values[: made + 1] @ weights[: made + 1])
    return score


def closest_pick(score: NDArray[np.float64], winning: NDArray[np.float64], by_difference: bool = False) -> int | None:
    """Return the pick, from 0, at which a sample's score was the largest part of the one that won.

    Args:
        score: float64, (k,), of `trajectory`.
        winning: float64, (k,): the score of each pick; NaN if it was not picked by score.
        by_difference: return the pick at which its score was least below the one that won, which is defined for
            negative scores, too.

    Returns:
        None if no pick was made by score after the first; of parts, by a score over 0.
    """
    # Before pick m the sample's score is that after m picks: score[m - 1].
    if by_difference:
        near = score[:-1] - winning[1:]
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            near = np.where(winning[1:] > 0, score[:-1] / winning[1:], np.nan)
    return None if np.isnan(near).all() else int(np.nanargmax(near)) + 1


def bounds_at_end(
    score: NDArray[np.float64],
    after_picks: NDArray[np.int64],
    factors: NDArray[np.float64],
    pick_factors: NDArray[np.float64],
    *,
    scoring: Scoring = PUBLISHED,
) -> NDArray[np.float64]:
    """Return upper bounds of samples' scores after all picks, float64, (n,), from scores after some of them.

    A pick raises a score by `w_r D` at most, by `w_r f d` where `column` counts; no cosine distance is over 2. r is the
    pick's number, for `column` it may be 1. By `objective` there is no bound: infinity, unless it held after all picks.

    Args:
        score: float64, (n,), exact or upper bounds, of quality 1; NaN if unknown.
        after_picks: int64, (n,), how many picks had been made then.
        factors: float64, (n,), the samples' density factors.
        pick_factors: float64, (k,), those of the picks in order.
        scoring: which score; default: the published one.
    """
    known = ~np.isnan(score)
    seen = np.where(known, after_picks, 0)
    side, k = scoring.density_side, len(pick_factors)
    if side == "objective":
        return np.where(known & (seen == k), score, np.inf)
    weights = np.ones(k) if side == "column" else rank_weights(k, scoring.proximity_power)
    of_picks = weights * np.asarray(pick_factors, np.float64) * scoring.of_picks
    later_w, later_g = (sums[-1] - sums[seen] for sums in (_sums(weights), _sums(of_picks)))
    own = 0.0 if side == "column" else factors
    return np.asarray(np.where(known, score, 0.0) + 2 * (own * later_w + later_g))


def scores_at_end(
    vectors: NDArray[np.float32],
    factors: NDArray[np.float64],
    picks: NDArray[np.float32],
    pick_factors: NDArray[np.float64],
    *,
    scoring: Scoring = PUBLISHED,
) -> NDArray[np.float64]:
    """Return the scores of samples after all picks, float64, (n,), as `trajectory` does for one.

    Args:
        vectors: float32, (n, d), of the samples.
        factors: float64, (n,), their density factors.
        picks: float32, (k, d), vectors of the picks in order.
        pick_factors: float64, (k,), their density factors.
        scoring: which score; default: the published one.

    Raises:
        ValueError: for a vector of zeros.
    """
    units = unit_rows(np.ascontiguousarray(vectors, dtype=np.float32), "samples")
    chosen = unit_rows(np.ascontiguousarray(picks, dtype=np.float32), "picks")
    if scoring.density_side == "objective":
        from novelsum_dagster.selection.search.objective import Chosen

        return Chosen.of(chosen, pick_factors, scoring).scores(units, factors)
    weights = rank_weights(len(chosen), scoring.proximity_power)
    scores = np.empty(len(units))
    tile = max(1, _TILE_VALUES // len(chosen))
    for start in range(0, len(units), tile):
        part = slice(start, start + tile)
        ranked, summed = _ranked_and_summed(cosine_distances(units[part], chosen), factors[part], pick_factors, scoring)
        order = np.argsort(ranked, axis=1, kind="stable")
        scores[part] = np.take_along_axis(summed, order, axis=1) @ weights
    return scores


def _ranked_and_summed(
    distances: NDArray[np.float64], factors: NDArray[np.float64], pick_factors: NDArray[np.float64], scoring: Scoring
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sort keys of the picks for each sample, and the values summed by rank: float64, (n, k) each."""
    if scoring.density_side == "column":
        return distances, distances * pick_factors
    both = distances * (factors[:, None] + pick_factors * scoring.of_picks)
    return both, both


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])
