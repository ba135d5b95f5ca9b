"""The plan says what steps need: no less than they take, measured in processes of their own, and few times more."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from novelsum_dagster import cli_plan, memory
from novelsum_dagster import plan as module
from novelsum_dagster.cli import app
from novelsum_dagster.embedding import store
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.memory import NotEnoughMemory
from novelsum_dagster.plan import LIBRARIES, Need, Room, Size, plan, room
from novelsum_dagster.settings import Embedding, NovelSum, Selection, Settings
from tests.pools import alpaca, write_jsonl, write_settings

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, DIMENSION, PICKS = 20_000, 384, 1000
SETTINGS = Settings(selection=Selection(k=PICKS), device="cpu")
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import psutil
from novelsum_dagster.diversity.growth import nearest_in_pool
from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.novelsum import novelsum_with_densities
from novelsum_dagster.embedding.encoder import Model
from novelsum_dagster.embedding.store import VectorStore, load_vectors
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.settings import Pool, Source

step, folder, samples, dimension, k = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
generator = np.random.default_rng(0)
ids = [f"{number:032x}" for number in range(samples)]

def write(samples, name):
    if step == "raw_pool":
        words = np.array([f"w{number}" for number in range(5000)])
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(samples):
                text = " ".join(words[generator.integers(0, len(words), 60)])
                file.write(json.dumps({"instruction": text, "output": str(number)}) + "\\n")
        return
    kept = VectorStore(folder / name, Model("model", "1", 256, "float32"))
    for start in range(0, samples, 512):
        part = ids[start : min(start + 512, samples)]
        kept.add(part, generator.normal(size=(len(part), dimension)).astype(np.float32), "float32")

def work(samples, name):
    if step == "raw_pool":
        pool = Pool(sources=(Source(path=f"{name}.jsonl"),))
        return build_snapshot(pool, folder, folder / name, lambda texts: [len(text) for text in texts])
    vectors = load_vectors(next((folder / name / "vectors").iterdir()), ids[:samples])
    factor = generator.uniform(0.5, 2, samples)
    if step == "density":
        return nearest_in_pool(vectors, 10).density(10)
    if step == "density by lists":
        return density(vectors, index="ivf", min_recall=0.5)
    if step == "sample_novelty":
        return novelsum_with_densities(vectors, {(10, 0.5): factor})
    return select(step.partition(" ")[2], vectors, min(k, samples), density_factor=factor)

write(60, "few")
write(samples, "many")
work(60, "few")  # Loads and compiles.
process = psutil.Process()
before = process.memory_info().rss
Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far.
work(samples, "many")
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


def _need(step: str, settings: Settings = SETTINGS, **size: Any) -> Need:
    needs = plan(Size(**{"samples": SAMPLES, "dimension": DIMENSION, "text": 0, **size}), settings)
    return next(need for need in needs if need.step == step)


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        ("density", SETTINGS),
        ("sample_novelty", SETTINGS),
        ("selected_subset novelselect", SETTINGS),
        *(
            pytest.param(step, SETTINGS.model_copy(update=update), marks=pytest.mark.slow)
            for step, update in (
                ("raw_pool", {}),
                ("density by lists", {"novelsum": NovelSum(density_index="ivf")}),
                ("selected_subset kcenter", {"selection": Selection(strategy="kcenter", k=PICKS)}),
                ("selected_subset qdit", {"selection": Selection(strategy="qdit", k=PICKS)}),
            )
        ),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured as Linux tells them")
def test_a_step_takes_what_the_plan_says(tmp_path: Path, step: str, settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, step, str(tmp_path), str(SAMPLES), str(DIMENSION), str(PICKS)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    took, planned = int(done.stdout), _need(step.split()[0], settings).memory - LIBRARIES
    assert took <= planned < 5 * took


def test_what_steps_need_grows_with_the_pool_and_shrinks_with_workers() -> None:
    small, large = (plan(Size(samples, DIMENSION), Settings()) for samples in (5_000, 50_000))
    for less, more in zip(small, large, strict=True):
        for name in ("memory", "worker", "device", "disk"):
            here, there = getattr(less, name), getattr(more, name)
            assert (here is None) == (there is None)
            assert here is None or here <= there
        assert less.memory < more.memory
    alone, shared = (plan(Size(500_000, DIMENSION), Settings(), workers)[4] for workers in (1, 8))
    assert alone.worker is not None and shared.worker is not None
    assert alone.worker - LIBRARIES > 3 * (shared.worker - LIBRARIES)
    assert alone.memory == shared.memory


@pytest.mark.parametrize(
    ("device", "counts"), [("auto", True), ("cuda", True), ("cuda:1", True), ("cpu", False), ("mps", False)]
)
def test_a_gpu_counts_only_where_the_settings_allow_one(device: str, counts: bool) -> None:
    steps = {"embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report"} if counts else set()
    needs = plan(Size(1000, 16, weights=1), Settings(device=device))
    assert {need.step for need in needs if need.device is not None} == steps


def test_the_papers_pool_fits_on_one_card() -> None:
    needs = plan(Size(396_000, 4096, weights=32 * 10**9), Settings(device="cuda", selection=Selection(k=10_000)))
    assert all(need.device is None or need.device < 80 * 10**9 for need in needs)


def test_what_does_not_fit_is_told() -> None:
    need = Need("density", memory=10, worker=None, device=5, disk=3)
    assert Room(10, 5, 3).fits(need)
    assert Room(10, None, 3).fits(need)
    assert not Room(9, 5, 3).fits(need)
    assert not Room(10, 4, 3).fits(need)
    assert not Room(10, 5, 2).fits(need)
    there = room(Settings(device="cuda:7"))
    assert there.device is None
    assert min(there.memory, there.disk) > 0


def test_vectors_that_do_not_fit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store.embed(tmp_path, Embedding(dtype="float32"), ["a", "b"], ["one", "two"], "pool", device="cpu")
    needed = store.memory_needed(2, found.dimension)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    assert load_vectors(tmp_path / found.folder, ["a", "b"]).shape == (2, found.dimension)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    with pytest.raises(NotEnoughMemory, match="holding 2 vectors of 384 dimensions"):
        load_vectors(tmp_path / found.folder, ["a", "b"])


def _run(folder: Path, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["plan", "--json", "--settings", str(folder / "curation.yaml"), *arguments])
    assert done.exit_code == 0, done.output
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_the_command_counts_the_pool_and_knows_the_models_dimension(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", alpaca(30))
    pool = {"sources": [{"path": "*.jsonl"}, {"path": "one.jsonl"}], "near_duplicates": {"method": "off"}}
    write_settings(tmp_path, pool=pool, device="cpu", embedding={"dtype": "float32"})
    shown = _run(tmp_path)
    assert (shown["samples"], shown["dimension"], shown["workers"]) == (30, 384, 1)
    assert [step["step"] for step in shown["steps"]] == [
        "raw_pool", "embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report",
    ]  # fmt: skip
    assert all(step["fits"] for step in shown["steps"])
    huge = _run(tmp_path, "--samples", "1000000000", "--dimension", "4096", "--workers", "3")
    assert (huge["samples"], huge["dimension"], huge["workers"]) == (10**9, 4096, 3)
    assert not any(step["fits"] for step in huge["steps"])


def test_the_table_says_what_does_not_fit(tmp_path: Path) -> None:
    write_settings(tmp_path)
    settings = ["--settings", str(tmp_path / "curation.yaml")]
    done = CliRunner().invoke(app, ["plan", "--samples", "1000000000", "--dimension", "8", *settings])
    assert "selected_subset" in done.stdout and "TiB" in done.stdout and " no " in done.stdout
    done = CliRunner().invoke(app, ["plan", "--samples", "10", "--dimension", "8", *settings])
    assert " no " not in done.stdout


def test_a_models_dimension_is_read_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 48}))
    settings = Settings(embedding=Embedding(model=str(tmp_path)), base=tmp_path)
    assert cli_plan._dimension(settings) == 48
    assert cli_plan._weights(settings.embedding) == 4
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps({"out_features": 12}))
    assert cli_plan._dimension(settings) == 12
    (tmp_path / "2_Dense" / "config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="give --dimension"):
        cli_plan._dimension(settings)


def test_the_plan_is_the_formulas_of_the_refusals() -> None:
    from novelsum_dagster.diversity.density import search_memory_needed
    from novelsum_dagster.selection.search_cpu import memory_needed
    from novelsum_dagster.selection.search_torch import device_memory_needed

    held = LIBRARIES + module._BUFFERS + store.memory_needed(SAMPLES, DIMENSION)
    assert _need("density").memory == held + search_memory_needed(SAMPLES, DIMENSION, 10, False, keeps=True)
    rows = 4 * SAMPLES * DIMENSION
    assert _need("selected_subset").memory == held + rows + memory_needed(SAMPLES, DIMENSION, PICKS)
    on_device = _need("selected_subset", SETTINGS.model_copy(update={"device": "cuda"})).device
    assert on_device == device_memory_needed(SAMPLES, DIMENSION, PICKS)
