"""The documentation says what the code does. `python -m tests.unit.test_docs` rewrites docs/settings.md."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from novelsum_dagster.cli.files import FileOptions
from novelsum_dagster.cli.oneshot import embedded_files
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.lineage.models import models
from novelsum_dagster.quality.suites import SUITES
from novelsum_dagster.settings import CACHE_VARIABLE, Quota, Settings, Source, load_settings
from tests import study_tables
from tests.pools import alpaca, write_jsonl
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
HEAD = """# Settings

One YAML file, read by `novelsum run` and by Dagster: `--settings FILE`, else `$NOVELSUM_SETTINGS`, else
`curation.yaml` in the working folder. Relative paths start at the file's folder. Mistakes are reported with line and
key. [curation.yaml](../curation.yaml) is an example.

| key | default | meaning |
|---|---|---|
"""


LISTS: dict[str, type[BaseModel]] = {"pool.sources": Source, "selection.quotas": Quota}
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def settings_page() -> str:
    """Return docs/settings.md as the settings model has it."""
    return HEAD + "".join(f"| `{key}` | {default} | {text} |\n" for key, default, text in _rows(Settings, ""))


def _rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        if name == "base":
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += _rows(kind, f"{key}.")
        else:
            default = "required" if field.is_required() else _shown(field.default)
            rows.append((key, default, field.description or ""))
            if key in LISTS:
                rows += _rows(LISTS[key], f"{key}[].")
    return rows


def _shown(default: Any) -> str:
    if default is None or default in ((), {}):
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_every_setting_is_documented() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_the_example_settings_are_valid() -> None:
    settings = load_settings(ROOT / "curation.yaml")
    assert settings.selection.k == 300


def _outside_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _outside_code(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def _python(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", _outside_code(path)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in _anchors(target), link


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (path.name for path in ROOT.glob("docs/*.md") if path.name != "index.md"):
        assert f"]({page}" in index, page


@pytest.mark.parametrize("page", [page for page in PAGES if _python(page)])
def test_python_blocks_compile(page: str) -> None:
    for block in _python(page):
        compile(block, page, "exec")


def test_the_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    options = FileOptions(model=tiny_model())
    pool = options.pool([write_jsonl(tmp_path / "pool.jsonl", alpaca(130))])
    with embedded_files(pool, options.embedding(), LogReporter(lambda line: None)) as files:
        found: dict[str, Any] = {"embeddings": files.vectors}
    exec(_python("README.md")[0], found)
    assert len(set(found["picks"].indices.tolist())) == 100
    assert float(capsys.readouterr().out) > 0


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 900


def test_the_numbers_of_checks_and_models_are_right() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"{len(SUITES)} checks" in readme
    assert f"{len(models())} SQL models" in readme


@pytest.mark.slow
def test_the_tables_of_the_studies_are_those_of_their_files() -> None:
    assert study_tables.PAGE.read_text(encoding="utf-8") == study_tables.page_with_tables()


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page())
