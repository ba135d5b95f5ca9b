"""The documentation says what the code does. `python -m tests.unit.test_docs` writes docs/settings.md anew."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from novelsum_dagster.quality.suites import SUITES
from novelsum_dagster.settings import Quota, Settings, Source, load_settings

ROOT = Path(__file__).resolve().parents[2]
HEAD = """# Settings

One YAML file, read by `novelsum run` and by Dagster: `--settings FILE`, else `$NOVELSUM_SETTINGS`, else
`curation.yaml` in the working folder. Relative paths start at the file's folder. Mistakes are reported with line and
key. [curation.yaml](../curation.yaml) is an example.

| key | default | meaning |
|---|---|---|
"""


LISTS: dict[str, type[BaseModel]] = {"pool.sources": Source, "selection.quotas": Quota}
PAGES = [
    "audit", "data", "dagster", "deploy", "gpu", "growing", "install", "measures", "ray", "scaling", "selection",
    "settings",
]  # fmt: skip


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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_number_of_checks_is_right() -> None:
    assert f"{len(SUITES)} checks" in (ROOT / "README.md").read_text()


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page())
