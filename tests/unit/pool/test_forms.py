"""Records of every form become the same sample, and what is none is rejected."""

import json
from typing import Any, get_args

import pytest

from novelsum_dagster.pool.forms import FORMS, Parsed, Reading, parse
from novelsum_dagster.pool.messages import Roles
from novelsum_dagster.pool.samples import Reject, Sample, Turn, canonical_json, turns_id
from novelsum_dagster.settings import Form, Role

PAIR = (Turn("user", "q"), Turn("assistant", "a"))
TURNS: list[dict[str, Any]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
VALUES = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def sample_of(record: Any, form: Form | None = None, **reading: Any) -> Sample:
    """Return the sample of a record."""
    return read(record, form, **reading).sample


def read(record: Any, form: Form | None = None, **reading: Any) -> Parsed:
    """Return what a record holds."""
    return parse(record, Reading(form, **reading))


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    """Return a record of chat messages."""
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def shared(*turns: tuple[Any, Any]) -> dict[str, Any]:
    """Return a ShareGPT record."""
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


SAME: list[tuple[Form, Any]] = [
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}),
    ("alpaca", {"instruction": "q", "input": " \n", "response": "a"}),
    ("alpaca", {"instruction": "q", "output": None, "response": "a", "id": 7}),
    ("alpaca", {"instruction": "q", "context": "", "response": "a", "category": "c"}),
    ("alpaca", {"instruction": "q", "output": "a", "history": [], "system": ""}),
    ("alpaca", {"INSTRUCTION": "q", "Output": "a"}),
    ("alpaca", {"instruction": "q", "output": "a", "messages": None, "conversations": []}),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
    ("prompt_completion", {"prompt": "q", "response": "a"}),
    ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}),
    ("prompt_completion", {"prompt": TURNS[:1], "completion": "a"}),
    ("prompt_completion", {"prompt": "q", "completion": TURNS[1]}),
    ("prompt_completion", {"question": "q", "answer": "a"}),
    ("prompt_completion", {"query": "q", "response": "a"}),
    ("prompt_completion", {"inputs": "q", "targets": "a"}),
    ("prompt_completion", {"input": "q", "output": "a"}),
    ("prompt_completion", {"problem": "q", "solution": "a", "answer": "7"}),
    ("sharegpt", shared(("human", "q"), ("gpt", "a"))),
    ("sharegpt", shared(("User", "q"), ("Assistant", "a"))),
    ("sharegpt", shared(("prompter", "q"), ("bing", "a"))),
    ("sharegpt", {"messages": VALUES}),
    ("sharegpt", {"conversations": json.dumps(VALUES)}),
    ("sharegpt", VALUES),
    ("messages", chat(("user", "q"), ("assistant", "a"))),
    ("messages", {**chat(("user", "q"), ("assistant", "a")), "output": "not used"}),
    ("messages", chat(("developer", ""), ("user", "q"), ("assistant", "a"))),
    ("messages", chat(("user", [{"type": "text", "text": "q"}]), ("assistant", "a"))),
    ("messages", chat(("user", "q"), ("assistant", "a"), ("assistant", ""))),
    ("messages", {"prompt": "q", "prompt_id": "1", "messages": TURNS}),
    ("messages", {"instruction": "q", "response": "a", "conversation": TURNS}),
    ("messages", {"data": ["q", "a"], "id": "1"}),
    ("messages", {"dialog": TURNS}),
    ("messages", {"turns": TURNS}),
    ("messages", {"conversation": [{"human": "q", "assistant": "a"}]}),
    ("messages", TURNS),
    ("messages", ["q", "a"]),
    ("messages", json.loads(json.dumps({"messages": [{"content": "q", "role": "user"}, TURNS[1]]}))),
]  # fmt: skip


@pytest.mark.parametrize(("form", "record"), SAME)
def test_one_conversation_is_one_sample_in_every_form(form: Form, record: Any) -> None:
    found = sample_of(record)
    assert (found.form, found.turns, found.id) == (form, PAIR, turns_id([("user", "q"), ("assistant", "a")]))
    assert sample_of(record, form) == found


def test_every_form_is_tested() -> None:
    others = {"preference", "text"}
    assert {form for form, _ in SAME} == set(FORMS) - others


