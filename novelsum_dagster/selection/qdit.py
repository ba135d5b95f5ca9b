"""QDIT: greedy maximisation of facility location, how well the picks represent the pool, and quality.

Belongs here: the public function, the similarities, lazy greedy. Does not: the compiled gains (`qdit_kernels`).
"""

import heapq
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.memory import require_memory
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import ExactSearch
from novelsum_dagster.diversity.vectors import cosine_distances
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.picks import Picks, recorded

_TILE = 1024
_REPORT_EVERY = 10
_BATCH_LIMIT = 1024
_WORTH_THREADS = 2**18
"""Least number of similarities read by a batch for which it is shared among threads."""
_BYTES_PER_NEIGHBOR = 32


def qdit(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
    quality_weight: float = 0.0,
    similarity_neighbors: int | None = None,
) -> Picks:
    """Pick greedily by `(1 - alpha) * gain + alpha * quality`, exactly as plain greedy does.

    The gain of candidate i is what it adds to facility location, the sum over the pool's n samples of their highest
    cosine to a pick, 0 before the first pick: `sum_j max(0, cos(i, j) - covered_j)`. It is in samples, so a quality
    of 1 counts as much as one sample newly covered in full. Cosines are exact (`cosine_distances`), then rounded to
    multiples of 2^-23; sums of these are exact, too, so ties are ties on every processor, and the lowest index wins
    them. A pick's score is the value by which it won. A gain only falls as picks are added, so an old gain is a bound
    and few are computed again (Minoux's lazy greedy). (Bukharin et al., "Data Diversity Matters for Robust Instruction
    Tuning", EMNLP Findings 2024, QDIT; facility location as in submodlib.)

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,); needed if `quality_weight` is above 0.
        seed: not used; nothing is drawn.
        progress: called with picks made and k.
        quality_weight: alpha, 0 to 1, default 0: facility location alone.
        similarity_neighbors: None holds all n x n cosines, 4 n^2 bytes; K keeps each sample's K nearest, itself
            among them, takes the others as 0, and needs 32 n K bytes.

    Raises:
        ValueError: for bad rows, factors or qualities, k or an option out of range, or a weight without quality.
        NotEnoughMemory: if the cosines would not fit; says what would.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    if not 0 <= quality_weight <= 1:
        raise ValueError(f"quality_weight is {quality_weight}; it must be from 0 to 1")
    if quality_weight > 0 and inputs.quality is None:
        raise ValueError(
            f"quality_weight is {quality_weight} and no quality is given; give one, or set the weight to 0"
        )
    fixed = np.zeros(len(inputs.units)) if inputs.quality is None else quality_weight * inputs.quality
    with ThreadPoolExecutor(usable_processors()) as threads:
        coverage: _Coverage
        if similarity_neighbors is None:
            coverage = DenseCoverage(
                inputs.units,
                threads,
                "QDIT",
                "set similarity_neighbors, for example to 100, to keep only each sample's nearest",
            )
        else:
            coverage = _Sparse(inputs.units, similarity_neighbors, threads)
        search = _LazyGreedy(coverage, 1 - quality_weight, fixed)
        indices, runner_up = np.empty(k, np.int64), np.empty(k, np.int64)
        score, runner_up_score = np.empty(k), np.empty(k)
        for rank in range(k):
            (indices[rank], score[rank]), (runner_up[rank], runner_up_score[rank]) = search.pick()
            if rank % _REPORT_EVERY == 0:
                progress(rank, k)
    progress(k, k)
    return recorded(indices, *inputs, score=score, runner_up=runner_up, runner_up_score=runner_up_score)


class _Coverage(Protocol):
    """Coverage of the pool of `size` samples by the picks so far."""

    size: int

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the gain of each candidate."""

    def add(self, pick: int) -> None:
        """Make a candidate a pick."""


