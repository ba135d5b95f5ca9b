"""JSON in every layout, and broken records in it."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from novelsum_dagster.pool.readers import read_file
from novelsum_dagster.pool.records import MAX_DIGITS, Record
from novelsum_dagster.pool.samples import Reject

ROWS: list[dict[str, Any]] = [
    {"id": number, "turns": [{"who": "a", "says": 'a "quote" {'}, {"who": "b", "says": "], ["}], "n": {"x": [number]}}
    for number in range(1, 6)
]
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}]
NAMES = pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.json.gz"])


def read(path: Path, text: str) -> list[Record]:
    """Read a text as a file, compressed where its name says so."""
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return list(read_file(path))


def outcome(records: list[Record]) -> list[Any]:
    """Return the values of good records and the reasons of rejects."""
    return [record.value.reason if isinstance(record.value, Reject) else record.value for record in records]


def pretty(rows: list[Any], indent: int = 2) -> list[str]:
    """Return each row pretty-printed."""
    return [json.dumps(row, indent=indent) for row in rows]


LAYOUTS = {
    "lines": ("\n".join(map(json.dumps, ROWS)), ROWS),
    "one line": (json.dumps(ROWS[0]), ROWS[:1]),
    "list": (json.dumps(ROWS), ROWS),
    "pretty list": (json.dumps(ROWS, indent=1), ROWS),
    "list, a record on a line": ("[" + ",\n".join(map(json.dumps, ROWS)) + "]\n", ROWS),
    "pretty objects": ("\n".join(pretty(ROWS)), ROWS),
    "one pretty object": (pretty(ROWS)[0] + "\n", ROWS[:1]),
    "wrapped": (json.dumps({"data": ROWS}), ROWS),
    "pretty wrapped": (json.dumps({"version": "1", "size": 5, "rows": ROWS, "more": [1, {}], "x": {}}, indent=2), ROWS),
    "wrapped lists": (json.dumps({"conversations": [TALK, OTHER]}), [TALK, OTHER]),
    "lists": (json.dumps([TALK, OTHER]), [TALK, OTHER]),
    "a list on a line": (f"{json.dumps(TALK)}\n{json.dumps(OTHER)}\n", [TALK, OTHER]),
    "one conversation": (json.dumps(TALK), [TALK]),
    "one pretty conversation": (json.dumps(TALK, indent=2), [TALK]),
    "pretty conversations": ("\n".join(pretty([TALK, OTHER])), [TALK, OTHER]),
    "tool calls": (json.dumps([{"role": "assistant", "tool_calls": []}, *TALK]), None),
}


@NAMES
@pytest.mark.parametrize(("text", "wanted"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_content_tells_the_layout(tmp_path: Path, name: str, text: str, wanted: list[Any] | None) -> None:
    records = read(tmp_path / name, text)
    assert outcome(records) == (wanted or [json.loads(text)])
    assert [json.loads(record.original) for record in records] == outcome(records)
    assert [record.position for record in records] == list(range(1, len(records) + 1))
    lines = text.split("\n")
    for record in records:
        assert record.line is not None
        assert record.original.decode().split("\n")[0] in lines[record.line - 1]


@NAMES
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"conversations": OTHER},
        {"data": ["question", "answer"]},
        {"items": [1, 2]},
        {"data": []},
        {"meta": {"a": 1}, "data": [{"a": 1}]},
        {"prompt": "q", "documents": [{"a": 1}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_is_no_wrapper_is_a_record(
    tmp_path: Path, name: str, row: dict[str, Any], indent: int | None
) -> None:
    assert outcome(read(tmp_path / name, json.dumps(row, indent=indent))) == [row]


@NAMES
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_with_examples_are_records_where_there_are_several(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    rows = [{"instruction": "q", "examples": [{"input": "x"}], "output": str(number)} for number in range(3)]
    assert outcome(read(tmp_path / name, "\n".join(json.dumps(row, indent=indent) for row in rows))) == rows


@pytest.mark.parametrize("rest", ['"n" 3}', "]", '"n": [1, }', ", 3}", '"n": 3'])
def test_what_follows_a_wrapped_list_must_be_well_formed(tmp_path: Path, rest: str) -> None:
    records = read(tmp_path / "a.json", f'{{"data": [{json.dumps(ROWS[0])}, {json.dumps(ROWS[1])}], {rest}')
    assert outcome(records) == [*ROWS[:2], "broken_json"]
    assert records[-1].ends_file


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("first", ['{"instruction": "q"', '{"a": }', "{'a': 1}", '"a": 1}', '{"a": "b'])
def test_a_broken_first_line_is_one_reject(tmp_path: Path, name: str, first: str) -> None:
    records = read(tmp_path / name, "\n".join([first, *map(json.dumps, ROWS)]))
    assert outcome(records) == ["broken_json", *ROWS]
    assert records[0].original.decode() == first


def test_a_broken_first_line_of_lists_is_one_reject(tmp_path: Path) -> None:
    first = json.dumps(TALK)[:-3]
    records = read(tmp_path / "a.jsonl", "\n".join([first, json.dumps(OTHER), json.dumps(TALK)]))
    assert outcome(records) == ["broken_json", OTHER, TALK]


def test_scalars_on_the_first_lines_do_not_hide_the_rest(tmp_path: Path) -> None:
    assert outcome(read(tmp_path / "a.jsonl", f"[1]\nnull\n{json.dumps(ROWS[0])}")) == [[1], "wrong_type", ROWS[0]]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_integers_are_exact(tmp_path: Path, name: str) -> None:
    row = {"id": 2**63 + 1, "minus": -(2**70), "one": 1.0}
    long = "9" * (MAX_DIGITS + 1)
    first, second = read(tmp_path / name, f'{json.dumps(row)}\n{{"id": {long}}}')
    assert first.value == row
    assert second.value == {"id": float(long)}


def list_of(parts: list[str], separator: str, margin: str = "") -> str:
    """Return a list of texts."""
    return "[" + margin + separator.join(parts) + margin + "]"


def indented(text: str, by: int) -> str:
    """Return a text with every line indented."""
    return "\n".join(" " * by + line for line in text.split("\n"))


COMPACT = [json.dumps(row) for row in ROWS]
INDENTED = [indented(text, 2) for text in pretty(ROWS)]
FRAMES: dict[str, tuple[list[str], Any]] = {
    "one line": (COMPACT, lambda parts: list_of(parts, ", ")),
    "a record on a line": (COMPACT, lambda parts: list_of(parts, ",\n", "\n")),
    "opened on the first line": (COMPACT, lambda parts: list_of(parts, ",\n")),
    "pretty": (INDENTED, lambda parts: list_of(parts, ",\n", "\n")),
    "wrapped": (INDENTED, lambda parts: '{"v": 1, "data": ' + list_of(parts, ",\n", "\n") + ', "n": 1}'),
    "objects": (pretty(ROWS), "\n".join),
}
BALANCED = {
    "comma": lambda text: text.rstrip()[:-1] + ",}",
    "quotes": lambda text: text.replace('"id"', "'id'"),
    "no value": lambda text: text.replace('"x": [', '"x": [,'),
    "inner quotes": lambda text: text.replace('"a"', '"he said "hi" twice"'),
    "control": lambda text: text.replace("], [", "],\t["),
}
UNBALANCED = {
    "quote": lambda text: text.replace('"id"', '"id'),
    "late quote": lambda text: text.replace('"n"', '"n'),
    "brace": lambda text: text.rstrip()[:-1],
    "bracket": lambda text: text.replace('"turns": [', '"turns": '),
    "cut": lambda text: text[: len(text) // 2],
}


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("damage", BALANCED.values(), ids=BALANCED)
@pytest.mark.parametrize(("parts", "framed"), FRAMES.values(), ids=FRAMES)
def test_a_broken_element_is_one_reject_between_good_ones(
    tmp_path: Path, parts: list[str], framed: Any, damage: Any, at: int
) -> None:
    broken = damage(parts[at])
    text = framed([broken if number == at else part for number, part in enumerate(parts)])
    records = read(tmp_path / "a.json", text)
    assert outcome(records) == [*ROWS[:at], "broken_json", *ROWS[at + 1 :]]
    assert not any(record.ends_file for record in records)
    reject = records[at]
    assert (reject.position, reject.original.decode()) == (at + 1, broken.strip())
    assert reject.line == text[: text.index(broken.strip())].count("\n") + 1


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("damage", UNBALANCED.values(), ids=UNBALANCED)
@pytest.mark.parametrize("frame", [name for name in FRAMES if name != "one line"])
def test_reading_goes_on_at_the_next_line_like_the_first(tmp_path: Path, frame: str, damage: Any, at: int) -> None:
    parts, framed = FRAMES[frame]
    broken = damage(parts[at])
    records = read(tmp_path / "a.json", framed([broken if number == at else part for number, part in enumerate(parts)]))
    assert outcome(records)[at:] == ["broken_json", *ROWS[at + 1 :]]
    assert records[at].original.decode() == broken.strip()


def test_neighbours_that_are_broken_are_a_reject_each(tmp_path: Path) -> None:
    parts = [*COMPACT[:1], "{'a': 1}", '{"a": }', "{b}", *COMPACT[1:]]
    records = read(tmp_path / "a.json", list_of(parts, ", "))
    assert outcome(records) == [ROWS[0], *["broken_json"] * 3, *ROWS[1:]]
    assert [record.original.decode() for record in records[1:4]] == parts[1:4]


NO_WAY_ON = {
    "one line": list_of([COMPACT[0], COMPACT[1].replace('"id"', '"id'), *COMPACT[2:]], ", "),
    "no indentation": list_of(
        [pretty(ROWS, 0)[0], pretty(ROWS, 0)[1].replace('"id"', '"id'), *pretty(ROWS, 0)[2:]], ",\n"
    ),
    "objects at the start of lines": list_of(
        [
            text.replace('"id"', '"id') if number == 1 else text
            for number, text in enumerate(
                json.dumps(row).replace('[{"who"', '[\n{"who"').replace('}, {"who"', '},\n{"who"') for row in ROWS[:2]
            )
        ],
        ",\n",
    ),
}


@pytest.mark.parametrize("text", NO_WAY_ON.values(), ids=NO_WAY_ON)
def test_what_is_inside_of_a_broken_record_is_none(tmp_path: Path, text: str) -> None:
    records = read(tmp_path / "a.json", text)
    assert outcome(records) == [ROWS[0], "broken_json"]
    assert records[-1].ends_file and len(records[-1].original) <= 1000


def test_a_missing_comma_costs_one_record(tmp_path: Path) -> None:
    text = f"[{COMPACT[0]} {COMPACT[1]}, {COMPACT[2]}]"
    assert outcome(read(tmp_path / "a.json", text)) == [ROWS[0], "broken_json", ROWS[2]]


@pytest.mark.parametrize(
    "framed", [lambda parts: f'{{"data": [{",".join(parts)}]}}', "\n".join], ids=["list", "objects"]
)
def test_memory_does_not_grow_with_the_layout(tmp_path: Path, framed: Any) -> None:
    row = json.dumps({"instruction": "What is this? " * 40, "output": "An answer. " * 700}, indent=1)
    (tmp_path / "a.json").write_text(framed([row] * 3000))
    tracemalloc.start()
    count = sum(not isinstance(record.value, Reject) for record in read_file(tmp_path / "a.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000 and peak < 6_000_000
