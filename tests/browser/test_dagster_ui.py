"""The Dagster UI as a person uses it: the graph, a run started by a click, checks, plots and columns."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from novelsum_dagster.quality.suites import SUITES

ASSETS = [
    "raw_pool",
    "embeddings",
    "distinct_pool",
    "density",
    "sample_novelty",
    "selected_subset",
    "novelsum_report",
    "lineage",
]
GRAPH = "/asset-groups?expanded=" + ",".join(f"global@global:{name}" for name in ("data", "diversity", "selection"))
RUN_MILLISECONDS = 300_000


@pytest.fixture(scope="module", autouse=True)
def materialised(page: Page, shots: Path) -> None:
    """Start a run by a click and wait for its end, as every test here looks at its results."""
    page.goto(GRAPH)
    for name in ASSETS:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_text("View", exact=True).first.click()
    page.wait_for_url("**/runs/**")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=RUN_MILLISECONDS)
    _settle(page)
    page.screenshot(path=shots / "run.png")


def test_the_run_log_shows_progress(page: Page) -> None:
    page.get_by_placeholder("Filter…").fill("embedding: 240 of 240 (100%)")
    expect(page.get_by_text("embedding: 240 of 240 (100%)", exact=False).first).to_be_visible()


def test_every_asset_is_materialised_in_the_graph(page: Page, shots: Path) -> None:
    page.goto(GRAPH)
    for name in ASSETS:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    _settle(page)
    page.screenshot(path=shots / "graph.png")


def test_checks_show_their_results(page: Page, shots: Path) -> None:
    page.goto("/assets/raw_pool?view=checks")
    expect(page.get_by_text("counts_add_up").first).to_be_visible()
    expect(page.get_by_text("Passed", exact=True).first).to_be_visible()
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(sum(suite.step == "raw_pool" for suite in SUITES))
    _settle(page)
    page.screenshot(path=shots / "checks.png")


def test_columns_and_row_count_are_shown(page: Page) -> None:
    page.goto("/assets/selected_subset?view=overview")
    expect(page.get_by_text("nearest_distance", exact=True).first).to_be_visible()
    expect(page.get_by_text("cosine distance to it", exact=True).first).to_be_visible()
    expect(page.get_by_text("Row count").first).to_be_visible()


@pytest.mark.parametrize(
    ("asset", "picture"),
    [("selected_subset", "map"), ("sample_novelty", "histogram"), ("novelsum_report", "novelty")],
)
def test_plots_are_drawn(page: Page, shots: Path, asset: str, picture: str) -> None:
    page.goto(f"/assets/{asset}?view=events")
    page.get_by_text("[Show Markdown]").first.click()
    image = page.locator("img[src^='data:image/png']").first
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") > 100
    _settle(page)
    page.screenshot(path=shots / f"{asset}-{picture}.png")


def test_a_link_leads_to_the_page_that_says_why(page: Page, shots: Path) -> None:
    page.goto("/assets/selected_subset?view=events")
    link = page.locator("a[href*='/?run=']").first
    expect(link).to_be_visible()
    address = link.get_attribute("href") or ""
    run = address.partition("?run=")[2]
    page.goto(address)
    expect(page.get_by_text(run[:8], exact=True)).to_be_visible()
    expect(page.get_by_text("240 of 240 samples pass the filters")).to_be_visible(timeout=60_000)
    page.screenshot(path=shots / "linked.png")


def test_the_data_card_is_shown(page: Page, shots: Path) -> None:
    page.goto("/assets/data_card?view=events")
    page.get_by_text("[Show Markdown]").first.click()
    expect(page.get_by_text("How to cite")).to_be_visible()
    expect(page.get_by_text("No licence was given for")).to_be_visible()
    _settle(page)
    page.screenshot(path=shots / "card.png")


def _settle(page: Page) -> None:
    """Let transitions end, so that a screenshot shows what a person sees."""
    page.wait_for_timeout(1500)
