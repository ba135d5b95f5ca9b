"""Chosen records are written back as they came."""

import base64
import contextlib
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool import export
from novelsum_dagster.pool.export import (
    ChosenRecord,
    chosen_records,
    json_changes,
    output_writer,
    record_line,
    require_writable,
    write_by_source,
    write_records,
)
from novelsum_dagster.pool.readers import read_file
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile
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
        {"instruction": "q", "output": "a", "tags": None},
        {"instruction": "r", "output": "a", "tags": ["x"], "meta": {"m": 1.5, "n": 1}},
        {"instruction": "s", "output": "a", "tags": [], "meta": {"n": 2, "m": None}},
    ]
    write_jsonl(tmp_path / "a.jsonl", values)
    pq.write_table(pa.table({"prompt": ["q2"], "completion": ["a"]}), tmp_path / "b.parquet")
    assert write_records(chosen(build(tmp_path, "a.jsonl", "b.parquet"), tmp_path), tmp_path / "out.parquet") == []
    back = pq.read_table(tmp_path / "out.parquet").to_pylist()
    names = ["instruction", "output", "tags", "meta", "prompt", "completion"]
    assert list(back[0]) == names
    assert [[row[name] for name in names] for row in back] == [
        ["q", "a", None, None, None, None],
        ["r", "a", ["x"], {"m": 1.5, "n": 1}, None, None],
        ["s", "a", [], {"m": None, "n": 2}, None, None],
        [None, None, None, None, "q2", "a"],
    ]


def json_pool(base: Path, *fields: str) -> PoolSnapshot:
    """Build a pool of a record for each JSON text of its field x; none where the text is empty."""
    fields = tuple(f', "x": {field}' if field else "" for field in fields)
    lines = [f'{{"instruction": "q{n}", "output": "a"{field}}}' for n, field in enumerate(fields)]
    (base / "a.jsonl").write_text("\n".join(lines))
    return build(base, "a.jsonl")


FITS = {
    "missing and null": ["", "null", "1"],
    "whole and other numbers": ["1", "1.5", "-9007199254740992", "1e300"],
    "64 bits": ["9223372036854775807", "-9223372036854775808"],
    "unsigned": ["18446744073709551615", "0"],
    "booleans": ["true", "null", "false"],
    "text": ['"\\u00e9 \U0001f600"', '""', '"\\ud83d\\ude00"', '"nul \\u0000"'],
    "empty lists": ["[]", "[null]", "[[], null]"],
    "lists": ["[1, 2.5]", "[]", "null"],
    "objects": ['{"a": 1, "b": null}', '{"b": {"c": [{"d": "x"}, null]}, "a": null}', "null"],
    "odd keys": ['{"": 1, "a.b": 2, "[]": 3}'],
    "deep": ["[" * 40 + "1" + "]" * 40],
}


@pytest.mark.parametrize("fields", FITS.values(), ids=FITS)
def test_json_records_come_back_from_parquet_as_they_were(tmp_path: Path, fields: list[str]) -> None:
    snapshot = json_pool(tmp_path, *fields)
    require_writable(snapshot, tmp_path / "curated", tmp_path / "out.parquet")
    assert write_records(chosen(snapshot, tmp_path), tmp_path / "out.parquet") == []
    wanted = [json.loads(field) if field else None for field in fields]
    assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == wanted


