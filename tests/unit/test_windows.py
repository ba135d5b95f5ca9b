"""Texts over `max_tokens`: what is cut, and vectors of windows, for the local encoder, Ray's worker and vLLM."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding import vllm_encoder
from novelsum_dagster.embedding.cut import Cut, cut_of
from novelsum_dagster.embedding.encoder import (
    Encoder,
    Model,
    SentenceTransformerEncoder,
    identify,
    special_tokens,
    token_counter,
)
from novelsum_dagster.embedding.vllm_encoder import VllmEncoder
from novelsum_dagster.embedding.windows import mean_of_windows, normalises, windows_of
from novelsum_dagster.engine.ray_embedding import _Embedder
from novelsum_dagster.settings import Embedding
from tests.pools import pairs
from tests.tiny import tiny_model

CUT = Embedding(model=tiny_model(), dtype="float32", max_tokens=32)
WINDOWS = CUT.model_copy(update={"long": "windows"})
SPECIAL = 2
SHORT = ["", "a", *(" ".join(["word"] * size) for size in (1, 3, 7)), "Who wrote it?"]
"""Of at most 30 tokens."""
LONG = [f"{question}\n{answer} " * (number % 3 + 1) for number, (question, answer) in enumerate(pairs(30))]
COUNTS = np.array(token_counter(CUT)([*SHORT, *LONG]))


def encoder(settings: Embedding) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(settings, "float32", "cpu")


@pytest.fixture(scope="module")
def windowed() -> SentenceTransformerEncoder:
    return encoder(WINDOWS)


def encoded(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.full((len(texts), encoder.dimension), np.nan, dtype=np.float32)
    for rows, found in encoder.batches(texts):
        assert np.isnan(vectors[rows]).all()
        vectors[rows] = found
    assert np.isfinite(vectors).all()
    return vectors


def bits(vectors: NDArray[np.float32]) -> NDArray[np.uint32]:
    return vectors.view(np.uint32)


def windows_by_hand(text: str, tokens: int) -> list[list[int]]:
    """Return the ids of each window, special tokens and all."""
    ids = Tokenizer.from_file(f"{tiny_model()}/tokenizer.json").encode(text, add_special_tokens=False).ids
    room = tokens - SPECIAL
    return [[2, *ids[start : start + room], 3] for start in range(0, max(1, len(ids)), room)]


def by_hand(text: str, tokens: int, folder: str | None = None) -> NDArray[np.float64]:
    """Return the weighted mean of the windows' vectors, each embedded alone and without padding."""
    model = SentenceTransformer(folder or tiny_model(), device="cpu")
    windows = windows_by_hand(text, tokens)
    vectors = []
    for ids in windows:
        mask = torch.ones(1, len(ids), dtype=torch.long)
        with torch.inference_mode():
            found = model({"input_ids": torch.tensor([ids]), "attention_mask": mask, "modality": "text"})
        vectors.append(found["sentence_embedding"][0].double().numpy())
    mean = np.average(vectors, axis=0, weights=[len(ids) - SPECIAL for ids in windows])
    return np.asarray(mean if folder else mean / np.linalg.norm(mean))


def test_the_texts_are_as_they_say() -> None:
    assert COUNTS[: len(SHORT)].max() <= 30
    assert COUNTS[len(SHORT) :].min() > 30
    assert special_tokens(CUT) == SPECIAL


def test_a_text_that_fits_has_the_vector_that_truncate_gives_bit_for_bit(windowed: SentenceTransformerEncoder) -> None:
    exact = " ".join(["a"] * 30)
    texts = [*SHORT, exact]
    cut = encoded(encoder(CUT), texts)
    np.testing.assert_array_equal(bits(encoded(windowed, texts)), bits(cut))
    np.testing.assert_array_equal(bits(encoded(windowed, [*LONG[:5], *texts])[5:]), bits(cut))
    assert not np.array_equal(encoded(windowed, [f"{exact} b"])[0], cut[-1])


