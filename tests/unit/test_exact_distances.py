"""Unit rows and what is computed from them exactly; distances in a fixed order; k-means beside FAISS's."""

import math
from fractions import Fraction
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novelsum_dagster.diversity import clusters as clusters_module
from novelsum_dagster.diversity import vectors
from novelsum_dagster.diversity.clusters import centres_of, nearest_centre
from novelsum_dagster.diversity.density import ExactSearch
from novelsum_dagster.diversity.distance_kernels import squared_distances
from novelsum_dagster.diversity.vectors import cosine_distances, half_squares, unit_rows
from novelsum_dagster.selection.search.cpu_kernels import cosine_distance, weighted_sum

GRID = 2**25


def _rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, d)) * generator.uniform(1e-3, 1e3, (n, 1))
    rows[n // 2 : n // 2 + n // 4] = rows[: n // 4] * (1 + 1e-6)
    return rows.astype(np.float32)


def _exact_distance(x: np.ndarray, y: np.ndarray) -> Fraction:
    return sum(((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(x, y, strict=True)), Fraction()) / 2


@pytest.mark.parametrize("d", [1, 2, 40, 384])
def test_unit_rows_lie_on_the_grid_and_have_length_one(d: int) -> None:
    rows = _rows(60, d)
    units = unit_rows(rows)
    scaled = units.astype(np.float64) * GRID
    assert (scaled == np.rint(scaled)).all()
    wide = rows.astype(np.float64)
    true = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    assert np.abs(units - true).max() <= 1.5 / GRID
    np.testing.assert_allclose(2 * half_squares(units), 1, atol=(math.sqrt(d) + 4) * 2.0**-24)


@pytest.mark.parametrize("tile", [1, 7, 4096])
@pytest.mark.parametrize("d", [1, 3, 40, 384])
def test_cosine_distances_are_exact(monkeypatch: pytest.MonkeyPatch, d: int, tile: int) -> None:
    monkeypatch.setattr(vectors, "_TILE", tile)
    units = unit_rows(_rows(24, d))
    found = cosine_distances(units, units)
    for i, j in np.ndindex(found.shape):
        assert Fraction(float(found[i, j])) == _exact_distance(units[i], units[j])
        assert cosine_distance(units[i], units[j]) == found[i, j]
    assert (np.diag(found) == 0).all()
    assert (found == found.T).all() and (found >= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_squared_distances_are_rounded_once(d: int, seed: int) -> None:
    rows = _rows(8, d, seed)
    left, right = np.divmod(np.arange(64), 8)
    found = np.empty(64, np.float32)
    squared_distances(rows, left, rows, right, found)
    wide = rows.astype(np.float64)
    expected = [math.fsum(np.square(wide[i] - wide[j])) for i, j in zip(left, right, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=2.0**-24 * 1.001, atol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_weighted_sums_are_those_of_the_definition(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, weights = generator.uniform(size=size).astype(np.float32), generator.uniform(size=size)
    expected = math.fsum(float(v) * w for v, w in zip(values, weights, strict=True))
    assert weighted_sum(values, weights) == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_points_that_repeat_are_found_in_order(device: str) -> None:
    points = np.repeat(_rows(6, 5), 9, axis=0)
    squared, near = ExactSearch(points, device).search(points[::9], 12)
    assert (squared[:, :9] == 0).all() and (squared[:, 9:] > 0).all()
    assert (near[:, :9] == np.arange(54).reshape(6, 9)).all()


# K-means


def _faiss_centres(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    trained: Any = faiss.Kmeans(rows.shape[1], clusters, niter=20, seed=seed, min_points_per_centroid=1)
    trained.train(rows)
    return np.asarray(trained.centroids)


@pytest.mark.parametrize("seed", [1, 42])
@pytest.mark.parametrize(("n", "clusters"), [(300, 300), (300, 7), (2000, 3)])
def test_centres_are_those_of_faiss(n: int, clusters: int, seed: int) -> None:
    rows = np.random.default_rng(0).normal(size=(n, 12)).astype(np.float32)
    expected = _faiss_centres(rows, clusters, seed)
    found = centres_of(rows, clusters, seed)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (nearest_centre(rows, found) == faiss.knn(rows, expected, 1)[1][:, 0]).all()


@pytest.mark.parametrize("pool", [22, 28, 31])
def test_clusters_without_samples_are_filled_as_faiss_fills_them(pool: int) -> None:
    generator = np.random.default_rng(pool)
    rows = np.concatenate([generator.normal(size=(200, 2)), 10 + 5 * generator.normal(size=(200, 2))])
    rows = rows.astype(np.float32)
    filled = []
    split = clusters_module._split

    def counted(centres: Any, counts: Any) -> None:
        filled.append(int((counts == 0).sum()))
        split(centres, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters_module, "_split", counted)
        found = centres_of(rows, 150, 42)
    assert sum(filled) > 0
    np.testing.assert_allclose(found, _faiss_centres(rows, 150, 42), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_cell_does_not_depend_on_the_rows_beside_it(scale: float) -> None:
    rows = _rows(500, 16)
    centres = centres_of(rows, 9, 42)
    wide = (rows * np.float32(scale)).astype(np.float32)
    together = nearest_centre(wide, centres)
    assert (together == np.concatenate([nearest_centre(wide[i : i + 1], centres) for i in range(500)])).all()


def test_of_equally_near_centres_the_first_counts() -> None:
    centres = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.float32)
    rows = np.array([[1, 1], [0, 2], [3, 0]], np.float32)
    assert nearest_centre(rows, centres).tolist() == [0, 0, 1]
