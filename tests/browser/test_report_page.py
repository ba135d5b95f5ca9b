"""The report as a person opens it: a file, without a network, on a screen and on a phone, and printed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from novelsum_dagster.report.page import write_page
from tests.browser.conftest import _FLAGS, CHROMIUM
from tests.unit.test_report_page import ATTACK, FIGURES, contents, hostile

PHONE = {"width": 390, "height": 844}
SCREEN = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose texts try to run scripts."""
    folder = tmp_path_factory.mktemp("report")
    of = contents(n=300, k=40, sources=(ATTACK, "plain", "x" * 300), text=ATTACK)
    of = replace(of, title=ATTACK, notes=(ATTACK,), settings={ATTACK: ATTACK}, explanation=hostile(of.explanation))
    write_page(folder, of)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Debian's Chromium; `make test-ui` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[SCREEN, PHONE], ids=["screen", "phone"])
def opened(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report with all its figures drawn; the network is off, and nothing may be asked of it or complained about."""
    context = browser.new_context(viewport=request.param, offline=True)
    page = context.new_page()
    noticed: list[str] = []
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else noticed.append(asked.url))
    page.goto(report.as_uri())
    for name in FIGURES:
        expect(page.locator(f"figure[data-chart={name}] :is(svg.marks, canvas.marks)")).to_be_visible()
    yield page
    assert noticed == []
    context.close()


def test_all_figures_are_drawn_and_described(opened: Page, shots: Path) -> None:
    for name in FIGURES:
        figure = opened.locator(f"figure[data-chart={name}]")
        box = figure.locator(":is(svg.marks, canvas.marks)").bounding_box()
        assert box is not None
        assert box["width"] <= opened.evaluate("innerWidth")
        assert min(box["width"], box["height"]) > 100
        assert len(figure.locator("[aria-label]").first.get_attribute("aria-label") or "") > 30
        expect(figure.locator("img")).to_be_hidden()
    for name in ("novelty", "coverage", "lengths"):
        assert opened.locator(f"figure[data-chart={name}] svg path").count() > 5
    colours = """canvas => new Set(new Uint32Array(
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    assert opened.locator("canvas.marks").evaluate(colours) > 20
    opened.screenshot(path=shots / f"report-{opened.evaluate('innerWidth')}.png", full_page=True)


def test_the_page_is_no_wider_than_the_window(opened: Page) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.evaluate("innerWidth")
    overhanging = """() => [...document.querySelectorAll("main *")]
        .filter((element) => !element.closest(".box") && element.getBoundingClientRect().right > innerWidth)
        .map((element) => element.outerHTML.slice(0, 80))"""
    assert opened.evaluate(overhanging) == []


def test_the_headline_is_read_without_swiping(opened: Page) -> None:
    for name in ("measures", "regions"):
        box = opened.locator(f"table.{name}").first.locator("..")
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    tops = [
        opened.locator(where).first.evaluate("element => element.getBoundingClientRect().top")
        for where in ("table.measures", "h3:has-text('Why they differ')", "table.covered", "table.regions")
    ]
    assert tops == sorted(tops)
    expect(opened.locator("table.measures tbody td.ahead")).to_have_text(["selected", "selected"])


def test_examples_are_texts(opened: Page) -> None:
    first = opened.locator("table.regions tbody td").nth(1)
    expect(first).to_contain_text("<script>window.broken = true</script>")
    assert first.locator("script, img").count() == 0


def test_injected_scripts_do_not_run(opened: Page) -> None:
    assert opened.evaluate("window.broken") is None
    expect(opened.locator("h1")).to_contain_text("<script>window.broken = true</script>")


def test_pointing_at_a_picked_sample_shows_it(opened: Page) -> None:
    _point_at_a_pick(opened)
    tip = opened.locator("#vg-tooltip-element.visible")
    expect(tip).to_contain_text("as number")
    expect(tip).to_contain_text("<script>window.broken")
    assert tip.locator("img, script").count() == 0
    box = tip.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= opened.evaluate("innerWidth") + 1


def _point_at_a_pick(page: Page) -> None:
    """Move the pointer onto the first dark blue dot of the map."""
    canvas = page.locator("figure[data-chart=map] canvas.marks")
    canvas.scroll_into_view_if_needed()
    # Below the legend, whose triangle is no sample.
    find = """canvas => {
        const ratio = canvas.width / canvas.clientWidth, width = canvas.width;
        const pixels = canvas.getContext('2d').getImageData(0, 0, width, canvas.height).data;
        for (let y = Math.round(40 * ratio); y < canvas.height; y++) for (let x = 0; x < width; x++) {
            const at = 4 * (y * width + x);
            if (pixels[at] < 45 && pixels[at + 2] > 120 && pixels[at + 2] < 180) return [x / ratio, (y + 2) / ratio];
        }
    }"""
    x, y = canvas.evaluate(find)
    canvas.hover(position={"x": x, "y": y})


def test_print_shows_the_still_pictures(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport={"width": 700, "height": 900})
    page.goto(report.as_uri())
    expect(page.locator("canvas.marks")).to_be_visible()
    page.emulate_media(media="print")
    for name in FIGURES:
        picture = page.locator(f"figure[data-chart={name}] img")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 900
        expect(page.locator(f"figure[data-chart={name}] > div")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_without_scripts_the_still_pictures_remain(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    for name in FIGURES:
        expect(page.locator(f"figure[data-chart={name}] img")).to_be_visible()
    context.close()
