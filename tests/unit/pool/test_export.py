"""Chosen records are written back as they came."""

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.errors import InputError
from novelsum_dagster.pool.export import (
    ChosenRecord,
    chosen_records,
    output_writer,
    record_line,
    write_by_source,
    write_records,
)
from novelsum_dagster.pool.readers import read_file
from novelsum_dagster.pool.snapshot import PoolSnapshot
from tests.pools import alpaca, write_jsonl
from tests.unit.pool.building import build, hidden, ids

ODD = [
    '{"instruction": "q1", "output": "a", "n": [1.0, 1.00, 1e2, -0, 1E+2, 12345678901234567890123]}',
    '{"output": "a", "instruction": "q2", "x": 1, "x": 2}',
    r'{"instruction": "q3 \u0041\/\u00e9é", "output": "\ud83d\ude00\t", "lone": "\ud800"}',
    '{  "instruction":"q4" ,"output"  :"a",   "empty": {} , "list": [ ], "null":null}',
    '{"instruction": "q5 \u2028 \x85 \x7f", "output": "a", "big": ' + "9" * 6000 + "}",
]


def chosen(snapshot: PoolSnapshot, base: Path, order: int = 1) -> list[ChosenRecord]:
    """Return the records of all samples, in pool order or backwards."""
    return chosen_records(snapshot, base / "curated", ids(snapshot, base)[::order])


