"""Inspection of files before anything is embedded: forms, columns, rejects, lengths and one sample of each form."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from novelsum_dagster.pool.forms import parse
from novelsum_dagster.pool.ingest import reading_of
from novelsum_dagster.pool.samples import Reject, Sample, Turn
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile
from novelsum_dagster.pool.table_reader import record_value
from novelsum_dagster.settings import Pool


@dataclass(frozen=True)
class RejectedKind:
    """Rejects of one file for one reason: their number, and the first one."""

    reason: str
    records: int
    position: int
    line: int | None
    detail: str


@dataclass(frozen=True)
class Example:
    """The first sample of a form: where it is, and its turns."""

    form: str
    position: int
    line: int | None
    turns: tuple[Turn, ...]
    tools: str
    text: str
    """What is embedded."""


@dataclass(frozen=True)
class InspectedFile:
    """Contents of one file.

    Attributes:
        file: name and counts.
        forms: samples by form, duplicates not counted.
        rejects: by reason, the most frequent first.
        tokens: int64, (samples,), of the embedded texts.
        examples: one sample of each form.
    """

    file: SourceFile
    forms: dict[str, int]
    rejects: tuple[RejectedKind, ...]
    tokens: NDArray[np.int64]
    examples: tuple[Example, ...]


def inspected(snapshot: PoolSnapshot, root: Path, pool: Pool) -> list[InspectedFile]:
    """Return the contents of each file of a snapshot.

    Args:
        snapshot: of the files.
        root: the storage folder.
        pool: the settings under which it was read.
    """
    columns = ["id", "file", "form", "position", "line", "text_tokens", "text", "original"]
    samples = snapshot.samples(root, columns)
    rejects = snapshot.table(root, "rejects", ["file", "reason", "position", "line", "detail"])
    return [
        _file(file, samples.filter(pc.equal(samples["file"], file.file)), _of(rejects, file.file), pool)
        for file in snapshot.files
    ]


def _of(table: pa.Table, file: str) -> list[dict[str, Any]]:
    return [dict(row) for row in table.filter(pc.equal(table["file"], file)).to_pylist()]


def _file(file: SourceFile, samples: pa.Table, rejects: Sequence[dict[str, Any]], pool: Pool) -> InspectedFile:
    forms = samples["form"].to_pylist()
    counts = Counter(forms)
    tokens = samples["text_tokens"].to_numpy()
    return InspectedFile(
        file,
        dict(counts.most_common()),
        _kinds(rejects),
        np.asarray(tokens),
        tuple(
            _example(file, samples.slice(forms.index(form), 1).to_pylist()[0], pool) for form, _ in counts.most_common()
        ),
    )


def _kinds(rejects: Sequence[dict[str, Any]]) -> tuple[RejectedKind, ...]:
    counts = Counter(row["reason"] for row in rejects)
    first = {row["reason"]: row for row in reversed(rejects)}
    return tuple(
        RejectedKind(reason, count, first[reason]["position"], first[reason]["line"], first[reason]["detail"])
        for reason, count in counts.most_common()
    )


def _example(file: SourceFile, row: dict[str, Any], pool: Pool) -> Example:
    record = record_value(row["original"], file.schema_of_rows)
    sample = next(found for found in _samples(record, pool) if found.id == row["id"])
    return Example(row["form"], row["position"], row["line"], sample.turns, sample.tools, row["text"])


def _samples(record: Any, pool: Pool) -> Iterator[Sample]:
    """Yield the record as read by each of the sources."""
    for source in pool.sources:
        with suppress(Reject):
            yield parse(record, reading_of(source, pool)).sample
