"""The explorer as a person uses it: map, search, a sample's text and why; nothing asked of others or left running."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import _FLAGS, CHROMIUM, _alive
from tests.machines import wait_for
from tests.pools import alpaca, write_jsonl, write_settings

ATTACK = "<script>window.broken = true</script><img src=x onerror='window.broken = true'>"
MARKED = f"Say **zebra** [here](http://example.org/) {ATTACK}"
# WebGL by software, as the map needs it where there is no GPU.
_WEBGL = [flag for flag in _FLAGS if flag != "--disable-gpu"] + [
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
_PIXELS = """() => {
    const counts = [...document.querySelectorAll(".js-plotly-plot canvas")].map((canvas) => {
        const copy = document.createElement("canvas");
        [copy.width, copy.height] = [canvas.width, canvas.height];
        const context = copy.getContext("2d");
        context.drawImage(canvas, 0, 0);
        const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
        let drawn = 0;
        for (let at = 3; at < pixels.length; at += 4) drawn += pixels[at] > 0;
        return drawn;
    });
    return Math.max(0, ...counts);
}"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a real run over a small pool, one of whose texts and sources tries to run scripts."""
    folder = tmp_path_factory.mktemp("explore")
    write_jsonl(folder / "pool" / "reference.jsonl", alpaca(160))
    write_jsonl(folder / "pool" / "<b onclick=alert(1)>*x*.jsonl", [{"instruction": MARKED, "output": ATTACK}])
    path = write_settings(folder)
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    command = [sys.executable, "-m", "novelsum_dagster", "run", "--settings", str(path), "--json"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return path


@pytest.fixture(scope="module")
def explorer(settings: Path) -> Iterator[str]:
    """The address of `novelsum explore`; it must end as a whole when it is told to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "novelsum_dagster", "explore", "--settings", str(settings), "--port", str(port)]
    log = settings.parent / "explore.log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", server, log)
        assert len(_alive(settings)) >= 1
        assert _listening(port) == {"0100007F"}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 143
        assert _alive(settings) == [], "the explorer left processes behind"


def _listening(port: int) -> set[str]:
    """Return the addresses on which a port is open, as Linux writes them; with those of IPv6."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


@pytest.fixture(scope="module")
def opened(explorer: str) -> Iterator[Page]:
    """The page with its map drawn; nothing may be asked of any other host, and no script of the data's may run."""
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Debian's Chromium; `make test-ui` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_WEBGL)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(60_000)
        own = (explorer, explorer.replace("http", "ws"), "data:", "blob:")
        asked: list[str] = []
        page.on("request", lambda request: None if request.url.startswith(own) else asked.append(request.url))
        page.on("websocket", lambda socket: None if socket.url.startswith(own) else asked.append(socket.url))
        page.goto(explorer)
        expect(page.get_by_text("161 of 161 samples pass the filters")).to_be_visible()
        page.wait_for_function(f"({_PIXELS})() > 500")
        yield page
        assert asked == []
        assert page.evaluate("window.broken") is None
        browser.close()


def test_the_map_is_drawn_without_a_traceback(opened: Page, shots: Path) -> None:
    expect(opened.get_by_text("picked (20)")).to_be_visible()
    expect(opened.locator("[data-testid=stException], [data-testid=stAlertContentError]")).to_have_count(0)
    expect(opened.get_by_text("Deploy")).to_have_count(0)
    opened.screenshot(path=shots / "explore-map.png")


@pytest.mark.parametrize("width", [420, 1500])
def test_the_page_is_dark_where_the_system_is_and_fits_a_phone(
    opened: Page, explorer: str, shots: Path, width: int
) -> None:
    """A second page beside the first, which stays as it is."""
    browser = opened.context.browser
    assert browser is not None
    context = browser.new_context(color_scheme="dark", viewport={"width": width, "height": 950})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(explorer)
    expect(page.get_by_text("161 of 161 samples pass the filters")).to_be_visible()
    page.wait_for_function(f"({_PIXELS})() > 100")
    background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    assert max(int(value) for value in re.findall(r"\d+", background)[:3]) < 60, background
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=shots / f"explore-dark-{width}.png")
    context.close()


def test_search_shows_the_text_and_why_and_runs_nothing(opened: Page, shots: Path) -> None:
    opened.get_by_placeholder("start of an id").fill("**zebra**")
    opened.keyboard.press("Enter")
    code = opened.locator("[data-testid=stCode]")
    expect(code).to_contain_text(MARKED)
    expect(opened.get_by_text("It is from")).to_contain_text("<b onclick=alert(1)>*x*.jsonl:1")
    expect(opened.get_by_text("sample looked up")).to_be_visible()
    assert opened.locator("img[src=x], a[href*='example.org'], b[onclick]").count() == 0
    opened.screenshot(path=shots / "explore-search.png")


def test_names_of_sources_are_shown_as_they_are(opened: Page) -> None:
    opened.locator("[data-testid=stMultiSelect] input").click()
    expect(opened.get_by_role("option").filter(has_text="*x*")).to_contain_text("<b onclick=alert(1)>*x*")
    opened.keyboard.press("Escape")
    opened.get_by_text("source", exact=True).first.click()
    expect(opened.locator(".legendtext").filter(has_text="*x*")).to_have_text("<b onclick=alert(1)>*x* (1)")
    assert opened.locator("b[onclick]").count() == 0


def test_a_click_on_a_pick_shows_it(opened: Page, settings: Path) -> None:
    opened.get_by_text("picked", exact=True).first.click()
    expect(opened.get_by_text("20 of 161 samples pass the filters")).to_be_visible()
    opened.wait_for_function(f"({_PIXELS})() > 100")
    place = """() => {
        const plot = document.querySelector(".js-plotly-plot");
        const points = plot?._fullData?.find((trace) => trace.marker.symbol === "diamond" && trace.x.length > 1);
        if (!points) return null;  // Between two figures.
        const {xaxis, yaxis} = plot._fullLayout;
        const box = plot.getBoundingClientRect();
        return [box.x + xaxis._offset + xaxis.d2p(points.x[0]), box.y + yaxis._offset + yaxis.d2p(points.y[0])];
    }"""
    for _ in range(30):  # The figure before this one stays in the page for a while, with other places.
        x, y = opened.wait_for_function(place).json_value()
        opened.mouse.move(x, y)
        opened.wait_for_timeout(300)
        if opened.locator(".hoverlayer .hovertext").count():
            break
        opened.mouse.move(x + 200, y + 200)
    opened.mouse.click(x, y)
    expect(opened.get_by_text("Picked as number")).to_be_visible()
    shown = opened.locator("[data-testid=stCode]").inner_text()
    subset = next((settings.parent / "curated" / "selections").glob("*/subset.jsonl")).read_text().splitlines()
    assert any(shown.startswith(json.loads(line)["instruction"][:60]) for line in subset)


def test_the_audit_tables_are_shown(opened: Page, shots: Path) -> None:
    for view in ("Picks", "Sources", "Runs"):
        opened.get_by_role("radio", name=view, exact=True).click()
        expect(opened.locator("[data-testid=stDataFrame] canvas").first).to_be_visible()
        expect(opened.locator("[data-testid=stDownloadButton]").first).to_be_visible()
    opened.screenshot(path=shots / "explore-runs.png")
