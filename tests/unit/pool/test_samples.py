"""An id depends on roles and texts alone, and on all of them."""

import random
import re

import pytest

from novelsum_dagster.pool.samples import Reject, Turn, joined_text, sample_id

PAIR = [Turn("user", "q"), Turn("assistant", "a")]


def test_an_id_is_fixed_for_all_time() -> None:
    # Ids are in users' lineage: they must not change from one release to the next.
    assert sample_id(PAIR) == "b97259b5ad9ab7fb90cabe9620c26dfb"
    assert sample_id([Turn("user", "é😀\n"), Turn("assistant", "\x00")]) == "fe29f1359db9b27bc8f2ef093c2f8d2d"


def test_an_id_is_hexadecimal() -> None:
    assert re.fullmatch("[0-9a-f]{32}", sample_id(PAIR))


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
        PAIR[:1],
    ],
)
def test_another_conversation_has_another_id(other: list[Turn]) -> None:
    assert sample_id(other) != sample_id(PAIR)


def test_moving_text_between_turns_changes_the_id() -> None:
    draw = random.Random(1)
    found: dict[str, tuple[str, ...]] = {}
    for _ in range(3000):
        texts = tuple("".join(draw.choices('ab\\"[],\n', k=draw.randrange(4))) for _ in range(draw.randrange(1, 4)))
        id_ = sample_id([Turn("user", text) for text in texts])
        assert found.setdefault(id_, texts) == texts
    assert len(found) > 1000


def test_the_text_is_all_turns_joined_by_newlines() -> None:
    assert joined_text([Turn("system", "s"), *PAIR, Turn("user", "x\ny")]) == "s\nq\na\nx\ny"


def test_a_reject_says_its_reason_and_detail() -> None:
    reject = Reject("empty_field", "output is empty")
    assert (reject.reason, reject.detail, str(reject)) == (
        "empty_field",
        "output is empty",
        "empty_field: output is empty",
    )
