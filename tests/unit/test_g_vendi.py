"""Gradients of a small language model against PyTorch's own, and their projection against the whole matrix."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity import g_vendi, gradient_features, measures, vendi_score
from novelsum_dagster.diversity.g_vendi import Projection
from novelsum_dagster.diversity.measures import Evaluator, Samples, measure_sets
from novelsum_dagster.embedding.language_model import END, LanguageModel, build_model
from novelsum_dagster.settings import GVendi, Measures, NovelSum, Training
from novelsum_dagster.study.training import train_tokenizer
from tests.pools import pairs

TEXTS = [f"{question}\n{answer}"[:120] for question, answer in pairs(30)]
QUIET = LogReporter(lambda text: None)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A GPT-2 with dropout, of a few thousand weights, and one that no text reaches."""
    made = tmp_path_factory.mktemp("proxy")
    loaded = Tokenizer.from_str(tokenizer)
    end = loaded.token_to_id(END)
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=48, vocab_size=loaded.get_vocab_size(), eos_token_id=end,
        bos_token_id=end, initializer_range=0.3, resid_pdrop=0.5,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(made)
    loaded.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return build_model(Training(model=str(folder), context=24), device="cpu")


def _gradients(model: LanguageModel, texts: list[str], context: int) -> NDArray[np.float64]:
    """Return the whole gradient of each text's loss, by the model's own loss and `backward`: (n, weights)."""
    model.network.eval()
    found = []
    for text in texts:
        ids = [model.end, *model.tokenizer.encode(text, add_special_tokens=False).ids, model.end][: context + 1]
        model.network.zero_grad()
        tokens = torch.tensor([ids])
        model.network(input_ids=tokens, labels=tokens).loss.backward()
        found.append(np.concatenate([weight.grad.flatten().numpy() for weight in model.network.parameters()]))
    model.network.zero_grad()
    return np.stack(found).astype(np.float64)


def _matrix(sizes: list[int], dimensions: int, seed: int) -> NDArray[np.float64]:
    """Return the whole projection, row by row: (weights, p)."""
    projection = Projection(sizes, dimensions, seed)
    rows = []
    for one in np.eye(sum(sizes), dtype=np.float32):
        rows.append(projection.apply(np.split(one, np.cumsum(sizes)[:-1])))
    return np.stack(rows)


def test_features_are_projected_gradients(model: LanguageModel) -> None:
    texts = ["", "a", *TEXTS[:10], "word " * 100]
    features = gradient_features(model, texts, 64, 7, context=24)
    assert features.shape == (13, 64) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    gradients = _gradients(model, texts, 24)
    projection = Projection([weight.numel() for weight in model.network.parameters()], 64, 7)
    sizes = [weight.numel() for weight in model.network.parameters()]
    dense = np.stack([projection.apply(np.split(row.astype(np.float32), np.cumsum(sizes)[:-1])) for row in gradients])
    np.testing.assert_allclose(features, dense / np.linalg.norm(dense, axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 5, 32])
def test_the_projection_is_a_matrix_of_one_sign_a_row(dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g_vendi, "_BLOCK", 50)
    sizes = [70, 3, 129]
    whole = _matrix(sizes, dimensions, 0)
    assert (np.count_nonzero(whole, axis=1) == 1).all() and set(np.abs(whole[whole != 0])) == {1}
    monkeypatch.setattr(g_vendi, "_KEPT", 10)
    np.testing.assert_array_equal(_matrix(sizes, dimensions, 0), whole)
    assert (_matrix(sizes, dimensions, 1) != whole).any()
    rows = np.random.default_rng(0).normal(size=(4, sum(sizes))).astype(np.float32)
    found = [Projection(sizes, dimensions, 0).apply(np.split(row, np.cumsum(sizes)[:-1])) for row in rows]
    np.testing.assert_allclose(found, rows.astype(np.float64) @ whole, rtol=1e-5, atol=1e-5)


def test_the_projection_keeps_inner_products_as_a_dense_one_does() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(40, 20_000)) * generator.exponential(size=20_000) + 0.3
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for seed in (0, 1):
        found = np.stack([Projection([20_000], 512, seed).apply([row.astype(np.float32)]) for row in units])
        off = (found @ found.T - units @ units.T)[np.triu_indices(40, 1)]
        # Of a dense matrix of signs the deviation is sqrt((1 + cos^2) / p).
        expected = np.sqrt((1 + (units @ units.T)[np.triu_indices(40, 1)].mean() ** 2) / 512)
        assert np.sqrt((off**2).mean()) == pytest.approx(expected, rel=0.3)


