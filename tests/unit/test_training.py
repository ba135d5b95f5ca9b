"""The proxy for performance, trained for real on a tiny scale: what is equal for all sets, and what the losses say."""

import hashlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding import language_model
from novelsum_dagster.embedding.language_model import END
from novelsum_dagster.settings import Training
from novelsum_dagster.study import training
from novelsum_dagster.study.training import (
    SCORED_CHARACTERS,
    bits_per_byte,
    held_out_rows,
    train,
    train_tokenizer,
    training_sequences,
    z_scores,
)

TINY = Training(tokens=2500, context=32, batch_size=8, vocabulary=400)
build_model = partial(language_model.build_model, device="cpu")
train_and_evaluate = partial(training.train_and_evaluate, device="cpu")
LONGER = TINY.model_copy(update={"tokens": 16_000})


def _sentences(count: int, seed: int) -> list[str]:
    """Sentences that only who has seen many of them predicts well: each noun has its own place and verb."""
    generator = np.random.default_rng(seed)
    nouns = ["cat", "crow", "ship", "judge", "baker", "river", "teacher", "engine", "farmer", "pianist"]
    verbs = ["sleeps", "croaks", "sails", "decides", "kneads", "floods", "explains", "hums", "harvests", "rehearses"]
    places = ["barn", "oak", "harbour", "court", "kitchen", "valley", "school", "workshop", "field", "hall"]
    days = ["Monday", "Tuesday", "Friday", "Sunday"]
    rows = generator.integers(0, len(nouns), count)
    return [
        f"On {generator.choice(days)} the {nouns[row]} in the {places[row]} {verbs[row]} {generator.integers(2, 9)}x."
        for row in rows
    ]


TEXTS = _sentences(300, 0)
HELD_OUT = {"early": _sentences(12, 1), "late": [" ".join(_sentences(3, seed)) for seed in range(2, 8)]}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models so small gain nothing from a second thread, and wait for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer(TEXTS, TINY.vocabulary)


@pytest.fixture(scope="module")
def losses(tokenizer: str) -> dict[str, float]:
    return train_and_evaluate(TEXTS, HELD_OUT, TINY, tokenizer, seed=1)


def _weights(model: Any) -> str:
    digest = hashlib.sha256()
    for name, values in model.network.state_dict().items():
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _saved(folder: Path, tokenizer: str, **changes: Any) -> Path:
    """Save a GPT-2 of two narrow layers with `tokenizer`, as a user's own model would be."""
    size, end = Tokenizer.from_str(tokenizer).get_vocab_size(), Tokenizer.from_str(tokenizer).token_to_id(END)
    values = {"n_positions": 64, "vocab_size": size, "bos_token_id": end, "eos_token_id": end, **changes}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **values)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


