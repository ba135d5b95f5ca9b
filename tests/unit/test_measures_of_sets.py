"""DistSum, KNN distance, facility location, Vendi, log-determinant, radius, inertia, entropy against other packages.

What is true of all measures of vectors is tested of DCScore, too; what it is, in `test_dcscore`.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from vendi_score import vendi  # type: ignore[import-untyped]

from novelsum_dagster.diversity import clusters as clusters_module
from novelsum_dagster.diversity import distances as distances_module
from novelsum_dagster.diversity.clusters import Partition, centres_of, cluster_inertia, partition_entropy
from novelsum_dagster.diversity.dcscore import dcscore
from novelsum_dagster.diversity.distances import distsum_l2, facility_location, knn_distance
from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.moments import Moments, distsum_cosine, log_determinant, radius, vendi_score

# Some measures have the names of their modules in the package.
moments_module = importlib.import_module("novelsum_dagster.diversity.moments")
dcscore_module = importlib.import_module("novelsum_dagster.diversity.dcscore")

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = ["duplicates", "mixture", "real", "unnormalised"]
SIZES = [(40, 9), (12, 20), (150, 150), (300, 24)]

Measure = Callable[..., Measured]
COSINE: dict[str, Measure] = {
    "distsum_cosine": distsum_cosine,
    "knn_distance": knn_distance,
    "facility_location": facility_location,
    "vendi_score": vendi_score,
    "log_determinant": log_determinant,
    "dcscore": dcscore,
}
MEASURES: dict[str, Measure] = {
    **COSINE,
    "distsum_l2": distsum_l2,
    "radius": radius,
    "cluster_inertia": lambda rows: cluster_inertia(rows, clusters=min(4, len(rows))),
    "partition_entropy": lambda rows: partition_entropy(rows, clusters=min(4, len(rows))),
}


def _rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _skewed(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows with a strong common direction and a spectrum that decays, as embeddings of language models have."""
    rows = _rows(n, d, seed) * np.exp(-np.arange(d) / 20)
    rows[:, 0] += 3
    return rows.astype(np.float32)


