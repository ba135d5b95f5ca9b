"""gc on a storage folder that three real runs wrote: what is kept works, what is not is gone, a kill does no harm."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from novelsum_dagster.artifacts.layout import OUTPUTS
from novelsum_dagster.artifacts.provenance import Provenance, damaged_files
from novelsum_dagster.audit.explain import explain
from novelsum_dagster.audit.gc import Plan, collect, plan
from novelsum_dagster.audit.reproduce import records_of, reproduce
from novelsum_dagster.cli.main import app
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.common.liveness import hold
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.lineage.models import build, models
from novelsum_dagster.lineage.query import all_rows
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import VIEWS, LineageStore
from novelsum_dagster.settings import Retention, load_settings
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.pools import alpaca, write_jsonl, write_settings

ROOT = Path(__file__).resolve().parents[2]
ONE = Retention(runs=1)
KEY = "0123456789abcdef" * 2
KILLED = """
import os, signal, sys
from pathlib import Path
from novelsum_dagster.audit.gc import collect
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.settings import Retention
left = int(sys.argv[2])
seen = 0
def hook(event, arguments):
    global seen
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        seen += 1
        if seen == left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
collect(LineageStore(Path(sys.argv[1])), Retention(runs=1))
print(seen)
"""


@dataclass
class Storage:
    """A copy of what the three runs wrote."""

    settings_file: Path
    runs: tuple[str, ...]
    """In order."""

    @property
    def root(self) -> Path:
        return load_settings(self.settings_file).storage_path

    @property
    def store(self) -> LineageStore:
        return LineageStore(self.root)

    def names(self) -> set[str]:
        """Return the data that is there: everything but databases, locks and Dagster's history."""
        return {name for name in hashes(self.root) if "/" in name and not name.endswith((".lock", ".tmp"))}


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Run 2 has other samples than run 1; run 3 has some more, and extends the subset of run 2."""
    folder = tmp_path_factory.mktemp("housekeeping")
    pools = [alpaca(50), alpaca(60, start=45), alpaca(70, start=45)]
    selections: list[dict[str, Any]] = [{"k": 20}, {"k": 10}, {"k": 10, "extend_by": 5}]
    runs: list[str] = []
    with in_memory() as instance:
        for pool, selection in zip(pools, selections, strict=True):
            write_jsonl(folder / "pool" / "one.jsonl", pool)
            file = write_settings(folder, selection=selection, embedding={"shard_size": 4})
            # The last run builds the audit's models over all runs.
            result = Curation(folder, file, instance).run(models=len(runs) == len(pools) - 1)
            assert result.success
            runs.append(result.run_id)
    yield Storage(file, tuple(runs))


@pytest.fixture
def storage(three_runs: Storage, tmp_path: Path) -> Storage:
    folder = tmp_path / "copy"
    shutil.copytree(three_runs.settings_file.parent, folder)
    copied = Storage(folder / three_runs.settings_file.name, three_runs.runs)
    with copied.store.reading():
        return copied  # With views of its own files.


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder; of a link where it leads."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {
        path.relative_to(folder).as_posix(): f"-> {path.readlink()}" if path.is_symlink() else file_hash(path)
        for path in paths
    }


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    for inner in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(inner, (then, then))


def write(path: Path, hours: float = 0, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    age(path, hours)
    return path


def ids_in(path: Path) -> set[str]:
    return set(pq.read_table(path, columns=["id"], partitioning=None)["id"].to_pylist())


def require_sound(storage: Storage, run_id: str) -> None:
    """Require that a run has everything: files as recorded, the answers to `why`, handles and records."""
    root = storage.root
    with storage.store.reading() as connection:
        for view in (*VIEWS, *(model.name for model in models())):
            connection.execute(f"SELECT count(*) FROM {view}").fetchone()
        run = find_run(connection, run_id)
        records = records_of(connection, run)
        assert len(records) == 7
        for made in records.values():
            assert damaged_files(root, made) == []
        picked = connection.execute("SELECT id FROM picks WHERE selection = ?", [run.selection]).fetchall()
        assert explain(connection, root, run, picked[-1][0]).outcome == "chosen"
        left = connection.execute(
            "SELECT id FROM samples WHERE snapshot = ? AND id NOT IN (SELECT id FROM picks WHERE selection = ?)",
            [run.snapshot, run.selection],
        ).fetchall()
        assert explain(connection, root, run, left[0][0]).outcome == "left out"
    for path in root.glob("provenance/*/*.json"):
        assert damaged_files(root, Provenance.model_validate_json(path.read_bytes())) == []
    for path in root.glob("assets/*.json"):
        handle = json.loads(path.read_bytes())
        place = handle.get("folder") or handle.get("file")
        assert place is None or (root / place).exists()


def selection_of(storage: Storage, run_id: str) -> str:
    rows = storage.store.tables(["run_outputs"])["run_outputs"]
    return str(next(row["selection"] for row in rows if row["run_id"] == run_id))


def test_without_retention_every_run_keeps_its_data(storage: Storage) -> None:
    before = hashes(storage.root)
    found = collect(storage.store, Retention())
    assert (found.items, found.runs, found.kept) == ((), (), storage.runs[::-1])
    assert hashes(storage.root) == before
    for run_id in storage.runs:
        require_sound(storage, run_id)


def test_one_run_is_kept_whole_and_the_others_are_gone(storage: Storage) -> None:
    root, (first, second, third) = storage.root, storage.runs
    extended = selection_of(storage, second)
    found = collect(storage.store, ONE)
    assert (found.runs, found.kept) == ((first, second), (third,))
    require_sound(storage, third)
    for folder, name in OUTPUTS.items():
        there = len(list(root.glob(f"{folder}/{name}=*")))
        assert there == (2 if folder == "selections" else 1) or (folder == "changes" and there == 0), folder
    assert (root / f"selections/selection={extended}").is_dir()
    assert not list(root.rglob("*.removing"))
    assert {path.stem for path in root.glob("landing/*")} <= {path.stem for path in root.glob("provenance/raw_pool/*")}
    assert len(list(root.glob("provenance/raw_pool/*"))) == len(list(root.glob("checks/raw_pool/*"))) == 1
    # All that is left is needed: nothing more is found, and a rebuilt lineage knows the same.
    assert collect(storage.store, ONE).items == ()
    storage.store.rebuild()
    build(storage.store)
    require_sound(storage, third)
    assert plan(storage.store, ONE) == Plan((), (), (third,), ())


def test_shards_stay_where_any_sample_is_needed(storage: Storage) -> None:
    root, (folder,) = storage.root, storage.root.glob("vectors/*")
    before = {path.name: ids_in(path) for path in folder.glob("*.parquet")}
    collect(storage.store, ONE)
    after = {path.name for path in folder.glob("*.parquet")}
    (pool,) = root.glob("pool/*/samples.parquet")
    needed = ids_in(pool)
    assert after == {name for name, ids in before.items() if ids & needed}
    assert 0 < len(before) - len(after) < len(before)
    assert any(before[name] - needed for name in after)


def test_the_kept_run_can_be_reproduced(storage: Storage) -> None:
    collect(storage.store, ONE)
    settings = load_settings(storage.settings_file)
    with storage.store.reading() as connection:
        run = find_run(connection, storage.runs[-1])
        assert run.options["extends"]
        records = records_of(connection, run)
    assert reproduce(records, run, storage.root, settings.base, LogReporter(lambda _: None)).is_equal


def test_a_run_without_data_is_told_in_plain_words(storage: Storage) -> None:
    collect(storage.store, ONE)
    told = f"the data of run {storage.runs[0]} was removed by novelsum gc on 20"
    for _ in range(2):
        with storage.store.reading() as connection:
            with pytest.raises(InputError, match=told):
                find_run(connection, storage.runs[0][:8])
            assert find_run(connection, None).run_id == storage.runs[2]
        storage.store.rebuild()
    result = CliRunner().invoke(app, ["why", "x", "--run", storage.runs[0], "-s", str(storage.settings_file)])
    assert told in str(result.exception)


def test_marts_are_built_and_speak_of_runs_with_data(storage: Storage) -> None:
    collect(storage.store, ONE)
    for rebuilt in (False, True):
        if rebuilt:
            build(storage.store)
        with storage.store.reading() as connection:
            for table, runs in (
                ("run_costs", set(storage.runs)),
                ("measure_drift", set(storage.runs)),
                ("selection_audit", {storage.runs[2]}),
                ("selection_diff", set()),  # The run before has no data to compare with.
            ):
                if (table, rebuilt) == ("selection_diff", False):
                    continue
                rows = all_rows(connection, f"SELECT DISTINCT run_id FROM {table}")
                assert {row["run_id"] for row in rows} == runs, table


def test_days_keep_runs_too_and_the_newest_always_stays(storage: Storage) -> None:
    year = datetime.now(UTC) + timedelta(days=365)
    assert plan(storage.store, Retention(days=1)).runs == ()
    assert plan(storage.store, Retention(days=1), year).kept == storage.runs[:1:-1]
    assert plan(storage.store, Retention(runs=2, days=1), year).kept == storage.runs[:0:-1]
    assert plan(storage.store, Retention(runs=1, days=1)).kept == storage.runs[::-1]


def test_a_dry_run_changes_nothing(storage: Storage) -> None:
    storage.settings_file.write_text(storage.settings_file.read_text() + "retention: {runs: 1}\n")
    before = hashes(storage.root)
    arguments = ["gc", "--dry-run", "-s", str(storage.settings_file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("selections", "total", storage.runs[0], "Would be removed"))
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert hashes(storage.root) == before
    done = json.loads(CliRunner().invoke(app, ["gc", "--json", "-s", str(storage.settings_file)]).stdout)
    assert done == {**shown, "dry_run": False}
    gone = {name for name in before if not (storage.root / name).exists()}
    assert {name for name in before if any(f"{name}/".startswith(f"{path}/") for path in shown["paths"])} == gone
    sizes = shown["bytes"]
    assert sizes == sum(kind["bytes"] for kind in shown["kinds"]) > 0


def test_what_handles_name_stays_though_no_run_finished_with_it(storage: Storage) -> None:
    collect(storage.store, ONE)
    handle = storage.root / "assets" / "data_card.json"
    write(storage.root / f"cards/card={KEY}/README.md")
    write(handle, text=json.dumps({"key": KEY, "folder": f"cards/card={KEY}", "digest": "d"}))
    partition = KEY[::-1]
    write(storage.root / f"changes/changes={partition}/changes.parquet")
    write(storage.root / "assets/changes/one.json", text=json.dumps({"key": partition}))
    assert collect(storage.store, ONE).items == ()
    handle.unlink()
    (storage.root / "assets/changes/one.json").unlink()
    assert [item.path for item in collect(storage.store, ONE).items] == [
        f"cards/card={KEY}", f"changes/changes={partition}",
    ]  # fmt: skip


def test_vectors_that_the_newest_are_transformed_from_stay(storage: Storage) -> None:
    collect(storage.store, ONE)
    root, handle = storage.root, storage.root / "assets" / "embeddings.json"
    made = json.loads(handle.read_text())
    shutil.copytree(root / made["folder"], root / "vectors" / "base")
    age(root / "vectors" / "base", 48)
    write(handle, text=json.dumps({**made, "transformed_from": "vectors/base"}))
    assert collect(storage.store, ONE).items == ()
    write(handle, text=json.dumps(made))
    assert [item.path for item in collect(storage.store, ONE).items] == ["vectors/base"]


def test_what_nothing_names_goes_and_what_is_unknown_stays(storage: Storage) -> None:
    root = storage.root
    going = [f"checks/density/{KEY}.jsonl"]
    for folder, name in (("selections", "selection"), ("pool", "snapshot"), ("novelty", "sample_novelty")):
        one = next(root.glob(f"{folder}/{name}=*"))
        going.append(f"{folder}/{name}={KEY}")
        shutil.copytree(one, root / going[-1])
    # Of an earlier layout: one that nothing names, and one beside that of the present layout.
    for key in (KEY, one.name.partition("=")[2]):
        going.append(f"novelty/novelty={key}")
        shutil.copytree(one, root / going[-1])
    old = ["vectors/another-model/model.json", f"checkpoints/{KEY}.parquet"]
    staying = [
        f"study/set={KEY}/set.parquet", "study/.building-1/half", "pool/rejects.parquet", "pool/mine/notes.txt",
        "notes/a.txt", "vectors/unknown/notes.txt", f"vectors/young/{KEY}.parquet", "vectors/young/model.json",
        f"checkpoints/{KEY[::-1]}.parquet", f"checks/study_set/{KEY}.jsonl", f"dagster/{KEY}.tmp",
    ]  # fmt: skip
    for name in (going[0], *staying):
        write(root / name)
    for name in old:
        write(root / name, hours=1000)
    age(root / "vectors" / "another-model", 1000)
    collect(storage.store, Retention())
    assert not [name for name in (*going, *old) if (root / name).exists()]
    assert not [name for name in staying if not (root / name).exists()]
    for run_id in storage.runs:
        require_sound(storage, run_id)


def test_novelties_of_an_earlier_layout_stay_where_a_kept_run_has_no_others(storage: Storage) -> None:
    for path in sorted(storage.root.glob("novelty/sample_novelty=*")):
        path.rename(path.with_name(path.name.replace("sample_novelty", "novelty")))
    assert collect(storage.store, Retention()).items == ()


def test_leftovers_go_when_they_are_old(storage: Storage) -> None:
    root = storage.root
    names = ["selections/.building-abc/picks.parquet", "assets/.density.json.x1.tmp", ".lineage.duckdb.x2.tmp",
             "vectors/another/.a.parquet.x3.tmp", ".lineage.duckdb.x2.tmp.wal"]  # fmt: skip
    old = [write(root / name, hours=1.1) for name in names]
    age(root / "selections/.building-abc", 1.1)
    young = [write(root / name.replace("x", "y").replace("abc", "def"), hours=0.9) for name in names]
    # A folder is as old as the newest file in it.
    busy = write(root / "reports/.building-ghi/map.png")
    age(busy.parent, 5)
    os.utime(busy)
    os.utime(busy.parent, (1, 1))
    killed_gc = write(root / f"reports/.report={KEY}.0badcafe.removing/map.png")
    found = collect(storage.store, Retention())
    assert {item.kind for item in found.items} == {"leftovers"}
    assert len(found.items) == len(names) + 1
    assert not [path for path in (*old, killed_gc) if path.exists()]
    assert not [path for path in (*young, busy) if not path.exists()]


def test_nothing_is_removed_while_a_run_is_live(storage: Storage) -> None:
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.common.liveness import hold\n"
        "hold(Path(sys.argv[1]), 'run-1'); print('held', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(storage.root)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        before = hashes(storage.root)
        with pytest.raises(InputError, match="run run-1 is live"):
            collect(storage.store, ONE)
        assert plan(storage.store, ONE).live == ("run-1",)
        assert hashes(storage.root) == before
    finally:
        process.kill()
        process.wait()
    assert collect(storage.store, ONE).runs == storage.runs[:2]
    assert (storage.root / "runs/run-1.lock").exists(), "whoever closes dead runs has yet to see it"


def test_a_run_in_this_process_is_live_too(storage: Storage) -> None:
    hold(storage.root, "run-2")
    with pytest.raises(InputError, match="run run-2 is live"):
        collect(storage.store, ONE)


def test_no_link_leads_out_of_the_storage(storage: Storage, tmp_path: Path) -> None:
    root, outside = storage.root, tmp_path / "outside"
    for name in ("a", f"selection={KEY}/picks.parquet", f"{KEY}.json", ".x.tmp", ".building-1/x", ".a.removing"):
        write(outside / name, hours=1000)
    before = hashes(outside)
    (doomed,) = root.glob(f"selections/selection={selection_of(storage, storage.runs[0])}")
    (doomed / "link").symlink_to(outside)
    (root / f"selections/selection={KEY}").symlink_to(outside)
    (root / f"provenance/density/{KEY}.json").symlink_to(outside / "a")
    (root / "provenance/linked").symlink_to(outside)
    (root / "pool/.building-9").symlink_to(outside)
    (root / "pool/.b.removing").symlink_to(outside)
    (root / "vectors/linked").symlink_to(outside)
    shutil.rmtree(root / "checkpoints", ignore_errors=True)
    for name in ("checkpoints", "cards", "changes"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).symlink_to(outside)
    collect(storage.store, ONE)
    assert hashes(outside) == before
    assert not doomed.exists()
    assert (root / f"selections/selection={KEY}").is_symlink()


def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from novelsum_dagster.audit import gc as housekeeping

    outside, hide = tmp_path / "outside", housekeeping._hide
    shutil.copytree(storage.root / "selections", outside)
    before = hashes(outside)

    def swap(root: Path, path: str) -> None:
        if path.startswith("selections/") and not (root / "selections").is_symlink():
            (root / "selections").rename(root / "moved")
            (root / "selections").symlink_to(outside)
        hide(root, path)

    monkeypatch.setattr(housekeeping, "_hide", swap)
    with pytest.raises(InputError, match="selections"):
        collect(storage.store, ONE)
    assert hashes(outside) == before


def test_what_says_what_is_in_use_is_not_guessed(storage: Storage) -> None:
    root = storage.root
    before = storage.names()
    for path in (root / "assets/raw_pool.json", next(root.glob("provenance/density/*.json"))):
        kept = path.read_bytes()
        path.write_bytes(b"{")
        with pytest.raises(InputError, match="nothing was removed"):
            collect(storage.store, Retention())
        path.write_bytes(kept)
    # Without its database, a lineage is rebuilt from the run files; without these, too, nothing is known.
    (root / "runs").rename(root / "away")
    (root / "lineage.duckdb").unlink()
    with pytest.raises(InputError, match="no lineage yet"):
        collect(storage.store, ONE)
    (root / "away").rename(root / "runs")
    damaged = root / "runs" / f"{storage.runs[0]}.json"
    kept = damaged.read_bytes()
    damaged.write_bytes(kept[:-9])
    with pytest.raises(InputError, match="damaged"):
        collect(storage.store, ONE)
    damaged.write_bytes(kept)
    assert collect(storage.store, Retention()).items == ()
    assert storage.names() == before
    assert collect(storage.store, ONE).runs == storage.runs[:2]


@pytest.mark.slow
def test_a_kill_at_any_moment_does_no_harm_and_the_next_gc_finishes(storage: Storage, tmp_path: Path) -> None:
    def gc(root: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(root), str(kill_at)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    def copy(name: str) -> Storage:
        shutil.copytree(storage.settings_file.parent, tmp_path / name)
        return Storage(tmp_path / name / storage.settings_file.name, storage.runs)

    reference = copy("reference")
    whole = gc(reference.root, 0)
    assert whole.returncode == 0, whole.stderr
    total = int(whole.stdout)
    moments = sorted({1, 2, 4, 6, total, *random.Random(7).sample(range(1, total), 6)})
    for moment in moments:
        killed = copy(f"killed-{moment}")
        assert gc(killed.root, moment).returncode == -signal.SIGKILL
        require_sound(killed, storage.runs[2])
        collect(killed.store, ONE, leftover_age=timedelta(0))
        require_sound(killed, storage.runs[2])
        assert killed.names() == reference.names(), moment
        with killed.store.reading() as connection, pytest.raises(InputError, match="removed by novelsum gc"):
            find_run(connection, storage.runs[0])
        shutil.rmtree(killed.root)
