"""Deliberate changes of a storage folder, one at a time: each is noticed, by `novelsum verify` and by what reads it.

The table of docs/audit.md is `CASES`: `python -m tests.integration.test_tampering` prints it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.files import SEAL, sealed, unsealed, write_json, write_table
from novelsum_dagster.lineage.models import build
from novelsum_dagster.lineage.store import LineageStore
from tests.curated import hashes, short, write_wrong
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.machines import Done, called
from tests.pools import write_jsonl, write_settings

pytestmark = pytest.mark.slow
DOCS = Path(__file__).resolve().parents[2] / "docs" / "audit.md"


@dataclass
class Ran:
    """Two runs over one storage folder: of 8 picks, then of 9."""

    folder: Path
    first: str
    second: str

    @property
    def root(self) -> Path:
        return self.folder / "curated"

    @property
    def database(self) -> Path:
        return self.root / "lineage.duckdb"

    def ask(self, *arguments: str) -> Done:
        return called(self.folder, *arguments)

    def verified(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.ask("verify", *arguments, "--json")
        assert done.code == code, done.err + done.out
        answer: dict[str, Any] = json.loads(done.out)
        assert answer["passed"] == (code == 0)
        return answer

    def run_file(self, run: str | None = None) -> Path:
        return self.root / "runs" / f"{run or self.second}.json"

    def rows(self, run: str | None = None) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of the second run's file."""
        rows: dict[str, list[dict[str, Any]]] = unsealed(json.loads(self.run_file(run).read_bytes()))
        return rows

    def output(self, asset: str, run: str | None = None) -> str:
        """Return the key of an output of a run."""
        return next(str(row["output"]) for row in self.rows(run)["provenance"] if row["asset"] == asset)

    def files(self, asset: str, run: str | None = None) -> dict[str, Path]:
        """Return the files of an output of a run, by name."""
        row = next(row for row in self.rows(run)["provenance"] if row["asset"] == asset)
        return {Path(name).name: self.root / name for name in json.loads(row["record"])["files"]}

    def sample(self, picked: bool) -> str:
        """Return a sample that the second run picked last, or one that it left out."""
        ids = pq.read_table(self.files("selected_subset")["picks.parquet"], partitioning=None)["id"].to_pylist()
        if picked:
            return str(ids[-1])
        samples = self.files("distinct_pool")["samples.parquet"]
        return str(next(id_ for id_ in pq.read_table(samples, partitioning=None)["id"].to_pylist() if id_ not in ids))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return curated_twice(tmp_path_factory.mktemp("tampering"))


def curated_twice(folder: Path) -> Ran:
    """Curate twice, with what the tables are made of: duplicates, rejects and near-duplicates."""
    near = " ".join(f"word{number}" for number in range(60))
    repeats = [{"instruction": f"Say this, {name}.", "input": "", "output": near} for name in ("Ann", "Bob", "Cid")]
    write_jsonl(folder / "pool" / "one.jsonl", [*short(22), short(3)[2], *repeats, {"instruction": 5}])
    pool = {"sources": [{"path": "pool/*.jsonl"}], "max_reject_fraction": 0.5}
    done = []
    with in_memory() as instance:
        for k in (8, 9):
            file = write_settings(folder, pool=pool, selection={"k": k})
            result = Curation(folder, file, instance).run(models=False)
            assert result.success
            done.append(result.run_id)
    made = Ran(folder, *done)
    build(LineageStore(made.root))
    return made


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Ran:
    return copy_of(ran, tmp_path)


def copy_of(ran: Ran, folder: Path) -> Ran:
    """Return a copy that a test may change."""
    shutil.copytree(ran.folder, folder / "copy", ignore=shutil.ignore_patterns("dagster"))
    copy = Ran(folder / "copy", ran.first, ran.second)
    with LineageStore(copy.root).reading():
        pass  # The views of a moved storage folder are brought up to date once.
    return copy


