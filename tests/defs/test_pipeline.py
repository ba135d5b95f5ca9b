"""The whole pipeline through Dagster: what it writes, that it repeats, and that checks stop it."""

import json
from typing import Any

import dagster as dg
import numpy as np
import pytest

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.diversity import novelsum, vendi_score
from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.lineage.models import models
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.quality.suites import SUITES
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection import novelselect
from novelsum_dagster.selection.subset import Subset
from tests.defs.conftest import ASSETS, Curation
from tests.pools import write_jsonl


@pytest.fixture(scope="module")
def result(curation: Curation) -> dg.ExecuteInProcessResult:
    return curation.run()


def _metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    events = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in events[0].metadata.items()}


def _versions(curation: Curation) -> dict[str, str | None]:
    found = {}
    for asset in ASSETS:
        event = curation.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None and event.asset_materialization is not None
        found[asset] = (event.asset_materialization.tags or {}).get("dagster/data_version")
    return found


def test_every_asset_and_check_runs(result: dg.ExecuteInProcessResult) -> None:
    assert result.success
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert made == {*ASSETS, *(model.name for model in models())}
    checks = result.get_asset_check_evaluations()
    assert len(checks) == len(SUITES) + sum(len(model.tests) for model in models())
    assert [check.check_name for check in checks if not check.passed and check.blocking] == []


def test_counts_add_up(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    snapshot = read_newest(curation.root, "raw_pool", PoolSnapshot)
    assert (snapshot.read, snapshot.kept, snapshot.duplicates, snapshot.rejects) == (102, 100, 1, 1)
    assert _metadata(result, "raw_pool")["dagster/row_count"] == 100


def test_the_subset_is_what_novelselect_picks(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    snapshot = read_newest(curation.root, "raw_pool", PoolSnapshot)
    vectors_set = read_newest(curation.root, "embeddings", VectorSet)
    subset = read_newest(curation.root, "selected_subset", Subset)
    ids, vectors = pool_vectors(curation.root, snapshot, vectors_set)
    picks = novelselect(vectors, 20)
    table = subset.picks(curation.root)
    assert table["id"].to_pylist() == [ids[row] for row in picks.indices]
    assert table["rank"].to_pylist() == list(range(1, 21))
    np.testing.assert_allclose(table["score"].to_pylist()[1:], picks.score[1:])
    report = read_newest(curation.root, "novelsum_report", NovelSumReport)
    chosen = vectors[picks.indices]
    assert report.of("selected").value == pytest.approx(novelsum(chosen, vectors).value)
    assert report.of("selected").value > report.of("random").value
    assert report.of("selected", "vendi_score").value == pytest.approx(vendi_score(chosen).value)
    left_out = {"g_vendi", "cluster_inertia"}
    assert {row.measure for row in report.sets if row.set_name == "selected"} == set(MEASURES) - left_out


def test_the_subset_is_written_in_its_original_form(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    subset = read_newest(curation.root, "selected_subset", Subset)
    folder = curation.root / subset.folder
    originals = set()
    for name in ("alpaca", "chat"):
        originals.update((curation.folder / "pool" / f"{name}.jsonl").read_text().splitlines())
    lines = (folder / "subset.jsonl").read_text().splitlines()
    assert len(lines) == 20
    assert set(lines) <= originals
    by_source = [line for path in sorted((folder / "original").iterdir()) for line in path.read_text().splitlines()]
    assert sorted(by_source) == sorted(lines)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["k"] == 20
    assert {name: file_hash(folder / name) for name in manifest["sha256"]} == manifest["sha256"]


def test_the_lineage_knows_the_run(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    counts = {
        "runs": 1, "steps": 11, "snapshots": 1, "source_files": 2, "embeddings": 1, "densities": 1, "novelties": 1,
        "selections": 1, "set_measures": 25, "run_outputs": 1, "samples": 100, "origins": 101, "rejects": 1,
        "density": 100, "novelty": 100, "picks": 20,
    }  # fmt: skip
    with LineageStore(curation.root).reading() as connection:
        found = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in counts}
        assert connection.execute("SELECT DISTINCT status FROM steps").fetchall() == [("done",)]
        rejects = connection.execute("SELECT file, line, reason FROM rejects").fetchall()
        joined = connection.execute(
            "SELECT count(*) FROM run_outputs JOIN selections USING (selection) JOIN picks USING (selection)"
            " JOIN samples ON samples.id = picks.id AND samples.snapshot = run_outputs.snapshot"
        ).fetchall()
    assert found == counts
    assert rejects == [("pool/chat.jsonl", 41, "wrong_type")]
    assert joined == [(20,)]


def test_a_second_run_embeds_nothing_and_changes_no_data_version(
    curation: Curation, result: dg.ExecuteInProcessResult
) -> None:
    before = _versions(curation)
    again = curation.run(models=False)
    assert again.success
    assert _versions(curation) == before
    assert None not in before.values()
    assert _metadata(again, "embeddings")["embedded_now"] == 0


def test_the_launchpad_can_change_the_selection(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    config = {"ops": {"selected_subset": {"config": {"strategy": "random", "k": 7, "seed": 1}}}}
    assert curation.materialise("selected_subset", **config).success
    subset = read_newest(curation.root, "selected_subset", Subset)
    assert (subset.settings.strategy, subset.settings.k, subset.settings.seed) == ("random", 7, 1)
    assert len(subset.picks(curation.root)) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 101}, "k must be from 1 to 100"),
        ({"strategy": "best"}, "selection.strategy: Input should be 'novelselect', 'random'"),
    ],
)
def test_a_bad_selection_fails_in_plain_words_without_retry(
    curation: Curation, result: dg.ExecuteInProcessResult, change: dict[str, Any], message: str
) -> None:
    failed = curation.materialise("selected_subset", ops={"selected_subset": {"config": change}})
    assert not failed.success
    events = [event for event in failed.all_events if event.is_step_failure]
    assert len(events) == 1
    assert message in str(events[0].step_failure_data.user_failure_data)
    with LineageStore(curation.root).reading() as connection:
        rows = connection.execute("SELECT error FROM steps WHERE status = 'failed' ORDER BY started_at").fetchall()
    assert message in rows[-1][0]


