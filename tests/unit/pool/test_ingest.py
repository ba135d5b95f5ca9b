"""Every record ends as a sample, a duplicate or a reject; the counts add up; the same content has the same key."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.forms import Reading, parse
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import NEAR_DUPLICATES, ORIGINS, REJECTS, SAMPLES
from novelsum_dagster.settings import NearDuplicates, Pool, Source, TextRule
from tests.pools import alpaca, pairs, write_jsonl
from tests.unit.pool.building import OFF, adds_up, build, hidden, ids, rows, words

GOOD = '{"instruction": "What is a good record?", "output": "This one."}'


def snapshots(base: Path) -> list[Path]:
    """Return the snapshot folders in storage."""
    return sorted((base / "curated" / "pool").glob("snapshot=*"))


def write_forms(folder: Path, wanted: list[tuple[str, str]]) -> list[str]:
    """Write the same conversations in every form, format and compression; return the files' names."""
    forms: dict[str, list[dict[str, Any]]] = {
        "alpaca.json": [{"instruction": q, "input": "", "output": a} for q, a in wanted],
        "response.jsonl": [{"instruction": q, "response": a} for q, a in wanted],
        "prompt.jsonl.gz": [{"prompt": q, "completion": a, "id": n} for n, (q, a) in enumerate(wanted)],
        "chat.parquet": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in wanted
        ],
        "shared.json.zst": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in reversed(wanted)
        ],
    }
    folder.mkdir(exist_ok=True)
    for name, values in forms.items():
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(values), folder / name)
            continue
        text = json.dumps(values) if ".json" in Path(name).suffixes else "\n".join(map(json.dumps, values))
        compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(name).suffix)
        with pa.output_stream(str(folder / name), compression=compression) as stream:
            stream.write(text.encode())
    datasets.Dataset.from_list(forms["alpaca.json"]).save_to_disk(str(folder / "saved"))
    (folder / "hub").mkdir()
    write_jsonl(folder / "hub" / "train.jsonl", forms["response.jsonl"])
    return list(forms)


def test_the_same_conversations_have_the_same_ids_in_every_form_format_and_order(tmp_path: Path) -> None:
    wanted = pairs(20)
    names = write_forms(tmp_path / "pool", wanted)
    found = [ids(build(tmp_path, f"pool/{name}"), tmp_path) for name in names]
    for name in ("saved", "hub"):
        found.append(ids(build(tmp_path, sources=[{"dataset": f"pool/{name}"}]), tmp_path))
    assert len(set(found[0])) == 20
    assert all(sorted(other) == sorted(found[0]) for other in found)
    assert found[4] == found[0][::-1] and found[3] == found[0]


def test_exact_duplicates_are_one_sample_with_several_origins(tmp_path: Path) -> None:
    names = write_forms(tmp_path / "pool", pairs(20))
    sources = [{"path": f"pool/{name}"} for name in names]
    snapshot = build(tmp_path, sources=[*sources, {"dataset": "pool/saved"}, {"dataset": "pool/hub"}])
    assert (snapshot.read, snapshot.kept, snapshot.duplicates, snapshot.rejects) == (140, 20, 120, 0)
    assert [file.kept for file in snapshot.files] == [20, 0, 0, 0, 0, 0, 0]
    assert [file.form for file in snapshot.files] == [
        "alpaca", "alpaca", "prompt_completion", "messages", "sharegpt", "alpaca", "alpaca"
    ]  # fmt: skip
    assert [file.file for file in snapshot.files[-2:]] == ["pool/saved[train]", "pool/hub[train]"]
    assert adds_up(snapshot)
    origins = rows(snapshot, tmp_path, "origins")
    for id_ in ids(snapshot, tmp_path):
        mine = [origin for origin in origins if origin["id"] == id_]
        assert [origin["is_first"] for origin in mine] == [True] + [False] * 6
        assert len({origin["file"] for origin in mine}) == 7
    reversed_ = [origin["position"] for origin in origins if origin["file"] == "pool/shared.json.zst"]
    assert reversed_ == list(range(1, 21))


