"""Density against plain numpy: both neighbour policies, duplicates, too few points, and the tuned index."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from novelsum_dagster.common import memory
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity.tables import build_density
from novelsum_dagster.diversity.vectors import distinct_rows, find_rows
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.quality.suites import Subject, suites_of
from novelsum_dagster.quality.validate import validate
from novelsum_dagster.settings import NovelSum, Settings

# The package has a function of the same name.
module = importlib.import_module("novelsum_dagster.diversity.density")
density = module.density


def _rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _clustered(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    """Unit rows in 300 clusters that overlap, each spread over six directions of its own."""
    generator = np.random.default_rng(seed)
    cluster = generator.integers(0, 300, n)
    centres, directions = generator.normal(size=(300, d)), generator.normal(size=(300, 6, d))
    rows = centres[cluster] + 0.4 * np.einsum("ij,ijk->ik", generator.normal(size=(n, 6)), directions[cluster])
    rows += 0.05 * generator.normal(size=(n, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _squared(row: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(((points.astype(np.float64) - row) ** 2).sum(1))


def _plain(target: np.ndarray, reference: np.ndarray, neighbors: int, policy: str) -> np.ndarray:
    """The definition, one sample at a time, in float64."""
    points = np.unique(reference, axis=0)
    means = []
    for row in target:
        own = (points == row).all(1)
        found = np.sort(_squared(row, points if policy == "published" else points[~own]))
        counted = found[1 : neighbors + 1] if policy == "published" else found[:neighbors]
        means.append(counted.mean() if len(counted) else 0.0)
    return np.array(means)


@pytest.mark.parametrize("policy", ["published", "self"])
@pytest.mark.parametrize("neighbors", [1, 5, 200])
def test_density_is_its_definition(policy: str, neighbors: int) -> None:
    pool = np.repeat(_rows(60), 2, axis=0)
    target = np.concatenate([pool[:20], _rows(20, seed=1)])
    found = density(target, pool, neighbors=neighbors, neighbor_policy=policy)
    np.testing.assert_allclose(found.mean_squared_distance, _plain(target, pool, neighbors, policy), rtol=1e-5)
    alone = density(pool, neighbors=neighbors, neighbor_policy=policy)
    np.testing.assert_allclose(alone.mean_squared_distance, _plain(pool, pool, neighbors, policy), rtol=1e-5)
    assert (found.index, found.recall, found.reference_size) == ("exact", 1.0, 60)
    assert (found.neighbors, found.neighbors_used) == (neighbors, min(neighbors, 59))


def test_a_target_outside_the_reference_keeps_its_nearest_point_only_by_identity() -> None:
    pool, target = np.array([[0.0], [3.0], [10.0]]), np.array([[1.0]])
    assert density(target, pool, neighbors=1, neighbor_policy="self").mean_squared_distance == [1.0]
    assert density(target, pool, neighbors=1).mean_squared_distance == [4.0]
    few = density(target, pool, neighbors=9, neighbor_policy="self")
    assert few.neighbors_used == 3
    assert few.mean_squared_distance == pytest.approx((1 + 4 + 81) / 3)


@pytest.mark.parametrize("policy", ["published", "self"])
@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("index", ["auto", "exact", "ivf"])
def test_one_distinct_point_has_distance_zero(policy: str, size: int, index: str) -> None:
    found = density(np.repeat(_rows(1), size, axis=0), neighbor_policy=policy, index=index)
    assert found.mean_squared_distance.tolist() == [0.0] * size
    assert (found.neighbors, found.neighbors_used, found.reference_size) == (10, 0, 1)
    np.testing.assert_allclose(found.factor(0.5), 1e-9**-0.5)


def test_the_distance_of_near_duplicates_is_not_lost_in_rounding() -> None:
    row = np.full(384, 384**-0.5, dtype=np.float32)
    pool = row + 1e-6 * _rows(100, 384)
    expected = _plain(pool, pool, 10, "published")
    np.testing.assert_allclose(density(pool).mean_squared_distance, expected, rtol=1e-4)


def test_lengths_whose_square_overflows_are_refused() -> None:
    rows = _rows(20)
    rows[7] = 1e20
    with pytest.raises(ValueError, match=r"reference: row 7 has length 4e\+20 .*normalise"):
        density(_rows(5), rows)
    with pytest.raises(ValueError, match="target: row 7"):
        density(rows)
    rows[7] = 1e17
    assert np.isfinite(density(rows).mean_squared_distance).all()


@pytest.mark.parametrize("values", [3, 2**20])
def test_distinct_rows_are_those_of_numpy(values: int) -> None:
    rows = np.random.default_rng(0).integers(-values, values, size=(5000, 4)).astype(np.float32)
    points, point_of = distinct_rows(rows)
    np.testing.assert_array_equal(points[point_of], rows)
    np.testing.assert_array_equal(np.unique(points, axis=0), np.unique(rows, axis=0))
    assert len(points) == len(np.unique(rows, axis=0))
    assert (np.diff(np.unique(point_of, return_index=True)[1]) > 0).all()


def test_negative_zero_is_zero() -> None:
    points, point_of = distinct_rows(np.array([[0.0, 1.0], [-0.0, 1.0]], dtype=np.float32))
    assert points.tolist() == [[0.0, 1.0]]
    assert point_of.tolist() == [0, 0]


def test_the_first_equal_point_is_found() -> None:
    points = np.array([[2.0], [1.0], [2.0]], dtype=np.float32)
    assert find_rows(np.array([[1.0], [2.0], [3.0]], dtype=np.float32), points).tolist() == [1, 0, -1]


@pytest.fixture(scope="module")
def clustered() -> np.ndarray:
    rows = _clustered(20_000)
    rows[-500:] = rows[:500]
    return rows


@pytest.mark.parametrize("policy", ["published", "self"])
def test_the_index_reaches_the_floor(clustered: np.ndarray, policy: str) -> None:
    found = density(clustered, neighbor_policy=policy, index="ivf", min_recall=0.95)
    assert found.index.startswith("ivf, 487 lists, ")
    assert 0.95 <= found.recall < 1
    sample = np.random.default_rng(3).integers(0, len(clustered), 100)
    plain = _plain(clustered[sample], clustered, 10, policy)
    assert (found.mean_squared_distance[sample] >= plain * (1 - 1e-5)).all()
    assert np.isclose(found.mean_squared_distance[sample], plain, rtol=1e-5).mean() > 0.7


@pytest.mark.parametrize("policy", ["published", "self"])
def test_the_recall_told_is_the_recall_of_other_queries(clustered: np.ndarray, policy: str) -> None:
    points, own = distinct_rows(clustered)
    query = module._Query(clustered, own if policy == "self" else None, 10, 11)
    lists = module._tuned_lists(query, module.ExactSearch(points), 0.9, 42)
    sample = np.random.default_rng(5).integers(0, len(clustered), 1000)
    _, ids = lists.search(clustered[sample], 11)
    hits = 0
    for row, found in zip(clustered[sample], ids, strict=True):
        squared = _squared(row, points)
        true = np.sort(squared)[1:11]  # Every sample is in the reference, so both policies mean the same points.
        counted = found[1:] if policy == "published" else found[~(points[found] == row).all(1)]
        hits += int((squared[counted[:10]] <= true[-1] * (1 + 1e-5)).sum())
    assert hits / (1000 * 10) == pytest.approx(lists.recall, abs=0.02)


def test_a_floor_of_one_is_exact(clustered: np.ndarray) -> None:
    found = density(clustered[:3000], index="ivf", min_recall=1.0)
    assert (found.index, found.recall) == ("exact", 1.0)
    np.testing.assert_array_equal(
        found.mean_squared_distance, density(clustered[:3000], index="exact").mean_squared_distance
    )


def test_what_no_index_makes_faster_is_searched_exactly() -> None:
    assert density(_rows(4000, 64), index="ivf", min_recall=0.999).index == "exact"


@pytest.mark.parametrize(("neighbors", "used"), [(200, 200), (5000, 1499)])
def test_lists_with_too_few_points_leave_no_gaps(clustered: np.ndarray, neighbors: int, used: int) -> None:
    found = density(clustered[:1500], index="ivf", neighbors=neighbors, min_recall=0.01)
    assert found.index.startswith("ivf")
    assert found.neighbors_used == used
    assert found.mean_squared_distance.max() <= 4


def test_the_seed_decides_the_index(clustered: np.ndarray) -> None:
    first, again, other = (density(clustered[:6000], index="ivf", min_recall=0.8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.mean_squared_distance, again.mean_squared_distance)
    assert (first.index, first.recall) == (again.index, again.recall)
    assert (first.mean_squared_distance != other.mean_squared_distance).any()


def test_auto_takes_the_index_for_many_targets_against_many_points(
    clustered: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXACT_REFERENCE", 3000)
    monkeypatch.setattr(module, "EXACT_TARGETS", 2000)
    assert density(clustered[:6000], min_recall=0.8).index.startswith("ivf")
    assert density(clustered[:2000], clustered[:6000], min_recall=0.8).index == "exact"
    assert density(clustered[:3000], min_recall=0.8).index == "exact"


def test_progress_ends_at_n() -> None:
    seen: list[tuple[int, int]] = []
    density(_rows(5000, 4), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4096, 5000), (5000, 5000)]


def test_too_little_memory_is_told_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (memory, module):
        monkeypatch.setattr(place, "available_memory", lambda: 2**20)
    with pytest.raises(NotEnoughMemory, match=r'6,000 points of 16 .* at most 0 points, or the index "exact"'):
        density(_rows(6000), index="ivf")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"neighbors": 0}, "neighbors is 0"),
        ({"min_recall": 0.0}, "min_recall is 0"),
        ({"min_recall": 1.5}, "min_recall is 1.5"),
        ({"neighbor_policy": "none"}, "neighbor_policy is 'none'; it must be one of published, self"),
        ({"index": "hnsw"}, "index is 'hnsw'; it must be one of auto, exact, ivf"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density(_rows(20), **setting)


def test_the_key_of_the_table_depends_on_the_settings(tmp_path: Path) -> None:
    rows, ids = _rows(30), [str(i) for i in range(30)]
    changes: list[dict[str, Any]] = [{}, {"neighbor_policy": "self"}, {"density_index": "exact"}, {"min_recall": 0.9}]
    settings = [NovelSum(neighbors=5, **change) for change in changes]
    tables = [build_density(tmp_path, ids, rows, "v", settings=one) for one in settings]
    assert len({table.key for table in tables}) == len(changes)
    assert (tables[0].index, tables[0].recall, tables[0].neighbors_used) == ("exact", 1.0, 5)
    assert tables[1].neighbor_policy == "self"


def _snapshot(kept: int) -> PoolSnapshot:
    counts = {"read": kept, "kept": kept, "duplicates": 0, "rejects": 0}
    file = {"source": "s", "file": "f", "format": "jsonl", "form": "alpaca", "sha256": None, "arrow_schema": None}
    return PoolSnapshot.model_validate(
        {
            "key": "k",
            "folder": "pool",
            "files": [{**file, **counts, "complete": True}],
            "near_duplicates": 0,
            "near_duplicates_dropped": False,
        }
    )


def test_recall_under_the_floor_fails_the_check(tmp_path: Path) -> None:
    ids = [str(i) for i in range(30)]
    table = build_density(tmp_path, ids, _rows(30), "v", settings=NovelSum(neighbors=5))
    settings = Settings(novelsum=NovelSum(min_recall=0.95))
    snapshot = _snapshot(30)
    for recall, passed in ((0.96, True), (0.94, False)):
        subject = Subject(table.model_copy(update={"recall": recall}), tmp_path, settings, snapshot)
        assert [validate(suite, subject).passed for suite in suites_of("density")] == [passed]
