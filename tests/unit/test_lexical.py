"""TTR and vocd-D against lexicalrichness and exact expectations; what a word is; influence."""
# ruff: noqa: RUF001 (letters of other scripts are meant)

import unicodedata

import numpy as np
import pytest
from lexicalrichness import LexicalRichness  # type: ignore[import-untyped]
from scipy.optimize import curve_fit
from scipy.special import gammaln

from novelsum_dagster.diversity import lexical as module
from novelsum_dagster.diversity.lexical import VOCD_LIMIT, Occurrences, ttr, vocd_d, words
from tests.pools import pairs

PROSE = """
The mill stood where the river bent, and for as long as anyone in the village could remember it had been turning.
In spring the water came down brown and loud from the hills, and the miller, who was a patient man, would sit on the
bank and wait until it had tired itself out. "There's no use in hurrying a river," he used to say; "it was here before
us, and it won't be told." His daughter didn't agree. She had read, in a book lent by the school-master, of a valley
where the people had built a wall across the stream and kept the water behind it like cattle in a pen.

One evening she drew what she had read on the back of an old flour-sack: the wall, the gate, the long narrow lake. The
miller looked at it for a while without a word. Then he asked her how high the wall would have to be, and who would
carry the stones, and what would become of the meadow (it was the widow's meadow) when the lake had filled. She had an
answer to the first question and to the second; to the third she had none, and she went to bed unhappy.

In the morning, however, the drawing was gone from the table. She found her father in the meadow with the widow, who
was nearly eighty and rather deaf, and who held the flour-sack upside-down. "It's a fine lake," the old woman was
saying. "But where do I keep my goose?" So they sat down in the wet grass, all three, and began again from the other
end: first the goose, then the meadow, and only then the wall. It took them the whole summer, and when it was done the
wall was lower than in the book, and crooked, and the lake was hardly more than a pond. The mill has turned ever since,
in dry months as well as wet ones, and every year there is a goose upon the water that nobody may touch.
"""
TEXTS = [line for line in PROSE.split("\n") if line]


def _shares(texts: list[str]) -> np.ndarray:
    """Counts of each word in each text, (n, v)."""
    split = [words(text) for text in texts]
    vocabulary = sorted(set().union(*split))
    return np.array([[found.count(word) for word in vocabulary] for found in split], dtype=np.float64)


def _with_replacement(counts: np.ndarray, size: int) -> float:
    return float((1 - (1 - counts / counts.sum()) ** size).sum() / size)


def _without_replacement(counts: np.ndarray, size: int) -> float:
    """Expected TTR by the hypergeometric distribution, for fractional counts too."""
    total = counts.sum()
    missed = gammaln(total - counts + 1) - gammaln(total - counts - size + 1)
    return float((1 - np.exp(missed - gammaln(total + 1) + gammaln(total - size + 1))).sum() / size)


def _curve(size: np.ndarray, d: float) -> np.ndarray:
    return np.asarray(d / size * (np.sqrt(1 + 2 * size / d) - 1))


def _expected_d(counts: np.ndarray) -> float:
    sizes = np.arange(35, 51)
    ratios = [_with_replacement(counts, int(size)) for size in sizes]
    return float(curve_fit(_curve, sizes, ratios, p0=[50], xtol=1e-14, ftol=1e-14)[0][0])


def test_prose_is_split_as_lexicalrichness_splits_it() -> None:
    peer, found = LexicalRichness(PROSE), Occurrences.of(TEXTS)
    assert [word.replace("-", "") for word in words(PROSE)] == peer.wordlist
    assert (found.tokens, len(found.frequencies)) == (peer.words, peer.terms)
    assert ttr(TEXTS, tokens=peer.words).value == peer.ttr


