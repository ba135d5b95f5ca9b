"""A small sentence-transformers model, made in a moment, for tests of what does not depend on the encoder.

BERT of two layers and 32 dimensions with weights drawn from a seed, a vocabulary of the commonest words of numpy's
documentation, mean pooling and normalisation. Equal texts have equal vectors, and texts that share most words near
ones. It knows nothing of meaning.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from novelsum_dagster.pool.demo import documented

VARIABLE = "NOVELSUM_TESTS_TINY_MODEL"
"""Where the model is, for this process and those that it starts."""
DIMENSION = 32
_LAYERS, _INNER, _POSITIONS, _WORDS = 2, 64, 512, 3000
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_model() -> str:
    """Return the folder of the model, which `tests/conftest.py` makes before any test is collected."""
    return os.environ[VARIABLE]


def make_tiny_model(folder: Path) -> Path:
    """Write the model."""
    tokenizer = _tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    for name, values in _configurations(vocabulary).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(_weights(vocabulary), folder / "model.safetensors", {"format": "pt"})
    return folder


def _tokenizer() -> Tokenizer:
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for question, answer in documented("numpy", ("numpy",)):
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(f"{question}\n{answer}")))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_WORDS]]
    letters = [chr(code) for code in range(33, 127)]
    names = dict.fromkeys([*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer


def _weights(vocabulary: int) -> dict[str, Any]:
    draw = np.random.RandomState(0)
    weights: dict[str, Any] = {}

    def add(name: str, *shape: int, scale: float) -> None:
        weights[f"{name}.weight"] = (draw.standard_normal(shape) * scale).astype(np.float32)
        if len(shape) == 2 and "embeddings" not in name:
            weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)

    def add_norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(DIMENSION, np.float32)
        weights[f"{name}.bias"] = np.zeros(DIMENSION, np.float32)

    for name, rows, scale in (
        ("word_embeddings", vocabulary, 1.0),
        ("position_embeddings", _POSITIONS, 0.1),
        ("token_type_embeddings", 2, 0.1),
    ):
        add(f"embeddings.{name}", rows, DIMENSION, scale=scale)
    add_norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{number}" for number in range(_LAYERS)):
        for name in ("query", "key", "value"):
            add(f"{layer}.attention.self.{name}", DIMENSION, DIMENSION, scale=0.1)
        add(f"{layer}.attention.output.dense", DIMENSION, DIMENSION, scale=0.1)
        add_norm(f"{layer}.attention.output.LayerNorm")
        add(f"{layer}.intermediate.dense", _INNER, DIMENSION, scale=0.1)
        add(f"{layer}.output.dense", DIMENSION, _INNER, scale=0.1)
        add_norm(f"{layer}.output.LayerNorm")
    add("pooler.dense", DIMENSION, DIMENSION, scale=0.1)
    return weights


def _configurations(vocabulary: int) -> dict[str, Any]:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": DIMENSION,
            "intermediate_size": _INNER,
            "max_position_embeddings": _POSITIONS,
            "num_attention_heads": 2,
            "num_hidden_layers": _LAYERS,
            "vocab_size": vocabulary,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": _POSITIONS,
            "mask_token": "[MASK]",
            **special,
        },
        "modules.json": [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": DIMENSION,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
