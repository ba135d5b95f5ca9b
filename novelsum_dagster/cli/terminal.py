"""Shared parts of the commands: options, the settings file, tables, JSON, messages on stderr, child processes."""

import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import LogReporter, Reporter, TerminalReporter
from novelsum_dagster.settings import SETTINGS_VARIABLE, Settings, load_settings, mistake, settings_path

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", "-s", help=f"Settings file. Default: ${SETTINGS_VARIABLE}, else ./curation.yaml."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random draws.")]


def new_app(explained: str) -> typer.Typer:
    """Return a group of commands with a common style."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help=explained,
    )


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a dataclass by the fields of that dataclass, as options of the command."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    parameters = []
    for name, parameter in signature.parameters.items():
        shown = inspect.signature(groups[name]).parameters.values() if name in groups else [parameter]
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in shown]

    @wraps(command)
    def expanded(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return expanded


def say(text: str) -> None:
    """Print to standard error; standard output is for results."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as JSON; what JSON lacks, such as times, as text."""
    print(json.dumps(value, indent=2, default=str))


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Collection[str] = (),
    totals: Iterable[Sequence[str]] = (),
    caption: str | None = None,
    min_width: int | None = None,
    stderr: bool = False,
) -> None:
    """Print a table. Only the first column is never wrapped; in others, a word that is too long is broken, not cut.

    Args:
        title: above the table; None: no title.
        columns: their names; without any non-empty name, the table has no header.
        rows: cells, in the order of the columns.
        text: columns with text, aligned to the left; the others have numbers, aligned to the right.
        totals: rows below a line.
        caption: below the table.
        min_width: of columns with numbers, in characters.
        stderr: print it to standard error, as where standard output has records.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title and escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.show_header = any(columns)
    for name in columns:
        look: dict[str, Any] = {} if name in text else {"justify": "right", "min_width": min_width}
        table.add_column(escape(name), overflow="fold", no_wrap=not table.columns, **look)
    for row in rows:
        table.add_row(*map(escape, row))
    for number, row in enumerate(totals):
        if not number:
            table.add_section()
        table.add_row(*map(escape, row))
    Console(stderr=stderr).print(table)


def new_reporter() -> Reporter:
    """Return a reporter that draws bars in a terminal and writes lines elsewhere."""
    if not sys.stderr.isatty():
        return LogReporter(say)
    return TerminalReporter(os.fdopen(os.dup(sys.stderr.fileno()), "w"))


def settings_in(path: Path | None) -> Settings:
    """Read the settings file in force, and pass its name on to Dagster's processes.

    Raises:
        InputError: if the file is missing or invalid.
    """
    chosen = path.expanduser().resolve() if path else settings_path()
    if not chosen.exists():
        raise InputError(
            f"{chosen}: no such settings file. A minimal one is:\n\n"
            "pool:\n  sources:\n    - path: my-data/*.jsonl\nselection:\n  k: 1000\n"
        )
    settings = load_settings(chosen)
    os.environ[SETTINGS_VARIABLE] = str(chosen)
    return settings


def validated(section: type[Any], /, **values: Any) -> Any:
    """Return a section of the settings from a command's options.

    Raises:
        InputError: naming the option that is wrong.
    """
    from pydantic import ValidationError

    try:
        return section(**values)
    except ValidationError as error:
        found = error.errors()[0]
        option = f"--{str(found['loc'][0]).replace('_', '-')}: " if found["loc"] else ""
        raise InputError(option + mistake(found)) from None


def folder_to_write(option: str, folder: Path) -> Path:
    """Return a folder that can be written to, whether or not it exists yet.

    Raises:
        InputError: if it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {folder} is a file; name a folder")
    return folder


def require_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over a file that is read, and report which files will be replaced; None is left out.

    Raises:
        InputError: if an output is one of the inputs, or is named twice.
    """
    read = [path for path in inputs if path is not None and path.exists()]
    written = [path for path in outputs if path is not None]
    there = [path for path in written if path.is_file()]
    for path in there:
        if any(path.samefile(one) for one in read):
            raise InputError(f"{path} is one of the inputs; write to another file")
    if len({path.resolve() for path in written}) < len(written):
        raise InputError(f"{', '.join(map(str, written))}: two outputs have one name; write them to different files")
    if there:
        say(f"will be replaced: {', '.join(map(str, there))}")


def is_port_in_use(port: int) -> bool:
    """Return whether a program listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def require_free_port(port: int) -> None:
    """Require that no program listens on a port of this machine.

    Raises:
        InputError: if one does.
    """
    if is_port_in_use(port):
        raise InputError(f"--port {port}: another program listens there; choose another port, or stop that program")


def run_group(command: list[str], *beside: list[str]) -> int:
    """Run a command until it exits, or until Ctrl-C, SIGTERM or a closed terminal stops it; return its exit code.

    Args:
        command: the program.
        beside: programs that run as long as it does; all are stopped with all their children.
    """
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Ignored under nohup.
        signal.signal(signal.SIGHUP, _leave)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for one in (command, *beside):
            processes.append(subprocess.Popen(one, start_new_session=True, preexec_fn=_heed_interrupts))
        return processes[0].wait()
    except KeyboardInterrupt:
        return 130
    finally:
        _end_groups(processes)


def _leave(received: int, _: object) -> None:
    sys.exit(128 + received)


def _heed_interrupts() -> None:
    """Let SIGINT stop a child gracefully, even if a shell started us in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_groups(processes: "list[subprocess.Popen[bytes]]") -> None:
    """Terminate process groups, and kill those that still run after ten seconds."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # A second Ctrl-C must not leave programs running.
    end = time.monotonic() + 10
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(1, end - time.monotonic()))
