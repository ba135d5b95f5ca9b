"""The plan says what steps need: no less than they take, measured in processes of their own, and few times more."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from novelsum_dagster.artifacts.layout import newest_file
from novelsum_dagster.cli import needs as module
from novelsum_dagster.cli import plan as cli_plan
from novelsum_dagster.cli.main import app
from novelsum_dagster.cli.needs import LIBRARIES, Need, Room, Size, plan, room
from novelsum_dagster.common import memory
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.embedding import store
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.settings import (
    Embedding,
    NearDuplicates,
    NovelSum,
    Pool,
    Ray,
    Selection,
    Settings,
    load_settings,
)
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, DIMENSION, PICKS = 20_000, 384, 1000
SIZES = {"density grown": (6000, 8192)}
"""Of steps whose tiles, and not the pool, would else be most of what they take."""
SETTINGS = Settings(selection=Selection(k=PICKS), device="cpu")
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import psutil
from novelsum_dagster.diversity.growth import nearest_in_pool
from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.novelsum import NovelSumOptions, novelsum_with_densities
from novelsum_dagster.diversity.tables import build_density
from novelsum_dagster.embedding.encoder import Model
from novelsum_dagster.embedding.store import VectorStore, load_vectors
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.diversity.similar import similar_samples
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.settings import NovelSum, Pool, Source

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

def density_table(samples, name, earlier=None):
    vectors = load_vectors(next((folder / name / "vectors").iterdir()), ids[:samples])
    return build_density(
        folder / name, ids[:samples], vectors, "key", settings=NovelSum(density_index="exact"), earlier=earlier
    )

def work(samples, name):
    if step == "density grown":
        return density_table(samples, name, grown)
    if step == "raw_pool":
        pool = Pool(sources=(Source(path=f"{name}.jsonl"),))
        return build_snapshot(pool, folder, folder / name, lambda texts: [len(text) for text in texts])
    vectors = load_vectors(next((folder / name / "vectors").iterdir()), ids[:samples])
    factor = generator.uniform(0.5, 2, samples)
    if step == "distinct_pool":
        return similar_samples(vectors, generator.permutation(samples), 0.9)
    if step == "density":
        return nearest_in_pool(vectors, 10).density(10)
    if step == "density by lists":
        return density(vectors, index="ivf", min_recall=0.5)
    if step == "sample_novelty":
        return novelsum_with_densities(vectors, {(10, 0.5): factor}, NovelSumOptions())
    if step == "selected_subset in parts":
        return partitioned(vectors, min(k, samples), partitions=8, density_factor=factor)
    return select(step.partition(" ")[2], vectors, min(k, samples), density_factor=factor)

write(60, "few")
write(samples, "many")
grown = None
work(60, "few")  # Loads and compiles.
if step == "density grown":
    grown = density_table(samples * 6 // 10, "many")
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
        ("distinct_pool", SETTINGS.model_copy(update={"pool": Pool(near_duplicates=NearDuplicates(by="embedding"))})),
        pytest.param("sample_novelty", SETTINGS, marks=pytest.mark.slow),
        pytest.param("density grown", SETTINGS, marks=pytest.mark.slow),
        ("selected_subset novelselect", SETTINGS),
        pytest.param(
            "selected_subset in parts",
            SETTINGS.model_copy(update={"selection": Selection(k=PICKS, partitions=8)}),
            marks=pytest.mark.slow,
        ),
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
    samples, dimension = SIZES.get(step, (SAMPLES, DIMENSION))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, step, str(tmp_path), str(samples), str(dimension), str(PICKS)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    need = _need(step.split()[0], settings, samples=samples, dimension=dimension)
    took, planned = int(done.stdout), need.memory - LIBRARIES
    assert took <= planned < 6 * took


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
    there = room(Settings(device="cuda:7"), 3)
    assert there.device is None
    assert min(there.memory, there.disk) > 0


def test_workers_of_this_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    need = Need("density", memory=10, worker=7, device=None, disk=0, store=4)
    assert Room(16, None, 0, workers=2).fits(need)
    assert not Room(15, None, 0, workers=2).fits(need)
    assert Room(10, None, 0).fits(need)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    local, there = Settings(engine="ray"), Settings(engine="ray", ray=Ray(address="10.0.0.1:6379"))
    assert [room(one, 3).workers for one in (local, there, Settings())] == [3, 0, 0]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert room(local, 3).workers == 0


def test_what_is_sent_to_workers_is_in_the_memory_of_the_machine_that_sends_it() -> None:
    settings = Settings(selection=Selection(k=PICKS))
    for chosen in (settings, settings.model_copy(update={"selection": Selection(k=PICKS, partitions=8)})):
        size = Size(SAMPLES, DIMENSION)
        alone, on_ray = plan(size, chosen, 4), plan(size, chosen.model_copy(update={"engine": "ray"}), 4)
        for here, there in zip(alone, on_ray, strict=True):
            assert here.worker == there.worker
            sent = there.store if here.step == "density" else 4 * there.store
            assert there.memory - here.memory == sent
            assert (sent > 0) == (here.step in ("density", "selected_subset"))


def test_parts_need_less_at_a_time() -> None:
    def needs(partitions: int | None) -> Need:
        settings = Settings(device="cuda", selection=Selection(k=10_000, partitions=partitions))
        return _need("selected_subset", settings, samples=4_000_000, dimension=4096)

    whole, few, many = needs(None), needs(8), needs(64)
    held = store.memory_needed(4_000_000, 4096)
    assert whole.memory - held > 2 * (few.memory - held)
    assert few.memory < many.memory  # What more parts pick is selected from at once.
    assert whole.device is not None and few.device is not None
    assert whole.device > 4 * few.device


SENT = """
import pickle, sys
from pathlib import Path
import numpy as np
import psutil
from novelsum_dagster.diversity.density import ExactSearch, _Lists

