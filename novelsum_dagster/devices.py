"""Which device torch computes on.

Belongs here: `auto` and what it becomes on this machine. Does not: anything that is computed.
"""

import ctypes

from novelsum_dagster.errors import InputError


def cuda_or_cpu(wanted: str) -> str:
    """Return the device meant by a setting: `auto` is CUDA where there is one, else the CPU; others stay.

    Raises:
        InputError: where the device is not on this machine.
    """
    if wanted == "auto":
        return "cuda" if _has_cuda() else "cpu"
    return _present(wanted)


def accelerator_or_cpu(wanted: str) -> str:
    """Return the device meant by a setting: `auto` is CUDA where there is one, then MPS, then the CPU; others stay.

    Raises:
        InputError: where the device is not on this machine.
    """
    if wanted != "auto":
        return _present(wanted)
    return "cuda" if _has_cuda() else "mps" if _has_mps() else "cpu"


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
