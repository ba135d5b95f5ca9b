"""The packaged model and the vector store, for real: nothing is embedded twice, nothing committed is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.embedding.encoder import Encoder, SentenceTransformerEncoder, identify, token_counter
from novelsum_dagster.embedding.store import StoredVectors, VectorStore, embed, load_vectors
from novelsum_dagster.errors import InputError
from novelsum_dagster.selection import novelselect
from novelsum_dagster.settings import Embedding
from tests.pools import pairs

TEXTS = [f"{question}\n{answer}" for question, answer in pairs(40)]
IDS = [f"{number:032x}" for number in range(40)]
FLOAT32 = Embedding(dtype="float32", shard_size=16, device="cpu")


def encoded(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.full((len(texts), encoder.dimension), np.nan, dtype=np.float32)
    for rows, found in encoder.batches(texts):
        vectors[rows] = found
    return vectors


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(FLOAT32, "float32")


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


def test_the_chosen_number_type_is_as_good_as_float32(encoder: SentenceTransformerEncoder) -> None:
    chosen = SentenceTransformerEncoder(Embedding(device="cpu"))
    assert chosen.dtype in ("float32", "bfloat16")
    exact, found = encoded(encoder, TEXTS), encoded(chosen, TEXTS)
    cosine = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() >= 0.999


def test_tokens_are_counted_untruncated() -> None:
    count = token_counter(FLOAT32)
    assert count(["hello world", "word " * 1000, ""]) == [2, 1000, 0]


def test_a_sample_is_embedded_once(tmp_path: Path) -> None:
    first = embed(tmp_path, FLOAT32, IDS[:20], TEXTS[:20], "pool")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / first.folder).iterdir()}
    second = embed(tmp_path, FLOAT32, IDS, TEXTS, "pool")
    assert (first.embedded, second.embedded) == (20, 20)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    again = embed(tmp_path, FLOAT32, IDS, TEXTS, "pool")
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
    found = embed(tmp_path, FLOAT32, IDS, TEXTS, "pool")
    vectors = load_vectors(tmp_path / found.folder, IDS)
    np.save(tmp_path / "vectors.npy", vectors)
    expected = novelselect(vectors, 4).indices.tolist()
    assert novelselect(StoredVectors(tmp_path / found.folder, IDS), 4).indices.tolist() == expected
    assert novelselect(np.load(tmp_path / "vectors.npy", mmap_mode="r"), 4).indices.tolist() == expected


def test_an_interrupted_run_goes_on_at_the_last_shard(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise Stopped

    with pytest.raises(Stopped):
        embed(tmp_path, FLOAT32, IDS, TEXTS, "pool", stop)
    assert len(VectorStore(tmp_path, identify(FLOAT32)).ids()) == 16
    assert embed(tmp_path, FLOAT32, IDS, TEXTS, "pool").embedded == 24


def test_a_killed_process_loses_at_most_one_shard(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_embedding import *\n"
        "embed(Path(sys.argv[1]), Embedding(dtype='float32', shard_size=2), IDS, TEXTS, 'pool')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2])
    store = VectorStore(tmp_path, identify(Embedding(dtype="float32")))
    deadline = time.monotonic() + 120
    while len(store.ids()) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = store.ids()
    assert 4 <= len(kept) <= len(IDS)
    found = embed(tmp_path, Embedding(dtype="float32"), IDS, TEXTS, "pool")
    assert found.embedded == len(IDS) - len(kept)
    assert np.isfinite(load_vectors(tmp_path / found.folder, IDS)).all()


def test_a_damaged_shard_is_named_and_mended_by_deleting_it(tmp_path: Path) -> None:
    found = embed(tmp_path, FLOAT32, IDS, TEXTS, "pool")
    shard = sorted((tmp_path / found.folder).glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=shard.name):
        embed(tmp_path, FLOAT32, IDS, TEXTS, "pool")
    shard.unlink()
    assert embed(tmp_path, FLOAT32, IDS, TEXTS, "pool").embedded in (8, 16)


def test_missing_vectors_are_counted(tmp_path: Path) -> None:
    found = embed(tmp_path, FLOAT32, IDS[:4], TEXTS[:4], "pool")
    with pytest.raises(InputError, match="1 of 5 samples have no vector"):
        load_vectors(tmp_path / found.folder, IDS[:5])


def test_another_length_has_another_store(tmp_path: Path) -> None:
    long = embed(tmp_path, FLOAT32, IDS[:2], TEXTS[:2], "pool")
    short = embed(tmp_path, FLOAT32.model_copy(update={"max_tokens": 16}), IDS[:2], TEXTS[:2], "pool")
    assert long.folder != short.folder
    assert short.embedded == 2


def test_a_hub_model_needs_a_revision() -> None:
    with pytest.raises(InputError, match="revision"):
        identify(Embedding(model="some/model"))


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="safetensors"):
        identify(Embedding(model=str(tmp_path)))


def test_a_missing_device_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(InputError, match="cuda:3"):
        SentenceTransformerEncoder(Embedding(device="cuda:3"), "float32")


def test_the_store_module_loads_no_torch() -> None:
    program = "import sys; import novelsum_dagster.embedding.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
