"""Resources that each step of a curation needs: memory here, on a worker and on the device; disk space.

Belongs here: combining the estimates of the steps, from the same formulas by which they refuse work that would not
fit. Does not: those formulas, the sizes they start from (`cli.plan`).

Figures are upper bounds for arrays, and estimates for text and models.
"""

import os
from dataclasses import dataclass

from novelsum_dagster.common.devices import cuda_or_cpu, free_device_memory, torch_device
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.memory import available_memory
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.diversity import density_torch, similar, similar_torch
from novelsum_dagster.diversity.density import Search, index_bytes, search_memory_needed
from novelsum_dagster.diversity.novelsum import device_memory_needed as novelsum_on_device
from novelsum_dagster.diversity.novelsum import memory_needed as novelsum_memory
from novelsum_dagster.embedding import store
from novelsum_dagster.pool import duplicates
from novelsum_dagster.settings import Selection, Settings

LIBRARIES = 2**30
"""Memory of a process with Python, Dagster, torch, FAISS and the other libraries loaded."""
_BUFFERS = 96 * 2**20
"""Temporary memory of libraries and file buffers in any step."""
_BYTES_PER_TEXT = 2000
"""Assumed bytes of a sample's text, if unknown."""
_TEXT_COPIES = 3
"""Copies of a text in memory: as read, as a Python string, and partly in the tokenizer."""
_MODEL_COPIES = 3
"""Copies of the weights: float32, bfloat16 while it is tried, and activations."""
_READ_BYTES = 300
"""Memory per record read, for its id and for duplicate detection."""
_TABLE_BYTES = 400
"""Disk space per sample in the tables of ids, positions, densities, novelties and scores."""
_PART_BYTES = 64
"""Memory per sample in a partitioned selection: its partition, its position there, its final scores."""
_UNPACKED = 3
"""Copies of the index in a worker while it unpacks it: as received, as FAISS reads it, as it is searched."""
_AHEAD = 2
"""Parts of the pool that are queued for a worker or being processed by it (`ray_spread`)."""


@dataclass(frozen=True)
class Need:
    """Peak needs of one step, in bytes; None for a resource that it does not use.

    Attributes:
        step: the asset's name.
        memory: on this machine.
        worker: on each worker, with the engine ray.
        device: on a CUDA device, if the settings allow one.
        disk: that it adds to the storage folder.
        store: the share of `worker` in Ray's object store; on this machine it is included in `memory`.
        is_known: whether the model's size is known; if not, `memory` and `worker` exclude it and `device` is None.
    """

    step: str
    memory: int
    worker: int | None
    device: int | None
    disk: int
    store: int = 0
    is_known: bool = True


@dataclass(frozen=True)
class Room:
    """Available resources.

    Attributes:
        memory, disk: of this machine, in bytes.
        device: memory of the device; None without a device.
        workers: Ray workers that share this machine with the step.
    """

    memory: int
    device: int | None
    disk: int
    workers: int = 0

    def fits(self, need: Need) -> bool:
        """Return whether a step fits on this machine; workers on other machines are not considered."""
        on_device = need.device is None or self.device is None or need.device <= self.device
        beside = 0 if need.worker is None else self.workers * (need.worker - need.store)
        return need.memory + beside <= self.memory and need.disk <= self.disk and on_device


@dataclass(frozen=True)
class Size:
    """The workload that a plan is made for.

    Attributes:
        samples: number of samples in the pool.
        dimension: of a vector.
        text: bytes of all texts together; None assumes 2,000 per sample.
        weights: bytes of the model's weights in float32; None if unknown.
    """

    samples: int
    dimension: int
    text: int | None = None
    weights: int | None = None

    @property
    def texts(self) -> int:
        """Bytes of all texts, known or assumed."""
        return self.samples * _BYTES_PER_TEXT if self.text is None else self.text


def plan(size: Size, settings: Settings, workers: int = 1) -> list[Need]:
    """Return what each step of a curation needs, in order.

    Device `auto` is planned for both: memory of this machine without a GPU, and what a GPU would need.

    Args:
        size: of the pool.
        settings: of the curation.
        workers: of the engine ray; a single worker holds everything.
    """
    on_device = settings.device.startswith("cuda")
    may_use_device = on_device or settings.device == "auto"
    n, embedded = size.samples, size.dimension
    d = min(embedded, settings.embedding.reduce or embedded)
    transformed = settings.embedding.whiten or settings.embedding.reduce is not None
    held = LIBRARIES + _BUFFERS + store.memory_needed(n, d)
    neighbors = settings.novelsum.neighbors
    lists = Search.of(settings.novelsum).tries_lists(n, n)
    search = search_memory_needed(n, d, neighbors, lists, keeps=not lists)
    threads = usable_processors()
    index = index_bytes(n, d) if lists else 0
    on_ray = settings.engine == "ray"
    model = LIBRARIES + _BUFFERS + _MODEL_COPIES * (size.weights or 0)
    k = _picks(settings.selection, n)
    here, worker, waiting = _selection(settings.selection, n, d, k, workers)
    near = duplicates.BYTES_PER_SAMPLE if settings.pool.near_duplicates.by_text else 0
    return [
        Need(
            "raw_pool", LIBRARIES + _BUFFERS + n * (_READ_BYTES + near), None, None, 2 * size.texts + n * _TABLE_BYTES
        ),
        Need(
            "embeddings",
            max(model + _TEXT_COPIES * size.texts, held + 4 * n * (embedded - d) + 2 * size.texts),
            model + _TEXT_COPIES * size.texts // workers,
            size.weights if may_use_device else None,
            4 * n * (embedded + d * transformed) + n * _TABLE_BYTES,
            is_known=size.weights is not None,
        ),
        *([_distinct(settings, n, d, held, may_use_device)] if settings.pool.near_duplicates.by_vectors else []),
        Need(
            "density",
            held + search + (4 * n * d + 2 * index if on_ray else 0),
            LIBRARIES + _BUFFERS + 4 * n * d + (1 + _UNPACKED) * index + search_memory_needed(0, d, neighbors, False),
            density_torch.device_memory_needed(n, d) if may_use_device and not lists else None,
            n * (_TABLE_BYTES + 8 * (neighbors + 1)),
            4 * n * d + index,
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
            held + here + (waiting if on_ray else 0),
            LIBRARIES + _BUFFERS + worker,
            _strategy_device_memory(settings.selection, n, d, k) if may_use_device else None,
            n * _TABLE_BYTES + k * 4 * d + 3 * size.texts * k // n,
            waiting // workers,
        ),
        Need(
            "novelsum_report",
            held + 4 * n * d + novelsum_memory(k, d, 1 if on_device else threads) + size.texts,
            None,
            4 * (n + k) * d + novelsum_on_device(k, d) if may_use_device else None,
            size.texts * k // n + _BUFFERS,
        ),
    ]