UNFIT: dict[str, tuple[list[str], str]] = {
    "text and numbers": (["1", '"text"'], "x unchanged: x has both whole numbers and text"),
    "fractions and text": (["1.5", '"text"'], "x unchanged: x has both numbers with a fraction and text"),
    "objects and numbers": (["1", '{"y": 1}'], "x unchanged: x has both whole numbers and objects"),
    "lists and objects": (["[]", '{"y": 1}'], "x unchanged: x has both lists and objects"),
    "booleans and numbers": (["1", "true"], "x unchanged: x has both whole numbers and true or false"),
    "in a list": (['["a", 1]'], r"x unchanged: x\[\] has both text and whole numbers"),
    "in objects in lists": (
        ['[{"content": "a"}]', '[{"content": ["b"]}]'],
        r"x unchanged: x\[\]\.content has both text and lists",
    ),
    "an empty object": (["{}"], "x unchanged: x has an empty object"),
    "an empty object inside": (['{"y": {}}'], r"x unchanged: x\.y has an empty object"),
    "keys differ": (['{"a": 1}', '{"b": 1}'], "x unchanged: x has objects with and without the key 'a'"),
    "a key is missing": (
        ['{"a": 1}', '{"b": null, "a": 1}'],
        "x unchanged: x has objects with and without the key 'b'",
    ),
    "keys differ in a list": (['[{"a": 1}, {"b": 1}]'], r"x unchanged: x\[\] has objects with and without the key 'a'"),
    "too large": (["1", "9" * 30], "x unchanged: x has a whole number of more than 64 bits"),
    "far too large": (["1", "9" * 6000], "x unchanged: x has a whole number of more than 64 bits"),
    "a bit too large": (
        ["18446744073709551616"],
        "x unchanged: x has whole numbers that do not fit into 64 bits together",
    ),
    "too far apart": (["18446744073709551615", "-1"], "x unchanged: x has whole numbers that do not fit into 64 bits"),
    "not exact": (
        ["1.5", "9007199254740993"],
        "x unchanged: x has .*whole numbers that 64-bit floating point would change",
    ),
    "out of range": (["1e999"], "x unchanged: x has a number outside the range of 64-bit floating point"),
    "half a pair": (['"\\ud800"'], "x unchanged: x has text that is not valid Unicode"),
    "half a pair in a key": (['{"\\ud800": 1}'], "x unchanged: x has text that is not valid Unicode"),
    "too deep": (["[" * 60 + "]" * 60], "x unchanged: x.* has lists and objects more than 50 deep"),
}


@pytest.mark.parametrize(("fields", "message"), UNFIT.values(), ids=UNFIT)
def test_what_parquet_cannot_hold_is_refused_or_json_text(tmp_path: Path, fields: list[str], message: str) -> None:
    snapshot, path = json_pool(tmp_path, *fields, "null", ""), tmp_path / "out" / "out.parquet"
    message_of = rf"out\.parquet: Parquet cannot hold column {message}.*; write \.jsonl, or .* \(--nested json\)"
    with pytest.raises(InputError, match=message_of):
        require_writable(snapshot, tmp_path / "curated", path)
    with pytest.raises(InputError, match=message_of):
        write_records(chosen(snapshot, tmp_path), path)
    assert not path.exists() and not list(hidden(tmp_path / "out"))
    require_writable(snapshot, tmp_path / "curated", tmp_path / "out.jsonl")
    require_writable(snapshot, tmp_path / "curated", path, nested="json")
    notes = write_records(chosen(snapshot, tmp_path), path, nested="json")
    table = pq.read_table(path)
    assert table.schema.names == ["instruction", "output", "x"] and table.schema.field("x").type == pa.string()
    assert table["x"].to_pylist() == [*fields, None, None]
    assert len(notes) == 1 and notes[0].startswith("column x is written as JSON text: ")


def test_only_the_columns_that_do_not_fit_are_json_text(tmp_path: Path) -> None:
    odd = r'{ "instruction":"q" ,"meta" :{"n":1.00},	"output": "a", "text": "\u0041}", "fits" : {"a": [ 1 ]} }'
    even = '{"instruction": "r", "output": "a", "meta": {}, "fits": {"a": [2]}, "text": "b"}'
    (tmp_path / "a.jsonl").write_text(f"{odd}\n{even}")
    notes = write_records(chosen(build(tmp_path, "a.jsonl"), tmp_path), tmp_path / "out.parquet", nested="json")
    assert notes == ["column meta is written as JSON text: meta has an empty object"]
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"instruction": "q", "meta": '{"n":1.00}', "output": "a", "text": "A}", "fits": {"a": [1]}},
        {"instruction": "r", "meta": "{}", "output": "a", "text": "b", "fits": {"a": [2]}},
    ]


def test_a_column_whose_name_is_no_unicode_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(r'{"instruction": "q", "output": "a", "\ud800": 1}')
    snapshot = build(tmp_path, "a.jsonl")
    for nested in ("refuse", "json"):
        with pytest.raises(InputError, match=r"column '\\ud800': not valid Unicode; write \.jsonl"):
            require_writable(snapshot, tmp_path / "curated", tmp_path / "out.parquet", nested)


