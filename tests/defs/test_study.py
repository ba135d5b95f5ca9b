"""The study through Dagster: its assets partition by partition, equal to the study at once, apart from curating."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from threadpoolctl import threadpool_limits

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.definitions import CURATE_JOB, build_defs
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Settings, Study
from novelsum_dagster.study.correlate import StudyCorrelation, outcome_json
from novelsum_dagster.study.pool import StudyPool
from novelsum_dagster.study.run import correlate
from novelsum_dagster.study.sets import StudyMeasures, StudyPerformance, StudySet, recipes
from tests.defs.conftest import Curation, write_pool
from tests.instances import in_memory
from tests.pools import write_settings

STUDY = {
    "sizes": [8],
    "strategies": ["random", "farthest", "duplicate"],
    "seeds": [1, 2],
    "copies": [2],
    "held_out": 5,
    "neighbors": [3],
    "density_powers": [0.5],
    "proximity_powers": [0, 1],
    "variants": [{"name": "prompt", "strategy": "farthest", "representation": "prompt"}],
    "representations": [{"name": "prompt", "text": "prompt"}],
    "training": {"tokens": 2000, "context": 16, "batch_size": 64, "vocabulary": 300},
    "training_seeds": [1, 2],
}
NAMES = [
    "random-8-s1", "random-8-s2", "farthest-8-s1", "duplicate-8-s1-x2", "duplicate-8-s2-x2", "farthest-prompt-8-s1",
]  # fmt: skip
OF_A_SET: dict[str, type[Artifact]] = {
    "study_set": StudySet,
    "study_measures": StudyMeasures,
    "study_performance": StudyPerformance,
}
ASSETS = {"study_pool", *OF_A_SET, "study_correlation"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Work so small gains nothing from a second thread, and waits for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


class Studied(Curation):
    """A curation with a study."""

    def make(self, *assets: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        job = build_defs(self.settings).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            partition_key=partition,
            raise_on_error=False,
        )

    def files(self) -> dict[Path, tuple[int, int]]:
        """Every file of the study, with what changes when it is written again."""
        found = (path for path in (self.root / "study").rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}

    def correlation(self) -> StudyCorrelation:
        return read_newest(self.root, "study_correlation", StudyCorrelation)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studied]:
    """A pool, split, and all sets of its study, each made, measured and trained on as a partition."""
    folder = tmp_path_factory.mktemp("studied")
    write_pool(folder)
    settings = write_settings(
        folder,
        pool={"sources": [{"path": "pool/*"}], "max_reject_fraction": 0.05},
        device="cpu",
        embedding={"dtype": "float32"},
        measures={"ttr_tokens": 100, "inertia_clusters": 3, "partition_clusters": 5},
        study=STUDY,
    )
    with in_memory() as instance:
        made = Studied(folder, settings, instance)
        assert made.make("raw_pool", "embeddings", "distinct_pool", "study_pool").success
        for name in NAMES:
            assert made.make(*OF_A_SET, partition=name).success
        yield made


@pytest.fixture(scope="module")
def correlated(studied: Studied) -> dg.ExecuteInProcessResult:
    return studied.make("study_correlation")


def _failure(result: dg.ExecuteInProcessResult) -> str:
    return str(next(event for event in result.all_events if event.is_step_failure).step_failure_data)


def _assets(settings: Settings) -> set[str]:
    return {spec.key.to_user_string() for spec in build_defs(settings).resolve_all_asset_specs()}


def test_the_partitions_are_the_sets_that_the_settings_name(studied: Studied) -> None:
    graph = build_defs(studied.settings).resolve_asset_graph()
    assert list(recipes(studied.settings.study)) == NAMES
    for asset in OF_A_SET:
        partitions = graph.get(dg.AssetKey(asset)).partitions_def
        assert partitions is not None and list(partitions.get_partition_keys()) == NAMES
    for asset in ("study_pool", "study_correlation"):
        assert graph.get(dg.AssetKey(asset)).partitions_def is None


def test_curating_leaves_the_study_out(studied: Studied) -> None:
    everything = _assets(studied.settings)
    job = build_defs(studied.settings).resolve_job_def(CURATE_JOB)
    curated = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert everything - curated == ASSETS
    assert "selected_subset" in curated


def test_there_is_no_study_without_a_section_of_settings() -> None:
    assert not ASSETS & _assets(Settings())
    assert _assets(Settings(study=Study())) >= ASSETS


def test_figures_of_a_file_leave_no_training(studied: Studied, correlated: dg.ExecuteInProcessResult) -> None:
    """Settings that name a file of figures: no asset trains, and the outcome has the file's."""
    rows = "".join(f"{name},{number}\n" for number, name in enumerate(NAMES))
    (studied.folder / "figures.csv").write_text("set,performance\n" + rows)
    study = studied.settings.study.model_copy(update={"performance": "figures.csv"})
    settings = studied.settings.model_copy(update={"study": study})
    assert ASSETS - _assets(settings) == {"study_performance"}
    graph = build_defs(settings).resolve_asset_graph()
    parents = graph.get(dg.AssetKey("study_correlation")).parent_keys
    assert {key.to_user_string() for key in parents} == {"study_measures"}
    before = studied.correlation()
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    try:
        assert job.execute_in_process(
            instance=studied.instance, asset_selection=[dg.AssetKey("study_correlation")]
        ).success
        kept = studied.correlation()
        assert kept.key != before.key
        assert kept.performance == "figures of figures.csv"
        outcome = json.loads((studied.root / kept.folder / "outcome.json").read_text())
        expected = dict(zip(NAMES, range(len(NAMES)), strict=True))
        assert {row["set"]: row["performance"] for row in outcome["sets"]} == expected
    finally:
        assert studied.make("study_correlation").success
    assert studied.correlation() == before