def _distinct(settings: Settings, n: int, d: int, held: int, may_use_device: bool) -> Need:
    """Return what near-duplicates by vectors need; the pool's tables are hard-linked, not copied, where possible."""
    rows = 4 * n * d
    return Need(
        "distinct_pool",
        held + similar.memory_needed(n, d) + (rows if settings.engine == "ray" else 0),
        LIBRARIES + _BUFFERS + rows + similar.memory_needed(0, d),
        similar_torch.device_memory_needed(n, d) if may_use_device else None,
        n * _TABLE_BYTES,
        rows,
    )


def room(settings: Settings, workers: int) -> Room:
    """Return the resources currently available on this machine; `workers` are those of the engine ray."""
    import psutil

    is_local = settings.engine == "ray" and not (settings.ray.address or os.environ.get("RAY_ADDRESS"))
    existing = next(path for path in (settings.storage_path, *settings.storage_path.parents) if path.exists())
    return Room(
        memory=available_memory(),
        device=_free_on_device(settings.device),
        disk=psutil.disk_usage(str(existing)).free,
        workers=workers if is_local else 0,
    )


def _free_on_device(name: str) -> int | None:
    try:
        device = cuda_or_cpu(name)
    except InputError:  # The plan may be for another machine.
        return None
    return None if device == "cpu" else free_device_memory(torch_device(device))


def _picks(selection: Selection, n: int) -> int:
    """Return the largest possible number of picks; a token budget allows up to all samples."""
    return n if selection.k is None else min(selection.k, n)


def _stages(selection: Selection, n: int, k: int) -> list[tuple[int, int]]:
    """Return (candidates, picks) of each selection in order; the last one makes the subset."""
    if selection.partitions is None:
        return [(n, k)]
    part = -(-n // selection.partitions)
    forward = min(n, k * selection.partitions)
    return [(part, min(k, part)), (forward, k)]


def _selection(selection: Selection, n: int, d: int, k: int, workers: int) -> tuple[int, int, int]:
    """Return the memory of selecting besides the vectors: here, on a worker, in Ray's object store for all workers."""
    stages = _stages(selection, n, k)
    (parted, _), (last, _) = stages[0], stages[-1]
    own = -(-last // workers)
    # A worker's rows are in the object store, and copied out of it.
    worker = 2 * 4 * own * d + _strategy_memory(selection, own, d, k)
    waiting = 4 * own * d * workers
    if selection.partitions is None:
        return 4 * n * d + _strategy_memory(selection, n, d, k), worker, waiting
    # The rows of a part, or of the parts' picks, are copied from the pool's and normalised to unit length.
    here = max(2 * 4 * size * d + _strategy_memory(selection, size, d, picks) for size, picks in stages)
    rows = 4 * parted * d
    on_part = (_AHEAD + 1) * rows + _strategy_memory(selection, parted, d, stages[0][1])
    return here + _PART_BYTES * n, max(worker, on_part), max(waiting, _AHEAD * rows * workers)


def _strategy_memory(selection: Selection, n: int, d: int, k: int) -> int:
    """Return the memory of selecting besides the vectors and the unit rows."""
    if selection.strategy == "novelselect":
        from novelsum_dagster.selection.search import column as search_column
        from novelsum_dagster.selection.search import cpu as search_cpu
        from novelsum_dagster.selection.search import objective as search_objective

        if selection.density_side == "column":
            return search_column.memory_needed(n, d, k)
        if selection.density_side == "objective":
            return search_objective.memory_needed(n, d, k)
        return search_cpu.memory_needed(n, d, k)
    if selection.strategy == "qdit":
        from novelsum_dagster.selection import qdit

        return qdit.memory_needed(n, selection.qdit.similarity_neighbors)
    if selection.strategy == "gist" and selection.gist.coverage_weight:
        from novelsum_dagster.selection import qdit

        return qdit.memory_needed(n, None)
    return _TABLE_BYTES * n


def _strategy_device_memory(selection: Selection, n: int, d: int, k: int) -> int | None:
    if selection.strategy != "novelselect" or selection.density_side == "column":
        return None
    from novelsum_dagster.selection.search import objective as search_objective
    from novelsum_dagster.selection.search import torch_device as search_torch

    of_search = search_torch.device_memory_needed
    if selection.density_side == "objective":
        of_search = search_objective.device_memory_needed
    return max(of_search(size, d, picks) for size, picks in _stages(selection, n, k))
