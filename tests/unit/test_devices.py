"""Memory of a device: what counts as free, and that running out of it is told in plain words wherever it is used.

No GPU is at hand: torch's CPU device computes, and errors of torch's own kinds are raised in its place.
"""

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any
from weakref import WeakSet, finalize

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from novelsum_dagster.common import devices
from novelsum_dagster.common.devices import DeviceMemory, free_device_memory, is_out_of_memory
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity import dcscore, density, density_torch, distances, distsum_l2, novelsum
from novelsum_dagster.diversity.growth import nearest_in_pool
from novelsum_dagster.diversity.similar import similar_samples
from novelsum_dagster.selection import novelselect

ROWS = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore words"),
    torch.AcceleratorError("CUDA error: out of memory", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
]
OTHERS = [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), None]


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"mem_get_info": (100, 1000), "memory_reserved": 700, "memory_allocated": 50}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_device_memory(torch.device("cuda", 1)) == 750
    assert free_device_memory(torch.device("cpu")) is None


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_every_kind_of_out_of_memory_is_known(error: RuntimeError) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(
            NotEnoughMemory, match=r"^this needs about 2\.0 KiB on cpu, whose memory ran out \(.*\); stop other"
        ),
        DeviceMemory(torch.device("cpu"), 2048, "this"),
    ):
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error: Exception | None) -> None:
    assert not is_out_of_memory(error)
    if error is not None:
        with pytest.raises(type(error), match=str(error)), DeviceMemory(torch.device("cpu"), 2048, "this"):
            raise error


def _grown() -> Any:
    first = nearest_in_pool(ROWS[:40], 3, device="cpu:0")
    return lambda: nearest_in_pool(ROWS, 3, first.nearest, device="cpu:0")


WORK: dict[str, tuple[str, Callable[[], Any]]] = {
    "density against 60 points": ("addmm", lambda: density(ROWS, device="cpu:0")),
    "NovelSum of 60 samples": ("sort", lambda: novelsum(ROWS, density_power=0, device="cpu:0")),
    "NovelSelect of 9 out of 60": ("cat", lambda: novelselect(ROWS, 9, density_power=0, device="cpu:0")),
    "DistSum L2 of 60 samples": ("addmm", lambda: distsum_l2(ROWS, device="cpu:0")),
}


@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("after", [0, 1])
def test_running_out_is_told_and_not_thrown(monkeypatch: pytest.MonkeyPatch, what: str, after: int) -> None:
    """At the first product, sort or copy on the device, and later."""
    name, work = WORK[what]
    own, calls = getattr(torch, name), []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) > after:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return own(*arguments, **options)

    monkeypatch.setattr(import_module(novelsum.__module__), "_TILE_VALUES_ON_DEVICE", 60 * 20)
    monkeypatch.setattr(distances, "_TILE_VALUES", 2 * 60 * 20)
    monkeypatch.setattr(density_torch, "_TILE_VALUES", 60 * 20)
    monkeypatch.setattr(torch, name, fails)
    with pytest.raises(NotEnoughMemory, match=rf"^{what} needs about .* on cpu:0, whose memory ran out \(CUDA error"):
        work()


