"""Every strategy against a plain implementation, its record, its ties and its refusals; the call by name."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from novelsum_dagster.common import memory
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity import density, novelsum
from novelsum_dagster.selection import STRATEGIES, Picks, select
from novelsum_dagster.selection.kmeans import _drawn_in_turn

DISTINCT = [name for name in STRATEGIES if name != "duplicate"]
ANY_K: dict[str, dict[str, Any]] = {"repr_filter": {"threshold": 1.0}}
"""Options with which a strategy takes any k."""


def _rows(n: int, d: int = 12, seed: int = 0) -> np.ndarray:
    """Clustered rows with some exact duplicates."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, n // 10), d))
    rows = centres[generator.integers(0, len(centres), n)] + 0.3 * generator.normal(size=(n, d))
    rows[: n // 20] = rows[n // 2 : n // 2 + n // 20]
    return rows.astype(np.float32)


def _cosines(rows: np.ndarray) -> np.ndarray:
    """All cosines in float64, each summed alike, so that equal rows have equal ones."""
    wide = rows.astype(np.float64)
    units = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    products = units[:, None].astype(np.float64) * units[None].astype(np.float64)
    return np.asarray(products.sum(-1))


def _select(name: str, rows: np.ndarray, k: int, **options: Any) -> Picks:
    return select(name, rows, k, density_factor=np.ones(len(rows)), **options)


def _assert_same_record(
    picks: Picks, indices: list[int], score: list[float], runner_up: list[int], runner_up_score: list[float]
) -> None:
    assert picks.indices.tolist() == indices
    assert picks.runner_up.tolist() == runner_up
    np.testing.assert_allclose(picks.score, score, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(picks.runner_up_score, runner_up_score, rtol=1e-5, atol=2e-6)


def _greedy(scores: Any, n: int, k: int, first: int | None) -> tuple[list[int], list[float], list[int], list[float]]:
    """Pick k times the highest of `scores(picks)`, and record the second; ties go to the lowest index."""
    picks, score, runner_up, runner_up_score = (
        ([], [], [], []) if first is None else ([first], [np.nan], [-1], [np.nan])
    )
    while len(picks) < k:
        values = scores(picks)
        values[picks] = -np.inf
        best, second = [*np.argsort(-values, kind="stable")[:2].tolist(), -1][:2]
        is_last = len(picks) == n - 1
        picks.append(best)
        score.append(values[best])
        runner_up.append(-1 if is_last else second)
        runner_up_score.append(np.nan if is_last else values[second])
    return picks, score, runner_up, runner_up_score


def _plain_kcenter(rows: np.ndarray, k: int, seed: int) -> tuple[list[int], list[float], list[int], list[float]]:
    distances = 1 - _cosines(rows)
    distances[distances < 2.0**-20] = 0
    first = int(np.random.default_rng(seed).integers(len(rows)))
    return _greedy(lambda picks: distances[picks].min(0), len(rows), k, first)


def _plain_qdit(
    cosines: np.ndarray, k: int, quality: np.ndarray, weight: float
) -> tuple[list[int], list[float], list[int], list[float]]:
    # Rounded, sums are exact, and what must tie ties.
    similarity = np.rint(cosines.clip(0, 1) * 2**23) / 2**23
    similarity[cosines > 1 - 2.0**-20] = 1

    def scores(picks: list[int]) -> np.ndarray:
        covered = similarity[picks].max(0) if picks else np.zeros(len(similarity))
        return np.asarray((1 - weight) * np.maximum(similarity - covered, 0).sum(1) + weight * quality)

    return _greedy(scores, len(similarity), k, None)


# What holds for all.


@pytest.mark.parametrize("strategy", DISTINCT)
def test_picks_repeat_with_their_seed_and_the_nearest_pick_is_recorded(strategy: str) -> None:
    rows = _rows(100)
    one, two = (_select(strategy, rows, 30, seed=3, **ANY_K.get(strategy, {})) for _ in range(2))
    assert one.indices.tolist() == two.indices.tolist()
    assert one.indices.dtype == np.int64
    assert len(set(one.indices.tolist())) == 30
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for rank in range(1, 30):
        distances = 1 - unit[one.indices[:rank]] @ unit[one.indices[rank]]
        assert one.nearest_distance[rank] == pytest.approx(max(distances.min(), 0), abs=1e-6)
        assert distances[one.nearest_pick[rank]] == pytest.approx(distances.min(), abs=1e-6)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("farthest", "qdit")])
