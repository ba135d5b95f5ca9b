"""Record forms: which one a record is in, and how it becomes a sample.

A column counts as present where its value is not null. The first row that fits decides:

| form | columns |
|---|---|
| preference | chosen and rejected, with or without a prompt |
| messages, sharegpt | a list of turns under any of `LIST_COLUMNS`, or the record itself is the list |
| alpaca | instruction (and input or context, history) with output or response |
| prompt_completion | a pair such as prompt and completion, question and answer, inputs and targets |
| text | text, or the record itself is a string |

System prompt, tools, images and the like may stand beside any of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from novelsum_dagster.pool.messages import (
    ROLE_FIELDS,
    Roles,
    content_of,
    decoded_list,
    is_turn_list,
    kind_of,
    media_of,
    tools_of,
    turns_of_list,
)
from novelsum_dagster.pool.samples import Reject, Sample, Turn, turns_id

Form = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "preference", "text"]
FORMS: tuple[Form, ...] = get_args(Form)
Part = Literal[
    "messages", "prompt", "response", "input", "history", "system", "tools", "reasoning", "chosen", "rejected", "text"
]

LIST_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "data")
"""Columns that may hold the list of turns, the first that does counts."""
_LISTS_FOR_SURE = ("messages", "conversations", "conversation")
_LISTS_OF_PROMPTS = ("turns",)
"""Here, texts in a list are the user's alone, as in MT-Bench."""
_ANSWERS = ("output", "response", "answer", "completion", "target")
_PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("prompt", ("completion", "response", "output", "answer")),
    ("question", ("answer", "response", "output", "solution")),
    ("query", ("response", "answer", "output")),
    ("inputs", ("targets", "outputs")),
    ("problem", ("solution", "generated_solution", "answer")),
    ("input", ("output", "target", "response")),
    ("user", ("assistant", "bot")),
    ("human", ("assistant", "gpt", "bot")),
)
_PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
_SYSTEM = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
_REASONING = ("reasoning", "reasoning_content", "thinking", "complex_cot")
_MEDIA = ("images", "image", "audios", "audio", "videos", "video")
_LABELS = ("label", "kto_tag")
_BESIDE = frozenset((*_SYSTEM, *_TOOLS, *_REASONING, *_MEDIA, *_LABELS))
_SPEAKERS = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class Reading:
    """How the records of a source are read.

    Attributes:
        form: the one form that they have; None where each may have its own.
        columns: column by part, dots leading into objects.
        roles: known roles.
        preference: which side of a preference pair is the sample.
    """

    form: Form | None = None
    columns: Mapping[Part, str] = field(default_factory=dict)
    roles: Roles = field(default_factory=Roles)
    preference: Literal["chosen", "rejected"] = "chosen"


@dataclass(frozen=True)
class Parsed:
    """A sample and what its record holds beside it.

    Attributes:
        sample: the training content.
        columns: the record's columns that were read as content.
        other: values that were not read as content, by column; of fields within turns as `messages[].field`.
        former_id: the id that releases before 0.2 gave to the record; "" where it is the same.
    """

    sample: Sample
    columns: frozenset[str]
    other: Mapping[str, Any]
    former_id: str


def parse(record: Any, reading: Reading) -> Parsed:
    """Return the sample that a record holds.

    Args:
        record: an object, a list of turns, or a text.
        reading: how the source is read.

    Raises:
        Reject: `missing_fields`, `mixed_forms`, `wrong_type`, `empty_field`, `unknown_role`, `no_user_turn`,
            `no_assistant_turn` or `invalid_unicode`.
    """
    if isinstance(record, list):
        record = {"messages": record}
    elif isinstance(record, str):
        record = {"text": record}
    fields = _Fields(_mapped(record, reading.columns) if reading.columns else record)
    form = _form_of(fields, reading.form)
    found = _PARSERS[form](fields, reading)
    sample = _with_surroundings(found, fields, form)
    _require_turns(sample)
    columns = _heads(reading.columns) if reading.columns else fields.read
    other = {name: value for name, value in record.items() if name not in columns and value is not None}
    for name, values in found.other.items():
        other[f"{found.column}[].{name}"] = values
    is_same = not found.former or (
        sample.is_plain and found.former == [(turn.role, turn.text) for turn in sample.turns]
    )
    return Parsed(sample, frozenset(columns), other, "" if is_same else turns_id(found.former))


