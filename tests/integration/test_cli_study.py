"""`novelsum study` as a person and a script use it."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from novelsum_dagster.diversity.measures import MEASURES
from tests.machines import completed
from tests.pools import alpaca, write_jsonl, write_settings

ROOT = Path(__file__).resolve().parents[2]
SCATTER = ROOT / "tests" / "golden" / "paper-scatter.csv"
NAMES = ["random-8-s1", "random-8-s2", "farthest-8-s1", "duplicate-8-s1-x2", "duplicate-8-s2-x2"]
SECTIONS: dict[str, Any] = {
    "pool": {"sources": [{"path": "pool/*"}], "near_duplicates": {"by": "off"}},
    "selection": {"k": 10},
    "device": "cpu",
    "embedding": {"dtype": "float32", "max_tokens": 64},
    "measures": {"ttr_tokens": 100, "inertia_clusters": 3, "partition_clusters": 5},
    "study": {
        "sizes": [8],
        "strategies": ["random", "farthest", "duplicate"],
        "seeds": [1, 2],
        "copies": [2],
        "held_out": 4,
        "neighbors": [3],
        "density_powers": [0.5],
        "proximity_powers": [0, 1],
        "training": {"tokens": 2000, "context": 16, "batch_size": 64, "vocabulary": 300},
    },
}


def _variables(folder: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "100"}


def _novelsum(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a command in this process."""
    return completed(folder, *arguments, **_variables(folder))


