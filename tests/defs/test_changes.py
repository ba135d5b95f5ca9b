"""The asset `changes` over real runs: what landed, what left, what it did to the subset, and who is told."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.audit.changes_words import summary
from novelsum_dagster.audit.comparison import Changes, Comparison
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.pools import alpaca, pairs, write_jsonl, write_settings
from tests.unit.test_changes import SECRET, VARIABLE, Webhook, webhook

__all__ = ["webhook"]
NEAR = {"drop": True}
_CAME = {"pool/a-new.jsonl": "new file", "pool/one.jsonl": "changed file"}
_WENT = {"pool/three.jsonl": "removed file", "pool/one.jsonl": "changed file"}


@pytest.fixture
def curation(tmp_path: Path) -> Iterator[Curation]:
    """Return three files of 20 samples each; near-duplicates are dropped."""
    for number, name in enumerate(("one", "two", "three")):
        write_jsonl(tmp_path / "pool" / f"{name}.jsonl", _short(20, 20 * number))
    settings = write_settings(
        tmp_path,
        pool={"sources": [{"path": "pool/*"}], "near_duplicates": NEAR},
        notify={"webhook_variable": VARIABLE},
    )
    with in_memory() as instance:
        yield Curation(tmp_path, settings, instance)


def _short(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return records with texts of a few hundred letters, which are embedded fast."""
    return [{**record, "output": record["output"][:300]} for record in alpaca(count, start)]


def _run(curation: Curation) -> tuple[dict[str, Any], dict[str, bool]]:
    """Run it all; return the metadata of `changes`, and which of its checks passed."""
    done = curation.run(models=False)
    assert done.success
    (made,) = done.asset_materializations_for_node("changes")
    checks = {
        check.check_name: check.passed
        for check in done.get_asset_check_evaluations()
        if check.asset_key == dg.AssetKey("changes")
    }
    return {name: value.value for name, value in made.metadata.items()}, checks


def _compared(curation: Curation) -> Comparison:
    return read_newest(curation.root, "changes", Changes).comparison(curation.root)


def _pool(curation: Curation) -> set[str]:
    snapshot = read_newest(curation.root, "raw_pool", PoolSnapshot)
    return set(snapshot.samples(curation.root, ["id"])["id"].to_pylist())


def _read(curation: Curation) -> dict[str, str]:
    """Return the file of every sample that was read, near-duplicates too."""
    table = read_newest(curation.root, "raw_pool", PoolSnapshot).table(curation.root, "samples", ["id", "file"])
    return dict(zip(table["id"].to_pylist(), table["file"].to_pylist(), strict=True))


def _picks(curation: Curation) -> set[str]:
    return set(read_newest(curation.root, "selected_subset", Subset).picks(curation.root, ["id"])["id"].to_pylist())


def _version(curation: Curation) -> str | None:
    event = curation.instance.get_latest_materialization_event(dg.AssetKey("changes"))
    assert event is not None and event.asset_materialization is not None
    return (event.asset_materialization.tags or {}).get("dagster/data_version")