class _Fields:
    """A record's columns by name, upper and lower case alike; remembers which were read."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record
        self._names = {name.lower(): name for name, value in reversed(list(record.items())) if value is not None}
        self.read: set[str] = set()

    def is_read(self, name: str) -> bool:
        """Return whether a column has been counted as read."""
        return self._names.get(name) in self.read

    def first(self, names: Sequence[str]) -> str | None:
        """Return the first of some names whose column is present."""
        for name in names:
            if name in self._names:
                return name
        return None

    def has_any(self, names: frozenset[str]) -> bool:
        """Return whether one of some columns is present."""
        return not names.isdisjoint(self._names)

    def value(self, name: str | None) -> Any:
        """Return a column's value and count the column as read; None where it is not present."""
        if name is None or name not in self._names:
            return None
        own = self._names[name]
        self.read.add(own)
        return self._record[own]

    def look(self, name: str) -> Any:
        """Return a column's value without counting it as read."""
        return self._record[self._names[name]] if name in self._names else None

    def names(self) -> list[str]:
        """Return the columns that are present."""
        return sorted(self._names.values())


@dataclass
class _Content:
    """What one of the forms holds."""

    turns: list[Turn]
    column: str = "messages"
    other: dict[str, list[Any]] = field(default_factory=dict)
    former: list[tuple[str, str]] = field(default_factory=list)
    other_side: list[Turn] = field(default_factory=list)


def _form_of(fields: _Fields, stated: Form | None) -> Form:
    if stated is not None:
        if _FITS[stated](fields):
            return stated
        found = _form_of(fields, None)
        raise Reject(
            "mixed_forms", f"the record is {found}, the source is {stated}; form: auto takes each record's own"
        )
    form = next((form for form in _ORDER if _FITS[form](fields)), None)
    if form is not None:
        return "sharegpt" if form == "messages" and _says_from(fields) else form
    if (column := _list_column(fields)) is not None:
        raise Reject("empty_field", f"{column} is empty")
    for prompt, answers in (("instruction", _ANSWERS), *_PAIRS):
        if fields.first([prompt]):
            raise Reject("missing_fields", f"no {' or '.join(answers[:2])} beside {prompt}; columns: maps others")
    raise Reject("missing_fields", f"columns {fields.names()[:8]} fit no form; columns: maps them, see docs/data.md")


def _has_list(fields: _Fields) -> bool:
    column = _list_column(fields)
    return column is not None and fields.look(column) not in ([], "[]")


def _says_from(fields: _Fields) -> bool:
    column = _list_column(fields)
    items = decoded_list(fields.look(column)) if column is not None else None
    first = items[0] if isinstance(items, list) and items else None
    return isinstance(first, Mapping) and first.get("from") is not None


_FITS: Mapping[Form, Callable[[_Fields], bool]] = {
    "preference": lambda fields: fields.first(["chosen"]) is not None and fields.first(["rejected"]) is not None,
    "messages": _has_list,
    "sharegpt": _has_list,
    "alpaca": lambda fields: fields.first(["instruction"]) is not None and fields.first(_ANSWERS) is not None,
    "prompt_completion": lambda fields: _pair(fields) is not None,
    "text": lambda fields: fields.first(["text"]) is not None,
}
_ORDER: tuple[Form, ...] = ("preference", "messages", "alpaca", "prompt_completion", "text")


def _list_column(fields: _Fields) -> str | None:
    """Return the column with the list of turns; of those that are empty the first only where no other has one."""
    present = [name for name in LIST_COLUMNS if fields.first([name])]
    full = next((name for name in present if is_turn_list(fields.look(name), name not in _LISTS_OF_PROMPTS)), None)
    return full or next((name for name in present if name in _LISTS_FOR_SURE), None)


