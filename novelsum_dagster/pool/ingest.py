"""Building a snapshot from the sources: every record becomes a sample, a duplicate or a reject, and the counts add up.

Belongs here: the single pass over all sources, exact duplicates, the reject threshold. Does not: splitting files into
records (`readers`), fields (`forms`), reading a snapshot (`snapshot`).
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import KEY_LENGTH, file_hash, place_folder, temporary_folder
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.pool import snapshot as tables
from novelsum_dagster.pool.buckets import BucketFile, bucket_files, fetched, forget_other_copies, is_in_bucket
from novelsum_dagster.pool.datasets_reader import dataset_batches
from novelsum_dagster.pool.duplicates import near_duplicates
from novelsum_dagster.pool.folded import FoldedRecords, printable
from novelsum_dagster.pool.formats import file_format
from novelsum_dagster.pool.forms import Parsed, Reading, has_column, parse
from novelsum_dagster.pool.keeping import keeping_order
from novelsum_dagster.pool.landing import (
    Landed,
    landed_file,
    landed_object,
    landed_source,
    located,
    require_unchanged,
    write_listing,
)
from novelsum_dagster.pool.messages import Roles
from novelsum_dagster.pool.readers import find_files, read_file, require_readable
from novelsum_dagster.pool.records import Record
from novelsum_dagster.pool.rejects import write_rejects
from novelsum_dagster.pool.samples import Reject
from novelsum_dagster.pool.snapshot import FoldedColumn, PoolSnapshot, SourceFile
from novelsum_dagster.pool.table_reader import arrow_schema, read_rows
from novelsum_dagster.pool.texts import WHOLE, text_of
from novelsum_dagster.settings import S3, NearDuplicates, Pool, Source, TextRule

_AWS = S3()
_TURNS = TextRule()
_BATCH = 1000
_UNNAMED = "unnamed"
"""Key of a snapshot that is still being written."""
CountTokens = Callable[[list[str]], list[int]]


@dataclass
class _Input:
    """One file or dataset to read."""

    source: str
    file: str
    format: str
    records: Callable[[], Iterator[Record]]
    stated: Source
    sha256: str | None = None
    schema: pa.Schema | None = None
    landed: tuple[Landed, ...] = ()
    """State of the file before it was read."""
    complete: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    forms: set[str] = field(default_factory=set)
    """Forms of its samples."""
    content: set[str] = field(default_factory=set)
    """Columns that were read as training content."""
    other: set[str] = field(default_factory=set)
    """Columns that were not read as training content."""
    folded: tuple[FoldedColumn, ...] = ()
    there: set[str] = field(default_factory=set)
    """Columns named by the setting `columns` that occur in a record, null or not."""
    top: set[str] = field(default_factory=set)
    """All columns, if the setting `columns` names any."""


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
    text: TextRule = _TURNS,
    refuse_bad: bool = True,
    quality: str | None = None,
) -> PoolSnapshot:
    """Read all sources and write the snapshot under `root/pool`, unless the same content exists already.

    Args:
        settings: sources and limits.
        base: folder to which relative source paths refer.
        root: the storage folder.
        count_tokens: the embedding model's tokenizer, untruncated.
        progress: called with the number of records read; the total is not known.
        rejects_file: where the rejects are written if there are too many; default `root/pool/rejects.parquet`.
        s3: connection for sources in buckets; objects are copied to `root/landing` first.
        only: names of the files to read, as in a snapshot; default: all files of the sources.
        text: which part of a sample is its text.
        refuse_bad: False to accept any pool, even an empty one, for inspection.
        quality: field of the records by which near-duplicates are kept, if the settings keep them by quality.

    Raises:
        InputError: before reading, for a missing file; after it, for a file that changed meanwhile, an empty pool
            or too many rejects.
    """
    inputs = _inputs(settings.sources, base, s3, root, only)
    with temporary_folder(root / "pool") as folder:
        key = _Ingest(settings, folder, count_tokens, text, progress).read(inputs, base)
        if refuse_bad:
            rejects_file = rejects_file or root / "pool" / "rejects.parquet"
            _refuse_bad_pool(inputs, settings.max_reject_fraction, folder, rejects_file)
        read = PoolSnapshot(
            key=_UNNAMED,
            folder=folder.relative_to(root).as_posix(),
            files=tuple(_summary(item) for item in inputs),
            near_duplicates=0,
            near_duplicates_dropped=False,
        )
        near = _write_near_duplicates(settings.near_duplicates, read, root, quality)
        key.update(json.dumps([near, settings.near_duplicates.drop]).encode())
        digest = key.hexdigest()[:KEY_LENGTH]
        place_folder(folder, root / output_folder("pool", digest))
        write_listing(root, digest, (file for item in inputs for file in item.landed))
    named = {"key": digest, "folder": output_folder("pool", digest), "near_duplicates": len(near)}
    snapshot = read.model_copy(update={**named, "near_duplicates_dropped": settings.near_duplicates.drop})
    return _without_dropped(snapshot, root) if settings.near_duplicates.drop else snapshot


def reading_of(source: Source, settings: Pool) -> Reading:
    """Return how the records of a source are read."""
    form = None if source.form == "auto" or source.form == "any" else source.form
    return Reading(form, source.columns, Roles(settings.roles), settings.preference)


def count_records(sources: Iterable[Source], base: Path) -> int:
    """Return the number of records in sources, rejects included.

    Raises:
        InputError: for a missing file, or a source in a bucket, which would have to be copied first.
    """
    count, seen = 0, set[Path]()
    for source in (located(source, base) for source in sources):
        if source.dataset is not None:
            count += sum(1 for _ in _dataset_input(source, base).records())
        elif is_in_bucket(source.path):
            raise InputError(f"{source.path}: records in buckets are not counted; run once, or give --samples")
        else:
            files = [file for file in find_files(source.path or "", base, source.success_marker) if file not in seen]
            count += sum(sum(1 for _ in read_file(file)) for file in files)
            seen.update(files)
    return count


def hashed_sources(sources: Iterable[Source], base: Path, s3: S3, root: Path) -> dict[str, str]:
    """Return the SHA-256 of every source file, by its name in a snapshot; empty for a hub dataset.

    Args:
        sources: as the settings have them.
        base: folder to which relative paths refer.
        s3: connection for sources in buckets.
        root: the storage folder.

    Raises:
        InputError: if a source is missing.
    """
    return {item.file: item.sha256 or "" for item in _inputs(sources, base, s3, root)}


def _inputs(
    sources: Iterable[Source], base: Path, s3: S3, root: Path, only: Collection[str] | None = None
) -> list[_Input]:
    found: dict[str, _Input] = {}
    objects: list[BucketFile] = []
    # All files are located before the first is read.
    for source, files in [(source, _files(source, base, s3)) for source in (located(one, base) for one in sources)]:
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
                found[str(file)] = _file_input(fetched(file, root), landed_object(file), source)
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


def _file_input(path: Path, landed: Landed | None, source: Source) -> _Input:
    kind = file_format(path)
    if landed is None:
        raise InputError(f"{path} was deleted after it was listed; run again when nothing is writing there")
    name = source.name or path.name.split(".")[0]
    item = _Input(name, landed.name, kind, lambda: read_file(path), source, sha256=file_hash(path))
    item.landed = (landed,)
    require_readable(path)
    if kind in ("parquet", "arrow"):
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
    config = f"/{source.config}" if source.config else ""
    item = _Input(name, f"{source.dataset}{config}{revision}[{source.split}]", "dataset", lambda: iter(()), source)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in dataset_batches(location, source.split, source.revision, source.config):
            item.schema = item.schema or batch.schema.remove_metadata()
            yield batch.cast(item.schema)

    item.records = lambda: read_rows(batches())
    item.landed = tuple(landed_source(source, base))
    return item


class _Ingest:
    """The state of one pass: ids seen so far, and the tables being written."""

    def __init__(
        self, settings: Pool, folder: Path, count_tokens: CountTokens, text: TextRule, progress: Progress
    ) -> None:
        self._settings = settings
        self._text = text
        self._progress = progress
        self._seen: dict[str, bytes] = {}
        self._folded = FoldedRecords()
        self._hash = hashlib.sha256()
        self._read = 0
        self._whole: list[str] = []

        def add_tokens(rows: list[dict[str, Any]]) -> None:
            counts = count_tokens([row["text"] for row in rows])
            self._hash.update(json.dumps(counts).encode())
            whole = [at for at, text in enumerate(self._whole) if text != rows[at]["text"]]
            totals = dict(zip(whole, count_tokens([self._whole[at] for at in whole]), strict=True)) if whole else {}
            for at, (row, tokens) in enumerate(zip(rows, counts, strict=True)):
                row["tokens"], row["text_tokens"] = totals.get(at, tokens), tokens
            self._whole.clear()

        self._samples = _Table(folder / "samples.parquet", tables.SAMPLES, add_tokens)
        self._origins = _Table(folder / "origins.parquet", tables.ORIGINS)
        self._rejects = _Table(folder / "rejects.parquet", tables.REJECTS)

    def read(self, inputs: list[_Input], base: Path) -> "hashlib._Hash":
        """Read every input; return the hash of everything written.

        Raises:
            InputError: for a file that changed meanwhile.
        """
        for item in inputs:
            reading = reading_of(item.stated, self._settings)
            try:
                for record in item.records():
                    self._take(item, record, reading)
                    before, self._read = self._read, self._read + 1 + record.unread
                    if self._read // _BATCH > before // _BATCH:
                        self._progress(self._read, 0)
            except Exception:
                require_unchanged(item.landed, base)  # If the file changed, that is the better message.
                raise
            require_unchanged(item.landed, base)
            _require_columns(item)
            item.folded = tuple(FoldedColumn(**found) for found in self._folded.columns(item.file))
        self._progress(self._read, 0)
        for table in (self._samples, self._origins, self._rejects):
            table.close()
        return self._hash

    def _take(self, item: _Input, record: Record, reading: Reading) -> None:
        place = {"source": item.source, "file": item.file, "position": record.position, "line": record.line}
        item.counts["read"] += 1 + record.unread
        item.counts["unread"] += record.unread
        item.complete = item.complete and not record.ends_file and not record.unread
        if reading.columns and isinstance(record.value, Mapping):
            item.top |= record.value.keys()
            item.there |= {path for path in reading.columns.values() if has_column(record.value, path)}
        try:
            parsed, text, whole = self._parsed(record, reading)
        except Reject as reject:
            item.counts["rejects"] += 1
            row = {**place, "reason": reject.reason, "detail": reject.detail}
            self._add(self._rejects, row, record.original)
            return
        sample, id_ = parsed.sample, parsed.sample.id
        item.forms.add(sample.form)
        item.content |= parsed.columns
        item.other |= parsed.other.keys()
        other, first = self._folded.fingerprint(parsed.other), self._seen.get(id_)
        self._add(self._origins, {"id": id_, **place, "is_first": first is None})
        if first is not None:
            item.counts["duplicates"] += 1
            self._folded.compare(item.file, first, other, id_, record.position)
            return
        self._seen[id_] = other
        item.counts["kept"] += 1
        item.counts["with_media"] += bool(sample.media) or any(turn.media for turn in sample.turns)
        item.counts["open_ended"] += not sample.ends_with_answer
        row = {"id": id_, **place, "form": sample.form, "turns": len(sample.turns), "characters": len(whole)}
        if parsed.former_id:
            row["former_id"] = parsed.former_id
        self._whole.append(whole)
        self._add(self._samples, {**row, "text": text}, record.original)

    def _parsed(self, record: Record, reading: Reading) -> tuple[Parsed, str, str]:
        """Return a record's sample, the text to embed, and all of its text."""
        if isinstance(record.value, Reject):
            raise record.value
        parsed = parse(record.value, reading)
        text = text_of(parsed.sample, self._text)
        whole = text if parsed.sample.is_plain and self._text == _TURNS else text_of(parsed.sample, WHOLE)
        limit = self._settings.max_characters
        if len(whole) > limit:
            raise Reject("over_long", f"{len(whole):,} characters; max_characters is {limit:,}")
        if not text.strip():
            raise Reject("no_text", f"nothing to embed under embedding.text: {self._text.choice}")
        return parsed, text, whole

    def _add(self, table: _Table, row: dict[str, Any], original: bytes | None = None) -> None:
        self._hash.update(json.dumps(row, ensure_ascii=True).encode())
        if original is not None:
            self._hash.update(original)
            row["original"] = original
        table.add(row)


