"""The packaged model and the vector store, for real: nothing is embedded twice, nothing committed is lost."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding import encoder as encoder_module
from novelsum_dagster.embedding import store
from novelsum_dagster.embedding.encoder import (
    Encoder,
    Model,
    SentenceTransformerEncoder,
    identify,
    load_encoder,
    token_counter,
)
from novelsum_dagster.embedding.language_model import END
from novelsum_dagster.embedding.store import StoredVectors, VectorStore, load_vectors
from novelsum_dagster.selection import novelselect
from novelsum_dagster.settings import Embedding
from novelsum_dagster.study.training import train_tokenizer
from tests.pools import pairs
from tests.tiny import tiny_model

TEXTS = [f"{question}\n{answer}" for question, answer in pairs(40)]
IDS = [f"{number:032x}" for number in range(40)]
FLOAT32 = Embedding(dtype="float32", shard_size=16)
TINY = FLOAT32.model_copy(update={"model": tiny_model()})
"""Where any model will do."""
embed = partial(store.embed, device="cpu")


def encoded(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.full((len(texts), encoder.dimension), np.nan, dtype=np.float32)
    for rows, found in encoder.batches(texts):
        vectors[rows] = found
    return vectors


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(FLOAT32, "float32", "cpu")


@pytest.fixture(scope="module")
def tiny() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(TINY, "float32", "cpu")


def test_vectors_are_the_models(encoder: SentenceTransformerEncoder) -> None:
    vectors = encoded(encoder, ["A cat sat on the mat.", "A kitten lay on the rug.", "Integrate x squared."])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dimension) == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_texts_are_cut_after_max_tokens(encoder: SentenceTransformerEncoder) -> None:
    long = " ".join(["word"] * 400)
    same, other = encoded(encoder, [long, long + " and something else entirely"])
    np.testing.assert_allclose(same, other, atol=1e-6)


@pytest.mark.parametrize("tokens", [20, 32])
def test_every_limit_reads_so_many_tokens_with_special_ones(tokens: int) -> None:
    settings = TINY.model_copy(update={"max_tokens": tokens})
    fits, over = " ".join(["a"] * (tokens - 2)), " ".join(["a"] * (tokens - 2) + ["b"])
    less = " ".join(["a"] * (tokens - 3))
    found = encoded(SentenceTransformerEncoder(settings, "float32", "cpu"), [fits, over, less, "a"])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-4
    alone = encoded(SentenceTransformerEncoder(settings, "float32", "cpu"), ["a"])
    np.testing.assert_array_equal(found[3], alone[0])


@pytest.mark.slow
def test_the_chosen_number_type_is_as_good_as_float32(encoder: SentenceTransformerEncoder) -> None:
    chosen = SentenceTransformerEncoder(Embedding(), device="cpu")
    assert chosen.dtype in ("float32", "bfloat16")
    exact, found = encoded(encoder, TEXTS), encoded(chosen, TEXTS)
    cosine = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() >= 0.999


def test_tokens_are_counted_untruncated() -> None:
    count = token_counter(FLOAT32)
    assert count(["hello world", "word " * 1000, ""]) == [2, 1000, 0]


def test_a_sample_is_embedded_once(tmp_path: Path) -> None:
    first = embed(tmp_path, TINY, IDS[:20], TEXTS[:20], "pool")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / first.folder).iterdir()}
    second = embed(tmp_path, TINY, IDS, TEXTS, "pool")
    assert (first.embedded, second.embedded) == (20, 20)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    again = embed(tmp_path, TINY, IDS, TEXTS, "pool")
    assert again.embedded == 0
    assert again.key == second.key != first.key
    assert again.device == "none"


def test_vectors_come_in_the_order_asked_for(tmp_path: Path, encoder: SentenceTransformerEncoder) -> None:
    found = embed(tmp_path, FLOAT32, IDS, TEXTS, "pool")
    order = [31, 2, 17, 0]
    vectors = load_vectors(tmp_path / found.folder, [IDS[row] for row in order])
    np.testing.assert_allclose(vectors, encoded(encoder, [TEXTS[row] for row in order]), atol=1e-5)


def test_selection_takes_stored_vectors_and_mapped_files_as_it_takes_arrays(
    tmp_path: Path,
) -> None:
    found = embed(tmp_path, TINY, IDS, TEXTS, "pool")
    vectors = load_vectors(tmp_path / found.folder, IDS)
    np.save(tmp_path / "vectors.npy", vectors)
    expected = novelselect(vectors, 4).indices.tolist()
    assert novelselect(StoredVectors(tmp_path / found.folder, IDS), 4).indices.tolist() == expected
    assert novelselect(np.load(tmp_path / "vectors.npy", mmap_mode="r"), 4).indices.tolist() == expected


def test_vectors_are_loaded_once_until_their_files_or_the_samples_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embed(tmp_path, TINY, IDS, TEXTS, "pool")
    folder = tmp_path / found.folder
    first = load_vectors(folder, IDS)
    assert load_vectors(folder, tuple(IDS)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    np.testing.assert_array_equal(load_vectors(folder, IDS[::-1]), first[::-1])
    VectorStore(tmp_path, identify(TINY)).add(["more"], first[:1] + 1, "float32")
    np.testing.assert_array_equal(load_vectors(folder, ["more", IDS[3]]), [first[0] + 1, first[3]])
    shard = next(folder.glob("*.parquet"))
    load_vectors(folder, IDS)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=shard.name):
        load_vectors(folder, IDS)
    shard.unlink()
    monkeypatch.setattr("novelsum_dagster.embedding.store._KEPT_BYTES", 0)
    rest = [id_ for id_ in IDS if id_ in VectorStore(tmp_path, identify(TINY)).ids()]
    assert load_vectors(folder, rest) is not load_vectors(folder, rest)


def test_an_interrupted_run_goes_on_at_the_last_shard(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise Stopped

    with pytest.raises(Stopped):
        embed(tmp_path, TINY, IDS, TEXTS, "pool", stop)
    assert len(VectorStore(tmp_path, identify(TINY)).ids()) == 16
    assert embed(tmp_path, TINY, IDS, TEXTS, "pool").embedded == 24


@pytest.mark.slow
def test_a_killed_process_loses_at_most_one_shard(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_embedding import *\n"
        "embed(Path(sys.argv[1]), Embedding(dtype='float32', shard_size=2), IDS, TEXTS, 'pool')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2])
    kept_there = VectorStore(tmp_path, identify(Embedding(dtype="float32")))
    deadline = time.monotonic() + 120
    while len(kept_there.ids()) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = kept_there.ids()
    assert 4 <= len(kept) <= len(IDS)
    found = embed(tmp_path, Embedding(dtype="float32"), IDS, TEXTS, "pool")
    assert found.embedded == len(IDS) - len(kept)
    assert np.isfinite(load_vectors(tmp_path / found.folder, IDS)).all()


def test_a_damaged_shard_is_named_and_mended_by_deleting_it(tmp_path: Path) -> None:
    found = embed(tmp_path, TINY, IDS, TEXTS, "pool")
    shard = sorted((tmp_path / found.folder).glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=shard.name):
        embed(tmp_path, TINY, IDS, TEXTS, "pool")
    shard.unlink()
    assert embed(tmp_path, TINY, IDS, TEXTS, "pool").embedded in (8, 16)


def test_missing_vectors_are_counted(tmp_path: Path) -> None:
    found = embed(tmp_path, TINY, IDS[:4], TEXTS[:4], "pool")
    with pytest.raises(InputError, match="1 of 5 samples have no vector"):
        load_vectors(tmp_path / found.folder, IDS[:5])


def test_another_length_has_another_store(tmp_path: Path) -> None:
    long = embed(tmp_path, TINY, IDS[:2], TEXTS[:2], "pool")
    short = embed(tmp_path, TINY.model_copy(update={"max_tokens": 16}), IDS[:2], TEXTS[:2], "pool")
    assert long.folder != short.folder
    assert short.embedded == 2


def test_a_hub_model_needs_a_revision() -> None:
    with pytest.raises(InputError, match="revision"):
        identify(Embedding(model="some/model"))


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="safetensors"):
        identify(Embedding(model=str(tmp_path)))


def test_damaged_weights_are_refused(causal: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(causal, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"embedding\.model: .* cannot be loaded on cpu"):
        load_encoder(Embedding(model=str(folder)), None, "cpu")


def test_a_missing_device_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(InputError, match="cuda:3"):
        SentenceTransformerEncoder(Embedding(), "float32", "cuda:3")


def test_the_store_module_loads_no_torch() -> None:
    program = "import sys; import novelsum_dagster.embedding.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Other models than sentence-transformers' own.


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small causal language model with positions, whose tokenizer has no padding token and pads on the left."""
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(train_tokenizer(TEXTS, 300)), eos_token=END, padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=64, n_embd=24, n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _states(folder: Path, texts: list[str], tokens: int) -> list[NDArray[np.float32]]:
    """Return each text's hidden states, one text at a time and so without padding."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    states = []
    for text in texts:
        ids = tokenizer.encode(text).ids[:tokens]
        with torch.no_grad():
            states.append(model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy())
    return states


def _by_hand(folder: Path, texts: list[str], tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean and the last of each text's hidden states."""
    states = _states(folder, texts, tokens)
    return np.stack([state.mean(0) for state in states]), np.stack([state[-1] for state in states])


