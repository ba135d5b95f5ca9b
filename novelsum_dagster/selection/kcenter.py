"""K-Center-Greedy: add the sample farthest from its nearest pick, so that the picks cover the pool.

Belongs here: the public function, the loop over picks. Does not: the compiled search (`kcenter_kernels`).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.picks import Picks, recorded

_REPORT_EVERY = 10
_LEADERS = 16
"""So many of the farthest candidates seen last are looked at first, to set the level that the others must beat."""
_PICKED = np.float32(2)
"""Marks a pick in `similarity`: more similar than any candidate can be."""


def kcenter(
    embeddings: ArrayLike,
    k: int,
    *,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Picks:
    """Pick a random sample, then k - 1 times the sample whose cosine distance to its nearest pick is largest.

    On unit rows the cosine distance ranks as the L2 distance does. Cosines are float32; distances below 2^-20 are
    rounding and count as 0. The lowest index wins a tie. A pick's score is its distance to its nearest pick. Picks
    are those of the plain algorithm, for a part of its work: see `kcenter_kernels`. (Sener and Savarese, "Active
    Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm 1.)

    Args:
        embeddings: (n, d).
        k: number of picks, 1 to n.
        density_factor: float64, (n,), for the record.
        quality: float64, (n,), for the record.
        seed: of the first pick, default 42.
        progress: called with picks made and k.

    Raises:
        ValueError: for bad rows, factors or qualities, or k out of range.
    """
    inputs = check_inputs(embeddings, k, density_factor, quality)
    indices = np.empty(k, np.int64)
    score, runner_up_score = np.full(k, np.nan), np.full(k, np.nan)
    runner_up = np.full(k, -1, np.int64)
    indices[0] = np.random.default_rng(seed).integers(len(inputs.units))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        search = _Search(inputs.units, k, threads)
        search.add(int(indices[0]))
        for rank in range(1, k):
            (indices[rank], similarity), (runner_up[rank], second) = search.farthest_two()
            score[rank] = 1 - similarity
            if runner_up[rank] >= 0:
                runner_up_score[rank] = 1 - second
            search.add(int(indices[rank]))
            if rank % _REPORT_EVERY == 0:
                progress(rank, k)
    progress(k, k)
    return recorded(indices, *inputs, score=score, runner_up=runner_up, runner_up_score=runner_up_score)


class _Search:
    """What is known of n candidates while up to k picks are made."""

    def __init__(self, units: NDArray[np.float32], k: int, threads: ThreadPoolExecutor) -> None:
        from novelsum_dagster.selection.kcenter_kernels import two_least_similar

        n, d = units.shape
        self._two_least_similar = two_least_similar
        self._units = units
        self._threads = threads
        self._picked_rows = np.empty((k, d), np.float32)
        self._picked = 0
        self._similarity = np.full(n, -np.inf, np.float32)
        self._seen = np.zeros(n, np.int64)
        self._leaders = np.empty(0, np.int64)
        edges = np.linspace(0, n, len(os.sched_getaffinity(0)) + 1).astype(int)
        self._slices = [np.arange(start, stop) for start, stop in pairwise(edges)]

    def add(self, pick: int) -> None:
        """Add a pick."""
        self._picked_rows[self._picked] = self._units[pick]
        self._picked += 1
        self._similarity[pick] = _PICKED
        self._leaders = self._leaders[self._leaders != pick]

    def farthest_two(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Return the two candidates least similar to their nearest pick, and that similarity; -1 for none."""
        level = min(self._two_of(self._leaders, 1.0)[1][1], 1.0)
        found = [
            candidate
            for two in self._threads.map(lambda part: self._two_of(part, level), self._slices)
            for candidate in two
            if candidate[0] >= 0
        ]
        found.sort(key=lambda candidate: (candidate[1], candidate[0]))
        seen = np.union1d(self._leaders, [index for index, _ in found]).astype(np.int64)
        self._leaders = seen[np.argsort(self._similarity[seen], kind="stable")[:_LEADERS]]
        best, second, *_ = [*found, (-1, np.inf), (-1, np.inf)]
        return best, second

    def _two_of(self, candidates: NDArray[np.int64], level: float) -> tuple[tuple[int, float], tuple[int, float]]:
        best, similarity, second, second_similarity = self._two_least_similar(
            self._units, candidates, self._picked_rows[: self._picked], self._similarity, self._seen, level
        )
        return (int(best), float(similarity)), (int(second), float(second_similarity))
