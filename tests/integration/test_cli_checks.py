"""What `novelsum run` says where a check or a step stops it."""

import json
from pathlib import Path
from typing import Any

import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.defs import checks
from tests.machines import called
from tests.pools import alpaca, write_jsonl, write_settings

POOL = {"sources": [{"path": "pool/*"}], "near_duplicates": {"by": "off"}}


def test_a_check_that_stops_the_run_ends_it_in_its_own_words(tmp_path: Path) -> None:
    text = json.dumps(alpaca(30), indent=1)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "broken.json").write_text(text[:-40])
    write_settings(tmp_path, pool={**POOL, "max_reject_fraction": 0.5}, selection={"k": 5})
    done = called(tmp_path, "run")
    assert (done.code, done.out) == (1, "")
    *_, failed, stopped, kept = done.err.splitlines()
    assert failed.startswith(
        "check failed: raw_pool: files_complete: expected: Every file was read to its end. Found: "
    )
    assert "file=pool/broken.json" in failed
    assert stopped == "novelsum: stopped by a failed blocking check; later steps did not run"
    assert kept.startswith("Finished work is kept")
    for word in ("Traceback", "Stack Trace", "Dagster", ", line "):
        assert word not in done.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("the file is: damaged; run again"), "the file is: damaged; run again"),
        (NotEnoughMemory("too little memory"), "too little memory"),
    ],
)
def test_a_mistake_in_a_check_ends_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    done = _run_with(tmp_path, monkeypatch, error)
    assert f"novelsum: raw_pool_checks failed: {words}\nFinished work is kept" in done
    assert "Traceback" not in done and "Stack Trace" not in done


def test_an_unexpected_error_in_a_check_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run_with(tmp_path, monkeypatch, RuntimeError("nobody thought of it"))
    assert "RuntimeError: nobody thought of it" in done
    assert "Stack Trace" in done and "in refuse" in done


def _run_with(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """Return what a run says whose first check raises an error."""

    def refuse(step: str, subject: Any) -> None:
        raise error

    monkeypatch.setattr(checks, "check", refuse)
    write_jsonl(folder / "pool" / "one.jsonl", alpaca(12))
    write_settings(folder, pool=POOL, selection={"k": 5})
    done = called(folder, "run")
    assert (done.code, done.out) == (1, "")
    return done.err
