"""The forms in which instruction records come, and how each becomes turns.

Belongs here: recognising Alpaca, ShareGPT, chat messages and prompt/completion, and their field checks.
Does not: reading files (`readers`), ids (`samples`).
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from novelsum_dagster.pool.samples import Reject, Turn

Form = Literal["alpaca", "sharegpt", "messages", "prompt_completion"]
FORMS: tuple[Form, ...] = get_args(Form)

_MARKS: dict[Form, str] = {
    "alpaca": "instruction",
    "sharegpt": "conversations",
    "messages": "messages",
    "prompt_completion": "prompt",
}
_ANSWERS: dict[Form, tuple[str, ...]] = {
    "alpaca": ("output", "response"),
    "prompt_completion": ("completion", "response"),
}
_TURN_FIELDS: dict[Form, tuple[str, str]] = {"sharegpt": ("from", "value"), "messages": ("role", "content")}
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


def recognise(record: Mapping[str, Any]) -> Form:
    """Return the form of a record by its field names.

    Raises:
        Reject: `missing_fields` where no form fits, `mixed_forms` where more than one does.
    """
    fitting = [form for form in FORMS if _MARKS[form] in record]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Reject("mixed_forms", f"has the fields of {' and '.join(fitting)}; state the source's form")
    raise Reject("missing_fields", f"fields {sorted(record)[:8]} fit none of {', '.join(FORMS)}")


def turns_of(record: Mapping[str, Any], form: Form) -> list[Turn]:
    """Return the turns of a record written in `form`.

    Raises:
        Reject: `missing_fields`, `mixed_forms`, `wrong_type`, `empty_field`, `unknown_role`, `no_user_turn`,
            `no_assistant_turn` or `invalid_unicode`.
    """
    if _MARKS[form] not in record:
        found = recognise(record)
        raise Reject("mixed_forms", f"the record is {found}, the source is {form}; form: any takes each record's own")
    turns = _listed_turns(record, form) if form in _TURN_FIELDS else _paired_turns(record, form)
    for turn in turns:
        _check_unicode(turn.text)
    roles = {turn.role for turn in turns}
    if "user" not in roles:
        raise Reject("no_user_turn", "no turn is the user's")
    if "assistant" not in roles:
        raise Reject("no_assistant_turn", "no turn is the assistant's")
    return turns


def _paired_turns(record: Mapping[str, Any], form: Form) -> list[Turn]:
    answer = next((name for name in _ANSWERS[form] if record.get(name) is not None), None)
    if answer is None:
        raise Reject("missing_fields", f"no {' or '.join(_ANSWERS[form])}")
    question = _text(record, _MARKS[form])
    extra = record.get("input") if form == "alpaca" else None
    if extra is not None and not isinstance(extra, str):
        raise Reject("wrong_type", f"input is {_kind(extra)}, not a string")
    if extra and extra.strip():
        question = f"{question}\n{extra}"
    return [Turn("user", question), Turn("assistant", _text(record, answer))]


def _listed_turns(record: Mapping[str, Any], form: Form) -> list[Turn]:
    items = record[_MARKS[form]]
    if not isinstance(items, list):
        raise Reject("wrong_type", f"{_MARKS[form]} is {_kind(items)}, not a list")
    role_field, text_field = _TURN_FIELDS[form]
    turns = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise Reject("wrong_type", f"turn {number} is {_kind(item)}, not an object")
        role = item.get(role_field)
        if role is None:
            raise Reject("missing_fields", f"turn {number}: no {role_field}")
        if not isinstance(role, str):
            raise Reject("wrong_type", f"turn {number}: {role_field} is {_kind(role)}, not a string")
        if role.lower() not in _ROLES:
            raise Reject("unknown_role", f"turn {number}: {role!r:.60}")
        turns.append(Turn(_ROLES[role.lower()], _text(item, text_field, f"turn {number}: ")))
    if not turns:
        raise Reject("empty_field", f"{_MARKS[form]} is empty")
    return turns


def _text(record: Mapping[str, Any], name: str, where: str = "") -> str:
    value = record.get(name)
    if value is None:
        raise Reject("missing_fields", f"{where}no {name}")
    if not isinstance(value, str):
        raise Reject("wrong_type", f"{where}{name} is {_kind(value)}, not a string")
    if not value.strip():
        raise Reject("empty_field", f"{where}{name} is empty")
    return value


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Reject("invalid_unicode", f"a lone surrogate at character {error.start}") from None


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
