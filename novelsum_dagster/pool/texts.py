"""The text of a sample that is embedded, measured and searched for near-duplicates."""

from novelsum_dagster.pool.samples import Sample
from novelsum_dagster.settings import TextChoice, TextPart, TextRule

_ROLES: dict[TextChoice, tuple[str, ...]] = {
    "turns": ("user", "assistant", "tool"),
    "prompt": ("user",),
    "response": ("assistant",),
    "all": ("system", "user", "assistant", "tool"),
}
_EVERY_PART: tuple[TextPart, ...] = ("system", "tools", "reasoning")


WHOLE = TextRule("all")
"""Everything in a sample that is text."""


def text_of(sample: Sample, rule: TextRule) -> str:
    """Return the chosen turns and parts, joined by newlines (paper, section 3: user and assistant turns)."""
    parts = _EVERY_PART if rule.choice == "all" else rule.include
    roles = _ROLES[rule.choice]
    texts = [sample.tools] if "tools" in parts and sample.tools else []
    for turn in sample.turns:
        if turn.role in roles or (turn.role == "system" and "system" in parts):
            if "reasoning" in parts and turn.reasoning:
                texts.append(turn.reasoning)
            if turn.text:
                texts.append(turn.text)
            texts.extend(turn.calls)
    return "\n".join(texts)
