"""Vectors of one's own: every format, whose row is whose, what is refused; and vectors back out of the store."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import identify, special_tokens, token_counter
from novelsum_dagster.embedding.own_vectors import PoolAt, own_vectors
from novelsum_dagster.embedding.store import VectorSet, load_vectors, pool_vectors
from novelsum_dagster.embedding.vector_files import export_vectors, read_vectors
from novelsum_dagster.embedding.vectors_of_pool import Work, cut_of_pool, vectors_of_pool
from novelsum_dagster.pool.snapshot import SAMPLES, PoolSnapshot, SourceFile
from novelsum_dagster.settings import Embedding
from tests.tiny import tiny_model

IDS = [f"{number:032x}" for number in range(5)]
PLACES = [("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 4), ("b.jsonl", 2), ("b.jsonl", 3)]
"""Of the samples. Record 3 of a is a duplicate, record 1 of b no sample; 7 records are read in all."""
ROWS = [0, 1, 3, 5, 6]
"""Of the vectors of the samples among those of all records."""
KEYS = ["k0", "k1", 2, "k3", "k4"]
"""What the samples' records have as `meta.key`."""
VECTORS = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
PLAIN = Embedding(model="somebody/some-model", shard_size=2)


def made_pool(base: Path, **changes: Any) -> PoolAt:
    """Write a pool by hand; its storage folder is `base/curated`."""
    rows = [
        {
            "id": id_,
            "source": "s",
            "file": file,
            "position": position,
            "form": "alpaca",
            "turns": 2,
            "characters": 9,
            "tokens": 40 + number,
            "text_tokens": 30 + number,
            "text": f"text {number}",
            "original": json.dumps({"instruction": f"text {number}", "meta": {"key": key}}).encode(),
        }
        for number, (id_, (file, position), key) in enumerate(zip(IDS, PLACES, KEYS, strict=True))
    ]
    folder = base / "curated" / "pool" / "snapshot=x"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES), folder / "samples.parquet")
    pq.write_table(pa.table({"id": [IDS[1]]}), folder / "near_duplicates.parquet")
    facts: dict[str, Any] = {"source": "s", "format": "jsonl", "form": "alpaca", "sha256": None, "arrow_schema": None}
    files = (
        SourceFile(**facts, file="a.jsonl", complete=True, read=4, kept=3, duplicates=1, rejects=0),
        SourceFile(**facts, file="b.jsonl", complete=True, read=3, kept=2, duplicates=0, rejects=1),
    )
    values = {"near_duplicates": 1, "near_duplicates_dropped": False, **changes}
    snapshot = PoolSnapshot(key="x", folder="pool/snapshot=x", files=files, **values)
    return PoolAt(snapshot, base / "curated", base)


def stored(pool: PoolAt, settings: Embedding) -> tuple[VectorSet, NDArray[np.float32]]:
    found = vectors_of_pool(pool, settings, pool.root)
    return found, load_vectors(pool.root / found.folder, pool.column("id"))


def given(name: str, **changes: Any) -> Embedding:
    return PLAIN.model_copy(update={"vectors": name, **changes})


def lists(vectors: NDArray[Any], fixed: bool = False) -> pa.Array:
    flat = pa.array(vectors.reshape(-1))
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(vectors) + 1) * vectors.shape[1], pa.int32()), flat)


def table(vectors: NDArray[Any], fixed: bool = False) -> pa.Table:
    """Return a table in several chunks, as large ones come."""
    names = pa.array([f"n{number}" for number in range(len(vectors))])
    whole = pa.table({"name": names, "vector": lists(vectors, fixed), "words": pa.array([["a"]] * len(vectors))})
    return pa.concat_tables([whole.slice(0, 3), whole.slice(3)])


def write_feather(vectors: NDArray[Any], path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table(vectors).schema) as writer:
        writer.write_table(table(vectors))


def write_stream(vectors: NDArray[Any], path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table(vectors).schema) as writer:
        writer.write_table(table(vectors))


