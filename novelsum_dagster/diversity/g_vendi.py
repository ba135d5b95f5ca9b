"""Features for G-Vendi: the gradient of a small language model's loss on each text, projected to few dimensions.

Belongs here: one gradient a text, the projection. Does not: the score, which is the Vendi score of these features
(`moments.vendi_score`), nor the model (`study.training`).

(Jung et al., "Prismatic Synthesis: Gradient-based Data Diversification Boosts Generalization in LLM Reasoning", arXiv
2505.20161: the exponential of the entropy of the eigenvalues of the covariance, not centred, of projected gradients of
length 1.)

The projection is a sparse Rademacher matrix: each weight of the model goes to one dimension, drawn at random, with a
random sign (Charikar, Chen and Farach-Colton, 2002). Inner products are kept in expectation, with the variance that a
dense matrix of random signs has, and in 1/p of its products for p dimensions.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.vectors import unit_rows

if TYPE_CHECKING:
    import torch

    from novelsum_dagster.embedding.language_model import LanguageModel

_BLOCK = 2**22
"""Number of weights projected at a time."""
_KEPT = 2**26
"""Most weights for which the projection is kept between texts (12 bytes per weight) instead of redrawn for each."""


def gradient_features(
    model: "LanguageModel",
    texts: Sequence[str],
    dimensions: int = 1024,
    seed: int = 42,
    progress: Progress = no_progress,
    context: int = 128,
) -> NDArray[np.float32]:
    """Return each text's gradient of the mean loss over its tokens, projected and scaled to length 1.

    A text is read as in training: after an end token, up to `context` tokens, the end token after its last among them.
    Dropout is off. One text is read at a time, so that its gradient is exact and does not depend on the others; in its
    last digits it depends on the processor and the number of threads.

    Args:
        model: as `build_model` returns it; its weights stay as they are.
        texts: n texts.
        dimensions: p, default 1024. The score is at most p.
        seed: of the projection.
        progress: called with texts done and n.
        context: tokens that are predicted, at most, default 128.

    Returns:
        float32, (n, p), unit rows.

    Raises:
        ValueError: for a gradient of 0, which has no direction.
    """
    weights = [weight for weight in model.network.parameters() if weight.requires_grad]
    projection = Projection([weight.numel() for weight in weights], dimensions, seed)
    found = np.empty((len(texts), dimensions), dtype=np.float32)
    was_training = model.network.training
    model.network.eval()
    try:
        for row, text in enumerate(texts):
            found[row] = projection.apply(_gradient(model, text, weights, context))
            progress(row + 1, len(texts))
    finally:
        model.network.train(was_training)
    return unit_rows(found, "gradients")


class Projection:
    """A sparse random matrix of signs, (weights, p), with one entry a row; the same for equal sizes, p and seed.

    Args:
        sizes: numbers of weights, by tensor.
        dimensions: p.
        seed: of the draws.
    """

    def __init__(self, sizes: Sequence[int], dimensions: int, seed: int) -> None:
        self._dimensions, self._seed = dimensions, seed
        self._blocks = [
            (tensor, start, min(start + _BLOCK, size))
            for tensor, size in enumerate(sizes)
            for start in range(0, size, _BLOCK)
        ]
        self._kept = [self._drawn(number) for number in range(len(self._blocks))] if sum(sizes) <= _KEPT else None

    def apply(self, gradients: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return projected gradients, float64, (p,), summed in a fixed order.

        Args:
            gradients: flat, by tensor.
        """
        found = np.zeros(self._dimensions)
        for number, (tensor, start, stop) in enumerate(self._blocks):
            place, sign = self._drawn(number) if self._kept is None else self._kept[number]
            found += np.bincount(place, gradients[tensor][start:stop] * sign, self._dimensions)
        return found

    def _drawn(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the dimension and the sign of each weight of a block."""
        _, start, stop = self._blocks[number]
        drawn = np.random.default_rng([self._seed, number]).integers(0, 2 * self._dimensions, stop - start)
        return drawn >> 1, np.where(drawn & 1, np.float32(-1), np.float32(1))


def _gradient(
    model: "LanguageModel", text: str, weights: "list[torch.Tensor]", context: int
) -> list[NDArray[np.float32]]:
    import torch

    ids = model.tokenizer.encode(text, add_special_tokens=False).ids[:context]
    tokens = torch.tensor([model.end, *ids, model.end][: context + 1], device=model.device)
    logits = model.network(input_ids=tokens[None, :-1], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits.float(), tokens[1:])
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [
        np.zeros(weight.numel(), np.float32) if gradient is None else gradient.flatten().float().cpu().numpy()
        for weight, gradient in zip(weights, found, strict=True)
    ]
