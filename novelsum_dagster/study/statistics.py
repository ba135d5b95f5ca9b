"""Bootstrap statistics of a study: correlations within cells, partial correlations, gains over random.

Belongs here: pure statistics of arrays. Does not: which sets and measures there are (`findings`).

A cell holds the sets of one pool and one size, which alone are compared with each other. The pooled coefficient is
that of the z-scores (for Spearman: of the standardised ranks) within cells, put together: the mean of the cells'
coefficients weighted by their numbers of sets.

Resampling has two levels: sets within a cell (of the deviations from strategies' means: within a strategy), then the
training seeds of each set. A set's mean over seeds has the noise of training in it already, and resampling adds it once
more, which draws coefficients towards 0. The draws are therefore moved, in Fisher's z, so that their mean is the
coefficient found: the interval has the width of both levels and its place from the data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["pearson", "spearman"]
Floats = NDArray[np.float64]

DRAWS = 2000
_CONFIDENCE = 0.95
_NORMAL, _POWER_NORMAL = 1.959963984540054, 0.8416212335729143
"""Quantiles of the normal distribution: of a two-sided test at 5 %, and of a power of 0.8."""
FEWEST = 4
"""Sets that a cell needs to count."""
_ROUNDING = 1e-12
"""Deviations up to this, relative to the largest value, count as rounding."""


class Interval:
    """A 95 % interval; its ends are None if it is not defined."""

    low: float | None
    high: float | None

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0


@dataclass(frozen=True)
class Estimate(Interval):
    """A value with its 95 % interval; None if it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


NOTHING = Estimate(None)


@dataclass(frozen=True)
class Cell:
    """Sets that are compared with each other, resampled.

    Row 0 is the sets as they are, the others are resamples.

    Attributes:
        rows: int64, (draws + 1, n), the sets of each resample.
        performance: float64, (draws + 1, n), theirs, each the mean over its resampled training seeds.
        labels: int64, (n,), of the strategy in each column where deviations from strategies' means are wanted; None
            otherwise.
    """

    rows: NDArray[np.int64]
    performance: Floats
    labels: NDArray[np.int64] | None = None
    _kept: dict[tuple[str, bytes] | None, Floats] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        performance: Floats,
        generator: np.random.Generator,
        labels: NDArray[np.int64] | None = None,
        draws: int = DRAWS,
    ) -> "Cell":
        """Resample sets, then the seeds of each.

        Args:
            performance: float64, (n, seeds), of each set under each training seed, higher is better.
            generator: of the resamples.
            labels: int64, (n,), the strategy of each set, to resample within strategies and take deviations from their
                means; None resamples all sets alike.
            draws: resamples.
        """
        n, seeds = performance.shape
        order = np.arange(n) if labels is None else np.argsort(labels, kind="stable")
        rows = np.empty((draws + 1, n), dtype=np.int64)
        rows[0] = order
        groups = (
            [np.arange(n)] if labels is None else [np.flatnonzero(labels[order] == one) for one in np.unique(labels)]
        )
        for group in groups:
            rows[1:, group] = order[group[generator.integers(0, len(group), (draws, len(group)))]]
        chosen = generator.integers(0, seeds, (draws, n, seeds))
        means = np.empty((draws + 1, n))
        means[0] = performance[order].mean(axis=1)
        means[1:] = performance[rows[1:, :, None], chosen].mean(axis=2)
        return cls(rows, means, None if labels is None else labels[order])

    def standardised(self, values: Floats, method: Method, keep: bool = False) -> Floats:
        """Return values of the sets, (n,), resampled and as z-scores or standardised ranks: (draws + 1, n).

        Rows in which all are equal are NaN. `keep`: for the next call with the same values.
        """
        key = (method, values.tobytes()) if keep else None
        if key in self._kept:
            return self._kept[key]
        found = _standardised(self._centred(values[self.rows]), method)
        if key is not None:
            self._kept[key] = found
        return found

    def standardised_performance(self, method: Method) -> Floats:
        """Return the sets' performance likewise."""
        key = (method, b"")
        if key not in self._kept:
            self._kept[key] = _standardised(self._centred(self.performance), method)
        return self._kept[key]

    def _centred(self, values: Floats) -> Floats:
        if self.labels is None:
            return values
        centred = values.copy()
        for label in np.unique(self.labels):
            columns = self.labels == label
            centred[:, columns] -= values[:, columns].mean(axis=1, keepdims=True)
        # Deviations of equal values are only rounding.
        centred[np.abs(centred) <= _ROUNDING * np.abs(values).max()] = 0.0
        return centred


def correlations(
    cells: Sequence[Cell],
    values: Sequence[Floats],
    method: Method,
    given: Sequence[Sequence[Sequence[Floats]]] = ((),),
) -> list[Estimate]:
    """Return the pooled coefficients of a measure with performance, with and without others held fixed.

    Args:
        cells: resampled sets.
        values: float64, (n,), of the measure, a cell each; finite.
        method: coefficient.
        given: for each coefficient wanted, what is held fixed (partial correlation): variables, each float64, (n,), a
            cell each. Default: nothing, once.

    Returns:
        An estimate for each of `given`.
    """
    if not cells:
        return [NOTHING for _ in given]
    weights = np.array([cell.rows.shape[1] for cell in cells], dtype=np.float64)
    measured = [cell.standardised(of_cell, method) for cell, of_cell in zip(cells, values, strict=True)]
    found = []
    for controls in given:
        variables = [
            [
                measured[at],
                cell.standardised_performance(method),
                *(cell.standardised(control[at], method, keep=True) for control in controls),
            ]
            for at, cell in enumerate(cells)
        ]
        found.append(_estimate(_partial(_pooled(variables, weights))))
    return found


