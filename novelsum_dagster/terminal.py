"""What every command of the terminal shares: words on stderr, progress, the settings file, options, child processes.

Belongs here: that. Does not: any command (`cli`, `cli_study`).
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from novelsum_dagster.errors import InputError
from novelsum_dagster.progress import LogReporter, Reporter, TerminalReporter
from novelsum_dagster.settings import SETTINGS_VARIABLE, Settings, load_settings, settings_path

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", "-s", help=f"Settings file. Default: ${SETTINGS_VARIABLE}, else ./curation.yaml."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything that is drawn.")]


def new_app(explained: str) -> typer.Typer:
    """Return a group of commands that all look alike."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help=explained,
    )


def say(text: str) -> None:
    """Print to standard error, which leaves standard output to results."""
    print(text, file=sys.stderr)


def new_reporter() -> Reporter:
    """Return a reporter that draws bars in a terminal and writes lines elsewhere."""
    if not sys.stderr.isatty():
        return LogReporter(say)
    return TerminalReporter(os.fdopen(os.dup(sys.stderr.fileno()), "w"))


def settings_in(path: Path | None) -> Settings:
    """Read the settings file in force, and pass its name on to Dagster's processes.

    Raises:
        InputError: where there is none, or it has mistakes.
    """
    chosen = path.expanduser().resolve() if path else settings_path()
    if not chosen.exists():
        raise InputError(
            f"{chosen}: no such settings file. The least one is:\n\n"
            "pool:\n  sources:\n    - path: my-data/*.jsonl\nselection:\n  k: 1000\n"
        )
    settings = load_settings(chosen)
    os.environ[SETTINGS_VARIABLE] = str(chosen)
    return settings


def folder_to_write(option: str, folder: Path) -> Path:
    """Return a folder that may be written to, there already or not.

    Raises:
        InputError: where it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {folder} is a file; name a folder")
    return folder


def run_group(command: list[str], *beside: list[str]) -> int:
    """Run a command until it ends, or Ctrl-C, SIGTERM or a closed terminal ends it; return its exit code.

    Args:
        command: the program.
        beside: programs that run as long as it does; all end with all their children.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    processes = [subprocess.Popen(one, start_new_session=True) for one in (command, *beside)]
    try:
        return processes[0].wait()
    except KeyboardInterrupt:
        return 130
    finally:
        for process in processes:
            _end_group(process)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process group to end, and end it if it has not within ten seconds."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
