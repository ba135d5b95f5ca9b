"""Statistics of studies against closed forms of SciPy and NumPy, and intervals against simulations of known truth."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from novelsum_dagster.study.statistics import (
    Cell,
    Estimate,
    Method,
    correlations,
    detectable_correlation,
    detectable_difference,
    gain,
)

METHODS: tuple[Method, ...] = ("pearson", "spearman")
OF_SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}


def _cell(performance: NDArray[np.float64], labels: NDArray[np.int64] | None = None, draws: int = 200) -> Cell:
    return Cell.of(performance, np.random.default_rng(3), labels, draws)


def _one(cell: Cell, values: NDArray[np.float64], method: Method) -> Estimate:
    return correlations([cell], [values], method)[0]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
def test_one_cell_is_the_coefficient_of_scipy(rng: np.random.Generator, method: Method, ties: bool) -> None:
    x, performance = rng.normal(size=25), rng.normal(size=(25, 3))
    if ties:
        x, performance = np.round(x), np.round(performance)
    found = _one(_cell(performance), x, method)
    assert found.value == pytest.approx(OF_SCIPY[method](x, performance.mean(axis=1)).statistic)
    assert found.low is not None and found.high is not None
    assert -1 <= found.low < (found.value or 0) < found.high <= 1


@pytest.mark.parametrize("method", METHODS)
def test_cells_count_by_their_sets(rng: np.random.Generator, method: Method) -> None:
    """The pooled coefficient is that of what was standardised within cells; scale and place of a cell do not matter."""
    parts = [(rng.normal(size=n) * scale + scale, rng.normal(size=(n, 2)) + scale) for n, scale in ((12, 1), (20, 50))]
    found = correlations([_cell(y) for _, y in parts], [x for x, _ in parts], method)[0]
    alone = [OF_SCIPY[method](x, y.mean(axis=1)).statistic for x, y in parts]
    assert found.value == pytest.approx((12 * alone[0] + 20 * alone[1]) / 32)
    pairs = [(x, y.mean(axis=1)) for x, y in parts]
    taken = pairs if method == "pearson" else [(stats.rankdata(x), stats.rankdata(y)) for x, y in pairs]
    scores = [[stats.zscore(one) for one in pair] for pair in taken]
    x, y = (np.concatenate(one) for one in zip(*scores, strict=True))
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize("count", [1, 2])
def test_partial_coefficients_are_those_of_residuals(rng: np.random.Generator, count: int) -> None:
    controls = rng.normal(size=(count, 30))
    x, y = controls.sum(axis=0) + rng.normal(size=30), controls.sum(axis=0) + rng.normal(size=30)
    cell = _cell(y[:, None])
    plain, partial = correlations([cell], [x], "pearson", [[], [[one] for one in controls]])
    design = np.column_stack([np.ones(30), *controls])
    left = [one - design @ np.linalg.lstsq(design, one, rcond=None)[0] for one in (x, y)]
    assert partial.value == pytest.approx(np.corrcoef(*left)[0, 1])
    assert plain.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = correlations([cell], [x], "spearman", [[[one] for one in controls]])[0]
    of_ranks = [stats.rankdata(one) for one in (x, y)]
    design = np.column_stack([np.ones(30), *map(stats.rankdata, controls)])
    left = [one - design @ np.linalg.lstsq(design, one, rcond=None)[0] for one in of_ranks]
    assert ranks.value == pytest.approx(np.corrcoef(*left)[0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_within_strategies_only_deviations_count(rng: np.random.Generator, method: Method) -> None:
    labels = np.array([2, 0, 1, 0, 2, 1, 1, 0, 2, 1])
    shift = np.array([0.0, 100.0, -50.0])[labels]
    x, y = rng.normal(size=10), rng.normal(size=(10, 2))
    found = _one(_cell(y + shift[:, None], labels), x - shift, method)
    means = [np.array([one[labels == label].mean() for label in labels]) for one in (x, y.mean(axis=1))]
    left = x - means[0], y.mean(axis=1) - means[1]
    assert found.value == pytest.approx(OF_SCIPY[method](*left).statistic)


def test_strategies_are_resampled_by_themselves() -> None:
    labels = np.repeat([0, 1, 2], 4)
    cell = _cell(np.arange(12.0)[:, None], labels)
    assert cell.labels is not None
    assert (labels[cell.rows] == cell.labels).all()
    free = _cell(np.arange(12.0)[:, None])
    assert not (labels[free.rows[1:]] == labels).all()


def test_a_resample_takes_sets_and_then_their_own_seeds(rng: np.random.Generator) -> None:
    performance = 10.0 * np.arange(6)[:, None] + np.array([0.0, 1.0, 2.0])
    cell = _cell(performance)
    assert np.array_equal(cell.performance[0], performance.mean(axis=1))
    within = cell.performance - 10 * cell.rows
    assert within.min() >= 0 and within.max() <= 2
    assert len(np.unique(within.round(6))) == 7  # The means of three draws of 0, 1 and 2.
    single = _cell(performance[:, :1])
    assert np.array_equal(single.performance, 10.0 * single.rows)


def test_equal_draws_give_equal_intervals(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=15), rng.normal(size=(15, 2))
    assert _one(_cell(y), x, "spearman") == _one(_cell(y), x, "spearman")


@pytest.mark.parametrize("method", METHODS)
def test_equal_values_have_no_coefficient(rng: np.random.Generator, method: Method) -> None:
    y = rng.normal(size=(8, 2))
    assert _one(_cell(y), np.full(8, 0.1), method) == Estimate(None)
    assert _one(_cell(np.full((8, 2), 0.3)), rng.normal(size=8), method) == Estimate(None)
    labels = np.repeat([0, 1], 4)  # Equal within each strategy.
    assert _one(_cell(y, labels), np.array([0.1, 0.7])[labels], method) == Estimate(None)
    assert correlations([], [], method, [[], []]) == [Estimate(None)] * 2


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_coefficient_is_one(sign: int) -> None:
    x = np.arange(9.0)
    found = _one(_cell(sign * x[:, None]), x, "pearson")
    assert found.value == pytest.approx(sign)
    assert (found.low, found.high) == pytest.approx((sign, sign), abs=1e-6)
    assert (found.is_positive, found.is_negative) == (sign > 0, sign < 0)


@pytest.mark.parametrize(("truth", "labelled"), [(0.6, False), (0.0, False), (0.6, True)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(truth: float, labelled: bool) -> None:
    """Of 120 studies of 32 sets and 3 noisy trainings each; the truth is that of means over seeds."""
    rng, noise, held = np.random.default_rng(5), 0.5, dict.fromkeys(METHODS, 0)
    reached = truth / math.sqrt(1 + noise**2 / 3)
    expected = {"pearson": reached, "spearman": 6 / math.pi * math.asin(reached / 2)}
    labels = np.repeat(np.arange(8), 4) if labelled else None
    for _ in range(120):
        x = rng.normal(size=32)
        y = truth * x + math.sqrt(1 - truth**2) * rng.normal(size=32)
        if labels is not None:
            x, y = x + 3 * rng.normal(size=8)[labels], y + 3 * rng.normal(size=8)[labels]
        cell = Cell.of(y[:, None] + noise * rng.normal(size=(32, 3)), rng, labels, 300)
        for method in METHODS:
            found = _one(cell, x, method)
            assert found.low is not None and found.high is not None
            held[method] += found.low <= expected[method] <= found.high
    assert all(0.87 <= count / 120 <= 0.99 for count in held.values()), held


def test_a_gain_is_the_difference_of_means_and_pairs_seeds() -> None:
    seeds = np.array([0.0, 5.0, -3.0])
    base = np.array([[2.0], [2.2]]) + seeds
    other = np.array([[1.5], [1.5], [1.8]]) + seeds
    found = gain(other, base, np.random.default_rng(1))
    assert found.value == pytest.approx(0.5)
    assert found.low is not None and found.high is not None
    assert 0.1 < found.low < 0.5 < found.high < 0.75  # Nothing of the seeds' own 8.
    paired = gain(seeds[None] + 1, seeds[None] + 2, np.random.default_rng(1))
    assert (paired.value, paired.low, paired.high) == pytest.approx((1, 1, 1))
    assert paired.is_positive
    assert gain(np.array([[1.0]]), np.array([[2.0]]), np.random.default_rng(1)) == Estimate(1.0)


def test_a_gain_varies_as_the_difference_of_two_means_does(rng: np.random.Generator) -> None:
    """Also of few sets: m - 1 of m are drawn, so that no part (m - 1) / m of the variance is missing."""
    for m in (4, 30):
        other, base = rng.normal(size=(m, 1)), rng.normal(size=(m, 1))
        found = gain(other, base, np.random.default_rng(2), 20_000)
        assert found.low is not None and found.high is not None
        error = math.sqrt((other.var(ddof=1) + base.var(ddof=1)) / m)
        assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)


def test_intervals_of_gains_hold_the_truth() -> None:
    rng, held = np.random.default_rng(8), 0
    for _ in range(200):
        seeds = rng.normal(size=3)
        two = [seeds + rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, 3)) for _ in range(2)]
        found = gain(two[0], two[1], rng, 300)
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_the_detectable_correlation_is_found_with_four_in_five() -> None:
    assert detectable_correlation(47) == pytest.approx(math.tanh((1.959964 + 0.841621) / math.sqrt(47)))
    assert detectable_correlation(0) is None and detectable_correlation(-2) is None
    rng, least = np.random.default_rng(4), detectable_correlation(37)
    assert least is not None
    x = rng.normal(size=(2000, 40))
    y = least * x + math.sqrt(1 - least**2) * rng.normal(size=(2000, 40))
    found = stats.pearsonr(x, y, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_the_detectable_difference_is_found_with_four_in_five() -> None:
    rng, spread, count = np.random.default_rng(6), 2.0, 6
    losses = [spread * rng.normal(size=(400, 1)) for _ in range(2)]  # So many that the spread is known.
    least = detectable_difference(losses, (count, count))
    assert least is not None
    deviation = math.sqrt(sum(one.var(ddof=1) for one in losses) / 2)
    assert least == pytest.approx((stats.t.ppf(0.975, 798) + stats.t.ppf(0.8, 798)) * deviation * math.sqrt(2 / count))
    draws = spread * rng.normal(size=(2, 4000, count))
    tested = np.abs(draws[0].mean(axis=1) + least - draws[1].mean(axis=1)) > 1.96 * spread * math.sqrt(2 / count)
    assert tested.mean() == pytest.approx(0.8, abs=0.04)
    assert detectable_difference([np.ones((1, 3)), np.ones((1, 3))], (1, 1)) is None