BASE: dict[str, Any] = {"messages": TURNS}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL_USE = {"type": "tool_use", "name": "f", "input": {"x": 1}}
CALLING: list[dict[str, Any]] = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
DIFFERENT: list[Any] = [
    BASE,
    {**BASE, "system": "s"},
    {**BASE, "system": "t"},
    {**BASE, "tools": [{"name": "f"}]},
    {**BASE, "tools": [{"name": "f", "strict": True}]},
    {**BASE, "images": ["0.png"]},
    {**BASE, "images": ["1.png"]},
    {**BASE, "audio": {"bytes": b"\xff", "path": None}},
    {**BASE, "audio": {"bytes": b"\xfe", "path": None}},
    {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "r"}]},
    {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]},
    {"messages": [{**TURNS[0], "name": "n"}, TURNS[1]]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image"}]}, TURNS[1]]},
    {"messages": CALLING},
    {"messages": [TURNS[0], {**CALLING[1], "content": "a"}]},
    {"messages": [*CALLING, {"role": "tool", "content": ""}, TURNS[1]]},
    {"messages": [*CALLING, {"role": "tool", "content": "r"}, TURNS[1]]},
    {"messages": [*TURNS, TURNS[0]]},
    {"messages": [TURNS[1], *TURNS]},
    {"messages": [TURNS[0], TURNS[0], TURNS[1]]},
    {"instruction": "q", "input": "i", "output": "a"},
    {"instruction": "q", "context": "c", "output": "a"},
    {"instruction": "q", "output": "a", "history": [["h", "k"]]},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q", "completion": "a", "label": False},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "a", "rejected": "c"},
    {"text": "a"},
    {"messages": [{"role": "user", "content": ["q", {"type": "image"}, "r"]}, TURNS[1]]},
    {"messages": [{"role": "user", "content": ["q", "r", {"type": "image"}]}, TURNS[1]]},
    {"messages": [TURNS[0], {**TURNS[1], "refusal": "no"}]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "r"}]}, *TURNS]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "r", "is_error": True}]}, *TURNS]},
    {"messages": [TURNS[0], {**TURNS[1], "masked": True}], "images": ["2.png"]},
    {"messages": TURNS, "context": "c"},
    {"messages": TURNS, "context": "d"},
    {"messages": TURNS, "history": [["h", "k"]], "system": "s"},
    {"question": "q", "context": ["c", "d"], "answer": "b"},
    {"question": "q", "context": {"x": "c"}, "answer": "b"},
    {"question": "q", "answer": "b", "rationale": "r"},
    {"image_url": "3.png", "question": "q", "answer": "b"},
    {"messages": TURNS, "rejected_response": "d"},
    {"messages": TURNS, "rejected_response": "e"},
    {"conversation": [{"instruction": "q", "input": "j", "output": "a"}]},
    {"conversation": [{"instruction": "r", "input": "j", "output": "a"}]},
    {"segments": [{"label": False, "text": "q"}, {"label": True, "text": "a"}]},
]


def test_samples_differ_where_any_training_content_does() -> None:
    ids = [sample_of(record).id for record in DIFFERENT]
    assert len(set(ids)) == len(DIFFERENT)