def test_each_partition_keeps_its_own_handle(studied: Studied) -> None:
    planned = recipes(studied.settings.study)
    pool = read_newest(studied.root, "study_pool", StudyPool)
    for asset, kind in OF_A_SET.items():
        handles: dict[str, Any] = {name: read_newest(studied.root, asset, kind, name) for name in NAMES}
        assert {name: handle.recipe for name, handle in handles.items()} == planned
        assert len({handle.key for handle in handles.values()}) == len(NAMES)
        records = studied.instance.fetch_materializations(dg.AssetKey(asset), limit=20).records
        made = [record.asset_materialization for record in records]
        versions = {one.partition: (one.tags or {})["dagster/data_version"] for one in made if one is not None}
        assert versions == {name: handle.key for name, handle in handles.items()}
    for name in NAMES:
        chosen = read_newest(studied.root, "study_set", StudySet, name)
        assert chosen.pool == pool.key
        assert read_newest(studied.root, "study_measures", StudyMeasures, name).study_set == chosen.key
        performance = read_newest(studied.root, "study_performance", StudyPerformance, name)
        assert performance.study_set == chosen.key
        assert set(performance.trials) == {1, 2}


def test_the_correlation_is_what_the_study_at_once_finds(
    studied: Studied, correlated: dg.ExecuteInProcessResult
) -> None:
    assert correlated.success
    before = studied.files()
    snapshot = read_newest(studied.root, "raw_pool", PoolSnapshot)
    vectors = read_newest(studied.root, "embeddings", VectorSet)
    kept, outcome = correlate(studied.root, snapshot, vectors, studied.settings, LogReporter(lambda text: None))
    assert kept == studied.correlation()
    # Nothing was done twice; only the tables need the plain facts of sets.
    files = {path: stamp for path, stamp in studied.files().items() if not path.name.startswith("facts=")}
    assert files == before
    folder = studied.root / kept.folder
    assert json.loads((folder / "outcome.json").read_text()) == json.loads(json.dumps(outcome_json(outcome)))
    assert outcome.sets["set"].to_pylist() == NAMES


def test_the_ui_shows_what_was_found(correlated: dg.ExecuteInProcessResult, studied: Studied) -> None:
    (event,) = correlated.asset_materializations_for_node("study_correlation")
    metadata = {name: value.value for name, value in event.metadata.items()}
    assert metadata["sets"] == 6
    assert "2,000 tokens a set and each of 2 training seeds" in str(metadata["performance"])
    assert str(metadata["novelsum"]).startswith("![NovelSum against performance](data:image/png;base64,")
    table = event.metadata["correlations"]
    assert isinstance(table, dg.TableMetadataValue)
    assert {str(row.data["measure"]) for row in table.records} >= {"novelsum", "vendi_score", "facility_location"}
    assert {row.data["group"] for row in table.records} == {"all sets"}
    assert (event.tags or {})["dagster/data_version"] == studied.correlation().key


@pytest.mark.parametrize("asset", ["study_measures", "study_performance"])
def test_a_missing_partition_is_named(studied: Studied, correlated: dg.ExecuteInProcessResult, asset: str) -> None:
    path = studied.root / "assets" / asset / "farthest-8-s1.json"
    kept = path.read_bytes()
    path.unlink()
    try:
        failed = studied.make("study_correlation")
    finally:
        path.write_bytes(kept)
    assert not failed.success
    assert f"{asset}, partition farthest-8-s1, is not materialised yet; materialise it first" in _failure(failed)
    assert len([event for event in failed.all_events if event.is_step_failure]) == 1


def test_a_set_before_the_study_pool_fails_in_plain_words(studied: Studied) -> None:
    path = studied.root / "assets" / "study_pool.json"
    kept = path.read_bytes()
    path.unlink()
    try:
        failed = studied.make("study_set", partition="random-8-s1")
    finally:
        path.write_bytes(kept)
    assert "study_pool is not materialised yet; materialise it first" in _failure(failed)
