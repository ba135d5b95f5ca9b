"""The definitions as Dagster loads them, and the files that configure an instance."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import dagster as dg
import pytest
from dagster_ray.configs import RayExecutionConfig

from novelsum_dagster.definitions import build_defs
from novelsum_dagster.lineage.models import models
from novelsum_dagster.quality.suites import SUITES
from novelsum_dagster.settings import NearDuplicates, Pool, Settings, Study
from tests.pools import write_settings

ROOT = Path(__file__).resolve().parents[2]
HEAVY = [
    "datasets",
    "duckdb",
    "faiss",
    "great_expectations",
    "altair",
    "numba",
    "pandas",
    "scipy",
    "sklearn",
    "torch",
]


def test_loading_definitions_imports_nothing_heavy() -> None:
    program = f"import sys, novelsum_dagster.definitions; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_asset_is_described() -> None:
    specs = list(build_defs(Settings(study=Study())).resolve_all_asset_specs())
    assert len(specs) == 15 + len(models())
    for spec in specs:
        assert spec.description and spec.group_name and spec.owners and spec.kinds and spec.code_version


def test_the_graph_is_the_pipeline() -> None:
    graph = build_defs(Settings()).resolve_asset_graph()

    def parents(asset: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys}

    assert parents("raw_pool") == set()
    assert parents("embeddings") == {"raw_pool"}
    assert parents("distinct_pool") == {"raw_pool", "embeddings"}
    assert parents("density") == {"distinct_pool", "embeddings"}
    assert parents("sample_novelty") == {"distinct_pool", "embeddings", "density"}
    assert parents("selected_subset") == {"raw_pool", "distinct_pool", "embeddings", "density"}
    assert parents("lineage") == {
        "raw_pool",
        "distinct_pool",
        "embeddings",
        "density",
        "sample_novelty",
        "selected_subset",
        "novelsum_report",
    }


def test_every_suite_is_a_check_and_wrong_data_blocks() -> None:
    graph = build_defs(Settings()).resolve_asset_graph()
    found = {(key.asset_key.to_user_string(), key.name): graph.get_check_spec(key) for key in graph.asset_check_keys}
    tests = {(test.model, test.name) for model in models() for test in model.tests}
    storage = ("lineage", "storage_unchanged")
    assert set(found) == {(suite.step, suite.name) for suite in SUITES} | tests | {storage}
    assert not any(found[test].blocking for test in (*tests, storage))
    for suite in SUITES:
        assert found[suite.step, suite.name].blocking == suite.blocking
    assert any(suite.blocking for suite in SUITES) and not all(suite.blocking for suite in SUITES)


GPU_STEPS = {"embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report"}


BY_WORKERS = {"embeddings", "density", "selected_subset"}
NEAR = Settings(pool=Pool(near_duplicates=NearDuplicates(by="embedding")))


@pytest.mark.parametrize(
    ("settings", "in_pool", "keep_a_card"),
    [
        (Settings(), GPU_STEPS, set()),
        (Settings(device="cuda:1"), GPU_STEPS, GPU_STEPS),
        (Settings(device="cuda", engine="ray"), GPU_STEPS, GPU_STEPS - BY_WORKERS),
        (NEAR, GPU_STEPS | {"distinct_pool"}, set()),
        (
            NEAR.model_copy(update={"device": "cuda", "engine": "ray"}),
            GPU_STEPS | {"distinct_pool"},
            GPU_STEPS - BY_WORKERS,
        ),
        (Settings(device="cpu"), set(), set()),
        (Settings(device="mps"), set(), set()),
    ],
)
def test_steps_that_may_use_a_gpu_ask_for_one(settings: Settings, in_pool: set[str], keep_a_card: set[str]) -> None:
    graph = build_defs(settings).resolve_asset_graph()
    assert graph.assets_def_for_key(dg.AssetKey("embeddings")).op.retry_policy is not None
    for asset in graph.assets_defs:
        if not isinstance(asset.node_def, dg.OpDefinition):
            continue
        name = asset.node_def.name
        assert (asset.op.pool == "gpu") == (name in in_pool), name
        assert ("nvidia.com/gpu" in asset.op.tags.get("dagster-k8s/config", "")) == (name in keep_a_card), name
        assert RayExecutionConfig.from_tags(asset.op.tags).num_gpus == (1 if name in keep_a_card else None), name


def test_steps_of_a_study_that_may_use_a_gpu_ask_for_one() -> None:
    for device in ("auto", "cpu"):
        defs = build_defs(Settings(device=device, study=Study()))
        pools = {
            name: defs.resolve_assets_def(name).op.pool for name in ("study_set", "study_measures", "study_performance")
        }
        on = "gpu" if device == "auto" else None
        assert pools == {"study_set": None, "study_measures": on, "study_performance": on}


def test_on_ray_every_step_is_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVELSUM_SETTINGS", str(write_settings(tmp_path, pool={"sources": [{"path": "*.jsonl"}]})))
    from novelsum_dagster.definitions_on_ray import defs

    assert defs.resolve_job_def("curate").executor_def.name == "ray"


def test_the_instance_settings_are_in_force(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_bytes(files("novelsum_dagster").joinpath("dagster.yaml").read_bytes())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.run_monitoring_enabled
        pools = instance.get_concurrency_config().pool_config
        assert pools.default_pool_limit == 1
        assert "OP" in str(pools.pool_granularity)


def test_the_workspace_file_loads(tmp_path: Path) -> None:
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(ROOT / "workspace.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.slow
def test_dg_finds_the_definitions(tmp_path: Path) -> None:
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), "DAGSTER_DG_DISABLE_TELEMETRY": "1"}
    dg_command = Path(sys.executable).parent / "dg"
    done = subprocess.run(
        [dg_command, "list", "defs", "--json"], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "selected_subset" in done.stdout
