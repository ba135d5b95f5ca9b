"""What lies at the sources, what is new, and whether it is whole: by real files and a clock that is set."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.pool import ingest
from novelsum_dagster.pool.buckets import bucket_files, fetched
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.landing import (
    Cursor,
    Landed,
    Listing,
    Look,
    list_sources,
    look,
    read_cursor,
    read_listing,
    short,
    start_cursor,
)
from novelsum_dagster.pool.readers import SUCCESS_MARKER, read_file
from novelsum_dagster.pool.records import Record
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.remote.s3 import Remote
from novelsum_dagster.settings import S3, Pool, Source
from tests.pools import alpaca, write_jsonl
from tests.s3 import BUCKET, Server

NOW = 1_800_000_000.0
SETTLE = 10


class Place:
    """A folder that files land in, and a clock that is set."""

    def __init__(self, base: Path, *sources: dict[str, Any]) -> None:
        self.base = base
        self.sources = [Source(**source) for source in sources or ({"path": "in/*"},)]
        self.now = NOW
        self.cursor = Cursor(batch="", taken={})
        self.batches: list[str] = []
        self.keys: list[str] = []

    def write(self, name: str, text: str = "{}\n", age: float = 0) -> Path:
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (self.now - age, self.now - age))
        return path

    def listing(self) -> Listing:
        return list_sources(self.sources, self.base)

    def tick(self, seconds: float = 30) -> Look:
        """Look again after some seconds; take what is settled, as the sensor does."""
        self.now += seconds
        found = look(self.cursor, self.listing(), self.now, SETTLE)
        takes = bool(found.changes) and not found.unsettled
        if takes:
            self.batches.append(str(found.changes))
            self.keys.append(found.taken.batch)
        self.cursor = found.taken if takes else found.waiting
        self.cursor = read_cursor(self.cursor.model_dump_json()) or pytest.fail("a cursor survives as text")
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_batch_is_taken_once_it_stands_still(place: Place) -> None:
    place.write("in/a.jsonl")
    first = place.tick()
    assert first.unsettled == ("in/a.jsonl",)
    place.tick()
    assert place.batches == ["+1 file, 0 overwritten, 0 removed"]
    place.tick()
    assert len(place.batches) == 1


def test_files_that_land_together_are_one_batch(place: Place) -> None:
    for name in ("a", "b", "c"):
        place.write(f"in/{name}.jsonl")
    place.tick()
    found = place.tick()
    assert place.batches == ["+3 files, 0 overwritten, 0 removed"]
    assert found.changes.names == "in/a.jsonl, in/b.jsonl, in/c.jsonl"


def test_a_file_that_grows_holds_the_batch_back(place: Place) -> None:
    place.write("in/a.jsonl")
    for size in range(1, 5):
        place.write("in/big.jsonl", "{}\n" * size)
        assert "in/big.jsonl" in place.tick(5).unsettled
    place.tick(5)
    assert place.batches == ["+2 files, 0 overwritten, 0 removed"]


def test_an_empty_file_is_waited_for(place: Place) -> None:
    place.write("in/a.jsonl")
    place.write("in/empty.jsonl", "", age=3600)
    for _ in range(3):
        assert place.tick().unsettled[-1:] == ("in/empty.jsonl",)
    place.write("in/empty.jsonl")
    place.tick()
    place.tick()
    assert place.batches == ["+2 files, 0 overwritten, 0 removed"]


def test_a_short_interval_does_not_make_a_young_file_whole(place: Place) -> None:
    place.write("in/a.jsonl")
    for _ in range(SETTLE - 1):
        assert place.tick(1).unsettled
    assert not place.tick(1).unsettled


def test_overwritten_and_removed_files_are_batches(place: Place) -> None:
    place.write("in/a.jsonl", age=60)
    place.write("in/b.jsonl", age=60)
    place.tick(), place.tick()
    place.write("in/a.jsonl", "{} \n")
    place.tick(), place.tick()
    (place.base / "in/b.jsonl").unlink()
    assert place.tick().changes.names == "-in/b.jsonl"
    place.tick()
    assert place.batches[1:] == ["+0 files, 1 overwritten, 0 removed", "+0 files, 0 overwritten, 1 removed"]


def test_the_same_bytes_written_again_are_a_change_of_time_only(place: Place) -> None:
    """A look reads no file; the run that follows finds the same pool and changes nothing."""
    place.write("in/a.jsonl", age=60)
    place.tick(), place.tick()
    place.write("in/a.jsonl")
    place.tick(), place.tick()
    assert place.batches[1:] == ["+0 files, 1 overwritten, 0 removed"]


def test_a_file_older_than_the_others_is_found(place: Place) -> None:
    place.write("in/new.jsonl", age=60)
    place.tick(), place.tick()
    place.write("in/late.jsonl", age=400 * 86400)
    place.tick(), place.tick()
    assert place.batches[1:] == ["+1 file, 0 overwritten, 0 removed"]


def test_a_file_written_anew_under_its_name_was_never_gone(place: Place) -> None:
    place.write("in/a.jsonl", age=60)
    place.write("in/b.jsonl", age=60)
    place.tick(), place.tick()
    (place.base / "in/b.jsonl").unlink()
    assert place.tick().unsettled == ("in/b.jsonl",)
    place.write("in/b.jsonl", "{}  \n")
    place.tick(), place.tick()
    assert place.batches[1:] == ["+0 files, 1 overwritten, 0 removed"]


def test_no_key_comes_twice_when_files_go_back_and_forth(place: Place) -> None:
    place.write("in/a.jsonl", age=60)
    place.tick(), place.tick()
    for _ in range(3):
        path = place.write("in/b.jsonl")
        os.utime(path, (NOW, NOW))
        place.tick(), place.tick()
        path.unlink()
        place.tick(), place.tick()
    assert len(place.keys) == len(set(place.keys)) == 7


def test_the_same_look_has_the_same_key(place: Place) -> None:
    """A tick that is repeated after a crash starts no second run."""
    place.write("in/a.jsonl", age=60)
    keys = {look(place.cursor, place.listing(), NOW + i, SETTLE).taken.batch for i in range(3)}
    assert len(keys) == 1


@pytest.mark.parametrize("ahead", [3600, 10 * 365 * 86400])
def test_a_writer_whose_clock_is_ahead_is_not_waited_for(place: Place, ahead: float) -> None:
    place.write("in/a.jsonl", age=-ahead)
    assert place.tick(5).unsettled
    assert place.tick(5).unsettled
    assert not place.tick(5).unsettled


def test_our_clock_may_be_set_back(place: Place) -> None:
    place.write("in/a.jsonl", age=-3600)
    place.tick()
    place.now -= 7200
    place.tick()
    assert not place.tick(SETTLE).unsettled


def test_a_folder_counts_once_it_says_that_it_is_whole(tmp_path: Path) -> None:
    place = Place(tmp_path, {"path": "in/*/*", "success_marker": True})
    place.write("in/one/a.jsonl")
    with pytest.raises(InputError, match=r"in/\*/\*: no folder of these files has a file _SUCCESS yet"):
        place.listing()
    place.write(f"in/one/{SUCCESS_MARKER}", "")
    assert not place.tick(1).unsettled
    place.write("in/two/b.jsonl")
    assert not place.tick().changes
    place.write(f"in/two/{SUCCESS_MARKER}", "")
    place.tick()
    assert place.batches == ["+1 file, 0 overwritten, 0 removed"] * 2


def test_a_marked_folder_that_is_written_anew_is_not_gone(tmp_path: Path) -> None:
    place = Place(tmp_path, {"path": "in/*/*", "success_marker": True})
    for folder in ("one", "two"):
        place.write(f"in/{folder}/a.jsonl")
        place.write(f"in/{folder}/{SUCCESS_MARKER}", "")
    place.tick()
    (tmp_path / "in/two" / SUCCESS_MARKER).unlink()
    (tmp_path / "in/two/a.jsonl").unlink()
    place.write("in/two/b.jsonl")
    for _ in range(5):
        assert place.tick().unsettled == ("in/two/a.jsonl",)
    place.write(f"in/two/{SUCCESS_MARKER}", "")
    assert place.tick(1).unsettled == ()
    assert place.batches[1:] == ["+1 file, 0 overwritten, 1 removed"]


def test_an_unmarked_base_folder_is_not_gone(tmp_path: Path) -> None:
    place = Place(tmp_path, {"path": "*", "success_marker": True}, {"path": "in/*"})
    for name in ("a.jsonl", "in/b.jsonl", SUCCESS_MARKER):
        place.write(name, age=60)
    place.sources[0] = Source(path="*.jsonl", success_marker=True)
    listing = place.listing()
    gone = Listing({"in/b.jsonl": listing.files["in/b.jsonl"]}, frozenset({"."}))
    seen = look(Cursor(batch="", taken=listing.marks), gone, NOW, SETTLE).waiting
    assert look(seen, gone, NOW + 60, SETTLE).unsettled == ("a.jsonl",)


def test_a_source_without_files_is_an_error_in_words(tmp_path: Path) -> None:
    place = Place(tmp_path, {"path": "in/*"}, {"path": "more/*"})
    place.write("in/a.jsonl")
    with pytest.raises(InputError, match=r"more/\*: no such file"):
        place.listing()


def test_a_link_out_of_the_folder_is_an_error_in_words(tmp_path: Path) -> None:
    place = Place(tmp_path / "base")
    place.write("in/a.jsonl")
    outside = write_jsonl(tmp_path / "outside" / "o.jsonl", [])
    (place.base / "in" / "x.jsonl").symlink_to(outside)
    with pytest.raises(InputError, match=r"in/\*: .*in/x\.jsonl leads out of .*, to .*o\.jsonl; list that file itself"):
        place.listing()


def test_a_file_at_two_sources_is_listed_once_and_one_outside_by_its_whole_path(tmp_path: Path) -> None:
    outside = write_jsonl(tmp_path / "outside" / "o.jsonl", [])
    place = Place(tmp_path / "base", {"path": "in/*"}, {"path": "in/a.jsonl"}, {"path": str(outside)})
    place.write("in/a.jsonl")
    assert list(place.listing().files) == ["in/a.jsonl", str(outside)]


def test_a_dataset_in_a_local_folder_is_watched_and_one_on_the_hub_is_not(tmp_path: Path) -> None:
    place = Place(tmp_path, {"dataset": "mine"}, {"dataset": "some/hub"})
    place.write("mine/data/train.jsonl")
    assert list(place.listing().files) == ["mine/data/train.jsonl"]


def test_a_file_that_vanishes_while_it_is_listed_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("in/a.jsonl")
    gone = place.base / "in/b.jsonl"
    monkeypatch.setattr(
        "novelsum_dagster.pool.landing.find_files", lambda *_: [place.base / "in/a.jsonl", gone], raising=True
    )
    assert list(place.listing().files) == ["in/a.jsonl"]


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "null", "[]", "7", '{"batch": "x"}', '{"kind": "other", "batch": "", "taken": {}}',
     '{"kind": "novelsum landing 1", "batch": "", "taken": {"a": 1}}', "2024-01-01T00:00:00"],
)  # fmt: skip
def test_a_cursor_that_is_none_is_known_as_such(text: str | None) -> None:
    assert read_cursor(text) is None


def test_a_fresh_start_takes_the_newest_pool_as_the_last_batch(place: Place) -> None:
    paths = {name: place.write(f"in/{name}.jsonl", f'"{name}"\n', age=60) for name in ("a", "b", "c")}
    sums = {f"in/{name}.jsonl": file_hash(path) for name, path in paths.items()}
    place.cursor = start_cursor(place.listing(), place.base, "start", {}, sums)
    assert not place.tick().changes
    assert not place.batches


def test_a_fresh_start_tells_what_is_other_than_in_the_newest_pool(place: Place) -> None:
    for name in ("same", "touched", "other", "new"):
        place.write(f"in/{name}.jsonl", f'"{name}"\n', age=60)
    sums = {f"in/{name}.jsonl": file_hash(place.base / f"in/{name}.jsonl") for name in ("same", "touched")}
    sums |= {"in/other.jsonl": "0" * 64, "in/gone.jsonl": "1" * 64, "some/hub[train]": ""}
    read = {"in/same.jsonl": place.listing().files["in/same.jsonl"].mark, "in/touched.jsonl": "before"}
    place.cursor = start_cursor(place.listing(), place.base, "start", read, sums)
    place.tick(), place.tick()
    assert place.batches == ["+1 file, 1 overwritten, 1 removed"]


def test_a_fresh_start_reads_no_file_that_it_need_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("in/a.jsonl", age=60)
    monkeypatch.setattr("novelsum_dagster.pool.landing.file_hash", lambda _: pytest.fail("read"))
    listing = place.listing()
    known = start_cursor(listing, place.base, "", listing.marks, {"in/a.jsonl": "0" * 64})
    assert known.taken == listing.marks
    monkeypatch.setattr("novelsum_dagster.pool.landing.HASHED_BYTES", 1)
    assert start_cursor(listing, place.base, "", {}, {"in/a.jsonl": "0" * 64}).taken == {"in/a.jsonl": ""}


def test_a_tick_over_many_files_is_fast_and_its_cursor_small(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for number in range(3000):
        place.write(f"in/part-{number:05}.jsonl", age=60)
    place.tick(), place.tick()
    started = time.perf_counter()
    assert not place.tick().changes
    assert time.perf_counter() - started < 2
    assert len(place.cursor.model_dump_json()) < 3000 * 50


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=25))
def test_in_the_end_every_change_is_in_exactly_one_batch(steps: list[tuple[str, int]]) -> None:
    """Files come, change and go (0) at every look; what was taken is always what was there when it was taken."""
    cursor, now, files, taken = Cursor(batch="", taken={}), NOW, dict[str, Landed](), []
    for name, version in [*steps, ("a", -1), ("a", -1), ("a", -1)]:
        now += 30
        if version > 0:
            files[name] = Landed(name, version, str(version), now - 20)
        elif version == 0:
            files.pop(name, None)
        found = look(cursor, Listing(dict(files)), now, SETTLE)
        if found.changes and not found.unsettled:
            taken.append(found.taken.batch)
            assert found.taken.taken == Listing(files).marks
            cursor = found.taken
        else:
            cursor = found.waiting
    assert cursor.taken == Listing(files).marks
    assert not cursor.seen
    assert len(taken) == len(set(taken))


def test_names_are_cut_and_can_be_written() -> None:
    assert short(["a"]) == "a"
    assert short([f"{i}" for i in range(1205)]) == "0, 1, 2, 3, 4 and 1,200 more"
    assert short(["a\udcff"]) == "a?"


def snapshot_of(place: Place) -> str:
    pool = Pool(sources=tuple(place.sources))
    return build_snapshot(pool, place.base, place.base / "curated", lambda texts: [1] * len(texts)).key


def test_a_snapshot_knows_what_it_was_read_from(place: Place) -> None:
    write_jsonl(place.base / "in" / "a.jsonl", alpaca(3))
    key = snapshot_of(place)
    assert read_listing(place.base / "curated", key) == place.listing().marks
    assert read_listing(place.base / "curated", "none") is None
    (place.base / "curated" / "landing" / f"{key}.json").write_text("{")
    assert read_listing(place.base / "curated", key) is None


@pytest.mark.parametrize("what", ["appended", "replaced", "gone", "broken"])
def test_a_file_that_changes_while_it_is_read_enters_no_snapshot(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = write_jsonl(place.base / "in" / "a.jsonl", alpaca(3))

    def changed(read: Path) -> Any:
        records: list[Record] = list(read_file(read))
        yield from records[:2]
        if what == "gone":
            path.unlink()
        elif what == "replaced":
            os.utime(write_jsonl(path.with_suffix(".new"), alpaca(3, start=5)), (NOW, NOW))
            path.with_suffix(".new").replace(path)
        else:
            path.write_text(path.read_text() + "{")
        if what == "broken":
            raise OSError("stale file handle")
        yield from records[2:]

    monkeypatch.setattr(ingest, "read_file", changed)
    says = "was deleted after it was read" if what == "gone" else "changed while it was read"
    with pytest.raises(InputError, match=rf"in/a\.jsonl {says}; run again"):
        snapshot_of(place)
    assert not list((place.base / "curated").rglob("snapshot=*"))
    assert not (place.base / "curated" / "landing").exists()


def test_an_unmarked_folder_is_not_read(tmp_path: Path) -> None:
    place = Place(tmp_path, {"path": "in/*/*", "success_marker": True})
    write_jsonl(tmp_path / "in/one/a.jsonl", alpaca(3))
    write_jsonl(tmp_path / "in/two/a.jsonl", alpaca(3, start=3))
    place.write(f"in/one/{SUCCESS_MARKER}", "")
    assert read_listing(tmp_path / "curated", snapshot_of(place)) == place.listing().marks
    assert list(place.listing().files) == ["in/one/a.jsonl"]


class Bucket:
    """Sources in a real bucket."""

    def __init__(self, s3: Server, base: Path) -> None:
        self.server, self.base = s3, base
        self.remote = s3.remote()
        self.s3 = S3(endpoint_url=s3.endpoint)
        self.cursor = Cursor(batch="", taken={})

    def source(self, pattern: str, **stated: Any) -> Source:
        return Source(path=f"s3://{BUCKET}/{self.server.prefix}/{pattern}", **stated)

    def names(self, *sources: Source) -> list[str]:
        start = f"s3://{BUCKET}/{self.server.prefix}/"
        return [name.removeprefix(start) for name in list_sources(sources, self.base, self.s3).files]

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.remote.write(name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def snapshot(self, *sources: Source) -> PoolSnapshot:
        pool = Pool(sources=sources)
        root = self.base / "curated"
        return build_snapshot(pool, self.base, root, lambda texts: [1] * len(texts), s3=self.s3)


@pytest.fixture
def bucket(s3: Server, tmp_path: Path) -> Bucket:
    return Bucket(s3, tmp_path)


def test_objects_are_found_by_patterns(bucket: Bucket) -> None:
    for name in ("in/a.jsonl", "in/b [1].jsonl", "in/deep/c.jsonl", "in/.hidden.jsonl", "other/d.json"):
        bucket.put(name, [])
    for pattern, names in {
        "in/*": ["in/a.jsonl", "in/b [1].jsonl"],
        "in/?.jsonl": ["in/a.jsonl"],
        "in/[!b]*.jsonl": ["in/a.jsonl"],
        "in/a.jsonl": ["in/a.jsonl"],
        "in/b [1].jsonl": ["in/b [1].jsonl"],
        "**/*.jsonl": ["in/a.jsonl", "in/b [1].jsonl", "in/deep/c.jsonl"],
        "*/d.json": ["other/d.json"],
    }.items():
        assert bucket.names(bucket.source(pattern)) == names
    for pattern in ("none/*", "in"):
        with pytest.raises(InputError, match="no such file; correct the path or glob"):
            bucket.names(bucket.source(pattern))
    with pytest.raises(InputError, match="name a bucket and files"):
        list_sources([Source(path="s3://bucket")], bucket.base, bucket.s3)


def test_objects_are_read_and_looked_at_as_files_are(bucket: Bucket) -> None:
    source = bucket.source("in/*")
    bucket.put("in/a.jsonl", alpaca(3))
    bucket.put("in/b.jsonl", alpaca(2, start=3))
    first = list_sources([source], bucket.base, bucket.s3)
    seen = look(bucket.cursor, first, NOW, SETTLE)
    assert len(seen.unsettled) == 2
    taken = look(seen.waiting, first, NOW + 1, SETTLE)
    assert (taken.unsettled, str(taken.changes)) == ((), "+2 files, 0 overwritten, 0 removed")
    snapshot = bucket.snapshot(source)
    assert snapshot.kept == 5
    assert [file.file for file in snapshot.files] == list(first.files)
    assert [file.source for file in snapshot.files] == ["a", "b"]
    assert read_listing(bucket.base / "curated", snapshot.key) == first.marks

    bucket.put("in/b.jsonl", alpaca(4, start=3))
    bucket.remote.delete("in/a.jsonl")
    second = list_sources([source], bucket.base, bucket.s3)
    assert str(look(taken.taken, second, NOW, SETTLE).changes) == "+0 files, 1 overwritten, 1 removed"
    assert bucket.snapshot(source).kept == 4
    assert len(list((bucket.base / "curated" / "landing").glob("object=*/*.jsonl"))) == 1


def test_a_copy_is_fetched_once_and_one_of_another_version_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bucket.source("in/a.jsonl")
    bucket.put("in/a.jsonl", alpaca(3))
    bucket.snapshot(source)
    with monkeypatch.context() as patched:
        patched.setattr(Remote, "download", lambda *_: pytest.fail("fetched again"))
        assert bucket.snapshot(source).kept == 3
    (file,), _ = bucket_files(str(source.path), bucket.s3)
    bucket.put("in/a.jsonl", alpaca(4))
    with pytest.raises(InputError, match=r"in/a\.jsonl: changed while it was read; run again"):
        fetched(file, bucket.base / "elsewhere")
    assert not list((bucket.base / "elsewhere").rglob("*.jsonl"))


def test_a_folder_in_a_bucket_counts_once_it_says_that_it_is_whole(bucket: Bucket) -> None:
    source = bucket.source("in/*/*", success_marker=True)
    bucket.put("in/one/a.jsonl", alpaca(3))
    with pytest.raises(InputError, match="_SUCCESS yet"):
        bucket.names(source)
    bucket.remote.write(f"in/one/{SUCCESS_MARKER}", b"")
    bucket.put("in/two/b.jsonl", alpaca(3))
    listing = list_sources([source], bucket.base, bucket.s3)
    assert [name.rpartition("in/")[2] for name in listing.files] == ["one/a.jsonl"]
    assert [folder.rpartition("/")[2] for folder in listing.unfinished] == ["two"]
    assert not look(bucket.cursor, listing, NOW, SETTLE).unsettled