def _pair(fields: _Fields) -> tuple[str, str] | None:
    for prompt, answers in _PAIRS:
        answer = fields.first(answers)
        if fields.first([prompt]) and answer is not None:
            return prompt, answer
    return None


def _parse_list(fields: _Fields, reading: Reading) -> _Content:
    column = _list_column(fields)
    assert column is not None
    found = turns_of_list(fields.value(column), column, reading.roles)
    return _Content(found.turns, column, found.other, found.former)


def _parse_alpaca(fields: _Fields, reading: Reading) -> _Content:
    return _exchange(fields, reading, "instruction", fields.first(_ANSWERS))


def _parse_pair(fields: _Fields, reading: Reading) -> _Content:
    return _exchange(fields, reading, *(_pair(fields) or (None, None)))


def _exchange(fields: _Fields, reading: Reading, asks: str | None, answers: str | None) -> _Content:
    """Return a prompt and an answer, after what history there is."""
    prompt = _side(fields, asks, "user", reading)
    former_text = _joined(prompt[-1].text, _alpaca_input(fields)) if asks == "instruction" else prompt[-1].text
    prompt = _with_input(prompt, fields)
    answer = _side(fields, answers, "assistant", reading)
    former = [("user", former_text), ("assistant", answer[-1].text)] if len(prompt) == len(answer) == 1 else []
    return _Content([*_history(fields, reading), *prompt, *answer], former=former)


def _parse_preference(fields: _Fields, reading: Reading) -> _Content:
    before: list[Turn] = []
    column = _list_column(fields)
    if column is not None and is_turn_list(fields.look(column)):
        listed = turns_of_list(fields.value(column), column, reading.roles)
        before = listed.turns
    else:
        prompt = fields.first(_PROMPTS)
        if prompt is not None:
            before = _with_input(_side(fields, prompt, "user", reading), fields)
    sides = {name: _answer_side(fields, name, before, reading) for name in ("chosen", "rejected")}
    other = "rejected" if reading.preference == "chosen" else "chosen"
    return _Content(sides[reading.preference], other_side=sides[other])


def _answer_side(fields: _Fields, name: str, before: list[Turn], reading: Reading) -> list[Turn]:
    """Return one side of a preference pair as a whole conversation."""
    value = fields.value(name)
    if isinstance(value, str) and not before and value.lstrip().startswith("Human:"):
        return _spoken(value)
    answer = _side(fields, name, "assistant", reading)
    starts_whole = any(turn.role in ("user", "system") for turn in answer)
    return answer if starts_whole else [*_without_answer(before), *answer]


def _without_answer(turns: list[Turn]) -> list[Turn]:
    """Return a conversation up to its last turn that is not the assistant's."""
    kept = list(turns)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    return kept


def _spoken(text: str) -> list[Turn]:
    """Return the turns of a text in which `Human:` and `Assistant:` start paragraphs."""
    parts = _SPEAKERS.split("\n\n" + text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Turn(roles[name], said) for name, said in zip(parts[1::2], parts[2::2], strict=True) if said.strip()]


def _parse_text(fields: _Fields, _: Reading) -> _Content:
    value = fields.value("text")
    if not isinstance(value, str):
        raise Reject("wrong_type", f"text is {kind_of(value)}, not a string")
    if not value.strip():
        raise Reject("empty_field", "text is empty")
    return _Content([Turn("assistant", value)])


_PARSERS = {
    "preference": _parse_preference,
    "messages": _parse_list,
    "sharegpt": _parse_list,
    "alpaca": _parse_alpaca,
    "prompt_completion": _parse_pair,
    "text": _parse_text,
}


def _side(fields: _Fields, name: str | None, role: str, reading: Reading) -> list[Turn]:
    """Return a prompt or an answer: a text, or a list of turns."""
    assert name is not None
    value = fields.value(name)
    if isinstance(value, Mapping) and any(value.get(role_field) is not None for role_field in ROLE_FIELDS):
        value = [value]
    if isinstance(value, list) and is_turn_list(value):
        return turns_of_list(value, name, reading.roles).turns
    content = content_of(value, name)
    if content.is_empty:
        raise Reject("empty_field", f"{name} is empty")
    return [Turn(role, content.text, content.reasoning, content.calls, media=content.media)]


