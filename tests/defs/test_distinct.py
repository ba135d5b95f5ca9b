"""The asset `distinct_pool`: near-duplicates by vectors are found, dropped, counted and explained."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.audit.explain import explain
from novelsum_dagster.audit.gc import collect
from novelsum_dagster.audit.reproduce import records_of, reproduce
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.tables import DensityTable
from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.lineage.models import build
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.settings import Retention
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings

RULE = {"by": "both", "similarity": 0.85, "drop": True, "keep": "longest"}


def _again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same asked in other words, longer: no shingle of it is a template."""
    return [{**row, "instruction": f"Please tell me: {row['instruction'].upper()}"} for row in rows]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Curation, dg.ExecuteInProcessResult]]:
    folder = tmp_path_factory.mktemp("distinct")
    write_jsonl(folder / "pool" / "one.jsonl", alpaca(40))
    write_jsonl(folder / "pool" / "two.jsonl", [*_again(alpaca(12)), alpaca(1)[0]])
    pool = {"sources": [{"path": "pool/*"}], "near_duplicates": RULE}
    settings = write_settings(folder, pool=pool, embedding=REAL_MODEL, selection={"k": 8})
    with in_memory() as instance:
        curation = Curation(folder, settings, instance)
        result = curation.run()
        assert result.success
        yield curation, result


