"""NovelSum and density against plain definitions, and their refusals."""

import importlib

import numpy as np
import pytest

from novelsum_dagster.diversity import density, novelsum
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.diversity.novelsum import NovelSumOptions, novelsum_with_densities

# The package has a function of the same name.
novelsum_module = importlib.import_module("novelsum_dagster.diversity.novelsum")


def _rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _plain_novelsum(target: np.ndarray, reference: np.ndarray, neighbors: int, beta: float, alpha: float) -> float:
    """The definition, one sample at a time, in float64."""
    x = target.astype(np.float64)
    points = np.unique(reference, axis=0).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = []
    for i in range(len(x)):
        nearest = np.sort(((points - x[i]) ** 2).sum(1))[1 : neighbors + 1]
        factor = (nearest.mean() + 1e-9) ** -beta
        row = np.sort(1 - unit @ unit[i])
        weights = np.arange(1, len(x) + 1) ** -alpha
        values.append(factor * (weights * row).sum() / weights.sum())
    return float(np.mean(values))


@pytest.mark.parametrize(("beta", "alpha", "neighbors"), [(0.5, 1.0, 10), (0.25, 2.0, 3), (1.0, 0.0, 5)])
def test_novelsum_is_its_definition(beta: float, alpha: float, neighbors: int) -> None:
    rows = _rows(120)
    value = novelsum(rows[:50], rows, neighbors=neighbors, density_power=beta, proximity_power=alpha).value
    assert value == pytest.approx(_plain_novelsum(rows[:50], rows, neighbors, beta, alpha), rel=1e-5)


def test_tiles_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(97)
    whole = novelsum(rows)
    monkeypatch.setattr(novelsum_module, "_TILE_VALUES", 97 * 5)
    np.testing.assert_allclose(novelsum(rows).novelty, whole.novelty, rtol=1e-6)


def test_spread_sets_are_more_diverse_than_clustered_ones() -> None:
    centre = _rows(1)
    clustered = centre + 0.05 * _rows(100, seed=1)
    spread = _rows(100, seed=2)
    pool = np.concatenate([clustered, spread])
    assert novelsum(spread, pool).value > 2 * novelsum(clustered, pool).value


def test_the_interval_holds_the_value_and_repeats() -> None:
    result = novelsum(_rows(200))
    low, high = result.interval()
    assert low < result.value < high
    assert result.interval() == (low, high)
    assert result.interval(seed=7) != (low, high)


def test_density_without_power_needs_no_reference() -> None:
    rows = _rows(4)
    assert novelsum(rows, density_power=0).value > 0
    assert density(rows).neighbors_used == 3


def test_exact_duplicates_do_not_overflow() -> None:
    rows = np.repeat(_rows(30), 4, axis=0)
    found = density(rows, neighbors=10)
    assert found.reference_size == 30
    assert np.isfinite(found.factor(1.0)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    rows = _rows(20)
    rows[13, 2] = bad
    with pytest.raises(ValueError, match="row 13"):
        novelsum(rows)


def test_zero_rows_are_named() -> None:
    rows = _rows(20)
    rows[7] = 0
    with pytest.raises(ValueError, match="row 7 is all zeros"):
        novelsum_with_densities(rows, {(10, 0.5): np.ones(20)}, NovelSumOptions())


def test_unequal_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        density(_rows(20, 8), _rows(20, 9))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_empty_and_flat_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        novelsum(np.zeros(shape))


@pytest.mark.parametrize("setting", [{"density_power": -1.0}, {"proximity_power": -0.5}, {"neighbors": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        novelsum(_rows(20), **setting)  # type: ignore[arg-type]


def test_the_factor_is_larger_where_the_pool_is_denser() -> None:
    dense, loose = 0.1 * _rows(50, seed=1), 5 + _rows(50, seed=2)
    factor = density(np.concatenate([dense, loose])).factor(0.5)
    assert factor[:50].min() > factor[50:].max()


def test_the_factor_is_finite_at_distance_zero() -> None:
    assert density_factor(np.zeros(1), 0.5)[0] == pytest.approx(1e-9**-0.5)
