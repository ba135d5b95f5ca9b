"""Embedding models in vLLM, which is made for large ones.

Belongs here: the encoder that calls vLLM. Does not: models in torch (`encoder`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import model_location
from novelsum_dagster.embedding.windows import mean_of_windows, normalises
from novelsum_dagster.settings import Embedding

_AT_ONCE = 1024
"""Texts handed to vLLM at a time; it batches them itself."""
_POOLING_TYPES = {"mean": "MEAN", "last_token": "LAST"}


class VllmEncoder:
    """A model in vLLM.

    Args:
        settings: model, pooling, dtype, token limit, and the handling of longer texts.
        dtype: number type of the weights; None takes bfloat16 on a GPU, float32 on a CPU.
        device: as the setting `device`: auto, or the one for which vLLM is built. vLLM uses the first visible GPU.

    Raises:
        InputError: if vLLM is not installed, the device is another one, or the model cannot be loaded.
    """

    def __init__(self, settings: Embedding, dtype: str | None = None, device: str = "auto") -> None:
        self._settings = settings
        self.device = _device()
        if device not in ("auto", self.device):
            raise InputError(
                f"embedding.backend: the installed vllm runs on device auto or {self.device}, not on {device};"
                " CUDA_VISIBLE_DEVICES names a card"
            )
        self.dtype = dtype or ("float32" if self.device == "cpu" else "bfloat16")
        self._model = _load(settings, self.dtype)

    @property
    def dimension(self) -> int:
        """Columns of a vector."""
        return int(self._vectors(["dimension"]).shape[1])

    def batches(self, texts: list[str]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield positions of texts and their vectors, in order."""
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            yield list(range(start, start + len(some))), self._vectors(some)

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        is_windowed = self._settings.long == "windows"
        tokenizer = self._model.get_tokenizer()
        tokens = tokenizer(
            texts, truncation=True, max_length=self._settings.max_tokens, return_overflowing_tokens=is_windowed
        )
        found = self._model.embed([{"prompt_token_ids": ids} for ids in tokens["input_ids"]], use_tqdm=False)
        vectors = np.array([one.outputs.embedding for one in found], dtype=np.float32)
        return self._of_texts(vectors, tokens, tokenizer.num_special_tokens_to_add()) if is_windowed else vectors

    def _of_texts(self, vectors: NDArray[np.float32], tokens: Any, special: int) -> NDArray[np.float32]:
        """Return the vectors of texts from those of their windows, as `SentenceTransformerEncoder` does."""
        owner = np.array(tokens["overflow_to_sample_mapping"], dtype=np.int64)
        lengths = np.array([len(ids) for ids in tokens["input_ids"]], dtype=np.int64)
        does_normalise = self._settings.pooling == "auto" and normalises(model_location(self._settings))
        is_whole = np.bincount(owner)[owner] == 1
        weights = np.where(is_whole, 1, lengths - special)
        means = mean_of_windows(vectors, owner, weights, does_normalise)
        means[owner[is_whole]] = vectors[is_whole]
        return means


def _device() -> str:
    """Return the device for which vLLM is built."""
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InputError(
            f"embedding.backend: vllm is not installed ({error}); it needs a separate environment: see docs/gpu.md"
        ) from None
    return str(current_platform.device_type)


def _load(settings: Embedding, dtype: str) -> Any:
    import vllm
    from vllm.config import PoolerConfig

    location = str(model_location(settings))
    # With auto, vLLM pools and normalises as the model is configured; an explicit pooling is not normalised.
    asked = settings.pooling != "auto"
    pooler = PoolerConfig(pooling_type=_POOLING_TYPES[settings.pooling], use_activation=False) if asked else None
    try:
        return vllm.LLM(
            model=location,
            runner="pooling",
            dtype=dtype,
            max_model_len=settings.max_tokens,
            trust_remote_code=False,
            load_format="safetensors",
            pooler_config=pooler,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"embedding.model: {location} cannot be loaded by vLLM: {error}") from error