def test_a_tokenizer_writes_every_text_and_is_the_same_in_every_process(tokenizer: str) -> None:
    program = (
        "import hashlib; from tests.unit.test_training import *\n"
        "print(hashlib.sha256(train_tokenizer(TEXTS, TINY.vocabulary).encode()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    again = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == hashlib.sha256(tokenizer.encode()).hexdigest()
    loaded = Tokenizer.from_str(tokenizer)
    text = "Zażółć\t\x00 漢字 🐈\r\n"
    assert loaded.decode(loaded.encode(text).ids) == text
    assert 256 < loaded.get_vocab_size() <= TINY.vocabulary
    with pytest.raises(InputError, match="texts are empty"):
        train_tokenizer(["", ""], 400)


def test_a_seed_decides_the_losses_and_leaves_the_callers_random_numbers_alone(
    tokenizer: str, losses: dict[str, float]
) -> None:
    before = torch.random.get_rng_state()
    torch.rand(3)
    again = train_and_evaluate(TEXTS, HELD_OUT, TINY, tokenizer, seed=1)
    other = train_and_evaluate(TEXTS, HELD_OUT, TINY, tokenizer, seed=2)
    assert again == losses != other
    assert list(losses) == ["early", "late"]
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_lowers_the_loss(tokenizer: str, losses: dict[str, float]) -> None:
    untrained = bits_per_byte(build_model(TINY, tokenizer, 1), HELD_OUT, TINY)
    assert all(losses[source] < 0.8 * untrained[source] for source in HELD_OUT)


def test_every_set_starts_from_the_same_weights(tokenizer: str) -> None:
    first, again, other = (build_model(TINY, tokenizer, seed) for seed in (1, 1, 2))
    assert _weights(first) == _weights(again) != _weights(other)
    train(again, TEXTS[:5], TINY.model_copy(update={"tokens": 300}))
    assert _weights(first) != _weights(again)


@pytest.mark.parametrize("tokens", [1, 31, 256, 1000])
def test_exactly_the_tokens_asked_for_are_trained_on(tokenizer: str, tokens: int) -> None:
    settings = TINY.model_copy(update={"tokens": tokens})
    model = build_model(settings, tokenizer)
    seen: list[int] = []
    told: list[tuple[int, int]] = []
    model.network.register_forward_hook(lambda _, __, output: seen.append(output.logits.shape[:2].numel()))
    train(model, TEXTS[:7], settings, progress=lambda done, total: told.append((done, total)))
    assert sum(seen) == -(-tokens // 32) * 32
    assert len(told) == len(seen) == -(-tokens // (32 * 8))
    assert told[-1] == (tokens, tokens)


def test_samples_are_shuffled_anew_in_every_epoch_and_end_with_the_end_token() -> None:
    samples = [np.full(size, size) for size in (1, 2, 3, 4, 0)]
    settings = TINY.model_copy(update={"tokens": 40, "context": 16})
    inputs, targets = training_sequences(samples, 9, settings, seed=0)
    assert inputs.shape == targets.shape == (3, 16)
    assert (targets != -100).sum() == 40
    string = targets.ravel()[:40]
    assert inputs.ravel()[:40].tolist() == [9, *string[:-1]]
    epochs = string[:28].reshape(2, 14)
    assert Counter(epochs[0]) == Counter(epochs[1]) == {1: 1, 2: 2, 3: 3, 4: 4, 9: 4}
    orders = {tuple(epoch[np.flatnonzero(epoch == 9) - 1]) for epoch in epochs}
    assert len(orders) == 2
    np.testing.assert_array_equal(targets, training_sequences(samples, 9, settings, seed=0)[1])
    assert (targets != training_sequences(samples, 9, settings, seed=1)[1]).any()


def test_bits_per_byte_are_those_of_one_text_at_a_time(tokenizer: str) -> None:
    model = build_model(TINY, tokenizer)
    texts = ["The cat sleeps.", "é" * (SCORED_CHARACTERS + 500), *HELD_OUT["late"], ""]
    bits = 0.0
    for text in texts:
        ids = model.tokenizer.encode(text[:SCORED_CHARACTERS]).ids
        for start in range(0, len(ids), 32):
            window = torch.tensor([[model.end, *ids][start : start + 33]])
            with torch.no_grad():
                logits = model.network(window).logits[0].log_softmax(-1)
            scored = ids[start : start + 32]
            bits -= sum(float(logits[place, token]) for place, token in enumerate(scored)) / math.log(2)
    expected = bits / sum(len(text[:SCORED_CHARACTERS].encode()) for text in texts)
    assert bits_per_byte(model, {"all": texts}, TINY)["all"] == pytest.approx(expected, rel=1e-5)


def test_a_text_that_quotes_the_end_token_does_not_end(tokenizer: str) -> None:
    model = build_model(TINY, tokenizer)
    assert model.end not in model.tokenizer.encode(f"before {END} after").ids


@pytest.mark.slow
def test_a_small_set_repeated_generalises_worse_than_a_varied_one(tokenizer: str) -> None:
    varied = train_and_evaluate(TEXTS, HELD_OUT, LONGER, tokenizer)
    repeated = train_and_evaluate(TEXTS[:4] * 75, HELD_OUT, LONGER, tokenizer)
    assert all(repeated[source] > 1.2 * varied[source] for source in HELD_OUT)


def test_a_models_own_weights_are_fine_tuned(tmp_path: Path, tokenizer: str) -> None:
    settings = TINY.model_copy(update={"model": str(_saved(tmp_path, tokenizer)), "learning_rate": 1e-3})
    model = build_model(settings, seed=5)
    saved = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(model.network.transformer.wte.weight, saved.transformer.wte.weight)
    found = train_and_evaluate(TEXTS, HELD_OUT, settings)
    assert found == train_and_evaluate(TEXTS, HELD_OUT, settings)  # With the dropout that GPT-2 has.
    untrained = bits_per_byte(model, HELD_OUT, settings)
    assert all(found[source] < untrained[source] for source in HELD_OUT)


def test_pickled_weights_and_code_of_a_models_own_are_refused(tmp_path: Path, tokenizer: str) -> None:
    folder = _saved(tmp_path, tokenizer)
    settings = TINY.model_copy(update={"model": str(folder)})
    config = json.loads((folder / "config.json").read_text())
    own = {**config, "model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "own.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(InputError, match=r"training\.model: .* cannot be loaded"):
        build_model(settings)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(GPT2LMHeadModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"training\.model: .* has no \.safetensors weights"):
        build_model(settings)


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        ({"n_positions": 16}, None, r"training\.context: 32 tokens are more than the 16 positions"),
        ({"vocab_size": 300}, None, "tokens beyond the model's vocabulary"),
        ({"eos_token_id": None}, None, "names no end token"),
        ({}, "tokenizer.json", "cannot be loaded"),
        ({}, "config.json", "cannot be loaded"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, tokenizer: str, changes: dict[str, Any], missing: str | None, message: str
) -> None:
    folder = _saved(tmp_path, tokenizer, **changes)
    if missing:
        (folder / missing).unlink()
    with pytest.raises(InputError, match=message):
        build_model(TINY.model_copy(update={"model": str(folder)}))


def test_what_cannot_be_trained_or_scored_is_refused(tokenizer: str) -> None:
    with pytest.raises(InputError, match=r"not a local folder; .* training\.revision"):
        build_model(TINY.model_copy(update={"model": "some/model"}))
    with pytest.raises(InputError, match="this machine has no device mps"):
        build_model(TINY, tokenizer, device="mps")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        build_model(TINY)
    model = build_model(TINY, tokenizer)
    for texts in ([], ["", ""]):
        with pytest.raises(InputError, match="no tokens to train on"):
            train(model, texts, TINY)
        with pytest.raises(InputError, match="held-out source late has no text"):
            bits_per_byte(model, {"early": ["text"], "late": texts}, TINY)
        with pytest.raises(InputError, match="held-out source late has no text"):
            train_and_evaluate([], {"late": texts}, TINY, tokenizer)  # Told before training.
    with pytest.raises(InputError, match="no held-out texts"):
        bits_per_byte(model, {}, TINY)
    with pytest.raises(InputError, match=r"diverged.* lower training\.learning_rate"):
        train_and_evaluate(TEXTS, HELD_OUT, TINY.model_copy(update={"learning_rate": 1e30}), tokenizer)


def test_z_scores_are_scipys_and_balanced_over_sources() -> None:
    values = np.random.default_rng(0).normal(size=(6, 3)) * [1, 100, 1e-3]
    names = [f"set {row}" for row in range(6)]
    losses = {name: dict(zip("abc", row.tolist(), strict=True)) for name, row in zip(names, values, strict=True)}
    expected = zscore(-values, axis=0).mean(axis=1)
    np.testing.assert_allclose(list(z_scores(losses).values()), expected)
    turned = {name: dict(reversed(of_set.items())) for name, of_set in losses.items()}
    assert z_scores({**losses, "set 3": turned["set 3"]}) == z_scores(losses)
    equal = {name: {**of_set, "d": 0.1} for name, of_set in losses.items()}
    np.testing.assert_allclose(list(z_scores(equal).values()), expected * 3 / 4)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "at least 2, not 0"),
        ({"one": {"a": 1.0}}, "at least 2, not 1"),
        ({"one": {"a": 1.0}, "two": {"b": 1.0}}, r"set two has losses on \['b'\], set one on \['a'\]"),
        ({"one": {}, "two": {}}, "set one has losses on"),
        ({"one": {"a": 1.0}, "two": {"a": math.nan}}, "set two has a loss that is not a number"),
    ],
)
def test_losses_that_do_not_compare_are_refused(losses: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        z_scores(losses)


def test_held_out_rows_are_balanced_seeded_and_leave_four_fifths() -> None:
    sources = np.random.default_rng(0).permutation(["a"] * 500 + ["b"] * 50 + ["c"] * 90).tolist()
    rows = held_out_rows(sources, 10, seed=3)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert Counter(sources[row] for row in rows) == {"a": 10, "b": 10, "c": 10}
    np.testing.assert_array_equal(rows, held_out_rows(sources, 10, seed=3))
    assert set(rows.tolist()) != set(held_out_rows(sources, 10, seed=4).tolist())
    with pytest.raises(InputError, match=r"11 held-out .* a fifth of b \(50 samples\); at most 10 fit every source"):
        held_out_rows(sources, 11, seed=3)
    for of_each, per_source in ((sources, 0), ([], 1)):
        with pytest.raises(ValueError, match="must be at least 1"):
            held_out_rows(of_each, per_source, seed=3)
