"""What changed between two states: which run is compared, the words, and messages that keep their secret."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.audit.changes import build_changes
from novelsum_dagster.audit.changes_words import page, summary
from novelsum_dagster.audit.comparison import EXAMPLES, Changes, Comparison
from novelsum_dagster.audit.notify import message, notify
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_table
from novelsum_dagster.lineage.store import LineageStore, insert
from novelsum_dagster.pool.snapshot import NEAR_DUPLICATES, REJECTS, SAMPLES
from novelsum_dagster.quality.suites import Subject, suites_of
from novelsum_dagster.quality.validate import validate
from novelsum_dagster.settings import Checks, Notify, Settings

VARIABLE = "NOVELSUM_TEST_WEBHOOK"
SECRET = "T0-planted-S3CRET"
START = datetime(2026, 1, 1, tzinfo=UTC)
SIZE = 4
Rows = list[tuple[str, str]]
"""Samples of a pool: id and file; a file's source is its name."""


class Storage:
    """A storage with pools and subsets as they are needed, without texts and vectors."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = LineageStore(root)
        self.runs = 0

    def pool(
        self, name: str, samples: Rows, sha: dict[str, str | None], near: dict[str, str] | None = None,
        drops: bool = True, rejects: Rows | None = None,
    ) -> None:  # fmt: skip
        """Write a pool; `sha` has every file, `near` partners, `rejects` files with positions."""
        folder = self.root / f"pool/snapshot={name}"
        rows = [
            {"id": id_.ljust(32, "0"), "source": file, "file": file, "position": int(id_, 16), "line": 1}
            for id_, file in samples
        ]
        write_table(pa.Table.from_pylist(rows, SAMPLES), folder / "samples.parquet")
        pairs = [
            {"id": id_.ljust(32, "0"), "partner_id": partner.ljust(32, "0"), "score": 0.9}
            for id_, partner in (near or {}).items()
        ]
        write_table(pa.Table.from_pylist(pairs, NEAR_DUPLICATES), folder / "near_duplicates.parquet")
        bad = [
            {"source": file, "file": file, "position": int(at, 16), "reason": "over_long"} for at, file in rejects or []
        ]
        write_table(pa.Table.from_pylist(bad, REJECTS), folder / "rejects.parquet")
        kept = [file for id_, file in samples if not (drops and id_ in (near or {}))]
        counts = {"read": len(rows), "kept": len(kept), "duplicates": 0, "rejects": len(bad)}
        snapshot = {
            "snapshot": name, "folder": f"pool/snapshot={name}", **counts, "near_duplicates": len(pairs),
            "near_duplicates_dropped": drops,
        }  # fmt: skip
        files = [
            {
                "snapshot": name, "source": file, "file": file, "format": "jsonl", "sha256": hash_, "complete": True,
                **counts, "read": sum(one == file for _, one in samples), "kept": kept.count(file),
            }
            for file, hash_ in sha.items()
        ]  # fmt: skip
        with self.store.writing() as connection:
            insert(connection, "snapshots", [snapshot])
            insert(connection, "source_files", files)

    def run(
        self, pool: str, picks: list[str], values: dict[str, float] | None = None, model: str = "m",
        settings: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Record a finished run; its subset is named by pool and picks, its report by the measures as well."""
        self.runs += 1
        run_id, selection = f"{self.runs:08d}-run", f"{pool}-{'-'.join(picks)}"
        values = values or {"selected": 1.0}
        report = f"{selection}-{values}-{settings}"
        folder = f"selections/selection={selection}"
        ids = [one.ljust(32, "0") for one in picks]
        table = pa.table({"rank": list(range(1, len(ids) + 1)), "id": ids, "source": ["s"] * len(ids)})
        write_table(table, self.root / folder / "picks.parquet")
        keys = {"snapshot": pool, "vectors": f"{pool}-{model}", "density": "d"}
        sections = {"pool": {"near_duplicates": {"drop": True}}, **(settings or {})}
        rows: dict[str, list[dict[str, Any]]] = {
            "runs": [
                {
                    "run_id": run_id, "started_at": START + timedelta(hours=self.runs), "package_version": "0",
                    "settings": json.dumps(sections), "python": "", "platform": "",
                }
            ],
            "embeddings": [
                {
                    "vectors": keys["vectors"], "snapshot": pool, "folder": f"vectors/{model}", "model": model,
                    "revision": "r", "max_tokens": 256, "dtype": "float32", "dimension": 2, "samples": 0,
                }
            ],
            "selections": [
                {
                    "selection": selection, **keys, "folder": folder, "strategy": "novelselect", "k": len(picks),
                    "seed": 42, "density_power": 0.5, "proximity_power": 1.0,
                }
            ],
            "set_measures": [
                {
                    "report": report, "selection": selection, "set_name": name, "measure": measure, "size": len(picks),
                    "value": value, "low": value - 0.1, "high": value + 0.1,
                }
                for name, value in values.items()
                for measure in ("novelsum", "vendi_score")
            ],
            "run_outputs": [
                {"run_id": run_id, **keys, "novelty": "n", "selection": selection, "report": report, "embedded": 0}
            ],
        }  # fmt: skip
        with self.store.writing() as connection:
            for name, added in rows.items():
                insert(connection, name, added)
        return run_id

    def changes(self, run_id: str) -> Changes:
        return build_changes(self.store, run_id)

    def compared(self, run_id: str) -> Comparison:
        return self.changes(run_id).comparison(self.root)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def _two_states(storage: Storage, **later: Any) -> str:
    """Record two states whose pools and subsets differ; return the second's run."""
    storage.pool("p", [("1", "a"), ("2", "a"), ("3", "b"), ("4", "b")], {"a": "1", "b": "1"})
    storage.pool("q", [("1", "a"), ("2", "a"), ("5", "c")], {"a": "1", "c": "1"})
    storage.run("p", ["1", "3"], {"selected": 1.0})
    return storage.run("q", ["1", "5"], **{"values": {"selected": 1.2}, **later})


