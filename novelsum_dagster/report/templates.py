"""Templates of pages and cards, filled in with text from data.

Belongs here: rendering a template, escaping for Markdown. Does not: the values (`page`, `card`).
"""

import html
import re
from pathlib import Path
from typing import Any


def render(path: Path, **values: Any) -> str:
    """Return a template filled in. In HTML all values are escaped; in Markdown the filter `plain` does that.

    Args:
        path: of the template, .html or .md; it may include files of its folder and of this one.
        values: for the template, by name; a name that is missing raises an error.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=path.suffix == ".md",
    )
    environment.filters["plain"] = plain
    return environment.get_template(path.name).render(values)


def plain(text: object) -> str:
    """Return text for Markdown: on one line, with all markup escaped."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