EQUAL: list[list[Any]] = [
    [
        {**BASE, "system": "s"},
        chat(("system", "s"), ("user", "q"), ("assistant", "a")),
        {"instruction": "q", "output": "a", "system": "s"},
        {"question": "q", "answer": "a", "system_prompt": "s"},
        {**chat(("developer", "s"), ("user", "q"), ("assistant", "a")), "system": "s"},
        {"messages": [{"from": "system", "value": "s"}, *VALUES]},
    ],
    [
        {"instruction": "q", "output": "a", "history": [["h", "k"]]},
        {"instruction": "q", "output": "a", "history": '[["h", "k"]]'},
        chat(("user", "h"), ("assistant", "k"), ("user", "q"), ("assistant", "a")),
        {"conversation": [{"human": "h", "assistant": "k"}, {"human": "q", "assistant": "a"}]},
        {"data": ["h", "k", "q", "a"]},
    ],
    [
        {"instruction": "q", "input": "i", "output": "a"},
        {"instruction": "q", "context": "i", "response": "a"},
        {"question": "q", "context": "i", "answer": "a"},
        chat(("user", "q\ni"), ("assistant", "a")),
    ],
    [
        {"messages": CALLING},
        {"messages": [TURNS[0], {"role": "assistant", "function_call": {"arguments": '{"x":1}', "name": "f"}}]},
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}]},
        shared(("human", "q"), ("function_call", '{"name": "f", "arguments": {"x": 1.0}}')),
        {"messages": [TURNS[0], {"role": "assistant", "content": [TOOL_USE]}]},
    ],
    [
        {**BASE, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {**BASE, "tools": '[{"parameters": {}, "name": "f"}]'},
        {**BASE, "functions": [{"name": "f", "parameters": {}, "description": None}]},
    ],
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]},
        {"prompt": "q", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]},
        {"conversations": VALUES[:1], "chosen": VALUES[1], "rejected": {"from": "gpt", "value": "b"}},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": TURNS[:1], "chosen": [TURNS[1]], "rejected": [{"role": "assistant", "content": "b"}]},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
        {"input": {"messages": TURNS[:1]}, "preferred_output": TURNS[1:], "non_preferred_output": "b"},
        {"messages": TURNS, "rejected_response": "b"},
    ],
    [
        {"query": "q", "answers": '[{"name": "f", "arguments": {"x": 1}}]', "tools": '[{"name": "f"}]'},
        {"messages": CALLING, "tools": [{"name": "f"}]},
    ],
    [
        {
            "systemInstruction": {"parts": [{"text": "s"}]},
            "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
        },
        {"system": "s", "chat": "USER: q\n\n\nASSISTANT: a"},
        {"system": "s", "messages": TURNS},
    ],
    [
        {"prompt": json.dumps(TURNS[:1]), "completion": json.dumps(TURNS[1:])},
        {"conversation": "abc-123", "prompt": "q", "completion": "a"},
        {"instruction": "", "input": "q", "output": "a"},
        BASE,
    ],
    [
        {"messages": [*CALLING, {"role": "tool", "content": {"y": 1}}, TURNS[1]]},
        {"messages": [*CALLING, {"role": "tool", "content": '{"y":1}'}, TURNS[1]]},
    ],
    [
        {"messages": [TURNS[0], {**TURNS[1], "reasoning": "r"}]},
        {"messages": [TURNS[0], {**TURNS[1], "thinking": "r"}]},
        {"Question": "q", "Complex_CoT": "r", "Response": "a"},
        {"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "thinking", "thinking": "r"}, "a"]}]},
    ],
    [
        {"messages": [TURNS[0], {"role": "assistant", "content": None, "refusal": "no"}]},
        chat(("user", "q"), ("assistant", "no")),
    ],
]  # fmt: skip


@pytest.mark.parametrize("records", EQUAL)
def test_what_says_the_same_is_one_sample(records: list[Any]) -> None:
    assert len({sample_of(record).id for record in records}) == 1


def test_results_belong_to_their_calls() -> None:
    calls = [{**CALL, "id": name} for name in ("one", "two")]
    calling = {"role": "assistant", "tool_calls": calls}
    results = [{"role": "tool", "content": name, "tool_call_id": name} for name in ("one", "two")]
    in_order = sample_of([TURNS[0], calling, *results, TURNS[1]])
    swapped = sample_of([TURNS[0], calling, *results[::-1], TURNS[1]])
    named_otherwise = [{**call, "id": call["id"] * 2} for call in calls]
    answers = [{**result, "tool_call_id": result["content"] * 2} for result in results]
    other_names = sample_of([TURNS[0], {**calling, "tool_calls": named_otherwise}, *answers, TURNS[1]])
    assert [turn.answers for turn in in_order.turns] == [0, 0, 0, 0, 0]
    assert [turn.answers for turn in swapped.turns] == [0, 0, 2, 1, 0]
    assert in_order.id == other_names.id != swapped.id


def test_either_side_of_a_preference_is_the_sample() -> None:
    record = {"prompt": "q", "chosen": "a", "rejected": "b"}
    chosen, rejected = sample_of(record), sample_of(record, preference="rejected")
    assert (chosen.turns, chosen.other_side) == (PAIR, rejected.turns)
    assert rejected.turns[1].text == "b" and rejected.other_side == PAIR


def test_a_last_turn_of_the_user_is_kept() -> None:
    found = sample_of({"messages": [*TURNS, TURNS[0]]})
    assert [turn.role for turn in found.turns] == ["user", "assistant", "user"]
    assert not found.ends_with_answer and sample_of(BASE).ends_with_answer


