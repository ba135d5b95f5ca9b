"""The command `novelsum explore`: a local page over the lineage, and the pool exported for embedding-atlas.

Belongs here: arguments, and Streamlit's process. Does not: the page and the export (`explore`).
"""

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from novelsum_dagster.cli.terminal import SettingsFile, is_port_in_use, run_group, say, settings_in
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
    """Open a page on http://127.0.0.1:8501 that shows which samples were picked, and why.

    It shows the map of pool and subset, every sample's text and the reason for its outcome, the audit tables, and
    what changed between two runs. It makes no request to any other host.

    Example: [bold]novelsum explore[/], [bold]novelsum explore --export pool.parquet[/]
    """
    chosen = settings_in(settings)
    if export is not None:
        _export(chosen.storage_path, run, export)
        return
    require_extra(_EXTRA, "novelsum explore", *_MODULES)
    # Without --run, the page looks up the newest run, and reports it if no run exists.
    os.environ.pop(RUN_VARIABLE, None)
    if run is not None:
        os.environ[RUN_VARIABLE] = _run_id(chosen.storage_path, run)
    say(f"The explorer: http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(run_group(streamlit_command(port)))


def page_beside(address: str, taken: int) -> list[list[str]]:
    """Return the command that serves the explore page at a local address.

    The list is empty if another program listens or serves there, or if the extra `explore` is not installed (reported
    on stderr).

    Args:
        address: of the page.
        taken: port that another program is about to use.

    Raises:
        InputError: if the page would use that port.
    """
    place = urlsplit(address)
    # The page accepts this host name only; at any other address, another program serves it.
    if place.hostname != "127.0.0.1":
        return []
    if lacks(*_MODULES):
        say(f"The explore page is not served, so links to it will not work: {install_command(_EXTRA)}")
        return []
    port = place.port or 80
    if port == taken:
        raise InputError(f"--port {port} is the explore page's (explore_url in the settings); name another")
    if is_port_in_use(port):
        say(f"Port {port} is in use: links to the explore page open the program that listens there.")
        return []
    return [streamlit_command(port)]


def streamlit_command(port: int) -> list[str]:
    """Return the command that serves the page on 127.0.0.1 only."""
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
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    page = str(files("novelsum_dagster").joinpath("explore", "page.py"))
    return [sys.executable, "-W", "ignore", "-m", "streamlit", "run", page, *given]


def _run_id(root: Path, run: str) -> str:
    from novelsum_dagster.lineage.runs import find_run
    from novelsum_dagster.lineage.store import LineageStore

    with LineageStore(root).reading() as connection:
        return find_run(connection, run).run_id


def _export(root: Path, run: str | None, path: Path) -> None:
    from novelsum_dagster.audit.verified import verified_run
    from novelsum_dagster.explore.atlas import export
    from novelsum_dagster.lineage.store import LineageStore

    if path.suffix != ".parquet":
        raise InputError(f"--export: {path} must end in .parquet")
    with LineageStore(root).reading() as connection:
        count = export(connection, root, verified_run(connection, root, run), path)
    say(f"{count:,} samples written to {path}")
    say(f"embedding-atlas {path} --x x --y y --text text --neighbors neighbors")