@pytest.fixture
def curation(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> Iterator[Curation]:
    """The curation; what a test does to its files and settings is undone."""
    curation = ran[0]
    kept = curation.folder.with_name("kept")
    shutil.copytree(curation.folder, kept)
    yield curation
    shutil.rmtree(curation.folder)
    kept.rename(curation.folder)


def _pools(curation: Curation) -> tuple[PoolSnapshot, PoolSnapshot]:
    return read_newest(curation.root, "raw_pool", PoolSnapshot), read_newest(
        curation.root, "distinct_pool", PoolSnapshot
    )


def _near(curation: Curation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _pools(curation)[1].table(curation.root, "near_duplicates").to_pylist()
    return found


def test_counts_are_true(curation: Curation) -> None:
    read, pool = _pools(curation)
    by = [row["found_by"] for row in _near(curation)]
    assert by.count("embedding") >= 5 and by.count("minhash") == read.near_duplicates
    assert (pool.near_duplicates, pool.read_as, pool.near_duplicates_dropped) == (len(by), read.key, True)
    assert pool.read == read.read == 53 == pool.kept + pool.duplicates + pool.rejects + pool.unread
    assert pool.kept == read.kept - by.count("embedding") == len(pool.samples(curation.root, ["id"]))
    for file in pool.files:
        assert file.read == file.kept + file.duplicates + file.rejects + file.unread
    density = read_newest(curation.root, "density", DensityTable).table(curation.root)
    assert density["id"].to_pylist() == pool.samples(curation.root, ["id"])["id"].to_pylist()


def test_each_near_duplicate_has_its_kept_partner(curation: Curation) -> None:
    read, pool = _pools(curation)
    ids, vectors = pool_vectors(curation.root, read, read_newest(curation.root, "embeddings", VectorSet))
    length = dict(zip(*read.samples(curation.root, ["id", "characters"]).to_pydict().values(), strict=True))
    units = unit_rows(vectors)
    kept = set(pool.samples(curation.root, ["id"])["id"].to_pylist())
    for row in _near(curation):
        assert row["id"] not in kept
        if row["found_by"] == "embedding":
            assert row["partner_id"] in kept
            a, b = ids.index(row["id"]), ids.index(row["partner_id"])
            assert row["score"] == 1 - cosine_distances(units[a : a + 1], units[b : b + 1])[0, 0] >= 0.85
            assert length[row["partner_id"]] >= length[row["id"]]
    within = 1 - cosine_distances(*[units[[ids.index(id_) for id_ in kept]]] * 2)
    np.fill_diagonal(within, 0)
    assert within.max() < 0.85


def test_why_and_the_audit_say_how_it_was_found(curation: Curation) -> None:
    store = LineageStore(curation.root)
    row = next(row for row in _near(curation) if row["found_by"] == "embedding")
    said = f"near-duplicate by embedding of {row['partner_id'][:8]} (cosine {row['score']:.4f} >= 0.85)"
    with store.reading() as connection:
        found = explain(connection, curation.root, find_run(connection, None), row["id"])
        assert found.outcome == "near-duplicate" and found.facts["near_duplicate"]["found_by"] == "embedding"
        assert said + ', kept by the rule "longest"' in found.words[0]
        audited = connection.execute(
            "SELECT near_duplicate_by, near_duplicate_of, in_pool, reason FROM selection_audit WHERE id = ?",
            [row["id"]],
        ).fetchall()
        reason = f"left out: near-duplicate by embedding ({row['score']:.2f}) of {row['partner_id'][:8]}"
        assert audited == [("embedding", row["partner_id"], False, reason)]
        groups = connection.execute(
            "SELECT found_by FROM near_duplicate_groups WHERE first_id = ?", [row["partner_id"]]
        )
        assert "embedding" in groups.fetchall()[0][0]


def test_the_report_shows_how_similar_samples_are(curation: Curation) -> None:
    page = (
        curation.root / read_newest(curation.root, "novelsum_report", NovelSumReport).folder / "report.html"
    ).read_text()
    similar = _pools(curation)[1].table(curation.root, "similar")["similarity"].to_numpy()
    assert f"{(similar >= 0.8).sum():,} at 0.80, {(similar >= 0.85).sum():,} at 0.85" in page
    assert "near-duplicates from 0.85" in page


def test_every_check_passes(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    checks = [one for one in ran[1].get_asset_check_evaluations() if one.asset_key == dg.AssetKey("distinct_pool")]
    assert {one.check_name for one in checks} == {
        "counts_agree", "counts_add_up", "partners_kept", "few_near_duplicates",
    }  # fmt: skip
    assert all(one.passed for one in checks)


def test_what_landed_gives_what_a_run_over_all_gives(curation: Curation) -> None:
    write_jsonl(curation.folder / "pool" / "three.jsonl", [*_again(alpaca(14)[12:]), *alpaca(2, 40)])
    grown = curation.run(models=False)
    assert grown.success
    compared = grown.asset_materializations_for_node("distinct_pool")[0].metadata["compared"].value
    assert "new with all" in str(compared)
    assert grown.asset_materializations_for_node("embeddings")[0].metadata["embedded_now"].value in (3, 4)
    made = _pools(curation)[1]
    files = {path.name: path.read_bytes() for path in (curation.root / made.folder).iterdir()}
    assert set(files) == {
        f"{name}.parquet" for name in ("samples", "origins", "rejects", "near_duplicates", "similar", "neighbours")
    }
    for path in (curation.root / "assets").glob("*.json"):
        path.unlink()
    shutil.rmtree(curation.root / "pool")
    shutil.rmtree(curation.root / "provenance")
    assert curation.materialise("raw_pool").success and curation.materialise("embeddings").success
    alone = curation.materialise("distinct_pool")
    assert "nothing is known" in str(
        alone.asset_materializations_for_node("distinct_pool")[0].metadata["compared"].value
    )
    assert _pools(curation)[1] == made
    assert {path.name: path.read_bytes() for path in (curation.root / made.folder).iterdir()} == files


def test_another_least_similarity_reads_and_embeds_nothing_again(curation: Curation) -> None:
    values = yaml.safe_load(curation.settings_file.read_text())
    values["pool"]["near_duplicates"]["similarity"] = 0.99
    curation.settings_file.write_text(yaml.safe_dump(values))
    made = curation.materialise("distinct_pool")
    assert made.success
    metadata = made.asset_materializations_for_node("distinct_pool")[0].metadata
    assert str(metadata["compared"].value).startswith("0 new with all")
    failed = curation.materialise("sample_novelty")
    assert not failed.success  # Its density is of the pool before.


def test_gc_keeps_what_it_names_and_reproduce_makes_it_again(curation: Curation) -> None:
    store = LineageStore(curation.root)
    before = sorted(str(path) for path in (curation.root / "pool").rglob("*"))
    collect(store, Retention(runs=1))
    assert sorted(str(path) for path in (curation.root / "pool").rglob("*")) == before
    with store.reading() as connection:
        run = find_run(connection, None)
        records = records_of(connection, run)
    found = reproduce(records, run, curation.root, curation.folder, LogReporter(lambda line: None))
    assert found.is_equal and list(found.outputs) == [
        "raw_pool", "embeddings", "distinct_pool", "density", "selected_subset", "sample_novelty",
    ]  # fmt: skip
    old = {asset: made for asset, made in records.items() if asset != "distinct_pool"}
    assert "distinct_pool" not in reproduce(old, run, curation.root, curation.folder, LogReporter(print)).outputs


def test_a_pool_of_another_rule_is_the_one_that_was_read(curation: Curation) -> None:
    values = yaml.safe_load(curation.settings_file.read_text())
    values["pool"]["near_duplicates"] = {"by": "minhash", "drop": True}
    curation.settings_file.write_text(yaml.safe_dump(values))
    for asset in ("raw_pool", "embeddings", "distinct_pool"):
        assert curation.materialise(asset).success
    read, pool = _pools(curation)
    assert pool == read and pool.read_as is None
    # Storage of the release before has no such asset, and goes on.
    (curation.root / "assets" / "distinct_pool.json").unlink()
    shutil.rmtree(curation.root / "provenance" / "distinct_pool")
    again = curation.run(models=False)
    assert again.success
    assert again.asset_materializations_for_node("embeddings")[0].metadata["embedded_now"].value == 0
    assert _pools(curation)[1] == read
    build(LineageStore(curation.root))


def test_a_damaged_table_is_named(curation: Curation) -> None:
    path = curation.root / _pools(curation)[1].folder / "near_duplicates.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    failed = curation.materialise("density")
    assert not failed.success
    [event] = [event for event in failed.all_events if event.is_step_failure]
    assert f"distinct_pool: {path} is damaged" in str(event.step_failure_data)
    path.unlink()
    assert curation.materialise("distinct_pool").success
    assert pq.read_table(path).equals(table)


@pytest.mark.parametrize("keep", ["first", "quality"])
def test_other_rules_keep_others(tmp_path: Path, keep: str) -> None:
    rows = [{**row, "score": place + 1} for place, row in enumerate([*alpaca(10), *_again(alpaca(10))])]
    write_jsonl(tmp_path / "pool" / "one.jsonl", rows)
    pool = {"sources": [{"path": "pool/*"}], "near_duplicates": {**RULE, "by": "embedding", "keep": keep}}
    chosen = {"k": 4, **({"quality": "score"} if keep == "quality" else {})}
    with in_memory() as instance:
        curation = Curation(
            tmp_path, write_settings(tmp_path, pool=pool, embedding=REAL_MODEL, selection=chosen), instance
        )
        for asset in ("raw_pool", "embeddings", "distinct_pool"):
            assert curation.materialise(asset).success
        positions = dict(
            zip(*_pools(curation)[0].samples(curation.root, ["id", "position"]).to_pydict().values(), strict=True)
        )
        found = _near(curation)
        assert found
        for row in found:
            assert (positions[row["id"]] > positions[row["partner_id"]]) == (keep == "first")


def test_a_pool_that_is_too_small_once_near_duplicates_are_out_is_refused_at_once(curation: Curation) -> None:
    values = yaml.safe_load(curation.settings_file.read_text())
    values["selection"]["k"] = kept = _pools(curation)[0].kept
    curation.settings_file.write_text(yaml.safe_dump(values))
    failed = curation.materialise("distinct_pool")
    assert not failed.success
    [event] = [event for event in failed.all_events if event.is_step_failure]
    assert f"k is {kept} and the pool has {_pools(curation)[1].kept} samples" in str(event.step_failure_data)