def _with_input(prompt: list[Turn], fields: _Fields) -> list[Turn]:
    """Return a prompt with the texts of the columns input and context after its last turn."""
    text = prompt[-1].text
    for name in ("input", "context"):
        if not fields.is_read(name) and isinstance(fields.look(name), str):
            text = _joined(text, fields.value(name))
    return prompt if text == prompt[-1].text else [*prompt[:-1], replace(prompt[-1], text=text)]


def _alpaca_input(fields: _Fields) -> str:
    value = fields.look("input")
    if value is not None and not isinstance(value, str):
        raise Reject("wrong_type", f"input is {kind_of(value)}, not a string")
    return value or ""


def _joined(text: str, more: str) -> str:
    return f"{text}\n{more}" if more.strip() else text


def _history(fields: _Fields, reading: Reading) -> list[Turn]:
    """Return earlier exchanges: pairs of texts, or turns."""
    value = decoded_list(fields.value("history"))
    if value in (None, "", []):
        return []
    if not isinstance(value, list):
        raise Reject("wrong_type", f"history is {kind_of(value)}, not a list")
    return turns_of_list(value, "history", reading.roles).turns


def _with_surroundings(found: _Content, fields: _Fields, form: Form) -> Sample:
    """Add what stands beside the turns: system prompt, tools, reasoning, media, the label of a preference."""
    turns, other_side = found.turns, found.other_side
    if not fields.has_any(_BESIDE):
        return Sample(tuple(turns), form, other_side=tuple(other_side))
    system = fields.value(fields.first(_SYSTEM))
    if system is not None:
        content = content_of(system, "system")
        first = turns[0] if turns else None
        if not content.is_empty and not (first and first.role == "system" and first.text == content.text):
            turn = Turn("system", content.text, media=content.media)
            turns, other_side = [turn, *turns], [turn, *other_side] if other_side else []
    if form in ("alpaca", "prompt_completion"):
        reasoning = fields.value(fields.first(_REASONING))
        last = turns[-1]
        if isinstance(reasoning, str) and reasoning.strip() and not last.reasoning:
            turns = [*turns[:-1], replace(last, reasoning=reasoning)]
    label = fields.first([name for name in _LABELS if isinstance(fields.look(name), bool)])
    return Sample(
        tuple(turns),
        form,
        tools=tools_of(fields.value(fields.first(_TOOLS))),
        media=tuple(reference for name in _MEDIA for reference in media_of(fields.value(name))),
        other_side=tuple(other_side),
        label=fields.value(label),
    )


def _require_turns(sample: Sample) -> None:
    for turn in (*sample.turns, *sample.other_side):
        _check_unicode(turn.text)
        if turn.reasoning or turn.name:
            _check_unicode(f"{turn.reasoning}{turn.name}")
    roles = {turn.role for turn in sample.turns}
    if "user" not in roles and sample.form != "text":
        raise Reject("no_user_turn", "no turn is the user's")
    if "assistant" not in roles:
        raise Reject("no_assistant_turn", "no turn is the assistant's")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Reject("invalid_unicode", f"a lone surrogate at character {error.start}") from None


def _mapped(record: Mapping[str, Any], columns: Mapping[Part, str]) -> dict[str, Any]:
    """Return the parts of a record under the names that the forms know."""
    names: dict[str, str] = {"response": "completion" if "prompt" in columns else "output"}
    parts = {}
    for part, path in columns.items():
        value: Any = record.get(path)
        if value is None and path not in record:
            value = record
            for name in path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
        parts[names.get(part, part)] = value
    if all(value is None for value in parts.values()):
        raise Reject("missing_fields", f"no {' and no '.join(columns.values())}, which columns: names")
    return parts


def _heads(columns: Mapping[Part, str]) -> set[str]:
    """Return the record's own columns that a mapping leads into."""
    return {head for path in columns.values() for head in (path, path.split(".")[0])}
