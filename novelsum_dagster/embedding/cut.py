"""Text that the model does not read, because it exceeds `max_tokens`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from novelsum_dagster.settings import Embedding


@dataclass(frozen=True, slots=True)
class Cut:
    """Numbers of truncated samples and of unread tokens.

    Attributes:
        samples: number of samples.
        cut: samples with tokens that are not read.
        tokens: of all texts, without special tokens.
        unread_tokens: tokens that are not read.
    """

    samples: int
    cut: int
    tokens: int
    unread_tokens: int

    def words(self, settings: Embedding) -> str | None:
        """Return a sentence on the unread text, with the setting that reads it; None if all is read."""
        return cut_words(self.cut, self.samples, self.fraction, settings)

    @property
    def fraction(self) -> float:
        """The fraction of all tokens that is not read, from 0 to 1; 0 without tokens."""
        return self.unread_tokens / self.tokens if self.tokens else 0.0


def cut_of(counts: ArrayLike, settings: Embedding, special_tokens: int) -> Cut:
    """Return the truncation of texts with these numbers of tokens; none with windows or own vectors.

    Args:
        counts: tokens of each text without special tokens.
        settings: limit, and the handling of longer texts.
        special_tokens: number of special tokens within `max_tokens`.
    """
    tokens = np.asarray(counts, dtype=np.int64)
    reads_all = settings.long == "windows" or settings.vectors is not None
    room = max(0, settings.max_tokens - special_tokens)
    unread = np.zeros_like(tokens) if reads_all else np.maximum(tokens - room, 0)
    return Cut(len(tokens), int(np.count_nonzero(unread)), int(tokens.sum()), int(unread.sum()))


def cut_words(cut: int, samples: int, fraction: float, settings: Embedding) -> str | None:
    """Return a sentence with the number of truncated samples, and the setting that prevents it; None if none is.

    Args:
        cut: truncated samples.
        samples: number of samples.
        fraction: the fraction of all tokens that is not read.
        settings: with the limit.
    """
    if not cut:
        return None
    return (
        f"{cut:,} of {samples:,} samples are longer than the {settings.max_tokens:,} tokens that the model reads;"
        f" {fraction:.1%} of all tokens are not read (embedding.long: windows reads them)."
    )