@pytest.mark.parametrize("tokens", [32, 20, 7])
def test_a_long_text_has_the_weighted_mean_of_its_windows(tokens: int) -> None:
    settings = WINDOWS.model_copy(update={"max_tokens": tokens})
    texts = [" ".join(["a"] * 30 + ["b"]), *LONG[:4]]
    found = encoded(encoder(settings), texts)
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_allclose(vector, by_hand(text, tokens), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    cut = encoded(encoder(settings.model_copy(update={"long": "truncate"})), texts)
    assert np.abs(found - cut).max() > 0.05


def test_the_end_of_a_long_text_counts_in_windows_only(windowed: SentenceTransformerEncoder) -> None:
    texts = [LONG[0], LONG[0] + " and something else entirely"]
    cut = encoded(encoder(CUT), texts)
    np.testing.assert_array_equal(bits(cut[0]), bits(cut[1]))
    first, second = encoded(windowed, texts)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("size", [1, 7, 25])
def test_a_vector_does_not_depend_on_the_texts_around_it(windowed: SentenceTransformerEncoder, size: int) -> None:
    texts = [*SHORT, *LONG]
    whole = encoded(windowed, texts)
    rows = np.random.default_rng(size).permutation(len(texts))[:size]
    np.testing.assert_array_equal(bits(encoded(windowed, [texts[row] for row in rows])), bits(whole[rows]))


def test_rays_worker_has_the_same_vectors(windowed: SentenceTransformerEncoder) -> None:
    texts = [*LONG[:6], *SHORT]
    worker = _Embedder(WINDOWS, "float32", "cpu", torch.get_num_threads())
    block = worker(pa.table({"place": list(range(len(texts))), "text": texts}))
    found = block["vector"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)
    np.testing.assert_array_equal(bits(found), bits(encoded(windowed, texts)))


def test_a_model_that_does_not_normalise_has_the_mean_as_it_is(tmp_path: Path) -> None:
    plain = Path(shutil.copytree(tiny_model(), tmp_path / "model"))
    modules = json.loads((plain / "modules.json").read_text())
    (plain / "modules.json").write_text(json.dumps(modules[:2]))
    [vector] = encoded(encoder(WINDOWS.model_copy(update={"model": str(plain)})), LONG[:1])
    np.testing.assert_allclose(vector, by_hand(LONG[0], 32, str(plain)), atol=2e-5)
    assert abs(np.linalg.norm(vector) - 1) > 0.1
    assert (normalises(plain), normalises(Path(tiny_model())), normalises(tmp_path)) == (False, True, False)


@pytest.mark.parametrize("tokens", [32, 20])
def test_windows_are_the_same_tokens_whichever_side_is_padded(tokens: int) -> None:
    made = encoder(WINDOWS.model_copy(update={"max_tokens": tokens}))
    expected = windows_by_hand(LONG[0], tokens)
    for side in ("right", "left"):
        made._model.tokenizer.padding_side = side
        windows = windows_of(made._model, ["a", LONG[0]])
        assert windows.owner.tolist() == [0] + [1] * len(expected)
        assert windows.lengths.tolist() == [3, *map(len, expected)]
        for place in (1, len(expected)):
            length = -(-len(expected[place - 1]) // 16) * 16
            rows = windows.rows([place, place], length, side == "left")
            assert rows["input_ids"].shape == rows["attention_mask"].shape == (2, length)
            mask = rows["attention_mask"][0].bool()
            assert rows["input_ids"][0][mask].tolist() == expected[place - 1]
            assert bool(mask[0 if side == "right" else -1])


def test_the_mean_is_weighted_and_scaled_where_asked() -> None:
    vectors = np.array([[1, 0], [0, 1], [3, 4], [0, 0]], np.float32)
    owner, tokens = np.array([0, 0, 1, 2]), np.array([30, 10, 5, 1])
    plain = mean_of_windows(vectors, owner, tokens, False)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, np.array([[0.75, 0.25], [3, 4], [0, 0]], np.float32))
    scaled = mean_of_windows(vectors, owner, tokens, True)
    expected = np.array([[0.9486833, 0.31622777], [0.6, 0.8], [0, 0]], np.float32)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_a_tokenizer_that_keeps_nothing_of_what_it_cuts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda self: False))
    with pytest.raises(InputError, match=r"embedding\.long: windows needs .* fast tokenizer"):
        encoder(WINDOWS)
    encoder(CUT)


