"""Lexical diversity: how many different words a set of texts uses, as TTR and vocd-D.

Belongs here: what counts as a word, the two measures and the influence of each text. Does not: measures
that need embeddings (`novelsum`).
"""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from novelsum_dagster.diversity.measured import Measured

TTR_TOKENS = 30_000
"""Default number of words in a sample for TTR."""
TTR_DRAWS = 100
"""Default number of samples for TTR."""
VOCD_LIMIT = 1e6
"""Upper limit of vocd-D. If D is larger, the 1,600 samples hold fewer than two repeated words on average, too few to
distinguish it from infinity, which is D if every word differs."""

VOCD_WORDS = 50
"""Least number of words that vocd-D needs."""

_VOCD_SIZES = np.arange(35, VOCD_WORDS + 1)
_VOCD_DRAWS = 100
_VOCD_LEAST = 1e-3
"""Lower limit of vocd-D, below that of a set of one repeated word, which is about 0.012."""

# The prolonged sound marks belong to no single script but occur only in kana.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\uff70"
_LETTER = rf"[\p{{L}}--[{_UNSPACED}]]"
_START = rf"[[\p{{L}}\p{{N}}_]--[{_UNSPACED}]]"
_REST = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]"
# Hyphens, and the invisible joiners inside Persian and Indic words.
_JOINER = r"[\-\u2010\u2011\u200c\u200d]"
# The backtick and the accents without a letter are Unicode symbols too, but serve as quotation marks.
_SYMBOL = r"[\p{Sm}\p{Sc}\p{So}\^#%\&*/@\\\{\}]"
_WORD = regex.compile(
    rf"""
      {_START}{_REST}*+ (?: (?<=[\p{{L}}\p{{M}}]) {_JOINER} (?={_LETTER}) {_REST}*+ )*+
    | [{_UNSPACED}] \p{{M}}*+
    | <-+>?
    | (?: [!:](?==) | -+(?=[=>]) )? {_SYMBOL}++
    """,
    regex.V1 | regex.VERBOSE,
)


def words(text: str) -> list[str]:
    """Return the words of a text in order, lower-cased, in Unicode normal form NFC.

    A word is a run of letters, marks, digits and underscores; letters on both sides of a hyphen belong to one word.
    A Han, Hiragana or Katakana character is a word by itself. An unbroken run of symbols, such as `==`, `->`, `{}` or
    `|`, is a word. Dropped are `. , ; : ! ? ( ) [ ]`, quotation marks, apostrophes, backticks and dashes, hence the
    minus sign and the not sign too, save in `-=`, `->`, `<-`, `:=` and `!=`. Plain ASCII prose without digits has as
    many words and different words as in lexicalrichness: both take "don't" for two. Thai, Lao, Khmer and Burmese have
    no spaces either: an unbroken run of them is one word here.
    """
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
    return found


