"""CSV, TSV and Arrow files as records, and Arrow rows as strict JSON."""

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool import json_reader, table_reader
from novelsum_dagster.pool.formats import file_format
from novelsum_dagster.pool.readers import read_file
from novelsum_dagster.pool.records import Record
from novelsum_dagster.pool.samples import Reject
from novelsum_dagster.pool.table_reader import arrow_row, arrow_schema, arrow_table, json_record, read_rows


def read(path: Path, data: bytes) -> list[Record]:
    """Write a file, in the compression that its name says, and read it."""
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(data)
    return list(read_file(path))


def outcome(records: list[Record]) -> list[Any]:
    """Return the values of good records and the reasons of rejects."""
    return [record.value.reason if isinstance(record.value, Reject) else record.value for record in records]


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv", "a.csv.gz", "a.tsv.zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_cells_are_text_by_the_names_in_the_first_row(tmp_path: Path, name: str, mark: bytes, line_break: str) -> None:
    rows = ["prompt,answer", '"one\ntwo, ""x""",1', "", "é,", "0,007"]
    text = line_break.join(rows).replace(",", "\t") if ".tsv" in name else line_break.join(rows)
    records = read(tmp_path / name, mark + text.encode())
    first = 'one\ntwo\t "x"' if ".tsv" in name else 'one\ntwo, "x"'
    wanted = [{"prompt": first, "answer": "1"}, {"prompt": "é", "answer": None}, {"prompt": "0", "answer": "007"}]
    assert outcome(records) == wanted
    assert [json.loads(json_record(record.original, None)) for record in records] == wanted
    assert "é" in records[1].original.decode()
    assert [(record.position, record.line) for record in records] == [(1, 2), (2, 5), (3, 6)]


BAD_ROWS = {
    "few": (b"1", "wrong_columns"),
    "many": (b"1,2,3", "wrong_columns"),
    "quotes": (b'"x"y,2', "broken_csv"),
    "utf8": (b"\xff,2", "invalid_utf8"),
}


@pytest.mark.parametrize(("row", "wanted"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_one_reject_between_good_ones(tmp_path: Path, row: bytes, wanted: str) -> None:
    records = read(tmp_path / "a.csv", b"q,a\n1,2\n" + row + b"\n3,4\n")
    assert outcome(records) == [{"q": "1", "a": "2"}, wanted, {"q": "3", "a": "4"}]
    assert (records[1].position, records[1].line, records[1].ends_file) == (2, 3, False)
    if wanted != "invalid_utf8":
        assert records[1].original == row


def test_a_quote_that_is_not_closed_ends_the_file(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", b'q,a\n1,2\n"3,4\n5,6\n')
    assert outcome(records) == [{"q": "1", "a": "2"}, "broken_csv"]
    assert records[1].ends_file and records[1].line == 3


def test_long_cells_are_read_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = b"x" * 300_000
    assert outcome(read(tmp_path / "a.csv", b"q,a\n1," + long + b"\n")) == [{"q": "1", "a": long.decode()}]
    monkeypatch.setattr(table_reader, "MAX_RECORD_BYTES", 200_000)
    monkeypatch.setattr(json_reader, "MAX_RECORD_BYTES", 200_000)
    records = read(tmp_path / "a.csv", b"q,a\n1," + long + b"\n2,3\n")
    assert outcome(records) == ["over_long"] and records[0].ends_file
    assert len(records[0].original) <= 1000


@pytest.mark.parametrize("data", [b"", b"\n\n", b"q,a\n", b"q,a"])
def test_a_csv_file_without_rows_has_no_records(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "a.csv", data) == []


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 columns named 'q'"):
        read(tmp_path / "a.csv", b"q,q\n1,2\n")


@pytest.mark.parametrize("data", [b"\xff\xfeq\x00,\x00", b"not gzip"])
def test_a_csv_file_that_cannot_be_read_is_one_reject(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / ("a.csv" if data[0] == 0xFF else "a.csv.gz")
    path.write_bytes(data)
    (record,) = read_file(path)
    assert isinstance(record.value, Reject) and record.ends_file


TABLE = pa.table(
    {
        "q": ["a", "b", None] * 1000,
        "kind": pa.array(["x", "y", "x"] * 1000).dictionary_encode(),
        "turns": [[{"who": "a"}], [], None] * 1000,
    }
)


def write_arrow(path: Path, table: pa.Table, is_stream: bool = False) -> Path:
    """Write an Arrow IPC file or stream."""
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1500)
    return path


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.ipc"])
@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow_files_are_read_as_parquet_is(tmp_path: Path, name: str, is_stream: bool) -> None:
    path = write_arrow(tmp_path / name, TABLE, is_stream)
    records = list(read_file(path))
    assert file_format(path) == "arrow"
    assert outcome(records) == TABLE.to_pylist()
    assert [record.position for record in records] == list(range(1, 3001))
    schema = arrow_schema(path)
    assert schema == TABLE.schema
    assert arrow_table([record.original for record in records[:5]], schema).to_pylist() == TABLE.slice(0, 5).to_pylist()


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_truncated_arrow_file_ends_with_a_reject(tmp_path: Path, is_stream: bool) -> None:
    data = write_arrow(tmp_path / "a.arrow", TABLE, is_stream).read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[: int(len(data) * 0.7)])
    records = list(read_file(tmp_path / "a.arrow"))
    assert outcome(records)[-1] == "unreadable_file" and records[-1].ends_file
    assert outcome(records)[:-1] == TABLE.to_pylist()[: len(records) - 1]


def test_arrow_offsets_that_lead_nowhere_end_the_file(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 2**30, 2)))
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])
    (record,) = read_file(write_arrow(tmp_path / "a.arrow", pa.table({"q": broken})))
    assert isinstance(record.value, Reject) and record.ends_file