file, samples, dimension = Path(sys.argv[1]), *map(int, sys.argv[2:])
points = np.random.default_rng(0).normal(size=(samples, dimension)).astype(np.float32)
if not file.exists():
    buffers = []
    file.write_bytes(pickle.dumps(_Lists(ExactSearch(points), 100, 0), 5, buffer_callback=buffers.append))
    assert sum(buffer.raw().nbytes for buffer in buffers) == points.nbytes
else:
    stream = np.memmap(file, np.uint8, "r")  # As in Ray's object store.
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    pickle.loads(stream, buffers=[points])
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 - before + points.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured as Linux tells them")
@pytest.mark.slow
def test_a_worker_that_is_sent_the_index_takes_what_the_plan_says(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SENT, str(tmp_path / "lists"), str(SAMPLES), str(DIMENSION)]
    for _ in range(2):
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    need = _need("density", SETTINGS.model_copy(update={"novelsum": NovelSum(density_index="ivf")}))
    assert need.worker is not None
    assert need.store >= (tmp_path / "lists").stat().st_size + 4 * SAMPLES * DIMENSION
    took, planned = int(done.stdout), need.worker - LIBRARIES
    assert 4 * 4 * SAMPLES * DIMENSION < took <= planned < 5 * took


def test_vectors_that_do_not_fit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store.embed(tmp_path, Embedding(dtype="float32"), ["a", "b"], ["one", "two"], "pool", device="cpu")
    needed = store.memory_needed(2, found.dimension)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    assert load_vectors(tmp_path / found.folder, ["a", "b"]).shape == (2, found.dimension)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    store.embed(tmp_path, Embedding(dtype="float32"), ["c"], ["three"], "pool", device="cpu")
    with pytest.raises(NotEnoughMemory, match="holding 2 vectors of 384 dimensions"):
        load_vectors(tmp_path / found.folder, ["a", "b"])


