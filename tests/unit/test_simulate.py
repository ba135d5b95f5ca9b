"""The simulation: what the selections are, that measures and scores are what they are called, and its files."""

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr

from novelsum_dagster.diversity.clusters import cluster_inertia, partition_entropy
from novelsum_dagster.diversity.dcscore import dcscore
from novelsum_dagster.diversity.distances import distsum_l2, facility_location, knn_distance
from novelsum_dagster.diversity.moments import distsum_cosine, log_determinant, radius, vendi_score
from novelsum_dagster.diversity.novelsum import novelsum
from novelsum_dagster.study.simulate import (
    MEASURES,
    PAIRS,
    PLANE,
    POOL_SIZE,
    SELECTION_SIZE,
    SELECTIONS,
    Pool,
    Simulation,
    as_vectors,
    draw_pool,
    drawn,
    simulate,
    write_simulation,
)

SEED = 7
Drawn = dict[tuple[str, int], tuple[Pool, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def steps() -> list[tuple[int, int]]:
    """What was told of progress while `simulation` was computed."""
    return []


@pytest.fixture(scope="module")
def simulation(steps: list[tuple[int, int]]) -> Simulation:
    return simulate(SEED, repeats=2, progress=lambda done, total: steps.append((done, total)))


@pytest.fixture(scope="module")
def first() -> Drawn:
    """The pools and selections of the first repeat."""
    return {(pool.name, pool.dimensions): (pool, chosen) for pool, chosen in drawn(SEED, 0)}


def _members(pool: Pool, chosen: np.ndarray) -> np.ndarray:
    """The pool's row of each selected sample, every one of which is there."""
    row = {point.tobytes(): index for index, point in enumerate(pool.points)}
    return np.array([row[point.tobytes()] for point in chosen])


def _spacing(pool: Pool, neighbors: int = 10) -> np.ndarray:
    """Mean squared distance to the nearest others, by comparing all pairs in float64."""
    squared = np.sort(cdist(pool.rows.astype(np.float64), pool.rows.astype(np.float64), "sqeuclidean"), axis=1)
    return np.asarray(squared[:, 1 : neighbors + 1].mean(axis=1))


@pytest.mark.slow
def test_equal_seeds_give_equal_tables_and_others_do_not(simulation: Simulation) -> None:
    again = simulate(SEED, repeats=1)
    both = simulation.values.to_pylist()
    assert again.values.to_pylist() == both[: len(both) // 2]
    assert again.points.equals(simulation.points)
    name = ("uniform", PLANE)
    other = {(pool.name, pool.dimensions): pool for pool, _ in drawn(SEED + 1, 0)}[name]
    same = next(pool for pool, _ in drawn(SEED, 1))
    rows = simulation.points.filter(pa.compute.is_null(simulation.points["selection"]))["x"].to_numpy()[:POOL_SIZE]
    assert not np.isin(rows, other.points[:, 0]).any()
    assert not np.isin(rows, same.points[:, 0]).any()


def test_refuses_no_repeats_and_unknown_pools() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        simulate(repeats=0)
    with pytest.raises(ValueError, match=r"'even' is unknown.*clustered, uniform, varying density"):
        draw_pool("even", PLANE, np.random.default_rng(0))


def test_progress_counts_selections(steps: list[tuple[int, int]], simulation: Simulation) -> None:
    total = 2 * len(PAIRS) * len(SELECTIONS)
    assert steps == [(done, total) for done in range(1, total + 1)]
    assert len(simulation.values) == total * len(MEASURES)


def test_the_sphere_keeps_the_order_of_distances_in_the_plane(first: Drawn) -> None:
    for (_, dimensions), (pool, _) in first.items():
        np.testing.assert_allclose(np.linalg.norm(pool.rows, axis=1), 1, atol=1e-6)
        assert pool.rows.shape == (POOL_SIZE, 3 if dimensions == PLANE else dimensions)
        if dimensions == PLANE:
            some = slice(None, None, 10)
            cosines = pdist(pool.rows[some].astype(np.float64), "cosine")
            assert spearmanr(pdist(pool.points[some]), cosines).statistic > 0.99
    line = np.column_stack([np.linspace(0, 1.5, 50), np.zeros(50)])
    vectors = as_vectors(line).astype(np.float64)
    assert (np.diff(1 - vectors @ vectors[0]) > 0).all()


def test_pools_are_distributed_as_they_are_called(first: Drawn) -> None:
    spacing = {name: _spacing(pool) for name, (pool, _) in first.items()}
    for name, found in spacing.items():
        np.testing.assert_allclose(first[name][0].spacing, found, rtol=1e-3, atol=1e-7)
    for dimensions in {dimensions for _, dimensions in PAIRS}:
        ratio = {name: np.divide(*np.quantile(spacing[name, dimensions], [0.9, 0.1])) for name, _ in PAIRS}
        assert ratio["varying density"] > 5 * ratio["uniform"]
        pool = first["clustered", dimensions][0]
        assert pool.cluster is not None
        counts = np.bincount(pool.cluster)
        assert len(counts) == 8
        assert counts.max() == pytest.approx(3 * counts.min(), rel=0.02)
        nearest = cdist(pool.points, pool.points)
        np.fill_diagonal(nearest, np.inf)
        assert np.mean(pool.cluster[nearest.argmin(axis=1)] == pool.cluster) > 0.98
    inside = np.linalg.norm(first["uniform", PLANE][0].points, axis=1) < 0.5
    assert np.mean(inside) == pytest.approx(0.25, abs=0.04)  # A disc of half the radius has a quarter of the area.


def test_selections_have_equal_sizes_and_come_from_the_pool(first: Drawn) -> None:
    for pool, chosen in first.values():
        assert list(chosen) == list(SELECTIONS)
        for name, points in chosen.items():
            assert points.shape == (SELECTION_SIZE, pool.dimensions)
            distinct = len(np.unique(points, axis=0))
            if name != "near-duplicates":
                _members(pool, points)
                copied = name in ("duplicates", "region duplicates")
                assert distinct == (SELECTION_SIZE // 10 if copied else SELECTION_SIZE)


def test_spread_out_leaves_no_gap_and_no_clump(first: Drawn) -> None:
    for pool, chosen in first.values():
        gap = {name: cdist(pool.rows, as_vectors(chosen[name])).min(axis=1).max() for name in ("spread out", "random")}
        clump = {name: pdist(as_vectors(chosen[name])).min() for name in gap}
        assert gap["spread out"] < gap["random"]
        assert clump["spread out"] > clump["random"]
    pool, chosen = first["uniform", PLANE]
    assert cdist(pool.points, chosen["spread out"]).min(axis=1).max() < 0.1


def test_parts_are_parts(first: Drawn) -> None:
    for pool, chosen in first.values():
        half, region = (_members(pool, chosen[name]) for name in ("half", "one region"))
        assert {tuple(point) for point in chosen["region duplicates"]} <= {
            tuple(point) for point in chosen["one region"]
        }
        if pool.cluster is not None:
            assert len(set(pool.cluster[region])) == 1
            assert len(set(pool.cluster[half])) == 4
            continue
        # Those of a ball: no other sample is nearer to its middle.
        distances = cdist(pool.points[region], pool.points)
        ranked = np.argsort(distances, axis=1)[:, :SELECTION_SIZE]
        assert any(set(row) == set(region) for row in ranked)
        # A plane through the mean has all of the half on one side: some direction puts none of it behind.
        centred = pool.points[half] - pool.points.mean(axis=0)
        assert _separable(centred)


def _separable(points: np.ndarray) -> bool:
    """Tell whether a direction exists in which every point is ahead (linear programming)."""
    from scipy.optimize import linprog

    found = linprog(np.zeros(points.shape[1]), A_ub=-points, b_ub=-np.full(len(points), 1e-9), bounds=(None, None))
    return bool(found.status == 0)


def test_near_duplicates_are_nearer_than_any_neighbour(first: Drawn) -> None:
    for pool, chosen in first.values():
        moved = np.linalg.norm(chosen["near-duplicates"] - chosen["duplicates"], axis=1)
        assert (moved > 0).all()
        assert np.sqrt(np.mean(moved**2)) == pytest.approx(0.003, rel=0.1)
        if pool.name == "uniform":
            nearest = np.sort(cdist(pool.points, pool.points), axis=1)[:, 1]
            assert np.sqrt(np.mean(moved**2)) < nearest.mean() / 3


def test_dense_and_outlying_samples_are_the_ends_of_the_pool(first: Drawn) -> None:
    for pool, chosen in first.values():
        spacing = _spacing(pool)
        for name, end in (("dense only", spacing), ("outliers only", -spacing)):
            cut = np.sort(end)[SELECTION_SIZE - 1]
            members = _members(pool, chosen[name])
            assert (end[members] <= cut + 1e-3 * abs(cut)).all()
    pool, chosen = first["varying density", PLANE]
    # The ring that makes its pair beyond dispute: nothing of it is in the middle, where most of the pool is.
    assert np.linalg.norm(chosen["outliers only"], axis=1).min() > 0.45
    assert np.mean(np.linalg.norm(pool.points, axis=1) < 0.45) > 0.5


@pytest.mark.parametrize("place", [("clustered", PLANE), ("varying density", 64)])
def test_values_are_those_of_direct_calls(simulation: Simulation, first: Drawn, place: tuple[str, int]) -> None:
    pool, chosen = first[place]
    found = {
        (row["selection"], row["measure"]): row["value"]
        for row in simulation.values.to_pylist()
        if (row["repeat"], row["pool"], row["dimensions"]) == (0, *place)
    }
    for name in ("spread out", "near-duplicates"):
        rows, reference = as_vectors(chosen[name]), as_vectors(pool.points)
        expected = {
            "novelsum": novelsum(rows, reference).value,
            "distsum_cosine": distsum_cosine(rows).value,
            "distsum_l2": distsum_l2(rows).value,
            "knn_distance": knn_distance(rows).value,
            "cluster_inertia": cluster_inertia(rows, clusters=6).value,
            "radius": radius(rows).value,
            "facility_location": facility_location(rows, reference).value,
            "partition_entropy": partition_entropy(rows, reference).value,
            "vendi_score": vendi_score(rows).value,
            "log_determinant": log_determinant(rows).value,
            "dcscore": dcscore(rows).value,
        }
        assert set(expected) == set(MEASURES)
        for measure, value in expected.items():
            assert found[name, measure] == pytest.approx(value, rel=1e-5), measure


def test_pairs_follow_from_values_and_lower_facility_location_is_better(simulation: Simulation) -> None:
    keys = ("repeat", "pool", "dimensions", "measure")
    value = {(*(row[key] for key in keys), row["selection"]): row["value"] for row in simulation.values.to_pylist()}
    stated = defaultdict(list)
    judged = simulation.pairs.to_pylist()
    for row in judged:
        place = tuple(row[key] for key in keys)
        difference = value[(*place, row["better"])] - value[(*place, row["worse"])]
        assert row["right"] == ((difference < 0) if row["measure"] == "facility_location" else (difference > 0))
        stated[place].append((row["better"], row["worse"]))
    assert len(stated) == 2 * len(PAIRS) * len(MEASURES)
    for (_, pool, dimensions, _), pairs in stated.items():
        assert tuple(pairs) == PAIRS[pool, dimensions]
    everywhere = [row["right"] for row in judged if row["pool"] == "uniform" and row["worse"] == "one region"]
    assert all(everywhere)


def test_stated_pairs_name_selections_and_never_contradict() -> None:
    for pairs in PAIRS.values():
        assert len(set(pairs)) == len(pairs)
        assert {name for pair in pairs for name in pair} <= set(SELECTIONS)
        reached = set(pairs)
        for _ in SELECTIONS:
            reached |= {(a, d) for a, b in reached for c, d in pairs if b == c}
        assert not any(better == worse for better, worse in reached)


def test_scores_follow_from_pairs(simulation: Simulation) -> None:
    judged = simulation.pairs.to_pylist()
    rows = simulation.scores.to_pylist()
    assert len(rows) == len(MEASURES) * (len(PAIRS) + 1)
    for row in rows:
        of = [
            pair
            for pair in judged
            if pair["measure"] == row["measure"]
            and (row["pool"] == "all" or (pair["pool"], pair["dimensions"]) == (row["pool"], row["dimensions"]))
        ]
        right = sum(pair["right"] for pair in of)
        assert (row["right"], row["pairs"]) == (right, len(of))
        assert row["share"] == pytest.approx(right / len(of))
        shares = [np.mean([pair["right"] for pair in of if pair["repeat"] == repeat]) for repeat in (0, 1)]
        assert (row["lowest"], row["highest"]) == pytest.approx((min(shares), max(shares)))
        assert (row["dimensions"] is None) == (row["pool"] == "all")


def test_points_are_those_of_the_first_repeat(simulation: Simulation, first: Drawn) -> None:
    rows = simulation.points.to_pandas()
    assert list(rows["pool"].unique()) == ["uniform", "clustered", "varying density"]
    for name, part in rows.groupby("pool"):
        pool, chosen = first[str(name), PLANE]
        np.testing.assert_array_equal(part[part["selection"].isna()][["x", "y"]], pool.points)
        for selection, points in chosen.items():
            np.testing.assert_array_equal(part[part["selection"] == selection][["x", "y"]], points)


def test_files_hold_the_tables_and_pictures(simulation: Simulation, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    write_simulation(folder, simulation)
    tables = ("scores", "values", "pairs")
    names = [f"{name}.{kind}" for name in tables for kind in ("csv", "parquet")]
    assert {path.name for path in folder.iterdir()} == {*names, "points.parquet", "ranking.png", "selections.png"}
    for name in (*tables, "points"):
        assert pq.read_table(folder / f"{name}.parquet").equals(getattr(simulation, name))
    for name in tables:
        table = getattr(simulation, name)
        assert pa_csv.read_csv(folder / f"{name}.csv").cast(table.schema).to_pylist() == table.to_pylist()
    for name in ("ranking", "selections"):
        with Image.open(io.BytesIO((folder / f"{name}.png").read_bytes())) as picture:
            assert min(picture.size) > 500
            assert len(picture.convert("L").getcolors() or []) > 20
