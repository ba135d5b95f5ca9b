"""The command line as a person and a script use it: results on stdout, words on stderr, exit codes."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.diversity.measures import MEASURES
from tests.machines import completed
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool of 60 samples, and a cache of vectors of its own."""
    path = tmp_path_factory.mktemp("cli")
    write_jsonl(path / "pool" / "one.jsonl", alpaca(40))
    (path / "pool" / "two.json").write_text(json.dumps(alpaca(20, start=40), indent=2))
    write_settings(path)
    return path


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "NOVELSUM_SETTINGS")}
    return {**kept, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def _novelsum(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a command in this process; files at once are embedded by the tiny model unless another is named."""
    tiny = ["--model", tiny_model()] if arguments[0] in ("measure", "select") and "--model" not in arguments else []
    return completed(folder, *arguments, *tiny, XDG_CACHE_HOME=str(folder / "cache"), COLUMNS="100")


def _process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with the packaged model unless the settings name another."""
    return subprocess.run(
        [sys.executable, "-m", "novelsum_dagster", *arguments],
        cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", ["run", "measure", "select", "ui", "demo-pool"])
def test_help_teaches(folder: Path, command: str) -> None:
    done = _novelsum(folder, command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert len(done.stdout) > 500


def test_the_version_is_told(folder: Path) -> None:
    done = _process(folder, "--version")
    assert (done.returncode, done.stdout) == (0, f"{version('novelsum-dagster')}\n")


@pytest.mark.slow
def test_run_prints_a_summary_and_repeats(folder: Path) -> None:
    first = _json(_novelsum(folder, "run", "--json"))
    pool = first["pool"]
    assert pool["near_duplicates_dropped"] is False
    assert (pool["read"], pool["samples"], pool["duplicates"], pool["rejects"]) == (60, 60, 0, 0)
    values = {row["set"]: row["novelsum"] for row in first["novelsum"]}
    assert values["selected"] > values["random"]
    assert len(Path(first["subset"]).read_text().splitlines()) == 20
    assert (folder / "curated" / "dagster" / "dagster.yaml").exists()
    again = _novelsum(folder, "run")
    assert again.returncode == 0
    assert "selected" in again.stdout and "novelsum ui" in again.stdout
    assert "the pool: 60 samples." in again.stdout and "exact duplicates" in again.stdout
    assert "embedding:" not in again.stderr  # Nothing was new.
    assert _json(_novelsum(folder, "run", "--json")) == first


@pytest.mark.slow
def test_run_draws_bars_on_a_terminal(folder: Path) -> None:
    """Run on a pseudo-terminal: Dagster captures standard error, and the bars must be seen all the same."""
    write_jsonl(folder / "tty" / "pool" / "one.jsonl", alpaca(40))
    settings = write_settings(folder / "tty")
    process, terminal = pty.fork()
    if process == 0:
        command = [sys.executable, "-m", "novelsum_dagster", "run", "-s", str(settings)]
        os.execve(sys.executable, command, {**_environment(folder), "TERM": "xterm-256color"})
    shown = b""
    with contextlib.suppress(OSError):  # Reading fails when the other side is closed.
        while chunk := os.read(terminal, 65536):
            shown += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert "selecting" in plain and "20/20" in plain and "left" in plain
    assert "NovelSum at equal size" in plain


def test_select_writes_original_records_in_pick_order(folder: Path) -> None:
    done = _novelsum(
        folder, "select", "pool/one.jsonl", "pool/two.json", "-k", "15", "-o", "subset.jsonl",
        "--picks", "why.parquet", "--json",
    )  # fmt: skip
    assert _json(done)["selected"] == 15
    records = [json.loads(line) for line in (folder / "subset.jsonl").read_text().splitlines()]
    pool = alpaca(60)
    assert len(records) == 15
    assert all(record in pool for record in records)
    picks = pq.read_table(folder / "why.parquet")
    assert picks["rank"].to_pylist() == list(range(1, 16))
    assert picks["position"].to_pylist()[0] >= 1


def test_select_to_stdout_is_only_records(folder: Path) -> None:
    done = _process(folder, "select", "pool/one.jsonl", "-k", "5", "-o", "-")
    assert done.returncode == 0
    assert [json.loads(line) in alpaca(40) for line in done.stdout.splitlines()] == [True] * 5
    assert "5 of 40" in done.stderr


def test_select_can_leave_near_duplicates_out(folder: Path) -> None:
    text = " ".join(f"word{number}" for number in range(200))
    near = [{"prompt": f"Repeat after me, {name}.", "completion": text} for name in ("Ann", "Bob", "Cid")]
    write_jsonl(
        folder / "near.jsonl", [*near, *({"prompt": q["instruction"], "completion": q["output"]} for q in alpaca(30))]
    )
    done = _json(
        _novelsum(folder, "select", "near.jsonl", "-k", "20", "-o", "apart.jsonl", "--drop-near-duplicates", "--json")
    )
    assert done["pool"] <= 31
    records = [json.loads(line) for line in (folder / "apart.jsonl").read_text().splitlines()]
    assert sum(record["completion"] == text for record in records) <= 1


def test_near_duplicates_by_their_vectors(folder: Path) -> None:
    rows = [{"prompt": q["instruction"], "completion": q["output"]} for q in alpaca(12)]
    write_jsonl(folder / "again.jsonl", [*rows, *({**row, "prompt": f"Please: {row['prompt']}"} for row in rows[:6])])
    by = ("--near-duplicates", "embedding", "--similarity", "0.8")
    done = _novelsum(
        folder, "select", "again.jsonl", "-k", "2", "-o", "a.jsonl", *by, "--drop-near-duplicates", "--json"
    )
    dropped = 18 - _json(done)["pool"]
    assert dropped >= 4 and f"{dropped} near-duplicates left out" in done.stderr
    flagged = _novelsum(folder, "select", "again.jsonl", "-k", "2", "-o", "a.jsonl", *by, "--json")
    assert _json(flagged)["pool"] == 18
    assert f"{dropped} near-duplicates left in; --drop-near-duplicates leaves them out" in flagged.stderr
    assert _json(_novelsum(folder, "measure", "again.jsonl", "--json"))["sets"][0]["samples"] == 18
    measured = _novelsum(folder, "measure", "again.jsonl", *by, "--drop-near-duplicates", "--json")
    assert _json(measured)["sets"][0]["samples"] == 18 - dropped
    for wrong, says in (
        (("--near-duplicates", "simhash"), "'minhash', 'embedding' or 'both'"),
        (("--similarity", "0.8"), "--similarity compares vectors; give --near-duplicates embedding or both"),
        (("--similarity", "0.8", "--drop-near-duplicates"), "--similarity compares vectors"),
        ((*by[:3], "1.5"), "similarity: Input should be less than or equal to 1"),
    ):
        refused = _novelsum(folder, "select", "again.jsonl", "-k", "2", "-o", "a.jsonl", *wrong)
        assert refused.returncode != 0 and says in refused.stderr, refused.stderr


def test_what_select_writes_from_several_forms_can_be_measured(folder: Path) -> None:
    chat = [{"messages": [{"role": "user", "content": r["instruction"]}, {"role": "assistant", "content": r["output"]}]}
            for r in alpaca(20, start=20)]  # fmt: skip
    write_jsonl(folder / "chat.jsonl", chat)
    assert _novelsum(folder, "select", "pool/one.jsonl", "chat.jsonl", "-k", "30", "-o", "both.jsonl").returncode == 0
    lines = [json.loads(line) for line in (folder / "both.jsonl").read_text().splitlines()]
    assert {frozenset(line) for line in lines} >= {frozenset({"instruction", "input", "output"})}
    write_jsonl(folder / "mixed.jsonl", [*alpaca(10), *chat[:10]])
    assert _json(_novelsum(folder, "measure", "mixed.jsonl", "-r", "both.jsonl", "--json"))["sets"][0]["samples"] == 20


def test_bad_records_are_named_and_kept(folder: Path) -> None:
    write_jsonl(folder / "half.jsonl", [*alpaca(3), {"instruction": "no answer"}])
    done = _novelsum(folder, "select", "half.jsonl", "-k", "1", "-o", "out2.jsonl")
    assert done.returncode == 2
    kept = next(word for word in done.stderr.replace(";", " ").split() if word.endswith("rejects.parquet"))
    assert pq.read_table(kept)["reason"].to_pylist() == ["missing_fields"]
    allowed = ["--max-reject-fraction", "0.5", "--density-power", "0", "--neighbors", "1"]
    done = _novelsum(folder, "select", "half.jsonl", "-k", "1", "-o", "out2.jsonl", *allowed)
    assert done.returncode == 0
    assert "half.jsonl, record 4, line 4: missing_fields" in done.stderr


def test_measure_ranks_the_selected_over_the_first(folder: Path) -> None:
    _novelsum(folder, "select", "pool/one.jsonl", "pool/two.json", "-k", "15", "-o", "best.jsonl")
    write_jsonl(folder / "first.jsonl", alpaca(20))
    sets = ["measure", "best.jsonl", "first.jsonl", "-r", "pool/one.jsonl", "-r", "pool/two.json"]
    found = _json(_novelsum(folder, *sets, "--json"))
    best, first = found["sets"]
    assert (best["samples"], best["measured"], first["samples"], first["measured"]) == (15, 15, 20, 15)
    mine, theirs = best["measures"]["novelsum"], first["measures"]["novelsum"]
    assert mine["value"] > theirs["value"]
    assert mine["low"] < mine["value"] < mine["high"]
    assert set(best["measures"]) == set(MEASURES) - {"g_vendi", "cluster_inertia"}
    assert any("unequal size" in note for note in found["notes"])
    shown = _novelsum(folder, *sets, "--output", "measured")
    assert f"{mine['value']:.4f}" in shown.stdout
    assert "unequal size" in shown.stderr
    rows = pq.read_table(folder / "measured" / "measures.parquet").to_pylist()
    assert (
        next(row for row in rows if (row["set"], row["measure"]) == ("best.jsonl", "novelsum"))["value"]
        == mine["value"]
    )
    novelty = pq.read_table(folder / "measured" / "novelty.parquet").to_pylist()
    assert np.mean([row["novelty"] for row in novelty if row["set"] == "best.jsonl"]) == pytest.approx(mine["value"])


def test_measure_counts_samples_that_repeat_and_not_the_order_of_arguments(folder: Path) -> None:
    write_jsonl(folder / "one_each.jsonl", alpaca(8))
    write_jsonl(folder / "four_each.jsonl", [record for record in alpaca(2) for _ in range(4)])
    names = ["one_each.jsonl", "four_each.jsonl"]
    found = {one["set"]: one for one in _json(_novelsum(folder, "measure", *names, "--json"))["sets"]}
    assert found["four_each.jsonl"]["samples"] == 8
    for key in ("novelsum", "vendi_score", "log_determinant"):
        assert found["four_each.jsonl"]["measures"][key]["value"] < found["one_each.jsonl"]["measures"][key]["value"]
    turned = _json(_novelsum(folder, "measure", *reversed(names), "--json"))["sets"]
    assert {one["set"]: one["measures"] for one in turned} == {name: one["measures"] for name, one in found.items()}


def test_a_reference_of_one_sample_is_refused(folder: Path) -> None:
    write_jsonl(folder / "single.jsonl", alpaca(1))
    done = _novelsum(folder, "measure", "pool/one.jsonl", "--reference", "single.jsonl")
    assert done.returncode == 2
    assert "two distinct reference samples" in done.stderr


def test_measure_gives_every_combination_and_variant(folder: Path) -> None:
    options = ["--neighbors", "2", "--neighbors", "3", "--proximity-power", "0", "--proximity-power", "1"]
    variant = ["--self-distance", "excluded", "--density-side", "column", "--aggregate", "sum"]
    found = _json(_novelsum(folder, "measure", "pool/one.jsonl", *options, *variant, "--json"))
    grid = found["sets"][0]["novelsum"]
    assert [(row["neighbors"], row["proximity_power"]) for row in grid] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert len({row["value"] for row in grid}) == 4
    assert found["settings"]["density_side"] == "column"
    table = _novelsum(folder, "measure", "pool/one.jsonl", *options, *variant).stdout
    assert f"{grid[3]['value']:.4f}" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-s", "missing.yaml"], "no such settings file"),
        (["select", "nothing.jsonl", "-k", "3", "-o", "out.jsonl"], "nothing.jsonl: no such file"),
        (["select", "pool/one.jsonl", "-k", "41", "-o", "out.jsonl"], "k must be from 1 to 40"),
        (["select", "pool/one.jsonl", "-k", "3", "-o", "out.csv"], "must end in one of"),
        (["select", "pool/one.jsonl", "-k", "3", "-o", "pool/one.jsonl"], "is one of the inputs"),
        (["select", "pool/one.jsonl", "-k", "3", "-o", "out.jsonl", "--strategy", "best"], "--strategy"),
        (["select", "pool/one.jsonl", "-k", "3", "-o", "out.jsonl", "--form", "csv"], "--form"),
        (["select", "pool/one.jsonl", "-k", "0", "-o", "out.jsonl"], "-k"),
        (["measure", "pool/one.jsonl", "pool/one.jsonl"], "given twice"),
        (["measure", "pool/one.jsonl", "--device", "gpu"], "--device"),
        (["measure", "pool/one.jsonl", "--model", "some/model"], "revision"),
    ],
)  # fmt: skip
def test_mistakes_end_in_plain_words(folder: Path, arguments: list[str], message: str) -> None:
    done = _novelsum(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / "out.jsonl").exists()


def test_a_failed_pipeline_is_exit_code_1_and_says_where(folder: Path) -> None:
    write_jsonl(folder / "bad" / "one.jsonl", [*alpaca(5), {"instruction": "no answer"}])
    settings = write_settings(folder / "bad", pool={"sources": [{"path": "*.jsonl"}]}, selection={"k": 3})
    done = _process(folder, "run", "-s", str(settings))
    assert done.returncode == 1
    assert "1 of 6 records are bad" in done.stderr
    assert "one.jsonl, record 6, line 6: missing_fields" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_interrupted_run_stops_and_goes_on_later(folder: Path) -> None:
    write_jsonl(folder / "stopped" / "pool" / "one.jsonl", alpaca(100))
    settings = write_settings(folder / "stopped", embedding={**REAL_MODEL, "shard_size": 4, "dtype": "float32"})
    command = [sys.executable, "-m", "novelsum_dagster", "run", "-s", str(settings)]
    process = subprocess.Popen(command, cwd=folder, env=_environment(folder), stderr=subprocess.PIPE, text=True)
    vectors = folder / "stopped" / "curated" / "vectors"
    deadline = time.monotonic() + 120
    while len(list(vectors.glob("*/*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished vectors are kept" in words
    assert "Traceback" not in words
    kept = len(list(vectors.glob("*/*.parquet")))
    assert 2 <= kept < 25
    assert _novelsum(folder, "run", "-s", str(settings)).returncode == 0
    assert len(list(vectors.glob("*/*.parquet"))) == 25


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_subset(folder: Path) -> None:
    """Kill `novelsum run` while it embeds; the next run embeds only the rest and picks the same samples."""
    calm = folder / "calm"
    write_jsonl(calm / "pool" / "one.jsonl", alpaca(200))
    sections = {"embedding": {**REAL_MODEL, "shard_size": 8, "dtype": "float32"}}
    settings = write_settings(calm, **sections)
    killed = write_settings(folder / "killed", pool={"sources": [{"path": "../calm/pool/*"}]}, **sections)
    expected = _json(_process(folder, "run", "-s", str(settings), "--json"))

    command = [sys.executable, "-m", "novelsum_dagster", "run", "-s", str(killed)]
    process = subprocess.Popen(command, cwd=folder, env=_environment(folder), stderr=subprocess.DEVNULL)
    vectors = folder / "killed" / "curated" / "vectors"
    deadline = time.monotonic() + 120
    while len(list(vectors.glob("*/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(vectors.glob("*/*.parquet")))
    assert 3 <= kept < 25

    done = _json(_process(folder, "run", "-s", str(killed), "--json"))
    assert done["pool"] == expected["pool"]
    assert Path(done["subset"]).read_bytes() == Path(expected["subset"]).read_bytes()