def test_every_reason_is_told(storage: Storage) -> None:
    storage.pool(
        "old",
        [("1", "same"), ("2", "gone"), ("3", "gone"), ("4", "edited"), ("5", "edited"), ("6", "same"), ("7", "same"),
         ("a", "hub"), ("b", "hub")],
        {"same": "1", "gone": "1", "edited": "1", "hub": None},
        near={"7": "1"},
        rejects=[("8", "same")],
    )  # fmt: skip
    storage.pool(
        "new",
        [("1", "same"), ("4", "edited"), ("7", "same"), ("8", "same"), ("9", "new"), ("5", "edited"), ("c", "edited"),
         ("a", "hub"), ("d", "hub")],
        {"same": "1", "new": "1", "edited": "2", "hub": None},
        near={"5": "9"},
        rejects=[("6", "same")],
    )  # fmt: skip
    storage.run("old", ["1"])
    compared = storage.compared(storage.run("new", ["1"]))
    assert compared.files is not None and compared.pool is not None
    assert (compared.files.added, compared.files.overwritten, compared.files.removed) == (
        ("new",), ("edited", "hub"), ("gone",),
    )  # fmt: skip
    entered, left = compared.pool.entered, compared.pool.left
    assert entered.by_reason == {
        "changed dataset": 1, "changed file": 1, "new file": 1, "no longer a near-duplicate": 1,
        "no longer rejected": 1,
    }  # fmt: skip
    assert {reason: [id_[0] for id_ in ids] for reason, ids in entered.examples.items()} == {
        "changed dataset": ["d"], "changed file": ["c"], "new file": ["9"], "no longer a near-duplicate": ["7"],
        "no longer rejected": ["8"],
    }  # fmt: skip
    assert {reason: [id_[0] for id_ in ids] for reason, ids in left.examples.items()} == {
        "removed file": ["2", "3"], "changed dataset": ["b"], "now a near-duplicate": ["5"], "now rejected": ["6"],
    }  # fmt: skip
    assert entered.by_source == {"same": 2, "edited": 1, "hub": 1, "new": 1}
    assert left.by_source == {"gone": 2, "edited": 1, "hub": 1, "same": 1}
    assert (compared.pool.size_before, compared.pool.size_after) == (8, 8)
    shares = {one.source: (one.before, one.after) for one in compared.pool.sources}
    assert shares == {"edited": (2, 2), "gone": (2, 0), "hub": (2, 2), "new": (0, 1), "same": (2, 3)}


