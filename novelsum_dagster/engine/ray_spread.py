"""Work in independent parts, in parallel on workers.

Belongs here: distribution, order, back-pressure. Does not: the content of the parts.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.engine.ray_cluster import Cluster, WorkerLost

_AHEAD = 2
"""Parts that a worker has at a time, so that the next one is available when it completes one."""
TRIES = 3
"""Number of times that Ray restarts a lost worker and repeats its part."""


def spread(cluster: Cluster, shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
    """Call functions on workers and yield their results in order.

    Args:
        cluster: of the workers.
        shared: argument of every function; put into Ray's object store once.
        asks: the functions, consumed as workers become free.

    Raises:
        InputError: if the cluster is lost, or its workers repeatedly.
        Exception: raised by a function.
    """
    import ray

    cluster.await_room()
    there = ray.put(shared)
    workers: list[Any] = []
    waiting: deque[Any] = deque()
    try:
        for number, ask in enumerate(asks):
            if number < cluster.workers:
                workers.append(cluster.worker(_Worker, max_restarts=TRIES, max_task_retries=TRIES))
            waiting.append(workers[number % cluster.workers].answer.remote([there], ask))
            if len(waiting) >= _AHEAD * cluster.workers:
                yield cluster.get(waiting.popleft())
        while waiting:
            yield cluster.get(waiting.popleft())
    except WorkerLost as error:
        raise lost_again() from error
    finally:
        if ray.is_initialized():
            for worker in workers:
                ray.kill(worker)


def lost_again() -> InputError:
    """Return the error for workers that died on every retry."""
    return InputError(
        "ray: workers were lost repeatedly; they may have too little memory: lower ray.workers. Finished work is kept"
    )


class _Worker:
    """Holds the shared object, in its own process."""

    def answer(self, there: list[Any], ask: Callable[[Any], Any]) -> Any:
        """Call a function with the shared object, fetched once; Ray does not fetch references inside a list."""
        import ray

        if not hasattr(self, "_shared"):
            self._shared = ray.get(there[0])
        return ask(self._shared)