def test_another_seed_gives_other_picks(strategy: str) -> None:
    one, other = (_select(strategy, _rows(100), 30, seed=seed, **ANY_K.get(strategy, {})) for seed in (3, 4))
    assert one.indices.tolist() != other.indices.tolist()


@pytest.mark.parametrize("strategy", DISTINCT)
@pytest.mark.parametrize("rows", [_rows(60), np.ones((9, 5), np.float32), np.ones((1, 3), np.float32)])
def test_all_of_a_pool_can_be_picked(strategy: str, rows: np.ndarray) -> None:
    picks = _select(strategy, rows, len(rows), **ANY_K.get(strategy, {}))
    assert sorted(picks.indices.tolist()) == list(range(len(rows)))
    assert picks.runner_up[-1] == -1
    assert np.isnan(picks.runner_up_score[-1])


@pytest.mark.parametrize("strategy", ["kcenter", "qdit", "farthest"])
def test_among_rows_all_alike_the_lowest_index_is_next(strategy: str) -> None:
    rows = np.tile(np.random.default_rng(0).normal(size=(1, 37)), (70, 1)).astype(np.float32)
    first = int(np.random.default_rng(42).integers(70)) if strategy == "kcenter" else 0
    expected = [first, *(row for row in range(70) if row != first)]
    assert _select(strategy, rows, 70).indices.tolist() == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_quality_and_density_factor_are_recorded(strategy: str) -> None:
    rows, generator = _rows(50), np.random.default_rng(0)
    factor, quality = generator.uniform(1, 2, 50), generator.uniform(1, 2, 50)
    picks = select(strategy, rows, 10, density_factor=factor, quality=quality)
    assert picks.density_factor.tolist() == factor[picks.indices].tolist()
    assert picks.quality.tolist() == quality[picks.indices].tolist()
    assert np.isnan(_select(strategy, rows, 10).quality).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_progress_ends_with_the_work_done(strategy: str) -> None:
    seen: list[tuple[int, int]] = []
    _select(strategy, _rows(60), 25, progress=lambda done, total: seen.append((done, total)), **ANY_K.get(strategy, {}))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("k", [0, -1, 51])
def test_k_out_of_range_is_refused(strategy: str, k: int) -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 50"):
        _select(strategy, _rows(50), k)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["density_factor", "quality"])
def test_bad_factors_and_qualities_are_named(strategy: str, bad: float, name: str) -> None:
    values = {"density_factor": np.ones(50), "quality": np.ones(50)}
    values[name][9] = bad
    with pytest.raises(ValueError, match=f"{name}: row 9 is"):
        select(strategy, _rows(50), 5, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["density_factor", "quality"])
def test_factors_and_qualities_of_another_pool_are_refused(strategy: str, name: str) -> None:
    values = {"density_factor": np.ones(50), "quality": np.ones(50)} | {name: np.ones(49)}
    with pytest.raises(ValueError, match=f"{name} has shape"):
        select(strategy, _rows(50), 5, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_bad_rows_are_named(strategy: str, value: float) -> None:
    rows = _rows(50)
    rows[7] = value
    with pytest.raises(ValueError, match="row 7"):
        _select(strategy, rows, 5)


def test_unknown_strategies_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="'best' is unknown; the strategies are novelselect, random"):
        _select("best", _rows(50), 5)
    with pytest.raises(ValueError, match="'random' has no option 'proximity_power'; its options are: none"):
        _select("random", _rows(50), 5, proximity_power=1.0)
    with pytest.raises(ValueError, match=r"'qdit' has no option 'k_nearest'; .* quality_weight, similarity_neighbors"):
        _select("qdit", _rows(50), 5, k_nearest=3)


