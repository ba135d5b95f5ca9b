"""K-Center-Greedy: add the sample farthest from its nearest pick, so that the picks cover the pool.

Belongs here: the public function, the loop over picks. Does not: the compiled search (`kcenter_kernels`).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.selection.inputs import check_inputs
from novelsum_dagster.selection.picks import Picks, recorded
from novelsum_dagster.selection.search.base import cosine_slack

_REPORT_EVERY = 10
_LEADERS = 16
"""Number of recent farthest candidates examined first, to set the level that the others must beat."""
_PICKED = -1.0
"""Marks a pick in `bound`: nearer than any candidate can be."""


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

    On unit rows the cosine distance ranks as the L2 distance does. Distances are exact (`cosine_distances`), so picks
    are the same on every processor. The lowest index wins a tie. A pick's score is its distance to its nearest pick.
    Picks are those of the plain algorithm, for a part of its work: see `kcenter_kernels`. (Sener and Savarese, "Active
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
    with ThreadPoolExecutor(usable_processors()) as threads:
        search = _Search(inputs.units, k, threads)
        search.add(int(indices[0]))
        for rank in range(1, k):
            (indices[rank], score[rank]), (runner_up[rank], second) = search.farthest_two()
            if runner_up[rank] >= 0:
                runner_up_score[rank] = second
            search.add(int(indices[rank]))
            if rank % _REPORT_EVERY == 0:
                progress(rank, k)
    progress(k, k)
    return recorded(indices, *inputs, score=score, runner_up=runner_up, runner_up_score=runner_up_score)


class _Search:
    """State of n candidates while up to k picks are made."""

    def __init__(self, units: NDArray[np.float32], k: int, threads: ThreadPoolExecutor) -> None:
        from novelsum_dagster.selection.kcenter_kernels import two_farthest

        n, d = units.shape
        self._two_farthest = two_farthest
        self._units = units
        self._threads = threads
        self._slack = cosine_slack(d)
        self._picked_rows = np.empty((k, d), np.float32)
        self._picked = 0
        self._nearest, self._bound = np.full((2, n), np.inf)
        self._seen = np.zeros(n, np.int64)
        self._leaders = np.empty(0, np.int64)
        edges = np.linspace(0, n, usable_processors() + 1).astype(int)
        self._slices = [np.arange(start, stop) for start, stop in pairwise(edges)]

    def add(self, pick: int) -> None:
        """Add a pick."""
        self._picked_rows[self._picked] = self._units[pick]
        self._picked += 1
        self._bound[pick] = _PICKED
        self._leaders = self._leaders[self._leaders != pick]

    def farthest_two(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Return the two candidates farthest from their nearest pick, and that distance; -1 for none."""
        level = max(self._two_of(self._leaders, 0.0)[1][1], 0.0)
        found = [
            candidate
            for two in self._threads.map(lambda part: self._two_of(part, level), self._slices)
            for candidate in two
            if candidate[0] >= 0
        ]
        found.sort(key=lambda candidate: (-candidate[1], candidate[0]))
        seen = np.union1d(self._leaders, [index for index, _ in found]).astype(np.int64)
        self._leaders = seen[np.argsort(-self._bound[seen], kind="stable")[:_LEADERS]]
        best, second, *_ = [*found, (-1, -np.inf), (-1, -np.inf)]
        return best, second

    def _two_of(self, candidates: NDArray[np.int64], level: float) -> tuple[tuple[int, float], tuple[int, float]]:
        picked = self._picked_rows[: self._picked]
        best, distance, second, second_distance = self._two_farthest(
            self._units, candidates, picked, self._nearest, self._bound, self._seen, level, self._slack
        )
        return (int(best), float(distance)), (int(second), float(second_distance))
