"""The code blocks of README.md and the documentation, with their markers, and the commands in a shell block.

A block that does not run, or not all of it, has a comment before it:

    <!-- not run: REASON -->
    <!-- not run (`COMMAND`, `BEGINNING OF ANOTHER ...`): REASON -->
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]

_BLOCK = re.compile(r"((?:^<!--.*?-->\n)?)^( *)```([^\n]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- not run(?: \((?P<parts>(?:`[^`]+`(?:, )?)+)\))?: (?P<reason>.+) -->\n")
_COMMENT = re.compile(r"(^|\s)#.*")
_SEPARATORS = set("();<>|&")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        place: page:line of the fence.
        language: as the fence names it; empty if it names none.
        code: the lines within.
        comment: the HTML comment right before it; empty if there is none.
    """

    place: str
    language: str
    code: str
    comment: str

    @property
    def reason(self) -> str | None:
        """Why the block, or a part of it, does not run; None if all of it runs."""
        marker = _MARKER.fullmatch(self.comment)
        return marker["reason"] if marker else None

    @property
    def not_run(self) -> list[str]:
        """The commands or statements that do not run, one that ends in dots by its beginning."""
        marker = _MARKER.fullmatch(self.comment)
        if marker is None:
            return []
        return re.findall("`([^`]+)`", marker["parts"]) if marker["parts"] else ["..."]

    @property
    def page(self) -> str:
        return self.place.rpartition(":")[0]

    def runs(self, command: str) -> bool:
        """Return whether a command or statement of the block runs."""
        return not any(_is(command, part) for part in self.not_run)


def _is(command: str, part: str) -> bool:
    return command.startswith(part.removesuffix("...")) if part.endswith("...") else command == part


def blocks() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for page in PAGES for block in _blocks_of(page)]


def _blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        comment, _, language, code = found.groups()
        line = text[: found.start(3)].count("\n") + 1
        yield Block(f"{page.relative_to(ROOT).as_posix()}:{line}", language, code, comment)


def commands(code: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without redirections; variables stay as they are."""
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        # In a shell, # begins a comment only at the start of a word.
        words = shlex.shlex(_COMMENT.sub("", line), posix=True, punctuation_chars=True)
        words.commenters = ""
        words.whitespace_split = True
        command: list[str] = []
        is_target = False
        for word in words:
            is_separator = set(word) <= _SEPARATORS
            if not is_separator and not is_target:
                command.append(word)
            is_target = is_separator and set(word) <= set("<>")
            if is_separator and not is_target:
                found.append(command)
                command = []
        found.append(command)
    return [command for command in found if command]