class _LazyGreedy:
    """A queue of all candidates by their last computed gain; ties by index."""

    def __init__(self, coverage: _Coverage, gain_weight: float, fixed: NDArray[np.float64]) -> None:
        self._coverage = coverage
        self._gain_weight = gain_weight
        self._fixed = fixed
        self._picked = 0
        self._known_at = np.zeros(coverage.size, np.int64)
        everyone = np.arange(coverage.size)
        self._queue = list(zip((-self._scores(everyone)).tolist(), range(coverage.size), strict=True))
        heapq.heapify(self._queue)

    def pick(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Pick the best candidate; return it and the second, each with its score; -1 and NaN for no second."""
        self._update_first()
        score, best = heapq.heappop(self._queue)
        second_score, second = np.nan, -1
        if self._queue:
            self._update_first()
            second_score, second = self._queue[0]
        self._coverage.add(best)
        self._picked += 1
        return (best, -score), (second, -second_score)

    def _update_first(self) -> None:
        """Recompute scores, in growing batches, until the first in the queue has an up-to-date one."""
        batch = 1
        while self._is_old(self._queue[0][1]):
            old: list[int] = []
            while self._queue and len(old) < batch and self._is_old(self._queue[0][1]):
                old.append(heapq.heappop(self._queue)[1])
            candidates = np.array(old, np.int64)
            for score, candidate in zip(self._scores(candidates).tolist(), old, strict=True):
                heapq.heappush(self._queue, (-score, candidate))
            self._known_at[candidates] = self._picked
            batch = min(2 * batch, _BATCH_LIMIT)

    def _is_old(self, candidate: int) -> bool:
        return bool(self._known_at[candidate] < self._picked)

    def _scores(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._gain_weight * self._coverage.gains(candidates) + self._fixed[candidates]


def memory_needed(n: int, similarity_neighbors: int | None) -> int:
    """Return the bytes that similarities of n samples take: of all pairs, or of each sample's nearest."""
    if similarity_neighbors is None:
        return (4 * n + 2 * 8 * _TILE) * n
    return _BYTES_PER_NEIGHBOR * n * similarity_neighbors


class DenseCoverage:
    """Coverage by all n x n cosines.

    Args:
        units: float32, (n, d), unit rows.
        threads: that share the work.
        work, instead: for the error message: what is computed, and what would fit.

    Raises:
        NotEnoughMemory: if the cosines would not fit.
    """

    def __init__(self, units: NDArray[np.float32], threads: ThreadPoolExecutor, work: str, instead: str) -> None:
        from novelsum_dagster.selection.qdit_kernels import dense_gains

        self.size = len(units)
        require_memory(
            memory_needed(self.size, None),
            f"{work} over all pairs of {self.size:,} samples",
            instead,
        )
        self._dense_gains = dense_gains
        self._threads = threads
        self._covered = np.zeros(self.size, np.float32)
        self._similarity = np.empty((self.size, self.size), np.float32)
        for start in range(0, self.size, _TILE):
            self._write(cosine_distances(units[start : start + _TILE], units[start:]), start)

    def emptied(self) -> "DenseCoverage":
        """Return the coverage by no picks; cosines are shared."""
        other = copy(self)
        other._covered = np.zeros(self.size, np.float32)
        return other

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        out = np.empty(len(candidates))
        if len(candidates) * self.size < _WORTH_THREADS:
            self._dense_gains(self._similarity, self._covered, candidates, out)
            return out
        parts = [slice(*part) for part in pairwise(_edges(len(candidates)))]
        work = self._dense_gains
        list(self._threads.map(lambda p: work(self._similarity, self._covered, candidates[p], out[p]), parts))
        return out

    def add(self, pick: int) -> None:
        np.maximum(self._covered, self._similarity[pick], out=self._covered)

    def _write(self, distances: NDArray[np.float64], first: int) -> None:
        """Store the distances of the rows from `first` on to themselves and all later rows."""
        from novelsum_dagster.selection.qdit_kernels import write_similarity

        def write(start: int, stop: int) -> None:
            write_similarity(distances, first, start, stop, self._similarity)

        edges = _edges(distances.shape[1])
        list(self._threads.map(write, edges, edges[1:]))


class _Sparse:
    """Coverage by each sample's nearest only."""

    def __init__(self, units: NDArray[np.float32], neighbors: int, threads: ThreadPoolExecutor) -> None:
        from novelsum_dagster.selection.qdit_kernels import near_similarity, sparse_gains

        self.size = len(units)
        if not 1 <= neighbors <= self.size:
            raise ValueError(f"similarity_neighbors is {neighbors:,}; it must be from 1 to the pool's {self.size:,}")
        require_memory(
            memory_needed(self.size, neighbors),
            f"QDIT over the {neighbors:,} nearest of {self.size:,} samples",
            "set similarity_neighbors lower",
        )
        self._sparse_gains = sparse_gains
        self._covered = np.zeros(self.size, np.float32)
        nearest = _nearest(units, neighbors)
        similarity = np.empty(nearest.shape, np.float32)
        edges = _edges(self.size)
        list(
            threads.map(lambda start, stop: near_similarity(units, nearest, start, stop, similarity), edges, edges[1:])
        )
        # Transpose: from the nearest of each sample to the samples that have each candidate among their nearest.
        order = np.argsort(nearest, axis=None, kind="stable")
        self._similarity = similarity.ravel()[order]
        self._samples = (order // neighbors).astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(nearest.ravel(), minlength=self.size))])

    def gains(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        out = np.empty(len(candidates))
        self._sparse_gains(self._starts, self._samples, self._similarity, self._covered, candidates, out)
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


def _edges(size: int) -> list[int]:
    """Return where each thread's share of `size` items starts, and the end."""
    return [int(edge) for edge in np.linspace(0, size, usable_processors() + 1)]