def write_saved(vectors: NDArray[Any], path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["x"] * len(vectors), "vector": vectors.tolist()})
    features = datasets.Features({"text": datasets.Value("string"), "vector": datasets.List(datasets.Value("float32"))})
    made.cast(features).save_to_disk(path, num_shards=2)


def write_published(vectors: NDArray[Any], path: Path) -> None:
    """As embedding.py of the paper's code does: lists of floats, indented, files with the numbers of the texts'."""
    path.mkdir()
    for number, rows in ((2, vectors[:3]), (10, vectors[3:])):
        with (path / f"{number}.json").open("w") as file:
            json.dump([[float(value) for value in row] for row in rows], file, indent=4)


def write_json(vectors: NDArray[Any], path: Path) -> None:
    path.write_text(json.dumps(vectors.tolist()))


WRITERS: dict[str, Callable[[NDArray[Any], Path], object]] = {
    "v.npy": lambda vectors, path: np.save(path, vectors),
    "v.npz": lambda vectors, path: np.savez(path, vectors),
    "compressed.npz": lambda vectors, path: np.savez_compressed(path, anything=vectors),
    "v.parquet": lambda vectors, path: pq.write_table(table(vectors), path),
    "fixed.parquet": lambda vectors, path: pq.write_table(table(vectors, fixed=True), path, row_group_size=2),
    "v.feather": write_feather,
    "v.arrow": write_stream,
    "v.safetensors": lambda vectors, path: save_file({"anything": vectors}, path),
    "v.json": write_json,
    "saved": write_saved,
    "published": write_published,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_vectors_bit_for_bit(tmp_path: Path, name: str) -> None:
    pool = made_pool(tmp_path)
    WRITERS[name](VECTORS, tmp_path / name)
    found, vectors = stored(pool, given(name))
    np.testing.assert_array_equal(vectors.view(np.uint32), VECTORS[ROWS].view(np.uint32))
    assert vectors.dtype == np.float32
    assert (found.model, found.dtype, found.device, found.dimension) == ("somebody/some-model", "float32", "none", 4)
    assert (found.samples, found.embedded, found.max_tokens, found.ids_from) == (5, 5, 0, "x")
    assert (found.cut_samples, found.unread_fraction) == (0, 0)
    again, same = stored(pool, given(name))
    assert (again.embedded, again.key, again.folder) == (0, found.key, found.folder)
    np.testing.assert_array_equal(same, vectors)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["v.npy", "v.npz", "v.parquet", "v.feather", "v.safetensors"])
def test_numbers_of_three_types_are_stored_as_float32(tmp_path: Path, name: str, dtype: Any) -> None:
    vectors = np.random.default_rng(1).standard_normal((7, 4)).astype(dtype)
    WRITERS[name](vectors, tmp_path / name)
    _, found = stored(made_pool(tmp_path), given(name))
    np.testing.assert_array_equal(found, vectors[ROWS].astype(np.float32))


def test_vectors_are_named_where_a_file_has_several(tmp_path: Path) -> None:
    pool = made_pool(tmp_path)
    both = {"good": VECTORS, "other": -VECTORS}
    np.savez(tmp_path / "v.npz", **both)  # type: ignore[arg-type]
    save_file(both, tmp_path / "v.safetensors")
    pq.write_table(pa.table({name: lists(value) for name, value in both.items()}), tmp_path / "v.parquet")
    for name in ("v.npz", "v.safetensors", "v.parquet"):
        _, found = stored(pool, given(name, vectors_column="good"))
        np.testing.assert_array_equal(found, VECTORS[ROWS])
        with pytest.raises(InputError, match=r"has 2 .* that may be the vectors, among good, other; .*vectors_column"):
            own_vectors(pool, given(name))
        with pytest.raises(InputError, match=r"vectors_column: .* has no 'neither'; its .* are good, other"):
            own_vectors(pool, given(name, vectors_column="neither"))