def test_a_duplicate_inside_a_file_keeps_the_first_place(tmp_path: Path) -> None:
    one, two = alpaca(2)
    write_jsonl(tmp_path / "a.jsonl", [one, two, {**one, "id": 7}])
    snapshot = build(tmp_path, "a.jsonl")
    assert (snapshot.read, snapshot.kept, snapshot.duplicates) == (3, 2, 1)
    samples = rows(snapshot, tmp_path, "samples")
    assert [sample["line"] for sample in samples] == [1, 2]
    assert json.loads(samples[0]["original"]) == one
    assert [(o["id"], o["line"]) for o in rows(snapshot, tmp_path, "origins")][2] == (samples[0]["id"], 3)


def test_a_sample_has_its_place_sizes_and_text(tmp_path: Path) -> None:
    text = '{"prompt": "What is é?", "completion": "A letter."}'
    (tmp_path / "a.jsonl").write_text(f"\n{text}\n")
    snapshot = build(tmp_path, sources=[{"path": "a.jsonl", "name": "letters"}])
    (sample,) = rows(snapshot, tmp_path, "samples")
    wanted = {
        "source": "letters", "file": "a.jsonl", "position": 1, "line": 2, "form": "prompt_completion", "turns": 2,
        "characters": 20, "tokens": 5, "text": "What is é?\nA letter.", "original": text.encode(),
    }  # fmt: skip
    assert {name: sample[name] for name in wanted} == wanted


def test_tables_have_their_schemas(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*alpaca(3), {"x": 1}])
    snapshot = build(tmp_path, "a.jsonl", near_duplicates={})
    schemas = {"samples": SAMPLES, "origins": ORIGINS, "rejects": REJECTS, "near_duplicates": NEAR_DUPLICATES}
    for name, schema in schemas.items():
        assert snapshot.table(tmp_path / "curated", name).schema.equals(schema), name


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2000])
def test_no_row_is_lost_between_batches(tmp_path: Path, count: int) -> None:
    values: list[dict[str, Any]] = [{"instruction": f"Question {n}", "output": "Answer"} for n in range(count)]
    bad: list[dict[str, Any]] = [{"output": "Answer"}] * count
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a"}, *values, *values, *bad])
    snapshot = build(tmp_path, "a.jsonl")
    assert (snapshot.read, snapshot.kept, snapshot.duplicates, snapshot.rejects) == (
        3 * count + 1,
        count + 1,
        count,
        count,
    )
    assert [len(rows(snapshot, tmp_path, name)) for name in ("samples", "origins", "rejects")] == [
        count + 1, 2 * count + 1, count
    ]  # fmt: skip
    assert [row["tokens"] for row in rows(snapshot, tmp_path, "samples")][1:] == [3] * count


BAD: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"instruction": "q"', "broken_json"),
    "utf8": (b'{"instruction": "\xff", "output": "a"}', "invalid_utf8"),
    "surrogate": (rb'{"instruction": "\ud800", "output": "a"}', "invalid_unicode"),
    "surrogate field": (rb'{"\udfff": "q"}', "missing_fields"),
    "missing": (b'{"instruction": "q"}', "missing_fields"),
    "null": (b'{"instruction": null, "output": "a"}', "missing_fields"),
    "empty": (b'{"instruction": "q", "output": ""}', "empty_field"),
    "type": (b'{"instruction": 5, "output": "a"}', "wrong_type"),
    "long": (b'{"instruction": "q", "output": "' + b"a" * 5000 + b'"}', "over_long"),
    "number": (b"7", "wrong_type"),
    "list": (b"[]", "empty_field"),
    "deep": (b'{"instruction": ' + b"[" * 50_000, "broken_json"),
    "deep but whole": (b'{"instruction": ' + b"[" * 400 + b"]" * 400 + b', "output": "a"}', "wrong_type"),
    "digits": (b'{"instruction": ' + b"9" * 9000 + b', "output": "a"}', "wrong_type"),
}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_record_is_a_reject_with_its_place_and_the_run_goes_on(tmp_path: Path, line: bytes, reason: str) -> None:
    after = GOOD.replace("good", "second")
    (tmp_path / "a.jsonl").write_bytes(GOOD.encode() + b"\n\n" + line + b"\n" + after.encode())
    snapshot = build(tmp_path, "a.jsonl", max_characters=4000)
    assert (snapshot.read, snapshot.kept, snapshot.duplicates, snapshot.rejects) == (3, 2, 0, 1)
    (reject,) = rows(snapshot, tmp_path, "rejects")
    assert (reject["file"], reject["source"], reject["position"], reject["line"]) == ("a.jsonl", "a", 2, 3)
    assert (reject["reason"], reject["original"]) == (reason, line)
    assert reject["detail"]