def test_the_score_is_the_vendi_score_of_gradients(model: LanguageModel) -> None:
    """With many more dimensions than texts the projection loses little."""
    units = _gradients(model, TEXTS, 24)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    exact = float(np.exp(scipy.stats.entropy(np.linalg.eigvalsh(units @ units.T).clip(1e-300))))
    found = vendi_score(gradient_features(model, TEXTS, 1024, context=24))
    assert found.value == pytest.approx(exact, rel=0.03)
    low, high = found.interval()
    assert low < found.value < high
    assert vendi_score(gradient_features(model, [TEXTS[0]] * 5, 64, context=24)).value == pytest.approx(1, abs=1e-9)


def test_a_text_has_the_same_features_alone_and_the_model_is_left_as_it_was(model: LanguageModel) -> None:
    seen: list[tuple[int, int]] = []
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.network.train()
    together = gradient_features(model, TEXTS[:4], 32, 1, lambda done, total: seen.append((done, total)), 24)
    assert model.network.training and seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(weight.grad is None for weight in model.network.parameters())
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    alone = [gradient_features(model, [text], 32, 1, context=24) for text in TEXTS[:4]]
    np.testing.assert_array_equal(np.concatenate(alone), together)
    assert (gradient_features(model, TEXTS[:4], 32, 2, context=24) != together).any()


def test_the_proxy_from_scratch_has_features(tokenizer: str) -> None:
    made = build_model(Training(context=16), tokenizer, device="cpu")
    assert gradient_features(made, TEXTS[:1], context=16).shape == (1, 1024)
    features = gradient_features(made, TEXTS[:3], 64, context=16)
    assert 1 < vendi_score(features).value <= 3


def test_it_is_measured_where_a_model_is_named(folder: Path, model: LanguageModel) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    asked = GVendi(model=str(folder), context=24, dimensions=48)
    settings = Measures(partition_clusters=3, inertia_clusters=3, ttr_tokens=100, g_vendi=asked)
    sets = {"all": Samples(rows, TEXTS), "first": Samples(rows[:20], TEXTS[:20])}
    found = measure_sets(sets, Evaluator(rows, NovelSum(), settings, seed=3, device="cpu"), seed=5, reporter=QUIET)
    for one in found.sets:
        texts = [TEXTS[row] for row in one.rows]
        expected = vendi_score(gradient_features(model, texts, 48, 3, context=24))
        assert one.values["g_vendi"].value == pytest.approx(expected.value, rel=1e-6)
        assert one.values["g_vendi"].low < expected.value < one.values["g_vendi"].high
    plain = settings.model_copy(update={"g_vendi": GVendi()})
    without = measure_sets(sets, Evaluator(rows, NovelSum(), plain, device="cpu"), reporter=QUIET)
    assert "g_vendi" not in without.sets[0].values and "dcscore" in without.sets[0].values
    without_texts = measure_sets(
        {"all": Samples(rows)}, Evaluator(rows, NovelSum(), settings, device="cpu"), reporter=QUIET
    )
    assert "g_vendi" not in without_texts.sets[0].values


def test_a_text_of_several_sets_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    asked = Measures(inertia_clusters=2, partition_clusters=2, g_vendi=GVendi(model=str(folder), context=24))
    read: list[str] = []

    def noted(model: LanguageModel, texts: list[str], *others: Any, **named: Any) -> Any:
        read.extend(texts)
        return gradient_features(model, texts, *others, **named)

    monkeypatch.setattr(measures, "gradient_features", noted)
    evaluator = Evaluator(rows, NovelSum(), asked, device="cpu")
    sets = {"all": Samples(rows, TEXTS[:12]), "turned": Samples(rows[::-1], TEXTS[11::-1])}
    found = measure_sets(sets, evaluator, reporter=QUIET)
    assert sorted(read) == sorted(TEXTS[:12])
    assert found.sets[0].values["g_vendi"].value == pytest.approx(found.sets[1].values["g_vendi"].value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"model": "some/model"},
            r"measures\.g_vendi\.model: some/model is not a local folder; .* measures\.g_vendi\.revision",
        ),
        ({"context": 49}, r"measures\.g_vendi\.context: 49 tokens are more than the 48 positions"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(folder: Path, asked: dict[str, object], words: str) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    settings = Measures(g_vendi=GVendi.model_validate({"model": str(folder), **asked}))
    evaluator = Evaluator(rows, NovelSum(), settings, device="cpu")
    with pytest.raises(InputError, match=words):
        measure_sets({"a": Samples(rows, TEXTS[:5])}, evaluator, reporter=QUIET)