@pytest.mark.slow
def test_what_landed_and_left_is_told_once(
    curation: Curation, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "urllib3")
    metadata, checks = _run(curation)
    assert "nothing to compare with" in metadata["summary"]
    assert metadata["notification"] == "nothing to send"
    assert checks == {"novelsum_steady": True, "sources_steady": True}
    first = _version(curation)
    _run(curation)
    assert _version(curation) == first

    pool, picks, read = _pool(curation), _picks(curation), _read(curation)
    report = read_newest(curation.root, "novelsum_report", NovelSumReport).of("selected")
    # One file is added, with what resembles a sample of `two`; one is overwritten in part, one removed.
    question, answer = pairs(1, start=39)[0]
    resembling = {"instruction": question, "input": "", "output": answer[:300] + " And so on."}
    write_jsonl(curation.folder / "pool" / "a-new.jsonl", [*_short(40, 60), resembling])
    write_jsonl(curation.folder / "pool" / "one.jsonl", [*_short(15), *_short(10, 100)])
    (curation.folder / "pool" / "three.jsonl").unlink()
    metadata, checks = _run(curation)

    compared, now = _compared(curation), _pool(curation)
    assert compared.files is not None and compared.pool is not None and compared.picks is not None
    assert compared.files.added == ("pool/a-new.jsonl",)
    assert compared.files.overwritten == ("pool/one.jsonl",)
    assert compared.files.removed == ("pool/three.jsonl",)
    entered, left = compared.pool.entered, compared.pool.left
    assert (entered.count, left.count) == (len(now - pool), len(pool - now))
    read_now = _read(curation)
    came = Counter("no longer a near-duplicate" if id_ in read else _CAME[read_now[id_]] for id_ in now - pool)
    went = Counter("now a near-duplicate" if id_ in read_now else _WENT[read[id_]] for id_ in pool - now)
    assert (entered.by_reason, left.by_reason) == (dict(came), dict(went))
    assert {"new file", "changed file"} <= came.keys() and {*_WENT.values(), "now a near-duplicate"} == went.keys()
    assert entered.by_source == Counter(Path(read_now[id_]).stem for id_ in now - pool)
    assert set(left.examples["removed file"]) <= {id_ for id_ in pool - now if read[id_] == "pool/three.jsonl"}
    assert compared.picks.entered.count == len(_picks(curation) - picks)
    assert compared.picks.stayed == len(_picks(curation) & picks)
    row = compared.measure("selected", "novelsum")
    value = read_newest(curation.root, "novelsum_report", NovelSumReport).of("selected").value
    assert row is not None and (row.before, row.low, row.high, row.after) == (
        report.value, report.low, report.high, value,
    )  # fmt: skip

    lines = summary(compared)
    assert 5 <= len(lines) <= 15
    assert f"{entered.count} samples entered the pool" in metadata["summary"]
    assert (metadata["samples_entered"], metadata["samples_left"]) == (entered.count, left.count)
    assert [metadata[f"files_{verb}"] for verb in ("added", "overwritten", "removed")] == [1, 1, 1]
    assert Path(metadata["path"]) == curation.root / f"changes/changes={_version(curation)}"
    assert not checks["sources_steady"]  # Of `three`, a third of the pool, nothing is left.
    assert metadata["notification"] == "sent"
    (body,) = webhook.bodies
    assert body["text"].splitlines() == lines

    # Nothing changed: nothing is made, nor sent again.
    second = _version(curation)
    before = (Path(metadata["path"]) / "changes.json").read_bytes()
    again, _ = _run(curation)
    assert _version(curation) == second not in (None, first)
    assert (Path(again["path"]) / "changes.json").read_bytes() == before
    assert again["summary"] == metadata["summary"]
    assert len(webhook.bodies) == 1
    assert curation.materialise("changes").success
    assert _version(curation) == second
    _holds_no_secret(curation, caplog)


def _holds_no_secret(curation: Curation, caplog: pytest.LogCaptureFixture) -> None:
    assert SECRET not in caplog.text
    for path in curation.root.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    for run in curation.instance.get_runs():
        assert all(SECRET not in str(record) for record in curation.instance.all_logs(run.run_id))


@pytest.mark.slow
def test_a_failed_message_fails_no_run(
    curation: Curation, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _run(curation)
    values = yaml.safe_load(curation.settings_file.read_text())
    curation.settings_file.write_text(yaml.safe_dump({**values, "selection": {"k": 10}}))
    webhook.status = 503
    metadata, checks = _run(curation)
    assert metadata["notification"] == "not sent: it answered with HTTP status 503"
    assert _compared(curation).settings == {"selection.k": (20, 10)}
    assert checks == {"novelsum_steady": True, "sources_steady": True}  # Other sizes do not compare.
    assert "cannot be compared: 20 and 10 samples" in metadata["summary"]
    monkeypatch.delenv(VARIABLE)
    metadata, _ = _run(curation)
    assert metadata["notification"] == f"not sent: {VARIABLE} is not set"
    monkeypatch.setenv(VARIABLE, webhook.url)
    webhook.status = 200
    metadata, _ = _run(curation)
    assert metadata["notification"] == "sent"
    assert [body["changes"]["picks"]["left"]["count"] for body in webhook.bodies] == [10, 10]
    _holds_no_secret(curation, caplog)
    messages = [
        record.user_message
        for run in curation.instance.get_runs()
        for record in curation.instance.all_logs(run.run_id)
        if record.level == logging.WARNING and VARIABLE in record.user_message
    ]
    assert len(messages) == 2


@pytest.mark.slow
def test_the_page_and_the_data_say_the_same(curation: Curation) -> None:
    values = yaml.safe_load(curation.settings_file.read_text())
    curation.settings_file.write_text(yaml.safe_dump({**values, "notify": {}}))
    _run(curation)
    write_jsonl(curation.folder / "pool" / "three.jsonl", _short(12, 40))
    metadata, _ = _run(curation)
    assert "notification" not in metadata
    text = (Path(metadata["path"]) / "changes.md").read_text()
    data = json.loads((Path(metadata["path"]) / "changes.json").read_text())
    assert data["pool"]["left"]["by_reason"] == {"changed file": 8}
    assert text.startswith("# What changed\n\n- The pool went from 57 to 49 samples (0 added, 8 removed)")
    assert all(id_ in text for id_ in data["pool"]["left"]["examples"]["changed file"])
    assert not list(curation.root.glob("changes/*sent"))