def test_options_reach_the_strategy() -> None:
    assert len(set(_select("duplicate", _rows(50), 20, copies=4).indices.tolist())) == 5


def test_novelselect_is_more_diverse_and_duplicates_are_less_diverse_than_a_random_draw() -> None:
    rows = _rows(400)
    factor = density(rows).factor(0.5)
    subsets = {
        name: select(name, rows, 40, density_factor=factor).indices for name in ("novelselect", "random", "duplicate")
    }
    values = {name: novelsum(rows[chosen], rows).value for name, chosen in subsets.items()}
    assert values["novelselect"] > 1.1 * values["random"] > 1.1 * values["duplicate"]


def test_the_table_loads_without_heavy_libraries() -> None:
    program = "import sys, novelsum_dagster.selection; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"numba", "faiss", "torch", "scipy", "sklearn"} & set(done.stdout.split())


# Random, duplicate.


def test_random_is_the_start_of_a_seeded_permutation() -> None:
    expected = np.random.default_rng(5).permutation(80)[:20].tolist()
    picks = _select("random", _rows(80), 20, seed=5)
    assert picks.indices.tolist() == expected
    assert np.isnan(picks.score).all()
    assert (picks.runner_up == -1).all()


@pytest.mark.parametrize(("k", "copies", "distinct"), [(20, 10, 2), (23, 10, 3), (20, 1, 20), (5, 10, 1)])
def test_duplicate_repeats_a_random_draw(k: int, copies: int, distinct: int) -> None:
    picks = _select("duplicate", _rows(50), k, copies=copies, seed=3)
    drawn = _select("random", _rows(50), distinct, seed=3).indices.tolist()
    assert picks.indices.tolist() == (drawn * k)[:k]
    assert picks.nearest_distance[distinct:] == pytest.approx(np.zeros(k - distinct), abs=1e-6)


def test_no_copies_are_refused() -> None:
    with pytest.raises(ValueError, match="copies is 0"):
        _select("duplicate", _rows(50), 5, copies=0)


# Farthest.


@pytest.mark.parametrize("k", [1, 40, 150])
def test_farthest_ranks_by_mean_distance_to_all(k: int) -> None:
    rows = _rows(150)
    mean = (1 - _cosines(rows)).mean(1).round(9)
    ranking = np.argsort(-mean, kind="stable")
    runner_up = [*ranking.tolist(), -1][1 : k + 1]
    seconds = [np.nan if row < 0 else mean[row] for row in runner_up]
    _assert_same_record(
        _select("farthest", rows, k), ranking[:k].tolist(), mean[ranking[:k]].tolist(), runner_up, seconds
    )


def test_farthest_is_the_same_over_tiles() -> None:
    rows = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32)
    rows[8999] = rows[0]
    units = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    picks = _select("farthest", rows, 9000)
    np.testing.assert_allclose(picks.score, (1 - units @ units.mean(0))[picks.indices], atol=1e-6)
    position = picks.indices.tolist().index(0)
    assert picks.indices[position + 1] == 8999


# K-means.


def test_kmeans_draws_evenly_from_separate_clusters() -> None:
    sizes = [2, 5, 20, 30]
    blobs = np.repeat(np.arange(4), sizes)
    rows = (np.eye(4)[blobs] + 0.01 * np.random.default_rng(0).normal(size=(57, 4))).astype(np.float32)
    picks = _select("kmeans", rows, 18, clusters=4).indices
    assert sorted(np.bincount(blobs[picks]).tolist()) == [2, 5, 5, 6]
    assert sorted(blobs[picks[:4]]) == sorted(blobs[picks[4:8]]) == [0, 1, 2, 3]


def test_drawing_in_turn_passes_over_what_is_used_up() -> None:
    labels = np.array([0, 1, 1, 1, 3, 3])
    drawn = labels[_drawn_in_turn(labels, 4, seed=0)].tolist()
    assert sorted(drawn[:3]) == [0, 1, 3]
    assert sorted(drawn[3:5]) == [1, 3]
    assert drawn[5] == 1