def _require_columns(item: _Input) -> None:
    """Refuse a mapping to a column that no record has: content under a misspelt name would be ignored silently.

    Raises:
        InputError: naming the column.
    """
    never = [f"{part}: {path}" for part, path in item.stated.columns.items() if path not in item.there]
    if never and item.counts["read"] > item.counts["unread"]:
        has = ", ".join(sorted(map(printable, item.top))[:12])
        raise InputError(f"{item.file}: columns names {', '.join(never)}, which no record has; they have {has}")


def _refuse_bad_pool(inputs: list[_Input], limit: float, folder: Path, rejects_file: Path) -> None:
    empty = [item.file for item in inputs if not item.counts["read"]]
    if empty:
        raise InputError(f"no records in {', '.join(empty)}; remove from pool.sources, or wait until written")
    total: Counter[str] = sum((item.counts for item in inputs), Counter())
    rejects = total["rejects"]
    if rejects <= limit * total["read"] and total["kept"]:
        return
    table = pq.read_table(folder / "rejects.parquet")
    write_rejects(table, {item.file: item.schema for item in inputs}, rejects_file)
    rows = table.drop_columns(["original"]).to_pylist()
    reasons = Counter(row["reason"] for row in rows).most_common(5)
    first = rows[0]
    over = rejects > limit * total["read"]
    raise InputError(
        f"{rejects:,} of {total['read']:,} records are bad, "
        + (f"over max_reject_fraction {limit}: " if over else "no sample is left: ")
        + ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        + f". The first is {first['file']}, record {first['position']}"
        + (f", line {first['line']}" if first["line"] else "")
        + f": {first['reason']}: {first['detail']}. All are in {rejects_file}; correct them"
        + (" or raise the limit" if over and total["kept"] and all(item.complete for item in inputs) else "")
    )


