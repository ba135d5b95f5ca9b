"""`novelsum reproduce` after real runs: equal, told what changed since, and never writing to the storage folder."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from novelsum_dagster.artifacts.provenance import MACHINE_DEPENDENT
from novelsum_dagster.definitions import build_defs
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.settings import load_settings
from tests.curated import hashes, short, write_wrong
from tests.instances import in_memory
from tests.machines import Done, called
from tests.pools import write_jsonl, write_settings

pytestmark = pytest.mark.slow
SELECTION = ("selected_subset", "novelsum_report", "lineage")
ASSETS = ("raw_pool", "embeddings", "distinct_pool", "density", "sample_novelty", *SELECTION)
# By run: what the launchpad says of the selection.
OVERRIDES: dict[str, dict[str, Any]] = {
    "base": {},
    "novelselect": {"k": 5, "seed": 7, "density_power": 0.25, "proximity_power": 2.0},
    "random": {"strategy": "random", "k": 6, "seed": 9},
}
NEAR = " ".join(f"word{number}" for number in range(60))


@dataclass
class Ran:
    """Runs over one storage folder, by name; the pool's near-duplicates are dropped."""

    folder: Path
    runs: dict[str, str]

    @property
    def root(self) -> Path:
        return self.folder / "curated"

    def ask(self, *arguments: str) -> Done:
        return called(self.folder, "reproduce", *arguments)

    def made_again(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        found = self.ask(*arguments, "--json")
        assert found.code == code, found.err
        answer: dict[str, Any] = json.loads(found.out)
        return answer

    def refused(self, *arguments: str) -> str:
        """Return what is said of a run that cannot be made again."""
        done = self.ask(*arguments)
        assert (done.code, done.out) == (2, "") and "Traceback" not in done.err
        return done.err


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("reproduce")
    write_jsonl(folder / "pool" / "one.jsonl", [*short(18), short(3)[2]])
    near = [{"instruction": f"Say this, {name}.", "input": "", "output": NEAR} for name in ("Ann", "Bob", "Cid")]
    write_jsonl(folder / "pool" / "two.jsonl", [*short(10, start=18), *near])
    pool = {"sources": [{"path": "pool/*.jsonl"}], "near_duplicates": {"drop": True}}
    settings = load_settings(write_settings(folder, pool=pool, selection={"k": 8}))
    runs = {}
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    with in_memory() as instance:
        for name, config in OVERRIDES.items():
            # The audit's models, checks and the card take longer than all else, and are not what is made again.
            result = job.execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey(asset) for asset in (ASSETS if name == "base" else SELECTION)],
                run_config={"ops": {"selected_subset": {"config": config}}},
            )
            runs[name] = result.run_id
    return Ran(folder, runs)