def _value(asset: str, file: str, column: str) -> Callable[[Ran], None]:
    """Return a change of the last value of a column, in a file that is whole otherwise."""

    def change(ran: Ran) -> None:
        path = ran.files(asset)[file]
        table = pq.read_table(path, partitioning=None)
        values = table[column].to_pylist()
        at = max(row for row, value in enumerate(values) if value is not None)
        values[at] = _other(values[at])
        column_at = table.column_names.index(column)
        write_table(table.set_column(column_at, column, pa.array(values, table.schema.field(column).type)), path)

    return change


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.replace(b"a", b"b", 1)
    if isinstance(value, list):
        return [value[0] + 0.25, *value[1:]]
    return f"{value}!" if isinstance(value, str) else value + 1


def _bit(asset: str, file: str) -> Callable[[Ran], None]:
    return lambda ran: _ignored(write_wrong(ran.files(asset)[file], at=300))


def _ignored(_: object) -> None:
    """Return nothing."""


def _sql(query: str, *assets: str) -> Callable[[Ran], None]:
    """Return a statement that another program runs on the database, with the keys of outputs of the second run."""

    def change(ran: Ran) -> None:
        with duckdb.connect(str(ran.database)) as connection:
            connection.execute(query, [ran.output(asset) for asset in assets])

    return change


def _in_run_file(change_rows: Callable[[dict[str, list[dict[str, Any]]]], object], seal: bool) -> Callable[[Ran], None]:
    """Return a change of the rows of the second run's file, with its SHA-256 as it was or made to fit."""

    def change(ran: Ran) -> None:
        before = json.loads(ran.run_file().read_bytes())
        rows = unsealed(before)
        change_rows(rows)
        write_json(sealed(rows) if seal else {**rows, SEAL: before[SEAL]}, ran.run_file())

    return change


def _settings(rows: dict[str, list[dict[str, Any]]]) -> None:
    rows["runs"][0]["settings"] = rows["runs"][0]["settings"].replace('"k":9', '"k":8')


def _in_json(place: Callable[[Ran], Path], old: str, new: str) -> Callable[[Ran], None]:
    def change(ran: Ran) -> None:
        path = place(ran)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def _older_run_file(ran: Ran) -> None:
    """Put back the file as it was before the run had outputs."""
    rows = ran.rows()
    write_json(sealed({name: rows[name] for name in ("runs", "steps")}), ran.run_file())


def _card(ran: Ran, name: str) -> Path:
    """Return a file of the second run's card."""
    records = [json.loads(path.read_bytes()) for path in ran.root.glob("provenance/data_card/*.json")]
    [key] = [one["output"] for one in records if one["inputs"]["selected_subset"] == ran.output("selected_subset")]
    return ran.root / "cards" / f"card={key}" / name


def _record(ran: Ran) -> Path:
    return ran.root / "provenance" / "selected_subset" / f"{ran.output('selected_subset')}.json"


def _swap(ran: Ran) -> None:
    mine, other = (ran.files("selected_subset", run)["picks.parquet"].parent for run in (ran.second, ran.first))
    mine.rename(mine.with_name("waiting"))
    other.rename(mine)
    mine.with_name("waiting").rename(other)


def _rename(ran: Ran) -> None:
    folder = ran.files("density")["density.parquet"].parent
    folder.rename(folder.with_name(f"density={'0' * 32}"))


def _truncate(ran: Ran) -> None:
    path = ran.files("selected_subset")["picks.parquet"]
    path.write_bytes(path.read_bytes()[:-100])


