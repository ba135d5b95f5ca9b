"""Files that are found, refused by their content, or named in a way that helps nobody."""

import gzip
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.datasets_reader import is_saved_dataset
from novelsum_dagster.pool.readers import find_files, read_file, require_readable

GOOD = b'{"instruction": "q", "output": "a"}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
ZIP = b"PK\x03\x04\x14\x00\x00\x00\x08\x00"
ZSTD = pa.compress(GOOD, codec="zstd", asbytes=True)

REFUSED = {
    "lfs": ("a.jsonl", LFS, "git lfs pull"),
    "lfs parquet": ("a.parquet", LFS, "git lfs pull"),
    "lfs gzip": ("a.json.gz", LFS, "git lfs pull"),
    "html": ("a.jsonl", b"\n<!DOCTYPE html><html>", "HTML"),
    "xml": ("a.csv", b"\xef\xbb\xbf<?xml version='1.0'?>", "XML"),
    "gzip": ("a.jsonl", gzip.compress(GOOD), r"name it a\.jsonl\.gz"),
    "zstd": ("a.json", ZSTD, r"name it a\.json\.zst"),
    "zstd as gzip": ("a.json.gz", ZSTD, r"name it a\.json\.zst"),
    "gzip parquet": ("a.parquet", gzip.compress(GOOD), "decompress it"),
    "xlsx": ("a.csv", ZIP + b"\x00" * 20 + b"[Content_Types].xml", "save it as CSV"),
    "xls": ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as CSV"),
    "zip": ("a.json", ZIP + b"\x00" * 20 + b"data.json", "unpack it"),
    "parquet": ("a.json", b"PAR1" + bytes(100), r"name it a\.parquet"),
    "arrow": ("a.parquet", b"ARROW1\x00\x00", r"name it a\.arrow"),
    "columns": ("a.csv", b"q,a,q\n1,2,3\n", "2 columns named 'q'"),
    "compressed columns": ("a.tsv.gz", gzip.compress(b"q\ta\tq\n1\t2\t3\n"), "2 columns named 'q'"),
}


@pytest.mark.parametrize(("name", "data", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_readable_file_is_refused_before_reading(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says) as error:
        require_readable(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["q", "q"])
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match="2 columns named 'q'"):
        require_readable(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b" ", GOOD, b"\x00", b"PK", b"a < b"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.json.gz", "a.csv.zst"])
def test_damaged_and_empty_files_are_left_to_the_reader(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    require_readable(tmp_path / name)
    assert find_files(name, tmp_path) == [tmp_path / name]
    list(read_file(tmp_path / name))


def test_a_file_that_is_gone_is_left_to_the_reader(tmp_path: Path) -> None:
    require_readable(tmp_path / "a.jsonl")


@pytest.mark.parametrize("pattern", ["data[1]/*.jsonl", "data[1]/a[[]2].jsonl", "*/a[2].jsonl", "data[1]/?[2].jsonl"])
def test_brackets_that_are_in_names_are_found(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "data[1]" / "a[2].jsonl"
    path.parent.mkdir()
    path.write_bytes(GOOD)
    assert find_files(pattern, tmp_path) == [path]


@pytest.mark.parametrize("pattern", ["data[1]/*.jsonl", "data[1]/b.jsonl"])
def test_brackets_that_match_nothing_are_explained(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "data[1]").mkdir()
    with pytest.raises(InputError, match=r"no such file.*brackets"):
        find_files(pattern, tmp_path)


@pytest.mark.parametrize("pattern", [os.fsdecode(b"caf\xe9.jsonl"), "*.jsonl"])
def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path, pattern: str) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(GOOD)
    with pytest.raises(InputError, match="rename") as error:
        find_files(pattern, tmp_path)
    assert r"caf\xe9.jsonl" in str(error.value)
    str(error.value).encode()


def test_a_missing_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as error:
        find_files(os.fsdecode(b"caf\xe9.jsonl"), tmp_path)
    str(error.value).encode()


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("in/a.jsonl", r"in/\*\.jsonl"),
        ("in/a.csv.gz", r"in/\*\.csv\.gz"),
        ("in/deep/a.parquet", r"in/\*\*/\*\.parquet"),
        ("in/a.txt", "folder without a file that can be read"),
    ],
)
def test_a_folder_is_answered_with_a_glob_that_matches(tmp_path: Path, file: str, says: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    with pytest.raises(InputError, match=rf"is a .*{says}"):
        find_files("in/", tmp_path)


@pytest.mark.parametrize("splits", [True, False])
def test_a_saved_dataset_is_known_as_one(tmp_path: Path, splits: bool) -> None:
    data = datasets.Dataset.from_list([{"text": "a"}])
    (datasets.DatasetDict(train=data) if splits else data).save_to_disk(str(tmp_path / "saved"))
    assert is_saved_dataset(tmp_path / "saved")
    assert not is_saved_dataset(tmp_path) and not is_saved_dataset(tmp_path / "none")
    with pytest.raises(InputError, match="dataset: saved"):
        find_files("saved", tmp_path)
