"""Work in parts, side by side on workers.

Belongs here: handing out, order, back-pressure. Does not: what the parts are.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.engine.ray_cluster import Cluster, WorkerLost

_AHEAD = 2
"""Parts that a worker has at a time: the next one is there when it is done with one."""
TRIES = 3
"""How often Ray starts a lost worker again, and does its part again."""


def spread(cluster: Cluster, shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
    """Call functions on workers and yield what they return, in their order.

    Args:
        cluster: where the workers are.
        shared: what every function is called with; put into Ray's object store once.
        asks: the functions, made as workers become free.

    Raises:
        InputError: where the cluster is lost, or its workers again and again.
        Exception: what a function raised.
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
    """Return what is told where workers were lost as often as they are started again."""
    return InputError(
        "ray: workers were lost again and again; they may have too little memory: lower ray.workers. What was done is"
        " kept"
    )


class _Worker:
    """Holds what is shared, in a process of its own."""

    def answer(self, there: list[Any], ask: Callable[[Any], Any]) -> Any:
        """Call a function with what is shared, which is fetched once; in a list Ray leaves that to us."""
        import ray

        if not hasattr(self, "_shared"):
            self._shared = ray.get(there[0])
        return ask(self._shared)
