"""NovelSelect's scores computed directly, for verification and for the score of a sample at any pick.

Belongs here: exact scores over given picks, ranks, nearest picks. Does not: any bound or search.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.diversity.novelsum import DensitySide, SelfDistance, rank_weights
from novelsum_dagster.diversity.vectors import as_rows, cosine_distances, unit_rows
from novelsum_dagster.selection.inputs import check_indices, check_quality, factor_or_density
from novelsum_dagster.selection.scoring import PUBLISHED, Scoring, Side

_TILE_VALUES = 2**22
"""Number of distances that one thread holds at a time: 16 MiB of float32."""


@dataclass(frozen=True)
class Standing:
    """Scores and ranks of samples after some picks; every array has shape (m,), in the requested order.

    Attributes:
        rows: int64, the samples.
        score: float64, the exact score `y F` over the picks.
        rank: int64, place among the samples not picked by then, 1 for the one that is picked next (limits aside); 0 for
            one that is picked already.
        nearest_pick: int64, rank (from 0) of the nearest pick.
        nearest_distance: float64, cosine distance to it.
    """

    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    rank: NDArray[np.int64]
    nearest_pick: NDArray[np.int64]
    nearest_distance: NDArray[np.float64]


def standing(
    embeddings: ArrayLike,
    picks: ArrayLike,
    *,
    neighbors: int = 10,
    density_power: float = 0.5,
    proximity_power: float = 1.0,
    density_side: Side = "both",
    measured_side: DensitySide = "row",
    self_distance: SelfDistance = "included",
    density_factor: ArrayLike | None = None,
    quality: ArrayLike | None = None,
    rows: ArrayLike | None = None,
) -> Standing:
    """Return NovelSelect's scores and ranks of samples after the given picks.

    For scores and ranks before pick number p of a result, pass `result.indices[:p]`.

    Args:
        embeddings: (n, d), the pool.
        picks: rows picked so far, in order, at least one.
        neighbors, density_power, proximity_power, density_side, measured_side, self_distance, density_factor, quality:
            as in the selection.
        rows: the samples to return; None returns all. Ranks always need the scores of all samples.

    Raises:
        ValueError: as `novelselect` does; for no picks.
    """
    rows_ = as_rows(embeddings)
    units = unit_rows(rows_)
    n = len(units)
    picked = check_indices(picks, n, "picks")
    if not len(picked):
        raise ValueError("picks: none given; before the first pick no sample has a score")
    asked = np.arange(n) if rows is None else check_indices(rows, n, "rows")
    factor = factor_or_density(rows_, density_factor, neighbors, density_power)
    scoring = Scoring(density_side, proximity_power, measured_side, self_distance)
    scores = exact_scores(np.arange(n), units, factor, picked, rank_weights(len(picked), proximity_power), scoring)
    if quality is not None:
        scores *= check_quality(quality, n)
    nearest_pick, nearest_distance = _nearest(units[asked], units[picked])
    return Standing(asked, scores[asked], _ranks(scores, picked)[asked], nearest_pick, nearest_distance)


def exact_scores(
    candidates: NDArray[np.int64],
    unit_rows: NDArray[np.float32],
    factor: NDArray[np.float64],
    picks: NDArray[np.int64],
    weights: NDArray[np.float64],
    scoring: Scoring = PUBLISHED,
) -> NDArray[np.float64]:
    """Return `F` of candidates over picks: float64, (c,).

    Args:
        candidates: int64, (c,), rows.
        unit_rows: float32, (n, d), rows of length 1.
        factor: float64, (n,), density factors.
        picks: int64, (m,), rows.
        weights: float64, at least (m,), proximity weights by rank.
        scoring: which score.
    """
    if scoring.density_side == "objective":
        from novelsum_dagster.selection.search.objective import Chosen

        return Chosen.of(unit_rows[picks], factor[picks], scoring).scores(unit_rows[candidates], factor[candidates])
    from novelsum_dagster.selection.search.cpu_kernels import Picked, all_distances, column_sums, weighted_sums

    picked = Picked(unit_rows[picks], factor[picks] * scoring.of_picks)

    def tile(part: NDArray[np.int64]) -> NDArray[np.float64]:
        if scoring.density_side == "column":
            return np.asarray(column_sums(cosine_distances(unit_rows[part], picked.rows), picked.factor, weights))
        distances = np.empty((len(part), len(picks)), np.float32)
        all_distances(unit_rows, factor, part, picked, distances)
        distances.sort(axis=1)
        return np.asarray(weighted_sums(distances, weights))

    size = max(1, _TILE_VALUES // len(picks))
    tiles = [candidates[start : start + size] for start in range(0, len(candidates), size)]
    with ThreadPoolExecutor(usable_processors()) as workers:
        return np.concatenate(list(workers.map(tile, tiles))) if tiles else np.empty(0)


def _ranks(scores: NDArray[np.float64], picked: NDArray[np.int64]) -> NDArray[np.int64]:
    ranks = np.zeros(len(scores), np.int64)
    open_ = np.setdiff1d(np.arange(len(scores)), picked)
    ranks[open_[np.lexsort((open_, -scores[open_]))]] = np.arange(1, len(open_) + 1)
    return ranks


def _nearest(asked: NDArray[np.float32], picked: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    nearest, distance = np.empty(len(asked), np.int64), np.empty(len(asked))
    size = max(1, _TILE_VALUES // len(picked))
    for start in range(0, len(asked), size):
        distances = cosine_distances(asked[start : start + size], picked)
        nearest[start : start + size] = distances.argmin(axis=1)
        distance[start : start + size] = distances.min(axis=1)
    return nearest, distance
