"""Near-duplicates have a partner and a score; the first of a group stays unflagged."""

import random

import pytest

from novelsum_dagster.pool.duplicates import SHINGLE_BYTES, NearDuplicate, near_duplicates
from tests.pools import pairs


def texts(count: int) -> list[str]:
    """Return distinct long texts."""
    return [answer for _, answer in pairs(count * 2) if len(answer) > 300][:count]


def jaccard(one: str, two: str) -> float:
    """Return the exact similarity that MinHash estimates."""
    first, second = (
        {data[start : start + SHINGLE_BYTES] for start in range(len(data) - SHINGLE_BYTES + 1)}
        for data in (one.encode(), two.encode())
    )
    return len(first & second) / len(first | second)


def test_an_edited_copy_is_flagged_with_its_partner_and_score() -> None:
    plain = texts(30)
    edited = plain[7].replace("array", "Array", 1) + " Really."
    samples = [(str(number), text) for number, text in enumerate(plain)] + [("copy", edited)]
    found = [near for near in near_duplicates(samples, 0.8) if near.id == "copy"]
    assert [near.partner_id for near in found] == ["7"]
    assert found[0].score == pytest.approx(jaccard(plain[7], edited), abs=0.15)
    assert found[0].score >= 0.8


def test_unlike_texts_are_not_flagged() -> None:
    samples = [("a", "The cat sat on the mat. " * 3), ("b", "Quantum fields fluctuate in vacuum! " * 3)]
    assert list(near_duplicates(samples, 0.5)) == []


def test_partners_are_earlier_and_unflagged() -> None:
    draw = random.Random(4)
    samples = []
    for number, text in enumerate(texts(15)):
        for copy in range(4):
            letters = list(text)
            for _ in range(draw.randrange(6)):
                letters[draw.randrange(len(letters))] = draw.choice("xyz")
            samples.append((f"{number}-{copy}", "".join(letters)))
    found = list(near_duplicates(samples, 0.7))
    order = [id_ for id_, _ in samples]
    flagged = {near.id for near in found}
    assert len(flagged) == len(found) > 20
    for near in found:
        assert order.index(near.partner_id) < order.index(near.id)
        assert near.partner_id not in flagged
        assert 0.7 <= near.score <= 1
        assert near.score == pytest.approx(jaccard(dict(samples)[near.id], dict(samples)[near.partner_id]), abs=0.2)


@pytest.mark.parametrize(("threshold", "flagged"), [(0.3, True), (0.8, True), (1.0, False)])
def test_the_threshold_decides(threshold: float, flagged: bool) -> None:
    text = texts(1)[0]
    samples = [("a", text), ("b", text + " And one more sentence.")]
    assert bool(list(near_duplicates(samples, threshold))) == flagged


@pytest.mark.parametrize("threshold", [0.01, 0.95, 0.988, 0.99, 1.0])
def test_equal_sets_are_flagged_at_every_threshold(threshold: float) -> None:
    samples = [("a", "abcde" * 20), ("b", "abcde" * 30)]
    assert list(near_duplicates(samples, threshold)) == [NearDuplicate("b", "a", 1.0)]


@pytest.mark.parametrize("text", ["", "a", "abcd", "é", "日本語の文章", "def f():\n\treturn 1"])
def test_short_texts_in_any_script_work(text: str) -> None:
    samples = [("a", text), ("b", text), ("c", "something else")]
    assert list(near_duplicates(samples, 0.8)) == [NearDuplicate("b", "a", 1.0)]


def test_the_same_samples_give_the_same_pairs() -> None:
    samples = [(str(number), text[:200]) for number, text in enumerate(texts(40))]
    assert list(near_duplicates(samples, 0.4)) == list(near_duplicates(samples, 0.4))