def _unwritten(ran: Ran) -> None:
    """Leave a change in the write-ahead log, as a program does that is killed."""
    program = (
        f"import duckdb, os; c = duckdb.connect({str(ran.database)!r}); c.execute('SET checkpoint_threshold=\"1GB\"');"
        " c.execute('UPDATE runs SET python = 1'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


WHY_PICKED, WHY_NOT, DIFF, REPRODUCE = "why PICK", "why OTHER", "diff RUN RUN", "reproduce RUN"
EXPORT, SIGN, GC = "explore --export", "sign RUN", "gc"
SUBSET = "selected_subset"


@dataclass(frozen=True)
class Case:
    """A change, what `verify` says of it, and a command that refuses to read it; None if no command reads it."""

    what: str
    change: Callable[[Ran], None]
    kind: str
    command: str | None


CASES = (
    Case("`density.parquet`: one value", _value("density", "density.parquet", "mean_squared_distance"), "density",
         WHY_NOT),
    Case("`novelty.parquet`: one value", _value("sample_novelty", "novelty.parquet", "novelty"), "sample_novelty",
         WHY_PICKED),
    Case("`samples.parquet`: a text", _value("distinct_pool", "samples.parquet", "text"), "distinct_pool", WHY_PICKED),
    Case("`samples.parquet`: an original record", _value("distinct_pool", "samples.parquet", "original"),
         "distinct_pool", REPRODUCE),
    Case("`origins.parquet`: a line", _value("distinct_pool", "origins.parquet", "line"), "distinct_pool", WHY_PICKED),
    Case("`rejects.parquet`: a reason", _value("distinct_pool", "rejects.parquet", "reason"), "distinct_pool", WHY_NOT),
    Case("`near_duplicates.parquet`: a score", _value("distinct_pool", "near_duplicates.parquet", "score"),
         "distinct_pool", DIFF),
    Case("`picks.parquet`: a score", _value(SUBSET, "picks.parquet", "score"), SUBSET, WHY_PICKED),
    Case("`picks.parquet`: the last 100 bytes cut off", _truncate, SUBSET, DIFF),
    Case("`remaining.parquet`: a score", _value(SUBSET, "remaining.parquet", "score"), SUBSET, WHY_NOT),
    Case("`covering.parquet`: a distance", _value(SUBSET, "covering.parquet", "distance_1"), SUBSET, WHY_PICKED),
    Case("`picks_vectors.parquet`: one number", _value(SUBSET, "picks_vectors.parquet", "vector"), SUBSET, WHY_NOT),
    Case("`eligibility.parquet`: a count", _value(SUBSET, "eligibility.parquet", "eligible"), SUBSET, WHY_PICKED),
    Case("a shard of vectors: one bit",
         lambda ran: _ignored(write_wrong(next(path for name, path in ran.files("embeddings").items()
                                               if name.endswith(".parquet")), at=300)),
         "embeddings", WHY_NOT),
    Case("`subset.jsonl`: one bit", _bit(SUBSET, "subset.jsonl"), SUBSET, REPRODUCE),
    Case("`manifest.json` of the subset: the seed",
         _in_json(lambda ran: ran.files(SUBSET)["manifest.json"], '"seed": 42', '"seed": 43'), SUBSET, REPRODUCE),
    Case("`README.md` of the card: a number", _in_json(lambda ran: _card(ran, "README.md"), "9 of", "8 of"),
         "data_card", SIGN),
    Case("`manifest.json` of the card: the seed", _in_json(lambda ran: _card(ran, "manifest.json"), '"seed": 42',
                                                           '"seed": 43'), "data cards", SIGN),
    Case("`report.html`: a title", _in_json(lambda ran: ran.files("novelsum_report")["report.html"], "<title>",
                                            "<title>New "), "novelsum_report", EXPORT),
    Case("`novelsum.json`: a number", _in_json(lambda ran: ran.files("novelsum_report")["novelsum.json"],
                                               '"size": 9', '"size": 8'), "novelsum_report", EXPORT),
    Case("a provenance record: the seed", _in_json(_record, '"seed": 42', '"seed": 43'), "records", GC),
    Case("a run file: k of the settings", _in_run_file(_settings, seal=False), "run files", WHY_PICKED),
    Case("a run file: a measure, and its SHA-256 made to fit",
         _in_run_file(lambda rows: rows["set_measures"][0].update(value=0.75), seal=True), "lineage rows", None),
    Case("a run file: an older copy, of before the run's end", _older_run_file, "lineage rows", None),
    Case("a newest artifact: the seed", _in_json(lambda ran: ran.root / "assets" / f"{SUBSET}.json", '"seed": 42',
                                                 '"seed": 43'), "newest artifacts", None),
    Case("`lineage.duckdb`: `selections.seed`",
         _sql("UPDATE selections SET seed = 7 WHERE selection = ?", SUBSET), "database", WHY_PICKED),
    Case("`lineage.duckdb`: a value of `set_measures`",
         _sql("UPDATE set_measures SET value = value + 1 WHERE report = ?", "novelsum_report"), "lineage rows",
         DIFF),
    Case("`lineage.duckdb`: the view `picks`",
         _sql("CREATE OR REPLACE VIEW picks AS SELECT id, 1::BIGINT AS rank, NULL::VARCHAR AS selection FROM samples"),
         "views", WHY_PICKED),
    Case("`lineage.duckdb`: a row of a model's table", _sql("UPDATE length_bias SET pool_mean = 0"), "database",
         EXPORT),
    Case("`lineage.duckdb`: a run that never was",
         _sql("INSERT INTO runs BY NAME SELECT * REPLACE ('ffff' AS run_id, now() AS started_at) FROM runs LIMIT 1"),
         "database", WHY_PICKED),
    Case("`lineage.duckdb`: a change in its write-ahead log", _unwritten, "database", WHY_PICKED),
    Case("a file deleted", lambda ran: ran.files("sample_novelty")["novelty.parquet"].unlink(), "sample_novelty",
         WHY_PICKED),
    Case("two subsets' folders swapped", _swap, SUBSET, WHY_PICKED),
    Case("a folder renamed", _rename, "density", WHY_PICKED),
    Case("the picks of an older run copied over these",
         lambda ran: _ignored(shutil.copyfile(ran.files(SUBSET, ran.first)["picks.parquet"],
                                              ran.files(SUBSET)["picks.parquet"])), SUBSET, WHY_PICKED),
    Case("a file added to a subset",
         lambda ran: _ignored((ran.files(SUBSET)["picks.parquet"].parent / "more.jsonl").write_text("{}\n")),
         "unknown files", None),
)  # fmt: skip
"""The table of docs/audit.md."""


def command_of(case: Case, ran: Ran, before: Ran) -> tuple[str, ...]:
    """Return the command of a case; samples are looked up in the storage as it was."""
    return {
        WHY_PICKED: ("why", before.sample(picked=True)),
        WHY_NOT: ("why", before.sample(picked=False)),
        DIFF: ("diff", ran.first, ran.second),
        REPRODUCE: ("reproduce", ran.second),
        EXPORT: ("explore", "--export", str(ran.folder / "pool.parquet")),
        SIGN: ("sign", ran.second, "--key", str(ran.folder / "key")),
        GC: ("gc", "--dry-run"),
    }[case.command or GC]


def table() -> str:
    """Return the table of docs/audit.md."""
    lines = ["| changed | `novelsum verify` names it under | refused by, for example |", "|---|---|---|"]
    lines += [f"| {case.what} | {case.kind} | {f'`{case.command}`' if case.command else ''} |" for case in CASES]
    return "\n".join(lines)


def test_a_storage_that_nobody_touched_passes(copied: Ran) -> None:
    ran, before = copied, hashes(copied.folder)
    for arguments in ((), (ran.first[:8],), (ran.second,)):
        found = ran.verified(*arguments)
        assert found["failed"] == []
        # Only the verdicts of checks, and Dagster's own files.
        assert {check["name"] for check in found["not_checked"]} <= {"checks/", "dagster/"}
    assert ran.verified()["runs"] == [ran.first, ran.second]
    kinds = ran.verified()["totals"]
    outputs = {path.name for path in (ran.root / "provenance").iterdir()}
    others = {"run files", "database", "lineage rows", "records", "views", "data cards", "newest artifacts", "others"}
    # The pool is the one that was read, so its files count once; the lineage is a database, not a file.
    assert set(kinds) == others | outputs - {"raw_pool", "lineage"}
    assert kinds[SUBSET]["ok"] == sum(1 for path in (ran.root / "selections").rglob("*") if path.is_file())
    done = ran.ask("verify")
    assert (done.code, done.out.splitlines()[-1]) == (0, "Nothing failed.")
    assert hashes(ran.folder) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_change_is_noticed(ran: Ran, copied: Ran, case: Case) -> None:
    case.change(copied)
    found = copied.verified(code=1)
    assert case.kind in {check["kind"] for check in found["failed"]}
    assert all(check["reason"] for check in [*found["failed"], *found["not_checked"]])
    done = copied.ask("verify")
    assert done.code == 1 and "FAILED" in done.out and done.out.rstrip().endswith("failed.")
    if case.command:
        made_key(copied.folder)
        done = copied.ask(*command_of(case, copied, ran))
        assert (done.code, done.out) == (2, ""), done.out + done.err
        assert "Traceback" not in done.err and str(copied.root) in done.err
        assert not list(copied.root.glob("signatures/**/*.sig"))


def test_a_change_of_one_run_is_none_of_another(copied: Ran) -> None:
    _truncate(copied)
    assert copied.verified(copied.first)["failed"] == []
    [failed] = copied.verified(copied.second, code=1)["failed"]
    assert failed["run_id"] == copied.second and "picks.parquet is damaged" in failed["reason"]
    assert "novelsum restore" in failed["reason"] and "novelsum run" in failed["reason"]


@pytest.mark.parametrize("query", ["UPDATE selections SET seed = 7", "DROP VIEW picks", "DELETE FROM contents",
                                   "DELETE FROM set_measures", "DROP TABLE contents"])  # fmt: skip
def test_a_changed_database_is_rebuilt_from_the_run_files(copied: Ran, query: str) -> None:
    _sql(query)(copied)
    changed = copied.database.read_bytes()
    done = copied.ask("why", copied.sample(picked=True))
    assert done.code == 2 and "changed by another program" in done.err and "novelsum rebuild-lineage" in done.err
    assert copied.ask("rebuild-lineage").code == 0
    assert copied.verified()["failed"] == []
    assert copied.ask("why", copied.sample(picked=True)).code == 0
    assert copied.database.with_name("lineage.duckdb.old").read_bytes() == changed


def test_views_of_a_users_own_do_not_matter(copied: Ran) -> None:
    _sql("CREATE VIEW mine AS SELECT id FROM picks; CREATE TABLE counts AS SELECT count(*) AS n FROM picks")(copied)
    assert copied.verified()["failed"] == []
    assert copied.ask("why", copied.sample(picked=True)).code == 0


def test_an_older_copy_of_the_database_is_brought_up_to_date(ran: Ran, copied: Ran) -> None:
    """It has the rows of before, all of which are in run files."""
    copied.run_file().rename(copied.folder / "later.json")
    assert copied.ask("rebuild-lineage").code == 0
    (copied.folder / "later.json").rename(copied.run_file())
    assert copied.verified()["failed"] == []


def test_a_storage_of_an_earlier_release_is_read_and_not_checked(copied: Ran) -> None:
    for path in (*copied.root.glob("runs/*.json"), *copied.root.glob("provenance/*/*.json"),
                 *copied.root.glob("assets/*.json")):  # fmt: skip
        write_json(unsealed(json.loads(path.read_bytes())), path)
    with LineageStore(copied.root).reading():
        pass
    _sql("DROP TABLE contents; UPDATE schema_version SET version = 4")(copied)
    found = copied.verified()
    assert (copied.root / "lineage.duckdb.v4").exists()
    reasons = {check["reason"] for check in found["not_checked"] if check["kind"] in ("run files", "newest artifacts")}
    assert reasons == {"written by an earlier release, which recorded no hash of it"}
    assert copied.ask("why", copied.sample(picked=True)).code == 0


def test_a_run_of_a_release_without_records_is_not_checked(copied: Ran) -> None:
    rows = copied.rows(copied.first)
    write_json({name: one for name, one in rows.items() if name != "provenance"}, copied.run_file(copied.first))
    assert copied.ask("rebuild-lineage").code == 0
    found = copied.verified(copied.first)
    assert [check["kind"] for check in found["not_checked"]] == ["run files"]
    assert copied.ask("why", copied.sample(picked=False), "--run", copied.first).code == 0


def test_unknown_and_ambiguous_runs(ran: Ran, tmp_path: Path) -> None:
    for name, said in (("zzzz", "no runs begin with zzzz"), ("", "2 runs begin with")):
        done = ran.ask("verify", name)
        assert (done.code, done.out) == (2, "") and said in done.err
    write_settings(tmp_path)
    done = called(tmp_path, "verify")
    assert done.code == 2 and "no lineage yet" in done.err


needs_ssh = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed (openssh-client)"
)


