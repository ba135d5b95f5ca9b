"""Records of outputs: that they hold what they claim, and that every way in which one does not match is found."""

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from novelsum_dagster.artifacts import provenance
from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.provenance import (
    STEPS,
    StepFacts,
    damaged_files,
    flat,
    mismatches,
    read_record,
    record,
    require_matching,
    settings_of,
)
from novelsum_dagster.common import files
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash, sealed, unsealed
from novelsum_dagster.settings import Settings
from tests.curated import RUN, Curated, curate, short, write_wrong
from tests.pools import write_jsonl, write_settings

ASSETS = ("raw_pool", "embeddings", "density", "selected_subset")
ROOT = Path(__file__).resolve().parents[2]
# A name that is long, and has what paths, URLs, shells and JSON read as their own.
ODD = "ünïcode 'quoted\" $HOME #% @ \\ " + "x" * 120


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """A curation in a folder with an odd name, with an override of the launchpad."""
    folder = tmp_path_factory.mktemp("provenance") / ODD
    write_jsonl(folder / "pool" / "one.jsonl", short(14))
    write_jsonl(folder / "pool" / f"{ODD}.jsonl", short(10, start=14))
    # Shards of 8: several files of vectors.
    path = write_settings(folder, selection={"k": 6}, novelsum={"neighbors": 3}, embedding={"shard_size": 8})
    return curate(path, until="selected_subset", k=5, seed=7)


@pytest.fixture
def curated(original: Curated, tmp_path: Path) -> Curated:
    """A copy that a test may damage."""
    shutil.copytree(original.settings.base, tmp_path / "copy")
    moved = original.settings.model_copy(update={"base": tmp_path / "copy"})
    return Curated(moved, dict(original.made), dict(original.records))


def _found(curated: Curated, settings: Settings | None = None, **changed: Artifact) -> list[str]:
    """Return the lines of the one error that a step would end with; none where all matches."""
    try:
        require_matching(curated.root, settings or curated.settings, {**curated.made, **changed})
    except InputError as error:
        first, *lines = str(error).splitlines()
        assert first == "the inputs of this step do not match:"
        assert all(line.startswith("  ") for line in lines)
        return [line.strip() for line in lines]
    return []


def test_what_was_just_made_matches(original: Curated) -> None:
    assert _found(original) == []


def test_a_record_holds_what_it_claims(original: Curated) -> None:
    for asset in ASSETS:
        made = read_record(original.root, asset, original.made[asset].key)
        assert made == original.records[asset]
        assert (made.asset, made.output, made.run_id) == (asset, original.made[asset].key, RUN)
        assert timedelta(0) <= datetime.now(UTC) - made.made_at < timedelta(hours=1)
        assert made.code_version == STEPS[asset].code_version
        assert made.versions["numpy"] == version("numpy") and made.versions["python"] == platform.python_version()
        assert made.machine["cores"] == os.cpu_count() and int(made.machine["memory"]) > 2**28
        assert made.machine["platform"] and made.machine["processor"]
    assert original.record_of("density").name == f"{original.made['density'].key}.json"


def test_inputs_are_the_sources_and_then_the_keys(original: Curated) -> None:
    pool = original.settings.base / "pool"
    assert original.records["raw_pool"].inputs == {
        f"pool/{name}.jsonl": file_hash(pool / f"{name}.jsonl") for name in ("one", ODD)
    }
    keys = {asset: handle.key for asset, handle in original.made.items()}
    assert original.records["embeddings"].inputs == {"raw_pool": keys["raw_pool"]}
    assert original.records["selected_subset"].inputs == {name: keys[name] for name in ASSETS[:3]}


def test_every_file_of_an_output_is_in_its_record(original: Curated) -> None:
    files = {asset: made.files for asset, made in original.records.items()}
    for named in files.values():
        for name, stored in named.items():
            assert stored.sha256 == file_hash(original.root / name)
            assert stored.bytes == (original.root / name).stat().st_size
    folders = {"raw_pool": "pool/snapshot=*/**/*", "embeddings": "vectors/*/*", "density": "density/*/*"}
    folders["selected_subset"] = "selections/*/**/*"
    for asset, pattern in folders.items():
        there = {str(path.relative_to(original.root)) for path in original.root.glob(pattern) if path.is_file()}
        assert set(files[asset]) == there
    assert len([name for name in files["embeddings"] if name.endswith(".parquet")]) == 3
    assert original.made["density"].file in files["density"]
    assert any(name.endswith(".jsonl") and "/original/" in name for name in files["selected_subset"])


