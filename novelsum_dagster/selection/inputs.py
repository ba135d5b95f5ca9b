"""The inputs that all strategies share, and their checks.

Belongs here: ranges and shapes that all strategies share. Does not: the options of one strategy.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.progress import Progress
from novelsum_dagster.diversity.density import density


@dataclass(frozen=True)
class Inputs:
    """What a strategy picks from, already checked.

    Attributes:
        units: float32, (n, d), rows of length 1.
        k: number of picks, 1 to n.
        quality: float64, (n,), or None if none was given.
        seed: of whatever the strategy draws.
        progress: called as the strategy says.
    """

    units: NDArray[np.float32]
    k: int
    quality: NDArray[np.float64] | None
    seed: int
    progress: Progress


def check_k(k: int | None, n: int) -> int:
    """Return k; raise a ValueError unless k picks can be made out of n samples."""
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise ValueError(f"k is {k!r}; a whole number is needed")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k:,} and the pool has {n:,} samples; k must be from 1 to {n:,}")
    return k


def check_density_factor(factor: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return density factors as C-contiguous float64, (n,).

    Raises:
        ValueError: unless they are n positive finite numbers; names the first row that is not.
    """
    return _positive(factor, n, "density_factor", "factors")


def factor_or_density(
    rows: NDArray[np.float32], given: ArrayLike | None, neighbors: int, density_power: float, device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the density factors given, else those of the rows as their own reference: float64, (n,).

    `device` is as in `density`.

    Raises:
        ValueError: as `check_density_factor` and `density` do.
    """
    n = len(rows)
    if given is not None:
        return check_density_factor(given, n)
    if not density_power >= 0:
        raise ValueError(f"density_power is {density_power}; it must be 0 or more")
    if density_power == 0:
        return np.ones(n)
    # An enormous power leaves the range of float64.
    return check_density_factor(density(rows, neighbors=neighbors, device=device).factor(density_power), n)


def check_quality(quality: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return qualities as C-contiguous float64, (n,).

    Raises:
        ValueError: unless they are n positive finite numbers; names the first row that is not.
    """
    return _positive(quality, n, "quality", "qualities")


def check_cost(cost: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return costs as C-contiguous float64, (n,).

    Raises:
        ValueError: unless they are n finite numbers of 0 or more; names the first row that is not.
    """
    checked = _one_each(cost, n, "cost")
    _require(np.isfinite(checked) & (checked >= 0), checked, "cost", "costs must be finite and not negative")
    return checked


def _positive(values: ArrayLike, n: int, name: str, plural: str) -> NDArray[np.float64]:
    checked = _one_each(values, n, name)
    _require(np.isfinite(checked) & (checked > 0), checked, name, f"{plural} must be positive and finite")
    return checked


def _one_each(values: ArrayLike, n: int, name: str) -> NDArray[np.float64]:
    checked = np.ascontiguousarray(values, dtype=np.float64)
    if checked.shape != (n,):
        raise ValueError(f"{name} has shape {checked.shape}; one value for each of the {n} samples is needed")
    return checked


def _require(good: NDArray[np.bool_], values: NDArray[np.float64], name: str, demand: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} is {values[bad[0]]}; {demand}")


def check_indices(indices: ArrayLike, n: int, name: str) -> NDArray[np.int64]:
    """Return row numbers as int64, (m,).

    Raises:
        ValueError: for a number out of range, or one that comes twice; names the first.
    """
    given = np.asarray(indices)
    checked = given.astype(np.int64).reshape(-1)
    if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: row numbers are needed, one after the other; got {given.dtype} of shape {given.shape}"
        )
    outside = checked[(checked < 0) | (checked >= n)]
    if len(outside):
        raise ValueError(f"{name}: row {outside[0]} is not in the pool; rows go from 0 to {n - 1:,}")
    seen, counts = np.unique(checked, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{name}: row {seen[counts > 1][0]} comes twice; name it once")
    return checked
