"""Embedding with Ray Data: a pool of workers, each with the model, that processes a stream of blocks.

Belongs here: dividing texts into blocks, the pool of workers. Does not: the model (`embedding.encoder`), which pads and
batches as without Ray, so that a text's vector does not depend on its block.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import Encoder, load_encoder
from novelsum_dagster.engine.ray_cluster import Cluster
from novelsum_dagster.engine.ray_spread import TRIES, lost_again, spread
from novelsum_dagster.settings import Embedding

_BLOCK_BATCHES = 16
"""Batches of the model per block, the unit that is sent, and lost with a worker."""
_AHEAD = 2
"""Blocks that a worker has at a time; more wait until earlier ones are done."""
_PROBLEM = "problem"
"""Column that replaces the vectors of a block that a worker cannot embed."""


class RayEncoder:
    """A model on every worker.

    Args:
        cluster: of the workers.
        settings, dtype, device: as for `load_encoder`, on each worker; one of the workers chooses the number type.

    Raises:
        InputError: as `load_encoder` does, or if the cluster is lost.
    """

    def __init__(self, cluster: Cluster, settings: Embedding, dtype: str | None, device: str) -> None:
        self._cluster, self._settings, self._asked = cluster, settings, device
        self._threads = _own_threads() if cluster.is_local else cluster.threads
        [(self.dimension, self.dtype, self.device)] = spread(cluster, (settings, dtype, device), [_facts])

    def batches(self, texts: list[str]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield positions of texts and their vectors, float32, (n, d), as workers complete them."""
        for block in self._cluster.watched(self._embedded(texts)):
            if _PROBLEM in block.column_names:
                raise InputError(block[_PROBLEM][0].as_py())
            vectors = block["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            yield block["place"].to_pylist(), vectors.reshape(len(block), -1)

    def _embedded(self, texts: list[str]) -> Iterator[pa.Table]:
        import ray.data
        import ray.exceptions

        self._cluster.await_room()
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # Ray 2.64 will remove `max_task_retries` without a replacement; pyproject.toml requires an earlier version.
            warnings.simplefilter("ignore")
            embedded = ray.data.from_arrow(self._blocks(texts)).map_batches(
                _Embedder,
                fn_constructor_args=(self._settings, self.dtype, self._asked, self._threads),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self._cluster.workers, max_tasks_in_flight_per_actor=_AHEAD),
                num_cpus=self._cluster.cpus,
                num_gpus=self._cluster.gpus,
                # Lost workers are always restarted, but a block that ends every worker is not retried forever.
                max_task_retries=TRIES,
            )
        try:
            yield from embedded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        except ray.exceptions.RayError as error:
            raise lost_again() from error

    def _blocks(self, texts: list[str]) -> list[pa.Table]:
        """Return blocks of texts of similar length, so that few batches need padding, in mixed order."""
        size = _BLOCK_BATCHES * self._settings.batch_size
        places = np.argsort([len(text) for text in texts], kind="stable")
        blocks = [places[start : start + size].tolist() for start in range(0, len(places), size)]
        return [
            pa.table({"place": blocks[number], "text": [texts[place] for place in blocks[number]]})
            for number in np.random.default_rng(0).permutation(len(blocks))
        ]


def _own_threads() -> int:
    """Return the number of threads with which this process would embed: it affects the last bits of some vectors."""
    import torch

    return torch.get_num_threads()


def _facts(asked: tuple[Embedding, str | None, str]) -> tuple[int, str, str]:
    """Return dimension, number type and device of the model on a worker."""
    encoder = load_encoder(*asked)
    return encoder.dimension, encoder.dtype, encoder.device


class _Embedder:
    """The model in a worker of Ray Data."""

    def __init__(self, settings: Embedding, dtype: str, device: str, threads: int) -> None:
        self._made = settings, dtype, device
        self._threads = threads

    @cached_property
    def _encoder(self) -> Encoder:
        # Created lazily: an exception in the constructor would be raised repeatedly, and never reported.
        # The thread limit keeps threads of several workers from busy-waiting on each other's cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import torch

        torch.set_num_threads(self._threads)
        return load_encoder(*self._made)

    def __call__(self, block: Any) -> pa.Table:
        texts = block["text"].to_pylist()
        try:
            vectors = np.empty((len(texts), self._encoder.dimension), np.float32)
            for rows, found in self._encoder.batches(texts):
                vectors[rows] = found
        except InputError as error:
            # Of an exception, Ray Data reports only its own message.
            return pa.table({"place": block["place"], _PROBLEM: [str(error)] * len(texts)})
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), self._encoder.dimension)
        return pa.table({"place": block["place"], "vector": column})