def test_settings_of_a_step_are_those_that_it_depends_on(original: Curated) -> None:
    settings = {asset: made.settings for asset, made in original.records.items()}
    assert settings["density"] == {
        "novelsum.neighbors": 3,
        "novelsum.neighbor_policy": "published",
        "novelsum.density_index": "auto",
        "novelsum.min_recall": 0.99,
        "novelsum.density_power": 0.5,
    }
    assert settings["embeddings"]["embedding.max_tokens"] == 256
    assert "embedding.batch_size" not in settings["embeddings"]
    assert settings["selected_subset"]["selection.k"] == 6  # Of the file; the launchpad's is in `config`.
    assert original.records["selected_subset"].config["k"] == 5
    known = set(flat(original.settings.model_dump(mode="json")))
    assert all(set(named) <= known for named in settings.values())


def test_every_step_names_settings_that_exist(original: Curated) -> None:
    known = flat(original.settings.model_dump(mode="json"))
    for asset, facts in STEPS.items():
        for name in facts.settings:
            assert any(key == name or key.startswith(f"{name}.") for key in known), f"{asset}: {name}"


def test_the_seed_is_the_one_that_was_drawn_with(original: Curated, tmp_path: Path) -> None:
    """The launchpad's, and for what measures the subset the subset's; else that of the settings."""
    assert original.records["selected_subset"].seed == 7
    assert original.records["density"].seed == 42
    later = record(original.root, original.settings, "novelsum_report", Artifact(key="r" * 32), original.made, RUN, {})
    assert later.seed == 7
    (original.root / "provenance" / "novelsum_report" / f"{'r' * 32}.json").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"novelsum": {"neighbors": 4}},
            {"density: novelsum.neighbors was 3, the settings say 4; materialise density"},
        ),
        (
            {"novelsum": {"density_power": 0.25}},
            {
                "density: novelsum.density_power was 0.5, the settings say 0.25; materialise density again",
                "selected_subset: novelsum.density_power was 0.5, the settings say 0.25; materialise selected_subset",
            },
        ),
        ({"selection": {"k": 7}}, {"selected_subset: selection.k was 6, the settings say 7; materialise"}),
        ({"selection": {"quotas": [{"column": "form", "caps": {"alpaca": 3}}]}}, {"selected_subset: selection.quotas"}),
        ({"embedding": {"max_tokens": 128}}, {"embeddings: embedding.max_tokens was 256, the settings say 128"}),
        ({"embedding": {"pooling": "mean"}}, {"embeddings: embedding.pooling was 'auto', the settings say 'mean'"}),
        (
            {"embedding": {"model": "other/model", "revision": "c" * 40}},
            {f"{asset}: embedding.{name}" for asset in ("raw_pool", "embeddings") for name in ("model", "revision")},
        ),
        ({"pool": {"max_characters": 100}}, {"raw_pool: pool.max_characters was 200000, the settings say 100"}),
        ({"pool": {"sources": [{"path": "pool/one.jsonl"}]}}, {"raw_pool: pool.sources was [{'path': 'pool/*'"}),
        ({"pool": {"near_duplicates": {"drop": True}}}, {"raw_pool: pool.near_duplicates.drop was False"}),
    ],
)
def test_settings_that_changed_are_found(original: Curated, change: dict[str, Any], named: set[str]) -> None:
    found = _found(original, original.with_settings(**change))
    assert len(found) == len(named)
    for start in named:
        assert [line for line in found if line.startswith(start)], (start, found)
    assert all(line.endswith(f"; materialise {line.partition(':')[0]} again") for line in found)


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cpu"},
        {"selection": {"verify": 50}},
        {"pool": {"max_reject_fraction": 0.5}},
        {"embedding": {"batch_size": 4, "shard_size": 100}},
        {"checks": {"max_source_share": 0.5}},
        {"card": {"title": "New", "signed_off_by": "Ada"}},
        {"measures": {"ridge": 2.0}},
        {"study": {"held_out": 7}},
        {"openlineage": {"file": "events.jsonl"}},
        {"explore_url": "http://localhost:9000"},
    ],
)
def test_settings_that_change_nothing_here_are_no_mismatch(original: Curated, change: dict[str, Any]) -> None:
    assert _found(original, original.with_settings(**change)) == []


def test_an_override_of_the_launchpad_is_no_mismatch(original: Curated) -> None:
    assert original.made["selected_subset"].settings.k == 5
    assert original.made["selected_subset"].settings.seed == 7
    assert _found(original) == []


def test_an_input_that_is_another_now_is_found(original: Curated) -> None:
    """Of each output that was made from it, by name, and with what to do."""
    other = read_record(original.root, "density", original.made["density"].key)
    new = original.made["density"].model_copy(update={"key": "f" * 32})
    # The other density has a record of its own, so that it alone is no mismatch.
    path = original.root / "provenance" / "density" / f"{'f' * 32}.json"
    path.write_text(other.model_copy(update={"output": "f" * 32}).model_dump_json())
    try:
        [line] = _found(original, density=new)
    finally:
        path.unlink()
    key = original.made["density"].key[:8]
    assert line == (
        f"selected_subset: was built from density {key}, which is ffffffff now; materialise selected_subset again"
    )


