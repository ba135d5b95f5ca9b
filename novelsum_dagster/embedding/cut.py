"""How much of the texts the model does not read, because they are longer than `max_tokens`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from novelsum_dagster.settings import Embedding


@dataclass(frozen=True, slots=True)
class Cut:
    """How many of some samples are cut, and how many of their tokens are never read.

    Attributes:
        samples: all of them.
        cut: those with tokens that are not read.
        tokens: of all texts, without special tokens.
        unread_tokens: those that are not read.
    """

    samples: int
    cut: int
    tokens: int
    unread_tokens: int

    def words(self, settings: Embedding) -> str | None:
        """Return in a sentence what is not read, and the setting that would have it read; None where all is."""
        return cut_words(self.cut, self.samples, self.fraction, settings)

    @property
    def fraction(self) -> float:
        """The part of all tokens that is not read, from 0 to 1; 0 where there are none."""
        return self.unread_tokens / self.tokens if self.tokens else 0.0


def cut_of(counts: ArrayLike, settings: Embedding, special_tokens: int) -> Cut:
    """Return what is cut of texts with these numbers of tokens; nothing with windows or vectors of one's own.

    Args:
        counts: tokens of each text without special tokens.
        settings: limit, and how longer texts are read.
        special_tokens: how many of `max_tokens` are special tokens.
    """
    tokens = np.asarray(counts, dtype=np.int64)
    reads_all = settings.long == "windows" or settings.vectors is not None
    room = max(0, settings.max_tokens - special_tokens)
    unread = np.zeros_like(tokens) if reads_all else np.maximum(tokens - room, 0)
    return Cut(len(tokens), int(np.count_nonzero(unread)), int(tokens.sum()), int(unread.sum()))


def cut_words(cut: int, samples: int, fraction: float, settings: Embedding) -> str | None:
    """Return in a sentence how many of some samples are cut, and the setting that prevents it; None if none is.

    Args:
        cut: samples that are cut.
        samples: all of them.
        fraction: the part of all tokens that is not read.
        settings: with the limit.
    """
    if not cut:
        return None
    return (
        f"{cut:,} of {samples:,} samples are longer than the {settings.max_tokens:,} tokens that the model reads;"
        f" {fraction:.1%} of all tokens are not read (embedding.long: windows reads them)."
    )
