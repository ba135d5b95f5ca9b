"""Sending over the network with a time limit and error messages without secrets.

Does not belong here: what is sent, and where to (`openlineage`, `notify`).
"""

from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import RequestException


class NotSentError(Exception):
    """A message could not be sent; the text contains no secret."""


def within(seconds: float, act: Callable[[], None], name: str) -> None:
    """Run `act` in a thread of the given name; abandon it if it takes too long.

    Socket timeouts bound each wait but not their sum, and bound neither DNS lookups nor a hanging file system.

    Raises:
        NotSentError: if it takes longer than `seconds`.
        Exception: whatever `act` raises.
    """
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    thread = Thread(target=attempt, name=name, daemon=True)  # A daemon thread does not delay the end of the process.
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NotSentError(_no_answer(seconds))
    if errors:
        raise errors[0]


def problem(error: "RequestException", seconds: float) -> str:
    """Describe a failed request; the library's own message contains the whole URL."""
    from requests import ConnectionError, Timeout

    if error.response is not None:
        return answered(error.response.status_code)
    if isinstance(error, Timeout):
        return _no_answer(seconds)
    return "it cannot be reached" if isinstance(error, ConnectionError) else type(error).__name__


def answered(status: int) -> str:
    """Describe an unexpected HTTP status."""
    return f"it answered with HTTP status {status}"


def _no_answer(seconds: float) -> str:
    return f"no answer within {seconds:g} s"