def test_other_code_is_found(original: Curated, monkeypatch: pytest.MonkeyPatch) -> None:
    then = STEPS["density"]
    monkeypatch.setitem(provenance.STEPS, "density", StepFacts("99", then.settings))
    [line] = _found(original)
    assert line == (
        f"density: was built by version {then.code_version} of its code, which is 99 now; materialise density again"
    )


def test_a_step_that_begins_to_depend_on_a_setting_is_a_mismatch(
    original: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = STEPS["density"]
    monkeypatch.setitem(provenance.STEPS, "density", StepFacts(then.code_version, (*then.settings, "measures.ridge")))
    [line] = _found(original)
    assert line.startswith("density: measures.ridge was None, the settings say 1.0")


def test_a_missing_record_is_found(curated: Curated) -> None:
    curated.record_of("embeddings").unlink()
    [line] = _found(curated)
    assert line.startswith(f"embeddings {curated.made['embeddings'].key}: has no provenance record")
    assert line.endswith("materialise embeddings again")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"asset": "density"}', b'{"asset": "density", "new": 1}']
)
def test_a_damaged_record_is_found(curated: Curated, damage: bytes) -> None:
    curated.record_of("density").write_bytes(damage)
    [line] = _found(curated)
    assert line.startswith(f"{curated.record_of('density')}: damaged (")
    assert line.endswith("; materialise density again")


def test_a_record_cut_off_or_of_another_output_is_found(curated: Curated) -> None:
    path = curated.record_of("density")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert [line for line in _found(curated) if "damaged" in line]
    other = unsealed(json.loads(text)) | {"output": "0" * 32}
    path.write_text(json.dumps(sealed(other)))
    [line] = _found(curated)
    assert f"damaged (it is the record of density {'0' * 32})" in line
    path.unlink()
    path.mkdir()
    [line] = _found(curated)
    assert line.startswith(f"{path}: damaged") and "materialise density again" in line


@pytest.mark.parametrize("asset", ASSETS)
def test_every_file_that_is_gone_or_damaged_is_found(curated: Curated, asset: str) -> None:
    assert len(curated.files_of(asset)) >= 1
    for path in curated.files_of(asset):
        before = write_wrong(path)
        [line] = _found(curated)
        assert line == (
            f"{asset}: {path} is damaged (its SHA-256 differs from the record); delete it, and materialise {asset}"
            " again"
        )
        path.unlink()
        [line] = _found(curated)
        assert line == f"{asset}: {path} is missing; materialise {asset} again"
        path.mkdir()
        assert _found(curated) == [line]  # A folder in its place is no file.
        path.rmdir()
        path.write_bytes(before)
        assert _found(curated) == []


def test_a_file_that_grew_or_was_emptied_is_found(curated: Curated) -> None:
    path = curated.root / curated.made["density"].file
    whole = path.read_bytes()
    for wrong in (b"", whole + b"\0", whole[:-1]):
        path.write_bytes(wrong)
        [line] = _found(curated)
        assert "is damaged" in line


def test_a_file_beside_an_output_is_no_damage(curated: Curated) -> None:
    """Vectors of other pools are in the same folder, and temporary files come and go."""
    folder = curated.root / curated.made["embeddings"].folder
    (folder / "ffff.parquet").write_bytes(b"of another pool")
    (folder / ".half.tmp").write_bytes(b"half")
    assert _found(curated) == []
    assert f"{curated.made['embeddings'].folder}/.half.tmp" not in curated.made["embeddings"].stored_files(curated.root)


def test_everything_that_is_wrong_is_in_one_error(curated: Curated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(provenance.STEPS, "embeddings", StepFacts("99", STEPS["embeddings"].settings))
    first, second, *_ = curated.files_of("raw_pool")
    write_wrong(first)
    second.unlink()
    curated.record_of("density").unlink()
    settings = curated.with_settings(selection={"k": 3, "seed": 5}, pool={"max_characters": 9})
    other = curated.made["embeddings"].model_copy(update={"key": "e" * 32})
    found = _found(curated, settings, embeddings=other)
    starts = [
        "raw_pool: pool.max_characters was",
        f"raw_pool: {first} is damaged",
        f"raw_pool: {second} is missing",
        f"embeddings {'e' * 32}: has no provenance record",
        f"density {curated.made['density'].key}: has no provenance record",
        "selected_subset: selection.k was 6",
        "selected_subset: selection.seed was 42",
        "selected_subset: was built from embeddings",
    ]
    assert len(found) == len(starts)
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start)
    # With the record of the embeddings in place, the version of their code is found, too.
    assert any(line.startswith("embeddings: was built by version") for line in _found(curated))