NO_USER = '{"messages": [{"role": "assistant", "content": "a"}]}'
CHAT = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
FILES: dict[str, tuple[str, bytes, list[str], bool]] = {
    "broken element": ("a.json", f"[{GOOD}, {{,}}, {GOOD}]".encode(), ["broken_json"], True),
    "truncated list": ("a.json", f"[{GOOD}, {GOOD[:20]}".encode(), ["broken_json"], False),
    "two lists": ("a.json", f"[{GOOD}][{GOOD}]".encode(), ["broken_json"], False),
    "odd elements": (
        "a.json",
        f"[{GOOD}, 1, null, [{GOOD}]]".encode(),
        ["wrong_type"] * 2,
        True,
    ),
    "utf-16": ("a.json", f"[{GOOD}]".encode("utf-16"), ["wrong_encoding"], False),
    "utf-16 lines": ("a.jsonl", GOOD.encode("utf-16"), ["wrong_encoding"], False),
    "empty": ("a.json", b"", ["broken_json"], False),
    "not gzip": ("a.jsonl.gz", GOOD.encode(), ["unreadable_file"], False),
    "not parquet": ("a.parquet", GOOD.encode(), ["unreadable_file"], False),
    "empty parquet": ("a.parquet", b"", ["unreadable_file"], False),
    "no user": ("a.jsonl", f"{CHAT}\n{NO_USER}".encode(), ["no_user_turn"], True),
}


@pytest.mark.parametrize(("name", "data", "reasons", "complete"), FILES.values(), ids=FILES)
def test_a_bad_file_has_rejects_and_the_next_file_is_read(
    tmp_path: Path, name: str, data: bytes, reasons: list[str], complete: bool
) -> None:
    (tmp_path / name).write_bytes(data)
    write_jsonl(tmp_path / "next.jsonl", alpaca(3))
    snapshot = build(tmp_path, name, "next.jsonl")
    rejects = rows(snapshot, tmp_path, "rejects")
    assert [reject["reason"] for reject in rejects] == reasons
    assert {reject["file"] for reject in rejects} == {name}
    assert snapshot.files[0].complete == complete and snapshot.files[1].complete
    assert snapshot.files[0].rejects == len(reasons) and snapshot.files[1].kept == 3
    assert adds_up(snapshot)


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_file_keeps_what_was_read(tmp_path: Path, name: str) -> None:
    draw = random.Random(3)
    values = [{"instruction": str(draw.random()), "output": "a"} for _ in range(5000)]
    text = json.dumps(values) if ".json" in name.replace("jsonl", "") else "\n".join(map(json.dumps, values))
    with pa.output_stream(
        str(tmp_path / name), compression={"gz": "gzip", "zst": "zstd"}[name.split(".")[-1]]
    ) as stream:
        stream.write(text.encode())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    snapshot = build(tmp_path, name, max_reject_fraction=0.01)
    assert 500 < snapshot.kept < 3000 and snapshot.rejects == 1 and adds_up(snapshot)
    assert not snapshot.files[0].complete