def _process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "NOVELSUM_SETTINGS")}
    # Work so small gains nothing from a second thread, and waits for it where the machine is busy.
    own = {**_variables(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "novelsum_dagster", *arguments],
        cwd=folder, env={**kept, **own}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _figures(path: Path, names: list[str]) -> Path:
    path.write_text("set,performance\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names)))
    return path


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _require_pictures(folder: Path, *names: str) -> None:
    for name in names:
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool that no command has read."""
    path = tmp_path_factory.mktemp("fresh")
    write_jsonl(path / "pool" / "one.jsonl", alpaca(20))
    write_settings(path, **SECTIONS)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool that `novelsum run` has read and embedded."""
    path = tmp_path_factory.mktemp("cli_study")
    write_jsonl(path / "pool" / "one.jsonl", alpaca(20))
    write_jsonl(path / "pool" / "two.jsonl", alpaca(20, start=20))
    write_settings(path, **SECTIONS)
    _json(_novelsum(path, "run", "--json"))
    return path


@pytest.mark.parametrize("command", [(), ("simulate",), ("correlate",), ("page",)])
def test_help_teaches(fresh: Path, command: tuple[str, ...]) -> None:
    done = _novelsum(fresh, "study", *command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    for word in ("simulate", "correlate", "page") if not command else ("--output", "--json", "Example: novelsum study"):
        assert word in done.stdout


@pytest.mark.slow
def test_simulate_ranks_the_measures_and_writes_them(fresh: Path) -> None:
    done = _novelsum(fresh, "study", "simulate", "--repeats", "1", "--seed", "3", "--json", "--output", "simulation")
    found = _json(done)
    assert (found["seed"], found["repeats"]) == (3, 1)
    rows = found["scores"]
    assert {row["measure"] for row in rows} == set(MEASURES) - {"ttr", "vocd_d", "g_vendi"}
    assert all(row["right"] <= row["pairs"] and row["share"] == row["right"] / row["pairs"] for row in rows)
    folder = fresh / "simulation"
    assert len(_rows(folder / "scores.csv")) == len(rows)
    pictures = [path.name for path in folder.glob("*.png")]
    assert pictures
    _require_pictures(folder, *pictures)


@pytest.mark.slow
def test_simulate_prints_a_table(fresh: Path) -> None:
    done = _novelsum(fresh, "study", "simulate", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "Comparisons ranked as expected" in done.stdout
    assert "NovelSum" in done.stdout and "%" in done.stdout
    assert "TTR" in done.stderr  # What was left out, and why.


def test_the_figures_of_the_paper_correlate_as_in_the_paper(fresh: Path) -> None:
    found = _json(_novelsum(fresh, "study", "correlate", "--table", str(SCATTER), "--json", "--output", "paper"))
    r = {(row["group"], row["method"]): row["r"] for row in found["correlations"]}
    assert r["all sets", "pearson"] == pytest.approx(0.976, abs=5e-4)
    assert r["all sets", "spearman"] == pytest.approx(0.979, abs=5e-4)
    assert r["selection strategies", "pearson"] == pytest.approx(0.81, abs=5e-3)
    assert r["selection strategies", "spearman"] == pytest.approx(0.75, abs=5e-3)
    assert (len(found["sets"]), found["grid"]) == (39, [])
    folder = fresh / "paper"
    assert json.loads((folder / "outcome.json").read_text()) == found
    assert len(_rows(folder / "sets.csv")) == 39
    assert len(_rows(folder / "correlations.csv")) == len(found["correlations"])
    _require_pictures(folder, "scatter.png", "measures.png", "correlations.png")


def test_a_table_is_shown_with_its_best_measure_first(fresh: Path) -> None:
    """A coefficient of 0 stands above one below 0, and one that is not defined comes last."""
    (fresh / "own.csv").write_text(
        "strategy,same,against,neither,with,performance\na,1,4,1,1,1\nb,1,3,-1,2,2\nc,1,2,-1,3,3\nd,1,1,1,4,4\n"
    )
    done = _novelsum(fresh, "study", "correlate", "--table", "own.csv")
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f" {name} ") for name in ("with", "neither", "against", "same")]
    assert places == sorted(places)
    assert "none" in done.stdout and "1.000" in done.stdout
    assert "column of own.csv. Above 0: more diverse sets perform better." in done.stderr


def test_list_sets_needs_no_run(fresh: Path) -> None:
    done = _novelsum(fresh, "study", "correlate", "--list-sets")
    assert done.returncode == 0
    assert done.stdout.splitlines() == NAMES
    listed = _json(_novelsum(fresh, "study", "correlate", "--list-sets", "--json"))
    assert [recipe["name"] for recipe in listed] == NAMES
    asked = {"name": NAMES[3], "strategy": "duplicate", "size": 8, "seed": 1, "copies": 2}
    assert {key: listed[3][key] for key in asked} == asked
    assert not (fresh / "curated").exists()


def test_before_any_run_it_says_what_to_do(fresh: Path) -> None:
    done = _process(fresh, "study", "correlate")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "raw_pool is not materialised yet" in done.stderr
    assert "novelsum run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "missing.yaml"], "missing.yaml: no such settings file"),
        (["--table", "missing.csv"], "missing.csv: cannot be read as CSV"),
        (["--table", "long.csv"], "long.csv:2: has 4 values in place of 3"),
        (["--table", "long.csv", "--list-sets"], "omit --performance and --list-sets"),
        (["--table", "long.csv", "--performance", "long.csv"], "omit --performance and --list-sets"),
        (["--list-sets", "--output", "long.csv"], "--output: long.csv is a file"),
    ],
)
def test_mistakes_end_in_plain_words(fresh: Path, arguments: list[str], message: str) -> None:
    (fresh / "long.csv").write_text("strategy,novelsum,performance\na,1,2,3\n")
    done = _novelsum(fresh, "study", "correlate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_figures_of_unknown_sets_are_refused_before_any_training(folder: Path) -> None:
    _figures(folder / "wrong.csv", [*NAMES[:4], "duplicate-8-s2-x3"])
    done = _novelsum(folder, "study", "correlate", "--performance", "wrong.csv")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "wrong.csv:6: the study has no set 'duplicate-8-s2-x3'" in done.stderr
    assert done.stdout == ""
    assert not (folder / "curated" / "study").exists()


def test_figures_of_a_file_take_the_place_of_training(folder: Path) -> None:
    _figures(folder / "right.csv", NAMES)
    shown = _novelsum(folder, "study", "correlate", "--performance", "right.csv")
    assert shown.returncode == 0, shown.stderr
    assert "Correlation with performance, 5 sets" in shown.stdout
    assert "NovelSum agrees best at K = " in shown.stdout
    assert "Performance: figures of right.csv." in shown.stderr
    kept = next(line for line in shown.stderr.splitlines() if line.startswith("Tables and pictures: "))
    found = json.loads((Path(kept.removeprefix("Tables and pictures: ")) / "outcome.json").read_text())
    assert {row["set"]: row["performance"] for row in found["sets"]} == dict(zip(NAMES, range(5), strict=True))
    assert not list((folder / "curated" / "study").glob("performance=*"))


def test_a_study_runs_and_a_second_one_is_quick(folder: Path) -> None:
    first = _novelsum(folder, "study", "correlate", "--json", "--output", "outcome")
    found = _json(first)
    assert [row["set"] for row in found["sets"]] == NAMES
    assert {row["measure"] for row in found["correlations"]} == set(MEASURES) - {"g_vendi"}
    assert "2,000 tokens a set" in found["performance"]
    assert sum(row["performance"] for row in found["sets"]) == pytest.approx(0, abs=1e-9)
    assert "training 5 models, in tokens: 10,000 of 10,000 (100%)" in first.stderr
    study = folder / "curated" / "study"
    assert len(list(study.glob("performance=*.json"))) == 5
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}

    started = time.monotonic()
    again = _novelsum(folder, "study", "correlate", "--json", "--output", "outcome2")
    assert time.monotonic() - started < 60  # Generous: a machine may be busy.
    assert again.stdout == first.stdout
    assert "2,000" not in again.stderr.replace("2,000 tokens a set", "")  # Nothing was new.
    kept = {path: stamp for path, stamp in before.items() if path != study and "tables" not in path.parts}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert set(study.rglob("*")) == set(before)
    for name in ("outcome.json", "sets.csv", "correlations.csv", "grid.csv", "sets.parquet"):
        assert (folder / "outcome" / name).read_bytes() == (folder / "outcome2" / name).read_bytes()
    _require_pictures(folder / "outcome", "scatter.png", "measures.png", "correlations.png")


