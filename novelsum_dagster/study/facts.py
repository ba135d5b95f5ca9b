"""Predictors of performance other than diversity: sizes, near-duplicates, a bigram model.

Belongs here: the plain facts of one set. Does not: the measures (`diversity`), the sets (`sets`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.files import content_key
from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows
from novelsum_dagster.embedding.language_model import END
from novelsum_dagster.settings import Training
from novelsum_dagster.study.pool import StudyData, once
from novelsum_dagster.study.sets import Recipe, StudySet
from novelsum_dagster.study.training import SCORED_CHARACTERS

CLOSE = 0.9
"""Least cosine at which two samples of a set count as near-duplicates."""
_SMOOTHING = 0.005
"""k of the bigram model, added to the count of every pair of tokens."""
_ROWS = 1024


class StudyFacts(Artifact):
    """The plain facts of a set.

    Attributes:
        tokens: of the set, by the study's tokenizer, with one end token per sample.
        distinct_tokens: of its distinct samples, at most as many as a model is trained on.
        characters: of a sample, on average.
        near_duplicates: share of samples that MinHash found to repeat an earlier one of the pool.
        close: share of samples with a cosine of at least `CLOSE` to another of the set.
        bigram: bits per byte of each source's held-out texts under a bigram model of the set.
    """

    study_set: str
    recipe: Recipe
    tokens: int
    distinct_tokens: int
    characters: float
    near_duplicates: float
    close: float
    bigram: dict[str, float]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a study's texts, each text's followed by the end token.

    Attributes:
        data: the study's pool.
    """

    data: StudyData

    @cached_property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def of_samples(self) -> list[NDArray[np.int64]]:
        """The tokens of each sample that sets are chosen from."""
        return self._encoded(self.data.texts)

    @cached_property
    def of_held_out(self) -> dict[str, tuple[list[NDArray[np.int64]], int]]:
        """By source, the tokens of the scored part of its held-out texts, without the last end token, and its bytes."""
        found = {}
        for source, texts in self.data.held_out.items():
            scored = [text[:SCORED_CHARACTERS] for text in texts]
            ended = self._encoded(scored)
            found[source] = ([ids[:-1] for ids in ended], sum(len(text.encode()) for text in scored))
        return found

    @cached_property
    def flagged(self) -> set[str]:
        """Ids of the samples that are near-duplicates of an earlier one of the pool."""
        table = self.data.snapshot.table(self.data.root, "near_duplicates", ["id"])
        return set(table["id"].to_pylist())

    @cached_property
    def end(self) -> int:
        """The end token."""
        return int(self._tokenizer.token_to_id(END))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_str(self.data.tokenizer)
        loaded.encode_special_tokens = True
        return loaded

    def _encoded(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*encoding.ids, self.end], dtype=np.int64) for encoding in encodings]


def facts_of_set(tokens: Tokens, study_set: StudySet, training: Training) -> StudyFacts:
    """Return the plain facts of a set.

    Args:
        tokens: of the study's pool.
        study_set: the set.
        training: its number of tokens.
    """
    data = tokens.data
    key = content_key({"set": study_set.key, "tokens": training.tokens, "smoothing": _SMOOTHING, "close": CLOSE})

    def build() -> StudyFacts:
        rows = study_set.rows(data.root)
        samples = [tokens.of_samples[row] for row in rows]
        distinct = sum(len(tokens.of_samples[row]) for row in np.unique(rows))
        return StudyFacts(
            key=key,
            study_set=study_set.key,
            recipe=study_set.recipe,
            tokens=sum(map(len, samples)),
            distinct_tokens=min(distinct, training.tokens),
            characters=float(np.mean([len(data.texts[row]) for row in rows])),
            near_duplicates=float(np.mean([data.ids[row] in tokens.flagged for row in rows])),
            close=share_close(data.own.vectors[rows], CLOSE),
            bigram=bigram_bits_per_byte(samples, tokens.of_held_out, tokens.end, tokens.vocabulary),
        )

    return once(data.root, f"study/facts={key}.json", StudyFacts, build)


def share_close(vectors: NDArray[np.float32], cosine: float) -> float:
    """Return the share of rows, (n, d), that have a cosine of at least `cosine` to another row."""
    units = unit_rows(vectors)
    near = np.zeros(len(units), dtype=np.bool_)
    for start in range(0, len(units), _ROWS):
        distances = cosine_distances(units[start : start + _ROWS], units)
        own = np.arange(len(distances))
        distances[own, start + own] = math.inf
        near[start : start + _ROWS] = (distances <= 1 - cosine).any(axis=1)
    return float(near.mean())


def bigram_bits_per_byte(
    samples: Sequence[NDArray[np.int64]],
    held_out: Mapping[str, tuple[Sequence[NDArray[np.int64]], int]],
    end: int,
    vocabulary: int,
) -> dict[str, float]:
    """Return the loss on each source's texts under a bigram model of a set, in bits per byte.

    `P(b | a) = (count(a, b) + k) / (count(a) + k V)` with k = 0.005, V the vocabulary; a text follows an end token.

    Args:
        samples: tokens of the set, an array, (tokens,), a sample, each with the end token at its end.
        held_out: by source the tokens of its texts, and their bytes in UTF-8.
        end: the end token.
        vocabulary: V.
    """
    string = np.concatenate([[end], *samples])
    pairs, counts = np.unique(string[:-1] * vocabulary + string[1:], return_counts=True)
    before = np.bincount(string[:-1], minlength=vocabulary)
    found = {}
    for source, (texts, size) in held_out.items():
        first = np.concatenate([np.concatenate([[end], ids[:-1]]) for ids in texts if len(ids)])
        second = np.concatenate([ids for ids in texts if len(ids)])
        wanted = first * vocabulary + second
        at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        known = np.where(pairs[at] == wanted, counts[at], 0)
        chance = (known + _SMOOTHING) / (before[first] + _SMOOTHING * vocabulary)
        found[source] = float(-np.log2(chance).sum() / size)
    return found
