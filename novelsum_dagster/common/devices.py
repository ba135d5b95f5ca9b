"""The device on which torch computes.

Belongs here: resolving the setting `device` on this machine, checks of the device's memory. Does not: any computation.
"""

import ctypes
from types import TracebackType
from typing import TYPE_CHECKING

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.memory import NotEnoughMemory, readable_bytes

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = ("out of memory", "_status_alloc_failed")
"""Messages of CUDA, torch's allocator and libraries such as cuBLAS, in lower case."""
_INSTEAD = "stop other programs that use it, use device cpu, or use a smaller pool"


def cuda_or_cpu(wanted: str) -> str:
    """Return the device for a step that MPS cannot run, because it has no float64.

    `auto` is CUDA if available, else the CPU; `mps` is the CPU; others are unchanged.

    Raises:
        InputError: if this machine does not have the device.
    """
    if wanted == "auto":
        return "cuda" if _has_cuda() else "cpu"
    return "cpu" if _present(wanted) == "mps" else wanted


def accelerator_or_cpu(wanted: str) -> str:
    """Return the device for a step that MPS can run: `auto` is CUDA if available, then MPS, then the CPU.

    Raises:
        InputError: if this machine does not have the device.
    """
    if wanted != "auto":
        return _present(wanted)
    return "cuda" if _has_cuda() else "mps" if _has_mps() else "cpu"


def torch_device(name: str) -> "torch.device":
    """Return a device by name.

    Raises:
        InputError: if torch cannot use it.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu") from None
    return device


def free_device_memory(device: "torch.device") -> int | None:
    """Return the bytes that this process can still allocate on a CUDA device; None for devices in the machine's memory.

    Memory that torch has reserved but does not use counts as free.
    """
    if device.type != "cuda":
        return None
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error means that a device ran out of memory; torch has several types for that."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


class DeviceMemory:
    """Memory guard for work on a device: fails early if too little is free, and turns out-of-memory errors into advice.

    The work runs inside `with` blocks on it, as a whole or in parts.

    Args:
        device: only a CUDA device is checked; any other uses the machine's memory.
        needed: bytes at the peak.
        what: the work, e.g. "NovelSelect of 10 out of 100".

    Raises:
        NotEnoughMemory: if less is free, or torch runs out of memory within the work.
    """

    def __init__(self, device: "torch.device", needed: int, what: str) -> None:
        self._needs = f"{what} needs about {readable_bytes(needed)} on {device}"
        free = free_device_memory(device)
        if free is not None and needed > free:
            raise NotEnoughMemory(f"{self._needs} and {readable_bytes(free)} are free there; {_INSTEAD}")

    def __enter__(self) -> None:
        """Begin a part of the work."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if is_out_of_memory(error):
            words = str(error).splitlines()[0]
            raise NotEnoughMemory(f"{self._needs}, whose memory ran out ({words}); {_INSTEAD}") from error


def _present(wanted: str) -> str:
    missing = (wanted.startswith("cuda") and not _has_cuda()) or (wanted == "mps" and not _has_mps())
    if missing:
        raise InputError(f"this machine has no device {wanted}; use auto or cpu")
    return wanted


def _has_cuda() -> bool:
    # Without the driver there is no GPU, and torch, which takes seconds to load, need not be imported.
    if not any(map(_loads, ("libcuda.so.1", "nvcuda.dll"))):
        return False
    import torch

    return torch.cuda.is_available()


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
