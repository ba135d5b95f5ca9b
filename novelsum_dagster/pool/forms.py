"""Record forms: recognising the form of a record, and converting the record to a sample.

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
from functools import cached_property
from typing import Any, Literal, get_args

from novelsum_dagster.pool.messages import (
    ROLE_FIELDS,
    Roles,
    content_of,
    decoded_list,
    is_turn_list,
    kind_of,
    media_of,
    spoken_calls,
    tools_of,
    turns_of_list,
)
from novelsum_dagster.pool.samples import Reject, Sample, Turn, canonical_json, turns_id
from novelsum_dagster.settings import Form, Part

FORMS: tuple[Form, ...] = get_args(Form)
PARTS: tuple[Part, ...] = get_args(Part)
LIST_COLUMNS = (
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "turns",
    "data",
    "segments",
    "contents",
)
"""Columns that may hold the list of turns; the first one that does is read."""
_LISTS = frozenset(LIST_COLUMNS)
_LISTS_FOR_SURE = ("messages", "conversations", "conversation")
_LISTS_OF_PROMPTS = ("turns",)
"""Here, texts in a list are the user's alone, as in MT-Bench."""
_ANSWERS = ("output", "response", "answer", "completion", "target")
_PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("prompt", ("completion", "response", "output", "answer")),
    ("question", ("answer", "response", "output", "solution")),
    ("query", ("response", "answer", "output", "answers")),
    ("inputs", ("targets", "outputs")),
    ("problem", ("solution", "generated_solution", "answer")),
    ("input", ("output", "target", "response")),
    ("article", ("summary", "highlights")),
    ("user", ("assistant", "bot")),
    ("human", ("assistant", "gpt", "bot")),
)
_SPOKEN = "chat"
"""A column with a whole conversation as one text."""
_PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
_SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
_TOOLS = ("tools", "functions")
_REASONING = (
    "reasoning", "reasoning_content", "thinking", "complex_cot", "cot", "chain_of_thought", "rationale", "thought",
)  # fmt: skip
_MEDIA = tuple(
    f"{kind}{part}" for kind in ("image", "audio", "video") for part in ("s", "", "_url", "_urls", "_path", "_paths")
)
_CHOSEN = ("chosen", "preferred_output")
_REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
_LABELS = ("label", "kto_tag")
_INPUTS = frozenset(("input", "context"))
_BESIDE = frozenset((*_SYSTEM, *_TOOLS, *_REASONING, *_MEDIA, *_LABELS, "history", "context"))
_SPEAKERS = re.compile(r"(?:^|\n\n+)(Human|Assistant|USER|ASSISTANT|FUNCTION RESPONSE): ?")
_SPEAKER_ROLES = {
    "Human": "user", "USER": "user", "Assistant": "assistant", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How the records of a source are read.

    Attributes:
        form: the form of all records; None if each may have its own.
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
    """A sample, and the other content of its record.

    Attributes:
        sample: the training content.
        columns: the record's columns that were read as content.
        other: values that were not read as content, by column; of fields within turns as `messages[].field`.
        former_id: the id that releases before 0.2 gave to the record; "" if it is the same.
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
    sample = _with_surroundings(found, fields, form, reading)
    _require_turns(sample)
    columns = _mapped_columns(reading.columns, fields) if reading.columns else fields.read
    other = {name: value for name, value in record.items() if name not in columns and value is not None}
    if reading.columns:
        other.update(_beside_paths(record, columns))
    for name, values in found.other.items():
        other[f"{found.column}[].{name}"] = values
    other = {name: value for name, value in other.items() if value is not None}
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

    @cached_property
    def list_column(self) -> str | None:
        """The column with the list of turns; of those that are empty the first only where no other has one."""
        if not self.has_any(_LISTS):
            return None
        present = [name for name in LIST_COLUMNS if name in self._names]
        full = next((name for name in present if is_turn_list(self.look(name), name not in _LISTS_OF_PROMPTS)), None)
        return full or next((name for name in present if name in _LISTS_FOR_SURE), None)

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
        """Return a column's value and count the column as read; None if it is not present."""
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
    """The parts of a record, as read by one of the forms."""

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
    if (column := fields.list_column) is not None:
        if _is_blank(fields.look(column)):
            raise Reject("empty_field", f"{column} is empty")
        raise Reject("wrong_type", f"{column} is {kind_of(fields.look(column))}, not a list of turns")
    for prompt, answers in (("instruction", _ANSWERS), *_PAIRS):
        if fields.first([prompt]):
            raise Reject(
                "missing_fields", f"no {' or '.join(answers[:2])} beside {prompt}; columns (--columns) maps others"
            )
    raise Reject(
        "missing_fields", f"columns {fields.names()[:8]} fit no form; columns (--columns) maps them, see docs/data.md"
    )


def _is_spoken(fields: _Fields) -> bool:
    return bool(_spoken(fields.look(_SPOKEN)))


def _has_list(fields: _Fields) -> bool:
    column = fields.list_column
    return (
        column is not None
        and isinstance(decoded_list(fields.look(column)), list | Mapping)
        and not _is_blank(fields.look(column))
    )


def _is_blank(value: Any) -> bool:
    return value in ([], {}, "", "[]")


def _says_from(fields: _Fields) -> bool:
    column = fields.list_column
    items = decoded_list(fields.look(column)) if column is not None else None
    first = items[0] if isinstance(items, list) and items else None
    return isinstance(first, Mapping) and first.get("from") is not None


_FITS: Mapping[Form, Callable[[_Fields], bool]] = {
    "preference": lambda fields: (
        fields.first(_REJECTED) is not None and (fields.first(_CHOSEN) is not None or _has_list(fields))
    ),
    "messages": _has_list,
    "sharegpt": _has_list,
    "alpaca": lambda fields: fields.first(["instruction"]) is not None and fields.first(_ANSWERS) is not None,
    "prompt_completion": lambda fields: _pair(fields) is not None,
    "text": lambda fields: fields.first(["text"]) is not None or _is_spoken(fields),
}
_ORDER: tuple[Form, ...] = ("preference", "messages", "alpaca", "prompt_completion", "text")


def _pair(fields: _Fields) -> tuple[str, str] | None:
    for prompt, answers in _PAIRS:
        if fields.first((prompt,)) and (answer := fields.first(answers)) is not None:
            return prompt, answer
    return None


def _parse_list(fields: _Fields, reading: Reading) -> _Content:
    column = fields.list_column
    assert column is not None
    found = turns_of_list(fields.value(column), column, reading.roles)
    return _Content(found.turns, column, found.other, found.former)


def _parse_alpaca(fields: _Fields, reading: Reading) -> _Content:
    return _exchange(fields, reading, "instruction", fields.first(_ANSWERS))


def _parse_pair(fields: _Fields, reading: Reading) -> _Content:
    return _exchange(fields, reading, *(_pair(fields) or (None, None)))


def _exchange(fields: _Fields, reading: Reading, asks: str | None, answers: str | None) -> _Content:
    """Return a prompt and an answer, after the history, if any."""
    if asks == "instruction" and _is_blank_text(fields.look(asks)) and _alpaca_input(fields).strip():
        asks = "input"
    prompt = _side(fields, asks, "user", reading)
    former_text = _joined(prompt[-1].text, _alpaca_input(fields)) if asks == "instruction" else prompt[-1].text
    prompt = _with_input(prompt, fields)
    answer = _side(fields, answers, "assistant", reading)
    former = [("user", former_text), ("assistant", answer[-1].text)] if len(prompt) == len(answer) == 1 else []
    if fields.first(_TOOLS) and len(answer) == 1 and (calls := spoken_calls(answer[0].text)):
        answer = [replace(answer[0], text="", calls=tuple(calls))]
    return _Content([*prompt, *answer], former=former)


def _parse_preference(fields: _Fields, reading: Reading) -> _Content:
    before: list[Turn] = []
    column = fields.list_column
    if column is not None and _has_list(fields):
        before = turns_of_list(fields.value(column), column, reading.roles).turns
    elif (prompt := fields.first(_PROMPTS)) is not None:
        spoken = _spoken(fields.value(prompt))
        before = spoken or _with_input(_side(fields, prompt, "user", reading), fields)
    chosen = fields.first(_CHOSEN)
    sides = {
        "chosen": before if chosen is None else _answer_side(fields, chosen, before, reading),
        "rejected": _answer_side(fields, fields.first(_REJECTED), before, reading),
    }
    other = "rejected" if reading.preference == "chosen" else "chosen"
    return _Content(sides[reading.preference], other_side=sides[other])


def _answer_side(fields: _Fields, name: str | None, before: list[Turn], reading: Reading) -> list[Turn]:
    """Return one side of a preference pair as a whole conversation."""
    answer = _spoken(fields.value(name)) or _side(fields, name, "assistant", reading)
    starts_whole = any(turn.role in ("user", "system") for turn in answer)
    return answer if starts_whole else [*_without_answer(before), *answer]


def _without_answer(turns: list[Turn]) -> list[Turn]:
    """Return a conversation up to its last turn that is not the assistant's."""
    kept = list(turns)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    return kept


def _spoken(text: Any) -> list[Turn]:
    """Return the turns of a text in which names such as `Human:` start paragraphs; none of anything else."""
    if not isinstance(text, str) or not _SPEAKERS.match(text.lstrip()):
        return []
    parts = _SPEAKERS.split(text.strip())
    turns = [Turn(_SPEAKER_ROLES[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)]
    return [turn for turn in turns if turn.text]


def _parse_text(fields: _Fields, _: Reading) -> _Content:
    if turns := _spoken(fields.look(_SPOKEN)):
        fields.value(_SPOKEN)
        return _Content(turns)
    role = fields.look("role")
    if isinstance(role, str):
        raise Reject("missing_fields", f"the record is one turn (role {role!r:.40}), not a conversation")
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
    if isinstance(value, str):
        decoded = decoded_list(value)
        if decoded is value or not (decoded and isinstance(decoded[0], Mapping) and is_turn_list(decoded)):
            if not value.strip():
                raise Reject("empty_field", f"{name} is empty")
            return [Turn(role, value)]
        value = decoded
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, Mapping) and any(value.get(role_field) is not None for role_field in ROLE_FIELDS):
        value = [value]
    if isinstance(value, list) and is_turn_list(value, takes_texts=False):
        return turns_of_list(value, name, reading.roles).turns
    if isinstance(value, list) and any(isinstance(item, str) for item in value):
        raise Reject("wrong_type", f"{name} is a list of texts; a sample has one, or a list of turns")
    content = content_of(value, name)
    if content.is_empty:
        raise Reject("empty_field", f"{name} is empty")
    return [Turn(role, content.text, content.reasoning, content.calls, media=content.media)]


def _with_input(prompt: list[Turn], fields: _Fields) -> list[Turn]:
    """Return a prompt with the texts of the columns input and context after its last turn."""
    if not fields.has_any(_INPUTS):
        return prompt
    text = prompt[-1].text
    for name in ("input", "context"):
        if not fields.is_read(name) and (name == "context" or isinstance(fields.look(name), str)):
            text = _joined(text, _as_text(fields.value(name)))
    return prompt if text == prompt[-1].text else [*prompt[:-1], replace(prompt[-1], text=text)]


def _is_blank_text(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _alpaca_input(fields: _Fields) -> str:
    value = fields.look("input")
    if value is not None and not isinstance(value, str):
        raise Reject("wrong_type", f"input is {kind_of(value)}, not a string")
    return value or ""


def _as_text(value: Any) -> str:
    """Return a context: a text, texts of a list, or anything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return canonical_json(value)


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


def _with_surroundings(found: _Content, fields: _Fields, form: Form, reading: Reading) -> Sample:
    """Add what the record holds besides the turns: system prompt, history, context, tools, reasoning, media, label."""
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
    earlier = _history(fields, reading)
    if (
        form in ("messages", "sharegpt")
        and fields.first(["context"])
        and (context := _as_text(fields.value("context")))
    ):
        earlier = [Turn("system", context), *earlier]
    at = next((at for at, turn in enumerate(turns) if turn.role != "system"), 0)
    turns = [*turns[:at], *earlier, *turns[at:]]
    name, last = fields.first(_REASONING), turns[-1]
    reasoning = fields.look(name) if name is not None else None
    if isinstance(reasoning, str) and reasoning.strip() and last.role == "assistant" and not last.reasoning:
        fields.value(name)
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


def has_column(record: Mapping[str, Any], path: str) -> bool:
    """Return whether a record has a column, dots leading into objects."""
    if path in record:
        return True
    head, _, rest = path.partition(".")
    inner = record.get(head)
    return bool(rest) and isinstance(inner, Mapping) and has_column(inner, rest)


def _mapped(record: Mapping[str, Any], columns: Mapping[Part, str]) -> dict[str, Any]:
    """Return the parts of a record under the names that the forms know."""
    names = _names_of(columns)
    parts = {}
    for part, path in columns.items():
        value: Any = record.get(path)
        if value is None and path not in record:
            value = record
            for name in path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
        parts[names[part]] = value
    if all(value is None for value in parts.values()):
        raise Reject("missing_fields", f"no {' and no '.join(columns.values())}, which columns (--columns) names")
    return parts


def _names_of(columns: Mapping[Part, str]) -> dict[Part, str]:
    """Return the columns under which the forms look for the mapped parts."""
    response = "completion" if "prompt" in columns else "output"
    return {part: response if part == "response" else part for part in columns}


def _mapped_columns(columns: Mapping[Part, str], fields: _Fields) -> set[str]:
    """Return the columns, as the mapping names them, whose parts were read."""
    names = _names_of(columns)
    return {path for part, path in columns.items() if names[part] in fields.read}


def _beside_paths(record: Mapping[str, Any], columns: set[str]) -> dict[str, Any]:
    """Return the other fields of objects from which a mapping takes parts; those objects do not count as columns."""
    found: dict[str, Any] = {}
    for head in {path.split(".")[0] for path in columns if path not in record and "." in path}:
        inner = record.get(head)
        read = {path.split(".")[1] for path in columns if path.split(".")[0] == head}
        if isinstance(inner, Mapping):
            found.update({f"{head}.{name}": value for name, value in inner.items() if name not in read})
            found[head] = None
    return found