@pytest.fixture(autouse=True)
def _untouched(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is asked and answered: the storage folder stays byte for byte, and nothing temporary is left."""
    before = hashes(ran.folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    assert hashes(ran.folder) == before
    assert list(temporary.glob("novelsum-*")) == []


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Ran:
    """A copy that a test may change."""
    shutil.copytree(ran.folder, tmp_path / "copy")
    copy = replace(ran, folder=tmp_path / "copy")
    with LineageStore(copy.root).reading():
        pass  # The views of a moved storage folder are brought up to date once.
    return copy


@contextlib.contextmanager
def _instead(path: Path, text: str | None) -> Iterator[None]:
    """Have another text in a file, or no file, for a while."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


@pytest.mark.parametrize("name", list(OVERRIDES))
def test_a_run_comes_out_equal(ran: Ran, name: str) -> None:
    """With what the launchpad said, and with near-duplicates dropped."""
    found = ran.made_again(ran.runs[name])
    assert (found["run"], found["equal"], found["embedded_again"]) == (ran.runs[name], True, False)
    assert found["differences"] == []
    outputs = ["raw_pool", "embeddings", "distinct_pool", "density", "selected_subset", "sample_novelty"]
    assert list(found["outputs"]) == outputs
    assert (found["gone"], found["checked"]["sources"]) == ({}, "2 files")
    assert set(found["checked"]) == {"sources", *outputs, "novelsum_report"}
    with LineageStore(ran.root).reading() as connection:
        query = "SELECT snapshot, vectors, density, selection, novelty FROM run_outputs WHERE run_id = ?"
        [keys] = connection.execute(query, [ran.runs[name]]).fetchall()
        picked = connection.execute("SELECT count(*) FROM picks WHERE selection = ?", [keys[3]]).fetchone()
        [(near, kept)] = connection.execute("SELECT near_duplicates, kept FROM snapshots").fetchall()
    # Where no vectors are compared, the distinct pool is the pool that was read.
    expected = [keys[0], keys[1], keys[0], *keys[2:]]
    assert [one["recorded"] for one in found["outputs"].values()] == expected
    assert [one["made"] for one in found["outputs"].values()] == expected
    assert picked == ({"base": 8, "novelselect": 5, "random": 6}[name],)
    assert near >= 2 and kept == 31 - near
    folder = ran.root / "selections" / f"selection={keys[3]}"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tables = {"density.parquet", "novelty.parquet"}
    assert set(found["files"]) == there - set(MACHINE_DEPENDENT) | tables
    left_out = there & set(MACHINE_DEPENDENT) | {"nearest.parquet", "novelsum_report"}
    assert set(found["not_checked"]) == left_out and all(found["not_checked"].values())
    assert set(found["files"].values()) == {True}
    assert {"picks.parquet", "subset.jsonl", "manifest.json"} <= set(found["files"])


def test_the_three_runs_have_three_subsets(ran: Ran) -> None:
    assert len({ran.made_again(run)["outputs"]["selected_subset"]["made"] for run in ran.runs.values()}) == 3


def test_vectors_made_again_are_equal_too(ran: Ran) -> None:
    found = ran.made_again(ran.runs["base"], "--embed-again")
    assert (found["equal"], found["embedded_again"]) == (True, True)


def test_a_table_for_people(ran: Ran) -> None:
    done = ran.ask(ran.runs["novelselect"][:13])
    assert done.code == 0
    assert f"Run {ran.runs['novelselect'][:8]}, rebuilt" in done.out
    assert "The subset is the same, byte for byte." in done.out and "The stored vectors were used" in done.out
    assert "picks.parquet" in done.out and "differs" not in done.out and "Since then" not in done.out


def test_without_a_name_it_is_the_newest_run(ran: Ran) -> None:
    assert ran.made_again()["run"] == ran.runs["random"]


def test_changed_and_removed_sources_are_named_together_and_new_ones_do_not_matter(ran: Ran) -> None:
    one, two, new = (ran.folder / "pool" / f"{name}.jsonl" for name in ("one", "two", "three"))
    text = one.read_text()
    with _instead(one, text[:-2] + " \n"), _instead(two, None), _instead(new, text):
        said = ran.refused(ran.runs["base"])
    assert "this run cannot be rebuilt:" in said
    for line in ("one.jsonl has changed since", "two.jsonl is missing"):
        assert f"pool/{line}" in said
    with _instead(new, text):
        assert ran.made_again(ran.runs["base"])["equal"]
    assert ran.made_again(ran.runs["base"])["equal"]


def test_a_source_that_only_looks_new_is_the_same(ran: Ran) -> None:
    """Its content counts, not its time."""
    one = ran.folder / "pool" / "one.jsonl"
    with _instead(one, one.read_text()):
        assert ran.made_again(ran.runs["random"])["equal"]


def test_all_sources_gone(ran: Ran) -> None:
    with _instead(ran.folder / "pool" / "one.jsonl", None), _instead(ran.folder / "pool" / "two.jsonl", None):
        said = ran.refused(ran.runs["base"])
    assert "pool/*.jsonl" in said


def test_settings_in_force_do_not_count_those_of_the_run_do(ran: Ran) -> None:
    settings = ran.folder / "curation.yaml"
    with _instead(settings, settings.read_text().replace("k: 8", "k: 3")):
        assert ran.made_again(ran.runs["base"])["equal"]


@pytest.mark.parametrize(
    "pattern",
    ["selections/*/picks.parquet", "selections/*/subset.jsonl", "selections/*/manifest.json", "vectors/*/*.parquet"],
)
def test_what_is_damaged_or_gone_is_named(copied: Ran, pattern: str) -> None:
    with LineageStore(copied.root).reading() as connection:
        query = "SELECT folder FROM selections JOIN run_outputs USING (selection) WHERE run_id = ?"
        [(folder,)] = connection.execute(query, [copied.runs["base"]]).fetchall()
    [path] = copied.root.glob(pattern.replace("selections/*", folder))
    write_wrong(path)
    assert f"{path} is damaged" in copied.refused(copied.runs["base"])
    path.unlink()
    # What is gone is made again; nothing is put back into the storage.
    before = hashes(copied.root)
    found = copied.made_again(copied.runs["base"])
    asset = "embeddings" if pattern.startswith("vectors") else "selected_subset"
    assert found["equal"] and found["gone"] == {asset: 1}
    assert found["embedded_again"] == pattern.startswith("vectors")
    assert "picks.parquet" in found["files"]
    assert (
        f"Missing here, so compared by their recorded hashes alone: {asset} (1)" in copied.ask(copied.runs["base"]).out
    )
    assert hashes(copied.root) == before
    assert copied.made_again(copied.runs["random"])["equal"]


@pytest.mark.parametrize("pattern", ["density/*/density.parquet", "pool/*/samples.parquet", "novelty/*/*.parquet"])
def test_damage_of_any_output_is_named(copied: Ran, pattern: str) -> None:
    for path in copied.root.glob(pattern):
        write_wrong(path)
        assert f"{path} is damaged" in copied.refused(copied.runs["base"])


def test_a_run_whose_data_was_removed_is_rebuilt_from_its_sources(copied: Ran) -> None:
    """All of it: from the sources, the record, and the model."""
    with LineageStore(copied.root).removing([copied.runs["base"]]):
        for name in ("pool", "vectors", "density", "novelty", "selections", "reports"):
            shutil.rmtree(copied.root / name)
    done = called(copied.folder, "why", "numpy", "--run", copied.runs["base"])
    assert done.code == 2 and "was removed by novelsum gc" in done.err and "novelsum reproduce" in done.err
    found = copied.made_again(copied.runs["base"])
    assert found["equal"] and found["embedded_again"]
    assert {"raw_pool", "embeddings", "density", "selected_subset"} <= set(found["gone"])


def test_everything_that_is_wrong_is_said_at_once(copied: Ran) -> None:
    [vectors] = copied.root.glob("vectors/*/*.parquet")
    write_wrong(vectors)
    for path in copied.root.glob("selections/*/picks.parquet"):
        write_wrong(path)
    (copied.folder / "pool" / "one.jsonl").unlink()
    said = copied.refused(copied.runs["base"])
    assert said.count("is damaged") == 2 and "one.jsonl is missing" in said


def test_another_outcome_is_told(copied: Ran) -> None:
    """The record says that another subset was made: the exit code is 1, and what differs is named."""
    with LineageStore(copied.root).writing() as connection:
        query = "SELECT record FROM provenance WHERE run_id = ? AND asset = 'selected_subset'"
        [(text,)] = connection.execute(query, [copied.runs["random"]]).fetchall()
        record = json.loads(text)
        record["config"]["seed"] = 10
        record["versions"]["numpy"] = "1.0"
        record["versions"]["gone"] = "2.0"
        record["code_version"] = "0"
        connection.execute(
            "UPDATE provenance SET record = ? WHERE run_id = ? AND asset = 'selected_subset'",
            [json.dumps(record), copied.runs["random"]],
        )
    found = copied.made_again(copied.runs["random"], code=1)
    assert not found["equal"]
    assert found["files"]["picks.parquet"] is False and found["files"]["subset.jsonl"] is False
    keys = found["outputs"]
    assert keys["density"]["made"] == keys["density"]["recorded"]
    assert keys["selected_subset"]["made"] != keys["selected_subset"]["recorded"]
    assert any(line.startswith("numpy was 1.0, is ") for line in found["differences"])
    assert "gone was 2.0, is missing" in found["differences"]
    assert any(line.startswith("the code of selected_subset was 0, is ") for line in found["differences"])
    done = copied.ask(copied.runs["random"])
    assert done.code == 1
    assert "What was rebuilt differs: selected_subset, " in done.out and "Since then: numpy was 1.0" in done.out


def test_a_model_that_changed_writes_nothing(copied: Ran) -> None:
    """Its vectors would go into a folder of their own: the kept ones are used, from where they were recorded."""
    [folder] = (path for path in (copied.root / "vectors").iterdir() if path.is_dir())
    other = folder.with_name("0" * len(folder.name))
    folder.rename(other)
    with LineageStore(copied.root).writing() as connection:
        connection.execute("UPDATE provenance SET record = replace(record, ?, ?)", [folder.name, other.name])
    before = hashes(copied.root)
    assert copied.made_again(copied.runs["base"])["equal"]
    assert hashes(copied.root) == before


def test_a_run_of_an_earlier_version_has_no_records(copied: Ran) -> None:
    with LineageStore(copied.root).writing() as connection:
        connection.execute("DELETE FROM provenance WHERE run_id = ?", [copied.runs["base"]])
    said = copied.refused(copied.runs["base"])
    assert f"run {copied.runs['base'][:8]} has no record of raw_pool, embeddings, density, selected_subset" in said
    assert "earlier version" in said
    assert copied.made_again(copied.runs["random"])["equal"]


def test_a_lineage_from_before_there_were_records(copied: Ran) -> None:
    """Its database, of schema 2, has no such table; it is read all the same."""
    import duckdb

    with duckdb.connect(str(copied.root / "lineage.duckdb")) as connection:
        connection.execute("DROP TABLE provenance")
        connection.execute("UPDATE schema_version SET version = 2")
    said = copied.refused(copied.runs["base"])
    assert "has no record of raw_pool" in said


def test_records_survive_a_rebuilt_lineage(copied: Ran) -> None:
    assert LineageStore(copied.root).rebuild() == 3
    assert copied.made_again(copied.runs["novelselect"])["equal"]


def test_unknown_and_ambiguous_runs(ran: Ran) -> None:
    said = ran.refused("zzzz")
    assert "no run begins with zzzz" in said and ran.runs["random"] in said
    said = ran.refused("")
    assert "3 runs begin with" in said and all(run in said for run in ran.runs.values())


def test_before_any_run_it_is_said_what_to_do(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool" / "one.jsonl", short(3))
    write_settings(tmp_path)
    said = Ran(tmp_path, {}).refused()
    assert "no lineage yet" in said and "novelsum run" in said
    assert not (tmp_path / "curated" / "lineage.duckdb").exists()
