"""Work in independent parts.

Belongs here: the interface for such work, and its serial implementation. Does not: other implementations (`engine`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Spread = Callable[[Any, Iterable[Callable[[Any], Any]]], Iterator[Any]]
"""Calls functions with a shared object and yields their results in order: `in_turn`, or an engine's.

The functions and the shared object must be picklable.
"""


def in_turn(shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
    """Call the functions one after the other, in this process."""
    return (ask(shared) for ask in asks)