def ttr(
    texts: "Sequence[str] | Occurrences", *, tokens: int = TTR_TOKENS, draws: int = TTR_DRAWS, seed: int = 42
) -> Measured:
    """Return the type-token ratio: the part of different words in a sample of `tokens` words of n texts.

    Args:
        texts: n texts, split by `words`, or their words if already split.
        tokens: words a sample, drawn without replacement, default 30,000. TTR falls as this grows: compare only
            values of equal `tokens`.
        draws: samples whose mean is the value, default 100.
        seed: of the samples, default 42.

    Returns:
        The value, over 0 and at most 1, and each text's influence, float64, (n,), on its expectation over draws with
        replacement.

    Raises:
        ValueError: for fewer words than `tokens`, or `tokens` or `draws` under 1.
    """
    for name, number in (("tokens", tokens), ("draws", draws)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be 1 or more")
    found = Occurrences.of(texts)
    found.require(tokens, f"TTR over {tokens:,} words", "lower tokens to that number, or add texts")
    value = _mean_ttr(found.frequencies, tokens, draws, np.random.default_rng(seed))
    return Measured(value, found.influence(_ttr_slope(found.frequencies, tokens)))


def vocd_d(texts: "Sequence[str] | Occurrences", *, seed: int = 42) -> Measured:
    """Return vocd-D of n texts: the D whose curve best fits how TTR falls with the size of a sample.

    For each size N of 35 to 50 words the mean TTR of 100 samples without replacement is taken, and D fitted to
    `TTR(N) = (D / N) (sqrt(1 + 2 N / D) - 1)` by least squares. D hardly depends on how long the texts are: about
    0.012 where all words are the same, 10 to 100 in most prose. (McKee, Malvern and Richards 2000, Measuring
    vocabulary diversity using dedicated software, Literary and Linguistic Computing 15(3).)

    Args:
        texts: n texts, split by `words`, or their words if already split.
        seed: of the samples, default 42.

    Returns:
        D, at most 1,000,000, which represents infinity, e.g. if every word differs; and each text's influence,
        float64, (n,), on the fit to the expected TTR over draws with replacement. At the limit influence is 0.

    Raises:
        ValueError: for fewer than 50 words.
    """
    found = Occurrences.of(texts)
    found.require(VOCD_WORDS, f"vocd-D, which needs {VOCD_WORDS}", "add texts")
    generator = np.random.default_rng(seed)
    value = _fitted([_mean_ttr(found.frequencies, int(size), _VOCD_DRAWS, generator) for size in _VOCD_SIZES])
    if value >= VOCD_LIMIT:
        return Measured(value, np.zeros(len(found.lengths)))
    fitted = _curve_slope(value)
    slopes = [_ttr_slope(found.frequencies, int(size)) for size in _VOCD_SIZES]
    return Measured(value, found.influence(fitted @ slopes / (fitted @ fitted)))


@dataclass(frozen=True)
class Occurrences:
    """The positions of words in n texts of t words together, v of them different.

    Attributes:
        lengths: int64, (n,): words of each text.
        codes: int64, (t,): the words, text after text, numbered by first appearance.
        frequencies: int64, (v,): occurrences of each word.
    """

    lengths: NDArray[np.int64]
    codes: NDArray[np.int64]
    frequencies: NDArray[np.int64]

    @classmethod
    def of(cls, texts: "Sequence[str] | Occurrences") -> "Occurrences":
        """Split the texts into words, unless that has been done."""
        if isinstance(texts, Occurrences):
            return texts
        code_of: defaultdict[str, int] = defaultdict()
        code_of.default_factory = code_of.__len__
        parts = [np.fromiter(map(code_of.__getitem__, words(text)), dtype=np.int64) for text in texts]
        codes = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return cls(lengths, codes, np.bincount(codes))

    @property
    def tokens(self) -> int:
        """Words, each occurrence counted."""
        return len(self.codes)

    def require(self, needed: int, what: str, remedy: str) -> None:
        """Raise an error unless there are `needed` words.

        Raises:
            ValueError: says what needs them, and the remedy.
        """
        if self.tokens < needed:
            raise ValueError(f"the texts hold {self.tokens:,} words, too few for {what}; {remedy}")

    def influence(self, slope: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each text's influence, (n,), on a value with these partial derivatives by the words' shares, (v,)."""
        text_of = np.repeat(np.arange(len(self.lengths)), self.lengths)
        gained = np.bincount(text_of, weights=slope[self.codes], minlength=len(self.lengths))
        # A heavier text adds its own words and thins all others.
        thinned = self.lengths * (self.frequencies @ slope / len(self.codes))
        return np.asarray((gained - thinned) * (len(self.lengths) / len(self.codes)), dtype=np.float64)


def _mean_ttr(frequencies: NDArray[np.int64], size: int, draws: int, generator: np.random.Generator) -> float:
    # Sorted, so that the same words in another order give the same draws.
    ends = np.cumsum(np.sort(frequencies))
    types = 0
    for _ in range(draws):
        places = generator.choice(ends[-1], size, replace=False, shuffle=False)
        types += len(np.unique(np.searchsorted(ends, places, side="right")))
    # In this order the mean over the whole set is exactly types / tokens.
    return types / draws / size


def _ttr_slope(frequencies: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Return the partial derivatives, (v,), by each word's share p of E TTR = sum_w (1 - (1 - p_w)^size) / size."""
    shares = frequencies / frequencies.sum()
    return np.asarray((1 - shares) ** (size - 1), dtype=np.float64)


def _fitted(ratios: Sequence[float]) -> float:
    """Return the D, at most the limit, whose curve is nearest to the mean TTR at each size, by least squares."""
    from scipy.optimize import brentq

    def descent(logarithm: float) -> float:
        d = np.exp(logarithm)
        return float(_curve_slope(d) @ (_curve(d) - ratios) * d)

    if descent(np.log(VOCD_LIMIT)) <= 0:
        return VOCD_LIMIT
    return float(np.exp(brentq(descent, np.log(_VOCD_LEAST), np.log(VOCD_LIMIT), xtol=1e-12)))


def _curve(d: float) -> NDArray[np.float64]:
    """Return (D / N) (sqrt(1 + 2 N / D) - 1) at each size N, (16,), in a form exact for large D too."""
    return np.asarray(2 / (1 + np.sqrt(1 + 2 * _VOCD_SIZES / d)), dtype=np.float64)


def _curve_slope(d: float) -> NDArray[np.float64]:
    """Return the derivative of the curve by D at each size, (16,)."""
    root = np.sqrt(1 + 2 * _VOCD_SIZES / d)
    return np.asarray(2 * _VOCD_SIZES / (d * d * root * (1 + root) ** 2), dtype=np.float64)
