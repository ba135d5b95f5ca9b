"""The text of a sample that is embedded, measured and searched for near-duplicates."""

from dataclasses import dataclass
from typing import Literal

from novelsum_dagster.pool.samples import Sample

TextChoice = Literal["turns", "prompt", "response", "all"]
TextPart = Literal["system", "tools", "reasoning"]
_ROLES: dict[TextChoice, tuple[str, ...]] = {
    "turns": ("user", "assistant", "tool"),
    "prompt": ("user",),
    "response": ("assistant",),
    "all": ("system", "user", "assistant", "tool"),
}
_EVERY_PART: tuple[TextPart, ...] = ("system", "tools", "reasoning")


@dataclass(frozen=True)
class TextRule:
    """Which part of a sample is its text.

    Attributes:
        choice: turns (user, assistant and tool), prompt (user), response (assistant), or all.
        include: parts beside the chosen turns: system turns, definitions of tools, reasoning; "all" has each.
    """

    choice: TextChoice = "turns"
    include: tuple[TextPart, ...] = ()

    def text_of(self, sample: Sample) -> str:
        """Return the chosen turns and parts, joined by newlines (paper, section 3: user and assistant turns)."""
        parts = _EVERY_PART if self.choice == "all" else self.include
        roles = _ROLES[self.choice]
        texts = [sample.tools] if "tools" in parts and sample.tools else []
        for turn in sample.turns:
            if turn.role in roles or (turn.role == "system" and "system" in parts):
                if "reasoning" in parts and turn.reasoning:
                    texts.append(turn.reasoning)
                if turn.text:
                    texts.append(turn.text)
                texts.extend(turn.calls)
        return "\n".join(texts)


WHOLE = TextRule("all")
"""Everything in a sample that is text."""