@pytest.mark.parametrize("form", ["lines", "list", "indented list", "compressed lines"])
@pytest.mark.parametrize("order", [1, -1])
def test_json_is_written_back_verbatim_in_the_order_of_choice(tmp_path: Path, form: str, order: int) -> None:
    name = {"lines": "a.jsonl", "compressed lines": "a.jsonl.gz"}.get(form, "a.json")
    separator = {"list": ", ", "indented list": "\n ,\r\n\n  "}.get(form, "\r\n")
    text = separator.join(ODD)
    with pa.output_stream(str(tmp_path / name), compression="gzip" if name.endswith("gz") else None) as stream:
        stream.write((f"[{text}]" if name == "a.json" else text).encode())
    records = chosen(build(tmp_path, name), tmp_path, order)
    wanted = ODD[::order]
    assert [record_line(record) for record in records] == wanted
    write_records(records, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == "".join(f"{line}\n" for line in wanted).encode()
    write_records(records, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == ("[\n" + ",\n".join(wanted) + "\n]\n").encode()
    assert [record.original.decode() for record in read_file(tmp_path / "out.json")] == wanted


def test_what_was_written_has_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(ODD))
    snapshot = build(tmp_path, "a.jsonl")
    for name in ("b.json", "b.jsonl"):
        write_records(chosen(snapshot, tmp_path), tmp_path / name)
        assert ids(build(tmp_path, name), tmp_path) == ids(snapshot, tmp_path)


WORD = pa.dictionary(pa.int8(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("instruction", pa.string(), nullable=False, metadata={"note": "kept"}),
        ("output", pa.large_string()),
        ("when", pa.timestamp("ns", "Europe/Berlin")),
        ("day", pa.date32()),
        ("time", pa.time64("ns")),
        ("took", pa.duration("us")),
        ("data", pa.binary()),
        ("fixed", pa.binary(3)),
        ("price", pa.decimal128(20, 4)),
        ("small", pa.int8()),
        ("half", pa.float32()),
        ("word", WORD),
        ("nested", pa.struct([("x", pa.list_(pa.struct([("y", pa.int64()), ("w", WORD)]))), ("z", pa.bool_())])),
        ("map", pa.map_(pa.string(), pa.int32())),
        ("none", pa.null()),
    ],
    metadata={"who": "us"},
)


def rich(count: int) -> pa.Table:
    """Return a table with a column of every kind; every third row is null where it may be."""
    values: dict[str, list[Any]] = {
        "when": [1_700_000_000_000_000_001 + n for n in range(count)],
        "day": [datetime.date(2024, 2, 29)] * count,
        "time": [n * 1001 + 1 for n in range(count)],
        "took": [datetime.timedelta(microseconds=n) for n in range(count)],
        "data": [bytes([n % 256, 255, 0]) for n in range(count)],
        "fixed": [bytes([n % 256, 254, 1]) for n in range(count)],
        "price": [decimal.Decimal(n) / 10_000 for n in range(count)],
        "small": [n % 100 for n in range(count)],
        "half": [n / 3 for n in range(count)],
        "word": [f"word {n % 3}" for n in range(count)],
        "nested": [{"x": [{"y": n, "w": f"w{n % 2}"}, None, {"y": None, "w": None}], "z": True} for n in range(count)],
        "map": [[("a", n), ("b", None)] for n in range(count)],
        "none": [None] * count,
    }
    columns: list[list[Any]] = [[f"question {n}" for n in range(count)], [f"answer é {n}" for n in range(count)]]
    columns += [[None if n % 3 == 2 else value for n, value in enumerate(column)] for column in values.values()]
    made = []
    for column, field in zip(columns, SCHEMA, strict=True):
        plain = {"word": pa.string(), "nested": None}.get(field.name, field.type)
        made.append(pa.array(column, plain).cast(field.type))
    return pa.Table.from_arrays(made, schema=SCHEMA)


@pytest.mark.parametrize("order", [1, -1])
def test_parquet_rows_are_written_back_exactly(tmp_path: Path, order: int) -> None:
    pq.write_table(rich(1300), tmp_path / "a.parquet", row_group_size=500)
    written = pq.read_table(tmp_path / "a.parquet")
    snapshot = build(tmp_path, "a.parquet")
    (path,) = write_by_source(chosen(snapshot, tmp_path, order), tmp_path / "out")
    back = pq.read_table(path)
    wanted = written.take(list(range(1300))[::order])
    assert path.name == "a.parquet"
    assert back.schema.equals(written.schema, check_metadata=True)
    assert back.unify_dictionaries().to_pylist() == wanted.to_pylist()
    for name in set(SCHEMA.names) - {"word", "nested"}:
        assert back[name].combine_chunks().equals(wanted[name].combine_chunks()), name


def test_parquet_rows_become_json_where_json_is_asked_for(tmp_path: Path) -> None:
    pq.write_table(rich(4), tmp_path / "a.parquet")
    write_records(chosen(build(tmp_path, "a.parquet"), tmp_path), tmp_path / "out.jsonl")
    first, *_, last = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(first) == SCHEMA.names
    assert (first["output"], last["nested"]["x"][0], first["price"]) == ("answer é 0", {"y": 3, "w": "w1"}, "0.0000")


def test_a_dataset_is_written_back_as_parquet(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(alpaca(30))
    data.save_to_disk(str(tmp_path / "set"))
    snapshot = build(tmp_path, sources=[{"dataset": "set"}])
    (path,) = write_by_source(chosen(snapshot, tmp_path), tmp_path / "out")
    assert path.name == "set.parquet"
    assert pq.read_table(path).to_pylist() == alpaca(30)
    assert pq.read_table(path).schema.equals(data.data.table.schema)


def test_a_dataset_of_files_is_written_back_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "set" / "train.jsonl", alpaca(30))
    snapshot = build(tmp_path, sources=[{"dataset": "set", "name": "mine"}])
    (path,) = write_by_source(chosen(snapshot, tmp_path)[:7], tmp_path / "out")
    assert path.name == "mine.parquet"
    assert pq.read_table(path).to_pylist() == alpaca(7)


def test_every_source_is_written_in_its_own_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one" / "a.jsonl", alpaca(4))
    write_jsonl(tmp_path / "two" / "a.jsonl", alpaca(4, 4))
    (tmp_path / "b.json").write_text(json.dumps(alpaca(4, 8)))
    pq.write_table(pa.Table.from_pylist(alpaca(4, 12)), tmp_path / "c.parquet")
    write_jsonl(tmp_path / "unused.jsonl", alpaca(4))
    snapshot = build(tmp_path, "one/*", "two/*", "b.json", "c.parquet", "unused.jsonl")
    paths = write_by_source(chosen(snapshot, tmp_path), tmp_path / "out")
    assert [path.name for path in paths] == ["a.jsonl", "a-2.jsonl", "b.json", "c.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    assert [record.value for path in paths for record in read_file(path)] == alpaca(16)


@pytest.mark.parametrize("name", ["../../away", "/etc/away", "..", ".", "a/b", "..\\x", "", " ", "é 中"])
def test_no_name_of_a_source_leaves_the_folder(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", alpaca(2))
    sources = [{"path": "a.jsonl", **({"name": name} if name else {})}]
    (path,) = write_by_source(chosen(build(tmp_path, sources=sources), tmp_path), tmp_path / "out")
    assert path.parent == tmp_path / "out" and path.suffix == ".jsonl" and path.stem
    assert list((tmp_path / "out").iterdir()) == [path]


def test_mixed_records_share_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ODD[0])
    pq.write_table(pa.table({"prompt": ["q"], "completion": ["a"]}), tmp_path / "b.parquet")
    write_records(chosen(build(tmp_path, "a.jsonl", "b.parquet"), tmp_path), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [ODD[0], '{"prompt": "q", "completion": "a"}']


def test_mixed_records_in_parquet_keep_all_their_fields(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"instruction": "q", "output": "a"},
        {"instruction": "r", "output": "a", "tags": ["x"], "meta": {"n": 1}},
        {"instruction": "s", "output": "a", "meta": {"m": None, "n": 2}},
    ]
    write_jsonl(tmp_path / "a.jsonl", values)
    pq.write_table(pa.table({"prompt": ["q2"], "completion": ["a"]}), tmp_path / "b.parquet")
    write_records(chosen(build(tmp_path, "a.jsonl", "b.parquet"), tmp_path), tmp_path / "out.parquet")
    back = pq.read_table(tmp_path / "out.parquet").to_pylist()
    names = ["instruction", "output", "tags", "meta", "prompt", "completion"]
    assert list(back[0]) == names
    assert [[row[name] for name in names] for row in back] == [
        ["q", "a", None, None, None, None],
        ["r", "a", ["x"], {"n": 1, "m": None}, None, None],
        ["s", "a", None, {"n": 2, "m": None}, None, None],
        [None, None, None, None, "q2", "a"],
    ]


@pytest.mark.parametrize(
    "field", ['"x": "text"', '"x": {"y": 1}', '"x": ' + "9" * 30, '"x": ' + "9" * 6000, '"x": "\\ud800"'],
    ids=["string", "object", "big", "very big", "surrogate"],
)  # fmt: skip
def test_what_parquet_cannot_hold_is_an_input_error_and_no_file(tmp_path: Path, field: str) -> None:
    lines = ['{"instruction": "q", "output": "a", "x": 1}', '{"instruction": "r", "output": "a", ' + field + "}"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    records = chosen(build(tmp_path, "a.jsonl"), tmp_path)
    with pytest.raises(InputError, match=r"one Parquet schema.*write \.jsonl"):
        write_records(records, tmp_path / "out" / "out.parquet")
    assert not (tmp_path / "out" / "out.parquet").exists() and not list(hidden(tmp_path / "out"))


@pytest.mark.parametrize("name", ["out.csv", "out", "out.jsonl.gz", "out.JSON"])
def test_another_name_of_the_output_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"must end in one of \.jsonl, \.json, \.parquet"):
        output_writer(tmp_path / name)


@pytest.mark.parametrize("name", ["out.json", "out.jsonl", "out.parquet"])
def test_no_records_are_an_empty_file(tmp_path: Path, name: str) -> None:
    write_records([], tmp_path / name)
    assert list(read_file(tmp_path / name)) == []


def test_an_unknown_id_is_an_input_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", alpaca(2))
    snapshot = build(tmp_path, "a.jsonl")
    with pytest.raises(InputError, match=r"sample nobody is not in pool snapshot .* \(2 such samples\)"):
        chosen_records(snapshot, tmp_path / "curated", [*ids(snapshot, tmp_path), "nobody", "none"])