def _units(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def _ordered_pairs(distances: np.ndarray, n: int) -> float:
    return float(distances.mean() * (n - 1) / n)


# Other implementations


@pytest.mark.parametrize("name", CASES)
def test_distsum_and_entropy_equal_the_published_code(name: str) -> None:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    rows = np.load(GOLDEN / f"{name}.npy", allow_pickle=False)
    target, reference = rows[: case["target_rows"]], rows[: case["reference_rows"]]
    assert distsum_cosine(target).value == pytest.approx(case["cos_distance"], rel=1e-5)
    entropy = partition_entropy(target, reference, clusters=20).value
    assert entropy == pytest.approx(case["partition_entropy_20_clusters"], rel=1e-5)


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("make", [_rows, _skewed])
def test_distsum_equals_scipy(make: Callable[[int, int], np.ndarray], n: int, d: int) -> None:
    rows = make(n, d)
    wide = rows.astype(np.float64)
    assert distsum_cosine(rows).value == pytest.approx(_ordered_pairs(pdist(wide, "cosine"), n), rel=1e-6)
    assert distsum_l2(rows).value == pytest.approx(_ordered_pairs(pdist(wide), n), rel=1e-9)


def test_distsum_l2_is_not_lost_far_from_the_origin() -> None:
    rows = _rows(100) + np.float32(1000)
    assert distsum_l2(rows).value == pytest.approx(_ordered_pairs(pdist(rows.astype(np.float64)), 100), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("make", [_rows, _skewed])
def test_vendi_equals_its_package(make: Callable[[int, int], np.ndarray], n: int, d: int) -> None:
    rows = make(n, d)
    value = vendi_score(rows).value
    assert value == pytest.approx(vendi.score_dual(rows.astype(np.float64), q=1), rel=1e-6)
    assert value == pytest.approx(_weighted_vendi(rows, np.full(n, 1 / n)), rel=1e-6)


@pytest.mark.parametrize("ridge", [1.0, 10.0, 0.01, 1e-4])
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("make", [_rows, _skewed])
def test_log_determinant_equals_numpy(make: Callable[[int, int], np.ndarray], n: int, d: int, ridge: float) -> None:
    units = _units(make(n, d))
    sign, expected = np.linalg.slogdet(ridge * np.eye(n) + units @ units.T)
    assert sign == 1
    assert log_determinant(make(n, d), ridge=ridge).value == pytest.approx(expected, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_radius_equals_scipy(n: int, d: int) -> None:
    rows = _skewed(n, d) * 1e-3 + np.float32(5)
    expected = scipy.stats.gmean(rows.std(axis=0, dtype=np.float64))
    assert radius(rows).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("neighbor", [1, 2, 7, 59, 500])
def test_knn_distance_equals_sklearn(neighbor: int) -> None:
    rows = _rows(60)
    rows[50:] = rows[:10]
    k = min(neighbor, 59)
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(rows.astype(np.float64))
    nearest = search.kneighbors()[0][:, -1]
    assert knn_distance(rows, neighbor=neighbor).value == pytest.approx(nearest.mean(), rel=1e-6)


def test_facility_location_equals_submodlib_and_scipy() -> None:
    pool = _rows(120)
    value = facility_location(pool[:15], pool).value
    assert value == pytest.approx(cdist(_units(pool), _units(pool[:15]), "cosine").min(axis=1).sum(), rel=1e-6)
    cosines = (_units(pool) @ _units(pool).T).astype(np.float32)
    reference = pytest.importorskip("submodlib", reason="submodlib-py has no wheel for this Python or processor")
    function = reference.FacilityLocationFunction(n=120, mode="dense", sijs=cosines, separate_rep=False)
    assert 120 - function.evaluate(set(range(15))) == pytest.approx(value, rel=1e-5)


def test_facility_location_against_a_pool_that_holds_none_of_the_set() -> None:
    target, pool = _rows(7, seed=1), _rows(90, seed=2)
    expected = cdist(pool.astype(np.float64), target.astype(np.float64), "cosine").min(axis=1).sum()
    assert facility_location(target, pool).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("clusters", [1, 5, 40])
def test_inertia_is_that_of_its_centres_and_near_that_of_sklearn(clusters: int) -> None:
    rows = _rows(1500, 8)
    value = cluster_inertia(rows, clusters=clusters).value
    centres = centres_of(rows, clusters, 42)
    squared = cdist(rows.astype(np.float64), centres.astype(np.float64), "sqeuclidean")
    assert value == pytest.approx(squared.min(axis=1).sum(), rel=1e-6)
    best = KMeans(clusters, n_init=3, random_state=0).fit(rows).inertia_
    assert 0.99 * best < value < 1.04 * best


def test_partition_entropy_equals_scipy() -> None:
    target, pool = _rows(200, seed=1), _rows(500, seed=2)
    partition = Partition.of(pool, clusters=12)
    cells = cdist(target.astype(np.float64), partition.centres.astype(np.float64)).argmin(axis=1)
    np.testing.assert_array_equal(partition.cells(target), cells)
    expected = scipy.stats.entropy(np.bincount(cells, minlength=12), base=2)
    for found in (
        partition_entropy(target, pool, clusters=12),
        partition_entropy(target, partition=partition),
        partition_entropy(target, pool, clusters=3, partition=partition),
    ):
        assert found.value == pytest.approx(expected, rel=1e-12)


def test_moments_that_are_known_give_the_same() -> None:
    rows = _rows(50)
    known = Moments.of(rows)
    for measure in (distsum_cosine, radius, vendi_score, log_determinant):
        found, again = measure(rows), measure(rows, moments=known)
        assert found.value == again.value
        np.testing.assert_array_equal(found.influence, again.influence)


# Influence


def _scaled_cosines(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    units = _units(rows) * np.sqrt(weights)[:, None]
    return np.asarray(units @ units.T)


def _weighted_vendi(rows: np.ndarray, weights: np.ndarray) -> float:
    shares = np.linalg.eigvalsh(_scaled_cosines(rows, weights))
    return float(np.exp(scipy.stats.entropy(shares.clip(1e-300))))


def _weighted_radius(rows: np.ndarray, weights: np.ndarray) -> float:
    deviations = rows - weights @ rows.astype(np.float64)
    return float(scipy.stats.gmean(np.sqrt(weights @ deviations**2)))


def _weighted_entropy(rows: np.ndarray, weights: np.ndarray) -> float:
    cells = Partition.of(rows, clusters=4).cells(rows)
    return float(scipy.stats.entropy(np.bincount(cells, weights=weights), base=2))


WEIGHTED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "distsum_cosine": lambda rows, p: float(p @ cdist(rows, rows, "cosine") @ p),
    "distsum_l2": lambda rows, p: float(p @ cdist(rows, rows) @ p),
    "vendi_score": _weighted_vendi,
    "log_determinant": lambda rows, p: float(
        np.linalg.slogdet(np.eye(len(rows)) + len(rows) * _scaled_cosines(rows, p))[1]
    ),
    "radius": _weighted_radius,
    "partition_entropy": _weighted_entropy,
    "dcscore": lambda rows, p: float(p @ (1 / (np.exp(-cdist(rows, rows, "cosine")) @ p))),
}


@pytest.mark.parametrize(("n", "d"), [(40, 9), (12, 20)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_influence_is_the_derivative_by_a_samples_weight(name: str, n: int, d: int) -> None:
    rows = _rows(n, d)
    rows[-2:] = rows[:2]
    found, step = MEASURES[name](rows), 1e-3
    assert found.value == pytest.approx(WEIGHTED[name](rows, np.full(n, 1 / n)), rel=1e-6)
    slopes = []
    for sample in range(n):
        values = []
        for change in (step, -step):
            weights = np.ones(n)
            weights[sample] += change
            values.append(WEIGHTED[name](rows, weights / weights.sum()))
        slopes.append((values[0] - values[1]) / (2 * step) * n)
    np.testing.assert_allclose(found.influence, slopes, rtol=1e-4, atol=1e-5 * np.abs(slopes).max())


@pytest.mark.parametrize("name", ["knn_distance", "cluster_inertia", "facility_location"])
def test_influence_is_exact_where_the_value_is_a_mean_or_a_sum(name: str) -> None:
    rows, pool = _rows(30, seed=1), _rows(80, seed=2)
    terms: np.ndarray
    if name == "knn_distance":
        found, scale = knn_distance(rows), 1
        terms = np.sort(cdist(rows, rows, "cosine"), axis=1)[:, 1]
    elif name == "cluster_inertia":
        found, scale = cluster_inertia(rows, clusters=5), 30
        terms = cdist(rows, centres_of(rows, 5, 42), "sqeuclidean").min(axis=1)
    else:
        found, scale = facility_location(rows, pool), 80
        terms = cdist(pool, rows, "cosine").min(axis=1)
    np.testing.assert_allclose(found.influence, scale * (terms - terms.mean()), rtol=1e-5, atol=1e-5)
    assert len(found.influence) == len(terms)


@pytest.mark.parametrize("name", MEASURES)
def test_influence_has_mean_zero_and_the_interval_holds_the_value(name: str) -> None:
    rows = _rows(80)
    found = facility_location(rows[:20], rows) if name == "facility_location" else MEASURES[name](rows)
    assert found.influence.dtype == np.float64
    assert found.influence.shape == (80,)
    assert abs(found.influence.mean()) < 1e-9 * np.abs(found.influence).max()
    low, high = found.interval()
    assert low < found.value < high
    assert found.interval() == (low, high)
    assert found.interval(seed=7) != (low, high)
    wider = found.interval(0.99)
    assert wider[0] < low < high < wider[1]


def test_the_interval_of_a_mean_has_the_width_of_the_normal_one() -> None:
    found = knn_distance(_rows(400, 4))
    low, high = found.interval()
    expected = 2 * 1.96 * found.influence.std() / 400**0.5
    assert high - low == pytest.approx(expected, rel=0.1)


def test_tiles_do_not_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pool = _rows(97), _rows(150, seed=1)

    def values() -> list[Measured]:
        found = [measure(rows) for measure in MEASURES.values()]
        return [*found, facility_location(rows, pool), knn_distance(rows, neighbor=5)]

    whole = values()
    monkeypatch.setattr(distances_module, "_TILE_VALUES", 1000)
    monkeypatch.setattr(dcscore_module, "_TILE_VALUES", 1000)
    monkeypatch.setattr(moments_module, "_TILE", 10)
    monkeypatch.setattr(clusters_module, "_TILE", 10)
    for tiled, one in zip(values(), whole, strict=True):
        assert tiled.value == pytest.approx(one.value, rel=1e-9)
        np.testing.assert_allclose(tiled.influence, one.influence, rtol=1e-9, atol=1e-9)


def test_a_device_by_name_gives_the_same_and_progress_ends_at_n() -> None:
    rows, pool = _rows(60), _rows(90, seed=1)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    for measure, extra, total in (
        (distsum_l2, (), 60), (knn_distance, (), 60), (facility_location, (pool,), 90), (dcscore, (), 60)
    ):  # fmt: skip
        seen.clear()
        named = measure(rows, *extra, device="cpu:0", progress=progress)
        assert named.value == pytest.approx(measure(rows, *extra).value, rel=1e-12)
        assert seen[-1] == (total, total)
    there, here = Moments.of(rows, device="cpu:0"), Moments.of(rows)
    for name in ("direction", "gram", "mean", "squares"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-9, atol=1e-9)


def test_the_seed_decides_the_clusters() -> None:
    rows = _rows(400)
    for measure in (cluster_inertia, partition_entropy):
        assert measure(rows, clusters=9).value == measure(rows, clusters=9, seed=42).value
        assert measure(rows, clusters=9).value != measure(rows, clusters=9, seed=1).value


# Limits


@pytest.mark.parametrize(("n", "d"), [(2, 3), (50, 7), (300, 384), (1000, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_identical_samples(n: int, d: int, seed: int) -> None:
    rows = np.repeat(_rows(1, d, seed), n, axis=0)
    found = {name: measure(rows) for name, measure in MEASURES.items()}
    expected = dict.fromkeys(MEASURES, 0.0) | {"vendi_score": 1.0, "log_determinant": np.log(1 + n), "dcscore": 1.0}
    for name, measured in found.items():
        tolerance = 1e-6 if name == "log_determinant" else 1e-9
        assert measured.value == pytest.approx(expected[name], rel=0, abs=tolerance), name
        assert np.abs(measured.influence).max() < 1e-6, name
    for name in ("knn_distance", "facility_location", "radius", "cluster_inertia", "partition_entropy"):
        assert found[name].value == 0, name
    assert cluster_inertia(rows, clusters=1).value == 0


@pytest.mark.parametrize("noise", [1e-3, 1e-4, 1e-5])
def test_a_set_covers_itself_even_among_near_duplicates(noise: float) -> None:
    rows = (_rows(1, 64) + noise * _rows(300, 64, seed=1)).astype(np.float32)
    assert facility_location(rows).value == 0
    assert facility_location(rows, rows).value == 0
    assert facility_location(rows, rows[:10]).value == 0
    exact = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(rows.astype(np.float64))
    assert knn_distance(rows).value == pytest.approx(exact.kneighbors()[0].mean(), abs=2e-7)


def test_no_more_distinct_samples_than_clusters_have_no_inertia() -> None:
    rows = np.repeat(_rows(30), 20, axis=0)
    assert cluster_inertia(rows, clusters=30).value == 0
    assert cluster_inertia(rows, clusters=45).value == 0
    assert cluster_inertia(rows).value == 0
    assert cluster_inertia(rows, clusters=29).value > 0


@pytest.mark.parametrize("name", COSINE)
@pytest.mark.parametrize("scale", [0.25, 1e-6, 1e6])
def test_measures_of_cosines_do_not_depend_on_length(name: str, scale: float) -> None:
    rows, pool = _rows(60), _rows(90, seed=1)
    lengths = (scale * np.random.default_rng(2).uniform(0.5, 2, (60, 1))).astype(np.float32)
    extra = (pool,) if name == "facility_location" else ()
    found, again = COSINE[name](rows, *extra), COSINE[name](rows * lengths, *extra)
    assert again.value == pytest.approx(found.value, rel=1e-6)


def test_measures_of_lengths_scale_with_them() -> None:
    rows = _rows(60)
    for name, power in (("distsum_l2", 1), ("radius", 1), ("cluster_inertia", 2), ("partition_entropy", 0)):
        found, again = MEASURES[name](rows), MEASURES[name](4 * rows)
        assert again.value == pytest.approx(4**power * found.value, rel=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_one_sample(name: str) -> None:
    found = MEASURES[name](_rows(1))
    expected = {"vendi_score": 1.0, "log_determinant": np.log(2), "dcscore": 1.0}.get(name, 0.0)
    assert found.value == pytest.approx(expected, rel=0, abs=1e-6)
    assert found.influence.tolist() == pytest.approx([0.0], abs=1e-12)
    assert found.interval() == pytest.approx((found.value, found.value))


def test_two_samples() -> None:
    rows = _rows(2)
    wide = rows.astype(np.float64)
    cosine, apart = 1 - float(pdist(wide, "cosine")[0]), float(pdist(wide)[0])
    expected = {
        "distsum_cosine": (1 - cosine) / 2,
        "distsum_l2": apart / 2,
        "knn_distance": 1 - cosine,
        "facility_location": 0.0,
        "vendi_score": np.exp(scipy.stats.entropy([1 + cosine, 1 - cosine])),
        "log_determinant": np.log(4 - cosine**2),
        "dcscore": 2 / (1 + np.exp(cosine - 1)),
        "radius": scipy.stats.gmean(np.abs(wide[0] - wide[1]) / 2),
        "cluster_inertia": 0.0,
        "partition_entropy": 1.0,
    }
    for name, measure in MEASURES.items():
        assert measure(rows).value == pytest.approx(expected[name], rel=1e-6), name
    assert cluster_inertia(rows, clusters=1).value == pytest.approx(apart**2 / 2, rel=1e-6)
    assert facility_location(rows[:1], rows).value == pytest.approx(1 - cosine, rel=1e-6)


def test_opposite_and_orthogonal_samples() -> None:
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert distsum_cosine(axes).value == pytest.approx(1)
    assert distsum_cosine(axes[[0, 5]]).value == pytest.approx(1)
    assert vendi_score(axes[:5]).value == pytest.approx(5)
    assert vendi_score(axes[[0, 5]]).value == pytest.approx(1)
    assert log_determinant(axes[:5], ridge=2).value == pytest.approx(5 * np.log(3))
    assert knn_distance(axes, neighbor=9).value == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_value_is_finite_and_in_its_range(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=d, max_size=d).filter(any)
    rows = np.array(data.draw(st.lists(row, min_size=1, max_size=12)), dtype=np.float32)
    n = len(rows)
    most = {
        "distsum_cosine": 1.0,  # No direction is on average farther than a right angle from all.
        "knn_distance": 2.0,
        "facility_location": 0.0,
        "vendi_score": min(n, d),
        "log_determinant": n * np.log(2),
        "dcscore": n,
        "partition_entropy": 2.0,
    }
    for name, measure in MEASURES.items():
        found = measure(rows)
        assert np.isfinite(found.value), name
        assert np.isfinite(found.influence).all(), name
        least = {"vendi_score": 1.0, "log_determinant": np.log(1 + n), "dcscore": 1.0}.get(name, 0.0)
        assert least - 1e-6 <= found.value <= most.get(name, np.inf) + 1e-6, name
        if name != "log_determinant":
            assert found.value >= (1 - 1e-9 if name in ("vendi_score", "dcscore") else 0), name


# Refusals


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(name: str, bad: float) -> None:
    rows = _rows(20)
    rows[13, 2] = bad
    with pytest.raises(ValueError, match="target: row 13 has a NaN or infinite value"):
        MEASURES[name](rows)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_empty_and_flat_arrays_are_refused(name: str, shape: tuple[int, ...]) -> None:
    if name in ("cluster_inertia", "partition_entropy"):
        measure: Measure = cluster_inertia if name == "cluster_inertia" else partition_entropy
    else:
        measure = MEASURES[name]
    with pytest.raises(ValueError, match=r"(target|reference): shape .* expected \(samples, dimensions\)"):
        measure(np.zeros(shape))


@pytest.mark.parametrize("name", COSINE)
def test_zero_rows_are_named_where_a_cosine_is_needed(name: str) -> None:
    rows = _rows(20)
    rows[7] = 0
    with pytest.raises(ValueError, match="target: row 7 is all zeros"):
        COSINE[name](rows)


def test_pools_and_parts_are_checked_too() -> None:
    rows, zero = _rows(20), _rows(20)
    zero[3] = 0
    with pytest.raises(ValueError, match="pool: row 3 is all zeros"):
        facility_location(rows, zero)
    with pytest.raises(ValueError, match="target has 16 dimensions, pool 5"):
        facility_location(rows, _rows(9, 5))
    with pytest.raises(ValueError, match="target has 16 dimensions, reference 5"):
        partition_entropy(rows, _rows(9, 5), clusters=3)
    with pytest.raises(ValueError, match="target has 5 dimensions, reference 16"):
        Partition.of(rows, clusters=3).cells(_rows(9, 5))


def test_rows_too_long_for_k_means_are_refused_and_others_measured() -> None:
    rows = _rows(50) * np.float32(1e20)
    for measure in (cluster_inertia, partition_entropy):
        with pytest.raises(ValueError, match=r"target: row 0 has length .* \(50 rows over 1e\+18\)"):
            measure(rows, clusters=5)
    with pytest.raises(ValueError, match=r"target: row 0 has length .* over 1e\+18"):
        Partition.of(_rows(50), clusters=5).cells(rows)
    for name in (*COSINE, "distsum_l2", "radius"):
        assert np.isfinite(MEASURES[name](rows).value), name


@pytest.mark.parametrize(
    ("measure", "setting", "message"),
    [
        (knn_distance, {"neighbor": 0}, "neighbor is 0; it must be 1 or more"),
        (knn_distance, {"neighbor": -2}, "neighbor is -2; it must be 1 or more"),
        (log_determinant, {"ridge": 0}, "ridge is 0; it must be over 0"),
        (log_determinant, {"ridge": -1.0}, "ridge is -1.0; it must be over 0"),
        (log_determinant, {"ridge": np.nan}, "ridge is nan; it must be over 0"),
        (log_determinant, {"ridge": np.inf}, "ridge is inf; it must be over 0 and finite"),
        (dcscore, {"temperature": 0}, "temperature is 0; it must be over 0"),
        (dcscore, {"temperature": np.nan}, "temperature is nan; it must be over 0"),
        (dcscore, {"temperature": np.inf}, "temperature is inf; it must be over 0 and finite"),
        (cluster_inertia, {"clusters": 0}, "clusters is 0; it must be 1 or more"),
        (partition_entropy, {"clusters": 0}, "clusters is 0; the reference allows 1 to 20"),
        (partition_entropy, {"clusters": 21}, "clusters is 21; the reference allows 1 to 20"),
        (partition_entropy, {}, "clusters is 100; the reference allows 1 to 20"),
    ],
)
def test_settings_out_of_range_are_refused(measure: Measure, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(_rows(20), **setting)