def test_dropped_near_duplicates_leave_the_other_rows_where_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    pool = made_pool(tmp_path, near_duplicates_dropped=True)
    _, found = stored(pool, given("v.npy"))
    np.testing.assert_array_equal(found, VECTORS[[0, 3, 5, 6]])


def test_a_path_starts_at_the_settings_folder_or_at_the_root(tmp_path: Path) -> None:
    pool = made_pool(tmp_path / "settings")
    (tmp_path / "settings" / "sub").mkdir()
    np.save(tmp_path / "settings" / "sub" / "v.npy", VECTORS)
    relative = own_vectors(pool, given("sub/v.npy"))
    assert own_vectors(pool, given(str(tmp_path / "settings" / "sub" / "v.npy"))).model == relative.model


# By ids.


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_vectors_are_matched_by_a_field_of_the_records_in_any_order(tmp_path: Path, name: str) -> None:
    pool = made_pool(tmp_path)
    order = [4, 2, 0, 3, 1]
    keys = [str(KEYS[place]) for place in order]
    if name == "v.npz":
        np.savez(tmp_path / name, **{"meta.key": np.array([*keys, "more"]), "v": VECTORS[:6]})  # type: ignore[arg-type]
    else:
        pq.write_table(pa.table({"meta.key": [*keys, None], "v": lists(VECTORS[:6])}), tmp_path / name)
    _, found = stored(pool, given(name, vectors_id="meta.key"))
    np.testing.assert_array_equal(found[order], VECTORS[:5])


def test_numbers_match_as_they_are_written(tmp_path: Path) -> None:
    pool = made_pool(tmp_path)
    save_file({"position": np.array([3, 2, 1, 4, 5]), "v": VECTORS[:5]}, tmp_path / "v.safetensors")
    with pytest.raises(InputError, match=r"the records: position '2' occurs twice"):
        stored(pool, given("v.safetensors", vectors_id="position"))
    save_file({"text_tokens": np.array([34, 30, 33, 31, 32]), "v": VECTORS[:5]}, tmp_path / "v.safetensors")
    _, found = stored(pool, given("v.safetensors", vectors_id="text_tokens"))
    np.testing.assert_array_equal(found, VECTORS[[1, 3, 4, 2, 0]])


def test_a_records_own_id_comes_before_the_samples(tmp_path: Path) -> None:
    pool = made_pool(tmp_path)
    pq.write_table(pa.table({"id": IDS[::-1], "v": lists(VECTORS[:5])}), tmp_path / "samples.parquet")
    pq.write_table(pa.table({"id": [4, 3, 2, 1, 0], "v": lists(VECTORS[:5])}), tmp_path / "records.parquet")
    _, found = stored(pool, given("samples.parquet", vectors_id="id"))
    np.testing.assert_array_equal(found, VECTORS[4::-1])
    path = pool.root / pool.snapshot.folder / "samples.parquet"
    samples = pq.read_table(path).to_pylist()
    for number, row in enumerate(samples):
        row["original"] = json.dumps({"id": number}).encode()
    pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES), path)
    _, found = stored(pool, given("records.parquet", vectors_id="id"))
    np.testing.assert_array_equal(found, VECTORS[4::-1])


