"""Pools of any size made of real embeddings, for benchmarks.

Belongs here: the perturbation. Does not: what is timed on it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOISE = 0.3
"""Expected length of the noise on a row of length 1."""
_BLOCK = 16384


def perturbed_pool(embeddings: NDArray[Any], rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Return `rows` unit rows near real ones: the embeddings over and over, each time with noise of its own.

    Gaussian noise of standard deviation `0.3 / sqrt(d)` a dimension keeps a copy near its original and apart from the
    other copies, so the pool keeps the clusters of real data.

    Args:
        embeddings: (m, d), no row all zeros.
        rows: how many rows to return.
        seed: of the noise, default 0.

    Returns:
        float32, (rows, d), each row of length 1.
    """
    size, dimensions = embeddings.shape
    generator = np.random.default_rng(seed)
    unit = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    pool = np.empty((rows, dimensions), dtype=np.float32)
    for start in range(0, rows, _BLOCK):
        block = pool[start : start + _BLOCK]
        generator.standard_normal(dtype=np.float32, out=block)
        block *= _NOISE / np.sqrt(dimensions)
        block += unit[np.arange(start, start + len(block)) % size]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return pool
