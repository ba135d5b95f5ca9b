"""The clock of the benchmarks."""

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """Return the seconds that some work took, and what it returned."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found
