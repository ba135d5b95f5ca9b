"""The layers: pure packages import no Dagster, and only one place opens DuckDB for writing."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "novelsum_dagster"
PURE = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name not in ("cli", "defs"))


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module if node.module.startswith("novelsum_dagster") else node.module.split(".")[0])
    return found


def test_pure_packages_load_without_dagster() -> None:
    """`make lint` holds the layers (import-linter); this is what is loaded when everything pure is."""
    program = (
        f"import importlib, pkgutil, sys, novelsum_dagster\n"
        f"for found in pkgutil.walk_packages(novelsum_dagster.__path__, 'novelsum_dagster.'):\n"
        f"    if found.name.split('.')[1] in {PURE} and not found.name.endswith('explore.page'):\n"
        f"        importlib.import_module(found.name)\n"
        f"sys.exit(bool({{'dagster', 'dagster_aws'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=PACKAGE.parent, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


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