def made_key(folder: Path, name: str = "key") -> Path | None:
    """Make an SSH key without a passphrase, and a file that allows it to sign."""
    command = shutil.which("ssh-keygen")
    if command is None or (folder / name).exists():
        return None
    subprocess.run([command, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)], check=True)
    public = (folder / f"{name}.pub").read_text()
    (folder / f"{name}.allowed").write_text(f'ada@example.org namespaces="novelsum" {public}')
    return folder / name


@needs_ssh
def test_signatures_of_the_manifests(copied: Ran) -> None:
    before = hashes(copied.root / "selections") | hashes(copied.root / "cards")
    for name in ("key", "other"):
        made_key(copied.folder, name)
    done = copied.ask("sign", copied.second[:8], "--key", str(copied.folder / "key"))
    assert (done.code, done.err.count("signed: ")) == (0, 2), done.err
    assert hashes(copied.root / "selections") | hashes(copied.root / "cards") == before
    unchecked = [check for check in copied.verified()["not_checked"] if check["kind"] == "signatures"]
    assert len(unchecked) == 2 and all("--allowed-signers" in check["reason"] for check in unchecked)
    allowed = ("--allowed-signers", str(copied.folder / "key.allowed"))
    assert copied.verified(*allowed)["totals"]["signatures"]["ok"] == 2
    assert copied.verified(copied.second, *allowed)["totals"]["signatures"]["ok"] == 2
    assert "signatures" not in copied.verified(copied.first, *allowed)["totals"]
    found = copied.verified("--allowed-signers", str(copied.folder / "other.allowed"), code=1)
    assert ["no key in" in check["reason"] for check in found["failed"]] == [True, True]
    # What a forger who knows every hash could still make fit.
    _in_json(lambda ran: ran.files(SUBSET)["manifest.json"], '"seed": 42', '"seed": 43')(copied)
    failed = {check["kind"] for check in copied.verified(*allowed, code=1)["failed"]}
    assert failed == {SUBSET, "signatures"}
    done = copied.ask("sign", copied.second, "--key", str(copied.folder / "key"))
    assert done.code == 2 and "manifest.json is damaged" in done.err


@needs_ssh
def test_what_cannot_sign_is_named(ran: Ran, tmp_path: Path) -> None:
    done = ran.ask("sign", ran.second, "--key", str(tmp_path / "none"))
    assert done.code == 2 and "no such file" in done.err
    (tmp_path / "text").write_text("no key")
    done = ran.ask("sign", ran.second, "--key", str(tmp_path / "text"))
    assert done.code == 2 and str(tmp_path / "text") in done.err
    made_key(tmp_path)


def test_the_card_names_the_run_that_made_its_subset(ran: Ran) -> None:
    assert json.loads(_card(ran, "manifest.json").read_bytes())["run_id"] == ran.second
    assert f"run `{ran.second}`" in _card(ran, "README.md").read_text()


def test_the_table_in_the_docs_is_this_one() -> None:
    assert table() in DOCS.read_text()


if __name__ == "__main__":
    print(table())
