"""Files and datasets become records, as they were written."""

import codecs
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.datasets_reader import dataset_batches
from novelsum_dagster.pool.formats import file_format
from novelsum_dagster.pool.readers import find_files, read_file
from novelsum_dagster.pool.records import MAX_RECORD_BYTES, Record
from novelsum_dagster.pool.samples import Reject
from novelsum_dagster.pool.table_reader import arrow_row, arrow_schema, arrow_table, json_record, read_rows
from tests.pools import alpaca, write_jsonl

GOOD = b'{"instruction": "q", "output": "a"}'


def read(path: Path, data: bytes | None = None) -> list[Record]:
    """Read a file, after writing `data` into it."""
    if data is not None:
        path.write_bytes(data)
    return list(read_file(path))


def reason(record: Record) -> str:
    """Return why a record was rejected, or "kept"."""
    return record.value.reason if isinstance(record.value, Reject) else "kept"


def reasons(records: list[Record]) -> list[str]:
    """Return the reasons of all records."""
    return [reason(record) for record in records]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write rows in the format and compression that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return path
    text = json.dumps(rows) if ".json" in path.suffixes else "".join(json.dumps(row) + "\n" for row in rows)
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(text.encode())
    return path


NAMES = ["a.json", "a.jsonl", "a.ndjson", "a.parquet", "a.json.gz", "a.json.zst", "a.jsonl.gz", "a.jsonl.zst"]


@pytest.mark.parametrize("name", [*NAMES, "a.JSONL.GZ", "b.c.jsonl"])
def test_every_format_yields_the_same_rows(tmp_path: Path, name: str) -> None:
    wanted = alpaca(40)
    records = read(write(wanted, tmp_path / name))
    assert [record.value for record in records] == wanted
    assert [record.position for record in records] == list(range(1, 41))
    assert not any(record.ends_file for record in records)


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.zst"])
def test_compressed_files_are_compressed(tmp_path: Path, name: str) -> None:
    assert write(alpaca(40), tmp_path / name).read_bytes()[:2] in {b"\x1f\x8b", b"\x28\xb5"}


def test_two_gzip_members_are_one_file(tmp_path: Path) -> None:
    one = write(alpaca(5), tmp_path / "a.jsonl.gz").read_bytes()
    two = write(alpaca(5, 5), tmp_path / "a.jsonl.gz").read_bytes()
    assert [record.value for record in read(tmp_path / "a.jsonl.gz", one + two)] == alpaca(10)


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    assert reasons(read(tmp_path / "a.json", GOOD + b"\n" + GOOD)) == ["kept", "kept"]


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", GOOD + b"\r\n\r\n  \n" + GOOD), ("a.json", b" \n[" + GOOD + b"\n,\n\n" + GOOD + b"]\n \n")],
)
def test_white_space_and_byte_order_marks_are_no_records(tmp_path: Path, name: str, data: bytes, mark: bytes) -> None:
    records = read(tmp_path / name, mark + data)
    assert [record.original for record in records] == [GOOD, GOOD]
    assert [record.line for record in records] == ([1, 4] if name == "a.jsonl" else [2, 5])