def test_a_switch_that_drops_near_duplicates_is_the_reason(storage: Storage) -> None:
    samples, near = [("1", "a"), ("2", "a"), ("3", "a")], {"2": "1", "3": "1"}
    storage.pool("kept", samples, {"a": "1"}, near, drops=False)
    storage.pool("dropped", samples, {"a": "1"}, near, drops=True)
    storage.run("kept", ["1"])
    dropped = storage.compared(storage.run("dropped", ["1"])).pool
    assert dropped is not None and dropped.left.by_reason == {"near-duplicates are dropped now": 2}
    back = storage.compared(storage.run("kept", ["1"])).pool
    assert back is not None and back.entered.by_reason == {"near-duplicates are kept now": 2}


def test_examples_are_few_and_in_order(storage: Storage) -> None:
    storage.pool("p", [("1", "a")], {"a": "1"})
    storage.pool("q", [(f"{row:02x}", f"f{row % 3}") for row in range(32, 132)], {f"f{n}": "1" for n in range(3)})
    storage.run("p", ["1"])
    found = storage.compared(storage.run("q", ["20"])).pool
    assert found is not None
    assert (found.entered.count, found.left.by_reason) == (100, {"removed file": 1})
    assert len(found.entered.examples["new file"]) == EXAMPLES
    assert found.entered.by_source == {"f2": 34, "f0": 33, "f1": 33}


def test_the_first_run_has_nothing_to_compare_with(storage: Storage) -> None:
    storage.pool("p", [("1", "a")], {"a": "1"})
    first = storage.changes(storage.run("p", ["1"]))
    compared = first.comparison(storage.root)
    assert (compared.before, compared.pool, compared.measures) == (None, None, ())
    assert summary(compared) == ["There is nothing to compare with: this is the first subset of this curation."]
    assert storage.changes(storage.run("p", ["1"])) == first


def test_a_run_that_changes_nothing_keeps_the_key_and_the_first_runs_names(storage: Storage) -> None:
    made = storage.changes(_two_states(storage))
    text = (storage.root / made.folder / "changes.json").read_bytes()
    assert b"2026" not in text  # No time of a run.
    again = storage.run("q", ["1", "5"], {"selected": 1.2})
    assert storage.changes(again) == made
    assert (storage.root / made.folder / "changes.json").read_bytes() == text
    assert made.comparison(storage.root).runs == {"before": "00000001-run", "after": "00000002-run"}
    # A file that was lost is made again.
    (storage.root / made.folder / "changes.md").unlink()
    assert storage.changes(again) == made
    assert (storage.root / made.folder / "changes.md").exists()


def test_a_change_that_is_undone_and_made_again_is_another(storage: Storage) -> None:
    there = storage.changes(_two_states(storage))
    back = storage.changes(storage.run("p", ["1", "3"]))
    there_again = storage.changes(storage.run("q", ["1", "5"], {"selected": 1.2}))
    assert len({there.key, back.key, there_again.key}) == 3
    assert there_again.comparison(storage.root).number == 2
    assert storage.changes(storage.run("q", ["1", "5"], {"selected": 1.2})) == there_again


def test_states_whose_files_are_gone_are_passed_over(storage: Storage) -> None:
    run = _two_states(storage)
    storage.run("q", ["2", "5"])
    newest = storage.run("p", ["4"])
    (storage.root / "selections/selection=q-2-5/picks.parquet").unlink()
    assert storage.compared(newest).runs["before"] == run
    for path in storage.root.glob("selections/selection=*/picks.parquet"):
        if path.parent.name != "selection=p-4":
            path.unlink()
    # What was compared while the files were there stays, so that a run in which nothing changed makes nothing else.
    assert storage.compared(newest).runs["before"] == run
    shutil.rmtree(storage.root / "changes")
    gone = storage.changes(newest)
    assert "were deleted" in summary(gone.comparison(storage.root))[0]
    assert storage.changes(storage.run("p", ["4"])) == gone


