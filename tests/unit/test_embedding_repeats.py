"""On the CPU a text has one vector, bit for bit, whatever it is embedded with."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.embedding import encoder as module
from novelsum_dagster.embedding import store
from novelsum_dagster.embedding.encoder import SentenceTransformerEncoder, identify
from novelsum_dagster.embedding.store import VectorStore, load_vectors
from novelsum_dagster.settings import Embedding
from tests.pools import pairs

pytestmark = pytest.mark.slow

Dtype = Literal["auto", "float32", "bfloat16"]
embed = partial(store.embed, device="cpu")

# Of every padded length: empty, up to the limit, at it and over it; some fill their padded length to the last token.
TEXTS = ["", " ", "a", "?!", "\n", *(" ".join([word] * size) for word in ("cat", "tree") for size in range(6, 320, 8))]
TEXTS += [f"{question}\n{answer} " * (number % 9 + 1) for number, (question, answer) in enumerate(pairs(60))]
TEXTS += [" ".join([f"{number}"] * 300) for number in range(9)]
IDS = [f"{number:032x}" for number in range(len(TEXTS))]


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def settings(request: pytest.FixtureRequest) -> Embedding:
    return Embedding(dtype=request.param, shard_size=50)


@pytest.fixture(scope="module")
def encoder(settings: Embedding) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(settings, settings.dtype, "cpu")


@pytest.fixture(scope="module")
def whole(encoder: SentenceTransformerEncoder) -> NDArray[np.float32]:
    return _encoded(encoder, TEXTS)


def _encoded(encoder: SentenceTransformerEncoder, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.full((len(texts), encoder.dimension), np.nan, dtype=np.float32)
    for rows, found in encoder.batches(texts):
        vectors[rows] = found
    return vectors


def _bits(vectors: NDArray[np.float32]) -> NDArray[np.uint32]:
    return vectors.view(np.uint32)


@pytest.mark.parametrize("size", [1, 40, pytest.param(len(TEXTS), marks=pytest.mark.slow)])
def test_a_vector_does_not_depend_on_the_texts_around_it(
    encoder: SentenceTransformerEncoder, whole: NDArray[np.float32], size: int
) -> None:
    rows = np.random.default_rng(size).permutation(len(TEXTS))[:size]
    np.testing.assert_array_equal(_bits(_encoded(encoder, [TEXTS[row] for row in rows])), _bits(whole[rows]))


def test_every_text_has_its_turn_once_in_batches_of_one_length_and_mixed_order(
    encoder: SentenceTransformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that little is padding, and the samples done tell the time left."""
    monkeypatch.setattr(module, "_encode", lambda _model, texts, _rows: np.zeros((len(texts), 384), np.float32))
    sizes = np.random.default_rng(0).integers(1, 254, 2000)
    batches = [rows for rows, _ in encoder.batches([" ".join(["cat"] * size) for size in sizes])]
    assert sorted(row for rows in batches for row in rows) == list(range(2000))
    assert max(np.ptp(sizes[rows]) for rows in batches) < 16
    half = len(batches) // 2
    first, second = (np.mean(sizes[np.concatenate(part)]) for part in (batches[:half], batches[half:]))
    assert 0.8 < first / second < 1.25


@pytest.mark.slow
def test_a_real_sample_has_the_same_vector_alone_and_among_others(
    encoder: SentenceTransformerEncoder, shared_data: Path
) -> None:
    texts = (shared_data / "pool" / "t0.jsonl").read_text().splitlines()[:100]
    found = _encoded(encoder, texts)
    rows = np.random.default_rng(0).permutation(100)[:30]
    np.testing.assert_array_equal(_bits(_encoded(encoder, [texts[row] for row in rows])), _bits(found[rows]))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_grown_pool_a_stopped_one_and_a_fresh_one_have_equal_vectors(tmp_path: Path, dtype: Dtype) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 50:
            raise Stopped

    settings = Embedding(dtype=dtype, shard_size=25)
    at_once = embed(tmp_path / "once", settings, IDS, TEXTS, "pool")
    # What auto chooses depends on the load of the machine; a store keeps what it chose first.
    same = settings.model_copy(update={"dtype": at_once.dtype})
    expected = load_vectors(tmp_path / "once" / at_once.folder, IDS)

    part = np.random.default_rng(5).permutation(len(IDS))[:70]
    embed(tmp_path / "grown", same, [IDS[row] for row in part], [TEXTS[row] for row in part], "pool")
    grown = embed(tmp_path / "grown", same, IDS, TEXTS, "pool")
    assert grown.embedded == len(IDS) - 70
    np.testing.assert_array_equal(_bits(load_vectors(tmp_path / "grown" / grown.folder, IDS)), _bits(expected))

    with pytest.raises(Stopped):
        embed(tmp_path / "stopped", same, IDS, TEXTS, "pool", stop)
    assert len(VectorStore(tmp_path / "stopped", identify(same)).ids()) == 50
    stopped = embed(tmp_path / "stopped", same, IDS, TEXTS, "pool")
    np.testing.assert_array_equal(_bits(load_vectors(tmp_path / "stopped" / stopped.folder, IDS)), _bits(expected))
    assert at_once.key == grown.key == stopped.key

    again = embed(tmp_path / "again", same, IDS, TEXTS, "pool")
    files, made_again = _files(tmp_path / "once" / at_once.folder), _files(tmp_path / "again" / again.folder)
    del files["model.json"], made_again["model.json"]
    assert files == made_again
