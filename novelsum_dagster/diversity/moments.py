"""Measures computed from sums over samples: DistSum cosine, radius, Vendi score, log-determinant distance.

Belongs here: the sums, and the measures made of them. Does not: measures that compare pairs (`distances`) or cluster
(`clusters`).

No step is larger than n d^2 or d^3: Vendi and log-determinant take the eigenvalues of the d x d dual of the n x n
matrix of cosines, which are the same but for zeros.

Products are in float64 and rank nothing: on another processor or device a value may differ by a relative 1e-9.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.vectors import as_rows, unit_rows

_TILE = 4096


@dataclass(frozen=True)
class Moments:
    """Sums over n samples of d dimensions, in float64.

    Attributes:
        size: n.
        direction: (d,): sum of the unit rows.
        gram: (d, d): sum of the outer products of the unit rows, `U^T U`.
        mean: (d,): mean of the rows as given.
        squares: (d,): sum of squared deviations from the mean, of the rows as given.
    """

    size: int
    direction: NDArray[np.float64]
    gram: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, embeddings: ArrayLike, *, device: str = "cpu") -> "Moments":
        """Return the sums of a set.

        Args:
            embeddings: (n, d).
            device: "cpu" (default), or a torch device that has float64, such as "cuda".

        Raises:
            ValueError: for bad rows.
        """
        rows = as_rows(embeddings)
        units = unit_rows(rows)
        mean = rows.mean(axis=0, dtype=np.float64)
        squares = np.zeros(rows.shape[1])
        for start in range(0, len(rows), _TILE):
            squares += np.square(rows[start : start + _TILE] - mean).sum(axis=0)
        return cls(len(rows), units.sum(axis=0, dtype=np.float64), _gram(units, device), mean, squares)

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """The eigenvalues of `gram`, (d,), ascending, none below 0."""
        return self._spectrum[0]

    @property
    def eigenvectors(self) -> NDArray[np.float64]:
        """Their eigenvectors, (d, d), one a column."""
        return self._spectrum[1]

    @cached_property
    def _spectrum(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, vectors = np.linalg.eigh(self.gram)
        # Eigenvalues below this are zeros up to rounding.
        zero = np.finfo(np.float64).eps * len(values) * values[-1]
        return np.where(values > zero, values, 0), vectors


def distsum_cosine(target: ArrayLike, *, moments: Moments | None = None) -> Measured:
    """Return DistSum cosine: the mean of 1 - cos over all n^2 ordered pairs, a sample with itself among them.

    In O(n d): `sum_ij cos = |sum_i u_i|^2` over unit rows. (Paper, section 3; published as `cos_distance`.)

    Args:
        target: (n, d) embeddings.
        moments: of the target, if already computed.

    Raises:
        ValueError: for bad rows.
    """
    units, known = _units_and_moments(target, moments)
    # Not 1 - ...: unit rows in float32 have length 1 only to 1e-7.
    value = max(0.0, float(np.trace(known.gram) / known.size - known.direction @ known.direction / known.size**2))
    rows = 1 - units @ (known.direction / known.size)
    return Measured(value, 2 * (rows - rows.mean()))


def radius(target: ArrayLike, *, moments: Moments | None = None) -> Measured:
    """Return the radius: the geometric mean of the standard deviations (over n) of each dimension, rows as given.

    0 if a dimension does not vary. (Lai et al., "Diversity, Density, and Homogeneity", LREC 2020; paper, section 3.)

    Args:
        target: (n, d) embeddings.
        moments: of the target, if already computed.

    Raises:
        ValueError: for bad rows.
    """
    rows = as_rows(target, "target")
    known = moments or Moments.of(rows)
    value, influence = 0.0, np.zeros(len(rows))
    if known.squares.all():
        value = float(np.exp(0.5 * np.log(known.squares / known.size).mean()))
        precision = known.size / known.squares
        for start in range(0, len(rows), _TILE):
            tile = np.square(rows[start : start + _TILE] - known.mean)
            influence[start : start + _TILE] = value / 2 * ((tile @ precision) / rows.shape[1] - 1)
    return Measured(value, influence)


def vendi_score(target: ArrayLike, *, moments: Moments | None = None) -> Measured:
    """Return the Vendi score of order 1: the effective number of distinct samples, 1 to min(n, d).

    (Friedman and Dieng, "The Vendi Score", TMLR 2023, with cosines as the kernel; paper, section 3.)

    Args:
        target: (n, d) embeddings.
        moments: of the target, if already computed.

    Raises:
        ValueError: for bad rows.
    """
    units, known = _units_and_moments(target, moments)
    shares = known.eigenvalues / known.eigenvalues.sum()
    positive = shares[shares > 0]
    value = float(np.exp(-(positive * np.log(positive)).sum()))
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found = _weighted_squares(units, known.eigenvectors, logarithms)
    return Measured(value, -value * (found - found.mean()))


def log_determinant(target: ArrayLike, *, ridge: float = 1.0, moments: Moments | None = None) -> Measured:
    """Return the log-determinant distance `log det(ridge I + K)`, K the n x n cosines, in nats.

    The ridge, 1 by default, keeps it finite where samples repeat: n equal samples have log(1 + n). (Wang et al.,
    "Diversity Measurement and Subset Selection for Instruction Tuning Datasets", 2024; paper, section 3.)

    Args:
        target: (n, d) embeddings.
        ridge: over 0, default 1.0.
        moments: of the target, if already computed.

    Raises:
        ValueError: for bad rows, or a ridge that is not over 0 and finite.
    """
    if not 0 < ridge < np.inf:
        raise ValueError(f"ridge is {ridge}; it must be over 0 and finite")
    units, known = _units_and_moments(target, moments)
    outside = known.size - len(known.mean)
    value = float(np.log(ridge + known.eigenvalues).sum() + outside * np.log(ridge))
    leverage = _weighted_squares(units, known.eigenvectors, 1 / (ridge + known.eigenvalues))
    return Measured(value, known.size * (leverage - leverage.mean()))


def _units_and_moments(target: ArrayLike, moments: Moments | None) -> tuple[NDArray[np.float32], Moments]:
    rows = as_rows(target, "target")
    return unit_rows(rows, "target"), moments or Moments.of(rows)


def _gram(units: NDArray[np.float32], device: str) -> NDArray[np.float64]:
    import torch

    rows = torch.from_numpy(units)
    gram = torch.zeros((units.shape[1], units.shape[1]), dtype=torch.float64, device=device)
    for start in range(0, len(units), _TILE):
        tile = rows[start : start + _TILE].to(device).double()
        gram += tile.T @ tile
    return np.asarray(gram.cpu().numpy())


def _weighted_squares(
    units: NDArray[np.float32], vectors: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return `u^T V diag(weights) V^T u` of each row u: float64, (n,)."""
    found = np.empty(len(units))
    for start in range(0, len(units), _TILE):
        found[start : start + _TILE] = np.square(units[start : start + _TILE] @ vectors) @ weights
    return found
