"""Every code block of README.md, CONTRIBUTING.md and docs/ does what the page says.

Python runs, YAML is read as settings, SQL is asked of a lineage; the commands of a shell are parsed by the programs
that they call, and those of `novelsum` run. What does not run says so and why in a comment before the block.
"""

import argparse
import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.settings import CACHE_VARIABLE, load_settings
from tests.blocks import PAGES, ROOT, Block, blocks, commands
from tests.machines import Done, called
from tests.pools import alpaca, pairs, write_jsonl, write_settings

ALL = blocks()
TESTED = {"bash", "python", "sql", "yaml"}
K = 20
"""Samples that `-k` chooses here, where the pools are small, instead of more."""
ROWS = 6500
_SHELL = {"dbt", "cd", "cp", "echo", "export", "mkdir", "mv", "od", "source", "tr", "umask"}
"""Commands of the shell and of any Unix, which nothing here parses, and dbt, which `test_dbt` runs."""
_NO_EFFECT = {"export", "source"}
"""Commands that only prepare the shell."""


def _of(language: str) -> Any:
    return pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in ALL if b.language == language])


@dataclass(frozen=True)
class Curated:
    """A folder with two runs, and the real values of what the pages name."""

    folder: Path
    values: dict[str, str]

    def real(self, word: str) -> str:
        return self.values.get(word, word)

    def novelsum(self, *arguments: str) -> Done:
        variables = {CACHE_VARIABLE: str(self.folder / "cache")}
        if arguments[0] == "run":  # A process holds the storage as long as it lives, and gc waits for that.
            command = [sys.executable, "-m", "novelsum_dagster", *arguments]
            done = subprocess.run(
                command, cwd=self.folder, env={**os.environ, **variables}, capture_output=True, text=True
            )
            return Done(done.returncode, done.stdout, done.stderr)
        return called(self.folder, *arguments, **variables)

    def lineage(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return LineageStore(self.folder / "curated").reading()


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """Two runs, of which the second picks five more, and files to measure and select."""
    folder = tmp_path_factory.mktemp("blocks")
    write_jsonl(folder / "pool" / "codegen.jsonl", alpaca(60))
    write_jsonl(folder / "pool.jsonl", alpaca(60))
    write_jsonl(folder / "other.jsonl", alpaca(30, start=60))
    pq.write_table(pa.Table.from_pylist(alpaca(20, start=90)), folder / "more.parquet")
    write_jsonl(folder / "subset.jsonl", alpaca(20))
    made = Curated(folder, {})
    for k in (K, K + 5):
        write_settings(folder, selection={"k": k})
        done = made.novelsum("run")
        assert done.code == 0, done.err
    with made.lineage() as connection:
        runs = [run for (run,) in connection.execute("SELECT run_id FROM runs ORDER BY started_at").fetchall()]
        query = "SELECT id, line FROM selection_audit WHERE run_id = ? AND rank IS {} NULL ORDER BY line"
        picked, picked_line = connection.execute(query.format("NOT"), [runs[-1]]).fetchall()[0]
        _, left_out_line = connection.execute(query.format(""), [runs[-1]]).fetchall()[0]
    made.values.update(
        {
            "4f0c91": picked[:8],
            "8bb29fbe": picked[:8],
            "codegen.jsonl:341": f"codegen.jsonl:{picked_line}",
            "chat.json#151": f"codegen.jsonl#{picked_line}",
            "codegen.jsonl:2610": f"codegen.jsonl:{left_out_line}",
            "quicksort algorithm": alpaca(60)[picked_line - 1]["instruction"],
            "RUN_A": runs[0],
            "d81720ba": runs[0][:8],
            "RUN_B": runs[1],
            "RUN": runs[1],
            "450ed41b": runs[1][:8],
            "450ed41b-4286-4522-9563-eeaf25c63fe1": runs[1],
            "gsm8k": "codegen",
        }
    )
    return made


def test_every_block_is_tested_or_says_why_not() -> None:
    for block in ALL:
        assert block.language, f"{block.place}: the fence names no language"
        assert not block.comment or block.reason, f"{block.place}: {block.comment!r} is no marker"
        assert block.language in TESTED or block.not_run == ["..."], f"{block.place}: {block.language} is not tested"
    # A marker that the pages' syntax hides, and a fence that is not closed, would be missed.
    text = "".join(page.read_text() for page in PAGES)
    assert len(re.findall("^<!-- not run", text, re.MULTILINE)) == sum(1 for block in ALL if block.reason)
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(ALL)


@_of("python")
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {} if block.page == "README.md" else _names()
    statements = ast.parse(block.code).body
    sources = [ast.get_source_segment(block.code, statement) or "" for statement in statements]
    _require_all_used(block, sources)
    for statement, source in zip(statements, sources, strict=True):
        if block.runs(source):
            exec(compile(ast.Module([statement], []), block.place, "exec"), names)
    assert not any(tmp_path.iterdir()), "the pages name no file that stays"


def _names() -> dict[str, Any]:
    """Return what the Python blocks take as given."""
    draw = np.random.default_rng(0)
    embeddings = draw.normal(size=(ROWS, 8)).astype(np.float32)
    texts = [f"{question} {answer}" for question, answer in pairs(1000)]
    return {
        "embeddings": embeddings,
        "sources": ["web" if row % 10 == 0 else "books" for row in range(ROWS)],
        "scores": draw.uniform(0.5, 2, size=ROWS),
        "tokens": draw.integers(100, 1000, size=ROWS),
        "target": embeddings[:300],
        "pool": embeddings[:1000],
        "january": embeddings[:300],
        "february": embeddings[300:500],
        "texts": texts[:500],
        "more_texts": texts[500:],
    }


@_of("yaml")
def test_yaml_is_valid_settings(block: Block, tmp_path: Path) -> None:
    values = yaml.safe_load(block.code)
    values["pool"] = {"sources": [{"path": "pool/*.jsonl"}], **values.get("pool", {})}
    (tmp_path / "curation.yaml").write_text(yaml.safe_dump(values))
    load_settings(tmp_path / "curation.yaml")


@_of("sql")
def test_sql_finds_rows(block: Block, curated: Curated) -> None:
    query = re.sub(r"'([^']*)'", lambda text: f"'{curated.real(text[1])}'", block.code)
    with curated.lineage() as connection:
        assert connection.execute(query).fetchall()


@_of("bash")
def test_commands_are_known_to_their_programs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _require_all_used(block, [" ".join(words) for words in commands(block.code)])
    for words in commands(block.code):
        _parse(words)


@_of("bash")
def test_commands_run(block: Block, curated: Curated) -> None:
    for words in commands(block.code):
        if block.runs(" ".join(words)) and words[0] not in _NO_EFFECT:
            assert words[0] == "novelsum", f"{words} neither runs nor is marked"
            arguments = [curated.real(word) for word in words[1:]]
            if "-k" in arguments:
                arguments[arguments.index("-k") + 1] = str(K)
            done = curated.novelsum(*arguments)
            assert done.code == 0, f"{arguments}: {done.err}"


def test_commands_within_sentences_exist() -> None:
    known = {option for _, command in _leaves(_novelsum()) for option in _options(command)}
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"(?<!`)`(novelsum [^`]+|--[^`]+)`(?!`)", text):
            words = code.split()
            if words[0] == "novelsum":
                command, rest = _command(_novelsum(), words[1:])
                found = set(_options(command)) | {"--help", "--version"}
            else:
                found, rest = known | _OPTIONS_OF_OTHERS, words
            for word in rest:
                assert not word.startswith("-") or word in found, f"{page.name}: {code}"


