"""The layers: pure packages import no Dagster, and only one place opens DuckDB for writing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "novelsum_dagster"
PURE = [
    "common", "artifacts", "pool", "embedding", "diversity", "selection", "engine", "lineage", "quality", "report",
    "audit", "study",
]  # fmt: skip


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module if node.module.startswith("novelsum_dagster") else node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", PURE)
def test_pure_packages_import_no_dagster(name: str) -> None:
    files = list((PACKAGE / name).rglob("*.py"))
    assert files
    for path in files:
        imported = _imports(path)
        assert "dagster" not in imported, path
        assert not any(module.startswith("novelsum_dagster.defs") for module in imported), path


def test_pure_packages_load_without_dagster() -> None:
    modules = [f"novelsum_dagster.{name}" for name in PURE]
    program = (
        f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\nsys.exit('dagster' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=PACKAGE.parent).returncode == 0


def test_only_the_engine_imports_ray() -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if "ray" in _imports(path)}
    assert users == {"engine"}


def test_ray_is_loaded_for_work_only() -> None:
    program = (
        "import sys, novelsum_dagster.definitions, novelsum_dagster.engine.ray_engine;"
        "sys.exit('ray' in sys.modules or 'dagster_ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=PACKAGE.parent).returncode == 0


def test_only_the_lineage_store_opens_duckdb() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "duckdb.connect" in path.read_text()}
    assert users == {"lineage/store.py"}


def test_nothing_is_pickled_and_no_remote_code_is_trusted() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not _imports(path) & {"pickle", "cloudpickle", "joblib", "dill"}, path
        assert "trust_remote_code=True" not in path.read_text(), path
