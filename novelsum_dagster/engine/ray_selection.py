"""Exact NovelSelect over shards: every worker searches a part of the candidates.

Belongs here: one broadcast of the last picks and one gather of the best two for each pick, lost workers. Does not: the
search within a part (`search.cpu`, `search.torch_device`), which is the same as without Ray.

A part's best two are the exact best two of its rows, independent of the other parts, because a score depends only on
the row and the picks. So the best two of all parts are those of the pool, with equal scores.
"""

from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.engine.ray_cluster import Cluster, WorkerLost
from novelsum_dagster.selection.novelselect import local_search
from novelsum_dagster.selection.picks import Found, Remaining
from novelsum_dagster.selection.search.base import Candidates, Round, Search

_LOSSES = 5
"""Number of consecutive workers that one part may lose without a response."""


class RaySearch(Search):
    """The search for the next pick, by workers.

    Args:
        cluster: of the workers.
        candidates, weights: as for every search.
        device: of each worker, as for `local_search`.
        threads: of each worker; None takes as many as its CPUs.

    Raises:
        ValueError: as `local_search` does.
        InputError: if the cluster is lost, or its workers repeatedly.
    """

    def __init__(
        self,
        cluster: Cluster,
        candidates: Candidates,
        weights: NDArray[np.float64],
        device: str,
        threads: int | None = None,
    ) -> None:
        super().__init__(candidates, weights)
        n = len(candidates.rows)
        cluster.await_room()
        made = (weights, device, threads or cluster.threads)
        marks = np.linspace(0, n, min(cluster.workers, n) + 1).astype(int).tolist()
        self._parts = [_Part(cluster, candidates, first, last, made) for first, last in pairwise(marks)]
        self._allowed: NDArray[np.bool_] | None = None
        self._is_new = False

    def close(self) -> None:
        """Stop the workers."""
        for part in self._parts:
            part.close()

    def allow(self, allowed: NDArray[np.bool_]) -> None:
        """Restrict the search to allowed candidates, bool, (n,); picks never are."""
        super().allow(allowed)
        self._allowed, self._is_new = allowed.copy(), True

    def _take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        """No-op: picks are sent with the next request."""

    def _best(self) -> Found | None:
        round_ = Round()
        for part, found in zip(self._parts, self._answers("best"), strict=True):
            if found is not None:
                round_.merge(found, part.first)
        return round_.found()

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        known: list[Remaining] = self._answers("remaining")
        return (
            np.concatenate([one.score for one in known]),
            np.concatenate([one.at for one in known]),
            np.concatenate([one.is_exact for one in known]),
        )

    def _answers(self, what: str) -> list[Any]:
        """Send all parts the news and a request; return their responses."""
        for part in self._parts:
            part.ask(what, self.picks[: self.picked], self._allowed, self._is_new)
        self._is_new = False
        return [part.answer() for part in self._parts]


class _Part:
    """Rows `first` to `last` of the candidates, and the worker that searches them; a lost worker is replaced."""

    def __init__(self, cluster: Cluster, candidates: Candidates, first: int, last: int, made: tuple[Any, ...]) -> None:
        self.first, self._last = first, last
        self._cluster, self._candidates, self._made = cluster, candidates, made
        self._start()

    def _start(self) -> None:
        part = self._candidates.part(self.first, self._last)
        # Not restarted by Ray: the state would be lost; `answer` starts another worker and replays the picks.
        self._worker = self._cluster.worker(_Worker, part, *self._made, max_restarts=0, max_task_retries=0)
        self._told = 0

    def close(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self._worker)

    def ask(self, what: str, picks: NDArray[np.int64], allowed: NDArray[np.bool_] | None, is_new: bool) -> None:
        """Send the worker new picks, the allowed candidates, and a request."""
        self._asked = what, picks, allowed
        new = picks[self._told :]
        own = np.where((new >= self.first) & (new < self._last), new - self.first, -1)
        mine = None if allowed is None or not is_new else allowed[self.first : self._last]
        self._reply: Any = self._worker.answer.remote(
            what, self._candidates.rows[new], self._candidates.factor[new], own, mine
        )
        self._told = len(picks)

    def answer(self) -> Any:
        """Return the response; if the worker is lost, another one takes over its part and all picks so far."""
        for _ in range(_LOSSES):
            try:
                return self._cluster.get(self._reply)
            except WorkerLost as error:
                lost = error
                self.close()
                self._start()
                what, picks, allowed = self._asked
                self.ask(what, picks, allowed, True)
        raise InputError(
            f"ray: {_LOSSES} workers were lost one after the other ({lost}); they may have too little memory: raise"
            " ray.workers, so that each has fewer rows. Finished picks are kept; run again to resume"
        )


class _Worker:
    """The search of a part, in its own process."""

    def __init__(self, part: Candidates, weights: NDArray[np.float64], device: str, threads: int) -> None:
        self._made = part, weights, device, threads

    @cached_property
    def _search(self) -> Search:
        # Created lazily: Ray reports little about exceptions in a constructor.
        threadpool_limits(1, user_api="blas")
        part, weights, device, threads = self.__dict__.pop("_made")
        # Arrays from Ray are read-only, for which the kernels would be compiled again.
        own = Candidates(part.rows.copy(), part.factor.copy(), part.quality.copy(), part.unit, part.scoring)
        return local_search(own, weights.copy(), device, threads)

    def answer(
        self,
        what: str,
        rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        own: NDArray[np.int64],
        allowed: NDArray[np.bool_] | None,
    ) -> Found | Remaining | None:
        """Apply new picks, (m, d), and the allowed rows if they changed; return the best two or the final scores."""
        for row, one, index in zip(rows.copy(), factor.tolist(), own.tolist(), strict=True):
            self._search.take(row, one, index)
        if allowed is not None:
            self._search.allow(allowed)
        return self._search.best() if what == "best" else self._search.remaining()