def test_the_layers_on_the_page_are_those_that_are_enforced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    [block] = [block for block in ALL if block.page == "docs/architecture.md" and block.language == "text"]
    shown = [re.split("  +", line)[0] for line in block.code.splitlines()]
    assert shown == [layer.replace("novelsum_dagster.", "") for layer in layers]


_OPTIONS_OF_OTHERS = {"--read-only", "--format", "--price"}
"""Options of dagster-webserver, buildah and benchmarks.scaling."""


def _require_all_used(block: Block, parts: list[str]) -> None:
    for part in block.not_run:
        only = Block(block.place, block.language, block.code, f"<!-- not run (`{part}`): it -->\n")
        assert not all(map(only.runs, parts)), f"{block.place}: the marker names {part}, which is not in the block"


def _parse(words: list[str]) -> None:
    """Have a command parsed by its program, as far as it is here."""
    program, arguments = Path(words[0]).name, words[1:]
    if program in _SHELL:
        return
    if program == "novelsum":
        _parse_by(_novelsum(), arguments)
    elif program in ("dagster", "dg", "ray"):
        _parse_by(_group(program), arguments)
    elif program == "make":
        _parse_make(arguments)
    elif program == "pip":
        _parse_pip(arguments)
    elif program.startswith("python"):
        _parse_module(arguments)
    elif program == "docker":
        _parse_docker(arguments)
    elif program in ("kubectl", "helm"):
        _parse_kubernetes(arguments)
    elif program == "cyclonedx-py":
        assert shutil.which(program, path=str(Path(sys.executable).parent))
    else:
        pytest.fail(f"{words}: nothing here knows this program")


