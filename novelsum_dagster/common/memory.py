"""How much memory there is, and a clear word before work starts that would not fit.

Belongs here: the limit of this process's machine or container, the refusal. Does not: what any work needs.
"""

from pathlib import Path

from novelsum_dagster.common.errors import InputError

_CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limit (cgroup v2)."""


class NotEnoughMemory(InputError):
    """Work does not fit; the message says what would."""


def available_memory() -> int:
    """Return the bytes that this process can still take: the machine's, or the container's where that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):
        return available


def require_memory(needed: int, what: str, instead: str) -> None:
    """Raise `NotEnoughMemory` where `needed` bytes are not there.

    Args:
        needed: bytes at the peak, on top of what is held already.
        what: the work, as in "QDIT over 396,000 samples".
        instead: what would fit, as a sentence without its full stop.
    """
    available = available_memory()
    if needed > available:
        raise NotEnoughMemory(
            f"{what} needs about {readable_bytes(needed)} of memory and {readable_bytes(available)} are available;"
            f" {instead}"
        )


def readable_bytes(size: float) -> str:
    """Return a size as people read it, as in "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