def test_a_run_without_outputs_takes_the_newest_that_has_some(storage: Storage) -> None:
    run = _two_states(storage)
    assert storage.changes("another run, of this asset alone") == storage.changes(run)


def test_measures_move_only_where_they_compare(storage: Storage) -> None:
    run = _two_states(storage)
    row = storage.compared(run).measure("selected", "novelsum")
    assert row is not None
    assert (row.before, row.low, row.high, row.after) == (1.0, 0.9, 1.1, 1.2)
    assert row.difference == pytest.approx(0.2)
    assert row.is_outside
    assert "outside of its earlier 95 % interval (0.9000 to 1.1000), each against its own pool" in "\n".join(
        summary(storage.compared(run))
    )
    other_size = storage.compared(storage.run("q", ["1", "5", "2"], {"selected": 1.2}))
    row = other_size.measure("selected", "novelsum")
    assert row is not None and (row.difference, row.is_outside) == (None, None)
    assert "cannot be compared: 2 and 3 samples" in "\n".join(summary(other_size))


@pytest.mark.parametrize(
    ("later", "why"),
    [
        ({"model": "another"}, "changed model (m to another)"),
        ({"settings": {"novelsum": {"neighbors": 5}}}, None),
    ],
)
def test_another_yardstick_is_named(storage: Storage, later: dict[str, Any], why: str | None) -> None:
    compared = storage.compared(_two_states(storage, **later))
    row = compared.measure("selected", "novelsum")
    assert row is not None
    if why is None:  # A setting that the earlier version had not changes nothing.
        assert row.difference is not None
        compared = storage.compared(storage.run("q", ["5"], settings={"novelsum": {"neighbors": 6}}))
        assert compared.other_yardstick == "settings of the measures changed (novelsum.neighbors)"
    else:
        assert row.difference is None
        assert why in "\n".join(summary(compared))


def test_what_a_fresh_selection_would_have_is_told(storage: Storage) -> None:
    compared = storage.compared(_two_states(storage, values={"selected": 1.2, "fresh": 1.5}))
    assert compared.fresh == 1.5
    assert compared.given_up == pytest.approx(0.3)
    assert "A fresh selection has NovelSum 1.5000: extending gives up 0.3000 (20.0%)." in summary(compared)


def test_the_summary_is_short_and_the_page_holds_no_markup_of_names(storage: Storage) -> None:
    name = "<img src=x onerror=alert(1)>|`_x_`\n# heading"
    storage.pool("p", [("1", "a")], {"a": "1"})
    storage.pool("q", [("1", "a"), ("2", name)], {"a": "1", name: "1"})
    storage.run("p", ["1"])
    compared = storage.compared(storage.run("q", ["2"]))
    lines = summary(compared)
    assert 5 <= len(lines) <= 15
    assert all("\n" not in line for line in lines)
    assert lines[0] == "The pool went from 1 to 2 samples (1 added, 0 removed); of 1 picks 1 are new, 1 were dropped."
    text = page(compared)
    assert "<img" not in text and "\n# heading" not in text
    assert "&lt;" in message(compared)["text"] and "<" not in message(compared)["text"]
    assert message(compared)["changes"]["files"]["added"] == {"count": 1, "examples": [name]}


def test_damage_is_named(storage: Storage) -> None:
    made = storage.changes(_two_states(storage))
    path = storage.root / made.folder / "changes.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match="delete it, and run again"):
        made.comparison(storage.root)


