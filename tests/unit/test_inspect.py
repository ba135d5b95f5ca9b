"""`novelsum inspect`, and what the options of `measure`, `select` and `inspect` mean."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.cli.files import FileOptions
from novelsum_dagster.common.errors import InputError
from tests.machines import called
from tests.pools import alpaca, pairs, write_jsonl
from tests.tiny import tiny_model

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 1}


def asked(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the JSON that a command printed."""
    done = called(folder, *arguments, "--json")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_inspect_shows_forms_columns_rejects_and_lengths(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"instruction": "q"}, {"instruction": "r"}, {"messages": []}]
    short = [{**record, "output": "Yes."} for record in alpaca(2)]
    long = {"instruction": "word " * 300, "input": "", "output": "Yes."}
    write_jsonl(tmp_path / "a.jsonl", [*short, long, CHAT, {**CHAT, "id": 2}, *bad])
    (found,) = asked(tmp_path, "inspect", "a.jsonl")["files"]
    assert found["forms"] == {"alpaca": 3, "messages": 1}
    assert {name: found["file"][name] for name in ("read", "kept", "duplicates", "rejects", "unread")} == {
        "read": 8, "kept": 4, "duplicates": 1, "rejects": 3, "unread": 0,
    }  # fmt: skip
    assert found["file"]["content_columns"] == ["input", "instruction", "messages", "output"]
    assert found["file"]["other_columns"] == ["id"]
    assert [(kind["reason"], kind["records"], kind["line"]) for kind in found["rejects"]] == [
        ("missing_fields", 2, 6), ("empty_field", 1, 8),
    ]  # fmt: skip
    assert [example["form"] for example in found["examples"]] == ["alpaca", "messages"]
    assert found["examples"][1]["text"] == "q\na"
    assert found["cut"]["samples"] == 4 and found["cut"]["cut"] == 1
    assert found["tokens"]["least"] == 2 <= found["tokens"]["median"] <= found["tokens"]["most"]


def test_inspect_shows_records_with_media_in_bytes(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "image": {"bytes": b"\xff", "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (found,) = asked(tmp_path, "inspect", "a.parquet")["files"]
    assert found["file"]["with_media"] == 1 and found["examples"][0]["text"] == "q\na"


def test_inspect_reads_files_without_any_sample(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"x": 1}])
    (tmp_path / "b.jsonl").touch()
    done = called(tmp_path, "inspect", "a.jsonl", "b.jsonl")
    assert done.code == 0 and "missing_fields 1" in done.out and "b.jsonl" in done.out


def test_inspect_looks_at_the_sources_of_a_settings_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"q": q, "meta": {"a": a}} for q, a in pairs(2)])
    settings = "pool:\n  sources:\n    - {path: a.jsonl, columns: {prompt: q, response: meta.a}}\nselection: {k: 1}\n"
    (tmp_path / "curation.yaml").write_text(settings)
    (found,) = asked(tmp_path, "inspect", "--settings", "curation.yaml")["files"]
    assert found["forms"] == {"prompt_completion": 2} and len(found["examples"][0]["turns"]) == 2


def test_rejects_are_written_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{json.dumps(alpaca(1)[0])}\n\n{{"broken\n')
    for name in ("out.jsonl", "out.parquet"):
        asked(tmp_path, "inspect", "a.jsonl", "--rejects", name)
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (row["file"], row["position"], row["line"], row["reason"]) == ("a.jsonl", 2, 3, "broken_json")
    assert row["original"] == '{"broken'
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 1
    assert called(tmp_path, "inspect", "a.jsonl", "--rejects", "out.txt").code == 2


def test_options_may_be_for_one_file(tmp_path: Path) -> None:
    files = [Path("a.jsonl"), Path("b=c.jsonl")]
    pool = FileOptions(
        form=["text", "b=c.jsonl=alpaca"], columns=["a.jsonl:text=body", "prompt=q,response=meta.a"]
    ).pool(files)
    assert [source.form for source in pool.sources] == ["text", "alpaca"]
    assert [source.columns for source in pool.sources] == [{"text": "body"}, {"prompt": "q", "response": "meta.a"}]


@pytest.mark.parametrize(
    ("forms", "columns", "says"),
    [
        (["poem"], None, "--form"),
        (["x.jsonl=alpaca"], None, "x.jsonl is not one of the files"),
        (None, ["prompt"], "prompt=q,response=a"),
        (None, ["verse=q"], "--columns: verse"),
        (None, ["prompt=q,prompt=r"], "--columns: prompt is given twice"),
        (None, ["x.jsonl:prompt=q"], "x.jsonl is not one of the files"),
    ],
)
def test_wrong_options_are_named(forms: list[str] | None, columns: list[str] | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        FileOptions(form=forms, columns=columns).pool([Path("a.jsonl")])
    with pytest.raises(InputError, match="--text"):
        FileOptions(text="verses").embedding()


def test_select_takes_vectors_of_ones_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*alpaca(12), {"x": 1}])
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(13, 5)))
    options = ("-k", "3", "-o", "out.jsonl", "--max-reject-fraction", "0.5")
    found = asked(tmp_path, "select", "a.jsonl", *options, "--vectors", "v.npy")
    assert found["selected"] == 3 and len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    np.save(tmp_path / "short.npy", np.ones((12, 5)))
    done = called(tmp_path, "select", "a.jsonl", *options, "--vectors", "short.npy")
    assert done.code == 2 and "short.npy" in done.err and "13" in done.err


def test_select_says_what_the_model_does_not_read(tmp_path: Path) -> None:
    long = [{**record, "output": record["output"] * 40} for record in alpaca(6)]
    write_jsonl(tmp_path / "a.jsonl", long)
    options = ("select", "a.jsonl", "-k", "2", "-o", "out.jsonl", "--model", str(tiny_model()))
    assert "6 of 6 samples are longer" in called(tmp_path, *options).err
    assert "are longer" not in called(tmp_path, *options, "--long", "windows").err


def test_longer_samples_are_let_in_where_the_option_says_so(tmp_path: Path) -> None:
    short = [{**record, "output": "Yes."} for record in alpaca(4)]
    write_jsonl(tmp_path / "a.jsonl", [*short, {"instruction": "q" * 300, "output": "a" * 400}])
    options = ("select", "a.jsonl", "-k", "2", "-o", "out.jsonl", "--model", str(tiny_model()))
    assert "over_long" in called(tmp_path, *options, "--max-characters", "600", "--max-reject-fraction", "0.9").err
    assert called(tmp_path, *options, "--max-characters", "701").code == 0