def test_roles_of_other_names_come_from_the_settings() -> None:
    record = chat(("narrator", "q"), ("Oracle", "a"))
    with pytest.raises(Reject, match=r"pool\.roles"):
        parse(record, Reading())
    assert sample_of(record, roles=Roles({"narrator": "user", "oracle": "assistant"})).turns == PAIR


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("system", ["system", "developer"]),
        ("user", ["user", "human", "Prompter"]),
        ("assistant", ["assistant", "gpt", "bot", "model", "bard", "bing", "ChatGPT", "tool_call", "function_call"]),
        ("tool", ["tool", "function", "observation", "ipython", "tool_response", "tool-response", "environment"]),
    ],
)
def test_common_roles_are_known(role: Role, names: list[str]) -> None:
    assert role in get_args(Role)
    for name in names:
        turns = [*TURNS, {"role": name, "content": "x"}]
        assert sample_of({"messages": turns}).turns[-1].role == role


COLUMNS: list[tuple[dict[str, str], Any]] = [
    ({"prompt": "q", "response": "meta.a"}, {"q": "q", "meta": {"a": "a"}}),
    ({"prompt": "q.text", "response": "q.text.x"}, {"q.text": "q", "q.text.x": "a"}),
    ({"messages": "thread"}, {"thread": TURNS, "prompt": "other"}),
    ({"messages": "body.turns"}, {"body": {"turns": VALUES}}),
    ({"prompt": "completion", "response": "prompt"}, {"completion": "q", "prompt": "a"}),
]


@pytest.mark.parametrize(("columns", "record"), COLUMNS)
def test_columns_are_mapped(columns: dict[str, str], record: Any) -> None:
    assert sample_of(record, columns=columns).turns == PAIR


def test_a_mapping_may_name_every_part() -> None:
    columns = {
        "prompt": "p",
        "input": "i",
        "response": "r",
        "system": "s",
        "history": "h",
        "tools": "t",
        "reasoning": "c",
    }
    record = {"p": "q", "i": "x", "r": "a", "s": "sys", "h": [["h", "k"]], "t": [{"name": "f"}], "c": "why", "id": 1}
    found = read(record, columns=columns)
    assert [(turn.role, turn.text, turn.reasoning) for turn in found.sample.turns] == [
        ("system", "sys", ""), ("user", "h", ""), ("assistant", "k", ""), ("user", "q\nx", ""),
        ("assistant", "a", "why"),
    ]  # fmt: skip
    assert found.sample.tools == canonical_json([{"name": "f"}])
    assert set(found.other) == {"id"}


def test_columns_that_were_not_read_are_named() -> None:
    turns = [{**TURNS[0], "time": 1}, {**TURNS[1], "time": 2, "tokens": None}]
    found = read({"messages": turns, "score": 0.5, "empty": None, "system": "s"})
    assert found.columns == {"messages", "system"}
    assert found.other == {"score": 0.5, "messages[].time": [1, 2]}


def test_a_mapping_counts_what_it_reads_and_nothing_else() -> None:
    columns = {"prompt": "qa.q", "response": "qa.a", "system": "s"}
    found = read({"qa": {"q": "q", "a": "a", "note": 1}, "s": None, "t": 2}, columns=columns)
    assert found.columns == {"qa.q", "qa.a"}
    assert found.other == {"qa.note": 1, "t": 2}
    assert sample_of({"m": TURNS, "r": "b"}, columns={"messages": "m", "rejected": "r"}).other_side[-1].text == "b"


def test_the_former_id_is_that_of_releases_before() -> None:
    pair = turns_id([("user", "q"), ("assistant", "a")])
    system = turns_id([("system", "s"), ("user", "q"), ("assistant", "a")])
    assert read(BASE).former_id == ""
    assert read({**BASE, "system": "s"}).former_id == pair
    assert read(chat(("system", "s"), ("user", "q"), ("assistant", "a"))).former_id == system
    assert read({"instruction": "q", "output": "a", "history": [["h", "k"]]}).former_id == pair
    assert read({"instruction": "q", "context": "c", "response": "a"}).former_id == pair
    assert read({"instruction": "q", "input": "i", "response": "a"}).former_id == ""


