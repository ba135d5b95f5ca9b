"""Near-duplicates have a partner and a score; the first of a group stays unflagged."""

import random
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from novelsum_dagster.pool import duplicates
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


# Templates: prompts and instructions that many samples share.


def prose(seed: str, words: int) -> str:
    """Return words that no other seed has."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(2, 10))) for _ in range(words))


TEMPLATE = prose("template", 400)
THINGS = prose("things", 24).split()


def different(count: int = 24) -> list[str]:
    """Return texts of about 120 bytes that have nothing in common."""
    return [prose(str(number), 20) for number in range(count)]


def nearly_equal(count: int = 24) -> list[str]:
    """Return one text of about 900 bytes with one word replaced, at another place in each."""
    found = []
    for number in range(count):
        words = prose("one", 150).split()
        words[2 + 6 * number] = THINGS[number]
        found.append(" ".join(words))
    return found


def flagged(texts: list[str], threshold: float = 0.8) -> dict[str, str]:
    """Return partners by flagged sample; ids are places."""
    samples = [(str(place), text) for place, text in enumerate(texts)]
    return {near.id: near.partner_id for near in near_duplicates(samples, threshold)}


@pytest.mark.parametrize("pattern", ["{0}\n{1}", "{1}\n{0}", "{0} The question is: {1} Answer it now."])
def test_different_samples_that_share_a_long_prompt_are_not_flagged(pattern: str) -> None:
    samples = [pattern.format(TEMPLATE, text) for text in different()]
    assert min(jaccard(samples[0], other) for other in samples[1:]) > 0.8
    assert flagged(samples) == {}


@pytest.mark.parametrize("pattern", ["{0}\n{1}", "{1}\n{0}", "{1}"])
def test_nearly_equal_samples_that_share_a_long_prompt_are_flagged(pattern: str) -> None:
    assert len(flagged([pattern.format(TEMPLATE, text) for text in nearly_equal()])) == 23


def test_an_edited_copy_among_samples_that_share_a_long_prompt_is_flagged_with_its_partner() -> None:
    samples = [f"{TEMPLATE}\n{text}" for text in different()]
    edited = samples[7][:-30] + "xyz" + samples[7][-27:]
    assert flagged([*samples, edited]) == {"24": "7"}


def test_nearly_equal_samples_are_flagged_among_different_ones_that_share_their_prompt() -> None:
    samples = [f"{TEMPLATE}\n{text}" for text in [*different(), *nearly_equal(12)]]
    assert sorted(flagged(samples), key=int) == [str(place) for place in range(25, 36)]


def test_samples_that_differ_in_a_few_words_only_are_flagged_whatever_they_share() -> None:
    assert len(flagged([f"{TEMPLATE}\nIs {thing} one of the rules?" for thing in THINGS])) == len(THINGS) - 1


def test_a_prompt_that_few_samples_share_counts() -> None:
    samples = [f"{TEMPLATE}\n{text}" for text in different(7)]
    assert len(flagged(samples)) == 6


def test_a_prompt_of_one_source_does_not_count_in_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in a part of the pool only."""
    monkeypatch.setattr(duplicates, "_COUNTED_SAMPLES", 400)
    draw = random.Random(2)
    others = [" ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(30)) for _ in range(960)]
    samples = others + [f"{TEMPLATE}\n{text}" for text in different(40)]
    assert flagged(samples) == {}
    monkeypatch.setattr(duplicates, "_COMMON_FRACTION", 0.1)
    assert len(flagged(samples)) > 30


def test_what_is_common_does_not_depend_on_the_order_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_COUNTED_SAMPLES", 20)
    samples = [(str(place), f"{TEMPLATE}\n{text}") for place, text in enumerate(different())]
    shuffled = random.Random(3).sample(samples, len(samples))
    first, second = duplicates._common_windows(lambda: samples), duplicates._common_windows(lambda: shuffled)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("text", ["", "abc", "abcde", "abcdef", "日本語の文章 and more", TEMPLATE])
def test_without_templates_the_sets_are_those_of_all_shingles(text: str) -> None:
    data = text.encode()
    shingles = {data[start : start + SHINGLE_BYTES] for start in range(max(1, len(data) - SHINGLE_BYTES + 1))}
    assert duplicates._shingle_hashes(data, None) == sorted({zlib.crc32(shingle) for shingle in shingles})


def test_equal_windows_share_a_bucket_wherever_they_stand() -> None:
    data = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8).tobytes()
    found = duplicates._windows(data)
    assert len(found) == 200 - duplicates.WINDOW_BYTES + 1
    assert len(set(found.tolist())) == len(found)
    for start in (0, 1, 77, 168):
        assert duplicates._windows(data[start : start + duplicates.WINDOW_BYTES]).tolist() == [found[start]]
    assert duplicates._windows(data[:31]).tolist() == []


def test_samples_can_be_a_function_and_no_iterator() -> None:
    samples = [("a", "the same text"), ("b", "the same text!"), ("c", "another")]

    def again() -> Iterator[tuple[str, str]]:
        yield from samples

    assert list(near_duplicates(again, 0.5)) == list(near_duplicates(samples, 0.5)) != []
    with pytest.raises(TypeError, match="not an iterator"):
        near_duplicates(again(), 0.5)


def test_what_stays_is_the_first_of_the_order() -> None:
    texts = [
        "x" * 30 + "the same few words again",
        "something else entirely, with nothing in common",
        "x" * 30 + "the same few words again!",
    ]
    samples = [(str(place), text) for place, text in enumerate(texts)]
    [first] = near_duplicates(samples, 0.8)
    [last] = near_duplicates(lambda: samples, 0.8, np.array([2, 1, 0]))
    assert (first.id, first.partner_id) == ("2", "0")
    assert (last.id, last.partner_id, last.score) == ("0", "2", first.score)
    assert list(near_duplicates(samples, 0.8, np.arange(3))) == [first]