def test_pooling_is_what_it_is_by_hand_whatever_pads(causal: Path) -> None:
    texts = ["a", *TEXTS[:20], "cat " * 200]
    mean, last = _by_hand(causal, texts, 48)
    settings = Embedding(model=str(causal), dtype="float32", max_tokens=48)
    for pooling, expected, other in (("mean", mean, last), ("last_token", last, mean)):
        encoder = SentenceTransformerEncoder(settings.model_copy(update={"pooling": pooling}), "float32", "cpu")
        found = encoded(encoder, texts)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(found[1:] - other[1:]).max() > 0.1


def _weighted(states: NDArray[np.float32]) -> NDArray[np.float64]:
    positions = range(1, len(states) + 1)
    total = sum((position * state.astype(np.float64) for position, state in zip(positions, states, strict=True)))
    return np.asarray(total / sum(positions))


def test_positions_weigh_tokens_whatever_pads(causal: Path) -> None:
    texts = ["a", *TEXTS[:20], "cat " * 200]
    expected = np.stack([_weighted(states) for states in _states(causal, texts, 48)])
    settings = Embedding(model=str(causal), dtype="float32", max_tokens=48, pooling="position_weighted_mean")
    found = encoded(SentenceTransformerEncoder(settings, "float32", "cpu"), texts)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    mean = encoded(SentenceTransformerEncoder(settings.model_copy(update={"pooling": "mean"}), "float32", "cpu"), texts)
    np.testing.assert_allclose(found[0], mean[0], atol=1e-6)  # One token.
    assert np.abs(found[1:] - mean[1:]).max() > 0.1