def _novelsum() -> Any:
    from typer.main import get_command

    from novelsum_dagster.cli.main import app

    return get_command(app)


def _group(program: str) -> Any:
    if program == "dagster":
        from dagster._cli import cli

        return cli
    if program == "dg":
        from dagster_dg_cli.cli import create_dg_cli

        return create_dg_cli()  # type: ignore[no-untyped-call]
    return pytest.importorskip("ray.scripts.scripts").cli


def _command(group: Any, words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name within groups, and the words after it."""
    command, rest = group, list(words)
    while rest and not rest[0].startswith("-") and hasattr(command, "get_command"):
        with command.make_context("group", ["anything"], resilient_parsing=True) as context:
            found = command.get_command(context, rest[0])
        assert found is not None, f"{words}: there is no command {rest[0]}"
        command, rest = found, rest[1:]
    return command, rest


def _parse_by(group: Any, words: list[str]) -> None:
    command, rest = _command(group, words)
    assert not hasattr(command, "get_command"), f"{words} names a group of commands"
    command.make_context(command.name, rest).close()


def _leaves(group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command)
        else:
            yield name, command


def _options(command: Any) -> list[str]:
    return [name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]]


def _parse_make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for argument in arguments:
        variable, is_set, _ = argument.partition("=")
        if is_set:
            assert f"$({variable})" in text, f"the Makefile has no variable {variable}"
        else:
            assert re.search(rf"^{argument}:", text, re.MULTILINE), f"the Makefile has no target {argument}"


def _parse_pip(arguments: list[str]) -> None:
    if arguments[0] != "install":
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for option, argument in zip(["", *arguments], [*arguments, ""], strict=True):
        if option == "--constraint":
            assert (ROOT / argument).is_file()
        if extras := re.fullmatch(r"\.\[(.*)\]", argument):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


class _Parsed(Exception):
    """The arguments of a program are valid."""


def _parse_module(arguments: list[str]) -> None:
    """Have the parser of a module read its arguments; the module ends then."""
    assert arguments[0] == "-m"
    name = arguments[1]
    if not name.startswith("benchmarks"):
        assert importlib.util.find_spec(name), f"there is no module {name}"
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise _Parsed

    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Parsed):
        patch.setattr(sys, "argv", [name, *arguments[2:]])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        module.main()


def _parse_docker(arguments: list[str]) -> None:
    if arguments[0] == "compose":
        compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
        services = compose["services"]
        profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
        for option, argument in pairwise(arguments):
            if option == "--file":
                assert (ROOT / argument).is_file()
            if option == "--profile":
                assert argument in profiles
        if "exec" in arguments:
            assert next(word for word in arguments[arguments.index("exec") + 1 :] if word[0] != "-") in services
        if "logs" in arguments:
            assert arguments[-1] in services
    if "novelsum" in arguments:
        _parse(arguments[arguments.index("novelsum") :])


def _parse_kubernetes(arguments: list[str]) -> None:
    values = (ROOT / "docker" / "helm-values.yaml").read_text()
    if arguments[0] == "create":
        name = next(word for word in arguments if word.startswith("novelsum-"))
        assert name in values, f"helm-values.yaml does not name {name}"
    for option, argument in pairwise(arguments):
        if option == "--values":
            assert (ROOT / argument).is_file()
        if option == "--version":
            assert f'"dagster>={argument},' in (ROOT / "pyproject.toml").read_text()
