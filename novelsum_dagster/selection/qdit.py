"""QDIT: greedy maximisation of facility location, how well the picks represent the pool, and quality.

Belongs here: the strategy, coverage and its similarities. Does not: lazy greedy (`lazy_greedy`), the compiled gains
(`qdit_kernels`).
"""

from contextlib import closing
from copy import copy
from typing import Self

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.memory import require_memory
from novelsum_dagster.diversity.density import ExactSearch
from novelsum_dagster.diversity.vectors import cosine_distances
from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.lazy_greedy import Coverage, Utility, lazy_greedy
from novelsum_dagster.selection.picks import PickLog
from novelsum_dagster.selection.threads import Threads

_TILE = 1024
_WORTH_THREADS = 2**18
"""Least number of similarities read by a batch for which it is shared among threads."""
_BYTES_PER_NEIGHBOR = 32


def qdit(inputs: Inputs, *, quality_weight: float = 0.0, similarity_neighbors: int | None = None) -> PickLog:
    """Pick greedily by `(1 - alpha) * gain + alpha * quality`, exactly as plain greedy does.

    The gain of candidate i is what it adds to facility location, the sum over the pool's n samples of their highest
    cosine to a pick, 0 before the first pick: `sum_j max(0, cos(i, j) - covered_j)`. It is in samples, so a quality
    of 1 counts as much as one sample newly covered in full. Cosines are exact (`cosine_distances`), then rounded to
    multiples of 2^-23; sums of these are exact, too, so ties are ties on every processor, and the lowest index wins
    them. A pick's score is the value by which it won. (Bukharin et al., "Data Diversity Matters for Robust Instruction
    Tuning", EMNLP Findings 2024, QDIT; facility location as in submodlib.)

    Args:
        inputs: quality is needed if `quality_weight` is above 0; nothing is drawn; progress is of picks made.
        quality_weight: alpha, 0 to 1, default 0: facility location alone.
        similarity_neighbors: None holds all n x n cosines, 4 n^2 bytes; K keeps each sample's K nearest, itself
            among them, takes the others as 0, and needs 32 n K bytes.

    Raises:
        ValueError: for an option out of range, or a weight without quality.
        NotEnoughMemory: if the cosines would not fit; says what would.
    """
    if not 0 <= quality_weight <= 1:
        raise ValueError(f"quality_weight is {quality_weight}; it must be from 0 to 1")
    if quality_weight > 0 and inputs.quality is None:
        raise ValueError(
            f"quality_weight is {quality_weight} and no quality is given; give one, or set the weight to 0"
        )
    fixed = np.zeros(len(inputs.units)) if inputs.quality is None else quality_weight * inputs.quality
    with closing(Threads()) as threads:
        coverage: Coverage
        if similarity_neighbors is None:
            coverage = DenseCoverage(
                inputs.units,
                threads,
                "QDIT",
                "set similarity_neighbors, for example to 100, to keep only each sample's nearest",
            )
        else:
            coverage = _Sparse(inputs.units, similarity_neighbors, threads)
        log = lazy_greedy(Utility(fixed, 1 - quality_weight, coverage), inputs.k, progress=inputs.progress)
    inputs.progress(inputs.k, inputs.k)
    return log


def memory_needed(n: int, similarity_neighbors: int | None) -> int:
    """Return the bytes that similarities of n samples take: of all pairs, or of each sample's nearest."""
    if similarity_neighbors is None:
        return (4 * n + 2 * 8 * _TILE) * n
    return _BYTES_PER_NEIGHBOR * n * similarity_neighbors


class _Covered:
    """How well each of n samples is covered: float32, (n,), its highest similarity to a pick, 0 before the first."""

    def __init__(self, n: int) -> None:
        self._covered = np.zeros(n, np.float32)

    def emptied(self) -> Self:
        """Return the coverage by no picks; similarities are shared."""
        other = copy(self)
        other._covered = np.zeros_like(self._covered)
        return other


class DenseCoverage(_Covered):
    """Coverage by all n x n cosines.

    Args:
        units: float32, (n, d), unit rows.
        threads: that share the work.
        work, instead: for the error message: what is computed, and what would fit.

    Raises:
        NotEnoughMemory: if the cosines would not fit.
    """

    def __init__(self, units: NDArray[np.float32], threads: Threads, work: str, instead: str) -> None:
        n = len(units)
        require_memory(memory_needed(n, None), f"{work} over all pairs of {n:,} samples", instead)
        super().__init__(n)
        self._threads = threads
        self._similarity = np.empty((n, n), np.float32)
        for start in range(0, n, _TILE):
            self._write(cosine_distances(units[start : start + _TILE], units[start:]), start)

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        from novelsum_dagster.selection.qdit_kernels import dense_gains

        out = np.empty(len(candidates))

        def part(marks: tuple[int, int]) -> None:
            share = slice(*marks)
            dense_gains(self._similarity, self._covered, candidates[share], out[share])

        alone = len(candidates) * len(self._covered) < _WORTH_THREADS
        self._threads.side_by_side(part, len(candidates), alone)
        return out

    def add(self, pick: int) -> None:
        np.maximum(self._covered, self._similarity[pick], out=self._covered)

    def _write(self, distances: NDArray[np.float64], first: int) -> None:
        """Store the distances of the rows from `first` on to themselves and all later rows."""
        from novelsum_dagster.selection.qdit_kernels import write_similarity

        self._threads.side_by_side(
            lambda marks: write_similarity(distances, first, *marks, self._similarity), distances.shape[1]
        )


class _Sparse(_Covered):
    """Coverage by each sample's nearest only."""

    def __init__(self, units: NDArray[np.float32], neighbors: int, threads: Threads) -> None:
        from novelsum_dagster.selection.qdit_kernels import near_similarity

        n = len(units)
        if not 1 <= neighbors <= n:
            raise ValueError(f"similarity_neighbors is {neighbors:,}; it must be from 1 to the pool's {n:,}")
        require_memory(
            memory_needed(n, neighbors),
            f"QDIT over the {neighbors:,} nearest of {n:,} samples",
            "set similarity_neighbors lower",
        )
        super().__init__(n)
        nearest = _nearest(units, neighbors)
        similarity = np.empty(nearest.shape, np.float32)
        threads.side_by_side(lambda marks: near_similarity(units, nearest, *marks, similarity), n)
        # Transpose: from the nearest of each sample to the samples that have each candidate among their nearest.
        order = np.argsort(nearest, axis=None, kind="stable")
        self._similarity = similarity.ravel()[order]
        self._samples = (order // neighbors).astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(nearest.ravel(), minlength=n))])

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        from novelsum_dagster.selection.qdit_kernels import sparse_gains

        out = np.empty(len(candidates))
        sparse_gains(self._starts, self._samples, self._similarity, self._covered, candidates, out)
        return out

    def add(self, pick: int) -> None:
        entries = slice(self._starts[pick], self._starts[pick + 1])
        samples = self._samples[entries]
        self._covered[samples] = np.maximum(self._covered[samples], self._similarity[entries])


def _nearest(units: NDArray[np.float32], neighbors: int) -> NDArray[np.int64]:
    """Return the nearest rows of each row, itself among them: int64, (n, neighbors)."""
    search = ExactSearch(units)
    starts = range(0, len(units), _TILE)
    nearest = np.concatenate([search.search(units[start : start + _TILE], neighbors)[1] for start in starts])
    # With more exact duplicates than `neighbors`, a row may be missing from its own nearest.
    without_self = np.flatnonzero((nearest != np.arange(len(units))[:, None]).all(1))
    nearest[without_self, -1] = without_self
    return nearest