def test_ids_that_are_missing_or_there_twice_are_named(tmp_path: Path) -> None:
    pool = made_pool(tmp_path)
    keys = [str(key) for key in KEYS]
    for found, words in (
        (
            [*keys[:3], "k5", "k4"],
            r"b\.jsonl, record 2 has meta\.key 'k3', which .* does not have; 1 of 5 samples have no",
        ),
        (["k0", *keys[:4]], r"v\.parquet: meta\.key 'k0' occurs twice"),
        ([None, *keys[1:]], r"a\.jsonl, record 1 has meta\.key 'k0', which"),
    ):
        pq.write_table(pa.table({"meta.key": found, "v": lists(VECTORS[:5])}), tmp_path / "v.parquet")
        with pytest.raises(InputError, match=words):
            own_vectors(pool, given("v.parquet", vectors_id="meta.key"))
    pq.write_table(pa.table({"other": keys, "v": lists(VECTORS[:5])}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=r"vectors_id: other is not a field of any record"):
        own_vectors(pool, given("v.parquet", vectors_id="other"))
    with pytest.raises(InputError, match=r"vectors_id: .* has no 'meta\.key'; its columns are other, v"):
        own_vectors(pool, given("v.parquet", vectors_id="meta.key"))
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(InputError, match=r"vectors_id: .* has rows of numbers without names; remove vectors_id"):
        own_vectors(pool, given("v.npy", vectors_id="meta.key"))


# What is refused.


def test_another_number_of_rows_than_records_is_refused_with_both(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS[ROWS])
    with pytest.raises(InputError, match=r"v\.npy has 5 rows, but 7 records were read.* embedding\.vectors_id"):
        own_vectors(made_pool(tmp_path), given("v.npy"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "has NaN or infinite"),
        (np.inf, "has NaN or infinite"),
        (1e39, "has NaN or infinite"),
        (0, "is all zeros"),
    ],
)
def test_a_vector_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, value: float, words: str
) -> None:
    pool = made_pool(tmp_path)
    bad = VECTORS.astype(np.float64)
    bad[2] = np.nan  # A duplicate's, which nobody reads.
    bad[5] = value
    np.save(tmp_path / "v.npy", bad)
    with pytest.raises(InputError, match=rf"row 5 \(from 0\), the vector of b\.jsonl, record 2, {words}"):
        stored(pool, given("v.npy"))
    assert not list(pool.root.glob("vectors/**/*"))
    bad[5] = 1
    np.save(tmp_path / "v.npy", bad)
    assert np.isfinite(stored(pool, given("v.npy"))[1]).all()


def _pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}] * 7, dtype=object), allow_pickle=True)


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("v.npy", lambda path: None, "no such file or folder"),
    "unknown": ("v.pt", lambda path: path.write_bytes(b"x"), "not one of the formats .npy, .npz"),
    "empty folder": ("folder", lambda path: path.mkdir(), "not one of the formats"),
    "pickled": ("v.npy", _pickled, "cannot be read: .*Python objects"),
    "damaged npy": ("v.npy", lambda path: path.write_bytes(b"half"), "cannot be read"),
    "damaged npz": ("v.npz", lambda path: path.write_bytes(b"PK\x03\x04half"), "cannot be read"),
    "damaged parquet": ("v.parquet", lambda path: path.write_bytes(b"PAR1"), "cannot be read"),
    "damaged arrow": ("v.arrow", lambda path: path.write_bytes(b"ARROW1"), "cannot be read"),
    "damaged safetensors": ("v.safetensors", lambda path: path.write_bytes(b"half of it"), "cannot be read"),
    "damaged json": ("v.json", lambda path: path.write_text("[[1, 2"), "cannot be read"),
    "words": ("v.json", lambda path: path.write_text('[["a"]]'), "cannot be read: could not convert"),
    "no list": ("v.json", lambda path: path.write_text('{"a": 1}'), "is not a list of vectors"),
    "ragged json": ("v.json", lambda path: path.write_text("[[1, 2], [1]]"), r"row 1 \(from 0\) is 1 numbers long"),
    "flat": ("v.npy", lambda path: np.save(path, VECTORS[0]), r"is of shape \(4,\)"),
    "integers": ("v.npy", lambda path: np.save(path, VECTORS.astype(int)), "is of int64; float16, float32 or float64"),
    "no vectors": ("v.parquet", lambda path: pq.write_table(pa.table({"a": [1]}), path), "has 0 columns that may be"),
    "ragged": (
        "v.parquet",
        lambda path: pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0]]}), path),
        r"v in row 1 \(from 0\) is 1 numbers long, and the first 2",
    ),
    "null": (
        "v.parquet",
        lambda path: pq.write_table(pa.table({"v": [[1.0], None]}), path),
        r"v in row 1 \(from 0\) is null",
    ),
    "null within": (
        "v.parquet",
        lambda path: pq.write_table(pa.table({"v": [[1.0], [None]]}), path),
        "v has nulls within its lists",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path, case: str) -> None:
    name, write, words = REFUSED[case]
    write(tmp_path / name)
    with pytest.raises(InputError, match=words) as raised:
        read_vectors(tmp_path / name)
    assert str(raised.value).startswith("embedding.vectors: ")
    assert name in str(raised.value)


