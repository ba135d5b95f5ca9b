"""The Ray cluster: starting it or connecting to it, starting workers, waiting for them, and detecting its loss.

Belongs here: what every kind of work on Ray needs. Does not: the work.

Ray pickles the data sent between processes, which are this program and its own workers. Nothing that is stored is
pickled, and nothing pickled is read from storage.
"""

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.settings import Ray

if TYPE_CHECKING:
    import ray

_LOOK_SECONDS = 5.0
"""Interval between checks that the cluster is alive."""
_ROOM_SECONDS = 0.2
"""Interval between checks for free resources."""
_REACH_SECONDS = 5.0
"""Timeout for a connection to the cluster."""
_ADDRESS = "RAY_ADDRESS"
"""Ray's own variable for its address; set in every job that a cluster runs."""


_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class WorkerLost(Exception):
    """A worker or its result was lost; a new worker may do the work."""


class Cluster:
    """The connection of this process to a cluster; Ray closes it when the process ends.

    Args:
        settings: the address, the workers and their resources.

    Raises:
        InputError: if the cluster cannot be reached, or lacks resources for the workers.
    """

    def __init__(self, settings: Ray) -> None:
        self.workers = settings.workers
        self.cpus, self.gpus = settings.cpus_per_worker, settings.gpus_per_worker
        self.threads = max(1, int(settings.cpus_per_worker))
        address = settings.address or os.environ.get(_ADDRESS)
        self.is_local = address is None
        _connect(address)
        import ray

        context = ray.get_runtime_context()
        nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
        own = next(node for node in nodes if node["NodeID"] == context.get_node_id())
        self._head = _place(context.gcs_address)
        self._node = own["NodeManagerAddress"], int(own["NodeManagerPort"])
        self._looked = time.monotonic()
        there: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._require_room(there, "this machine" if address is None else f"the cluster at {address}")

    def await_room(self) -> None:
        """Wait until the resources for the workers are free; other jobs or ending workers may still use them.

        Raises:
            InputError: if the cluster is lost.
        """
        import ray

        since, has_said = time.monotonic(), False
        while missing := self._missing(ray.available_resources()):  # type: ignore[no-untyped-call]
            self.require_alive()
            # Workers of a step that failed live as long as the error's traceback, which refers to itself.
            gc.collect()
            if not has_said and time.monotonic() - since > _LOOK_SECONDS:
                _log.warning("Ray: waiting for room: the workers need %s", missing)
                has_said = True
            time.sleep(_ROOM_SECONDS)

    def worker(self, kind: type, *arguments: Any, **options: Any) -> "ray.actor.ActorHandle[Any]":
        """Start a worker that holds an object of the class, made with these arguments.

        Args:
            kind: the class.
            arguments: of the class.
            options: of the Ray actor, besides the settings of each worker.
        """
        import ray

        remote: Any = ray.remote(kind)
        started: ray.actor.ActorHandle[Any] = remote.options(num_cpus=self.cpus, num_gpus=self.gpus, **options).remote(
            *arguments
        )
        return started

    def get(self, reference: "ray.ObjectRef[Any]") -> Any:
        """Wait for the result of a worker.

        Raises:
            WorkerLost: if the worker ended before it was done.
            InputError: if the cluster is lost.
            Exception: raised by the work itself.
        """
        import ray.exceptions

        while True:
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self.require_alive()
            try:
                return ray.get(reference, timeout=_LOOK_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayTaskError as error:
                # The cause is the exception of the work; Ray's own message is a traceback.
                raise error.cause from error
            except (ray.exceptions.RayError, OSError) as error:
                self.require_alive()
                raise WorkerLost(str(error).splitlines()[0]) from error

    def require_alive(self) -> None:
        """Require that the head of the cluster and its process on this machine respond.

        Raises:
            InputError: if they do not; the process is disconnected, so that a later step can reconnect.
        """
        # If they have ended, a call to Ray would end this process.
        for what, place in (("its head", self._head), ("its process on this machine", self._node)):
            try:
                socket.create_connection(place, timeout=_REACH_SECONDS).close()
            except OSError:
                import ray

                ray.shutdown()
                raise InputError(
                    f"the Ray cluster is lost: {what} ({place[0]}:{place[1]}) no longer responds. Finished work is"
                    " kept; start the cluster again, or set engine: local, and run again to resume"
                ) from None
        self._looked = time.monotonic()

    def watched(self, stream: Iterator[_T]) -> Iterator[_T]:
        """Yield the output of Ray Data, and check meanwhile that the cluster is alive.

        Raises:
            InputError: if the cluster is lost.
            Exception: raised by the work itself.
        """
        while True:
            coming: Future[_T | None] = Future()
            # Ray Data has no timeout for waiting, and a thread can be abandoned.
            threading.Thread(target=_next, args=(stream, coming), daemon=True).start()
            while not wait([coming], _LOOK_SECONDS).done or time.monotonic() - self._looked > _LOOK_SECONDS:
                self.require_alive()
            if (error := coming.exception()) is not None:
                self.require_alive()
                raise error
            if (item := coming.result()) is None:
                return
            yield item

    def _require_room(self, there: dict[str, float], where: str) -> None:
        if missing := self._missing(there):
            raise InputError(
                f"ray: {self.workers} workers need {missing} at {where}; lower ray.workers, ray.cpus_per_worker or"
                " ray.gpus_per_worker"
            )

    def _missing(self, there: dict[str, float]) -> str:
        """Return the missing resources as text; empty if there are enough."""
        wanted = {"CPU": self.cpus * self.workers, "GPU": self.gpus * self.workers}
        return " and ".join(
            f"{number:g} {name}s in total, of {there.get(name, 0):g}"
            for name, number in wanted.items()
            if number > there.get(name, 0) + 1e-9
        )


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _next(stream: "Iterator[_T]", coming: "Future[_T | None]") -> None:
    try:
        coming.set_result(next(stream, None))
    except BaseException as error:
        coming.set_exception(error)


def _connect(address: str | None) -> None:
    """Connect this process, unless it is connected; without an address, start a cluster of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray ends this process this many seconds after losing the head; a minute would be too short to record that.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    # Ray would otherwise start a cluster of its own where one was lost.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if address is None:
        # Read when Ray is imported: makes a cluster of one machine listen on 127.0.0.1 only.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    import ray._private.worker

    if ray.is_initialized():
        return
    # Ray prints messages about lost workers, but standard output is for results.
    ray._private.worker.print_to_stdstream = _note
    if address not in (None, "auto"):
        _require_answer(address)
    local: dict[str, Any] = {"num_cpus": usable_processors(), "include_dashboard": False}
    with _own_signals():
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else local),
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            place = f"the cluster at {address} cannot be reached" if address else "Ray cannot start here"
            raise InputError(
                f"ray.address: {place} ({str(error).splitlines()[0]}); this machine must be one of its nodes, the"
                " versions of Ray and Python the same, and RAY_AUTH_MODE=token set here if the cluster requires it, as"
                " clusters of `ray start` do"
            ) from error


def _note(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    _log.debug("Ray: %s", "\n".join(data["lines"]))


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray would retry it for a minute."""
    try:
        socket.create_connection(_place(address), timeout=_REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"ray.address: {address} does not respond ({error}); is the cluster running?") from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore this program's own handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
