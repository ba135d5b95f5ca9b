"""Provenance through Dagster: every output has its record, and nothing is built on what does not match or is broken."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from novelsum_dagster.artifacts.provenance import Provenance, record_path
from novelsum_dagster.lineage.store import LineageStore
from tests.curated import hashes, short, write_wrong
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.pools import write_jsonl, write_settings

INPUTS = {
    "raw_pool": [],
    "embeddings": ["raw_pool"],
    "distinct_pool": ["raw_pool", "embeddings"],
    "density": ["distinct_pool", "embeddings"],
    "sample_novelty": ["distinct_pool", "embeddings", "density"],
    "selected_subset": ["raw_pool", "embeddings", "distinct_pool", "density"],
    "novelsum_report": ["distinct_pool", "embeddings", "density", "sample_novelty", "selected_subset"],
    "data_card": [
        *("raw_pool", "distinct_pool", "embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report"),
    ],
    "lineage": [
        *("raw_pool", "distinct_pool", "embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report"),
    ],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Curation, dg.ExecuteInProcessResult]]:
    """A pool of 40 short samples in two sources, run once."""
    folder = tmp_path_factory.mktemp("provenance")
    write_jsonl(folder / "pool" / "one.jsonl", short(25))
    write_jsonl(folder / "pool" / "two.jsonl", short(15, start=25))
    settings = write_settings(folder, selection={"k": 8}, embedding={"shard_size": 16})
    with in_memory() as instance:
        curation = Curation(folder, settings, instance)
        result = curation.run(models=False)
        assert result.success
        yield curation, result


@pytest.fixture
def curation(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> Iterator[Curation]:
    """The curation; what a test does to its settings and its storage is undone."""
    curation = ran[0]
    kept = curation.folder / "kept"
    shutil.copytree(curation.root, kept)
    settings = curation.settings_file.read_bytes()
    yield curation
    curation.settings_file.write_bytes(settings)
    shutil.rmtree(curation.root)
    kept.rename(curation.root)


def _key(curation: Curation, asset: str) -> str:
    return str(json.loads((curation.root / "assets" / f"{asset}.json").read_text())["key"])


def _record(curation: Curation, asset: str) -> Provenance:
    path = record_path(curation.root, asset, _key(curation, asset))
    return Provenance.model_validate_json(path.read_bytes())


def _files(curation: Curation, asset: str) -> list[Path]:
    return [curation.root / name for name in _record(curation, asset).files]


def _words(result: dg.ExecuteInProcessResult) -> str:
    """Return what the one failed step of a run said; it was not tried again."""
    assert not result.success
    [event] = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)  # type: ignore[union-attr]


def _edit(curation: Curation, **sections: Any) -> None:
    values = yaml.safe_load(curation.settings_file.read_text())
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    curation.settings_file.write_text(yaml.safe_dump(values))


def _keys(curation: Curation) -> dict[str, str]:
    return {asset: _key(curation, asset) for asset in INPUTS}


def test_every_asset_has_a_record_of_what_it_was_made_from(
    ran: tuple[Curation, dg.ExecuteInProcessResult],
) -> None:
    curation, result = ran
    keys = {asset: _key(curation, asset) for asset in INPUTS}
    for asset, inputs in INPUTS.items():
        made = _record(curation, asset)
        assert (made.asset, made.output, made.run_id, made.seed) == (asset, keys[asset], result.run_id, 42)
        own = {} if asset != "raw_pool" else hashes(curation.folder / "pool")
        assert made.inputs == {
            **{f"pool/{name}": sha256 for name, sha256 in own.items()},
            **{name: keys[name] for name in inputs},
        }
        assert bool(made.files) == (asset != "lineage")  # Its output is rows of a database that goes on changing.
        [event] = result.asset_materializations_for_node(asset)
        assert event.metadata["provenance"].value == str(record_path(curation.root, asset, keys[asset]))
        assert event.metadata["explore"].value == f"http://127.0.0.1:8501/?run={result.run_id}"
        assert (event.tags or {})["dagster/data_version"] == keys[asset]
    assert _record(curation, "selected_subset").config["k"] == 8


def test_the_lineage_keeps_the_records_of_a_run(ran: tuple[Curation, dg.ExecuteInProcessResult]) -> None:
    curation, result = ran
    with LineageStore(curation.root).reading() as connection:
        rows = connection.execute("SELECT run_id, asset, output, bytes, record FROM provenance").fetchall()
    assert {row[1] for row in rows} == set(INPUTS) - {"data_card", "lineage"}
    for run_id, asset, output, size, text in rows:
        made = _record(curation, asset)
        assert (run_id, output, size) == (result.run_id, made.output, sum(f.bytes for f in made.files.values()))
        assert Provenance.model_validate_json(text) == made


@pytest.mark.slow
def test_a_second_run_changes_no_version_and_no_record_but_for_when(curation: Curation) -> None:
    before, records = _keys(curation), {asset: _record(curation, asset) for asset in INPUTS}
    files = {asset: hashes(curation.root / asset) for asset in ("pool", "vectors", "density", "novelty", "selections")}
    places = {path.name for path in curation.root.glob("provenance/*/*.json")}
    again = curation.run(models=False)
    assert again.success
    events = {asset: again.asset_materializations_for_node(asset)[0] for asset in INPUTS}
    assert {asset: (event.tags or {})["dagster/data_version"] for asset, event in events.items()} == before
    assert _keys(curation) == before
    for asset, then in records.items():
        now = _record(curation, asset)
        assert now.run_id == again.run_id and now.made_at > then.made_at
        assert now.model_copy(update={"run_id": then.run_id, "made_at": then.made_at}) == then
    assert {path.name for path in curation.root.glob("provenance/*/*.json")} == places
    assert {asset: hashes(curation.root / asset) for asset in files} == files
    assert len(list((curation.root / "cards").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "alone", "words"),
    [
        (
            {"novelsum": {"neighbors": 4}},
            "selected_subset",
            ["density: novelsum.neighbors was 10, the settings say 4; materialise density again"],
        ),
        (
            {"embedding": {"max_tokens": 32}},
            "density",
            ["embeddings: embedding.max_tokens was 256, the settings say 32; materialise embeddings again"],
        ),
        (
            {"selection": {"k": 9}, "novelsum": {"density_power": 0.25}},
            "novelsum_report",
            [
                "density: novelsum.density_power was 0.5, the settings say 0.25; materialise density again",
                "sample_novelty: novelsum.density_power was 0.5, the settings say 0.25; materialise sample_novelty",
                "selected_subset: selection.k was 8, the settings say 9; materialise selected_subset again",
                "selected_subset: novelsum.density_power was 0.5, the settings say 0.25; materialise selected_subset",
            ],
        ),
        (
            {"pool": {"max_characters": 100_000}},
            "embeddings",
            ["raw_pool: pool.max_characters was 200000, the settings say 100000; materialise raw_pool again"],
        ),
        (
            {"measures": {"ridge": 2.0}},
            "data_card",
            ["novelsum_report: measures.ridge was 1.0, the settings say 2.0; materialise novelsum_report again"],
        ),
    ],
)
def test_one_asset_alone_after_a_change_of_settings_is_refused(
    curation: Curation, change: dict[str, Any], alone: str, words: list[str]
) -> None:
    before = hashes(curation.root / "provenance")
    _edit(curation, **change)
    said = _words(curation.materialise(alone))
    assert said.count("; materialise ") == len(words)
    for line in words:
        assert line in said
    assert hashes(curation.root / "provenance") == before


def test_what_was_refused_works_after_what_the_words_say(curation: Curation) -> None:
    _edit(curation, novelsum={"neighbors": 4})
    assert "materialise density again" in _words(curation.materialise("selected_subset"))
    assert curation.materialise("density").success
    assert curation.materialise("selected_subset").success
    # The old novelty is still beside it.
    said = _words(curation.materialise("novelsum_report"))
    assert "sample_novelty: novelsum.neighbors was 10, the settings say 4; materialise sample_novelty again" in said
    assert "sample_novelty: was built from density" in said
    assert "selected_subset" not in said


def test_settings_that_change_nothing_refuse_nothing(curation: Curation) -> None:
    _edit(curation, device="cpu", selection={"verify": 3}, pool={"max_reject_fraction": 0.3})
    _edit(curation, embedding={"batch_size": 8}, checks={"max_source_share": 0.99})
    before = _keys(curation)
    for asset in ("density", "selected_subset", "lineage"):
        assert curation.materialise(asset).success
    assert _keys(curation) == before


@pytest.mark.slow
def test_an_override_of_the_launchpad_is_recorded_and_refuses_nothing(curation: Curation) -> None:
    config = {"ops": {"selected_subset": {"config": {"strategy": "random", "k": 5, "seed": 7}}}}
    assert curation.materialise("selected_subset", **config).success
    made = _record(curation, "selected_subset")
    assert (made.config["strategy"], made.config["k"], made.config["seed"], made.seed) == ("random", 5, 7, 7)
    assert made.settings["selection.k"] == 8
    assert curation.materialise("novelsum_report").success
    assert _record(curation, "novelsum_report").seed == 7  # The random set beside it is drawn with it.
    assert curation.materialise("lineage").success


@pytest.mark.parametrize(
    ("asset", "pattern", "next_one"),
    [
        ("selected_subset", "selections/*/picks.parquet", "lineage"),
        pytest.param("selected_subset", "selections/*/original/two.jsonl", "lineage", marks=pytest.mark.slow),
        pytest.param("density", "density/*/density.parquet", "selected_subset", marks=pytest.mark.slow),
        ("embeddings", "vectors/*/*.parquet", "density"),
        pytest.param("raw_pool", "pool/*/origins.parquet", "embeddings", marks=pytest.mark.slow),
        pytest.param("novelsum_report", "reports/*/report.html", "data_card", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_named_and_made_again(curation: Curation, asset: str, pattern: str, next_one: str) -> None:
    before = hashes(curation.root)
    path = sorted(curation.root.glob(pattern))[0]
    assert path in _files(curation, asset)
    write_wrong(path)
    said = _words(curation.materialise(next_one))
    assert f"{asset}: {path} is damaged" in said and f"delete it, and materialise {asset} again" in said
    path.unlink()
    said = _words(curation.materialise(next_one))
    assert f"{asset}: {path} is missing; materialise {asset} again" in said
    again = curation.materialise(asset)
    assert again.success
    assert curation.materialise(next_one).success
    after = hashes(curation.root)
    # Of the outputs every byte is as it was; records have the new run.
    folders = ("pool", "vectors", "density", "selections", "reports", "cards")
    changed = [name for name in before if name.startswith(folders) and after.get(name) != before[name]]
    assert changed == []
    assert {name for name in after if name.startswith(folders)} == {n for n in before if n.startswith(folders)}


@pytest.mark.parametrize(
    ("asset", "pattern"),
    [
        ("selected_subset", "selections/*/subset.jsonl"),
        ("raw_pool", "pool/*/rejects.parquet"),
        ("data_card", "cards/*/subset.jsonl"),
    ],
)
def test_a_damaged_file_is_not_vouched_for_by_a_new_run(curation: Curation, asset: str, pattern: str) -> None:
    """The folder is there already, so that a step leaves its files as they are: it must say so, not record them."""
    [path] = curation.root.glob(pattern)
    write_wrong(path)
    said = _words(curation.materialise(asset))
    assert f"{asset}: {path} is damaged" in said and "delete it" in said
    path.unlink()
    again = curation.materialise(asset)
    assert again.success, _words(again)


@pytest.mark.slow
def test_without_records_the_words_say_which(curation: Curation) -> None:
    """A storage folder of an earlier version."""
    shutil.rmtree(curation.root / "provenance")
    said = _words(curation.materialise("selected_subset"))
    for asset in INPUTS["selected_subset"]:
        assert f"{asset} {_key(curation, asset)}: has no provenance record" in said
        assert f"materialise {asset} again" in said
    before = _keys(curation)
    for asset in (*INPUTS["selected_subset"], "selected_subset"):
        assert curation.materialise(asset).success
    assert _keys(curation) == before


def test_a_storage_folder_that_was_moved_still_matches(curation: Curation) -> None:
    """Records name files from the storage folder."""
    moved = curation.folder / "else where"
    shutil.copytree(curation.root, moved)
    values = yaml.safe_load(curation.settings_file.read_text())
    other = curation.folder / "moved.yaml"
    other.write_text(yaml.safe_dump({**values, "storage": "else where"}))
    try:
        there = replace(curation, settings_file=other)
        assert there.root == moved
        assert there.materialise("selected_subset").success
        [path] = moved.glob("density/*/density.parquet")
        write_wrong(path)
        assert f"{path} is damaged" in _words(there.materialise("selected_subset"))
        assert curation.materialise("selected_subset").success
    finally:
        shutil.rmtree(moved)
        other.unlink()
