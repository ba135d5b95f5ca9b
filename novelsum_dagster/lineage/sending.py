"""Sending over the network with a time limit and error messages without secrets.

Does not belong here: what is sent, and where to (`openlineage`, `notify`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import RequestException, Session


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


@contextmanager
def session_to(url: str, seconds: float) -> "Iterator[Session]":
    """Yield a session for one request to this address and no other, of which only the status of the answer is needed.

    Raises:
        NotSentError: if the URL is not one; instead of the library's errors, which contain the URL.
    """
    from requests import RequestException, Session

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotSentError("it is not a URL with http or https")
    with Session() as session:
        session.trust_env = False  # No proxy, and no password from ~/.netrc.
        session.max_redirects = 0
        session.stream = True
        try:
            yield session
        except RequestException as error:
            raise NotSentError(_problem(error, seconds)) from None


def _problem(error: "RequestException", seconds: float) -> str:
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
