"""PCA of a pool's vectors: whitening, and reduction to fewer dimensions.

Belongs here: fitting and applying it. Does not: which vectors it is fitted on, and where they are stored
(`vectors_of_pool`).

For vectors with mean m and covariance C = V diag(l) V^T, the whitened vector of x is diag(l)^(-1/2) V^T (x - m), so
that all directions count equally; a reduced one has its first coordinates, those of the largest l, and without
whitening the factor l^(-1/2) is omitted. Whitening with reduction is CRDS-W (Shu et al., "On Representation Redundancy
in Large-Scale Instruction Tuning Data Selection", arXiv 2602.13773; in its code scikit-learn's PCA, whiten=True).

Sums are in float64. On another processor an eigenvector may differ in its last digits, and eigenvectors of nearly equal
l in more digits; measures are reproducible from the stored transformed vectors.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import replacing

_TILE = 4096
_ROUNDING = float(np.finfo(np.float32).eps)
"""Relative rounding error of the input vectors: smaller variation is not significant."""


class NoDirection(ValueError):
    """A vector equals the mean of all, so only rounding errors are left of it; `row` is its row."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} equals the mean of the vectors on which PCA was fitted, so nothing is left of it")
        self.row = row


@dataclass(frozen=True, slots=True)
class Whitening:
    """A linear map from d to k dimensions: `(x - mean) @ matrix`.

    Attributes:
        mean: float64, (d,).
        matrix: float64, (d, k): eigenvectors of the covariance, one per column, largest eigenvalues first; the
            coordinate of largest magnitude of each is positive. With whitening they are divided by the standard
            deviation in their direction.
        deviations: float64, (k,): that standard deviation (over n - 1).
        rank: of the covariance: directions in which vectors vary by more than the rounding of float32. Other
            directions are left out.
        whitens: whether the map divides by standard deviations.
    """

    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]
    deviations: NDArray[np.float64]
    rank: int
    whitens: bool

    @classmethod
    def of(cls, vectors: NDArray[np.float32], *, whiten: bool = True, reduce: int | None = None) -> "Whitening":
        """Fit PCA on vectors.

        Args:
            vectors: float32, (n, d), finite.
            whiten: divide by the standard deviation in each direction.
            reduce: k; None keeps every direction in which they vary.

        Raises:
            ValueError: if they vary in fewer than `reduce` directions, or in none.
        """
        mean = vectors.mean(axis=0, dtype=np.float64)
        covariance, squares = _covariance(vectors, mean)
        values, directions = np.linalg.eigh(covariance)
        values, directions = values[::-1], directions[:, ::-1]
        noise = max(_ROUNDING**2 * squares, np.finfo(np.float64).eps * len(values) * values[0])
        rank = int(np.count_nonzero(values > noise))
        size, dimension = vectors.shape
        if rank < (reduce or 1):
            possible = f"set it to {rank} or less" if rank else "there is nothing to whiten or reduce"
            raise ValueError(
                f"{size:,} vectors of {dimension:,} dimensions vary in {rank:,} directions"
                + (f", fewer than the {reduce:,} requested" if reduce else "")
                + f"; {possible}"
            )
        kept = reduce or rank
        deviations = np.sqrt(values[:kept])
        matrix = _with_signs(directions[:, :kept])
        return cls(mean, matrix / deviations if whiten else matrix, deviations, rank, whiten)

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return transformed vectors, float32, (n, k).

        Args:
            vectors: float32, (n, d), those on which it was fitted, or others.

        Raises:
            NoDirection: naming the first that equals the mean, up to rounding, in the directions kept.
        """
        found = np.empty((len(vectors), self.matrix.shape[1]), dtype=np.float32)
        own = np.linalg.norm(self.mean)
        for start in range(0, len(vectors), _TILE):
            tile = vectors[start : start + _TILE].astype(np.float64)
            moved = (tile - self.mean) @ self.matrix
            lengths = np.linalg.norm(moved * self.deviations if self.whitens else moved, axis=1)
            flat = np.flatnonzero(lengths <= _ROUNDING * (np.linalg.norm(tile, axis=1) + own))
            if len(flat):
                raise NoDirection(start + int(flat[0]))
            found[start : start + _TILE] = moved
        return found

    def save(self, path: Path) -> None:
        """Write to a .safetensors file: tensors `mean`, `matrix`, `deviations`, and `rank` and `whitens`, (1,)."""
        from safetensors.numpy import save_file

        tensors = {
            "mean": self.mean,
            "matrix": np.ascontiguousarray(self.matrix),
            "deviations": np.ascontiguousarray(self.deviations),
            "rank": np.array([self.rank]),
            "whitens": np.array([self.whitens]),
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> "Whitening":
        """Read what `save` wrote.

        Raises:
            InputError: if it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(path)
            return cls(
                found["mean"], found["matrix"], found["deviations"], int(found["rank"][0]), bool(found["whitens"][0])
            )
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it, and the next run rebuilds it") from error


def _covariance(vectors: NDArray[np.float32], mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the covariance over n - 1, (d, d), and the mean of the vectors' squared lengths."""
    total = np.zeros((vectors.shape[1],) * 2)
    squares = 0.0
    for start in range(0, len(vectors), _TILE):
        tile = vectors[start : start + _TILE].astype(np.float64)
        squares += float(np.square(tile).sum())
        tile -= mean
        total += tile.T @ tile
    return total / max(1, len(vectors) - 1), squares / len(vectors)


def _with_signs(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flip the sign of each column, (d, k), so that its (first) coordinate of largest magnitude is positive."""
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return np.asarray(directions * np.where(largest < 0, -1.0, 1.0))
