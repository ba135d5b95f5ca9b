"""One sample's scores after every pick, bounds of the others', and which picks stand for which samples."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.selection import novelselect, select
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.search.exact import standing
from novelsum_dagster.selection.trajectory import bounds_at_end, closest_pick, scores_at_end, trajectory

N, D, K = 60, 12, 25


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    """Clustered rows of unequal length; the last three repeat rows that are picked, or the first of all."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(6, D))
    rows = (centres[rng.integers(0, 6, N)] + 0.4 * rng.normal(size=(N, D))) * rng.uniform(0.5, 3, (N, 1))
    rows[-3:] = rows[0]
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def factor() -> NDArray[np.float64]:
    return np.random.default_rng(6).uniform(0.5, 4, N)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("with_quality", [False, True])
def test_it_equals_the_exact_standing_after_every_pick(
    rows: NDArray[np.float32], factor: NDArray[np.float64], alpha: float, with_quality: bool
) -> None:
    quality = np.random.default_rng(7).uniform(0.3, 3, N) if with_quality else None
    picks = novelselect(rows, K, density_factor=factor, proximity_power=alpha, quality=quality).indices
    samples = [int(picks[0]), int(picks[7]), 0, N - 1, N - 2, 31]
    found = [
        trajectory(
            rows[sample], factor[sample], rows[picks], factor[picks], scoring=Scoring(proximity_power=alpha),
            quality=1.0 if quality is None else quality[sample],
        )
        for sample in samples
    ]  # fmt: skip
    for made in range(1, K + 1):
        exact = standing(
            rows, picks[:made], density_factor=factor, proximity_power=alpha, quality=quality, rows=samples
        )
        # The selection keeps distances in float32.
        np.testing.assert_allclose([one[made - 1] for one in found], exact.score, rtol=1e-6, atol=1e-6)


def test_a_sample_equal_to_a_pick_counts_its_distance_as_0(
    rows: NDArray[np.float32], factor: NDArray[np.float64]
) -> None:
    found = trajectory(rows[0], factor[0], rows[[0, N - 1, 9]], factor[[0, N - 1, 9]])
    np.testing.assert_allclose(found[:2], 0, atol=1e-6)
    assert found[2] > 0.01


def test_scores_of_a_pick_are_those_by_which_it_won(rows: NDArray[np.float32], factor: NDArray[np.float64]) -> None:
    picks = novelselect(rows, K, density_factor=factor)
    for rank in range(1, K):
        pick = picks.indices[rank]
        found = trajectory(rows[pick], factor[pick], rows[picks.indices], factor[picks.indices])
        assert found[rank - 1] == pytest.approx(picks.score[rank], rel=1e-6)


def test_closest_equals_brute_force(rows: NDArray[np.float32], factor: NDArray[np.float64]) -> None:
    picks = novelselect(rows, K, density_factor=factor)
    given = novelselect(rows, K, density_factor=factor, must_include=[4, 8, 15])
    for made in (picks, given):
        for sample in np.setdiff1d(np.arange(N), made.indices)[::3]:
            found = trajectory(rows[sample], factor[sample], rows[made.indices], factor[made.indices])
            shares = {
                rank: standing(rows, made.indices[:rank], density_factor=factor, rows=[int(sample)]).score[0]
                / made.score[rank]
                for rank in range(1, K)
                if not np.isnan(made.score[rank])
            }
            closest = closest_pick(found, made.score)
            assert closest is not None
            assert shares[closest] == pytest.approx(max(shares.values()), rel=1e-6)
            assert shares[closest] < 1 + 1e-6


@pytest.mark.parametrize("winning", [[np.nan], [np.nan, np.nan, np.nan]])
def test_closest_is_none_without_picks_by_score(winning: list[float]) -> None:
    assert closest_pick(np.arange(1.0, 1 + len(winning)), np.array(winning)) is None


