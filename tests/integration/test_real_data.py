"""The real samples beside the checkout: every record accounted for, and a curation over two of the files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from novelsum_dagster.diversity import density, novelsum
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.store import embed, load_vectors
from novelsum_dagster.pool.export import chosen_records, write_by_source
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection import novelselect
from novelsum_dagster.settings import Embedding, Pool
from tests.plain import plain_novelselect

pytestmark = pytest.mark.slow
READ = {"chat": 500, "codegen": 4535, "gsm8k": 7473, "roleplay": 3146, "t0": 12000}


@pytest.fixture(scope="module")
def snapshot(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PoolSnapshot, Path]:
    root = tmp_path_factory.mktemp("real")
    pool = Pool.model_validate({"sources": [{"path": "pool/*"}]})
    return build_snapshot(pool, shared_data, root, token_counter(Embedding())), root


def test_every_record_is_accounted_for(snapshot: tuple[PoolSnapshot, Path]) -> None:
    pool, root = snapshot
    assert {file.source: file.read for file in pool.files} == READ
    assert pool.read == pool.kept + pool.duplicates + pool.rejects == 27654
    assert (pool.kept, pool.duplicates, pool.rejects) == (27518, 136, 0)
    assert {file.source: file.form for file in pool.files} == {
        "chat": "sharegpt", "codegen": "alpaca", "gsm8k": "messages", "roleplay": "alpaca", "t0": "prompt_completion",
    }  # fmt: skip
    origins = pool.table(root, "origins", ["id", "is_first"])
    assert len(origins) == 27654
    assert sum(origins["is_first"].to_pylist()) == len(set(origins["id"].to_pylist())) == 27518


def test_records_are_written_back_as_they_were(
    snapshot: tuple[PoolSnapshot, Path], shared_data: Path, tmp_path: Path
) -> None:
    pool, root = snapshot
    samples = pool.samples(root, ["id", "source"]).to_pylist()
    chosen = [sample["id"] for number, sample in enumerate(samples) if number % 50 == 0]
    paths = write_by_source(chosen_records(pool, root, chosen), tmp_path)
    assert {path.name for path in paths} == {"chat.json", "codegen.jsonl", "gsm8k.parquet", "roleplay.json", "t0.jsonl"}
    lines = set((shared_data / "pool" / "t0.jsonl").read_text().splitlines())
    assert set((tmp_path / "t0.jsonl").read_text().splitlines()) <= lines
    records = json.loads((shared_data / "pool" / "roleplay.json").read_text())
    assert all(record in records for record in json.loads((tmp_path / "roleplay.json").read_text()))


def test_a_subset_of_real_samples_is_more_diverse(snapshot: tuple[PoolSnapshot, Path], tmp_path: Path) -> None:
    """Embed 150 samples of each source and choose 75: NovelSum must be over that of each of 20 random subsets."""
    pool, root = snapshot
    counts: Counter[str] = Counter()
    ids, texts = [], []
    for sample in pool.samples(root, ["id", "source", "text"]).to_pylist():
        counts[sample["source"]] += 1
        if counts[sample["source"]] <= 150:
            ids.append(sample["id"])
            texts.append(sample["text"])
    found = embed(tmp_path, Embedding(), ids, texts, pool.key)
    assert found.embedded == 750 == len(ids)
    vectors = load_vectors(tmp_path / found.folder, ids)
    picks = novelselect(vectors, 75)
    generator = np.random.default_rng(0)
    random = [novelsum(vectors[generator.permutation(750)[:75]], vectors).value for _ in range(20)]
    assert novelsum(vectors[picks.indices], vectors).value > max(random)


@pytest.mark.parametrize("every", [3, 1])
def test_picks_on_real_embeddings_equal_a_plain_reference(
    snapshot: tuple[PoolSnapshot, Path], tmp_path: Path, every: int
) -> None:
    """Every third of 27,518 samples, or all, cut after 32 tokens: 300 picks and runner-ups, index for index."""
    pool, root = snapshot
    samples = pool.samples(root, ["id", "text"])
    samples = samples.take(np.arange(0, len(samples), every))
    ids = samples["id"].to_pylist()
    found = embed(tmp_path, Embedding(max_tokens=32), ids, samples["text"].to_pylist(), pool.key)
    vectors = load_vectors(tmp_path / found.folder, ids)
    factor = density(vectors).factor(0.5)
    picks = novelselect(vectors, 300, density_factor=factor, verify=3)
    plain = plain_novelselect(vectors, 300, factor, 1.0, 42)
    assert picks.indices.tolist() == plain.indices
    assert picks.runner_up.tolist() == plain.runner_up
    np.testing.assert_allclose(picks.score, plain.score, rtol=1e-9)