@pytest.mark.parametrize(
    ("name", "data"), [("a.jsonl", b""), ("a.jsonl", b"\n \n"), ("a.json", b"[]"), ("a.json", b" [ \n ] ")]
)
def test_files_without_records_yield_none(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(tmp_path / name, data) == []


ODD = [
    '{"instruction": "q", "output": "a", "n": [1.0, 1.00, 1e2, -0, 1E+2, 0.1000000000000000055511151231257827]}',
    '{"output": "a", "instruction": "q", "x": 1, "x": 2}',
    r'{"instruction": "\u0041\/\u00e9é", "output": "\ud83d\ude00\t", "lone": "\ud800"}',
    '{  "instruction":"q" ,"output"  :"a",   "empty": {} , "list": [ ]}',
    '{"instruction": "\u2028 line\u2029 \x85", "output": "a", "big": ' + "9" * 6000 + "}",
    '{"instruction": "q", "output": "a", "odd": [NaN, Infinity, -Infinity, true, null, 1e999]}',
]


@pytest.mark.parametrize("odd", ODD, ids=["numbers", "duplicates", "escapes", "spaces", "separators", "constants"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_text_is_kept_verbatim(tmp_path: Path, odd: str, name: str) -> None:
    data = f"[{odd},\n{odd}]" if name == "a.json" else f"{odd}\n{odd}\n"
    records = read(tmp_path / name, data.encode())
    assert reasons(records) == ["kept", "kept"]
    assert [json_record(record.original, None) for record in records] == [odd, odd]


def test_a_pretty_printed_record_becomes_one_line_of_the_same_values(tmp_path: Path) -> None:
    rows = [{"instruction": "one\ntwo\r", "output": ["x", {"y": 1.5}]}]
    (record,) = read(tmp_path / "a.json", json.dumps(rows, indent=2).replace("\n", "\r\n").encode())
    line = json_record(record.original, None)
    assert "\n" not in line and "\r" not in line and json.loads(line) == rows[0]


def test_random_records_survive_wherever_a_chunk_ends(tmp_path: Path) -> None:
    draw = random.Random(5)
    alphabet = ["a", "é", "😀", "\\", '"', "\n", "]", "[", "{", "}", ",", "\u2028"]
    for _ in range(8):
        rows = [
            {"instruction": "".join(draw.choices(alphabet, k=draw.choice([3, 900, 40_000]))), "output": "a"}
            for _ in range(draw.randrange(1, 30))
        ]
        text = json.dumps(rows, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 1]))
        (tmp_path / "a.json").write_text(text)
        records = read(tmp_path / "a.json")
        assert [record.value for record in records] == rows
        lines = text.split("\n")
        assert all("{" in lines[record.line - 1] for record in records if record.line)


BAD_LINES = {
    "broken": (b'{"instruction": "q"', "broken_json"),
    "trailing": (GOOD + b" x", "broken_json"),
    "control": (b'{"instruction": "a\tb"}', "broken_json"),
    "utf8": (b'{"instruction": "\xff"}', "invalid_utf8"),
    "surrogate bytes": (b'{"instruction": "\xed\xa0\x80"}', "invalid_utf8"),
    "string": (b'"text"', "kept"),
    "number": (b"12", "wrong_type"),
    "null": (b"null", "wrong_type"),
    "deep": (b"[" * 100_000, "broken_json"),
}


@pytest.mark.parametrize(("line", "wanted"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_one_reject_between_good_lines(tmp_path: Path, line: bytes, wanted: str) -> None:
    records = read(tmp_path / "a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD)
    assert reasons(records) == ["kept", wanted, "kept"]
    assert (records[1].position, records[1].line, records[1].original) == (2, 2, line)
    assert not records[1].ends_file


@pytest.mark.parametrize(
    ("element", "wanted"),
    [
        (b'{"instruction": "\xff"}', "invalid_utf8"),
        (b"12", "wrong_type"),
        (b"null", "wrong_type"),
        (b'"]"', "kept"),
    ],
)
def test_a_bad_element_is_one_reject_between_good_ones(tmp_path: Path, element: bytes, wanted: str) -> None:
    records = read(tmp_path / "a.json", b"[" + GOOD + b",\n" + element + b"," + GOOD + b"]")
    assert reasons(records) == ["kept", wanted, "kept"]
    assert (records[1].position, records[1].line, records[1].original) == (2, 2, element)


@pytest.mark.parametrize(
    "rest",
    [
        b'{"instruction": }',
        b"{" + GOOD,
        GOOD + GOOD,
        b"[" * 100_000,
        b"",
        GOOD,
        b"tru",
        b"\xff",
        b'{"a": "' + b"x" * 200_000,
    ],
    ids=["broken", "nested", "no comma", "deep", "cut after comma", "cut after record", "literal", "byte", "long"],
)
def test_what_breaks_a_list_ends_it_with_one_reject(tmp_path: Path, rest: bytes) -> None:
    records = read(tmp_path / "a.json", b"[" + GOOD + b",\n" + rest)
    kept = 2 if rest.startswith(GOOD) else 1
    assert reasons(records)[:kept] == ["kept"] * kept
    last = records[-1]
    assert reason(last) == "broken_json" and last.ends_file and last.line == 2
    assert isinstance(last.value, Reject) and "nothing after this was read" in last.value.detail
    assert len(last.original) <= 1000


@pytest.mark.parametrize("data", [b"[" + GOOD + b"]" + b"[" + GOOD + b"]", b"[]\n" + GOOD, b"[" + GOOD + b"]]"])
def test_text_after_a_list_is_not_lost_in_silence(tmp_path: Path, data: bytes) -> None:
    last = read(tmp_path / "a.json", data)[-1]
    assert reason(last) == "broken_json" and last.ends_file


@pytest.mark.parametrize("data", [b"", b"  ", b"null", b'"text"', b"\x00"])
def test_a_json_file_that_holds_no_list_is_one_reject(tmp_path: Path, data: bytes) -> None:
    (record,) = read(tmp_path / "a.json", data)
    assert (reason(record), record.position, record.ends_file) == ("broken_json", 1, True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_utf16_file_has_rejects_only(tmp_path: Path, name: str, encoding: str) -> None:
    records = read(tmp_path / name, json.dumps(alpaca(3)).encode(encoding))
    assert records and "kept" not in reasons(records)
    if encoding == "utf-16":
        (record,) = records
        assert reason(record) == "wrong_encoding" and "convert it to UTF-8" in str(record.value)


@pytest.mark.parametrize("name", ["a.json.gz", "a.json.zst", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("part", [0.9, 0.5, 0.001], ids=["late", "middle", "at once"])
def test_a_truncated_compressed_file_ends_with_a_reject(tmp_path: Path, name: str, part: float) -> None:
    draw = random.Random(1)
    rows = [{"instruction": str(draw.random()), "output": "a"} for _ in range(20_000)]
    data = write(rows, tmp_path / name).read_bytes()
    records = read(tmp_path / name, data[: int(part * len(data))])
    assert [record.value for record in records[:-1]] == rows[: len(records) - 1]
    assert reason(records[-1]) == "unreadable_file" and records[-1].ends_file
    # No more is lost than what was waiting to be decompressed.
    assert len(records) > (part - 0.2) * len(rows)


@pytest.mark.parametrize("name", ["a.json.gz", "a.json.zst", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_one_reject(tmp_path: Path, name: str) -> None:
    (record,) = read(tmp_path / name, GOOD * 20)
    assert (reason(record), record.position, record.ends_file) == ("unreadable_file", 1, True)


def test_a_truncated_parquet_file_is_one_reject(tmp_path: Path) -> None:
    data = write(alpaca(50), tmp_path / "a.parquet").read_bytes()
    assert reasons(read(tmp_path / "a.parquet", data[: len(data) // 2])) == ["unreadable_file"]


def test_damage_inside_a_parquet_file_costs_one_row_group(tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = [draw.randbytes(2000).hex() for _ in range(3000)]
    table = pa.table({"instruction": texts, "output": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000, compression="zstd", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    records = read(tmp_path / "a.parquet", bytes(data))
    good = [record.value for record in records if reason(record) == "kept"]
    assert good == table.slice(0, 1000).to_pylist() + table.slice(2000).to_pylist()
    (damaged,) = (record for record in records if reason(record) == "unreadable_file")
    assert (damaged.position, damaged.unread, damaged.ends_file) == (1001, 999, False)
    assert sum(1 + record.unread for record in records) == 3000
    assert records[-1].position == 3000


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.Array.from_buffers(pa.string(), 3, pa.array([b"x", b"\xff", b"y"]).buffers()), "invalid_utf8"),
        (pa.array([1, 10**15, 2], pa.timestamp("s")), "wrong_type"),
        (pa.array([1, 10**8, 2], pa.int32()).cast(pa.date32()), "wrong_type"),
    ],
    ids=["utf8", "timestamp", "date"],
)
def test_a_parquet_value_out_of_range_rejects_its_row_alone(tmp_path: Path, values: pa.Array, wanted: str) -> None:
    pq.write_table(pa.table({"instruction": ["q"] * 3, "x": values}), tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet")
    assert reasons(records) == ["kept", wanted, "kept"]
    assert [record.position for record in records] == [1, 2, 3]


WORD = pa.dictionary(pa.int16(), pa.string())
NESTED = [
    (pa.string(), ["a", None, ""]),
    (WORD, ["a", None, "a"]),
    (pa.struct([("x", WORD)]), [{"x": "a"}, None, {"x": None}]),
    (pa.list_(WORD), [["a", "b"], [], None]),
    (pa.large_list(pa.struct([("x", WORD)])), [[{"x": "a"}], [], None]),
    (pa.list_(WORD, 2), [["a", "b"], ["b", None], None]),
    (pa.map_(pa.string(), WORD), [[("k", "v")], [], None]),
    (pa.string_view(), ["a" * 40, None, "b"]),
    (pa.binary_view(), [b"\xff" * 40, None, b""]),
]


@pytest.mark.parametrize(("type_", "values"), NESTED, ids=[str(type_) for type_, _ in NESTED])
def test_a_parquet_row_is_kept_whole(tmp_path: Path, type_: pa.DataType, values: list[Any]) -> None:
    schema = pa.schema([pa.field("x", type_, metadata={"note": "kept"})], {"table": "kept"})
    plain = {WORD: pa.string()}.get(type_)
    column = pa.array(values, plain).cast(type_) if plain else pa.array(values, type_)
    pq.write_table(pa.Table.from_arrays([column], schema=schema), tmp_path / "a.parquet")
    written = pq.read_table(tmp_path / "a.parquet")
    originals = [record.original for record in read(tmp_path / "a.parquet")]
    back = arrow_table(originals, arrow_schema(tmp_path / "a.parquet"))
    assert back.to_pylist() == written.to_pylist() == [{"x": value} for value in values]
    assert back.schema.equals(written.schema, check_metadata=True)


@pytest.mark.parametrize("type_", [pa.string(), pa.string_view(), pa.list_(pa.string()), WORD])
def test_a_row_carries_only_its_own_bytes(tmp_path: Path, type_: pa.DataType) -> None:
    texts = [f"{number:04}" * 500 for number in range(500)]
    column = pa.array([[text] for text in texts], type_) if pa.types.is_list(type_) else pa.array(texts).cast(type_)
    records = list(read_rows([pa.record_batch({"x": column})]))
    assert max(len(record.original) for record in records) < 3000
    schema = pa.schema([("x", type_)])
    assert arrow_row(records[7].original, schema).num_rows == 1


def test_arrow_values_that_json_lacks_become_text() -> None:
    batch = pa.record_batch({"when": pa.array([0], pa.timestamp("s", "UTC")), "text": ["é"]})
    (record,) = read_rows([batch])
    assert json.loads(json_record(record.original, batch.schema)) == {"when": "1970-01-01 00:00:00+00:00", "text": "é"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.zst", "a.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    row = {"instruction": "What is this? " * 40, "output": "An answer. " * 700}
    size = len(json.dumps(row))
    path = write([row] * (42_000_000 // size), tmp_path / name)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    count, most = 0, 0
    for record in read_file(path):
        count += reason(record) == "kept"
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 42_000_000 // size
    assert peak < 3_000_000 and most < 3_000_000


def test_memory_does_not_grow_with_a_parquet_file(tmp_path: Path) -> None:
    draw = random.Random(3)
    texts = [draw.randbytes(1000).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"instruction": texts}), tmp_path / "a.parquet", use_dictionary=False)
    del texts
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in read_file(tmp_path / "a.parquet"))
    assert (tmp_path / "a.parquet").stat().st_size > 18_000_000 and most < 12_000_000


def test_a_break_in_a_long_list_is_passed_without_reading_on(tmp_path: Path) -> None:
    tracemalloc.start()
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b", {'quotes': 1}")
    with (tmp_path / "a.json").open("ab") as file:
        for _ in range(20):
            file.write((b"," + GOOD) * (1_000_000 // len(GOOD)))
        file.write(b"]")
    tracemalloc.reset_peak()
    records = read_file(tmp_path / "a.json")
    assert [reason(next(records)) for _ in range(3)] == ["kept", "broken_json", "kept"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_numbers_across_chunks_are_one_reject_each(tmp_path: Path) -> None:
    numbers = b",".join(b"1234567890" for _ in range(20_000))
    assert reasons(read(tmp_path / "a.json", b"[" + numbers + b"]")) == ["wrong_type"] * 20_000


@pytest.mark.parametrize(
    ("name", "excess", "wanted"),
    [
        ("a.jsonl", 10, ["kept", "over_long", "kept"]),
        ("a.json", 10, ["kept", "over_long", "kept"]),
        ("a.json", 1_000_000, ["kept", "over_long"]),
    ],
)
def test_a_record_over_the_byte_limit_is_rejected(tmp_path: Path, name: str, excess: int, wanted: list[str]) -> None:
    long = b'{"instruction": "' + b"x" * (MAX_RECORD_BYTES + excess) + b'"}'
    data = b"\n".join([GOOD, long, GOOD]) if name == "a.jsonl" else b"[" + b",".join([GOOD, long, GOOD]) + b"]"
    records = read(tmp_path / name, data)
    assert reasons(records) == wanted
    assert records[-1].ends_file == (len(wanted) == 2)
    assert len(records[1].original) == 1000


@pytest.mark.parametrize("pattern", ["pool/a.jsonl", "pool/*.jsonl", "**/*.jsonl", "pool/[ab].jsonl", "./pool/?.jsonl"])
def test_paths_and_globs_start_at_the_base(tmp_path: Path, pattern: str) -> None:
    base = tmp_path / "run [1]"
    for name in ("b", "a"):
        write_jsonl(base / "pool" / f"{name}.jsonl", [])
    found = [path.relative_to(base).name for path in find_files(pattern, base)]
    assert found == (["a.jsonl"] if pattern == "pool/a.jsonl" else ["a.jsonl", "b.jsonl"])


def test_absolute_and_home_paths_do_not_start_at_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "home" / "a.jsonl", [])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for pattern in (str(path), str(path.parent / "*.jsonl"), "~/a.jsonl", "~/*"):
        assert find_files(pattern, elsewhere) == [path]


def test_a_name_with_brackets_is_a_name_before_it_is_a_glob(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a[1].jsonl", [])
    write_jsonl(tmp_path / "a1.jsonl", [])
    assert find_files("a[1].jsonl", tmp_path) == [path]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("none.jsonl", "correct the path or glob"),
        ("no*.jsonl", "correct the path or glob"),
        ("folder*", "correct the path or glob"),
        ("folder", "is a folder without a file"),
        ("folder/", "is a folder without a file"),
        ("notes.txt", "must end in"),
        ("n*", "must end in"),
        ("a.parquet.gz", "decompress it"),
        ("gone.jsonl", "no such file"),
        ("gon*.jsonl", "no such file"),
    ],
)
def test_what_cannot_be_found_or_read_says_what_to_do(tmp_path: Path, pattern: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "a.parquet.gz", "a.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match=says) as error:
        find_files(pattern, tmp_path)
    assert pattern.rstrip("*/") in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "link"),
    [("pool/*.jsonl", "pool/x.jsonl"), ("pool/**/x.*", "pool/in/x.jsonl"), ("po*/?.jsonl", "pool2/x.jsonl")],
)
def test_a_link_that_a_glob_finds_stays_in_the_globs_folder(tmp_path: Path, pattern: str, link: str) -> None:
    base = tmp_path / "base"
    for place in ("pool/a.jsonl", "pool2/b.jsonl", "pool/in/c.jsonl"):
        write_jsonl(base / place, [])
    secret = tmp_path / "secrets" / "password"
    secret.parent.mkdir()
    secret.write_text("s3cret")
    (base / link).symlink_to(base / "pool" / "a.jsonl")
    assert base / link in find_files(pattern, base)
    (base / link).unlink()
    (base / link).symlink_to(secret)
    with pytest.raises(InputError, match=r"list that file itself in pool\.sources") as error:
        find_files(pattern, base)
    assert f"{pattern}: {base / link} leads out of " in str(error.value)
    assert find_files(link, base) == [base / link]  # Whoever writes the settings may name what they like.


def test_a_linked_folder_that_a_glob_finds_files_in_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "outside" / "a.jsonl", [])
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "in").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="leads out of"):
        find_files("pool/*/a.jsonl", tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "outside")
    assert find_files("linked/*.jsonl", tmp_path) == [tmp_path / "linked" / "a.jsonl"]


def test_a_link_to_itself_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="no such file"):
        find_files("*.jsonl", tmp_path)


@pytest.mark.parametrize("name", ["a", "a.xlsx", "a.gz", "a.json.bz2", "a.json.bak"])
def test_unknown_suffixes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown format"):
        file_format(Path(name))


def hub_folder(folder: Path, suffix: str) -> Path:
    """Write a dataset as the hub has it: a folder of data files by split."""
    for split, start in (("train", 0), ("test", 30)):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        write(alpaca(30, start), folder / "data" / f"{split}-00000-of-00001{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("split", "start"), [("train", 0), ("test", 30)])
def test_a_folder_of_data_files_is_a_dataset(tmp_path: Path, suffix: str, split: str, start: int) -> None:
    batches = dataset_batches(str(hub_folder(tmp_path / "set", suffix)), split, None)
    assert [record.value for record in read_rows(batches)] == alpaca(30, start)


@pytest.mark.parametrize("splits", [True, False])
def test_a_saved_dataset_is_read(tmp_path: Path, splits: bool) -> None:
    data = datasets.Dataset.from_list(alpaca(25))
    (datasets.DatasetDict(train=data, test=data) if splits else data).save_to_disk(str(tmp_path / "set"))
    assert [record.value for record in read_rows(dataset_batches(str(tmp_path / "set"), "train", None))] == alpaca(25)


@pytest.mark.parametrize("place", ["../outside/o.jsonl", "{outside}/o.jsonl", "file://{outside}/o.jsonl", "data/*"])
def test_a_dataset_names_no_files_outside_of_its_folder(tmp_path: Path, place: str) -> None:
    write_jsonl(tmp_path / "outside" / "o.jsonl", alpaca(3))
    folder = hub_folder(tmp_path / "set", ".jsonl")
    (folder / "data" / "link.jsonl").symlink_to(tmp_path / "outside" / "o.jsonl")

    def read_it(files: str) -> list[Any]:
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: '{files}'\n---\n")
        return [record.value for record in read_rows(dataset_batches(str(folder), "train", None))]

    with pytest.raises(InputError, match="which is not in its folder") as error:
        read_it(place.format(outside=tmp_path / "outside"))
    assert f"dataset {folder}: names " in str(error.value)
    assert read_it("data/train*") == alpaca(30)


@pytest.mark.parametrize("way", ["state", "splits", "link"])
def test_a_saved_dataset_names_no_files_outside_of_its_folder(tmp_path: Path, way: str) -> None:
    for name in ("set", "outside"):
        datasets.DatasetDict(train=datasets.Dataset.from_list(alpaca(3))).save_to_disk(str(tmp_path / name))
    (file,) = (tmp_path / "outside" / "train").glob("*.arrow")
    train = tmp_path / "set" / "train"
    split = "train"
    if way == "state":
        state = json.loads((train / "state.json").read_text())
        state["_data_files"] = [{"filename": f"../../outside/train/{file.name}"}]
        (train / "state.json").write_text(json.dumps(state))
    elif way == "splits":
        split = "../outside/train"
        (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    else:
        (train / file.name).unlink()
        (train / file.name).symlink_to(file)
    with pytest.raises(InputError, match=r"names .*\.arrow, which is not in its folder"):
        list(dataset_batches(str(tmp_path / "set"), split, None))


@pytest.mark.parametrize("saved", [True, False])
def test_an_unknown_split_is_named_with_those_that_exist(tmp_path: Path, saved: bool) -> None:
    folder = hub_folder(tmp_path / "set", ".jsonl")
    if saved:
        data = datasets.Dataset.from_list(alpaca(3))
        folder = tmp_path / "saved"
        datasets.DatasetDict(train=data, test=data).save_to_disk(str(folder))
    with pytest.raises(InputError, match=r"nope.*train.*test"):
        list(dataset_batches(str(folder), "nope", None))


def test_a_dataset_that_cannot_be_loaded_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"a": 1}\n{broken\n')
    for name in (str(tmp_path / "set"), str(tmp_path / "missing"), "nobody/nothing"):
        with pytest.raises(InputError, match="cannot be loaded") as error:
            list(dataset_batches(name, "train", None))
        assert name in str(error.value)
