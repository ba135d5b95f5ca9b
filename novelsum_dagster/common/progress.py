"""Progress reporting for long-running work: one callback, shown as a terminal bar or as log lines.

Belongs here: the `Progress` callback, its log and terminal forms. Does not: anything specific to the work.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)`; a `total` of 0 means that it is not known yet."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


class Reporter(Protocol):
    """Opens one `Progress` for each named step."""

    def step(self, name: str) -> AbstractContextManager[Progress]: ...


def describe(name: str, done: int, total: int, seconds: float) -> str:
    """Return one line: items done, total, rate, and the time left."""
    rate = done / seconds if seconds > 0 else 0.0
    if not total:
        return f"{name}: {done:,} done, {rate:,.0f}/s"
    line = f"{name}: {done:,} of {total:,} ({done / total:.0%}), {rate:,.0f}/s"
    if rate and done < total:
        minutes, left = divmod(round((total - done) / rate), 60)
        line += f", {minutes} min {left:02d} s left"
    return line


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. "1 file" or "2,000 files"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class LogReporter:
    """Writes a line every `every` seconds, and one at the end, to `log`."""

    def __init__(self, log: Callable[[str], object], every: float = 5.0) -> None:
        self._log = log
        self._every = every

    @contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        started = time.monotonic()
        last_written = started
        latest = written = (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal last_written, latest, written
            latest = (done, total)
            now = time.monotonic()
            if now - last_written >= self._every:
                last_written, written = now, latest
                self._log(describe(name, done, total, now - started))

        yield progress
        if latest != written:
            self._log(describe(name, *latest, time.monotonic() - started))


class TerminalReporter:
    """Draws a bar with the time left on a stream; draws nothing if the stream is not a terminal.

    Args:
        stream: where to draw. Dagster captures the process's standard error while a step runs, so a visible bar needs
            a duplicate of it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(file=self._stream)
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total or None)
