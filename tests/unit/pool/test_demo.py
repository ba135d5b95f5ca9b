"""The demo pool is real text in every form, and the same each time."""

from pathlib import Path

import pytest

from novelsum_dagster.pool.demo import SAMPLES_PER_SOURCE, documented, write_demo_pool
from novelsum_dagster.pool.forms import FORMS
from tests.unit.pool.building import adds_up, build, hidden


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Write the demo pool once."""
    base = tmp_path_factory.mktemp("demo")
    return base, write_demo_pool(base / "pool")


def test_the_counts_are_those_of_the_files(demo: tuple[Path, dict[str, int]]) -> None:
    base, counts = demo
    snapshot = build(base, "pool/*", max_reject_fraction=0.0)
    assert {Path(file.file).name: file.read for file in snapshot.files} == counts
    assert snapshot.rejects == 0 and adds_up(snapshot)
    assert sum(counts.values()) > 1500 and max(counts.values()) <= SAMPLES_PER_SOURCE
    assert snapshot.kept > 0.9 * snapshot.read


def test_every_form_and_format_is_there(demo: tuple[Path, dict[str, int]]) -> None:
    base, _ = demo
    files = build(base, "pool/*").files
    assert {file.form for file in files} == set(FORMS) - {"preference", "text"}
    assert {file.format for file in files} == {"json", "jsonl", "parquet"}


def test_the_pool_is_the_same_each_time(demo: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    base, counts = demo
    assert write_demo_pool(tmp_path / "pool") == counts
    for path in (base / "pool").iterdir():
        assert (tmp_path / "pool" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not list(hidden(tmp_path))


def test_questions_are_distinct_and_answers_are_documentation() -> None:
    found = dict(documented("python", ("json", "heapq")))
    assert len(found) == len(list(documented("python", ("json", "heapq", "json"))))
    assert "Serialize" in found["What is the python function json.dumps for, and how is it used?"]
    assert min(map(len, found.values())) >= 120
