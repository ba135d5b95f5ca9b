"""Turns from chat messages in the common formats: roles, content parts, tool calls and reasoning."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from novelsum_dagster.pool.samples import Reject, Turn, canonical_json

ROLE_FIELDS = ("role", "from", "speaker")
TEXT_FIELDS = ("content", "value", "text", "parts")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
_CALL_FIELDS = ("tool_calls", "function_call")
_CALLING_ROLES = ("tool_call", "function_call", "tool_calls", "tool_use")
_UNTRAINED = {"weight": 0, "train": False, "training": False, "loss": False, "mask": True, "masked": True}
"""Fields of a turn, and the value by which each excludes it from the training loss."""
_OTHER_FIELDS = ("refusal", "name", "tool_call_id", "id", "type", *_UNTRAINED)
_ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "system": ("system", "developer", "sys"),
    "user": ("user", "human", "prompter", "customer", "usr"),
    "assistant": (
        *(
            "assistant",
            "gpt",
            "bot",
            "model",
            "chatgpt",
            "bard",
            "bing",
            "ai",
            "claude",
            "gemini",
            "agent",
            "llm",
            "chatbot",
        ),
        *_CALLING_ROLES,
    ),
    "tool": (
        *("tool", "tools", "function", "observation", "ipython", "environment", "tool_response", "tool_result"),
        *("tool_output", "function_response", "function_result", "function_output", "observations"),
    ),
}
_PAIR_FIELDS = (
    ("human", "assistant"), ("user", "assistant"), ("human", "gpt"), ("human", "bot"), ("user", "bot"),
    ("instruction", "output"), ("prompt", "response"), ("question", "answer"), ("query", "response"),
    ("input", "output"),
)  # fmt: skip
"""Names under which an exchange of two turns is one object of a list."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = (
    "image_url", "image", "input_image", "input_audio", "audio", "audio_url", "video", "video_url",
    "file", "input_file", "document",
)  # fmt: skip
_REASONING_PARTS = ("thinking", "reasoning")


class Roles:
    """Role names and what they mean: the common ones, and those of the settings.

    Args:
        more: role by name, as the setting `pool.roles`.
    """

    def __init__(self, more: Mapping[str, str] | None = None) -> None:
        self._known = {name: role for role, names in _ROLE_NAMES.items() for name in names}
        self._known.update({_normal(name): role for name, role in (more or {}).items()})

    def role_of(self, name: Any, where: str) -> str:
        """Return system, user, assistant or tool.

        Raises:
            Reject: `wrong_type` or `unknown_role`.
        """
        if not isinstance(name, str):
            raise Reject("wrong_type", f"{where}: the role is {kind_of(name)}, not a string")
        role = self._known.get(_normal(name))
        if role is None:
            raise Reject(
                "unknown_role", f"{where}: {name!r:.60}; say what it is under pool.roles, as {{narrator: user}}"
            )
        return role


@dataclass
class TurnList:
    """Turns of a list, and the other fields of its items.

    Attributes:
        turns: in order; empty system turns and an empty last answer are left out.
        other: values of fields that were not read, by field name.
        former: roles and texts as releases before 0.2 read them.
    """

    turns: list[Turn] = field(default_factory=list)
    other: dict[str, list[Any]] = field(default_factory=dict)
    former: list[tuple[str, str]] = field(default_factory=list)


def decoded_list(value: Any) -> Any:
    """Return the list that a JSON string holds; any other value as it is."""
    return _decoded(value, "[")


def is_turn_list(value: Any, takes_texts: bool = True) -> bool:
    """Whether a value is a list of turns in a form that `turns_of_list` reads, or a JSON string of one.

    Args:
        value: of a column.
        takes_texts: whether texts may alternate between user and assistant.
    """
    items = decoded_list(value)
    if not isinstance(items, list) or not items:
        return False
    first = items[0]
    if isinstance(first, Mapping):
        return _first_of(first, ROLE_FIELDS) is not None or _pair_of(first) is not None or _is_segment(first)
    if isinstance(first, list):
        return all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in items)
    return takes_texts and len(items) > 1 and all(isinstance(item, str) for item in items)