def test_a_device_computes_in_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA context belongs to a thread: cuBLAS finds none in a new one, and warns."""
    own, threads = torch.sort, []

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return own(*arguments, **options)

    monkeypatch.setattr(import_module(novelsum.__module__), "_TILE_VALUES_ON_DEVICE", 60 * 25)
    monkeypatch.setattr(torch, "sort", watched)
    expected = novelsum(ROWS, density_power=0)
    assert not threads
    found = novelsum(ROWS, density_power=0, device="cpu:0")
    assert threads == [threading.get_ident()] * 3
    np.testing.assert_allclose(found.novelty, expected.novelty, rtol=1e-12)


def test_running_out_while_a_pool_grows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from novelsum_dagster.diversity.density_torch import PointsOnDevice

    work = _grown()
    # The new vectors are found by `nearest`, those known by `within`.
    monkeypatch.setattr(PointsOnDevice, "nearest", lambda self, rows, count: _nearest_by_hand(rows, count))

    def fails(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(torch, "addmm", fails)
    with pytest.raises(NotEnoughMemory, match=r"density against 60 points needs about .* whose memory ran out"):
        work()


def _nearest_by_hand(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    points = np.unique(ROWS, axis=0)
    squared = ((rows[:, None] - points) ** 2).sum(2)
    near = np.argsort(squared, axis=1)[:, :count]
    return np.take_along_axis(squared, near, 1), near


def test_distsum_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from novelsum_dagster.diversity.distances import _distsum_memory_needed

    needed = _distsum_memory_needed(*ROWS.shape)
    monkeypatch.setattr(devices, "free_device_memory", lambda device: needed)
    value = distsum_l2(ROWS, device="cpu:0").value
    assert value == distsum_l2(ROWS).value
    monkeypatch.setattr(devices, "free_device_memory", lambda device: needed - 1)
    with pytest.raises(
        NotEnoughMemory, match=r"DistSum L2 of 60 samples needs about .* on cpu:0 and .* are free there"
    ):
        distsum_l2(ROWS, device="cpu:0")


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that are alive; a card holds at least as much."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                finalize(storage, self._grow, -storage.nbytes())
                self._grow(storage.nbytes())
        return found

    def _grow(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


MANY = np.random.default_rng(1).normal(size=(700, 96)).astype(np.float32)
FEW_DIMENSIONS = MANY[:, :3].copy()


def _needed(module: str, name: str, *sizes: int) -> int:
    return int(getattr(import_module(f"novelsum_dagster.{module}"), name)(*sizes))


def _near_duplicates(rows: np.ndarray) -> None:
    similar_samples(rows, np.arange(len(rows)), 0.9, device="cpu:0")


def _by_objective(rows: np.ndarray, k: int) -> None:
    novelselect(rows, k, density_side="objective", density_power=0, device="cpu:0")


NEEDS: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[int, int], int]]] = {
    "density": (
        lambda rows: density(rows, device="cpu:0"),
        lambda n, d: _needed("diversity.density_torch", "device_memory_needed", n, d),
    ),
    "NovelSum": (
        lambda rows: novelsum(rows, density_power=0, device="cpu:0"),
        lambda n, d: _needed("diversity.novelsum", "device_memory_needed", n, d),
    ),
    "NovelSum by column": (
        lambda rows: novelsum(rows, density_power=0, density_side="column", device="cpu:0"),
        lambda n, d: _needed("diversity.novelsum", "device_memory_needed", n, d),
    ),
    "DistSum L2": (
        lambda rows: distsum_l2(rows, device="cpu:0"),
        lambda n, d: _needed("diversity.distances", "_distsum_memory_needed", n, d),
    ),
    "DCScore": (
        lambda rows: dcscore(rows, device="cpu:0"),
        lambda n, d: _needed("diversity.dcscore", "_memory_needed", n, d),
    ),
    "near-duplicates": (
        _near_duplicates,
        lambda n, d: _needed("diversity.similar_torch", "device_memory_needed", n, d),
    ),
    "NovelSelect": (
        lambda rows: novelselect(rows, 40, density_power=0, device="cpu:0"),
        lambda n, d: _needed("selection.search.torch_device", "device_memory_needed", n, d, 40),
    ),
    "objective, few picks": (
        lambda rows: _by_objective(rows, 3),
        lambda n, d: _needed("selection.search.objective", "device_memory_needed", n, d, 3),
    ),
    "objective, many picks": (
        lambda rows: _by_objective(rows, 60),
        lambda n, d: _needed("selection.search.objective", "device_memory_needed", n, d, 60),
    ),
}


@pytest.mark.parametrize("what", NEEDS)
@pytest.mark.parametrize("rows", [MANY, FEW_DIMENSIONS], ids=["d=96", "d=3"])
def test_no_more_is_held_than_was_said(monkeypatch: pytest.MonkeyPatch, what: str, rows: np.ndarray) -> None:
    """With many tiles, of which more than one may be held at once."""
    work, needed = NEEDS[what]
    for module, values in {
        "density_torch": {"_TILE_VALUES": 700 * 50, "_ROWS": 50},
        "novelsum": {"_TILE_VALUES_ON_DEVICE": 700 * 50},
        "distances": {"_TILE_VALUES": 700 * 100},
        "dcscore": {"_TILE_VALUES": 700 * 50},
        "similar": {"ROWS": 64, "COLUMNS": 128},
        "similar_torch": {"ROWS": 64, "COLUMNS": 128},
    }.items():
        for name, value in values.items():
            monkeypatch.setattr(import_module(f"novelsum_dagster.diversity.{module}"), name, value)
    monkeypatch.setattr(import_module("novelsum_dagster.selection.search.objective"), "_PICKS_AT_ONCE", 700 * 10)
    own = torch.from_numpy
    # On torch's CPU device, what is sent shares the memory of the array.
    monkeypatch.setattr(torch, "from_numpy", lambda values: own(values).clone())
    with Held() as held:
        work(rows)
    assert 0 < held.most <= needed(*rows.shape)