VALUES: dict[str, tuple[pa.Array, Any]] = {
    "bytes": (pa.array([b"\xff\x00\x01"]), "/wAB"),
    "nan": (pa.array([float("nan")]), None),
    "infinity": (pa.array([[1.5, float("-inf")]]), [1.5, None]),
    "half": (pa.array([1.5], pa.float16()), 1.5),
    "map": (pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())), {"a": 1, "b": None}),
    "map of numbers": (pa.array([[(1, [("x", b"\xff")])]], pa.map_(pa.int64(), pa.map_(pa.string(), pa.binary()))),
                       {"1": {"x": "/w=="}}),
    "date": (pa.array([datetime.date(2026, 1, 2)]), "2026-01-02"),
    "time": (pa.array([0], pa.timestamp("ns", "UTC")), "1970-01-01 00:00:00+00:00"),
    "decimal": (pa.array([decimal.Decimal("1.10")]), "1.10"),
    "big": (pa.array([2**63 + 1], pa.uint64()), 2**63 + 1),
    "json": (pa.array(['{"a": [1, null], "n": 9007199254740993}']).cast(pa.json_(pa.string())),
             {"a": [1, None], "n": 9007199254740993}),
    "json null": (pa.array([None], pa.string()).cast(pa.json_(pa.string())), None),
    "listed json": (pa.array([['{"a": 1}', '"b"', None]], pa.list_(pa.string())).cast(pa.list_(pa.json_(pa.string()))),
                    [{"a": 1}, "b", None]),
    "nested json": (
        pa.array([{"j": ['{"a": 1}']}]).cast(pa.struct([("j", pa.list_(pa.json_(pa.string())))])),
        {"j": [{"a": 1}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("column", "wanted"), VALUES.values(), ids=VALUES)
def test_arrow_values_become_strict_json(column: pa.Array, wanted: Any) -> None:
    batch = pa.record_batch({"x": column})
    (record,) = read_rows([batch])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(json_record(record.original, batch.schema), parse_constant=refuse) == {"x": wanted}
    assert arrow_table([record.original], batch.schema).to_pylist() == batch.to_pylist() or "nan" in str(batch[0])
    assert arrow_row(record.original, batch.schema).num_rows == 1


def test_records_have_maps_and_json_as_objects() -> None:
    columns = {"m": VALUES["map"][0], "j": VALUES["listed json"][0]}
    (record,) = read_rows([pa.record_batch(columns)])
    assert record.value == {"m": {"a": 1, "b": None}, "j": [{"a": 1}, "b", None]}


def test_text_that_is_no_json_stays_text() -> None:
    batch = pa.record_batch({"j": pa.array(["{broken"]).cast(pa.json_(pa.string()))})
    (record,) = read_rows([batch])
    assert record.value == {"j": "{broken"}


@pytest.mark.parametrize("damaged", [0, 1, 3])
def test_every_row_of_a_damaged_parquet_file_is_in_a_count(tmp_path: Path, damaged: int) -> None:
    table = pa.table({"q": [f"{number:06}" * 50 for number in range(400)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=100, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(path).row_group(damaged).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = bytes(40)
    path.write_bytes(data)
    records = list(read_file(path))
    assert sum(1 + record.unread for record in records) == 400
    kept = [record for record in records if not isinstance(record.value, Reject)]
    assert [record.position for record in kept] == [n for n in range(1, 401) if (n - 1) // 100 != damaged]
    assert [record.value for record in kept] == [row for n, row in enumerate(table.to_pylist()) if n // 100 != damaged]