def test_rejects_in_random_pools_add_up_per_file(tmp_path: Path) -> None:
    draw = random.Random(11)
    lines = [line for line, _ in BAD.values() if len(line) < 5000] + [b"", GOOD.encode(), CHAT.encode()]
    lines += [json.dumps(record).encode() for record in alpaca(10)]
    for turn in range(15):
        base = tmp_path / str(turn)
        base.mkdir()
        drawn = {}
        for number in range(3):
            drawn[f"{number}.jsonl"] = [*draw.choices(lines, k=draw.randrange(1, 40)), GOOD.encode()]
            (base / f"{number}.jsonl").write_bytes(b"\n".join(drawn[f"{number}.jsonl"]))
        snapshot = build(base, "*.jsonl", near_duplicates={"threshold": 0.3, "drop": draw.random() < 0.5})
        assert adds_up(snapshot)
        for file in snapshot.files:
            assert file.read == sum(line != b"" for line in drawn[file.file])
        assert snapshot.kept == len(ids(snapshot, base)) == len(set(ids(snapshot, base)))
        assert snapshot.rejects == len(rows(snapshot, base, "rejects"))


@pytest.mark.parametrize(("limit", "fails"), [(0.0, True), (0.19, True), (0.2, False), (1.0, False)])
def test_it_fails_only_over_the_reject_fraction(tmp_path: Path, limit: float, fails: bool) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*alpaca(4), {"instruction": "q"}, *alpaca(4, 4), {"x": 1}])
    if not fails:
        assert build(tmp_path, "a.jsonl", max_reject_fraction=limit).rejects == 2
        return
    with pytest.raises(InputError) as error:
        build(tmp_path, "a.jsonl", max_reject_fraction=limit)
    message = str(error.value)
    kept = tmp_path / "curated" / "pool" / "rejects.parquet"
    for part in (
        "2 of 10 records",
        f"max_reject_fraction {limit}",
        "a.jsonl, record 5, line 5: missing_fields",
        str(kept),
    ):
        assert part in message
    assert [row["position"] for row in pq.read_table(kept).to_pylist()] == [5, 10]
    assert not snapshots(tmp_path) and not list(hidden(tmp_path))


def test_a_pool_of_rejects_alone_fails_whatever_the_limit(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"x": 1}])
    with pytest.raises(InputError, match="no sample is left") as error:
        build(tmp_path, "a.jsonl", max_reject_fraction=1.0)
    assert "raise the limit" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing.jsonl", "correct the path or glob"),
        ("no*.jsonl", "correct the path or glob"),
        ("folder", "is a folder without a file that can be read"),
        ("notes.txt", "must end in"),
    ],
)
def test_a_wrong_path_fails_before_any_other_work(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").touch()
    # Reading this one fails, so it must not be read before the wrong path is found.
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=says) as error:
        build(tmp_path, "a.jsonl", path)
    assert path in str(error.value)
    assert not (tmp_path / "curated").exists()


def test_no_sources_fail_before_any_other_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pool\.sources is empty; list at least one"):
        build(tmp_path)
    assert not (tmp_path / "curated").exists()


def test_files_without_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.json").write_text("[]")
    write_jsonl(tmp_path / "good.jsonl", alpaca(3))
    with pytest.raises(InputError, match=r"no records in a\.jsonl, b\.json; remove from pool.sources, or wait"):
        build(tmp_path, "a.jsonl", "b.json", "good.jsonl")
    assert not snapshots(tmp_path) and not list(hidden(tmp_path))


def test_a_file_that_two_globs_name_is_read_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", alpaca(3))
    assert build(tmp_path, "*.jsonl", "a.jsonl", str(tmp_path / "a.*")).read == 3


def test_a_stated_form_decides_and_a_wrong_one_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{CHAT[:-1]}, {GOOD[1:]}\n")
    first = build(tmp_path, sources=[{"path": "a.jsonl", "form": "messages"}])
    second = build(tmp_path, sources=[{"path": "a.jsonl", "form": "alpaca"}])
    assert [snapshot.files[0].form for snapshot in (first, second)] == ["messages", "alpaca"]
    assert ids(first, tmp_path) != ids(second, tmp_path)
    with pytest.raises(InputError, match="mixed_forms"):
        build(tmp_path, sources=[{"path": "a.jsonl", "form": "prompt_completion"}])