def test_a_failed_check_stops_the_run_and_the_subset_alone(
    curation: Curation, result: dg.ExecuteInProcessResult
) -> None:
    """Cut a file off in the middle; what was selected before stays."""
    before = read_newest(curation.root, "selected_subset", Subset)
    broken = curation.folder / "pool" / "cut.json"
    broken.write_text('[{"instruction": "Say yes.", "output": "Yes."}, {"instruction": "Say no.", "outp')
    try:
        stopped = curation.run()
        assert not stopped.success
        ran = {event.step_key for event in stopped.all_events if event.is_step_start}
        assert ran == {"raw_pool", "raw_pool_checks"}
        failed = [check.check_name for check in stopped.get_asset_check_evaluations() if not check.passed]
        assert failed == ["files_complete"]
        mismatched = curation.materialise("selected_subset")
        assert "built from raw_pool" in str(
            next(e for e in mismatched.all_events if e.is_step_failure).step_failure_data
        )
        for asset in ("embeddings", "distinct_pool", "density"):
            assert curation.materialise(asset).success
        alone = curation.materialise("selected_subset")
        assert not alone.success
        assert "files_complete" in str(next(e for e in alone.all_events if e.is_step_failure).step_failure_data)
        assert read_newest(curation.root, "selected_subset", Subset) == before
    finally:
        broken.unlink()
    assert curation.run(models=False).success


def test_the_gate_runs_checks_that_never_ran(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    """Materialise each asset alone: no check step runs, yet an unsound density is refused."""
    write_jsonl(curation.folder / "pool" / "new.jsonl", [{"prompt": "What is new?", "completion": "This record."}])
    try:
        for asset in ("raw_pool", "embeddings", "distinct_pool", "density"):
            assert curation.materialise(asset).success
        assert curation.materialise("selected_subset").success
        snapshot = read_newest(curation.root, "raw_pool", PoolSnapshot)
        assert (curation.root / "checks" / "raw_pool" / f"{snapshot.key}.jsonl").exists()
    finally:
        (curation.folder / "pool" / "new.jsonl").unlink()


def test_vectors_of_another_pool_are_refused(curation: Curation, result: dg.ExecuteInProcessResult) -> None:
    write_jsonl(curation.folder / "pool" / "new.jsonl", [{"prompt": "What is newer?", "completion": "That record."}])
    try:
        assert curation.materialise("raw_pool").success
        failed = curation.materialise("distinct_pool")
        assert not failed.success
        data = next(event for event in failed.all_events if event.is_step_failure).step_failure_data
        assert "materialise embeddings again" in str(data)
    finally:
        (curation.folder / "pool" / "new.jsonl").unlink()
