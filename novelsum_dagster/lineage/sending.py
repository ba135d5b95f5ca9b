"""What everything that is sent over the network has in common: a time limit, and errors that hold no secret.

Belongs here: that. Does not: what is sent, and where to (`openlineage`, `notify`).
"""

from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import RequestException


class NotSentError(Exception):
    """Says in plain words why something could not be sent; holds no secret."""


def within(seconds: float, act: Callable[[], None], name: str) -> None:
    """Run `act` in a thread of a name; leave it alone when it takes too long.

    Timeouts of sockets bound each wait, not their sum, and neither looking up a host's name nor a hanging file system.

    Raises:
        NotSentError: where it takes longer than `seconds`.
        Exception: whatever `act` raises.
    """
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    thread = Thread(target=attempt, name=name, daemon=True)  # A daemon does not hold up the process's end.
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NotSentError(_no_answer(seconds))
    if errors:
        raise errors[0]


def problem(error: "RequestException", seconds: float) -> str:
    """Return what went wrong with a request in plain words; the library's own words name the whole URL."""
    from requests import ConnectionError, Timeout

    if error.response is not None:
        return answered(error.response.status_code)
    if isinstance(error, Timeout):
        return _no_answer(seconds)
    return "it cannot be reached" if isinstance(error, ConnectionError) else type(error).__name__


def answered(status: int) -> str:
    """Return in words that an answer was not the one hoped for."""
    return f"it answered with HTTP status {status}"


def _no_answer(seconds: float) -> str:
    return f"no answer within {seconds:g} s"
