"""DCScore against a softmax of the whole matrix, and what it must be in the limits."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from novelsum_dagster.diversity import dcscore


def _rows(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _dense(rows: NDArray[np.float32], temperature: float) -> float:
    """As the published code computes it, with the whole matrix, in float64."""
    wide = rows.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return float(np.trace(scipy.special.softmax(units @ units.T / temperature, axis=1)))


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0, 7.0])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (60, 9), (300, 24)])
def test_it_is_the_trace_of_a_softmax(n: int, d: int, temperature: float) -> None:
    rows = _rows(n, d)
    rows[n // 2 :: 7] = rows[0]
    assert dcscore(rows, temperature=temperature).value == pytest.approx(_dense(rows, temperature), rel=1e-6)


def test_the_default_temperature_is_1() -> None:
    rows = _rows(40, 8)
    assert dcscore(rows).value == dcscore(rows, temperature=1.0).value


@pytest.mark.parametrize("temperature", [1e-6, 0.1, 1.0, 100.0])
def test_equal_samples_count_as_one(temperature: float) -> None:
    rows = np.repeat(_rows(1, 6), 50, axis=0)
    assert dcscore(rows, temperature=temperature).value == pytest.approx(1, abs=1e-12)
    groups = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    assert dcscore(groups, temperature=1e-3).value == pytest.approx(4, abs=1e-12)


def test_right_angles_and_opposites_have_closed_forms() -> None:
    n, temperature = 6, 0.5
    axes = np.eye(n, dtype=np.float32)
    expected = n / (1 + (n - 1) * np.exp(-1 / temperature))
    assert dcscore(axes, temperature=temperature).value == pytest.approx(expected, rel=1e-12)
    pair = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert dcscore(pair).value == pytest.approx(2 / (1 + np.exp(-2)), rel=1e-12)


def test_it_nears_n_for_low_temperatures_and_1_for_high_ones() -> None:
    rows = _rows(200, 32)
    values = [dcscore(rows, temperature=temperature).value for temperature in (1e-4, 0.05, 0.3, 1.0, 10.0, 1e6)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(200, rel=1e-9) and values[-1] == pytest.approx(1, rel=1e-4)
    assert dcscore(rows, temperature=1e-300).value == 200


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 2.0]))
def test_a_repeated_sample_adds_less_than_1_and_order_does_not_matter(n: int, d: int, seed: int, t: float) -> None:
    rows = _rows(n, d, seed)
    value = dcscore(rows, temperature=t).value
    assert dcscore(rows[::-1].copy(), temperature=t).value == pytest.approx(value, rel=1e-12)
    assert dcscore(np.concatenate([rows, rows]), temperature=t).value == pytest.approx(value, rel=1e-12)
    assert dcscore(np.concatenate([rows, rows[:1]]), temperature=t).value < value + 1
    assert 1 - 1e-12 <= value <= n + 1e-12


def test_the_interval_holds_the_value_and_has_the_spread_of_draws() -> None:
    pool = np.concatenate([_rows(400, 16), 3 + _rows(400, 16, 1)])
    generator = np.random.default_rng(0)
    draws = [dcscore(pool[generator.choice(800, 200, replace=False)], temperature=0.3) for _ in range(40)]
    spread = np.std([one.value for one in draws])
    shown = np.mean([(one.interval()[1] - one.interval()[0]) / (2 * 1.96) for one in draws])
    assert 0.5 < shown / spread < 2
    for one in draws:
        low, high = one.interval()
        assert low < one.value < high
