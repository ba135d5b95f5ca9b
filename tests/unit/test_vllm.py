"""The vectors of vLLM agree with those of torch; skipped where vLLM is not installed (docs/gpu.md)."""

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import Encoder, SentenceTransformerEncoder, load_encoder
from novelsum_dagster.settings import Embedding

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

TEXTS = ["a", "Who wrote it?", "Return the sum of two arrays. " * 20, "word " * 100]


@pytest.fixture(params=[("auto", "windows"), ("mean", "windows"), ("last_token", "truncate")])
def settings(request: pytest.FixtureRequest) -> Embedding:
    pooling, long = request.param
    return Embedding(backend="vllm", max_tokens=32, pooling=pooling, long=long)


def encoded(encoder: Encoder) -> NDArray[np.float32]:
    vectors = np.full((len(TEXTS), encoder.dimension), np.nan, dtype=np.float32)
    for rows, found in encoder.batches(TEXTS):
        vectors[rows] = found
    return vectors


def test_the_vectors_are_those_of_torch(settings: Embedding) -> None:
    found, known = encoded(load_encoder(settings, "float32")), encoded(SentenceTransformerEncoder(settings, "float32"))
    np.testing.assert_allclose(_unit(found), _unit(known), atol=1e-5)
    if settings.pooling == "auto":
        np.testing.assert_allclose(found, known, atol=1e-5)


def test_another_device_than_that_of_vllm_is_refused() -> None:
    with pytest.raises(InputError, match=r"runs on device auto or (cpu|cuda), not on mps"):
        load_encoder(Embedding(backend="vllm"), device="mps")


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
