"""Correlations of the measures of diversity with performance, with confidence intervals.

Belongs here: the coefficients, the groups of sets they are taken over. Does not: building or measuring sets, files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["pearson", "spearman", "kendall"]
METHODS: tuple[Method, ...] = get_args(Method)

ALL_SETS = "all sets"
SELECTING = "selection strategies"
"""The group of sets that a strategy chose, without random sets and those deliberately made worse."""
NOT_SELECTING = {"random", "duplicate"}
_FEWEST = 3
_ROUNDING = 1e-12
"""Relative difference below which values count as equal: they differ only by the order of summation."""


@dataclass(frozen=True)
class Correlation:
    """One coefficient over a group of sets, with its 95 % interval.

    Attributes:
        measure: the measure compared with performance.
        group: `ALL_SETS`, `SELECTING` or a strategy.
        method: "pearson", "spearman" or "kendall" (tau-b).
        sets: how many sets the group has that were measured.
        r: the coefficient; above 0 if more diverse sets perform better. None if fewer than 3 sets, or only equal
            values, leave it undefined.
        low, high: None also if the sets are too few for an interval (4; for Kendall 5).
    """

    measure: str
    group: str
    method: Method
    sets: int
    r: float | None
    low: float | None
    high: float | None


def correlations(
    values: Mapping[str, NDArray[np.float64]],
    performance: NDArray[np.float64],
    strategies: Sequence[str],
    lower_is_diverse: frozenset[str] = frozenset(),
) -> list[Correlation]:
    """Return every measure's coefficients with performance, overall and by group of strategies.

    Args:
        values: by measure, float64, (n,), a value a set; NaN if a set has none.
        performance: float64, (n,); NaN if a set has none.
        strategies: of each set. Groups are all sets, the selection strategies, and every strategy with 3 sets or more.
        lower_is_diverse: measures whose sign is reversed.
    """
    found = []
    for measure, of_sets in values.items():
        signed = -of_sets if measure in lower_is_diverse else of_sets
        for group, members in _groups(strategies).items():
            known = members & np.isfinite(signed) & np.isfinite(performance)
            for method in METHODS:
                r, low, high = coefficient(signed[known], performance[known], method)
                found.append(Correlation(measure, group, method, int(known.sum()), r, low, high))
    return found


def coefficient(
    x: NDArray[np.float64], y: NDArray[np.float64], method: Method
) -> tuple[float | None, float | None, float | None]:
    """Return a coefficient and its 95 % interval by Fisher's transformation; None if it is not defined.

    Variances of the transformed coefficient: 1 / (n - 3) for Pearson, (1 + r^2 / 2) / (n - 3) for Spearman (Bonett and
    Wright, 2000), 0.437 / (n - 4) for Kendall (Fieller, Hartley and Pearson, 1957). They take sets as independent,
    which sets of one strategy are not quite.

    Args:
        x, y: float64, (n,), finite.
        method: which coefficient.
    """
    from scipy import stats

    if len(x) < _FEWEST or any(np.ptp(values) <= _ROUNDING * np.abs(values).max() for values in (x, y)):
        return None, None, None
    taken = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}[method](x, y)
    r = float(np.clip(taken.statistic, -1, 1))
    low, high = _interval(r, len(x), method)
    return r, low, high


def records(found: Sequence[Correlation]) -> list[dict[str, Any]]:
    """Return one row per coefficient: measure, group, method, sets, r, low, high."""
    return [asdict(one) for one in found]


def _interval(r: float, n: int, method: Method) -> tuple[float | None, float | None]:
    fewer = 4 if method == "kendall" else 3
    if n <= fewer:
        return None, None
    variance = {"pearson": 1.0, "spearman": 1 + r**2 / 2, "kendall": 0.437}[method] / (n - fewer)
    if abs(r) == 1:
        return r, r
    middle, half = math.atanh(r), 1.959963984540054 * math.sqrt(variance)
    return math.tanh(middle - half), math.tanh(middle + half)


def _groups(strategies: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    names = np.array([strategy.lower() for strategy in strategies])
    groups = {ALL_SETS: np.ones(len(names), dtype=np.bool_), SELECTING: ~np.isin(names, list(NOT_SELECTING))}
    for strategy in dict.fromkeys(strategies):
        members = names == strategy.lower()
        if members.sum() >= _FEWEST:
            groups[strategy] = members
    return groups
