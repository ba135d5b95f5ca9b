"""An id depends on the training content alone, and on all of it."""

import random
import re

import pytest

from novelsum_dagster.pool.samples import Reject, Sample, Turn, canonical_json
from novelsum_dagster.pool.texts import WHOLE, text_of
from novelsum_dagster.settings import TextRule

PAIR = (Turn("user", "q"), Turn("assistant", "a"))


def id_of(*turns: Turn) -> str:
    """Return the id of a sample with these turns alone."""
    return Sample(turns, "messages").id


def test_an_id_is_fixed_for_all_time() -> None:
    # Ids are in users' lineage: they must not change from one release to the next.
    assert id_of(*PAIR) == "b97259b5ad9ab7fb90cabe9620c26dfb"
    assert id_of(Turn("user", "é😀\n"), Turn("assistant", "\x00")) == "fe29f1359db9b27bc8f2ef093c2f8d2d"
    everything = Sample(
        (
            Turn("system", "s"),
            Turn("user", "q", name="n", media=('"0.png"',)),
            Turn("assistant", "", "r", ('{"arguments":{},"name":"f"}',), is_trained=False),
            Turn("tool", "", answers=2),
        ),
        "messages",
        tools='[{"name":"f"}]',
        media=('"1.png"',),
        other_side=PAIR,
        label=False,
    )
    assert everything.id == "6fa6efdb27778c14c60a3d4e4da51447"


def test_an_id_is_hexadecimal() -> None:
    assert re.fullmatch("[0-9a-f]{32}", id_of(*PAIR))


@pytest.mark.parametrize(
    "other",
    [
        [Turn("user", "Q"), Turn("assistant", "a")],
        [Turn("user", "q "), Turn("assistant", "a")],
        [Turn("system", "q"), Turn("assistant", "a")],
        [Turn("assistant", "a"), Turn("user", "q")],
        [Turn("user", "q\na"), Turn("assistant", "a")],
        [*PAIR, Turn("user", "")],
        [Turn("user", "e\u0301"), Turn("assistant", "a")],
        [Turn("user", "\u00e9"), Turn("assistant", "a")],
        [Turn("user", "q"), Turn("assistant", "a", "r")],
        [Turn("user", "q"), Turn("assistant", "a", is_trained=False)],
        PAIR[:1],
    ],
)
def test_another_conversation_has_another_id(other: list[Turn]) -> None:
    assert id_of(*other) != id_of(*PAIR)


def test_moving_text_between_turns_changes_the_id() -> None:
    draw = random.Random(1)
    found: dict[str, tuple[str, ...]] = {}
    for _ in range(3000):
        texts = tuple("".join(draw.choices('ab\\"[],\n', k=draw.randrange(4))) for _ in range(draw.randrange(1, 4)))
        id_ = id_of(*(Turn("user", text) for text in texts))
        assert found.setdefault(id_, texts) == texts
    assert len(found) > 1000


SAMPLE = Sample(
    (
        Turn("system", "s"),
        Turn("user", "q"),
        Turn("assistant", "", "r", ("call",)),
        Turn("tool", "t"),
        Turn("assistant", "a\nb"),
    ),
    "messages",
    tools="defs",
)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (TextRule(), "q\ncall\nt\na\nb"),
        (TextRule("prompt"), "q"),
        (TextRule("response"), "call\na\nb"),
        (TextRule("turns", ("system",)), "s\nq\ncall\nt\na\nb"),
        (TextRule("response", ("reasoning", "tools")), "defs\nr\ncall\na\nb"),
        (WHOLE, "defs\ns\nq\nr\ncall\nt\na\nb"),
    ],
)
def test_the_text_is_the_chosen_turns_joined_by_newlines(rule: TextRule, text: str) -> None:
    assert text_of(SAMPLE, rule) == text


def test_canonical_json_is_equal_for_equal_values() -> None:
    assert canonical_json({"b": 1.0, "a": [2**60, 0.5, None], "c": None}) == f'{{"a":[{2**60},0.5,null],"b":1}}'


def test_a_reject_says_its_reason_and_detail() -> None:
    reject = Reject("empty_field", "output is empty")
    assert (reject.reason, reject.detail, str(reject)) == (
        "empty_field",
        "output is empty",
        "empty_field: output is empty",
    )