def turns_of_list(value: Any, name: str, roles: Roles) -> TurnList:
    """Return the turns of a list of messages, of exchanges, or of texts that alternate between user and assistant.

    Args:
        value: the list, or a JSON string of it.
        name: of the column, for messages.
        roles: known roles.

    Raises:
        Reject: `missing_fields`, `wrong_type`, `empty_field` or `unknown_role`.
    """
    items = decoded_list(value)
    if isinstance(items, Mapping):
        items = [items]
    if not isinstance(items, list):
        raise Reject("wrong_type", f"{name} is {kind_of(items)}, not a list")
    if not items:
        raise Reject("empty_field", f"{name} is empty")
    found = TurnList()
    if all(isinstance(item, str) for item in items):
        found.turns = [Turn("assistant" if at % 2 else "user", text) for at, text in enumerate(items)]
    else:
        calls: list[Any] = []
        for number, item in enumerate(items, 1):
            found.turns.extend(_turns_of_item(item, f"turn {number}", roles, found, calls))
    found.turns = _without_empty(_numbered(found.turns))
    return found


def _numbered(turns: list[Turn]) -> list[Turn]:
    """Return turns in which a tool's result has a call's number only where it does not answer the next call."""
    results = 0
    kept = []
    for turn in turns:
        results += turn.answers > 0
        kept.append(replace(turn, answers=0) if 0 < turn.answers == results else turn)
    return kept


def _without_empty(turns: list[Turn]) -> list[Turn]:
    """Return turns without empty system turns and without an empty last answer.

    Raises:
        Reject: `empty_field` for another turn without content; a tool's result may be empty.
    """
    kept = [turn for turn in turns if not (turn.role == "system" and turn.is_empty)]
    if len(kept) > 1 and kept[-1].role == "assistant" and kept[-1].is_empty:
        kept.pop()
    empty = next((number for number, turn in enumerate(kept, 1) if turn.is_empty and turn.role != "tool"), None)
    if empty is not None:
        raise Reject("empty_field", f"turn {empty} ({kept[empty - 1].role}): no content")
    return kept


def content_of(value: Any, where: str) -> Turn:
    """Return content, a text or a list of parts, as a turn without a role; of results of tools alone as a tool's.

    Raises:
        Reject: `wrong_type`.
    """
    if value in (None, "", [], {}):
        return Turn("")
    if isinstance(value, str):
        return Turn("", value)
    if isinstance(value, Mapping):
        value = value["parts"] if isinstance(value.get("parts"), list) else [value]
    if not isinstance(value, list):
        raise Reject("wrong_type", f"{where} is {kind_of(value)}, not text")
    parts = [_part(part, f"{where}, part {number}") for number, part in enumerate(value, 1)]
    # The position of a reference matters: before or after the text is not the same prompt.
    before = [sum(len(part.text) for part in parts[:at]) for at in range(len(parts))]
    return Turn(
        "tool" if parts and all(part.role == "tool" for part in parts) else "",
        "\n".join(part.text for part in parts if part.text),
        "\n".join(part.reasoning for part in parts if part.reasoning),
        tuple(call for part in parts for call in part.calls),
        name=next((part.name for part in parts if part.name), ""),
        media=tuple(f"{at}:{reference}" for at, part in zip(before, parts, strict=True) for reference in part.media),
    )