def test_folders_whose_order_or_split_is_not_known_are_refused(tmp_path: Path) -> None:
    write_published(VECTORS, tmp_path / "published")
    (tmp_path / "published" / "10.json").write_text("[[1.0]]")
    with pytest.raises(InputError, match=r"different lengths: 4 in 2\.json, 1 in 10\.json"):
        read_vectors(tmp_path / "published")
    (tmp_path / "published" / "more.json").write_text("[[1.0]]")
    with pytest.raises(InputError, match=r"has more\.json, whose name is not a number"):
        read_vectors(tmp_path / "published")
    made = datasets.Dataset.from_dict({"vector": VECTORS.tolist()})
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match=r"has splits; name one, as .*splits/train"):
        read_vectors(tmp_path / "splits")
    assert len(read_vectors(tmp_path / "splits" / "test")) == 7
    pq.write_table(pa.table({"a": [1.5] * 7, "v": lists(VECTORS)}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=r"vectors_column: .* a is double, not lists of float16"):
        read_vectors(tmp_path / "v.parquet", "a")
    np.savez(tmp_path / "v.npz", id=np.array(["a"]), v=VECTORS)
    with pytest.raises(InputError, match=r"vectors_id: .* id is of shape \(1,\), not one id per vector"):
        read_vectors(tmp_path / "v.npz", None, "id")


# Under which key.


def test_the_store_differs_by_content_columns_name_and_whose_row_is_whose(tmp_path: Path) -> None:
    pool = made_pool(tmp_path / "one")
    other = made_pool(tmp_path / "other")
    files = tuple(reversed(other.snapshot.files))
    other = PoolAt(other.snapshot.model_copy(update={"files": files}), other.root, pool.base)
    for name, value in (("v.npy", VECTORS), ("same.npy", VECTORS), ("w.npy", VECTORS + 1)):
        np.save(pool.base / name, value)
    pq.write_table(pa.table({"text_tokens": range(28, 35), "v": lists(VECTORS)}), pool.base / "v.parquet")
    first = own_vectors(pool, given("v.npy")).model
    assert own_vectors(pool, given("same.npy")).model == first
    assert first.revision == subprocess.run(
        ["sha256sum", pool.base / "v.npy"], capture_output=True, text=True, check=True
    ).stdout.split()[0]  # fmt: skip
    keys = {
        first.key,
        own_vectors(pool, given("w.npy")).model.key,
        own_vectors(pool, given("v.npy", model="another")).model.key,
        own_vectors(other, given("v.npy")).model.key,
        own_vectors(pool, given("v.parquet")).model.key,
        own_vectors(pool, given("v.parquet", vectors_column="v")).model.key,
        own_vectors(pool, given("v.parquet", vectors_id="text_tokens")).model.key,
    }
    assert len(keys) == 7
    assert own_vectors(pool, given("v.npy", max_tokens=9, text="prompt", dtype="bfloat16")).model == first


def test_shards_are_reported_as_they_are_written(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    pool = made_pool(tmp_path)
    fetched: list[str] = []
    names: list[tuple[str, ...]] = []
    seen: list[tuple[int, int]] = []
    work = Work(lambda *counts: seen.append(counts), fetched.append, lambda *files: names.append(files))
    found = vectors_of_pool(pool, given("v.npy"), pool.root, work)
    assert fetched == [found.folder]
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert len(names) == 3
    assert all((pool.root / name).is_file() for files in names for name in files)


def test_no_torch_is_loaded_and_no_model_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    made_pool(tmp_path)
    program = """
import json, sys
from pathlib import Path
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.vectors_of_pool import vectors_of_pool
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Embedding
base = Path(sys.argv[1])
settings = Embedding(model="no/such-model", vectors="v.npy")
assert token_counter(settings)(["hello world"]) == [2]
pool = PoolAt(PoolSnapshot.model_validate_json(sys.argv[2]), base / "curated", base)
print(vectors_of_pool(pool, settings, base / "curated").embedded)
sys.exit("torch" in sys.modules or "datasets" in sys.modules)
"""
    snapshot = made_pool(tmp_path / "again").snapshot.model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), snapshot], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5\n"