def test_a_vector_of_zeros_is_refused(rows: NDArray[np.float32], factor: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="all zeros"):
        trajectory(np.zeros(D, np.float32), 1.0, rows[:3], factor[:3])
    with pytest.raises(ValueError, match="all zeros"):
        scores_at_end(np.zeros((1, D), np.float32), np.ones(1), rows[:3], factor[:3])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_scores_at_the_end_are_exact_and_bounds_are_over_them(
    rows: NDArray[np.float32], factor: NDArray[np.float64], alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novelsum_dagster.selection.trajectory._TILE_VALUES", 3 * K)
    picks = novelselect(rows, K, density_factor=factor, proximity_power=alpha, must_exclude=[50])
    exact = standing(rows, picks.indices, density_factor=factor, proximity_power=alpha).score
    scoring = Scoring(proximity_power=alpha)
    scores = scores_at_end(rows, factor, rows[picks.indices], factor[picks.indices], scoring=scoring)
    np.testing.assert_allclose(scores, exact, rtol=1e-6, atol=1e-6)
    assert picks.remaining is not None
    left = np.setdiff1d(np.arange(N), picks.indices)
    bounds = bounds_at_end(
        picks.remaining.score[left], picks.remaining.at[left], factor[left], factor[picks.indices],
        scoring=scoring,
    )  # fmt: skip
    assert np.isnan(picks.remaining.score[50])
    assert (bounds >= exact[left] * (1 - 1e-6)).all()


def test_what_is_known_after_every_pick_bounds_the_end(rows: NDArray[np.float32], factor: NDArray[np.float64]) -> None:
    """What held long ago is no bound by itself: picks since may have raised the score."""
    picks = novelselect(rows, K, density_factor=factor).indices
    everyone = np.arange(N)
    at = [standing(rows, picks[:made], density_factor=factor).score for made in range(1, K + 1)]
    assert (at[-1] > at[K // 2] + 0.1).any()
    for made, score in enumerate(at, 1):
        bounds = bounds_at_end(score, np.full(N, made), factor[everyone], factor[picks])
        assert (bounds >= at[-1] - 1e-6).all()


def _nearest(rows: NDArray[np.float32], picks: NDArray[np.int64], count: int) -> list[list[tuple[float, int]]]:
    """Return the nearest distinct picks of every row, by brute force: (distance, place of first appearance)."""
    units = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None]
    first = {int(pick): place for place, pick in reversed(list(enumerate(picks)))}
    return [sorted((1 - float(one @ units[pick]), place) for pick, place in first.items())[:count] for one in units]


@pytest.mark.parametrize(
    "picks",
    [
        np.array([3, 14, 15, 9, 2, 6, 53]),
        np.array([3, 14]),
        np.array([7]),
        np.array([3, 14, 15, 3, 14, 15, 3, 9, 9]),
        np.array([5, 5, 5]),
        np.arange(N - 3),
    ],
)
def test_covering_equals_brute_force(
    rows: NDArray[np.float32], picks: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novelsum_dagster.selection.covering._TILE", 16)
    found = covering(rows, picks)
    expected = _nearest(rows, picks, 3)
    count = min(3, len(set(picks.tolist())))
    assert found.rank.shape == found.distance.shape == (N, count)
    places: list[Any] = [[place for _, place in near] for near in expected]
    distances = np.array([[distance for distance, _ in near] for near in expected])
    np.testing.assert_allclose(found.distance, distances, atol=1e-5)
    assert (np.diff(found.distance, axis=1) >= -1e-6).all()
    apart = np.diff(distances, axis=1).min(axis=1, initial=1) > 1e-5
    assert apart.sum() > N // 2
    np.testing.assert_array_equal(found.rank[apart], np.array(places)[apart])


def test_a_pick_is_covered_by_itself_and_repeats_by_the_first(rows: NDArray[np.float32]) -> None:
    made = select("duplicate", rows[: N - 3], 20, density_factor=np.ones(N - 3), copies=5)
    assert len(set(made.indices.tolist())) == 4
    found = covering(rows[: N - 3], made.indices)
    assert set(found.rank.ravel().tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found.rank[made.indices[:4], 0], [0, 1, 2, 3])
    np.testing.assert_allclose(found.distance[made.indices[:4], 0], 0, atol=1e-6)
    assert all(len(set(ranks)) == 3 for ranks in found.rank.tolist())
