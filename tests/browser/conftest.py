"""The Dagster UI over a small pool, and a browser to look at it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.machines import wait_for
from tests.pools import alpaca, write_jsonl, write_settings

CHROMIUM = "/usr/bin/chromium"
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default=None, help="folder that the browser tests write screenshots to")


@pytest.fixture(scope="session")
def shots(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = request.config.getoption("--screenshots")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def dagster_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `novelsum ui` over a pool of 240 samples, nothing materialised yet."""
    folder = tmp_path_factory.mktemp("ui")
    write_jsonl(folder / "pool" / "reference.jsonl", alpaca(160))
    write_jsonl(folder / "pool" / "more.jsonl", alpaca(80, start=160))
    port, explorer = _free_port(), _free_port()
    settings = write_settings(folder, explore_url=f"http://127.0.0.1:{explorer}")
    command = [sys.executable, "-m", "novelsum_dagster", "ui", "--settings", str(settings), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    with (folder / "ui.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/server_info", server, folder / "ui.log")
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        assert _alive(settings) == [], "the UI left processes behind"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _alive(settings: Path) -> list[str]:
    """Return the commands of the UI's processes that are still there, found by the settings in their environment."""
    marker = f"NOVELSUM_SETTINGS={settings}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker in environment.read_bytes():
                found.append((environment.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def page(dagster_ui: str) -> Iterator[Page]:
    """A page of one browser that all tests of a module share."""
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Debian's Chromium; `make test-ui` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 850}, base_url=dagster_ui)
        page.set_default_timeout(60_000)
        yield page
        browser.close()