def _pooled(variables: Sequence[Sequence[Floats]], weights: Floats) -> dict[tuple[int, int], Floats]:
    """Return the pooled coefficient of each pair of variables in every draw, (draws + 1,)."""
    count, total = len(variables[0]), weights.sum()
    return {
        (i, j): sum(
            (
                weight * (of_cell[i] * of_cell[j]).mean(axis=1)
                for of_cell, weight in zip(variables, weights, strict=True)
            ),
            start=np.zeros(len(variables[0][0])),
        )
        / total
        for i in range(count)
        for j in range(i + 1, count)
    }


def _partial(r: dict[tuple[int, int], Floats]) -> Floats:
    """Return the partial coefficient of variables 0 and 1, controlling for the others one after the other."""
    last = max(j for _, j in r)
    while last > 1:
        left = {(i, j): one for (i, j), one in r.items() if j < last}
        with np.errstate(invalid="ignore", divide="ignore"):
            r = {
                (i, j): (one - r[i, last] * r[j, last]) / np.sqrt((1 - r[i, last] ** 2) * (1 - r[j, last] ** 2))
                for (i, j), one in left.items()
            }
        last -= 1
    return r[0, 1]


def _estimate(draws: Floats) -> Estimate:
    """Return the first as the value, and the interval from the others, moved to it in Fisher's z."""
    value = draws[0]
    if not np.isfinite(value):
        return NOTHING
    others = draws[1:][np.isfinite(draws[1:])]
    if 2 * len(others) < len(draws) - 1 or not len(others):
        return Estimate(float(value))
    limit = 1 - 1e-12
    z = np.arctanh(np.clip(others, -limit, limit))
    middle = math.atanh(float(np.clip(value, -limit, limit)))
    low, high = np.quantile(z - z.mean(), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Estimate(float(np.clip(value, -1, 1)), math.tanh(middle + low), math.tanh(middle + high))


def _standardised(values: Floats, method: Method) -> Floats:
    from scipy.stats import rankdata

    taken = values if method == "pearson" else rankdata(values, axis=1)
    centred = taken - taken.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(deviation > _ROUNDING * np.abs(taken).max(axis=1, keepdims=True), centred / deviation, np.nan)


def gain(other: Floats, base: Floats, generator: np.random.Generator, draws: int = DRAWS) -> Estimate:
    """Return the gain of a strategy: the loss of the base strategy's sets minus its own, with its 95 % interval.

    Strategies are paired by training seed. Resampled are the sets of each, and the training seeds in common. Of m sets
    or seeds m - 1 are drawn, which gives the mean of the draws the variance of a mean of m (Rao and Wu, 1988); a single
    set or seed is kept.

    Args:
        other: loss, float64, (sets, seeds), of the strategy.
        base: loss, float64, (sets, the same seeds), of the base strategy.
        generator: of the resamples.
        draws: resamples.
    """
    seeds = other.shape[1]
    chosen = generator.integers(0, seeds, (draws, max(1, seeds - 1)))
    if seeds == 1:
        chosen[:] = 0
    means = []
    for losses in (other, base):
        m = len(losses)
        rows = generator.integers(0, m, (draws, max(1, m - 1)))
        means.append(losses[rows[:, :, None], chosen[:, None, :]].mean(axis=(1, 2)))
    low, high = np.quantile(means[1] - means[0], [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    value = float(base.mean() - other.mean())
    if len(other) == len(base) == seeds == 1:
        return Estimate(value)
    return Estimate(value, float(low), float(high))


def detectable_correlation(informative: int) -> float | None:
    """Return the least correlation that a two-sided test at 5 % finds with a probability of 0.8.

    By Fisher's transformation, whose variance is 1 / `informative`: the number of sets less 3 in each cell. None where
    no cell has that many sets.
    """
    if informative < 1:
        return None
    return math.tanh((_NORMAL + _POWER_NORMAL) / math.sqrt(informative))


def detectable_difference(losses: Sequence[Floats], sets: tuple[int, int]) -> float | None:
    """Return the least difference of two strategies that a two-sided t test at 5 % finds with a probability of 0.8.

    Sets of a strategy vary by their own seed and by the seeds of training; their spread is pooled over strategies.

    Args:
        losses: of each strategy, float64, (sets, seeds).
        sets: how many sets the two strategies have.

    Returns:
        The difference, in the unit of the losses; None if no strategy has two sets.
    """
    from scipy.stats import t

    means = [one.mean(axis=1) for one in losses]
    freedom = sum(len(one) - 1 for one in means)
    if freedom < 1:
        return None
    variance = sum(float(np.square(one - one.mean()).sum()) for one in means) / freedom
    quantiles = float(t.ppf((1 + _CONFIDENCE) / 2, freedom) + t.ppf(0.8, freedom))
    return quantiles * math.sqrt(variance * (1 / sets[0] + 1 / sets[1]))