def _part(part: Any, where: str) -> Turn:
    """Return one part of a content as a turn of its own."""
    if isinstance(part, str):
        return Turn("", part)
    if not isinstance(part, Mapping):
        raise Reject("wrong_type", f"{where} is {kind_of(part)}, not an object")
    kind = part.get("type")
    if kind in _TEXT_PARTS or (kind is None and isinstance(part.get("text"), str)):
        return Turn("", _string(part.get("text"), f"{where}: text"))
    if kind == "refusal":
        return Turn("", _string(part.get("refusal"), f"{where}: refusal"))
    if kind in _REASONING_PARTS:
        return Turn("", reasoning=_string(part.get(kind) or part.get("text"), f"{where}: {kind}"))
    if kind == "tool_use":
        return Turn("", calls=(_call({"name": part.get("name"), "arguments": part.get("input")}),))
    if kind == "tool_result":
        inner = content_of(part.get("content"), where)
        return Turn("tool", inner.text, name="error" if part.get("is_error") is True else "", media=inner.media)
    if kind in _MEDIA_PARTS or any(part.get(name) is not None for name in _MEDIA_PARTS):
        return Turn("", media=(_reference({name: given for name, given in part.items() if given is not None}),))
    raise Reject("wrong_type", f"{where}: unknown type {kind!r:.40}")


def tools_of(value: Any) -> str:
    """Return definitions of tools as canonical JSON, "" if there are none.

    A function's definition is the same with and without `{"type": "function", "function": …}` around it.
    """
    value = _decoded(value)
    if value in (None, "", [], {}):
        return ""
    if isinstance(value, list):
        value = [one["function"] if isinstance(one, Mapping) and "function" in one else one for one in value]
    return canonical_json(value)


def media_of(value: Any) -> tuple[str, ...]:
    """Return references to images, audio or video as canonical JSON; bytes as their hash."""
    if value in (None, "", [], {}):
        return ()
    return tuple(_reference(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None)


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _first_of(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if item.get(name) is not None), None)


def _is_segment(item: Mapping[str, Any]) -> bool:
    """Whether an item is a text with a label that says whether it is trained on (Axolotl's input_output)."""
    return isinstance(item.get("label"), bool) and isinstance(item.get("text"), str)


def _pair_of(item: Mapping[str, Any]) -> tuple[str, str] | None:
    return next(
        ((a, b) for a, b in _PAIR_FIELDS if isinstance(item.get(a), str) and isinstance(item.get(b), str)), None
    )


def _turns_of_item(item: Any, where: str, roles: Roles, found: TurnList, calls: list[Any]) -> Iterator[Turn]:
    """Yield the turns of one item of a list; note its other fields and its calls' ids."""
    if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item):
        yield from (Turn("user", item[0]), Turn("assistant", item[1]))
        return
    if not isinstance(item, Mapping):
        raise Reject("wrong_type", f"{where} is {kind_of(item)}, not an object")
    role_field = _first_of(item, ROLE_FIELDS)
    if role_field is not None and len(item) == 2 and (plain := _plain_message(item, role_field, where, roles)):
        found.former.append((plain.role, plain.text))
        yield plain
        return
    pair = _pair_of(item) if role_field is None else None
    if pair is not None:
        known: tuple[str, ...] = (*pair, "system", "input") if pair[0] == "instruction" else (*pair, "system")
        if isinstance(item.get("system"), str):
            yield Turn("system", item["system"])
        more = item.get("input") if pair[0] == "instruction" else None
        asked = f"{item[pair[0]]}\n{more}" if isinstance(more, str) and more.strip() else item[pair[0]]
        yield from (Turn("user", asked), Turn("assistant", item[pair[1]]))
    elif role_field is None and _is_segment(item):
        known = ("label", "text")
        yield Turn("assistant" if item["label"] else "user", item["text"], is_trained=item["label"])
    elif role_field is None:
        raise Reject("missing_fields", f"{where}: no {' or '.join(ROLE_FIELDS[:2])}")
    else:
        known = (*ROLE_FIELDS, *TEXT_FIELDS, *_REASONING_FIELDS, *_CALL_FIELDS, *_OTHER_FIELDS, *_MEDIA_PARTS, "images")
        yield _message(item, role_field, where, roles, found, calls)
    for name, value in item.items():
        if name not in known and value is not None:
            found.other.setdefault(name, []).append(value)


def _plain_message(item: Mapping[str, Any], role_field: str, where: str, roles: Roles) -> Turn | None:
    """Return a turn that is a role and a text and nothing else; None for any other."""
    text = next((item[name] for name in TEXT_FIELDS if name in item), None)
    if not isinstance(text, str):
        return None
    role = roles.role_of(item[role_field], where)
    return None if _normal(item[role_field]) in _CALLING_ROLES else Turn(role, text)