def test_a_partition_is_told_by_its_name(curated: Curated) -> None:
    """A set of the study: the record is the asset's, the words name the set."""
    study = Artifact(key="a" * 32)
    used = {"raw_pool": curated.made["raw_pool"]}
    record(curated.root, curated.settings, "study_set", study, used, RUN, {})
    assert mismatches(curated.root, curated.settings, "study_set[random-8-s1]", study, used) == []
    # Another setting of the study changes no set.
    assert mismatches(curated.root, curated.with_settings(study={"held_out": 7}), "study_set[x]", study, used) == []
    changed = curated.with_settings(novelsum={"neighbors": 7})
    [line] = mismatches(curated.root, changed, "study_set[random-8-s1]", study, used)
    was = curated.settings.novelsum.neighbors
    expected = f"study_set[random-8-s1]: novelsum.neighbors was {was}, the settings say 7; materialise study_set again"
    assert line == expected


def test_damage_does_not_become_the_record(curated: Curated) -> None:
    """A step that is run again leaves a folder's files as they are; it must not vouch for one that is damaged."""
    path = next(path for path in curated.files_of("selected_subset") if path.name == "picks.parquet")
    kept = curated.record_of("selected_subset").read_bytes()
    whole = write_wrong(path)
    with pytest.raises(InputError, match="is damaged") as error:
        curated.keep("selected_subset", curated.made["selected_subset"], *ASSETS[:3])
    assert str(path) in str(error.value) and "delete it, and materialise selected_subset again" in str(error.value)
    assert curated.record_of("selected_subset").read_bytes() == kept
    path.write_bytes(whole)
    curated.keep("selected_subset", curated.made["selected_subset"], *ASSETS[:3])
    assert _found(curated) == []


def test_files_that_may_differ_from_run_to_run_may_be_made_again(curated: Curated) -> None:
    """Where a selection was broken off and went on, their last digits are others, and that is no damage."""
    path = next(path for path in curated.files_of("selected_subset") if path.name == "remaining.parquet")
    write_wrong(path)
    assert len(_found(curated)) == 1  # Until the step has been run again.
    curated.keep("selected_subset", curated.made["selected_subset"], *ASSETS[:3])
    assert _found(curated) == []


def test_the_hash_of_a_file_is_kept_only_while_the_file_is_the_same(curated: Curated) -> None:
    """Changed in place with size and time as before, or replaced by another file: both are read again."""
    path = curated.root / curated.made["density"].file
    made = curated.records["density"]
    assert damaged_files(curated.root, made) == []
    status = path.stat()
    whole = write_wrong(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == status.st_size
    assert len(damaged_files(curated.root, made)) == 1
    path.write_bytes(whole)
    assert damaged_files(curated.root, made) == []
    other = path.with_name("other")
    other.write_bytes(whole[:-1] + b"?")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert len(damaged_files(curated.root, made)) == 1


def test_a_file_that_did_not_change_is_read_once(curated: Curated) -> None:
    require_matching(curated.root, curated.settings, curated.made)
    before = files._hash_of.cache_info()
    require_matching(curated.root, curated.settings, curated.made)
    after = files._hash_of.cache_info()
    assert after.misses == before.misses
    assert after.hits - before.hits == sum(len(made.files) for made in curated.records.values())


def test_records_hold_in_another_process_and_at_another_place(curated: Curated) -> None:
    """Nothing in a record names the folder, and nothing that was remembered is needed."""
    assert not any(str(curated.settings.base) in path.read_text() for path in curated.root.glob("provenance/*/*.json"))
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.artifacts.provenance import *\n"
        "root = Path(sys.argv[1])\n"
        "found = [read_record(root, path.parent.name, path.stem) for path in root.glob('provenance/*/*.json')]\n"
        "print(len(found), [line for made in found for line in damaged_files(root, made)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(curated.root)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "4 []\n"


def test_settings_survive_json_as_they_are(original: Curated) -> None:
    """A record read back compares equal to settings in force, whatever their types."""
    odd = original.with_settings(
        novelsum={"density_power": 1, "proximity_power": 1e-9},
        selection={"must_include": ["a" * 32], "quotas": [{"column": "source", "caps": {"é|\n": 3}}]},
        pool={"sources": [{"path": ODD, "licence": "<MIT>"}]},
    )
    for asset in STEPS:
        now = settings_of(asset, odd)
        assert json.loads(json.dumps(now)) == now
