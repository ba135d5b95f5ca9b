"""Causal language models: a small one from scratch, and those named in the settings.

Belongs here: building a model with its tokenizer. Does not: training (`study.training`), gradients
(`diversity.g_vendi`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from novelsum_dagster.common.devices import accelerator_or_cpu
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.model_files import model_folder
from novelsum_dagster.settings import Training

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|end|>"
"""The token after every text, in the tokenizer of a model from scratch (`study.training.train_tokenizer`)."""

_WIDTH, _LAYERS, _HEADS = 128, 4, 4


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    `network` is a transformers model in float32 on `device`; `end` is the id of the token before the first text
    and after every text.
    """

    network: Any
    tokenizer: "Tokenizer"
    end: int
    device: str


def build_model(
    settings: Training, tokenizer: str | None = None, seed: int = 42, device: str = "auto", section: str = "training"
) -> LanguageModel:
    """Return the model named in the settings, else an untrained Llama of about 1.3 million weights.

    The small one has 4 layers of 128 dimensions with 4 heads and tied embeddings; its weights depend only on the seed
    and the size of the tokenizer's vocabulary. A named model is loaded from safetensors without remote code, with its
    `tokenizer.json`. `section` is the section of the settings that names the model, for errors.

    Raises:
        InputError: if the model cannot be loaded, a hub model has no revision, the context is longer than the model's
            positions, or the device is missing.
        ValueError: for a model from scratch without a tokenizer.
    """
    device = accelerator_or_cpu(device)
    with reproducible(seed):
        if settings.model is not None:
            network, loaded, end = _pretrained(settings.model, settings, section)
        elif tokenizer is not None:
            network, loaded, end = _from_scratch(tokenizer, settings.context)
        else:
            raise ValueError("a model from scratch needs a tokenizer: pass what train_tokenizer returned")
    loaded.encode_special_tokens = True  # Otherwise a text that quotes the end token would end there.
    loaded.no_truncation()
    loaded.no_padding()
    return LanguageModel(network.to(device), loaded, end, device)


def _from_scratch(tokenizer: str, context: int) -> tuple[Any, "Tokenizer", int]:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    loaded = Tokenizer.from_str(tokenizer)
    end = loaded.token_to_id(END)
    if end is None:
        raise ValueError(f"the tokenizer has no {END}; pass what train_tokenizer returned")
    config = LlamaConfig(
        vocab_size=loaded.get_vocab_size(),
        hidden_size=_WIDTH,
        intermediate_size=5 * _WIDTH // 2,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config), loaded, end


def _pretrained(name: str, settings: Training, section: str) -> tuple[Any, "Tokenizer", int]:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder = model_folder(name, settings.revision, section)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # It would be drawn over ours.
    try:
        loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
        network = AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except Exception as error:  # The Rust library raises plain exceptions; damaged files raise many types.
        raise InputError(f"{section}.model: {name} cannot be loaded: {error}") from error
    return network, loaded, _checked_end(name, network, loaded, settings.context, section)


def _checked_end(name: str, network: Any, tokenizer: "Tokenizer", context: int, section: str) -> int:
    """Return the id of the model's end token, after checking that model, tokenizer and context match."""
    config = network.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise InputError(f"{section}.context: {context:,} tokens are more than the {positions:,} positions of {name}")
    if tokenizer.get_vocab_size() > network.get_input_embeddings().num_embeddings:
        raise InputError(f"{section}.model: the tokenizer of {name} has tokens beyond the model's vocabulary")
    ends = config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    if end is None:
        raise InputError(f"{section}.model: {name} names no end token (eos_token_id) in its config.json")
    return int(end)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed PyTorch and use deterministic algorithms; the previous state is restored afterwards (except MPS's seed)."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Without it, products on CUDA are not deterministic.
    enabled = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warned)
