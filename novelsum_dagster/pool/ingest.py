"""From sources to a snapshot: every record ends as a sample, a duplicate or a reject, and the counts add up.

Belongs here: the one pass over all sources, exact duplicates, the reject threshold. Does not: cutting files into
records (`readers`), fields (`forms`), reading a snapshot (`snapshot`).
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from novelsum_dagster.errors import InputError
from novelsum_dagster.files import KEY_LENGTH, file_hash, place_folder, temporary_folder, write_bytes
from novelsum_dagster.pool import snapshot as tables
from novelsum_dagster.pool.buckets import BucketFile, bucket_files, fetched, forget_other_copies, is_in_bucket
from novelsum_dagster.pool.duplicates import near_duplicates
from novelsum_dagster.pool.forms import Form, recognise, turns_of
from novelsum_dagster.pool.landing import (
    Landed,
    landed_file,
    landed_object,
    landed_source,
    require_unchanged,
    write_listing,
)
from novelsum_dagster.pool.readers import (
    Record,
    arrow_schema,
    dataset_batches,
    file_format,
    find_files,
    read_file,
    read_rows,
)
from novelsum_dagster.pool.samples import Reject, Turn, joined_text, sample_id
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.settings import S3, Pool, Source

_AWS = S3()
_BATCH = 1000
CountTokens = Callable[[list[str]], list[int]]


@dataclass
class _Input:
    """One file or dataset to read."""

    source: str
    file: str
    format: str
    records: Callable[[], Iterator[Record]]
    form: Form | None
    is_mixed: bool
    stated: Source
    sha256: str | None = None
    schema: pa.Schema | None = None
    landed: tuple[Landed, ...] = ()
    """What it was before it was read."""
    complete: bool = True
    counts: Counter[str] = field(default_factory=Counter)


class _Table:
    """Writes rows to a Parquet file, a batch at a time."""

    def __init__(
        self, path: Path, schema: pa.Schema, finish: Callable[[list[dict[str, Any]]], None] | None = None
    ) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._finish = finish

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self.flush()

    def flush(self) -> None:
        if self._rows and self._finish:
            self._finish(self._rows)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        self.flush()
        self._writer.close()


def build_snapshot(
    settings: Pool,
    base: Path,
    root: Path,
    count_tokens: CountTokens,
    progress: Progress = no_progress,
    rejects_file: Path | None = None,
    s3: S3 = _AWS,
    only: Collection[str] | None = None,
) -> PoolSnapshot:
    """Read all sources and write the snapshot under `root/pool`, unless the same content is there already.

    Args:
        settings: sources and limits.
        base: folder that relative source paths start from.
        root: the storage folder.
        count_tokens: the embedding model's tokenizer, untruncated.
        progress: called with the number of records read; the total is not known.
        rejects_file: where the rejects are left when there are too many; default `root/pool/rejects.parquet`.
        s3: how sources in buckets are reached; what they hold is copied to `root/landing` first.
        only: names of the files that are read, as a snapshot has them; default: all that are there.

    Raises:
        InputError: before any reading for a missing file; after it for a file that changed meanwhile, an empty pool
            or too many rejects.
    """
    inputs = _inputs(settings.sources, base, s3, root, only)
    with temporary_folder(root / "pool") as folder:
        key = _Reading(settings, folder, count_tokens, progress).read(inputs, base)
        _refuse_bad_pool(
            inputs, settings.max_reject_fraction, folder, rejects_file or root / "pool" / "rejects.parquet"
        )
        near = _write_near_duplicates(settings, folder)
        key.update(json.dumps([near, settings.near_duplicates.drop]).encode())
        digest = key.hexdigest()[:KEY_LENGTH]
        place_folder(folder, root / "pool" / f"snapshot={digest}")
        write_listing(root, digest, (file for item in inputs for file in item.landed))
    snapshot = PoolSnapshot(
        key=digest,
        folder=f"pool/snapshot={digest}",
        files=tuple(_summary(item) for item in inputs),
        near_duplicates=len(near),
        near_duplicates_dropped=settings.near_duplicates.drop,
    )
    return _without_dropped(snapshot, root) if settings.near_duplicates.drop else snapshot


def count_records(sources: Iterable[Source], base: Path) -> int:
    """Return how many records sources have, good ones or not.

    Raises:
        InputError: for a missing file, or a source in a bucket, which would have to be copied first.
    """
    count, seen = 0, set[Path]()
    for source in sources:
        if source.dataset is not None:
            count += sum(1 for _ in _dataset_input(source, base).records())
        elif is_in_bucket(source.path):
            raise InputError(f"{source.path}: records in buckets are not counted; run once, or say how many there are")
        else:
            files = [file for file in find_files(source.path or "", base, source.success_marker) if file not in seen]
            count += sum(sum(1 for _ in read_file(file)) for file in files)
            seen.update(files)
    return count


def hashed_sources(sources: Iterable[Source], base: Path, s3: S3, root: Path) -> dict[str, str]:
    """Return the SHA-256 of every source file, by the name that a snapshot has for it; empty for a hub dataset.

    Args:
        sources: as the settings have them.
        base: folder that relative paths start from.
        s3: how sources in buckets are reached.
        root: the storage folder.

    Raises:
        InputError: where a source is not there.
    """
    return {item.file: item.sha256 or "" for item in _inputs(sources, base, s3, root)}


def _inputs(
    sources: Iterable[Source], base: Path, s3: S3, root: Path, only: Collection[str] | None = None
) -> list[_Input]:
    found: dict[str, _Input] = {}
    objects: list[BucketFile] = []
    # All files are looked for before the first is read.
    for source, files in [(source, _files(source, base, s3)) for source in sources]:
        if source.dataset is not None:
            item = _dataset_input(source, base)
            found.setdefault(item.file, item)
        for file in files:
            if str(file) in found:
                continue
            if isinstance(file, Path):
                found[str(file)] = _file_input(file, landed_file(file, base), source)
            else:
                objects.append(file)
                found[str(file)] = _file_input(fetched(file, s3, root), landed_object(file), source)
    if not found:
        raise InputError("pool.sources is empty; list at least one path or dataset in the settings file")
    forget_other_copies(objects, root)
    return [item for item in found.values() if only is None or item.file in only]


def _files(source: Source, base: Path, s3: S3) -> Sequence[Path | BucketFile]:
    if source.path is None:
        return []
    if is_in_bucket(source.path):
        return bucket_files(source.path, s3, source.success_marker)[0]
    return find_files(source.path, base, source.success_marker)


def _form(source: Source) -> tuple[Form | None, bool]:
    """Return the stated form, if any, and whether each record may have its own."""
    if source.form == "auto" or source.form == "any":
        return None, source.form == "any"
    return source.form, False


def _file_input(path: Path, landed: Landed | None, source: Source) -> _Input:
    kind = file_format(path)
    if landed is None:
        raise InputError(f"{path}: is gone since it was listed; run again once nobody writes to it")
    name = source.name or path.name.split(".")[0]
    item = _Input(name, landed.name, kind, lambda: read_file(path), *_form(source), source, sha256=file_hash(path))
    item.landed = (landed,)
    if kind == "parquet":
        try:
            item.schema = arrow_schema(path)
        except (pa.ArrowException, OSError):
            item.schema = None  # The reader meets the same error and rejects the file with its reason.
    return item


def _dataset_input(source: Source, base: Path) -> _Input:
    assert source.dataset is not None
    local = base / Path(source.dataset).expanduser()
    location = str(local) if local.exists() else source.dataset
    name = source.name or source.dataset.rstrip("/").split("/")[-1]
    revision = f"@{source.revision}" if source.revision else ""
    item = _Input(
        name, f"{source.dataset}{revision}[{source.split}]", "dataset", lambda: iter(()), *_form(source), source
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in dataset_batches(location, source.split, source.revision):
            item.schema = item.schema or batch.schema.remove_metadata()
            yield batch.cast(item.schema)

    item.records = lambda: read_rows(batches())
    item.landed = tuple(landed_source(source, base))
    return item


class _Reading:
    """The state of one pass: what has been seen, and the tables being written."""

    def __init__(self, settings: Pool, folder: Path, count_tokens: CountTokens, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._seen: set[str] = set()
        self._hash = hashlib.sha256()
        self._read = 0

        def add_tokens(rows: list[dict[str, Any]]) -> None:
            counts = count_tokens([row["text"] for row in rows])
            self._hash.update(json.dumps(counts).encode())
            for row, tokens in zip(rows, counts, strict=True):
                row["tokens"] = tokens

        self._samples = _Table(folder / "samples.parquet", tables.SAMPLES, add_tokens)
        self._origins = _Table(folder / "origins.parquet", tables.ORIGINS)
        self._rejects = _Table(folder / "rejects.parquet", tables.REJECTS)

    def read(self, inputs: list[_Input], base: Path) -> "hashlib._Hash":
        """Read every input; return the running hash of all that was written.

        Raises:
            InputError: for a file that changed meanwhile.
        """
        for item in inputs:
            try:
                for record in item.records():
                    self._take(item, record)
                    self._read += 1
                    if self._read % _BATCH == 0:
                        self._progress(self._read, 0)
            except Exception:
                require_unchanged(item.landed, base)  # Where the file changed, that is the better word.
                raise
            require_unchanged(item.landed, base)
        self._progress(self._read, 0)
        for table in (self._samples, self._origins, self._rejects):
            table.close()
        return self._hash

    def _take(self, item: _Input, record: Record) -> None:
        place = {"source": item.source, "file": item.file, "position": record.position, "line": record.line}
        item.counts["read"] += 1
        item.complete = item.complete and not record.ends_file
        try:
            form, turns = self._turns(item, record)
        except Reject as reject:
            item.counts["rejects"] += 1
            row = {**place, "reason": reject.reason, "detail": reject.detail}
            self._add(self._rejects, row, record.original)
            return
        id_ = sample_id(turns)
        is_first = id_ not in self._seen
        item.counts["kept" if is_first else "duplicates"] += 1
        self._add(self._origins, {"id": id_, **place, "is_first": is_first})
        if is_first:
            self._seen.add(id_)
            text = joined_text(turns)
            row = {"id": id_, **place, "form": form, "turns": len(turns), "characters": len(text), "text": text}
            self._add(self._samples, row, record.original)

    def _turns(self, item: _Input, record: Record) -> tuple[Form, list[Turn]]:
        if isinstance(record.value, Reject):
            raise record.value
        form = item.form or recognise(record.value)
        turns = turns_of(record.value, form)
        item.form = None if item.is_mixed else form
        characters = sum(len(turn.text) for turn in turns)
        if characters > self._settings.max_characters:
            raise Reject("over_long", f"{characters:,} characters; max_characters is {self._settings.max_characters:,}")
        return form, turns

    def _add(self, table: _Table, row: dict[str, Any], original: bytes | None = None) -> None:
        self._hash.update(json.dumps(row, ensure_ascii=True).encode())
        if original is not None:
            self._hash.update(original)
            row["original"] = original
        table.add(row)


def _refuse_bad_pool(inputs: list[_Input], limit: float, folder: Path, rejects_file: Path) -> None:
    empty = [item.file for item in inputs if not item.counts["read"]]
    if empty:
        raise InputError(f"no record in {', '.join(empty)}; take that out of the sources, or wait until it is written")
    total: Counter[str] = sum((item.counts for item in inputs), Counter())
    rejects = total["rejects"]
    if rejects <= limit * total["read"] and total["kept"]:
        return
    write_bytes((folder / "rejects.parquet").read_bytes(), rejects_file)
    rows = pq.read_table(rejects_file, columns=["file", "position", "line", "reason", "detail"]).to_pylist()
    reasons = Counter(row["reason"] for row in rows).most_common(5)
    first = rows[0]
    over = rejects > limit * total["read"]
    raise InputError(
        f"{rejects:,} of {total['read']:,} records are bad, "
        + (f"over max_reject_fraction {limit}: " if over else "none is a sample: ")
        + ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        + f". The first is {first['file']}, record {first['position']}"
        + (f", line {first['line']}" if first["line"] else "")
        + f": {first['reason']}: {first['detail']}. All are in {rejects_file}; mend them"
        + (" or raise the limit" if over and total["kept"] else "")
    )


def _write_near_duplicates(settings: Pool, folder: Path) -> list[tuple[str, str, float]]:
    rule = settings.near_duplicates
    found = list(near_duplicates(_texts(folder), rule.threshold)) if rule.method == "minhash" else []
    rows = [(near.id, near.partner_id, near.score) for near in found]
    table = pa.Table.from_pylist(
        [{"id": id_, "partner_id": partner, "score": score} for id_, partner, score in rows],
        schema=tables.NEAR_DUPLICATES,
    )
    pq.write_table(table, folder / "near_duplicates.parquet")
    return rows


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    with pq.ParquetFile(folder / "samples.parquet") as file:
        for batch in file.iter_batches(_BATCH, columns=["id", "text"]):
            yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def _summary(item: _Input) -> SourceFile:
    schema = base64.b64encode(item.schema.serialize()).decode() if item.schema is not None else None
    return SourceFile(
        source=item.source,
        file=item.file,
        format=item.format,
        form=item.form,
        sha256=item.sha256,
        arrow_schema=schema,
        complete=item.complete,
        read=item.counts["read"],
        kept=item.counts["kept"],
        duplicates=item.counts["duplicates"],
        rejects=item.counts["rejects"],
        licence=item.stated.licence,
        citation=item.stated.citation,
    )


def _without_dropped(snapshot: PoolSnapshot, root: Path) -> PoolSnapshot:
    """Count near-duplicates that the settings drop as duplicates of their files."""
    dropped = set(snapshot.table(root, "near_duplicates", ["id"])["id"].to_pylist())
    places = snapshot.table(root, "samples", ["id", "file"]).to_pylist()
    per_file = Counter(place["file"] for place in places if place["id"] in dropped)
    files = tuple(
        file.model_copy(
            update={"kept": file.kept - per_file[file.file], "duplicates": file.duplicates + per_file[file.file]}
        )
        for file in snapshot.files
    )
    return snapshot.model_copy(update={"files": files})
