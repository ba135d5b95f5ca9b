"""What each step of a curation needs, before it starts: memory here, on a worker and on the device; room on disk.

Belongs here: putting together what the steps say of themselves, by the same formulas by which they refuse work that
would not fit. Does not: those formulas, where the numbers come from (`cli_plan`).

Figures are upper bounds where what a step holds is known by its arrays, and estimates for text and models.
"""

import os
from dataclasses import dataclass

from novelsum_dagster.devices import cuda_or_cpu, free_device_memory, torch_device
from novelsum_dagster.diversity import density_torch
from novelsum_dagster.diversity.density import search_memory_needed, searches_lists
from novelsum_dagster.diversity.novelsum import device_memory_needed as novelsum_on_device
from novelsum_dagster.diversity.novelsum import memory_needed as novelsum_memory
from novelsum_dagster.embedding import store
from novelsum_dagster.errors import InputError
from novelsum_dagster.memory import available_memory
from novelsum_dagster.pool import duplicates
from novelsum_dagster.settings import Selection, Settings

LIBRARIES = 2**30
"""Python with Dagster, torch, FAISS and all else, loaded; every process has them."""
_BUFFERS = 96 * 2**20
"""What libraries and files hold for a while in any step."""
_BYTES_PER_TEXT = 2000
"""Bytes of a sample's text where they are not known."""
_TEXT_COPIES = 3
"""A text is held as it was read, as a string of Python, and by the tokenizer in part."""
_MODEL_COPIES = 3
"""The weights in float32, and in bfloat16 while these are tried, with room for what is computed."""
_READ_BYTES = 300
"""Memory for a record that was read: its id, whether it came before."""
_TABLE_BYTES = 400
"""Disk for a sample in the tables of ids, places, densities, novelties and scores."""


@dataclass(frozen=True)
class Need:
    """What one step needs at its peak, in bytes; None where it uses no such thing.

    Attributes:
        step: the asset's name.
        memory: of this machine.
        worker: of each worker, where the engine is ray.
        device: of a CUDA device, where the settings allow one.
        disk: that it adds to the storage folder.
    """

    step: str
    memory: int
    worker: int | None
    device: int | None
    disk: int


@dataclass(frozen=True)
class Room:
    """What there is, in bytes: memory and disk of this machine, memory of the device, None where there is none."""

    memory: int
    device: int | None
    disk: int

    def fits(self, need: Need) -> bool:
        """Tell whether a step fits on this machine; what a worker has is not known here."""
        on_device = need.device is None or self.device is None or need.device <= self.device
        return need.memory <= self.memory and need.disk <= self.disk and on_device


@dataclass(frozen=True)
class Size:
    """What a plan is made for.

    Attributes:
        samples: in the pool.
        dimension: of a vector.
        text: bytes of all texts together; None takes 2,000 a sample.
        weights: bytes of the model's weights in float32; 0 where they are not known.
    """

    samples: int
    dimension: int
    text: int | None = None
    weights: int = 0

    @property
    def texts(self) -> int:
        """Bytes of all texts, known or not."""
        return self.samples * _BYTES_PER_TEXT if self.text is None else self.text


def plan(size: Size, settings: Settings, workers: int = 1) -> list[Need]:
    """Return what each step of a curation needs, in order.

    Device `auto` is planned for both: memory of this machine without a GPU, and what a GPU would need.

    Args:
        size: of the pool.
        settings: of the curation.
        workers: of the engine ray; 1 is a worker that has all.
    """
    on_device = settings.device.startswith("cuda")
    may_use_device = on_device or settings.device == "auto"
    n, d = size.samples, size.dimension
    held = LIBRARIES + _BUFFERS + store.memory_needed(n, d)
    part = -(-n // workers)
    neighbors = settings.novelsum.neighbors
    lists = searches_lists(n, n, settings.novelsum.density_index, settings.novelsum.min_recall)
    search = search_memory_needed(n, d, neighbors, lists, keeps=not lists)
    threads = len(os.sched_getaffinity(0))
    model = LIBRARIES + _BUFFERS + _MODEL_COPIES * size.weights
    k = _picks(settings.selection, n)
    near = duplicates.BYTES_PER_SAMPLE if settings.pool.near_duplicates.method == "minhash" else 0
    return [
        Need(
            "raw_pool", LIBRARIES + _BUFFERS + n * (_READ_BYTES + near), None, None, 2 * size.texts + n * _TABLE_BYTES
        ),
        Need(
            "embeddings",
            max(model + _TEXT_COPIES * size.texts, held + 2 * size.texts),
            model + _TEXT_COPIES * size.texts // workers,
            (size.weights or None) if may_use_device else None,
            4 * n * d + n * _TABLE_BYTES,
        ),
        Need(
            "density",
            held + search,
            LIBRARIES + _BUFFERS + 4 * n * d + search_memory_needed(0, d, neighbors, False),
            density_torch.device_memory_needed(n, d) if may_use_device and not lists else None,
            n * (_TABLE_BYTES + 8 * (neighbors + 1)),
        ),
        Need(
            "sample_novelty",
            held + 4 * n * d + novelsum_memory(n, d, 1 if on_device else threads),
            None,
            novelsum_on_device(n, d) if may_use_device else None,
            n * _TABLE_BYTES,
        ),
        Need(
            "selected_subset",
            held + 4 * n * d + _strategy_memory(settings.selection, n, d, k),
            LIBRARIES + _BUFFERS + 4 * part * d + _strategy_memory(settings.selection, part, d, k),
            _strategy_device_memory(settings.selection, n, d, k) if may_use_device else None,
            n * _TABLE_BYTES + k * 4 * d + 3 * size.texts * k // n,
        ),
        Need(
            "novelsum_report",
            held + 4 * n * d + novelsum_memory(k, d, 1 if on_device else threads) + size.texts,
            None,
            4 * (n + k) * d + novelsum_on_device(k, d) if may_use_device else None,
            size.texts * k // n + _BUFFERS,
        ),
    ]


def room(settings: Settings) -> Room:
    """Return what this machine has for a curation, now."""
    import psutil

    existing = next(path for path in (settings.storage_path, *settings.storage_path.parents) if path.exists())
    return Room(
        memory=available_memory(),
        device=_free_on_device(settings.device),
        disk=psutil.disk_usage(str(existing)).free,
    )


def _free_on_device(name: str) -> int | None:
    try:
        device = cuda_or_cpu(name)
    except InputError:  # A plan may be for another machine.
        return None
    return None if device == "cpu" else free_device_memory(torch_device(device))


def _picks(selection: Selection, n: int) -> int:
    """Return how many picks there can be; a budget of tokens allows as many as there are samples."""
    return n if selection.k is None else min(selection.k, n)


def _strategy_memory(selection: Selection, n: int, d: int, k: int) -> int:
    """Return what choosing takes beside the vectors and the unit rows."""
    if selection.strategy == "novelselect":
        from novelsum_dagster.selection import search_cpu

        return search_cpu.memory_needed(n, d, k)
    if selection.strategy == "qdit":
        from novelsum_dagster.selection import qdit

        return qdit.memory_needed(n, selection.qdit.similarity_neighbors)
    return _TABLE_BYTES * n


def _strategy_device_memory(selection: Selection, n: int, d: int, k: int) -> int | None:
    if selection.strategy != "novelselect":
        return None
    from novelsum_dagster.selection import search_torch

    return search_torch.device_memory_needed(n, d, k)