def test_kmeans_takes_the_square_root_of_the_pool_by_default() -> None:
    rows = _rows(100)
    assert _select("kmeans", rows, 40).indices.tolist() == _select("kmeans", rows, 40, clusters=10).indices.tolist()
    assert _select("kmeans", rows, 4).indices.tolist() == _select("kmeans", rows, 4, clusters=4).indices.tolist()


@pytest.mark.parametrize("clusters", [0, 51])
def test_clusters_out_of_range_are_refused(clusters: int) -> None:
    with pytest.raises(ValueError, match="clusters must be from 1 to 50"):
        _select("kmeans", _rows(50), 5, clusters=clusters)


def test_more_clusters_than_distinct_rows() -> None:
    rows = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    assert len(set(_select("kmeans", rows, 30, clusters=9).indices.tolist())) == 30


# K-Center-Greedy.


@pytest.mark.parametrize(("n", "d", "k"), [(150, 12, 150), (400, 3, 200), (300, 65, 120), (2, 2, 2), (150, 2, 90)])
@pytest.mark.parametrize("seed", [0, 1])
def test_kcenter_is_plain_greedy(n: int, d: int, k: int, seed: int) -> None:
    rows = _rows(n, d, seed)
    _assert_same_record(_select("kcenter", rows, k, seed=seed), *_plain_kcenter(rows, k, seed))


def test_kcenter_ties_go_to_the_lowest_index() -> None:
    rows = np.eye(6, dtype=np.float32)[np.random.default_rng(0).integers(0, 6, 90)]
    _assert_same_record(_select("kcenter", rows, 90, seed=1), *_plain_kcenter(rows, 90, 1))


def test_more_centers_keep_the_first_ones() -> None:
    rows = _rows(200)
    assert _select("kcenter", rows, 80).indices[:30].tolist() == _select("kcenter", rows, 30).indices.tolist()


def test_kcenter_is_the_same_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(300)
    monkeypatch.setattr("novelsum_dagster.selection.threads.usable_processors", lambda: 1)
    one = _select("kcenter", rows, 100)
    monkeypatch.setattr("novelsum_dagster.selection.threads.usable_processors", lambda: 7)
    many = _select("kcenter", rows, 100)
    assert one.indices.tolist() == many.indices.tolist()
    assert one.runner_up.tolist() == many.runner_up.tolist()


# QDIT.


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n", "k"), [(150, 150), (400, 90), (2, 2)])
def test_qdit_is_plain_greedy(weight: float, n: int, k: int) -> None:
    rows = _rows(n, seed=int(10 * weight))
    quality = np.random.default_rng(0).integers(1, 6, n).astype(np.float64)
    picks = _select("qdit", rows, k, quality=quality, quality_weight=weight)
    _assert_same_record(picks, *_plain_qdit(_cosines(rows), k, quality, weight))


def test_qdit_ties_go_to_the_lowest_index() -> None:
    rows = np.eye(6, dtype=np.float32)[np.random.default_rng(0).integers(0, 6, 90)]
    _assert_same_record(_select("qdit", rows, 90), *_plain_qdit(_cosines(rows), 90, np.ones(90), 0))


def test_qdit_reaches_the_objective_of_submodlib() -> None:
    reference = pytest.importorskip("submodlib", reason="submodlib-py has no wheel for this Python or processor")
    rows = _rows(400, 24)
    similarity = np.maximum(_cosines(rows), 0).astype(np.float32)
    function = reference.FacilityLocationFunction(n=400, mode="dense", sijs=similarity, separate_rep=False)
    theirs = [index for index, _ in function.maximize(budget=60, optimizer="LazyGreedy", show_progress=False)]
    picks = _select("qdit", rows, 60)
    objective = similarity[theirs].max(0).sum(dtype=np.float64)
    assert similarity[picks.indices].max(0).sum(dtype=np.float64) == pytest.approx(objective, rel=1e-6)
    assert picks.score.sum() == pytest.approx(objective, rel=1e-6)


