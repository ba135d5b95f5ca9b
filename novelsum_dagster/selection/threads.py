"""Threads among which a search is shared.

Belongs here: dividing work among them. Does not: the work.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np

from novelsum_dagster.common.processors import usable_processors

_A = TypeVar("_A")
_T = TypeVar("_T")


class Threads:
    """A pool of `count` threads, by default one for each processor that the process may use."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or usable_processors()
        self._workers = ThreadPoolExecutor(self.count, thread_name_prefix="selection")

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()

    def each(self, work: Callable[[_A], _T], parts: Iterable[_A]) -> list[_T]:
        """Call `work` with each of some parts."""
        if self.count == 1:
            return [work(part) for part in parts]
        return list(self._workers.map(work, parts))

    def side_by_side(self, part: Callable[[tuple[int, int]], _T], size: int, alone: bool = False) -> list[_T]:
        """Call `part` with ranges that together cover `size` things, one range a thread unless `alone`."""
        if alone:
            return [part((0, size))]
        return self.each(part, pairwise(np.linspace(0, size, self.count + 1).astype(int).tolist()))
