"""Correlations with performance: the paper's figures, scipy's, the undefined cases, and what the intervals promise."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from novelsum_dagster.study.correlation import (
    ALL_SETS,
    METHODS,
    SELECTING,
    Correlation,
    Method,
    coefficient,
    correlations,
    records,
)

PAPER = Path(__file__).parents[1] / "golden" / "paper-scatter.csv"


def _found(rows: list[Correlation]) -> dict[tuple[str, str, str], Correlation]:
    found: dict[tuple[str, str, str], Correlation] = {(row.measure, row.group, row.method): row for row in rows}
    assert len(found) == len(rows)
    return found


def _line(n: int, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return x, x + noise * generator.normal(size=n)


def test_the_papers_sets_give_the_papers_figures() -> None:
    rows = list(csv.DictReader(PAPER.read_text().splitlines()))
    measured = np.array([float(row["novelsum"]) for row in rows])
    performance = np.array([float(row["performance"]) for row in rows])
    found = _found(correlations({"novelsum": measured}, performance, [row["strategy"] for row in rows]))
    expected: dict[str, tuple[int, dict[Method, float]]] = {
        ALL_SETS: (39, {"pearson": 0.976, "spearman": 0.979}),
        SELECTING: (12, {"pearson": 0.813, "spearman": 0.747}),
    }
    for group, (sets, of_methods) in expected.items():
        for method, r in of_methods.items():
            one = found["novelsum", group, method]
            assert one.sets == sets
            assert one.r == pytest.approx(r, abs=5e-4)
    # Strategies with three sets or more.
    groups = [ALL_SETS, SELECTING, "K-means", "Repr Filter", "Random", "Duplicate"]
    assert list(dict.fromkeys(group for _, group, _ in found)) == groups
    assert [found["novelsum", group, "kendall"].sets for group in groups] == [39, 12, 3, 3, 5, 22]


@pytest.mark.parametrize("n", [4, 12, 39])
@pytest.mark.parametrize("noise", [0.2, 3.0])
def test_coefficients_are_those_of_scipy(n: int, noise: float) -> None:
    x, y = _line(n, noise, seed=n)
    pearson = stats.pearsonr(x, y)
    expected = pearson.confidence_interval(0.95)
    assert coefficient(x, y, "pearson") == pytest.approx((pearson.statistic, expected.low, expected.high), abs=1e-9)
    assert coefficient(x, y, "spearman")[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert coefficient(x, y, "kendall")[0] == pytest.approx(stats.kendalltau(x, y).statistic)
    tied = np.round(x)
    assert coefficient(tied, y, "spearman")[0] == pytest.approx(stats.spearmanr(tied, y).statistic)
    assert coefficient(tied, y, "kendall")[0] == pytest.approx(stats.kendalltau(tied, y, variant="b").statistic)


def test_intervals_of_ranks_are_as_published() -> None:
    x, y = _line(20)
    for method, variance in (("spearman", lambda r: (1 + r**2 / 2) / 17), ("kendall", lambda r: 0.437 / 16)):
        r, low, high = coefficient(x, y, method)  # type: ignore[arg-type]
        assert r is not None and low is not None and high is not None
        half = stats.norm.ppf(0.975) * math.sqrt(variance(r))
        assert (math.atanh(low), math.atanh(high)) == pytest.approx((math.atanh(r) - half, math.atanh(r) + half))


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_truth_as_often_as_they_say(method: Method) -> None:
    rho = 0.6
    truth = {
        "pearson": rho,
        "spearman": 6 / math.pi * math.asin(rho / 2),
        "kendall": 2 / math.pi * math.asin(rho),
    }[method]
    generator = np.random.default_rng(11)
    held = []
    for _ in range(400):
        x, y = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=30).T
        _, low, high = coefficient(x, y, method)
        assert low is not None and high is not None
        held.append(low <= truth <= high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_sign_is_turned_where_lower_is_more_diverse() -> None:
    x, y = _line(20)
    found = _found(correlations({"up": x, "down": x}, y, ["a"] * 20, frozenset({"down"})))
    for method in METHODS:
        up, down = found["up", ALL_SETS, method], found["down", ALL_SETS, method]
        assert up.r is not None and up.low is not None and up.high is not None and up.r > 0
        assert (down.r, down.low, down.high) == pytest.approx((-up.r, -up.high, -up.low))


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_sets_without_a_value_are_left_out_and_not_counted(missing: float) -> None:
    x, y = _line(20)
    strategies = ["a"] * 10 + ["random"] * 10
    holes, unmeasured = x.copy(), y.copy()
    holes[[1, 12]] = missing
    unmeasured[[2]] = missing
    found = _found(correlations({"whole": x, "holes": holes}, unmeasured, strategies))
    left = np.delete(np.arange(20), [1, 2, 12])
    for method in METHODS:
        assert [found["whole", group, method].sets for group in (ALL_SETS, SELECTING, "random")] == [19, 9, 10]
        assert [found["holes", group, method].sets for group in (ALL_SETS, SELECTING, "random")] == [17, 8, 9]
        assert found["holes", ALL_SETS, method].r == coefficient(x[left], y[left], method)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1, 2], [1, 2]),
        ([0.7] * 5, [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5], [-0.3] * 5),
        ([0.0] * 5, [0.0] * 5),
        # Equal but for rounding, which must not be correlated with anything.
        ([0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2, 0.3], [1, 2, 3, 4, 5]),
    ],
)
def test_what_is_not_defined_is_none(method: Method, x: list[float], y: list[float]) -> None:
    assert coefficient(np.array(x, dtype=float), np.array(y, dtype=float), method) == (None, None, None)


def test_a_measure_of_no_set_has_no_coefficient() -> None:
    rows = correlations({"none": np.full(5, math.nan)}, np.arange(5.0), ["a"] * 5)
    assert {(row.sets, row.r, row.low, row.high) for row in rows} == {(0, None, None, None)}
    assert correlations({"none": np.array([])}, np.array([]), [])[0].r is None


@pytest.mark.parametrize(("method", "fewest"), [("pearson", 4), ("spearman", 4), ("kendall", 5)])
def test_few_sets_have_a_coefficient_without_an_interval(method: Method, fewest: int) -> None:
    y = np.array([1.0, 3.0, 2.0, 5.0, 4.0])
    for n in (3, 4, 5):
        r, low, high = coefficient(np.arange(float(n)), y[:n], method)
        assert r is not None
        assert (low is None) == (high is None) == (n < fewest)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_correlation(method: Method, sign: int) -> None:
    x = np.arange(8.0)
    found = coefficient(x, sign * (2 * x + 5), method)
    assert found == pytest.approx((sign, sign, sign), abs=1e-6)
    assert all(end is not None and -1 <= end <= 1 for end in found)


def test_groups_ignore_case_and_leave_out_what_no_strategy_chose() -> None:
    strategies = ["NovelSelect"] * 3 + ["Random"] * 4 + ["DUPLICATE"] * 3 + ["qdit"] * 2
    x, y = _line(len(strategies))
    found = _found(correlations({"m": x}, y, strategies))
    sets = {group: row.sets for (_, group, _), row in found.items()}
    assert sets == {ALL_SETS: 12, SELECTING: 5, "NovelSelect": 3, "Random": 4, "DUPLICATE": 3}
    chosen = [0, 1, 2, 10, 11]
    assert found["m", SELECTING, "pearson"].r == coefficient(x[chosen], y[chosen], "pearson")[0]


def test_records_are_rows_of_a_table() -> None:
    x, y = _line(6)
    rows = records(correlations({"m": x}, y, ["a"] * 6))
    assert [list(row) for row in rows] == [["measure", "group", "method", "sets", "r", "low", "high"]] * 9
    assert (rows[0]["measure"], rows[0]["group"], rows[0]["method"], rows[0]["sets"]) == ("m", ALL_SETS, "pearson", 6)