# Where a model makes them.


def test_a_models_vectors_say_what_was_cut(tmp_path: Path) -> None:
    pool = made_pool(tmp_path)
    settings = Embedding(model=tiny_model(), dtype="float32", max_tokens=34)
    found = vectors_of_pool(pool, settings, pool.root, Work(device="cpu"))
    # 30 to 34 tokens, and room for 32 beside [CLS] and [SEP].
    assert (found.embedded, found.cut_samples, found.unread_fraction) == (5, 2, 3 / 160)
    assert found.folder == f"vectors/{identify(settings).key}"
    windows = settings.model_copy(update={"long": "windows"})
    assert cut_of_pool(pool, windows).cut == 0
    old = VectorSet.model_validate(found.model_dump(exclude={"cut_samples", "unread_fraction"}))
    assert (old.cut_samples, old.unread_fraction) == (0, 0)


def test_tokens_are_the_packaged_models_where_vectors_are_given() -> None:
    settings = Embedding(model="no/such-model", vectors="v.npy")
    assert token_counter(settings)(["hello world", ""]) == token_counter(Embedding())(["hello world", ""]) == [2, 0]
    assert special_tokens(settings) == 2


# Back out.


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet", ".safetensors"])
def test_vectors_come_back_out_and_in_again_bit_for_bit(tmp_path: Path, ending: str) -> None:
    pool = made_pool(tmp_path)
    np.save(tmp_path / "v.npy", VECTORS)
    made, vectors = stored(pool, given("v.npy"))
    out = tmp_path / "sub" / f"out{ending}"
    export_vectors(pool.root, pool.snapshot, made, out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    with_ids = ending in (".npz", ".parquet")
    file = read_vectors(out, None, "id" if with_ids else None)
    np.testing.assert_array_equal(np.asarray(file.vectors).view(np.uint32), vectors.view(np.uint32))
    assert file.ids == (IDS if with_ids else None)
    if ending == ".safetensors":
        with safe_open(out, framework="numpy") as tensors:
            assert json.loads(tensors.metadata()["id"]) == IDS
            assert list(tensors.keys()) == ["vector"]
    if with_ids:
        again, same = stored(pool, given(str(out), vectors_id="id"))
        assert again.folder != made.folder
        assert again.key == made.key
        np.testing.assert_array_equal(same.view(np.uint32), vectors.view(np.uint32))


def test_vectors_are_written_in_known_formats_and_of_the_pool_asked_for_only(tmp_path: Path) -> None:
    pool = made_pool(tmp_path)
    np.save(tmp_path / "v.npy", VECTORS)
    made, vectors = stored(pool, given("v.npy"))
    with pytest.raises(InputError, match=r"out\.csv: vectors are written to \.npy, \.npz, \.parquet, \.safetensors"):
        export_vectors(pool.root, pool.snapshot, made, tmp_path / "out.csv")
    with pytest.raises(InputError, match="belong to pool snapshot x"):
        export_vectors(pool.root, pool.snapshot.model_copy(update={"key": "y"}), made, tmp_path / "out.npy")
    np.testing.assert_array_equal(pool_vectors(pool.root, pool.snapshot, made)[1], vectors)
