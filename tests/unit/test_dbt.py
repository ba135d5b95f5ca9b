"""The program dbt runs the models of the audit, and makes the rows and descriptions that our runner makes."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import pytest

from novelsum_dagster.lineage.models import build, models
from novelsum_dagster.lineage.store import LineageStore
from tests.unit.test_models import _record, _write_files

PROJECT = Path(__file__).resolve().parents[2] / "dbt_like_sql"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dbt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return dbt in an environment of its own, with our DuckDB."""
    folder = tmp_path_factory.mktemp("dbt") / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    wanted = ["--requirement", str(PROJECT / "requirements.txt"), f"duckdb=={version('duckdb')}"]
    install = [*uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"dbt cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "dbt"


def _contents(path: Path) -> dict[str, Any]:
    """Return the rows of every model, and all descriptions."""
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = {model.name: sorted(map(str, connection.execute(f"FROM {model.name}").fetchall())) for model in models()}
        names = [model.name for model in models()]
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE table_name IN"
            " (SELECT unnest(?)) ORDER BY table_name, column_index", [names]
        ).fetchall()  # fmt: skip
    return {**rows, "columns": columns}


def test_dbt_makes_the_same_rows_and_passes_its_tests(dbt: Path, tmp_path: Path) -> None:
    root = tmp_path / "storage"
    _write_files(root)
    store = LineageStore(root)
    _record(store)
    build(store)
    own = _contents(store.path)
    copy = tmp_path / "copy" / store.path.name
    copy.parent.mkdir()
    shutil.copyfile(store.path, copy)
    with duckdb.connect(str(copy)) as connection:
        for model in reversed(models()):
            connection.execute(f"DROP {model.kind} {model.name}")
    environment = {**os.environ, "NOVELSUM_LINEAGE": str(copy), "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
    places = ["--profiles-dir", str(PROJECT), "--project-dir", str(PROJECT)]
    places += ["--target-path", str(tmp_path / "target"), "--log-path", str(tmp_path / "logs")]
    done = subprocess.run(
        [str(dbt), "build", *places], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    tests = sum(len(model.tests) for model in models())
    assert f"Found {len(models())} models, {tests} data tests" in done.stdout
    assert _contents(copy) == own
