"""A subset that is kept and added to when the pool changes, on real runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.audit.difference import difference
from novelsum_dagster.audit.explain import explain
from novelsum_dagster.audit.reproduce import records_of, reproduce
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import FRESH, SELECTED, NovelSumReport
from novelsum_dagster.selection.subset import Subset
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.pools import alpaca, write_jsonl, write_settings


@pytest.fixture
def curation(tmp_path: Path) -> Iterator[Curation]:
    write_jsonl(tmp_path / "pool" / "old.jsonl", alpaca(60))
    settings = write_settings(tmp_path, selection={"k": 12, "extend_by": 5})
    with in_memory() as instance:
        yield Curation(tmp_path, settings, instance)


def _chosen(curation: Curation) -> tuple[Subset, list[str]]:
    assert curation.run(models=False).success
    subset = read_newest(curation.root, "selected_subset", Subset)
    return subset, subset.picks(curation.root)["id"].to_pylist()


@pytest.mark.slow
def test_a_subset_grows_with_its_pool_once(curation: Curation) -> None:
    first, ids = _chosen(curation)
    assert len(ids) == 12 and "extends" not in first.settings.options
    assert _chosen(curation) == (first, ids)

    write_jsonl(curation.folder / "pool" / "new.jsonl", alpaca(25, start=60))
    second, grown = _chosen(curation)
    assert grown[:12] == ids and len(set(grown)) == 17
    assert second.settings.options["extends"] == first.key
    assert _chosen(curation) == (second, grown), "a run over the same pool adds nothing"

    report = read_newest(curation.root, "novelsum_report", NovelSumReport)
    assert report.given_up == report.of(FRESH).value - report.of(SELECTED).value
    assert report.of(FRESH).size == 17

    before = {path: path.read_bytes() for path in curation.root.rglob("*.parquet")}
    with LineageStore(curation.root).reading() as connection:
        run = find_run(connection, None)
        records = records_of(connection, run)
        kept = explain(connection, curation.root, run, ids[3])
        assert f"earlier subset {first.key[:8]}" in " ".join(kept.words)
        base = connection.execute("SELECT run_id FROM run_outputs WHERE selection = ?", [first.key]).fetchall()
        found = difference(connection, curation.root, find_run(connection, base[0][0]), run)
    assert found.settings == {} and found.stayed == 12
    assert {change.id for change in found.entered} == set(grown[12:])
    there_before = [change.cause for change in found.entered if not change.cause.startswith("new data")]
    assert all("was kept and extended" in cause for cause in there_before)
    made = reproduce(records, run, curation.root, curation.folder, LogReporter(str))
    assert made.is_equal
    assert {path: path.read_bytes() for path in curation.root.rglob("*.parquet")} == before


@pytest.mark.slow
def test_samples_that_are_gone_leave_the_subset(curation: Curation) -> None:
    write_jsonl(curation.folder / "pool" / "going.jsonl", alpaca(40, start=60))
    _, ids = _chosen(curation)
    (curation.folder / "pool" / "going.jsonl").unlink()
    grown = _chosen(curation)[1]
    there = set(_pool_ids(curation))
    kept = [id_ for id_ in ids if id_ in there]
    assert 0 < len(kept) < 12
    assert grown[: len(kept)] == kept and len(grown) == len(kept) + 5
    assert set(grown) <= there


def _pool_ids(curation: Curation) -> list[str]:
    ids: list[str] = (
        read_newest(curation.root, "raw_pool", PoolSnapshot).samples(curation.root, ["id"])["id"].to_pylist()
    )
    return ids
