"""Damaged files of every format and form, read as a pool: `python -m tests.fuzz_files --seconds 300`.

Each file must end in a snapshot whose counts add up, or in an InputError; anything else stops the run.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.inspection import inspected
from novelsum_dagster.settings import NearDuplicates, Pool, Source

Draw = random.Random
TURNS = [{"role": "user", "content": "q é"}, {"role": "assistant", "content": "a 😀"}]
CALL = {"function": {"name": "f", "arguments": "{}"}}
RECORDS: list[Any] = [
    {"instruction": "q", "input": "i", "output": "a", "history": [["h", "k"]], "score": 2**60},
    {"messages": TURNS, "tools": [{"name": "f"}], "id": 7},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]},
    {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"question": "q", "answer": "a", "images": ["0.png"]},
    TURNS,
    {"text": "t"},
]  # fmt: skip


def written(draw: Draw, folder: Path) -> Path:
    """Write a sound file of a drawn format; return its path."""
    rows = [mutated(draw, draw.choice(RECORDS)) for _ in range(draw.randrange(1, 30))]
    kind = draw.choice(["jsonl", "json", "pretty.json", "wrapped.json", "csv", "parquet", "arrow", "jsonl.gz"])
    path = folder / f"a.{kind.split('.', 1)[-1] if kind.startswith(('pretty', 'wrapped')) else kind}"
    objects = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    if kind in ("parquet", "arrow"):
        table = pa.table(
            {"instruction": [str(row) for row in objects], "output": ["a"] * len(objects), "n": range(len(rows))}
        )
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=draw.choice([3, 100]))
        else:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        return path
    if kind == "csv":
        text = "question,answer\n" + "".join(f'"{json.dumps(row)[:20].replace(chr(34), chr(39))}",a\n' for row in rows)
    elif kind == "pretty.json":
        text = "\n".join(json.dumps(row, indent=2) for row in objects)
    elif kind == "wrapped.json":
        text = json.dumps({"version": 1, "data": objects}, indent=draw.choice([None, 1]))
    elif kind == "json":
        text = json.dumps(rows, indent=draw.choice([None, 2]), ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows)
    data = text.encode(errors="surrogatepass")
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return path


def mutated(draw: Draw, value: Any) -> Any:
    """Return a value in which a few parts are replaced by others."""
    if draw.random() < 0.01:
        return draw.choice([None, "", [], {}, 0, -1.5, True, "x", "\ud800", ["q", "a"], {"role": "user"}, float("nan")])
    if isinstance(value, dict):
        return {name: mutated(draw, part) for name, part in value.items() if draw.random() > 0.02}
    if isinstance(value, list):
        return [mutated(draw, part) for part in value]
    return value


def damage(draw: Draw, path: Path) -> None:
    """Change, remove or insert some bytes of a file, or leave it as it is."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([0, 1, 1, 2, 8])):
        at = draw.randrange(len(data) + 1)
        way = draw.randrange(4)
        if way == 0 and at < len(data):
            data[at] = draw.randrange(256)
        elif way == 1:
            del data[at : at + draw.choice([1, 5, 200])]
        elif way == 2:
            data[at:at] = draw.choice([b"{", b"}", b"]", b'"', b"\\", b"\n", b",", b"\x00", b"\xff", b"[{"])
        else:
            del data[at:]
    path.write_bytes(bytes(data))


def tried(seed: int) -> str:
    """Read one drawn file; return how it ended."""
    draw = Draw(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = written(draw, folder)
        damage(draw, path)
        source = Source(path=path.name, form=draw.choice(["auto", "auto", "auto", "alpaca", "messages", "text"]))
        pool = Pool(sources=(source,), max_reject_fraction=1, near_duplicates=NearDuplicates(by="off"))
        try:
            snapshot = build_snapshot(pool, folder, folder / "s", lambda texts: [1] * len(texts), refuse_bad=False)
        except InputError as error:
            assert "\n" not in str(error), error
            return "refused"
        (file,) = snapshot.files
        assert file.read == file.kept + file.duplicates + file.rejects + file.unread
        assert file.rejects == snapshot.table(folder / "s", "rejects").num_rows
        assert file.kept == snapshot.table(folder / "s", "samples").num_rows
        inspected(snapshot, folder / "s", pool)
        snapshot.model_validate_json(snapshot.model_dump_json())
        return "some rejects" if file.rejects else "read"


def main() -> None:
    """Try files until the time is over; print how many ended in which way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    ends, seed, until = Counter[str](), arguments.seed, time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        try:
            ends[tried(seed)] += 1
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
    print(f"{sum(ends.values()):,} files: " + ", ".join(f"{end} {count:,}" for end, count in ends.most_common()))


if __name__ == "__main__":
    main()
