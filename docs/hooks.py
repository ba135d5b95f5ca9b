"""What the documentation site (`mkdocs.yml`) needs beside MkDocs and mkdocstrings.

The pages of this repository link to files by their paths, so that links work in a checkout and on a code host. In the
site, README.md is the start page, the other pages of the top level have a place beside those of `docs/`, and other
files that a page links to are copied. A folder has no page: its link becomes its path. In the reference, a setting has
the description that the settings model gives it.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "README.md": "index.md",
    "docs/index.md": "guide.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Page of the site by file of the repository; other pages are where they are in `docs/`."""

_FENCE = re.compile(r"^( *```.*?^ *```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
_LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?https?:|<link\b[^>]*\shref=[\"']?https?:")
"""Elements for which a browser asks another host."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give the pages of the top level, and the index of `docs/`, their places in the site."""
    files.remove(files.src_uris["index.md"])
    for path, place in PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    place = page.file.src_uri
    source = next((path for path, moved in PLACES.items() if moved == place), f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups(default="")
        path = os.path.normpath(PurePosixPath(source).parent / target)
        if (ROOT / path).is_dir():
            return f"{text} (`{path}`)" if path not in text else text
        to = PLACES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}")
        if to.startswith("source/") and to not in files.src_uris and (ROOT / path).is_file():
            files.append(File.generated(config, to, abs_src_path=str(ROOT / path)))
        return f"{image}[{text}]({os.path.relpath(to, PurePosixPath(place).parent)}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if at % 2 else _LINK.sub(moved, part) for at, part in enumerate(parts))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Fail where a page would load anything from another host."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri}: {found.group()}... is loaded from another host")
    return output


class Descriptions(griffe.Extension):
    """Reads `name: type = Field(default, description=...)` as an attribute with a default and a docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Replace the call of `Field`."""
        if not isinstance(attr.value, griffe.ExprCall) or str(attr.value.function) != "Field":
            return
        default, *others = attr.value.arguments
        for argument in others:
            if isinstance(argument, griffe.ExprKeyword) and argument.name == "description":
                attr.docstring = griffe.Docstring(ast.literal_eval(str(argument.value)), parent=attr)
        attr.value = default
