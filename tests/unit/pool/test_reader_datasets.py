"""Datasets: configurations, parts of splits, and columns of JSON."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.datasets_reader import dataset_batches
from novelsum_dagster.pool.readers import read_file
from novelsum_dagster.pool.table_reader import json_record, read_rows

ROWS = [{"instruction": f"q{number}", "output": "a"} for number in range(40)]
PARTS = [
    ("train[:10%]", ROWS[:4]),
    ("train[10:20]", ROWS[10:20]),
    ("train[-5:]", ROWS[-5:]),
    ("train[50%:75%]", ROWS[20:30]),
    ("train[:1]+train[39:]", [ROWS[0], ROWS[39]]),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of datasets that are not saved are made in a cache of their own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def values(name: Path, split: str, config: str | None = None) -> list[Any]:
    """Return the values of a dataset's records."""
    return [record.value for record in read_rows(dataset_batches(str(name), split, None, config=config))]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines; return the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


@pytest.mark.parametrize("kind", ["files", "saved", "saved splits"])
@pytest.mark.parametrize(("split", "wanted"), PARTS)
def test_parts_of_splits_are_read(tmp_path: Path, kind: str, split: str, wanted: list[Any]) -> None:
    folder = tmp_path / "set"
    data = datasets.Dataset.from_list(ROWS)
    if kind == "files":
        write(folder / "train.jsonl", ROWS)
    else:
        (data if kind == "saved" else datasets.DatasetDict(train=data, test=data)).save_to_disk(str(folder))
    assert values(folder, split) == wanted


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("split", ["nope[:2]", "train[:x]", "train["])
def test_parts_that_are_not_there_are_an_input_error(tmp_path: Path, saved: bool, split: str) -> None:
    folder = tmp_path / "set"
    if saved:
        datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(folder))
    else:
        write(folder / "train.jsonl", ROWS)
    with pytest.raises(InputError, match="set") as error:
        values(folder, split)
    assert "\n" not in str(error.value)


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """Return a dataset with two configurations."""
    write(tmp_path / "set" / "a" / "train.jsonl", ROWS[:3])
    write(tmp_path / "set" / "b" / "train.jsonl", ROWS[3:9])
    names = "".join(f"- config_name: {name}\n  data_files: {name[0]}/*\n" for name in ("alpha", "beta"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    return tmp_path / "set"


def test_a_configuration_is_chosen(configured: Path) -> None:
    assert values(configured, "train", "alpha") == ROWS[:3]
    assert values(configured, "train", "beta") == ROWS[3:9]
    assert values(configured, "train[1:3]", "beta") == ROWS[4:6]


@pytest.mark.parametrize("config", [None, "gamma"])
def test_configurations_to_choose_from_are_named(configured: Path, config: str | None) -> None:
    with pytest.raises(InputError, match=r"alpha.*beta") as error:
        values(configured, "train", config)
    assert "\n" not in str(error.value)
    assert ("config:" in str(error.value)) == (config is None)


def test_a_saved_dataset_has_no_configurations(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="config"):
        values(tmp_path / "set", "train", "alpha")


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets has no columns of JSON")
@pytest.mark.parametrize("split", ["train", "train[:]"])
def test_columns_of_json_are_what_the_file_has(tmp_path: Path, split: str) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{number}"},
                {"role": "assistant", "content": None, "calls": [{"name": "f", "arguments": {f"a{number}": number}}]},
            ]
        }
        for number in range(20)
    ]
    folder = write(tmp_path / "set" / "train.jsonl", rows)
    batches = list(dataset_batches(str(folder), split, None))
    records = list(read_rows(batches))
    assert [record.value for record in records] == [record.value for record in read_file(folder / "train.jsonl")]
    schema = batches[0].schema.remove_metadata()
    assert [json.loads(json_record(record.original, schema)) for record in records] == rows
