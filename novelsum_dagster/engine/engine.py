"""The engines behind one protocol, and the one that the settings name.

Belongs here: `Engine`, work in this process, the choice. Does not: Ray itself (`ray_cluster` and those beside it).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import accelerator_or_cpu
from novelsum_dagster.common.spread import in_turn
from novelsum_dagster.embedding.encoder import Encoder, load_encoder
from novelsum_dagster.selection.novelselect import local_search
from novelsum_dagster.selection.search.base import Candidates, Search
from novelsum_dagster.settings import Embedding, Settings


class Engine(Protocol):
    """Does the three kinds of work that a cluster helps with; what comes out is the same on every engine."""

    def device(self, wanted: str) -> str:
        """Return the device of the work below, where the settings name this one.

        Raises:
            InputError: where it can have no such device.
        """
        ...

    def encoder(self, settings: Embedding, dtype: str | None, device: str) -> Encoder:
        """Return the encoder that the settings name, as `load_encoder` does."""
        ...

    def search(
        self, candidates: Candidates, weights: NDArray[np.float64], device: str, threads: int | None = None
    ) -> Search:
        """Return NovelSelect's search of candidates, as `local_search` does."""
        ...

    def spread(self, shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
        """Call functions with what they share, and yield what they return in their order, as `in_turn` does."""
        ...


class LocalEngine:
    """Works in this process, with all its cores."""

    def device(self, wanted: str) -> str:
        if wanted != "auto":
            accelerator_or_cpu(wanted)
        return wanted

    encoder = staticmethod(load_encoder)
    search = staticmethod(local_search)
    spread = staticmethod(in_turn)


def engine_of(settings: Settings) -> Engine:
    """Return the engine that the settings name; nothing is started before it has work."""
    if settings.engine == "local":
        return LocalEngine()
    from novelsum_dagster.engine.ray_engine import RayEngine

    return RayEngine(settings.ray)