def test_vocd_d_is_that_of_lexicalrichness() -> None:
    for text in (PROSE, PROSE[: len(PROSE) // 2]):
        assert vocd_d([text]).value == pytest.approx(LexicalRichness(text).vocd(), rel=0.05)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In 1984, x_1 = 3rd.", ["in", "1984", "x_1", "=", "3rd"]),
        ("if a==b: f(x)[0] += {}", ["if", "a", "==", "b", "f", "x", "0", "+=", "{}"]),
        ("y->z <= |a| && n != 2", ["y", "->", "z", "<=", "|", "a", "|", "&&", "n", "!=", "2"]),
        ("x := 1; i -= 2; q <- 3 --> r", ["x", ":=", "1", "i", "-=", "2", "q", "<-", "3", "-->", "r"]),
        ("100% of C++ and C#", ["100", "%", "of", "c", "++", "and", "c", "#"]),
        ("“Well-known” — (so-called) ‘it’s’ … n-1 - no!", ["well-known", "so-called", "it", "s", "n", "1", "no"]),
        ("`code` ¿qué? «oui»", ["code", "qué", "oui"]),
        ("東京タワー、コーヒー。", list("東京タワーコーヒー")),
        ("한국어 문장", ["한국어", "문장"]),
        ("Ελλάς ЁЖИК हिन्दी", ["ελλάς", "ёжик", "हिन्दी"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("👍🏽 ok ❤️", ["👍", "ok", "❤"]),
        ("", []),
        (" \n.,;:!?()[]'\"", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_composed_and_decomposed_letters_are_the_same_word() -> None:
    text = "Café naïve がぎ"
    assert words(unicodedata.normalize("NFD", text)) == words(text) == ["café", "naïve", "が", "ぎ"]


@pytest.mark.parametrize("tokens", [1, 40, 150])
def test_ttr_is_its_hypergeometric_expectation(tokens: int) -> None:
    found = Occurrences.of(TEXTS)
    expected = _without_replacement(found.frequencies.astype(np.float64), tokens)
    singles = np.array([ttr(found, tokens=tokens, draws=1, seed=seed).value for seed in range(200)])
    assert abs(ttr(found, tokens=tokens, draws=4000).value - expected) <= 4 * singles.std() / np.sqrt(4000) + 1e-12


def test_the_order_of_texts_changes_nothing() -> None:
    texts = [answer for _, answer in pairs(30)]
    assert ttr(texts, tokens=500, draws=7, seed=3).value == ttr(texts[::-1], tokens=500, draws=7, seed=3).value
    assert vocd_d(texts, seed=3).value == vocd_d(texts[::-1], seed=3).value
    assert ttr(texts, tokens=500, draws=7, seed=3).value != ttr(texts, tokens=500, draws=7, seed=4).value


@pytest.mark.parametrize("tokens", [1, 30, 200])
def test_influence_on_ttr_is_the_derivative_by_a_texts_weight(tokens: int) -> None:
    shares, step = _shares(TEXTS), 1e-4
    influence = ttr(TEXTS, tokens=tokens, draws=1).influence
    for i, own in enumerate(shares):
        more, less = (_with_replacement(shares.sum(0) + sign * step * own, tokens) for sign in (1, -1))
        assert influence[i] / len(TEXTS) == pytest.approx((more - less) / (2 * step), rel=1e-5, abs=1e-9)
    assert influence.dtype == np.float64
    assert influence.mean() == pytest.approx(0, abs=1e-12)


def test_influence_on_ttr_holds_for_draws_without_replacement() -> None:
    texts = [answer for _, answer in pairs(60)]
    shares = _shares(texts)
    influence, step = ttr(texts, tokens=100, draws=1).influence, 1e-2
    exact = [
        (_without_replacement(shares.sum(0) + step * own, 100) - _without_replacement(shares.sum(0), 100)) / step
        for own in shares
    ]
    np.testing.assert_allclose(influence / len(texts), exact, atol=0.05 * np.abs(exact).max())


def test_influence_on_vocd_d_is_the_derivative_by_a_texts_weight() -> None:
    texts = [*(answer for _, answer in pairs(60)), ""]
    shares, step = _shares(texts), 1e-2
    measured = vocd_d(texts)
    exact = [
        (_expected_d(shares.sum(0) + step * own) - _expected_d(shares.sum(0) - step * own)) / (2 * step)
        for own in shares
    ]
    # The fit is taken for exact and D from samples, so this holds to some per cent.
    np.testing.assert_allclose(measured.influence / len(texts), exact, atol=0.1 * np.abs(exact).max())
    assert np.corrcoef(measured.influence, exact)[0, 1] > 0.999
    assert measured.influence[-1] == 0
    assert measured.influence.mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("d", [0.02, 1.0, 100.0, 5e5])
def test_the_fit_finds_the_d_of_its_own_curve(d: float) -> None:
    assert module._fitted(list(module._curve(d))) == pytest.approx(d, rel=1e-4)
    np.testing.assert_allclose(module._curve(d), _curve(module._VOCD_SIZES, d), rtol=1e-9)


def test_where_every_word_differs_d_is_the_limit() -> None:
    texts = [" ".join(f"w{i}" for i in range(start, start + 30)) for start in range(0, 300, 30)]
    measured = vocd_d(texts)
    assert measured.value == VOCD_LIMIT
    assert measured.influence.tolist() == [0.0] * 10
    assert measured.interval() == (VOCD_LIMIT, VOCD_LIMIT)
    assert ttr(texts, tokens=300).value == 1.0


def test_where_all_words_are_the_same_both_are_least() -> None:
    texts = ["same " * 30] * 4
    assert ttr(texts, tokens=60).value == 1 / 60
    d = vocd_d(texts)
    assert d.value == pytest.approx(0.0123, abs=1e-4)
    np.testing.assert_allclose(d.influence, 0, atol=1e-12)


def test_one_text_is_measured_and_has_no_influence() -> None:
    for measured in (ttr([PROSE], tokens=100), vocd_d([PROSE])):
        assert measured.value > 0
        np.testing.assert_allclose(measured.influence, [0.0], atol=1e-9)
        assert measured.interval() == pytest.approx((measured.value, measured.value))


def test_other_scripts_are_measured() -> None:
    texts = ["千里之行始于足下。学而时习之不亦说乎?", "Ночь, улица, фонарь, аптека.", "قال الولد إن البيت كبير"] * 3
    assert 0 < ttr(texts, tokens=75).value < 1
    assert 0 < vocd_d(texts).value < VOCD_LIMIT


@pytest.mark.parametrize(
    ("texts", "found"),
    [([], 0), (["", " ... "], 0), (["only four words here"], 4), (["a b c"] * 16, 48)],
)
def test_too_few_words_are_told(texts: list[str], found: int) -> None:
    with pytest.raises(ValueError, match=f"hold {found} words, too few for TTR over 30,000 words; lower tokens .*add"):
        ttr(texts)
    with pytest.raises(ValueError, match=f"hold {found} words, too few for vocd-D, which needs 50; add texts"):
        vocd_d(texts)
    with pytest.raises(ValueError, match=f"hold {found} words, too few for TTR over 49 words"):
        ttr(texts, tokens=49)


@pytest.mark.parametrize(("setting", "message"), [({"tokens": 0}, "tokens is 0"), ({"draws": 0}, "draws is 0")])
def test_settings_out_of_range_are_refused(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}; it must be 1 or more"):
        ttr([PROSE], **({"tokens": 50} | setting))


def test_each_text_is_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(text: str) -> list[str]:
        seen.append(text)
        return words(text)

    monkeypatch.setattr(module, "words", counted)
    ttr(TEXTS, tokens=50)
    vocd_d(TEXTS)
    assert seen == TEXTS * 2
