"""The examples run as they are, with the packaged model, on small files."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest

from novelsum_dagster.definitions import CURATE_JOB
from novelsum_dagster.settings import CACHE_VARIABLE
from tests.instances import in_memory
from tests.machines import completed
from tests.pools import alpaca, write_jsonl, write_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_curate_selects_as_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", alpaca(60))
    found, at_random = loaded(EXAMPLES / "curate.py", monkeypatch).curate(pool, tmp_path / "own.jsonl", 12)
    options = ["-k", "12", "--drop-near-duplicates", "-o", "command.jsonl"]
    done = completed(tmp_path, "select", "pool.jsonl", *options, **{CACHE_VARIABLE: str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own.jsonl").read_bytes() == (tmp_path / "command.jsonl").read_bytes()
    assert found > at_random > 0


def test_the_notebook_measures_as_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((EXAMPLES / "measure_two_sets.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    write_jsonl(tmp_path / "first.jsonl", alpaca(40))
    write_jsonl(tmp_path / "second.jsonl", alpaca(30, start=40))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert "NovelSum" in capsys.readouterr().out
    done = completed(
        tmp_path, "measure", "first.jsonl", "second.jsonl", "--json", **{CACHE_VARIABLE: str(tmp_path / "cache")}
    )
    assert done.returncode == 0, done.stderr
    of_command = {
        (one["set"], measure): found["value"]
        for one in json.loads(done.stdout)["sets"]
        for measure, found in one["measures"].items()
    }
    rows = [row for one in names["comparison"].sets for row in one.records()]
    assert {(f"{row['set']}.jsonl", row["measure"]): row["value"] for row in rows} == of_command


def test_the_settings_of_the_project_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(EXAMPLES / "own_project" / "definitions.py", monkeypatch)
    assert module.SETTINGS.selection.k == 1000


def test_the_own_project_goes_on_from_the_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "pool" / "one.jsonl", alpaca(60))
    shutil.copy(EXAMPLES / "own_project" / "definitions.py", tmp_path)
    write_settings(tmp_path, selection={"k": 20})
    defs: dg.Definitions = loaded(tmp_path / "definitions.py", monkeypatch).defs
    node = defs.resolve_asset_graph().get(dg.AssetKey("training_files"))
    assert node.parent_keys == {dg.AssetKey("selected_subset")}
    job = defs.resolve_job_def(CURATE_JOB)
    wanted = ["raw_pool", "embeddings", "distinct_pool", "density", "selected_subset", "training_files"]
    with in_memory() as instance:
        done = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(name) for name in wanted])
    assert done.success
    parts = {"train": 18, "validation": 2}
    written = {name: (tmp_path / "training" / f"{name}.jsonl").read_text().splitlines() for name in parts}
    assert {name: len(lines) for name, lines in written.items()} == parts
    assert all(json.loads(line) in alpaca(60) for lines in written.values() for line in lines)
