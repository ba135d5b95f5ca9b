"""What pyproject.toml, constraints.txt, the Makefile and CITATION.cff say of the package, held against each other."""

import ast
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_docker_files import make

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "novelsum_dagster"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11", "3.12", "3.13"]
CORE = {
    "dagster", "dagster-aws", "dagster-webserver", "duckdb", "faiss-cpu", "great-expectations", "pandas",
    "sentence-transformers", "torch",
}  # fmt: skip
"""What every installation has, whatever else is optional."""
OWNERS = {"botocore": "boto3", "s3transfer": "boto3", "pydantic_core": "pydantic"}
"""Modules of packages that another always brings, at the version that fits it."""


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def imported() -> Iterator[tuple[Path, str]]:
    """Yield each module of others that the package imports, and by which file."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module]
            for name in found:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "novelsum_dagster":
                    yield path.relative_to(PACKAGE), top


def test_every_import_is_declared() -> None:
    """By the main dependencies, or by the extra of the folder that imports it."""
    main, extras = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    owners = packages_distributions()
    for path, module in imported():
        if path.name == "vllm_encoder.py" and module == "vllm":
            continue  # In an environment of its own: docs/gpu.md.
        declared = set(main)
        if path.parts[0] == "explore":
            declared |= names(extras["explore"])
        if path.parts[0] == "engine" or path.name == "definitions_on_ray.py":
            declared |= names(extras["ray"])
        found = {canonicalize_name(owner) for owner in [OWNERS.get(module, ""), *owners.get(module, [])] if owner}
        assert found & declared, f"{path} imports {module}"


def test_the_extras_are_apart_from_the_main_dependencies() -> None:
    main, extras = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    assert main >= CORE
    assert set(extras) == {"all", "deploy", "dev", "explore", "ray"}
    for name in set(extras) - {"all", "dev"}:
        assert not main & names(extras[name]), name
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == set(extras) - {"all", "dev"}
    assert "novelsum-dagster[all]" in extras["dev"]


def test_every_requirement_takes_its_pin() -> None:
    lines = [line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if "==" in line)
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for one in map(Requirement, group):
            if one.name != "novelsum-dagster":
                assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one


def test_one_version_is_pinned_for_all_pythons_and_systems() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len({line.partition("==")[0] for line in lines}) == len(lines)


def test_the_pythons_are_the_same_everywhere() -> None:
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    checked = re.findall(r"python(3\.\d+)", (ROOT / "tests" / "check-wheel").read_text())
    sought = re.findall(r"for one in(.*?);", (ROOT / "Makefile").read_text())[0]
    assert classified == checked == PYTHONS
    assert re.findall(r"python(3\.\d+)", sought) == PYTHONS[::-1]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


@pytest.mark.parametrize(("runs", "taken"), [(PYTHONS, "3.13"), (["3.11", "3.12"], "3.12"), ([], None)])
def test_make_takes_the_newest_python_that_runs(tmp_path: Path, runs: list[str], taken: str | None) -> None:
    for version in PYTHONS:
        program = tmp_path / f"python{version}"
        program.write_text(f"#!/bin/sh\nexit {0 if version in runs else 127}\n")
        program.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    done = make("--dry-run", "setup", cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    if taken is None:
        assert done.returncode != 0 and "none of python3.13, python3.12 and python3.11 runs" in done.stderr
    else:
        assert f"|| python{taken} -m venv .venv" in done.stdout, done.stderr


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"] and cited["license"] == PROJECT["license"]
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert cited["references"][0]["url"] == PROJECT["urls"]["Paper"]
