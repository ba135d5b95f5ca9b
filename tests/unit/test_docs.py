"""The documentation says what the code does. `python -m tests.unit.test_docs` rewrites docs/settings.md."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from novelsum_dagster import diversity, selection, settings
from novelsum_dagster.lineage.models import models
from novelsum_dagster.quality.suites import SUITES
from novelsum_dagster.settings import CACHE_VARIABLE, Quota, Settings, Source, load_settings
from tests import study_tables
from tests.blocks import blocks as code_blocks

ROOT = Path(__file__).resolve().parents[2]
HEAD = """# Settings

One YAML file, read by `novelsum run` and by Dagster: `--settings FILE`, else `$NOVELSUM_SETTINGS`, else
`curation.yaml` in the working folder. Relative paths start at the file's folder. Mistakes are reported with line and
key. [curation.yaml](../curation.yaml) is an example.

| key | default | meaning |
|---|---|---|
"""


LISTS: dict[str, type[BaseModel]] = {"pool.sources": Source, "selection.quotas": Quota}
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


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
    assert load_settings(ROOT / "curation.yaml").selection.k == 300


def _outside_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _outside_code(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


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


def test_every_picture_is_shown() -> None:
    shown = {
        Path(link).name for page in PAGES for link in re.findall(r"!\[[^]]*\]\((.+?)\)", _outside_code(ROOT / page))
    }
    assert shown == {path.name for path in ROOT.glob("docs/images/*")}


def test_the_cache_is_documented() -> None:
    page = (ROOT / "docs/data.md").read_text()
    assert all(word in page for word in (CACHE_VARIABLE, "~/.cache/novelsum", "rejects.parquet", "rm -r"))


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (path.name for path in ROOT.glob("docs/*.md") if path.name != "index.md"):
        assert f"]({page}" in index, page


def _referenced() -> set[str]:
    """Return the full names that the pages of the Python reference describe."""
    pages = (path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    return {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}


def _object(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_the_reference_has_every_public_name() -> None:
    known = [_object(name) for name in _referenced()]
    exported = [getattr(package, name) for package in (diversity, selection) for name in package.__all__]
    sections = [kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    for public in [*exported, *(kind for kind in sections if kind.__module__ == settings.__name__)]:
        assert any(public is one for one in known) or public.__name__.startswith("_"), public


def test_the_reference_has_what_the_examples_import() -> None:
    notebook = json.loads((ROOT / "examples" / "measure_two_sets.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    blocks = [block.code for block in code_blocks() if block.language == "python"]
    known = [_object(name) for name in _referenced()]
    for code in [*cells, *blocks, *(path.read_text() for path in ROOT.glob("examples/**/*.py"))]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("novelsum_dagster"):
                for name in node.names:
                    assert any(_object(f"{node.module}.{name.name}") is one for one in known), name.name


def test_documented_arguments_exist() -> None:
    for name in _referenced():
        documented = re.search(
            r"^Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(_object(name)) or "", re.MULTILINE | re.DOTALL
        )
        if documented:
            names = re.findall(r"^    (\w[\w, ]*):", documented[1], re.MULTILINE)
            found = {argument for paired in names for argument in paired.split(", ")}
            assert found <= set(inspect.signature(_object(name)).parameters), name


def test_the_readme_fits_on_a_few_screens() -> None:
    shown = re.sub("<!--.*?-->", "", (ROOT / "README.md").read_text())
    assert len(shown.split()) < 900


def test_the_numbers_of_checks_and_models_are_right() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"{len(SUITES)} checks" in readme
    assert f"{len(models())} SQL models" in readme


@pytest.mark.slow
def test_the_tables_of_the_studies_are_those_of_their_files() -> None:
    assert study_tables.PAGE.read_text(encoding="utf-8") == study_tables.page_with_tables()


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page())