def test_special_tokens_have_positions_too_and_normalisation_stays() -> None:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(tiny_model(), device="cpu")
    expected = []
    for text in TEXTS[:5]:
        states = model.encode(text, output_value="token_embeddings").cpu().numpy()
        weighted = _weighted(states)
        expected.append(weighted / np.linalg.norm(weighted))
    settings = TINY.model_copy(update={"pooling": "position_weighted_mean"})
    found = encoded(SentenceTransformerEncoder(settings, "float32", "cpu"), TEXTS[:5])
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    assert identify(settings).key != identify(TINY).key


@pytest.mark.parametrize("changes", [{"long": "windows"}, {"backend": "vllm"}])
def test_positions_that_are_not_known_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=f"position_weighted_mean.* use {'long truncate' if 'long' in changes else 'backend torch'}"
    ):
        Embedding(pooling="position_weighted_mean", **changes)


def test_the_masks_decide_where_the_last_token_is(causal: Path) -> None:
    """On either side: padding has states of its own, which must not be taken."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    states = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
    pooling = Pooling(3, "lasttoken")
    for mask, at in (([1, 1, 0, 0], 1), ([0, 0, 1, 1], 3), ([1, 1, 1, 1], 3)):
        found = pooling({"token_embeddings": states, "attention_mask": torch.tensor([mask, mask])})
        torch.testing.assert_close(found["sentence_embedding"], states[:, at])


def test_a_causal_model_has_its_last_token_and_an_encoder_the_mean_unless_told(causal: Path, tmp_path: Path) -> None:
    texts = ["a cat", "another cat that is much longer than the first one and so on"]
    small: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    for name, network in (
        ("causal", LlamaForCausalLM(LlamaConfig(**small, num_hidden_layers=1, initializer_range=0.5))),
        ("encoder", BertModel(BertConfig(**small, num_hidden_layers=1))),
    ):
        network.save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(causal / file, tmp_path / name / file)
    _, last = _by_hand(tmp_path / "causal", texts, 48)
    settings = Embedding(model=str(tmp_path / "causal"), dtype="float32", max_tokens=48)
    found = encoded(SentenceTransformerEncoder(settings, "float32", "cpu"), texts)
    np.testing.assert_allclose(found, last, rtol=1e-4, atol=1e-4)
    plain = settings.model_copy(update={"model": str(tmp_path / "encoder")})
    vectors = [
        encoded(SentenceTransformerEncoder(one, "float32", "cpu"), texts)
        for one in (plain, plain.model_copy(update={"pooling": "mean"}))
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)


def test_a_model_without_pooling_cannot_be_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(list[object]):
        pass

    with pytest.raises(InputError, match=r"embedding\.pooling: .* use auto"):
        encoder_module._pool_by(Bare(), "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_half_precision_is_near(encoder: SentenceTransformerEncoder, dtype: str) -> None:
    exact = encoded(encoder, TEXTS[:8])
    half = SentenceTransformerEncoder(FLOAT32, dtype, "cpu")
    found = encoded(half, TEXTS[:8])
    assert half.dtype == dtype
    assert ((exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)).min() > 0.999


def test_the_key_of_a_model_is_what_it_was_unless_its_vectors_differ() -> None:
    known = Model("a/b", "1", 256, "auto")
    facts = {"name": "a/b", "revision": "1", "max_tokens": 256, "dtype": "auto", "batching": known.batching}
    assert known.key == f"b-{hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:12]}"
    others = [replace(known, pooling="mean"), replace(known, pooling="last_token"), replace(known, backend="vllm")]
    assert len({known.key, *(one.key for one in others)}) == 4
    chosen = identify(FLOAT32.model_copy(update={"pooling": "last_token", "backend": "vllm"}))
    assert (chosen.pooling, chosen.backend) == ("last_token", "vllm")


class _Small(torch.nn.Module):
    """A module that fits only so many texts at a time, as a GPU that is too small."""

    def __init__(self, inner: torch.nn.Module, fits: int, error: RuntimeError) -> None:
        super().__init__()
        self.inner, self.fits, self.error, self.batches = inner, fits, error, list[int]()

    def forward(self, features: dict[str, torch.Tensor], **options: object) -> dict[str, torch.Tensor]:
        self.batches.append(len(features["input_ids"]))
        if self.batches[-1] > self.fits:
            raise self.error
        found: dict[str, torch.Tensor] = self.inner(features, **options)
        return found


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore words")


def _too_small(fits: int, error: RuntimeError = OUT_OF_MEMORY) -> tuple[SentenceTransformerEncoder, _Small]:
    encoder = SentenceTransformerEncoder(TINY, "float32", "cpu")
    small = _Small(encoder._model[1], fits, error)
    encoder._model[1] = small
    return encoder, small


def test_too_little_memory_on_a_device_halves_the_batch(
    tiny: SentenceTransformerEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    exact = encoded(tiny, TEXTS)
    other, small = _too_small(5)
    np.testing.assert_allclose(encoded(other, TEXTS), exact, atol=1e-6)
    assert small.batches[:3] == [16, 8, 4]
    assert set(small.batches[2:]) == {4}  # It is not tried again.
    said = [record.getMessage() for record in caplog.records if record.name == encoder_module.__name__]
    assert len(said) == 2
    assert (
        said[1]
        == "cpu: memory is too small; batches of 4 texts from here on (CUDA out of memory. Tried to allocate 1 GiB)"
    )


def test_a_device_too_small_for_one_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"too small for one text; lower embedding\.max_tokens \(CUDA out of memory"):
        encoded(_too_small(0)[0], TEXTS[:2])


@pytest.mark.parametrize("words", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory"])
def test_every_kind_of_out_of_memory_halves_the_batch(words: str) -> None:
    other, small = _too_small(5, RuntimeError(f"CUDA error: {words}"))
    assert np.isfinite(encoded(other, TEXTS[:20])).all()
    assert set(small.batches[2:]) == {4}


def test_other_errors_of_torch_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="device-side assert"):
        encoded(_too_small(5, RuntimeError("CUDA error: device-side assert triggered"))[0], TEXTS[:20])


def test_batches_are_filled_up_on_the_cpu_only(tiny: SentenceTransformerEncoder) -> None:
    exact = encoded(tiny, TEXTS[:3])
    on_cpu, filled = _too_small(16)
    encoded(on_cpu, TEXTS[:3])
    assert set(filled.batches) == {16}
    elsewhere, small = _too_small(16)
    elsewhere.device = "cuda"  # In name.
    np.testing.assert_allclose(encoded(elsewhere, TEXTS[:3]), exact, atol=1e-6)
    assert sum(small.batches) == 3


def test_more_tokens_than_a_model_has_positions_for_are_refused(causal: Path, tmp_path: Path) -> None:
    most = SentenceTransformerEncoder(TINY.model_copy(update={"max_tokens": 512}), "float32", "cpu")
    assert np.isfinite(encoded(most, ["word " * 900])).all()
    words = r"embedding\.max_tokens is {} and .* has positions for {} tokens; .* set it to {} or less"
    with pytest.raises(InputError, match=words.format(513, 512, 512)):
        SentenceTransformerEncoder(TINY.model_copy(update={"max_tokens": 513}), "float32", "cpu")
    small: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(**small, num_hidden_layers=1, max_position_embeddings=40, pad_token_id=1)
    RobertaModel(config).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(causal / file, tmp_path / file)
    settings = Embedding(model=str(tmp_path), dtype="float32", max_tokens=33)
    with pytest.raises(InputError, match=words.format(33, 38, 32)):
        SentenceTransformerEncoder(settings, "float32", "cpu")
    fits = SentenceTransformerEncoder(settings.model_copy(update={"max_tokens": 32}), "float32", "cpu")
    assert np.isfinite(encoded(fits, ["word " * 100])).all()


def test_vllm_that_is_not_there_is_named() -> None:
    settings = FLOAT32.model_copy(update={"backend": "vllm"})
    with pytest.raises(InputError, match=r"vllm is not installed .* docs/gpu\.md"):
        load_encoder(settings)
