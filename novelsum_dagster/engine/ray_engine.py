"""The engine that runs on Ray.

Belongs here: `RayEngine`. Does not: the cluster (`ray_cluster`), what workers do (`ray_embedding`, `ray_selection`,
`ray_spread`).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.extras import require_extra
from novelsum_dagster.embedding.encoder import Encoder
from novelsum_dagster.engine.ray_cluster import Cluster
from novelsum_dagster.engine.ray_embedding import RayEncoder
from novelsum_dagster.engine.ray_selection import RaySearch
from novelsum_dagster.engine.ray_spread import spread
from novelsum_dagster.selection.search.base import Candidates, Search
from novelsum_dagster.settings import Embedding, Ray


class RayEngine:
    """Workers of a Ray cluster, which is started or connected to when there is work.

    Args:
        settings: the address, the workers and their resources.

    Every method that uses the cluster raises an InputError if it cannot be reached, lacks resources for the workers, or
    is lost.

    Raises:
        InputError: if Ray is not installed.
    """

    def __init__(self, settings: Ray) -> None:
        require_extra("ray", "engine: ray", "ray")
        self._settings = settings

    @cached_property
    def _cluster(self) -> Cluster:
        return Cluster(self._settings)

    def device(self, wanted: str) -> str:
        """Return the device of a worker: it has only the GPUs assigned by Ray, which torch numbers from 0.

        Raises:
            InputError: for a CUDA device, if the settings give workers none.
        """
        is_cuda = wanted.startswith("cuda")
        if self._settings.gpus_per_worker:
            return "cuda" if is_cuda else wanted
        if is_cuda:
            raise InputError(f"device {wanted} on Ray: ray.gpus_per_worker is 0; set it, or device: cpu")
        return "cpu" if wanted == "auto" else wanted

    def encoder(self, settings: Embedding, dtype: str | None, device: str) -> Encoder:
        """Return an encoder whose batches are embedded by the workers."""
        return RayEncoder(self._cluster, settings, dtype, device)

    def search(
        self, candidates: Candidates, weights: NDArray[np.float64], device: str, threads: int | None = None
    ) -> Search:
        """Return a search in which every worker has a part of the candidates; `threads` is for each."""
        return RaySearch(self._cluster, candidates, weights, device, threads)

    def spread(self, shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
        """Call functions on the workers, each of which holds the shared object."""
        return spread(self._cluster, shared, asks)