def test_a_file_may_mix_forms(tmp_path: Path) -> None:
    """Of a list of turns beside an instruction the list wins."""
    (tmp_path / "a.jsonl").write_text(f"{CHAT}\n{GOOD}\n{CHAT[:-1]}, {GOOD[1:]}\n")
    snapshot = build(tmp_path, "a.jsonl")
    assert (snapshot.kept, snapshot.duplicates, snapshot.rejects) == (2, 1, 0)
    assert snapshot.files[0].form is None
    assert [row["form"] for row in rows(snapshot, tmp_path, "samples")] == ["messages", "alpaca"]
    (folded,) = [(one.column, one.records, one.position) for one in snapshot.files[0].folded if one.column == "output"]
    assert folded == ("output", 1, 3)


def test_duplicates_that_differ_in_other_columns_are_counted(tmp_path: Path) -> None:
    one, two = alpaca(2)
    scored = [{**one, "score": score, "tag": "x"} for score in (1, 2)]
    write_jsonl(tmp_path / "a.jsonl", [scored[0], two, scored[1], one, two])
    write_jsonl(tmp_path / "b.jsonl", [{**one, "score": 1, "tag": "y"}])
    first, second = build(tmp_path, "a.jsonl", "b.jsonl").files
    assert (first.content_columns, first.other_columns) == (("input", "instruction", "output"), ("score", "tag"))
    id_ = sample_id(one)
    assert [folded.model_dump() for folded in first.folded] == [
        {"column": "score", "records": 2, "position": 3, "id": id_},
        {"column": "tag", "records": 1, "position": 4, "id": id_},
    ]
    assert [folded.model_dump() for folded in second.folded] == [
        {"column": "tag", "records": 1, "position": 1, "id": id_}
    ]


def test_the_text_is_what_the_rule_says_and_tokens_are_of_everything(tmp_path: Path) -> None:
    record = {"system": "Be brief please.", "instruction": "What is good?", "output": "This one here."}
    write_jsonl(tmp_path / "a.jsonl", [record])
    root = tmp_path / "curated"
    pool = Pool(sources=(Source(path="a.jsonl"),), near_duplicates=NearDuplicates(by="off"))
    found = {}
    for rule in (TextRule(), TextRule("prompt"), TextRule("response", ("system",)), TextRule("all")):
        snapshot = build_snapshot(pool, tmp_path, root, words, text=rule)
        (row,) = rows(snapshot, tmp_path, "samples")
        found[rule.choice] = (row["text"], row["text_tokens"], row["tokens"], row["id"])
    ids_of = {id_ for *_, id_ in found.values()}
    assert len(ids_of) == 1
    assert [found[name][:3] for name in ("turns", "prompt", "response", "all")] == [
        ("What is good?\nThis one here.", 6, 9), ("What is good?", 3, 9),
        ("Be brief please.\nThis one here.", 6, 9), ("Be brief please.\nWhat is good?\nThis one here.", 9, 9),
    ]  # fmt: skip


def test_a_sample_without_the_text_that_is_asked_for_is_rejected(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "Only a text."}, *alpaca(1)])
    pool = Pool(sources=(Source(path="a.jsonl"),), max_reject_fraction=1)
    snapshot = build_snapshot(pool, tmp_path, tmp_path / "curated", words, text=TextRule("prompt"))
    assert [row["reason"] for row in rows(snapshot, tmp_path, "rejects")] == ["no_text"] and snapshot.kept == 1


def test_a_column_that_no_record_has_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"q": "q", "r": "a", "s": None}])
    columns = {"prompt": "q", "response": "r", "system": "s"}
    assert build(tmp_path, sources=[{"path": "a.jsonl", "columns": columns}]).kept == 1
    with pytest.raises(InputError, match=r"system: sy, which no record has; they have q, r, s"):
        build(tmp_path, sources=[{"path": "a.jsonl", "columns": {**columns, "system": "sy"}}])


def test_former_ids_lead_to_samples(tmp_path: Path) -> None:
    one, two = alpaca(2)
    history = [{**one, "history": [[str(number), "b"]]} for number in range(2)]
    write_jsonl(tmp_path / "a.jsonl", [*history, two, {**two, "system": "s"}])
    snapshot = build(tmp_path, "a.jsonl")
    found = ids(snapshot, tmp_path)
    assert snapshot.ids_by_former(tmp_path / "curated") == {sample_id(one): found[:2], sample_id(two): [found[3]]}


