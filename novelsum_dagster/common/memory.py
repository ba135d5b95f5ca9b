"""Available memory, and a clear error before work starts that would not fit.

Belongs here: the limit of the machine or container, the error. Does not: the needs of any work.
"""

from pathlib import Path

from novelsum_dagster.common.errors import InputError

_CGROUP = Path("/sys/fs/cgroup")
"""Files with the memory limit of a container (cgroup v2)."""


class NotEnoughMemory(InputError):
    """Work does not fit into memory; the message says what would."""


def available_memory() -> int:
    """Return the bytes that this process can still allocate: the machine's, or the container's if that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):
        return available


def require_memory(needed: int, what: str, instead: str) -> None:
    """Raise `NotEnoughMemory` if `needed` bytes are not available.

    Args:
        needed: bytes at the peak, in addition to those in use.
        what: the work, e.g. "QDIT over 396,000 samples".
        instead: what would fit, as a sentence without a full stop.
    """
    available = available_memory()
    if needed > available:
        raise NotEnoughMemory(
            f"{what} needs about {readable_bytes(needed)} of memory and {readable_bytes(available)} are available;"
            f" {instead}"
        )


def readable_bytes(size: float) -> str:
    """Return a size in readable units, e.g. "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
