"""The `Engine` protocol, the local engine, and the choice by the settings.

Belongs here: `Engine`, work in this process, the choice. Does not: Ray itself (`ray_cluster`, `ray_engine`).
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
    """The three kinds of work that can run on a cluster; results are the same on every engine."""

    def device(self, wanted: str) -> str:
        """Return the device on which the engine works, given that of the settings.

        Raises:
            InputError: if the engine cannot have such a device.
        """
        ...

    def encoder(self, settings: Embedding, dtype: str | None, device: str) -> Encoder:
        """Return the encoder of the settings, as `load_encoder` does."""
        ...

    def search(
        self, candidates: Candidates, weights: NDArray[np.float64], device: str, threads: int | None = None
    ) -> Search:
        """Return NovelSelect's search of candidates, as `local_search` does."""
        ...

    def spread(self, shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
        """Call functions with a shared object, and yield their results in order, as `in_turn` does."""
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
    """Return the engine of the settings; nothing is started before there is work."""
    if settings.engine == "local":
        return LocalEngine()
    from novelsum_dagster.engine.ray_engine import RayEngine

    return RayEngine(settings.ray)