def sample_id(record: dict[str, Any]) -> str:
    """Return the id of a record's sample."""
    return parse(record, Reading()).sample.id


def near_pool(base: Path) -> None:
    """Write two files of distinct samples, and near-copies of some in both."""
    long = [record for record in alpaca(60) if len(record["output"]) > 400][:12]
    copies = [{**record, "output": record["output"] + " Indeed."} for record in long]
    write_jsonl(base / "a.jsonl", [*long[:10], *copies[:3], long[0], {"x": 1}])
    write_jsonl(base / "b.jsonl", [*long[10:], *copies[3:7], copies[1]])


def test_near_duplicates_have_a_partner_and_a_score(tmp_path: Path) -> None:
    near_pool(tmp_path)
    snapshot = build(tmp_path, "*.jsonl", near_duplicates={"threshold": 0.8})
    samples = {row["id"]: row for row in rows(snapshot, tmp_path, "samples")}
    found = rows(snapshot, tmp_path, "near_duplicates")
    assert snapshot.near_duplicates == len(found) >= 7
    assert (snapshot.read, snapshot.kept, snapshot.duplicates, snapshot.rejects) == (22, 19, 2, 1)
    for near in found:
        assert 0.8 <= near["score"] <= 1
    copies = [near for near in found if samples[near["id"]]["text"].endswith(" Indeed.")]
    assert len(copies) == 7
    for near in copies:
        assert samples[near["id"]]["text"] == samples[near["partner_id"]]["text"] + " Indeed."


def test_dropped_near_duplicates_leave_the_pool_and_the_counts_add_up(tmp_path: Path) -> None:
    near_pool(tmp_path)
    flagged = build(tmp_path, "*.jsonl", near_duplicates={"threshold": 0.8})
    dropped = build(tmp_path, "*.jsonl", near_duplicates={"threshold": 0.8, "drop": True})
    gone = {near["id"] for near in rows(dropped, tmp_path, "near_duplicates")}
    assert ids(dropped, tmp_path) == [id_ for id_ in ids(flagged, tmp_path) if id_ not in gone]
    assert dropped.kept == len(ids(dropped, tmp_path)) == flagged.kept - len(gone)
    assert dropped.duplicates == flagged.duplicates + len(gone)
    assert adds_up(dropped) and adds_up(flagged)
    assert all(one.kept > two.kept for one, two in zip(flagged.files, dropped.files, strict=True))
    assert dropped.key != flagged.key


def test_the_longest_or_the_best_of_a_group_can_be_kept(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(60))
    records = [
        {"prompt": text, "completion": "yes", "score": 2},
        {"prompt": text, "completion": "yes, it is so", "score": 1},
        {"prompt": text, "completion": "yes, so", "score": 3},
    ]
    write_jsonl(tmp_path / "a.jsonl", records)
    for keep, kept in (("first", 1), ("longest", 2), ("quality", 3)):
        settings = Pool.model_validate(
            {"sources": [{"path": "a.jsonl"}], "near_duplicates": {"threshold": 0.5, "keep": keep, "drop": True}}
        )
        snapshot = build_snapshot(settings, tmp_path, tmp_path / keep, lambda texts: [1] * len(texts), quality="score")
        assert snapshot.samples(tmp_path / keep, ["position"])["position"].to_pylist() == [kept]
        assert (snapshot.kept, snapshot.duplicates, snapshot.near_duplicates) == (1, 2, 2)
        near = snapshot.table(tmp_path / keep, "near_duplicates").to_pylist()
        assert {row["partner_id"] for row in near} == set(snapshot.samples(tmp_path / keep, ["id"])["id"].to_pylist())
    write_jsonl(tmp_path / "a.jsonl", [*records, {"prompt": "Why?", "completion": "So.", "score": 0}])
    with pytest.raises(InputError, match=r"a\.jsonl, record 4: score is 0; a number above 0 is needed"):
        build_snapshot(settings, tmp_path, tmp_path / "bad", lambda texts: [1] * len(texts), quality="score")


