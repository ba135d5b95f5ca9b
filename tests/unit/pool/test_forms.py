"""Records of four forms become the same turns, and what is none of them is rejected."""

from typing import Any

import pytest

from novelsum_dagster.pool.forms import FORMS, Form, recognise, turns_of
from novelsum_dagster.pool.samples import Reject, Turn, sample_id

PAIR = [Turn("user", "q"), Turn("assistant", "a")]


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    """Return a record of chat messages."""
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def shared(*turns: tuple[Any, Any]) -> dict[str, Any]:
    """Return a ShareGPT record."""
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


SAME: list[tuple[Form, dict[str, Any]]] = [
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}),
    ("alpaca", {"instruction": "q", "input": " \n", "response": "a"}),
    ("alpaca", {"instruction": "q", "output": None, "response": "a", "id": 7}),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
    ("prompt_completion", {"prompt": "q", "response": "a"}),
    ("sharegpt", shared(("human", "q"), ("gpt", "a"))),
    ("sharegpt", shared(("User", "q"), ("Assistant", "a"))),
    ("sharegpt", shared(("prompter", "q"), ("model", "a"))),
    ("messages", chat(("user", "q"), ("assistant", "a"))),
    ("messages", {**chat(("user", "q"), ("assistant", "a")), "output": "not used"}),
]


@pytest.mark.parametrize(("form", "record"), SAME)
def test_one_conversation_has_the_same_turns_in_every_form(form: Form, record: dict[str, Any]) -> None:
    assert recognise(record) == form
    assert turns_of(record, form) == PAIR


def test_alpaca_input_is_part_of_the_question() -> None:
    record = {"instruction": "q", "input": "more", "output": "a"}
    assert turns_of(record, "alpaca") == [Turn("user", "q\nmore"), Turn("assistant", "a")]


def test_all_turns_are_kept_in_order() -> None:
    record = shared(("system", "s"), ("human", "q"), ("function_call", "f"), ("observation", "o"), ("gpt", "a"))
    assert [turn.role for turn in turns_of(record, "sharegpt")] == ["system", "user", "assistant", "tool", "assistant"]
    assert [turn.text for turn in turns_of(record, "sharegpt")] == ["s", "q", "f", "o", "a"]


BAD: list[tuple[str, Form, dict[str, Any]]] = [
    ("missing_fields", "alpaca", {"instruction": "q"}),
    ("missing_fields", "alpaca", {"instruction": None, "output": "a"}),
    ("missing_fields", "alpaca", {"instruction": "q", "output": None}),
    ("missing_fields", "alpaca", {"output": "a"}),
    ("missing_fields", "alpaca", {}),
    ("empty_field", "alpaca", {"instruction": " ", "output": "a"}),
    ("empty_field", "alpaca", {"instruction": "q", "output": "\n"}),
    ("wrong_type", "alpaca", {"instruction": 1.0, "output": "a"}),
    ("wrong_type", "alpaca", {"instruction": "q", "output": ["a"]}),
    ("wrong_type", "alpaca", {"instruction": "q", "input": {"x": 1}, "output": "a"}),
    ("invalid_unicode", "alpaca", {"instruction": "q \ud800", "output": "a"}),
    ("invalid_unicode", "alpaca", {"instruction": "q", "input": "\udfff", "output": "a"}),
    ("mixed_forms", "alpaca", {"prompt": "q", "completion": "a"}),
    ("mixed_forms", "messages", {"instruction": "q", "output": "a"}),
    ("missing_fields", "prompt_completion", {"prompt": "q", "output": "a"}),
    ("wrong_type", "prompt_completion", {"prompt": [{"role": "user"}], "completion": "a"}),
    ("wrong_type", "prompt_completion", {"prompt": "q", "completion": True}),
    ("wrong_type", "messages", {"messages": "q"}),
    ("wrong_type", "messages", {"messages": None}),
    ("wrong_type", "messages", {"messages": ["q", "a"]}),
    ("wrong_type", "messages", chat(("user", ["q"]), ("assistant", "a"))),
    ("wrong_type", "messages", chat((1, "q"), ("assistant", "a"))),
    ("missing_fields", "messages", chat(("user", None), ("assistant", "a"))),
    ("missing_fields", "messages", chat((None, "q"), ("assistant", "a"))),
    ("missing_fields", "sharegpt", {"conversations": [{"role": "user", "content": "q"}]}),
    ("missing_fields", "sharegpt", {"conversations": [{"from": "human"}]}),
    ("empty_field", "messages", {"messages": []}),
    ("empty_field", "messages", chat(("user", ""), ("assistant", "a"))),
    ("unknown_role", "messages", chat(("narrator", "q"), ("assistant", "a"))),
    ("unknown_role", "messages", chat(("\ud800", "q"), ("assistant", "a"))),
    ("no_user_turn", "messages", chat(("system", "q"), ("assistant", "a"))),
    ("no_user_turn", "sharegpt", shared(("gpt", "a"))),
    ("no_assistant_turn", "messages", chat(("user", "q"))),
    ("no_assistant_turn", "sharegpt", shared(("system", "s"), ("human", "q"))),
]


@pytest.mark.parametrize(("reason", "form", "record"), BAD)
def test_a_record_that_is_no_sample_is_rejected(reason: str, form: Form, record: dict[str, Any]) -> None:
    with pytest.raises(Reject) as reject:
        turns_of(record, form)
    assert reject.value.reason == reason
    # Details are written to Parquet, which takes no lone surrogates.
    assert reject.value.detail.encode()


@pytest.mark.parametrize(
    ("detail", "record"),
    [
        ("no output or response", {"instruction": "q"}),
        ("turn 2: role is a number", chat(("user", "q"), (3.0, "a"))),
        ("turn 2: no content", chat(("user", "q"), ("assistant", None))),
        ("turn 1: 'narrator'", chat(("narrator", "q"))),
        ("lone surrogate at character 2", chat(("user", "ab\ud800"), ("assistant", "a"))),
    ],
)
def test_a_detail_says_what_was_found(detail: str, record: dict[str, Any]) -> None:
    with pytest.raises(Reject) as reject:
        turns_of(record, recognise(record))
    assert detail in reject.value.detail


@pytest.mark.parametrize("record", [{}, {"text": "q"}, {"INSTRUCTION": "q"}, {"\ud800": 1}])
def test_a_record_of_no_form_is_not_recognised(record: dict[str, Any]) -> None:
    with pytest.raises(Reject) as reject:
        recognise(record)
    assert reject.value.reason == "missing_fields" and reject.value.detail.encode()


def test_a_record_of_two_forms_is_read_in_the_stated_one_only() -> None:
    record = {"prompt": "other", "completion": "other", **chat(("user", "q"), ("assistant", "a"))}
    with pytest.raises(Reject, match="state the source's form") as reject:
        recognise(record)
    assert reject.value.reason == "mixed_forms"
    assert turns_of(record, "messages") == PAIR
    assert turns_of(record, "prompt_completion") != PAIR


def test_every_form_is_tested() -> None:
    assert {form for form, _ in SAME} == set(FORMS) == {form for _, form, _ in BAD}
    assert len({sample_id(turns_of(record, form)) for form, record in SAME}) == 1