def test_a_dropped_near_duplicate_need_not_be_writable(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(200))
    lines: list[dict[str, Any]] = [{"instruction": f"q{n}", "output": text, "x": {"k": 1}} for n in range(2)]
    lines[1]["x"] = {}
    write_jsonl(tmp_path / "a.jsonl", lines)
    dropping = {"by": "minhash", "drop": True}
    require_writable(
        build(tmp_path, "a.jsonl", near_duplicates=dropping), tmp_path / "curated", tmp_path / "out.parquet"
    )
    with pytest.raises(InputError, match="an empty object"):
        require_writable(build(tmp_path, "a.jsonl"), tmp_path / "curated", tmp_path / "out.parquet")


def test_parquet_files_of_other_columns_keep_their_types(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 2, 29, 12)
    pq.write_table(pa.table({"prompt": ["q"], "completion": ["a"], "when": [when]}), tmp_path / "a.parquet")
    required = pa.schema(
        [pa.field("prompt", pa.string(), nullable=False), ("response", pa.string()), ("b", pa.binary())]
    )
    pq.write_table(pa.Table.from_arrays([["r"], ["a"], [b"\xff"]], schema=required), tmp_path / "b.parquet")
    snapshot = build(tmp_path, "a.parquet", "b.parquet")
    require_writable(snapshot, tmp_path / "curated", tmp_path / "out.parquet")
    assert write_records(chosen(snapshot, tmp_path, -1), tmp_path / "out.parquet") == []
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.to_pylist() == [
        {"prompt": "r", "response": "a", "b": b"\xff", "completion": None, "when": None},
        {"prompt": "q", "response": None, "b": None, "completion": "a", "when": when},
    ]
    assert back.schema.field("when").type == pa.timestamp("us")


def test_parquet_files_whose_objects_differ_are_not_padded(tmp_path: Path) -> None:
    for name, key in (("a", "x"), ("b", "y")):
        rows = [{"prompt": f"q {name}", "completion": "a", "meta": {key: 1}}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    snapshot = build(tmp_path, "a.parquet", "b.parquet")
    with pytest.raises(InputError, match="column meta unchanged: meta has objects with and without the key 'x'"):
        require_writable(snapshot, tmp_path / "curated", tmp_path / "out.parquet")
    write_records(chosen(snapshot, tmp_path), tmp_path / "out.parquet", nested="json")
    texts = pq.read_table(tmp_path / "out.parquet")["meta"].to_pylist()
    assert [json.loads(text) for text in texts] == [{"x": 1}, {"y": 1}]


def source_file(**values: Any) -> SourceFile:
    """Return a file that was read."""
    counts = {"complete": True, "read": 1, "kept": 1, "duplicates": 0, "rejects": 0}
    return SourceFile.model_validate(
        {"source": "a", "file": "a", "format": "jsonl", "form": None, "sha256": None, "arrow_schema": None, **counts}
        | values
    )


def arrow_record(batch: pa.RecordBatch, **values: Any) -> ChosenRecord:
    """Return the only row of a batch as a chosen record."""
    schema = base64.b64encode(batch.schema.serialize()).decode()
    return ChosenRecord(source_file(format="arrow", arrow_schema=schema, **values), batch.serialize().to_pybytes())


def test_a_type_that_parquet_does_not_have_is_refused(tmp_path: Path) -> None:
    empty = pa.record_batch({"prompt": ["q"], "meta": pa.array([{}], pa.struct([]))})
    record = arrow_record(empty)
    with pytest.raises(InputError, match=r"column meta unchanged: meta has an empty object; write \.jsonl"):
        write_records([record], tmp_path / "out.parquet")
    write_records([record], tmp_path / "out.parquet", nested="json")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"prompt": "q", "meta": "{}"}]
    assert [path.name for path in write_by_source([record], tmp_path / "own")] == ["a.jsonl"]
    assert json.loads((tmp_path / "own" / "a.jsonl").read_text()) == {"prompt": "q", "meta": {}}


def test_what_arrow_refuses_while_it_writes_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(table: pa.Table, path: Path) -> None:
        raise pa.ArrowNotImplementedError("no such thing")

    monkeypatch.setattr(export, "write_table", refuse)
    with pytest.raises(InputError, match=r"out\.parquet: .* written as Parquet: no such thing; write \.jsonl"):
        write_records(chosen(json_pool(tmp_path, "1"), tmp_path), tmp_path / "out.parquet")