BAD: list[tuple[str, Any]] = [
    ("missing_fields", {"instruction": "q"}),
    ("missing_fields", {"instruction": None, "output": "a"}),
    ("missing_fields", {"instruction": "q", "output": None}),
    ("missing_fields", {"output": "a"}),
    ("missing_fields", {"turns": ["q", "q2"]}),
    ("missing_fields", {}),
    ("missing_fields", {"\ud800": 1}),
    ("missing_fields", {"messages": None}),
    ("missing_fields", chat((None, "q"), ("assistant", "a"))),
    ("missing_fields", {"conversations": [{"from": "human"}]}),
    ("empty_field", {"instruction": " ", "output": "a"}),
    ("empty_field", {"instruction": "q", "output": "\n"}),
    ("empty_field", {"messages": []}),
    ("empty_field", chat(("user", ""), ("assistant", "a"))),
    ("empty_field", chat(("user", None), ("assistant", "a"))),
    ("empty_field", chat(("user", "q"), ("assistant", ""), ("user", "q"))),
    ("empty_field", {"text": " "}),
    ("empty_field", {"prompt": "q", "chosen": "", "rejected": "b"}),
    ("wrong_type", {"instruction": 1.0, "output": "a"}),
    ("wrong_type", {"instruction": "q", "output": [["a"]]}),
    ("wrong_type", {"instruction": "q", "input": {"x": 1}, "output": "a"}),
    ("wrong_type", {"prompt": "q", "completion": True}),
    ("wrong_type", {"text": 1}),
    ("wrong_type", {"instruction": "q", "output": ["good", "bad"]}),
    ("wrong_type", {"prompt": "q", "chosen": ["x", "y"], "rejected": ["z"]}),
    ("missing_fields", {"message_id": "1", "text": "q", "role": "prompter"}),
    ("wrong_type", {"messages": "q"}),
    ("wrong_type", {"messages": [*TURNS, "q"]}),
    ("wrong_type", chat((1, "q"), ("assistant", "a"))),
    ("wrong_type", chat(("user", [{"type": "hologram"}]), ("assistant", "a"))),
    ("invalid_unicode", {"instruction": "q \ud800", "output": "a"}),
    ("invalid_unicode", {"instruction": "q", "input": "\udfff", "output": "a"}),
    ("unknown_role", chat(("narrator", "q"), ("assistant", "a"))),
    ("unknown_role", chat(("\ud800", "q"), ("assistant", "a"))),
    ("no_user_turn", chat(("system", "q"), ("assistant", "a"))),
    ("no_user_turn", shared(("gpt", "a"))),
    ("no_assistant_turn", chat(("user", "q"))),
    ("no_assistant_turn", chat(("user", "q"), ("assistant", ""))),
    ("no_assistant_turn", shared(("system", "s"), ("human", "q"))),
]


@pytest.mark.parametrize(("reason", "record"), BAD)
def test_a_record_that_is_no_sample_is_rejected(reason: str, record: Any) -> None:
    with pytest.raises(Reject) as reject:
        sample_of(record)
    assert reject.value.reason == reason
    # Details are written to Parquet, which takes no lone surrogates.
    assert reject.value.detail.encode()


@pytest.mark.parametrize(
    ("detail", "record"),
    [
        ("no output or response", {"instruction": "q"}),
        ("turn 2: the role is a number", chat(("user", "q"), (3.0, "a"))),
        ("turn 2 (assistant): no content", chat(("user", "q"), ("assistant", None), ("user", "r"))),
        ("turn 1: 'narrator'", chat(("narrator", "q"))),
        ("lone surrogate at character 2", chat(("user", "ab\ud800"), ("assistant", "a"))),
    ],
)
def test_a_detail_says_what_was_found(detail: str, record: dict[str, Any]) -> None:
    with pytest.raises(Reject) as reject:
        sample_of(record)
    assert detail in reject.value.detail


def test_a_stated_form_is_the_only_one() -> None:
    record = {"prompt": "other", "completion": "other", **chat(("user", "q"), ("assistant", "a"))}
    assert sample_of(record, "messages").turns == PAIR == sample_of(record).turns
    assert sample_of(record, "sharegpt").turns == PAIR
    assert sample_of(record, "prompt_completion").turns[0].text == "other"
    with pytest.raises(Reject) as reject:
        sample_of(record, "alpaca")
    assert reject.value.reason == "mixed_forms"
