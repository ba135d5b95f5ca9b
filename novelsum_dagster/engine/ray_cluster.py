"""The Ray cluster: starting or reaching it, starting workers, waiting for them, and telling when it is lost.

Belongs here: what every kind of work on Ray needs. Does not: the work.

What is sent between processes is pickled by Ray. It goes from this program to its own workers; nothing that is stored
is pickled, and nothing pickled is read from storage.
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
"""How often the cluster is looked after."""
_ROOM_SECONDS = 0.2
"""How often it is asked whether it has room."""
_REACH_SECONDS = 5.0
"""How long it may take to answer."""
_ADDRESS = "RAY_ADDRESS"
"""Ray's own variable for its address; set in every job that a cluster runs."""


_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class WorkerLost(Exception):
    """A worker, or what it was to return, is gone; a new one may do the work."""


class Cluster:
    """A connection to a cluster, of which a process has one; Ray ends it with the process.

    Args:
        settings: the address, the workers and what each may use.

    Raises:
        InputError: where the cluster cannot be reached, or it has no room for the workers.
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
        """Wait until what the workers need is free; others may have it, or workers of the last step that are ending.

        Raises:
            InputError: where the cluster is lost.
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
            options: of the Ray actor, beside what the settings give each worker.
        """
        import ray

        remote: Any = ray.remote(kind)
        started: ray.actor.ActorHandle[Any] = remote.options(num_cpus=self.cpus, num_gpus=self.gpus, **options).remote(
            *arguments
        )
        return started

    def get(self, reference: "ray.ObjectRef[Any]") -> Any:
        """Wait for what a worker returns.

        Raises:
            WorkerLost: where the worker ended before it was done.
            InputError: where the cluster is lost.
            Exception: what the work itself raised.
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
                # The cause is what the work raised; Ray's own message is a traceback.
                raise error.cause from error
            except (ray.exceptions.RayError, OSError) as error:
                self.require_alive()
                raise WorkerLost(str(error).splitlines()[0]) from error

    def require_alive(self) -> None:
        """Refuse to go on where the head of the cluster, or this machine's part of it, is gone.

        Raises:
            InputError: then; the process is disconnected, so that a later step may connect anew.
        """
        # Asking Ray would end this process where they are gone.
        for what, place in (("its head", self._head), ("its process on this machine", self._node)):
            try:
                socket.create_connection(place, timeout=_REACH_SECONDS).close()
            except OSError:
                import ray

                ray.shutdown()
                raise InputError(
                    f"the Ray cluster is lost: {what} ({place[0]}:{place[1]}) does not answer any more. What was done"
                    " is kept; start the cluster again, or set engine: local, and run again to go on"
                ) from None
        self._looked = time.monotonic()

    def watched(self, stream: Iterator[_T]) -> Iterator[_T]:
        """Yield what comes out of Ray Data, and look after the head meanwhile.

        Raises:
            InputError: where the cluster is lost.
            Exception: what the work itself raised.
        """
        while True:
            coming: Future[_T | None] = Future()
            # Ray Data cannot be waited for with a time limit, and a thread can be left behind.
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
        """Say what the workers need and what there is of it; nothing where there is enough."""
        wanted = {"CPU": self.cpus * self.workers, "GPU": self.gpus * self.workers}
        return " and ".join(
            f"{number:g} {name}s together, of {there.get(name, 0):g}"
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
    # Ray ends this process so many seconds after the head is gone; a minute would be too few to record that.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    # Ray would otherwise start a cluster of its own where one was lost.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if address is None:
        # Read when Ray is imported: a cluster of one machine then listens on 127.0.0.1 only.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    import ray._private.worker

    if ray.is_initialized():
        return
    # Ray prints what it tells of lost workers, and standard output is for what was asked for.
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
                " versions of Ray and Python the same, and RAY_AUTH_MODE=token set here where the cluster asks for one,"
                " as those do that `ray start` makes"
            ) from error


def _note(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    _log.debug("Ray: %s", "\n".join(data["lines"]))


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens, which Ray would try for a minute."""
    try:
        socket.create_connection(_place(address), timeout=_REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"ray.address: {address} does not answer ({error}); is the cluster running?") from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's own answer to SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
