"""Any conversation is one sample however it is written, and any value at all is a sample or a reject."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from novelsum_dagster.pool.forms import Reading, parse
from novelsum_dagster.pool.samples import Reject, Sample, Turn
from novelsum_dagster.pool.texts import WHOLE, text_of
from novelsum_dagster.settings import TextRule

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
NAMES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "Bot"),
    "system": ("system", "developer"),
    "tool": ("tool", "observation", "ipython", "tool_response"),
}
CALL = st.builds(lambda name, value: {"name": name, "arguments": {"x": value}}, TEXT, st.integers() | TEXT)
NOTHING: list[Any] = [None, "", [], {}]


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return turns with roles, texts and what else a model is trained on; user and assistant have one at least."""
    roles = ["user", "assistant", *draw(st.lists(st.sampled_from(list(NAMES)), max_size=3))]
    made = []
    for role in draw(st.permutations(roles)):
        turn: dict[str, Any] = {"role": role, "text": draw(TEXT)}
        if role == "assistant":
            turn["reasoning"] = draw(st.none() | TEXT)
            turn["calls"] = draw(st.lists(CALL, max_size=2))
        made.append(turn)
    return made


def written(draw: st.DataObject, turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn as one of the formats has it."""
    role_field, text_field = draw.draw(st.sampled_from([("role", "content"), ("from", "value"), ("role", "text")]))
    text: Any = turn["text"]
    if text_field == "content" and draw.draw(st.booleans()):
        text = [{"type": "text", "text": text}]
    item = {role_field: draw.draw(st.sampled_from(NAMES[turn["role"]])), text_field: text}
    if turn.get("reasoning"):
        item[draw.draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))] = turn["reasoning"]
    if calls := turn.get("calls"):
        as_text = draw.draw(st.booleans())
        item["tool_calls"] = [
            {
                "id": str(at),
                "function": {**call, "arguments": json.dumps(call["arguments"]) if as_text else call["arguments"]},
            }
            for at, call in enumerate(calls)
        ]
    for name in draw.draw(
        st.lists(st.sampled_from(["tool_calls", "name", "reasoning", "refusal", "weight"]), max_size=2)
    ):
        item.setdefault(name, None)
    return dict(draw.draw(st.permutations(list(item.items()))))


@settings(max_examples=150, deadline=None)
@given(
    conversation=turns(), tools=st.none() | st.lists(st.fixed_dictionaries({"name": TEXT}), min_size=1), data=st.data()
)
def test_one_conversation_is_one_sample_however_it_is_written(
    conversation: list[dict[str, Any]], tools: list[dict[str, Any]] | None, data: st.DataObject
) -> None:
    found = []
    for _ in range(3):
        column = data.draw(st.sampled_from(["messages", "conversations", "conversation", "turns", "dialog"]))
        items: Any = [written(data, turn) for turn in conversation]
        record: dict[str, Any] = {column: json.dumps(items) if data.draw(st.booleans()) else items}
        if tools is not None:
            record["tools"] = json.dumps(tools) if data.draw(st.booleans()) else tools
        for name in data.draw(st.lists(st.sampled_from(["instruction", "prompt", "output", "score", "history"]))):
            record.setdefault(name, None)
        found.append(parse(record, Reading()).sample)
    assert len({sample.id for sample in found}) == 1
    whole, text = text_of(found[0], WHOLE), text_of(found[0], TextRule())
    for turn in conversation:
        assert turn["text"] in whole
        assert turn["text"] in text or turn["role"] == "system"


@settings(max_examples=150, deadline=None)
@given(first=turns(), second=turns())
def test_other_content_is_another_sample(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    def sample(conversation: list[dict[str, Any]]) -> Sample:
        items = [
            {
                "role": turn["role"],
                "content": turn["text"],
                "reasoning": turn.get("reasoning"),
                "tool_calls": turn.get("calls"),
            }
            for turn in conversation
        ]
        return parse({"messages": items}, Reading()).sample

    def content(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in turn.items() if value} for turn in conversation]

    assert (sample(first).id == sample(second).id) == (content(first) == content(second))


@settings(max_examples=150, deadline=None)
@given(
    system=TEXT | st.sampled_from(NOTHING),
    history=st.lists(st.tuples(TEXT, TEXT).map(list), max_size=2),
    prompt=TEXT,
    extra=TEXT | st.sampled_from([None, "", " "]),
    answer=TEXT,
    data=st.data(),
)
def test_pairs_are_the_same_in_every_form(
    system: Any, history: list[list[str]], prompt: str, extra: str | None, answer: str, data: st.DataObject
) -> None:
    said = f"{prompt}\n{extra}" if extra and extra.strip() else prompt
    expected = [Turn("system", system)] if system not in NOTHING else []
    for asked, replied in history:
        expected += [Turn("user", asked), Turn("assistant", replied)]
    expected += [Turn("user", said), Turn("assistant", answer)]
    beside = {"system": system, "history": history or data.draw(st.sampled_from([None, []]))}
    listed = [{"role": turn.role, "content": turn.text} for turn in expected]
    for record in (
        {"instruction": prompt, "input": extra, "output": answer, **beside},
        {"instruction": prompt, "context": extra, "response": answer, **beside},
        {"prompt": said, "completion": answer, **beside},
        {"question": said, "answer": answer, **beside},
        {"messages": listed},
        listed,
    ):
        assert parse(record, Reading()).sample.turns == tuple(expected)


INNER = st.sampled_from(
    [
        "role",
        "from",
        "content",
        "value",
        "text",
        "type",
        "messages",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "images",
        "tools",
        "system",
        "history",
        "label",
        "parts",
    ]
) | st.text(max_size=3)
COLUMNS = st.sampled_from(
    [
        "messages",
        "conversations",
        "data",
        "turns",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "system",
        "chosen",
        "rejected",
        "text",
        "history",
        "tools",
        "images",
        "label",
        "reasoning",
        "question",
        "answer",
        "context",
    ]
) | st.text(max_size=3)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(INNER, inner, max_size=5),
    max_leaves=20,
)
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@settings(max_examples=400, deadline=None)
@given(record=st.dictionaries(COLUMNS, ANY | st.sampled_from([TURNS, "q", "a"]), max_size=6))
def test_any_record_is_a_sample_or_a_reject(record: dict[str, Any]) -> None:
    try:
        parsed = parse(record, Reading())
    except Reject as reject:
        assert reject.reason and reject.detail.encode()
        return
    assert len(parsed.sample.id) == 32
    assert text_of(parsed.sample, WHOLE).encode() is not None
    assert {turn.role for turn in parsed.sample.turns} <= {"system", "user", "assistant", "tool"}
    assert not parsed.columns & parsed.other.keys()
