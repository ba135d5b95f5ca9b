"""The command `novelsum explore`: the local page over the lineage, and the pool as a file for embedding-atlas.

Belongs here: arguments, and streamlit's process. Does not: the page and the file (`explore`).
"""

import os
import socket
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from novelsum_dagster.cli.terminal import SettingsFile, run_group, say, settings_in
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.extras import install_command, lacks, require_extra
from novelsum_dagster.explore import RUN_VARIABLE

_EXTRA = "explore"
_MODULES = ("streamlit", "plotly")


def explore(
    settings: SettingsFile = None,
    run: Annotated[
        str | None, typer.Option("--run", "-r", help="Run, or the beginning of its id. Default: the newest.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8501,
    export: Annotated[
        Path | None,
        typer.Option(help="Write the run's pool for embedding-atlas to this .parquet file, and open no page."),
    ] = None,
) -> None:
    """Open a page on http://127.0.0.1:8501 that shows which samples were chosen, and why.

    It has the map of pool and subset, every sample's text and the reason for its outcome, the tables of the audit, and
    what changed between two runs. It asks nothing of any other host.

    Example: [bold]novelsum explore[/], [bold]novelsum explore --export pool.parquet[/]
    """
    chosen = settings_in(settings)
    if export is not None:
        _export(chosen.storage_path, run, export)
        return
    require_extra(_EXTRA, "novelsum explore", *_MODULES)
    # The newest run is found by the page, which also says so if there is none.
    os.environ.pop(RUN_VARIABLE, None)
    if run is not None:
        os.environ[RUN_VARIABLE] = _run_id(chosen.storage_path, run)
    say(f"The explorer: http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(run_group(streamlit_command(port)))


def page_beside(address: str, taken: int) -> list[list[str]]:
    """Return the command that serves the page at a local address; none where another program listens or serves it.

    Nor is there one where the extra `explore` is not installed, which is said.

    Args:
        address: of the page.
        taken: port that another program is about to take.

    Raises:
        InputError: where the page would be at that port.
    """
    place = urlsplit(address)
    # The page answers to this name alone; elsewhere it is another program's to serve it.
    if place.hostname != "127.0.0.1":
        return []
    if lacks(*_MODULES):
        say(f"Links to the explore page will lead nowhere: {install_command(_EXTRA)}")
        return []
    port = place.port or 80
    if port == taken:
        raise InputError(f"--port {port} is the explore page's (explore_url in the settings); name another")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            say(f"Port {port} is in use: links to the explore page lead to whatever is there.")
            return []
    return [streamlit_command(port)]


def streamlit_command(port: int) -> list[str]:
    """Return the command that serves the page, to this machine alone."""
    options = {
        "server.address": "127.0.0.1",
        "server.port": str(port),
        "server.allowedHosts": "127.0.0.1",
        "server.headless": "true",
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "server.enableAgentApi": "false",
        "browser.serverAddress": "127.0.0.1",
        "browser.gatherUsageStats": "false",
        "runner.magicEnabled": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "logger.hideWelcomeMessage": "true",
        "theme.base": "light",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    page = str(files(__package__).joinpath("explore", "page.py"))
    return [sys.executable, "-W", "ignore", "-m", "streamlit", "run", page, *given]


def _run_id(root: Path, run: str) -> str:
    from novelsum_dagster.lineage.runs import find_run
    from novelsum_dagster.lineage.store import LineageStore

    with LineageStore(root).reading() as connection:
        return find_run(connection, run).run_id


def _export(root: Path, run: str | None, path: Path) -> None:
    from novelsum_dagster.explore.atlas import export
    from novelsum_dagster.lineage.runs import find_run
    from novelsum_dagster.lineage.store import LineageStore

    if path.suffix != ".parquet":
        raise InputError(f"--export: {path} must end in .parquet")
    with LineageStore(root).reading() as connection:
        count = export(connection, root, find_run(connection, run), path)
    say(f"{count:,} samples written to {path}")
    say(f"embedding-atlas {path} --x x --y y --text text --neighbors neighbors")
