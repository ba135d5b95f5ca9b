"""Work in parts that do not depend on each other.

Belongs here: how such work is asked for, and the plain way to do it. Does not: other ways (`engine`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Spread = Callable[[Any, Iterable[Callable[[Any], Any]]], Iterator[Any]]
"""Calls functions with what they share and yields what they return, in their order: `in_turn`, or an engine's.

Both the functions and what they share must be such that they can be sent to other processes.
"""


def in_turn(shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
    """Call one function after the other, in this process."""
    return (ask(shared) for ask in asks)