def _run(folder: Path, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["plan", "--json", "--settings", str(folder / "curation.yaml"), *arguments])
    assert done.exit_code == 0, done.output
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_the_command_counts_the_pool_and_knows_the_models_dimension(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", alpaca(30))
    pool = {"sources": [{"path": "*.jsonl"}, {"path": "one.jsonl"}], "near_duplicates": {"by": "off"}}
    write_settings(tmp_path, pool=pool, device="cpu", embedding={**REAL_MODEL, "dtype": "float32"})
    shown = _run(tmp_path)
    assert (shown["samples"], shown["dimension"], shown["workers"]) == (30, 384, 1)
    assert [step["step"] for step in shown["steps"]] == [
        "raw_pool", "embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report",
    ]  # fmt: skip
    assert all(step["fits"] for step in shown["steps"])
    huge = _run(tmp_path, "--samples", "1000000000", "--dimension", "4096", "--workers", "3")
    assert (huge["samples"], huge["dimension"], huge["workers"]) == (10**9, 4096, 3)
    assert not any(step["fits"] for step in huge["steps"])


def test_a_source_that_is_gone_is_named_beside_the_figures_of_the_stored_pool(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", alpaca(30))
    write_settings(tmp_path, pool={"sources": [{"path": "one.jsonl"}]})
    settings = load_settings(tmp_path / "curation.yaml")
    snapshot = build_snapshot(settings.pool, tmp_path, settings.storage_path, token_counter(settings.embedding))
    newest = settings.storage_path / newest_file("raw_pool")
    newest.parent.mkdir()
    newest.write_text(snapshot.model_dump_json())
    plan = ["plan", "--json", "--settings", str(tmp_path / "curation.yaml")]
    assert "warning" not in CliRunner().invoke(app, plan).stderr
    path.unlink()
    done = CliRunner().invoke(app, plan)
    assert done.exit_code == 0 and json.loads(done.stdout)["samples"] == 30
    assert all(word in done.stderr for word in ("warning", "stored pool", "one.jsonl: no such file"))


def test_the_table_says_what_does_not_fit(tmp_path: Path) -> None:
    write_settings(tmp_path)
    settings = ["--settings", str(tmp_path / "curation.yaml")]
    done = CliRunner().invoke(app, ["plan", "--samples", "1000000000", "--dimension", "8", *settings])
    assert "selected_subset" in done.stdout and "TiB" in done.stdout and " no " in done.stdout
    done = CliRunner().invoke(app, ["plan", "--samples", "10", "--dimension", "8", *settings])
    assert " no " not in done.stdout


def test_a_model_that_is_not_here_is_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched for a plan; what the hub's own client has fetched before counts, where it is whole."""
    cache, commit = tmp_path / "cache", "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    embedding = {"model": "nobody/model", "revision": commit, "dtype": "auto"}
    write_settings(tmp_path, device="auto", embedding=embedding)
    size = ["--samples", "100", "--dimension", "8"]

    def embeddings() -> dict[str, Any]:
        return next(step for step in _run(tmp_path, *size)["steps"] if step["step"] == "embeddings")

    unknown = embeddings()
    assert (unknown["device"], unknown["is_known"]) == (None, False)
    table = CliRunner().invoke(
        app, ["plan", *size, "--settings", str(tmp_path / "curation.yaml")], env={"COLUMNS": "200"}
    )
    row = next(line for line in table.stdout.splitlines() if "embeddings" in line)
    assert row.count("unknown until downloaded") == 2 and row.count("over 1.1 GiB") == 1
    folder = cache / "models--nobody--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    for name in ("one.safetensors", "two.safetensors"):
        index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert embeddings() == unknown
        (folder / name).write_bytes(bytes(2**20))
    known = embeddings()
    assert (known["device"], known["is_known"]) == (2 * 2**20, True)
    assert known["worker"] - unknown["worker"] == module._MODEL_COPIES * known["device"]


def test_a_models_dimension_is_read_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 48}))
    settings = Settings(embedding=Embedding(model=str(tmp_path)), base=tmp_path)
    assert cli_plan._dimension(settings, tmp_path) == 48
    assert cli_plan._weights(tmp_path) == 4
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps({"out_features": 12}))
    assert cli_plan._dimension(settings, tmp_path) == 12
    (tmp_path / "2_Dense" / "config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="give --dimension"):
        cli_plan._dimension(settings, tmp_path)


def test_the_plan_is_the_formulas_of_the_refusals() -> None:
    from novelsum_dagster.diversity.density import search_memory_needed
    from novelsum_dagster.selection.search.cpu import memory_needed
    from novelsum_dagster.selection.search.torch_device import device_memory_needed

    held = LIBRARIES + module._BUFFERS + store.memory_needed(SAMPLES, DIMENSION)
    assert _need("density").memory == held + search_memory_needed(SAMPLES, DIMENSION, 10, False, keeps=True)
    rows = 4 * SAMPLES * DIMENSION
    assert _need("selected_subset").memory == held + rows + memory_needed(SAMPLES, DIMENSION, PICKS)
    on_device = _need("selected_subset", SETTINGS.model_copy(update={"device": "cuda"})).device
    assert on_device == device_memory_needed(SAMPLES, DIMENSION, PICKS)