def test_the_key_differs_by_text_parts_and_windows_and_is_what_it_was_for_the_defaults() -> None:
    plain = identify(CUT)
    assert plain == Model(plain.name, plain.revision, 32, "float32")
    changed: list[dict[str, Any]] = [
        {"long": "windows"},
        {"text": "prompt"},
        {"text": "response"},
        {"text": "all"},
        {"include": ("system",)},
        {"include": ("system", "tools")},
        {"include": ("reasoning",), "text": "response"},
    ]
    keys = [identify(CUT.model_copy(update=one)).key for one in changed]
    assert len({plain.key, *keys}) == 8
    same = [("tools", "system"), ("system", "tools", "system")]
    assert {identify(CUT.model_copy(update={"include": one})).key for one in same} == {keys[5]}
    everything = CUT.model_copy(update={"text": "all", "include": ("system",)})
    assert identify(everything).key == keys[3]


# What is cut.


def test_cut_counts_samples_and_tokens_that_are_never_seen() -> None:
    cut = cut_of([0, 30, 31, 99], CUT, SPECIAL)
    assert cut == Cut(samples=4, cut=2, tokens=160, unread_tokens=70)
    assert cut.fraction == 70 / 160
    assert cut_of(COUNTS.tolist(), CUT, SPECIAL).cut == len(LONG)


def test_nothing_is_cut_by_windows_without_texts_or_where_vectors_are_given() -> None:
    assert cut_of([31, 99], WINDOWS, SPECIAL) == Cut(2, 0, 130, 0)
    assert cut_of([31, 99], CUT.model_copy(update={"vectors": "v.npy"}), SPECIAL) == Cut(2, 0, 130, 0)
    assert cut_of([], CUT, SPECIAL) == Cut(0, 0, 0, 0)
    assert cut_of([], CUT, SPECIAL).fraction == 0


def test_a_limit_of_special_tokens_alone_leaves_every_token_unread() -> None:
    assert cut_of([5], CUT.model_copy(update={"max_tokens": 1}), SPECIAL) == Cut(1, 1, 5, 5)


# vLLM, in place of which a model stands that has a vector for each list of tokens.


class _Found:
    def __init__(self, ids: list[int]) -> None:
        self.outputs = self
        self.embedding = [float(len(ids)), float(sum(ids))]


class _Vllm:
    def get_tokenizer(self) -> Any:
        return SentenceTransformer(tiny_model(), device="cpu").tokenizer

    def embed(self, prompts: list[dict[str, list[int]]], use_tqdm: bool) -> list[_Found]:
        return [_Found(prompt["prompt_token_ids"]) for prompt in prompts]


@pytest.mark.parametrize(("pooling", "normalise"), [("auto", True), ("mean", False)])
def test_vllm_has_the_same_windows(monkeypatch: pytest.MonkeyPatch, pooling: str, normalise: bool) -> None:
    monkeypatch.setattr(vllm_encoder, "_device", lambda: "cpu")
    monkeypatch.setattr(vllm_encoder, "_load", lambda settings, dtype: _Vllm())
    settings = WINDOWS.model_copy(update={"backend": "vllm", "pooling": pooling})
    texts = ["a", *LONG[:3]]
    found = encoded(VllmEncoder(settings), texts)
    np.testing.assert_array_equal(
        found[0], encoded(VllmEncoder(settings.model_copy(update={"long": "truncate"})), ["a"])[0]
    )
    for text, vector in zip(texts[1:], found[1:], strict=True):
        windows = windows_by_hand(text, 32)
        weights = [len(ids) - SPECIAL for ids in windows]
        mean = np.average(np.array([[len(ids), sum(ids)] for ids in windows]), axis=0, weights=weights)
        np.testing.assert_allclose(vector, mean / (np.linalg.norm(mean) if normalise else 1.0), rtol=1e-6)