def test_qdit_with_all_neighbors_is_dense_qdit() -> None:
    rows = np.random.default_rng(1).normal(size=(120, 12)).astype(np.float32)
    assert (
        _select("qdit", rows, 60, similarity_neighbors=120).indices.tolist()
        == _select("qdit", rows, 60).indices.tolist()
    )


def test_qdit_with_few_neighbors_takes_other_cosines_as_zero() -> None:
    rows = np.random.default_rng(2).normal(size=(150, 12)).astype(np.float32)
    cosines = _cosines(rows)
    # Column j holds the similarity of each candidate to sample j.
    is_near = np.zeros_like(cosines, dtype=bool)
    is_near[np.argsort(-cosines, axis=0)[:9], np.arange(150)] = True
    picks = _select("qdit", rows, 50, similarity_neighbors=9)
    _assert_same_record(picks, *_plain_qdit(np.where(is_near, cosines, 0), 50, np.ones(150), 0))


def test_qdit_batches_and_threads_change_nothing() -> None:
    rows = _rows(1200, 8)
    quality = np.ones(1200)
    picks = _select("qdit", rows, 40)
    _assert_same_record(picks, *_plain_qdit(_cosines(rows), 40, quality, 0))


def test_qdit_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 32 * 50 * 5)
    with pytest.raises(NotEnoughMemory, match=r"all pairs of 50 samples .* set similarity_neighbors"):
        _select("qdit", _rows(50), 5)
    with pytest.raises(NotEnoughMemory, match=r"6 nearest of 50 samples .* set similarity_neighbors lower"):
        _select("qdit", _rows(50), 5, similarity_neighbors=6)
    assert len(_select("qdit", _rows(50), 5, similarity_neighbors=5).indices) == 5


def test_qdit_refuses_options_out_of_range_and_a_weight_without_quality() -> None:
    for weight in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            _select("qdit", _rows(50), 5, quality=np.ones(50), quality_weight=weight)
    with pytest.raises(ValueError, match="no quality is given"):
        _select("qdit", _rows(50), 5, quality_weight=0.5)
    for neighbors in (0, 51):
        with pytest.raises(ValueError, match="similarity_neighbors"):
            _select("qdit", _rows(50), 5, similarity_neighbors=neighbors)


# Repr Filter.


def _plain_repr_filter(rows: np.ndarray, order: np.ndarray, threshold: float) -> list[int]:
    cosines = _cosines(rows)
    kept: list[int] = []
    for row in order.tolist():
        if not kept or cosines[row, kept].max() <= threshold:
            kept.append(row)
    return kept


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_repr_filter_is_the_plain_walk_over_several_blocks(threshold: float) -> None:
    rows = _rows(1300, 10)
    quality = np.random.default_rng(0).integers(1, 4, 1300).astype(np.float64)
    expected = _plain_repr_filter(rows, np.argsort(-quality, kind="stable"), threshold)
    picks = _select("repr_filter", rows, len(expected), quality=quality, threshold=threshold)
    assert picks.indices.tolist() == expected
    assert picks.score.tolist() == quality[expected].tolist()
    with pytest.raises(ValueError, match=rf"{len(expected):,} of 1,300 samples pass at threshold {threshold}"):
        _select("repr_filter", rows, len(expected) + 1, quality=quality, threshold=threshold)


def test_repr_filter_without_quality_walks_at_random() -> None:
    rows = _rows(100)
    expected = _plain_repr_filter(rows, np.random.default_rng(7).permutation(100), 0.8)[:10]
    picks = _select("repr_filter", rows, 10, seed=7, threshold=0.8)
    assert picks.indices.tolist() == expected
    assert np.isnan(picks.score).all()


@pytest.mark.parametrize("threshold", [1.1, -1.1, np.nan])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="a cosine is from -1 to 1"):
        _select("repr_filter", _rows(50), 5, threshold=threshold)