def test_near_duplicates_can_be_off(tmp_path: Path) -> None:
    near_pool(tmp_path)
    assert build(tmp_path, "*.jsonl", near_duplicates=OFF).near_duplicates == 0


def nullable(base: Path) -> None:
    """Write Parquet rows whose slots under nulls hold nothing that is defined."""
    draw = random.Random(9)
    values = [
        {
            "instruction": f"Question {n}", "output": "Answer", "n": draw.choice([None, n]),
            "x": draw.choice([None, n / 7]), "s": draw.choice([None, {"y": draw.choice([None, "z"])}]),
            "l": draw.choice([None, [], [None, n]]),
        }
        for n in range(1500)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(values), base / "n.parquet", row_group_size=700)


def test_building_twice_gives_the_same_key_and_one_folder(tmp_path: Path) -> None:
    near_pool(tmp_path)
    nullable(tmp_path)
    datasets.Dataset.from_list(alpaca(30)).save_to_disk(str(tmp_path / "saved"))
    sources = [{"path": "*.jsonl"}, {"path": "n.parquet"}, {"dataset": "saved"}]
    first = build(tmp_path, sources=sources, near_duplicates={"drop": True})
    (folder,) = snapshots(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = build(tmp_path, sources=sources, near_duplicates={"drop": True})
    assert first == second
    assert snapshots(tmp_path) == [folder] == [tmp_path / "curated" / first.folder]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert list((tmp_path / "curated" / "pool").iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_key_does_not_depend_on_where_the_pool_lies(tmp_path: Path) -> None:
    keys = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        near_pool(tmp_path / name)
        keys.add(build(tmp_path / name, "*.jsonl").key)
    assert len(keys) == 1


@pytest.mark.parametrize(
    "changed", ['"output": "That one."', '"output": "This one.", "x": 1', ' "output": "This one."', '"output": 5']
)
def test_any_change_of_content_changes_the_key(tmp_path: Path, changed: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", alpaca(3))
    keys = []
    for text in (GOOD, GOOD.replace('"output": "This one."', changed)):
        (tmp_path / "b.jsonl").write_text(text)
        keys.append(build(tmp_path, "*.jsonl").key)
    assert keys[0] != keys[1]


def test_an_error_while_reading_leaves_no_temporary_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", alpaca(3))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        build(tmp_path, sources=[{"path": "a.jsonl"}, {"dataset": "set"}])
    assert list((tmp_path / "curated" / "pool").iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, {"n": {"x": 1}}), ({"n": 1}, {"n": "x"}), ({"n": 1}, {"n": 1.5}), ({"input": None}, {"input": "x"})],
)
def test_a_dataset_whose_files_differ_in_columns_is_an_input_error(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    write_jsonl(tmp_path / "set" / "train-a.jsonl", [{"instruction": "q", "output": "a", **first}])
    write_jsonl(tmp_path / "set" / "train-b.jsonl", [{"instruction": "r", "output": "a", **second}])
    with pytest.raises(InputError, match="cannot be loaded"):
        build(tmp_path, sources=[{"dataset": "set"}])
    assert list((tmp_path / "curated" / "pool").iterdir()) == []


def test_two_revisions_of_a_dataset_are_two_inputs(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "set" / "train.jsonl", alpaca(3))
    sources = [{"dataset": "set", "revision": "one"}, {"dataset": "set", "revision": "two"}, {"dataset": "set"}]
    snapshot = build(tmp_path, sources=sources)
    assert [file.file for file in snapshot.files] == ["set@one[train]", "set@two[train]", "set[train]"]
    assert (snapshot.read, snapshot.kept) == (9, 3)


def test_sources_are_named_and_hashed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool" / "a.b.jsonl", alpaca(3))
    snapshot = build(tmp_path, "pool/*")
    file = snapshot.files[0]
    assert (file.source, file.file, file.format, file.arrow_schema) == ("a", "pool/a.b.jsonl", "jsonl", None)
    assert file.sha256 and len(file.sha256) == 64
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    assert build(outside, str(tmp_path / "pool" / "a.b.jsonl")).files[0].file == str(tmp_path / "pool" / "a.b.jsonl")