def _write_near_duplicates(
    rule: NearDuplicates, read: PoolSnapshot, root: Path, quality: str | None
) -> list[tuple[str, str, float]]:
    folder = root / read.folder
    rows: list[tuple[str, str, float]] = []
    if rule.by_text:
        order = None if rule.keep == "first" else keeping_order(read, root, rule, quality)
        found = near_duplicates(lambda: _texts(folder), rule.threshold, order)
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
        form=next(iter(item.forms)) if len(item.forms) == 1 else None,
        sha256=item.sha256,
        arrow_schema=schema,
        complete=item.complete,
        read=item.counts["read"],
        kept=item.counts["kept"],
        duplicates=item.counts["duplicates"],
        rejects=item.counts["rejects"],
        unread=item.counts["unread"],
        content_columns=tuple(sorted(map(printable, item.content))),
        other_columns=tuple(sorted(map(printable, item.other))),
        folded=item.folded,
        with_media=item.counts["with_media"],
        open_ended=item.counts["open_ended"],
        licence=item.stated.licence,
        citation=item.stated.citation,
    )


def _without_dropped(snapshot: PoolSnapshot, root: Path) -> PoolSnapshot:
    """Count near-duplicates that the settings drop as duplicates of their files."""
    dropped = set(snapshot.table(root, "near_duplicates", ["id"])["id"].to_pylist())
    places = snapshot.table(root, "samples", ["id", "file"]).to_pylist()
    return snapshot.without(place["file"] for place in places if place["id"] in dropped)
