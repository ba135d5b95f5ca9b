"""Which device torch computes on.

Belongs here: the setting `device` and what it becomes on this machine, memory that is free there or runs out. Does not:
anything that is computed.
"""

import ctypes
from types import TracebackType
from typing import TYPE_CHECKING

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.memory import NotEnoughMemory, readable_bytes

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = ("out of memory", "_status_alloc_failed")
"""What CUDA, torch's own memory and libraries as cuBLAS say, in lower case."""
_INSTEAD = "end what else uses it, or use device cpu, or a smaller pool"


def cuda_or_cpu(wanted: str) -> str:
    """Return the device of a step that MPS cannot do, for it has no float64.

    `auto` is CUDA where there is one, else the CPU; `mps` is the CPU; others stay.

    Raises:
        InputError: where the device is not on this machine.
    """
    if wanted == "auto":
        return "cuda" if _has_cuda() else "cpu"
    return "cpu" if _present(wanted) == "mps" else wanted


def accelerator_or_cpu(wanted: str) -> str:
    """Return the device of a step that MPS can do: `auto` is CUDA where there is one, then MPS, then the CPU.

    Raises:
        InputError: where the device is not on this machine.
    """
    if wanted != "auto":
        return _present(wanted)
    return "cuda" if _has_cuda() else "mps" if _has_mps() else "cpu"


def torch_device(name: str) -> "torch.device":
    """Return a device by name.

    Raises:
        InputError: where torch cannot use it.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu") from None
    return device


def free_device_memory(device: "torch.device") -> int | None:
    """Return the bytes that this process can still take on a CUDA device; None on any other, with the machine's memory.

    What torch has taken there and holds nothing in, it gives to whoever asks next.
    """
    if device.type != "cuda":
        return None
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error says that a device's memory ran out; torch has several kinds for that."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


class DeviceMemory:
    """What some work needs on a device: looked for at once, and where it runs out all the same, that is told.

    The work is done `with` it, at once or part by part.

    Args:
        device: where; only a CUDA device is asked, for any other has the machine's memory.
        needed: bytes at the peak.
        what: the work, as in "NovelSelect of 10 out of 100".

    Raises:
        NotEnoughMemory: where so much is not free there, or torch finds no more within the work.
    """

    def __init__(self, device: "torch.device", needed: int, what: str) -> None:
        self._needs = f"{what} needs about {readable_bytes(needed)} on {device}"
        free = free_device_memory(device)
        if free is not None and needed > free:
            raise NotEnoughMemory(f"{self._needs} and {readable_bytes(free)} are free there; {_INSTEAD}")

    def __enter__(self) -> None:
        """Begin some of the work."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if is_out_of_memory(error):
            words = str(error).splitlines()[0]
            raise NotEnoughMemory(f"{self._needs}, whose memory ran out ({words}); {_INSTEAD}") from error


def _present(wanted: str) -> str:
    missing = (wanted.startswith("cuda") and not _has_cuda()) or (wanted == "mps" and not _has_mps())
    if missing:
        raise InputError(f"device {wanted} is not on this machine; use auto or cpu")
    return wanted


def _has_cuda() -> bool:
    # Without the driver there is no GPU, and torch, which takes seconds to load, need not be asked.
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
