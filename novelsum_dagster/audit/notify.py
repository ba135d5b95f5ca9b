"""Notification of changes: a message to a webhook in the format of Slack.

Belongs here: the message, sending it once, which messages are still to be sent. Does not: what changed (`changes`).

The URL of a webhook is a secret, so settings name the environment variable that holds it, and nothing that is written,
logged or raised here contains the URL. A curation never fails because of a message, and waits for one no longer than
`SECONDS`.

The file `changes=<key>.sent` beside the folder `changes=<key>` marks a delivered message, `changes=<key>.unsent` a
failed one.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from novelsum_dagster.artifacts.layout import CHANGES, output_folder
from novelsum_dagster.audit.changes_words import summary
from novelsum_dagster.audit.comparison import EXAMPLES, Changes, Comparison
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes
from novelsum_dagster.lineage.sending import NotSentError, answered, session_to, within

SECONDS = 5.0
_SENT, _UNSENT = ".sent", ".unsent"


def notify(root: Path, changes: Changes, variable: str, warn: Callable[[str], object], seconds: float = SECONDS) -> str:
    """Send the message of a comparison unless it was sent, after those that failed earlier; return the outcome.

    Args:
        root: the storage folder.
        changes: the newest comparison.
        variable: the environment variable that holds the URL.
        warn: called with one line if a message could not be sent.
        seconds: the longest wait for a message.
    """
    url = os.environ.get(variable, "").strip()
    if not url:
        warn(f"notify.webhook_variable: the environment variable {variable} is not set; no notification was sent")
        return f"not sent: {variable} is not set"
    for one, compared in _due(root, changes):
        reason = _failure(url, compared, seconds)
        if reason is not None:
            write_bytes(b"", _marker(root, one, _UNSENT))
            warn(f"the notification to the webhook of {variable} failed: {reason}; the next run tries again")
            return f"not sent: {reason}"  # A failure may take the whole timeout, so there is at most one per run.
        write_bytes(b"", _marker(root, one, _SENT))
        _marker(root, one, _UNSENT).unlink(missing_ok=True)
    return "sent" if _marker(root, changes, _SENT).exists() else "nothing to send"


def _due(root: Path, newest: Changes) -> Iterator[tuple[Changes, Comparison]]:
    """Yield the comparisons still to be sent, oldest first."""
    failed = sorted((root / CHANGES).glob(f"changes=*{_UNSENT}"), key=lambda path: path.stat().st_mtime_ns)
    keys = [path.name.removeprefix("changes=").removesuffix(_UNSENT) for path in failed]
    for key in [*(key for key in keys if key != newest.key), newest.key]:
        changes = Changes(key=key, folder=output_folder("changes", key))
        if _marker(root, changes, _SENT).exists():
            continue
        try:
            compared = changes.comparison(root)
        except InputError:  # It has been deleted.
            _marker(root, changes, _UNSENT).unlink(missing_ok=True)
            continue
        if compared.before is not None:
            yield changes, compared


def _marker(root: Path, changes: Changes, ending: str) -> Path:
    return root / f"{changes.folder}{ending}"


def _failure(url: str, compared: Comparison, seconds: float) -> str | None:
    """Send one message; return the reason of a failure, without any secret."""
    try:
        within(seconds, partial(_post, url, message(compared), seconds), "notify")
    except NotSentError as error:
        return str(error)
    except Exception as error:  # A failed message must not stop a curation.
        return type(error).__name__  # Its text may hold the URL.
    return None


def message(compared: Comparison) -> dict[str, Any]:
    """Return the body to post: `text` as shown by Slack, and `changes` for programs."""
    text = "\n".join(summary(compared))
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, escaped)  # Prevents a file name from mentioning a channel.
    data = compared.model_dump(mode="json")
    data["files"] = {
        verb: {"count": len(names), "examples": names[:EXAMPLES]} for verb, names in (data["files"] or {}).items()
    }
    return {"text": text, "changes": data}


def _post(url: str, body: dict[str, Any], seconds: float) -> None:
    """Post once, to this address and no other.

    Raises:
        NotSentError: as `session_to` does, and for a status that is no success.
    """
    with session_to(url, seconds) as session, _silence():
        answer = session.post(url, json=body, timeout=seconds, allow_redirects=False)
    if not 200 <= answer.status_code < 300:
        raise NotSentError(answered(answer.status_code))


@contextmanager
def _silence() -> Iterator[None]:
    """Filter this thread's records out of urllib3's log: at level DEBUG they contain the path of every URL."""
    thread = threading.get_ident()

    def is_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("urllib3")]
    for logger in loggers:
        logger.addFilter(is_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_others)