def test_drift_warns_over_its_limits(storage: Storage) -> None:
    made = storage.changes(_two_states(storage))

    def failing(checks: Checks, changes: Changes = made) -> set[str]:
        subject = Subject(changes, storage.root, Settings(checks=checks))
        return {suite.name for suite in suites_of("changes") if not validate(suite, subject).passed}

    assert failing(Checks()) == {"novelsum_steady", "sources_steady"}
    assert failing(Checks(max_novelsum_drift=0.21)) == {"sources_steady"}
    assert failing(Checks(max_source_drift=0.5)) == {"novelsum_steady"}
    other_size = storage.changes(storage.run("q", ["1"], {"selected": 9.0}))
    assert failing(Checks(), other_size) == set()
    assert not any(suite.blocking for suite in suites_of("changes"))


def test_drift_of_a_first_run_passes(storage: Storage) -> None:
    storage.pool("p", [("1", "a")], {"a": "1"})
    subject = Subject(storage.changes(storage.run("p", ["1"])), storage.root, Settings())
    assert [validate(suite, subject).passed for suite in suites_of("changes")] == [True, True]


class Webhook(ThreadingHTTPServer):
    """A webhook on this machine: keeps what is posted, answers as it is told."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.location = ""
        self.waits = threading.Event()
        self.waits.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/{SECRET}?key={SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.waits.wait(20)
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.paths.append(f"GET {self.path}")
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setenv(VARIABLE, server.url)
        yield server
        server.waits.set()
        server.shutdown()
        thread.join()


def _holds_no_secret(root: Path, lines: list[str]) -> None:
    assert all(SECRET not in line and "\n" not in line for line in lines)
    for path in root.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_a_change_is_sent_once(storage: Storage, webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.DEBUG)
    made, said = storage.changes(_two_states(storage)), list[str]()
    assert [notify(storage.root, made, VARIABLE, said.append) for _ in range(3)] == ["sent"] * 3
    (body,) = webhook.bodies
    assert webhook.paths == [f"/services/{SECRET}?key={SECRET}"]
    assert body["text"].splitlines() == summary(made.comparison(storage.root))
    assert body["changes"]["pool"]["entered"]["by_reason"] == {"new file": 1}
    assert body["changes"]["files"]["removed"] == {"count": 1, "examples": ["b"]}
    assert said == []
    assert SECRET not in caplog.text
    _holds_no_secret(storage.root, said)
    logging.getLogger("urllib3.connectionpool").debug("others' records are kept")
    assert "others' records are kept" in caplog.text


def test_the_first_state_is_not_sent(storage: Storage, webhook: Webhook) -> None:
    storage.pool("p", [("1", "a")], {"a": "1"})
    made = storage.changes(storage.run("p", ["1"]))
    assert notify(storage.root, made, VARIABLE, pytest.fail) == "nothing to send"
    assert webhook.bodies == []


def test_what_failed_is_sent_by_a_later_run_before_its_own(storage: Storage, webhook: Webhook) -> None:
    said: list[str] = []
    first = storage.changes(_two_states(storage))
    webhook.status = 500
    assert notify(storage.root, first, VARIABLE, said.append) == "not sent: it answered with HTTP status 500"
    assert said == [
        f"the notification to the webhook of {VARIABLE} failed: it answered with HTTP status 500;"
        " the next run tries again"
    ]
    second = storage.changes(storage.run("q", ["2"]))
    notify(storage.root, second, VARIABLE, said.append)
    assert len(webhook.bodies) == 2  # One that fails is one too many: the second was not tried.
    webhook.status = 204
    assert notify(storage.root, second, VARIABLE, said.append) == "sent"
    runs = [body["changes"]["runs"]["after"] for body in webhook.bodies]
    assert runs == ["00000002-run", "00000002-run", "00000002-run", "00000003-run"]
    assert notify(storage.root, second, VARIABLE, pytest.fail) == "sent"
    assert len(webhook.bodies) == 4
    assert not list(storage.root.glob("changes/*.unsent"))
    _holds_no_secret(storage.root, said)


def test_a_message_whose_change_was_deleted_is_forgotten(storage: Storage, webhook: Webhook) -> None:
    first = storage.changes(_two_states(storage))
    webhook.status = 500
    notify(storage.root, first, VARIABLE, lambda line: None)
    (storage.root / first.folder / "changes.json").unlink()
    webhook.status = 200
    second = storage.changes(storage.run("q", ["2"]))
    assert notify(storage.root, second, VARIABLE, pytest.fail) == "sent"
    assert [body["changes"]["runs"]["after"] for body in webhook.bodies[1:]] == ["00000003-run"]
    assert not list(storage.root.glob("changes/*.unsent"))


def test_a_redirect_is_not_followed(storage: Storage, webhook: Webhook) -> None:
    webhook.status, webhook.location = 302, "/elsewhere"
    said: list[str] = []
    assert "status 302" in notify(storage.root, storage.changes(_two_states(storage)), VARIABLE, said.append)
    assert [path for path in webhook.paths if "elsewhere" in path] == []
    _holds_no_secret(storage.root, said)


def test_a_slow_webhook_is_not_waited_for(storage: Storage, webhook: Webhook) -> None:
    webhook.waits.clear()
    made, start, said = storage.changes(_two_states(storage)), time.monotonic(), list[str]()
    assert "no answer within 0.3 s" in notify(storage.root, made, VARIABLE, said.append, seconds=0.3)
    assert time.monotonic() - start < 3
    assert len(said) == 1


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/{SECRET}",
        f"ftp://127.0.0.1/{SECRET}",
        f"file:///etc/passwd#{SECRET}",
        SECRET,
        f"http://[{SECRET}",
        f"http://{SECRET}\x00/",
        f"http://user:{SECRET}@127.0.0.1:1/",
        f"http://127.0.0.1:99999999/{SECRET}",
        f"https://{'x' * 70}.invalid/{SECRET}",
    ],
)
def test_a_webhook_that_cannot_be_reached_is_told_without_its_url(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    caplog.set_level(logging.DEBUG)
    if "\x00" in url:
        monkeypatch.setattr("os.environ", {VARIABLE: url})
    else:
        monkeypatch.setenv(VARIABLE, url)
    said: list[str] = []
    outcome = notify(storage.root, storage.changes(_two_states(storage)), VARIABLE, said.append)
    assert outcome.startswith("not sent: ")
    assert len(said) == 1 and VARIABLE in said[0]
    assert SECRET not in caplog.text and SECRET not in outcome
    _holds_no_secret(storage.root, said)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_not_set_is_told(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    said: list[str] = []
    assert notify(storage.root, storage.changes(_two_states(storage)), VARIABLE, said.append).endswith("is not set")
    (line,) = said
    assert VARIABLE in line


def test_settings_take_a_name_and_no_url() -> None:
    assert Notify(webhook_variable="HOOK_1").webhook_variable == "HOOK_1"
    with pytest.raises(ValueError, match="should match pattern"):
        Notify(webhook_variable="https://hooks.example.com/T0/B0")


def test_many_samples_are_compared_quickly(storage: Storage) -> None:
    count = 100_000
    ids = [f"{row:032x}" for row in range(2 * count)]

    def write(name: str, chosen: list[str]) -> None:
        storage.pool(name, [], {"a": name})
        columns = {"id": chosen, "source": ["a"] * count, "file": ["a"] * count, "position": list(range(count))}
        rest = {field.name: pa.nulls(count, field.type) for field in SAMPLES if field.name not in columns}
        path = storage.root / f"pool/snapshot={name}/samples.parquet"
        pq.write_table(pa.table({**columns, **rest}).select(SAMPLES.names).cast(SAMPLES), path, row_group_size=1000)

    write("p", ids[:count])
    write("q", ids[count // 10 : count + count // 10])
    storage.run("p", ["1"])
    run, start = storage.run("q", ["1"]), time.monotonic()
    compared = storage.compared(run)
    assert time.monotonic() - start < 10
    assert compared.pool is not None
    assert (compared.pool.entered.by_reason, compared.pool.left.by_reason) == (
        {"changed file": count // 10}, {"changed file": count // 10},
    )  # fmt: skip
