"""Long texts as the mean of their windows (`embedding.long: windows`).

Belongs here: dividing tokenized texts into windows, combining the vectors of windows. Does not: running a model
(`encoder`, `vllm_encoder`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_OVERFLOW = {"text": {"return_overflowing_tokens": True}}
_OWNER = "overflow_to_sample_mapping"


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of some texts: consecutive parts of at most `max_tokens` tokens, each with its own special tokens.

    Attributes:
        features: model inputs of all windows, tensors (w, longest) padded on one side.
        owner: index of each window's text, ascending, int64 (w,).
        lengths: tokens of each window with special tokens, int64 (w,).
    """

    features: dict[str, Any]
    owner: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def rows(self, places: list[int], length: int, pads_left: bool) -> dict[str, Any]:
        """Return the features of some windows, padded to `length` tokens."""
        columns = slice(-length, None) if pads_left else slice(length)
        return {name: value[places][:, columns] for name, value in self.features.items()}


def windows_of(model: "SentenceTransformer", texts: list[str]) -> Windows:
    """Return the windows of texts; a default prompt of the model precedes each text, in its first window."""
    prompt = model.prompts.get(model.default_prompt_name or "")
    features: dict[str, Any] = dict(model.preprocess(texts, prompt=prompt, processing_kwargs=_OVERFLOW))
    owner = np.asarray(features.pop(_OWNER), dtype=np.int64)
    shape = features["input_ids"].shape
    # Other features do not belong to single windows: the kind of input, the length of the prompt.
    tensors = {name: value for name, value in features.items() if getattr(value, "shape", None) == shape}
    return Windows(tensors, owner, np.asarray(features["attention_mask"].sum(1), dtype=np.int64))


def mean_of_windows(
    vectors: NDArray[np.float32], owner: NDArray[np.int64], tokens: NDArray[np.int64], normalise: bool
) -> NDArray[np.float32]:
    """Return the mean of each text's windows, weighted by their tokens, float32 (texts, d).

    Args:
        vectors: of the windows, (w, d).
        owner: index of each window's text, ascending from 0 without gaps, (w,).
        tokens: of each window without special tokens, at least 1, (w,).
        normalise: scale the mean to length 1.
    """
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    weights = tokens[:, None].astype(np.float64)
    means = np.add.reduceat(weights * vectors, starts) / np.add.reduceat(weights, starts)
    if normalise:
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        # A mean of windows that cancel each other out has no direction.
        means = np.divide(means, lengths, out=means, where=lengths > 0)
    return means.astype(np.float32)


def require_windows(model: "SentenceTransformer") -> None:
    """Require a model whose texts can be divided into windows.

    Raises:
        InputError: if its tokenizer does not return the overflow, or the model excludes its default prompt from the
            mean, which later windows do not have.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling

    if not getattr(model.tokenizer, "is_fast", False):
        raise InputError("embedding.long: windows needs a model with a fast tokenizer (tokenizer.json); use truncate")
    prompt = model.prompts.get(model.default_prompt_name or "")
    if prompt and any(isinstance(module, Pooling) and not module.include_prompt for module in model):
        raise InputError(
            "embedding.long: windows does not support a model that excludes its prompt from its vectors; use truncate"
        )


def normalises(location: Path) -> bool:
    """Return whether a sentence-transformers model's own last module scales vectors to length 1."""
    path = location / "modules.json"
    return path.exists() and str(json.loads(path.read_bytes())[-1]["type"]).endswith(".Normalize")