def test_each_kind_of_original_has_a_format_and_no_two_files_one_name(tmp_path: Path) -> None:
    text = b'{"prompt": "q", "completion": "a"}'
    row = pa.record_batch({"prompt": ["q"], "completion": ["a"]})
    records = [
        ChosenRecord(source_file(file="1", format="csv"), text),
        ChosenRecord(source_file(file="2", format="dataset"), text),
        arrow_record(row, file="3"),
        arrow_record(row, file="4", source="A"),
        ChosenRecord(source_file(file="5", format="jsonl", source="A"), text),
        ChosenRecord(source_file(file="6", format="json"), text),
        ChosenRecord(source_file(file="7", format="jsonl", source="a-2"), text),
        ChosenRecord(source_file(file="8", format="jsonl", source="caf\udce9"), text),
    ]
    paths = write_by_source(records, tmp_path)
    names = ["a.jsonl", "a-2.jsonl", "a.parquet", "A-2.parquet", "A-3.jsonl", "a.json", "a-2-2.jsonl", "caf_.jsonl"]
    assert [path.name for path in paths] == names
    assert len({path.name.casefold() for path in paths}) == len(paths)
    assert (tmp_path / "a.jsonl").read_bytes() == text + b"\n"
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == row.to_pylist()


NAMES = st.sampled_from(["a", "b", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(first=VALUES, second=VALUES, repeats=st.booleans())
def test_records_are_refused_or_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any, repeats: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    values = [first, first if repeats else second]
    lines = [json.dumps({"x": value}).replace("Infinity", "1e999") for value in values]
    records = [ChosenRecord(source_file(), line.encode()) for line in lines]
    with contextlib.suppress(InputError):
        assert write_records(records, path) == []
        assert pq.read_table(path)["x"].to_pylist() == values
    is_text = bool(write_records(records, path, nested="json"))
    back = pq.read_table(path)["x"].to_pylist()
    assert [json.loads(one) if is_text and one is not None else one for one in back] == values


def typed() -> pa.RecordBatch:
    """Return a row with the types that JSON does not have."""
    return pa.record_batch(
        {
            "prompt": ["q"],
            "raw": pa.array([b"\xff\x00\x01"]),
            "nan": [float("nan")],
            "map": pa.array([[("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int64())),
            "day": [datetime.date(2026, 1, 2)],
            "price": [decimal.Decimal("1.10")],
            "nest": [{"raws": [b"a", None], "inf": float("-inf"), "text": "nan"}],
        }
    )


def test_what_json_does_not_have_is_written_in_its_next_form_with_a_note(tmp_path: Path) -> None:
    notes = [
        "binary values written as base64 text: 2",
        "values that are not finite (NaN, infinity) written as null: 2",
    ]
    for name in ("out.jsonl", "out.json"):
        assert write_records([arrow_record(typed())], tmp_path / name) == notes
    assert json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail) == {
        "prompt": "q",
        "raw": "/wAB",
        "nan": None,
        "map": {"a": 1, "b": 2},
        "day": "2026-01-02",
        "price": "1.10",
        "nest": {"raws": ["YQ==", None], "inf": None, "text": "nan"},
    }
    both = [arrow_record(typed()), ChosenRecord(source_file(file="b"), b'{"prompt": "r"}')]
    assert write_records(both, tmp_path / "out.parquet") == notes
    assert write_records(both[:1], tmp_path / "out.parquet") == []
    assert pq.read_table(tmp_path / "out.parquet")["raw"].to_pylist() == [b"\xff\x00\x01"]


def test_json_records_and_plain_rows_change_nothing_in_json(tmp_path: Path) -> None:
    row = pa.record_batch({"prompt": ["q"], "score": [0.5], "none": [None]})
    assert json_changes([ChosenRecord(source_file(), b'{"x": "/wAB"}'), arrow_record(row, file="b")]) == []


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


def test_records_without_names_do_not_fit_into_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"a text"\n["q", "a"]\n')
    snapshot = build(tmp_path, "a.jsonl")
    assert snapshot.kept == 2
    with pytest.raises(InputError, match="named columns"):
        require_writable(snapshot, tmp_path / "curated", tmp_path / "out.parquet", "json")