def test_studies_of_several_folders_become_one_page(folder: Path) -> None:
    for name in ("first", "second"):
        settings = yaml.safe_load((folder / "curation.yaml").read_text())
        settings["study"] |= {"name": name, "unseen": "two", "held_out": 3, "training_seeds": [1, 2]}
        settings["study"]["strategies"] = ["random", "farthest"]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        done = _novelsum(folder, "study", "correlate", "--settings", f"{name}.yaml", "--export", f"tables-{name}")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (folder / f"tables-{name}").iterdir()} == {
            "trials.csv", "measures.csv", "sets.csv", "studies.csv",
        }  # fmt: skip
    found = _json(
        _novelsum(folder, "study", "page", "tables-first", "tables-second", "-o", "page/study.html", "--json")
    )
    assert list(found["pools"]) == ["first", "second"]
    assert [(one["pool"], one["sets"], one["training_seeds"]) for one in found["cells"]] == [
        ("first", 3, 2), ("second", 3, 2),
    ]  # fmt: skip
    assert {one["kind"] for one in found["gains"]} == {"seen", "unseen"}
    assert "<script" not in (folder / "page" / "study.html").read_text()
    shown = _novelsum(folder, "study", "page", "tables-first", "-o", "page/study.html")
    assert "From 1 pool, 3 sets were chosen and measured, and 6 models trained on them" in shown.stdout
    again = _novelsum(folder, "study", "page", "tables-first", "tables-first", "-o", "page/study.html")
    assert again.returncode == 2 and "the pool first is in two of the folders" in again.stderr
    lost = _novelsum(folder, "study", "page", "nowhere", "-o", "page/study.html")
    assert lost.returncode == 2 and "is missing; name a folder that study correlate --export has written" in lost.stderr


def test_sets_are_written_for_models_trained_elsewhere(folder: Path) -> None:
    planned = _json(_novelsum(folder, "study", "correlate", "--list-sets", "--json"))
    done = _novelsum(folder, "study", "correlate", "--write-sets", "sets")
    assert done.returncode == 0, done.stderr
    written = {path.stem: path.read_text().splitlines() for path in (folder / "sets").glob("*.jsonl")}
    assert {name: len(lines) for name, lines in written.items()} == {one["name"]: one["size"] for one in planned}
    pool = {json.dumps(record) for record in alpaca(40)}
    assert all(json.dumps(json.loads(line)) in pool for lines in written.values() for line in lines)


def test_a_size_over_the_pool_names_the_setting(folder: Path) -> None:
    settings = yaml.safe_load((folder / "curation.yaml").read_text())
    settings["study"]["sizes"] = [10_000]
    (folder / "large.yaml").write_text(yaml.safe_dump(settings))
    done = _novelsum(folder, "study", "correlate", "--settings", "large.yaml")
    assert done.returncode == 2
    assert "study.sizes: 10,000 is more than" in done.stderr