def _message(
    item: Mapping[str, Any], role_field: str, where: str, roles: Roles, found: TurnList, calls: list[Any]
) -> Turn:
    role = roles.role_of(item[role_field], where)
    text_field = _first_of(item, TEXT_FIELDS)
    made = [_decoded(item[name]) for name in _CALL_FIELDS if item.get(name)]
    refusal = item.get("refusal")
    if text_field is None and not (made or refusal or any(name in item for name in TEXT_FIELDS)):
        raise Reject("missing_fields", f"{where}: no {' or '.join(TEXT_FIELDS[:2])}")
    said = item[text_field] if text_field else None
    if role == "tool" and isinstance(said, Mapping | list) and not _has_parts(said):
        said = canonical_json(said)  # A result that is an object.
    content = content_of(said, f"{where}: {text_field}")
    text = "\n".join(part for part in (content.text, refusal) if isinstance(part, str) and part)
    found.former.append((role, text))
    own_calls = list(content.calls)
    if _normal(item[role_field]) in _CALLING_ROLES and (spoken := spoken_calls(text)):
        text, own_calls = "", [*own_calls, *spoken]
    for value in made:
        entries = value if isinstance(value, list) else [value]
        own_calls.extend(_call(entry) for entry in entries if entry is not None)
        calls.extend(entry.get("id") if isinstance(entry, Mapping) else None for entry in entries if entry is not None)
    given = next((item[name] for name in _REASONING_FIELDS if isinstance(item.get(name), str) and item[name]), "")
    media = [reference for name in (*_MEDIA_PARTS, "images") for reference in media_of(item.get(name))]
    name = item.get("name")
    answers = item.get("tool_call_id")
    return Turn(
        role="tool" if content.role == "tool" else role,
        text=text,
        reasoning=content.reasoning or given,
        calls=tuple(own_calls),
        name=name if isinstance(name, str) else content.name,
        media=(*content.media, *media),
        is_trained=not any(_is_exactly(item.get(name), value) for name, value in _UNTRAINED.items()),
        answers=calls.index(answers) + 1 if role == "tool" and answers is not None and answers in calls else 0,
    )


def _is_exactly(value: Any, other: Any) -> bool:
    """Whether values are equal, true and false apart from numbers."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _has_parts(value: Any) -> bool:
    """Whether a content is text parts, not an object of another kind."""
    items = value if isinstance(value, list) else [value]
    return all(
        isinstance(item, str) or (isinstance(item, Mapping) and ("type" in item or "text" in item or "parts" in item))
        for item in items
    )


def _decoded(value: Any, *openings: str) -> Any:
    """Return the list or object that a JSON string holds; any other value as it is.

    Args:
        value: of any kind.
        openings: first characters of texts that are decoded; default: those of lists and objects.
    """
    if isinstance(value, str) and value.lstrip()[:1] in (openings or ("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def spoken_calls(text: str) -> list[str]:
    """Return calls that are written as the JSON text of a turn; none where the text is anything else."""
    value = _decoded(text)
    entries = value if isinstance(value, list) else [value]
    is_call = bool(entries) and all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in entries)
    return [_call(entry) for entry in entries] if is_call else []


def _call(entry: Any) -> str:
    """Return a tool call as canonical JSON of its name and arguments; arguments as text are decoded."""
    inner = entry.get("function", entry) if isinstance(entry, Mapping) else entry
    if not isinstance(inner, Mapping):
        return canonical_json(entry)
    arguments = _decoded(inner.get("arguments", inner.get("parameters")))
    return canonical_json({"name": inner.get("name"), "arguments": {} if arguments in (None, "") else arguments})


def _reference(value: Any) -> str:
    return canonical_json(_without_bytes(value))


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, Mapping):
        return {name: _without_bytes(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_bytes(part) for part in value]
    return value


def _string(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Reject("wrong_type", f"{where} is {kind_of(value)}, not a string")
    return value
