"""What `measure` and `select` print about files, and that neither writes over what it reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from novelsum_dagster.pool.formats import COMPRESSIONS, FORMATS
from tests.machines import Done, called
from tests.pools import alpaca, write_jsonl
from tests.tiny import tiny_model

NEAR = ["--near-duplicates", "embedding", "--drop-near-duplicates"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pool of 40 samples: three records repeat one exactly, eight nearly."""
    rows = alpaca(40)
    near = [{**row, "instruction": f"Please: {row['instruction']}"} for row in rows[:8]]
    write_jsonl(tmp_path / "pool.jsonl", [*rows, *rows[:3], *near])
    return tmp_path


def novelsum(folder: Path, *arguments: str) -> Done:
    return called(folder, *arguments, "--model", tiny_model(), NOVELSUM_CACHE=str(folder / "cache"))


def asked(folder: Path, *arguments: str) -> dict[str, Any]:
    done = novelsum(folder, *arguments, "--json")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def rows_of(table: str) -> dict[str, list[str]]:
    """Return the cells of each row by its first one."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if line[:1] == "│"]
    return {first: rest for first, *rest in rows}


def test_select_shows_the_subset_beside_a_random_one(folder: Path) -> None:
    select = ["select", "pool.jsonl", "-k", "10", *NEAR]
    found = asked(folder, *select, "-o", "subset.jsonl")
    [measured] = [one for one in found["compared"] if one["measure"] == "novelsum"]
    shown = novelsum(folder, *select, "-o", "subset.jsonl")
    rows = rows_of(shown.out)
    assert set(rows) == {"random", "selected"}
    for name, (samples, value, interval) in rows.items():
        assert (samples, value) == ("10", f"{measured[name]:.4f}")
        low, high = map(float, interval.split(" to "))
        assert low <= measured[name] <= high
    assert f"pool: {found['pool']} samples, near-duplicates left out" in shown.out
    piped = novelsum(folder, *select, "-o", "-")
    assert [json.loads(line)["output"] for line in piped.out.splitlines()]
    assert rows_of(piped.err) == rows


def test_the_reference_is_named_beside_novelsum(folder: Path) -> None:
    chosen = asked(folder, "select", "pool.jsonl", "-k", "10", "-o", "subset.jsonl", *NEAR)
    measure = ["measure", "subset.jsonl", "-r", "pool.jsonl"]
    all_of_it, distinct = asked(folder, *measure), asked(folder, *measure, *NEAR)
    assert all_of_it["settings"]["reference"] == distinct["settings"]["reference"] == ["pool.jsonl"]
    assert all_of_it["settings"]["reference_samples"] == 48
    assert distinct["settings"]["reference_samples"] == chosen["pool"] <= 40
    values = [one["sets"][0]["measures"]["novelsum"]["value"] for one in (all_of_it, distinct)]
    [measured] = [one for one in chosen["compared"] if one["measure"] == "novelsum"]
    assert values[1] == pytest.approx(measured["selected"]) != values[0]
    assert "pool.jsonl: 48 samples." in novelsum(folder, *measure).out
    assert asked(folder, "measure", "pool.jsonl")["settings"]["reference_samples"] == 51
    assert "all sets together: 51 samples." in novelsum(folder, "measure", "pool.jsonl").out


def test_exact_and_near_duplicates_are_counted_apart(folder: Path) -> None:
    done = novelsum(folder, "select", "pool.jsonl", "-k", "5", "-o", "subset.jsonl", *NEAR)
    near = 48 - asked(folder, "select", "pool.jsonl", "-k", "5", "-o", "subset.jsonl", *NEAR)["pool"]
    assert near >= 8
    assert "pool.jsonl: 3 exact duplicates left out" in done.err
    assert f"\n{near} near-duplicates left out" in done.err


def test_cluster_inertia_is_left_out_where_it_is_always_0(folder: Path) -> None:
    assert "cluster_inertia" not in asked(folder, "measure", "pool.jsonl")["sets"][0]["measures"]
    done = novelsum(folder, "measure", "pool.jsonl")
    assert rows_of(done.out)["Cluster inertia"] == ["-"]
    assert "Cluster inertia was left out: with 200 clusters for 51 samples" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["select", "pool.jsonl", "-k", "3", "-o", "pool.jsonl"],
        ["select", "po*.jsonl", "-k", "3", "-o", "pool.jsonl"],
        ["select", "linked.jsonl", "-k", "3", "-o", "pool.jsonl"],
        ["select", "pool.jsonl", "-k", "3", "-o", "out.jsonl", "--rejects", "pool.jsonl"],
        ["measure", "pool.jsonl", "--rejects", "pool.jsonl"],
        ["measure", "other.jsonl", "-r", "pool.jsonl", "--rejects", "pool.jsonl"],
        ["measure", "measures.csv", "-o", "."],
        ["inspect", "pool.jsonl", "--rejects", "pool.jsonl"],
    ],
)
def test_no_input_is_written_over(folder: Path, arguments: list[str]) -> None:
    (folder / "linked.jsonl").symlink_to("pool.jsonl")
    (folder / "measures.csv").write_text("prompt,response\nq,a\nr,b\n")
    write_jsonl(folder / "other.jsonl", alpaca(5))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = novelsum(folder, *arguments)
    assert done.code == 2 and "one of the inputs" in done.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_two_outputs_of_one_name_are_refused(folder: Path) -> None:
    done = novelsum(folder, "select", "pool.jsonl", "-k", "3", "-o", "a.jsonl", "--rejects", "./a.jsonl")
    assert done.code == 2 and "two outputs" in done.err


def test_files_that_will_be_replaced_are_named(folder: Path) -> None:
    select = ["select", "pool.jsonl", "-k", "3", "-o", "a.jsonl", "--picks", "why.parquet"]
    assert "replaced" not in novelsum(folder, *select).err
    assert "will be replaced: a.jsonl, why.parquet" in novelsum(folder, *select).err


@pytest.mark.parametrize("command", ["measure", "select", "inspect"])
def test_help_names_every_ending_that_is_read(tmp_path: Path, command: str) -> None:
    shown = called(tmp_path, command, "--help", COLUMNS="500").out
    assert all(ending in shown for ending in (*FORMATS, *COMPRESSIONS))


def test_a_choice_that_is_misspelt_is_offered(folder: Path) -> None:
    done = novelsum(folder, "select", "pool.jsonl", "-k", "3", "-o", "a.jsonl", "--strategy", "novelselct")
    assert done.code == 2 and "--strategy: " in done.err and "did you mean novelselect?" in done.err
