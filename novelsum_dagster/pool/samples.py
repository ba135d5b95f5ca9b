"""Samples: turns, identity and text.

A sample is what a model would be trained on. Everything that is part of the training content enters its id; nothing
else does.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from novelsum_dagster.settings import Role

ROLES: tuple[Role, ...] = get_args(Role)
_PLAIN_ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a sample.

    Attributes:
        role: system, user, assistant or tool.
        text: content as text.
        reasoning: the model's reasoning before the content.
        calls: tool calls, each as canonical JSON of its name and arguments.
        name: the speaker's or the tool's name.
        media: references to images, audio and video, as canonical JSON.
        is_trained: False where the record excludes the turn from the training loss.
        answers: for a tool's result, the number of the call that it answers, from 1; 0 if results are in the order of
            their calls.
    """

    role: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[str, ...] = ()
    name: str = ""
    media: tuple[str, ...] = ()
    is_trained: bool = True
    answers: int = 0

    @property
    def is_text(self) -> bool:
        """Whether the turn is its text and nothing else."""
        return self.is_trained and not (self.reasoning or self.calls or self.name or self.media or self.answers)

    @property
    def is_empty(self) -> bool:
        """Whether the turn has no content of any kind."""
        return not (self.text.strip() or self.reasoning.strip() or self.calls or self.media)


@dataclass(frozen=True)
class Sample:
    """The training content of one record.

    Attributes:
        turns: in order.
        form: the record form in which it was written, one of `forms.FORMS`.
        tools: definitions of the tools that the model may call, as canonical JSON.
        media: references to images, audio and video of the whole record, as canonical JSON.
        other_side: turns of a preference pair's other answer.
        label: of an unpaired preference, true or false; None elsewhere.
    """

    turns: tuple[Turn, ...]
    form: str
    tools: str = ""
    media: tuple[str, ...] = ()
    other_side: tuple[Turn, ...] = ()
    label: bool | None = None

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits that depend on the training content alone.

        The same content has the same id in every file, at every position and in every record form.
        """
        return turns_id([(turn.role, turn.text) for turn in self.turns]) if self.is_plain else _hash(self._content())

    @property
    def ends_with_answer(self) -> bool:
        """Whether the last turn is the assistant's."""
        return bool(self.turns) and self.turns[-1].role == "assistant"

    @cached_property
    def is_plain(self) -> bool:
        """Whether the sample consists only of user, assistant and tool turns with text."""
        if self.tools or self.media or self.other_side or self.label is not None:
            return False
        return all(turn.role in _PLAIN_ROLES and turn.is_text for turn in self.turns)

    def _content(self) -> dict[str, Any]:
        content = {
            "turns": [_canonical(turn) for turn in self.turns],
            "tools": self.tools,
            "media": self.media,
            "other_side": [_canonical(turn) for turn in self.other_side],
        }
        found: dict[str, Any] = {name: value for name, value in content.items() if value}
        return found if self.label is None else {**found, "label": self.label}


class Reject(Exception):
    """A rejected record: `reason` is one of a few fixed words, `detail` describes the problem."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def turns_id(turns: list[tuple[str, str]]) -> str:
    """Return the id that releases before 0.2 gave to a sample with these roles and texts."""
    return _hash(turns)


def canonical_json(value: Any) -> str:
    """Return JSON that is equal for equal values: keys sorted, no spaces, whole floats as integers."""
    return json.dumps(_plain(value), ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=str)


def _canonical(turn: Turn) -> list[Any]:
    """Return [role, text], followed by the other attributes under their names, if any."""
    extra: dict[str, Any] = {"reasoning": turn.reasoning, "calls": turn.calls, "name": turn.name, "media": turn.media}
    extra = {name: value for name, value in extra.items() if value}
    if not turn.is_trained:
        extra["is_trained"] = False
    if turn.answers:
        extra["answers"] = turn.answers
    return [turn.role, turn.text, extra] if extra else [turn.role, turn.text]


def _hash(content: Any) -> str:
    canonical = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """Return a value without nulls in objects, and numbers as the JSON of any reader gives them."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
