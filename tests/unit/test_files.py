"""A reader never sees half a file, and nothing temporary stays."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.files import (
    content_key,
    file_hash,
    place_folder,
    read_json,
    replacing,
    temporary_folder,
    write_bytes,
    write_json,
    write_table,
)


def test_replacing_puts_the_whole_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError, SystemExit])
def test_replacing_leaves_the_old_file_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    before = path.stat()
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_folder_fails_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError):
        write_bytes(b"x", tmp_path / "a")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and (tmp_path / "a" / "b").is_dir()


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    wanted = {bytes([n]) * 300_000 for n in range(3)}
    write_bytes(b"\x00" * 300_000, path)
    done = threading.Event()
    seen: set[bytes] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for n in range(60):
        write_bytes(bytes([n % 3]) * 300_000, path)
    done.set()
    reader.join()
    assert seen and seen <= wanted


@pytest.mark.parametrize("value", [{"é": [1, 2.5, None, True]}, [], "text", {"b": 1, "a": {"c": []}}])
def test_json_is_read_back(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.json"
    write_json(value, path)
    assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n") and b"\\u" not in path.read_bytes()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json([1], path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert read_json(path) == [1] and list(tmp_path.iterdir()) == [path]


def test_a_table_is_read_back(tmp_path: Path) -> None:
    table = pa.table({"a": [1, None], "b": ["x", "é"]})
    write_table(table, tmp_path / "new" / "a.parquet")
    assert pq.read_table(tmp_path / "new" / "a.parquet").equals(table)
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, True),
        ([1, 2], [2, 1], False),
        ([1, 2], (1, 2), True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"a": 1.5}, False),
        ({"a": None}, {}, False),
        (["ab", "c"], ["a", "bc"], False),
        ("é", "e\u0301", False),
    ],
)
def test_equal_values_alone_have_equal_keys(one: Any, two: Any, same: bool) -> None:
    assert (content_key(one) == content_key(two)) == same
    assert len(content_key(one)) == 32


def test_keys_are_fixed_for_all_time() -> None:
    assert content_key({"b": ["é"], "a": 1}) == hashlib.sha256(rb'{"a":1,"b":["\u00e9"]}').hexdigest()[:32]


def test_a_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_temporary_folder_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), temporary_folder(tmp_path / "new") as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        raise ValueError
    assert list((tmp_path / "new").iterdir()) == []


def test_a_placed_folder_stays(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "a").write_text("x")
        place_folder(folder, tmp_path / "placed")
    assert [path.name for path in tmp_path.iterdir()] == ["placed"]
    assert (tmp_path / "placed" / "a").read_text() == "x"
    assert (tmp_path / "placed").stat().st_mode & 0o777 == 0o755


def test_the_first_placed_folder_wins(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with temporary_folder(tmp_path) as folder:
            (folder / "a").write_text(text)
            place_folder(folder, tmp_path / "placed")
    assert [path.name for path in tmp_path.iterdir()] == ["placed"]
    assert (tmp_path / "placed" / "a").read_text() == "first"


def test_placing_at_the_same_time_is_no_error(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def place(number: int) -> None:
        try:
            for turn in range(100):
                with temporary_folder(tmp_path) as folder:
                    (folder / "a").write_text(str(number))
                    barrier.wait(timeout=20)
                    place_folder(folder, tmp_path / f"placed-{turn}")
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=place, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"placed-{turn}" for turn in range(100))


def test_a_folder_that_cannot_be_placed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with temporary_folder(tmp_path) as folder, pytest.raises(OSError):
        place_folder(folder, tmp_path / "file" / "placed")
