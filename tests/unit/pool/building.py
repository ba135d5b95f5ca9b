"""Building snapshots in a test's folder and looking at what came out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile
from novelsum_dagster.settings import Pool

OFF = {"by": "off"}


def words(texts: list[str]) -> list[int]:
    """Count words, as the smallest tokenizer that there is."""
    return [len(text.split()) for text in texts]


def build(base: Path, *paths: str, **pool: Any) -> PoolSnapshot:
    """Build a snapshot of files under `base` into `base/curated`; any part of the records may be bad."""
    values: dict[str, Any] = {"max_reject_fraction": 1.0, "near_duplicates": OFF, **pool}
    values.setdefault("sources", [{"path": path} for path in paths])
    return build_snapshot(Pool.model_validate(values), base, base / "curated", words)


def rows(snapshot: PoolSnapshot, base: Path, table: str) -> list[dict[str, Any]]:
    """Return the rows of one of the snapshot's tables."""
    return [dict(row) for row in snapshot.table(base / "curated", table).to_pylist()]


def ids(snapshot: PoolSnapshot, base: Path) -> list[str]:
    """Return the ids of the pool's samples, in pool order."""
    return [str(id_) for id_ in snapshot.samples(base / "curated", ["id"])["id"].to_pylist()]


def hidden(folder: Path) -> Iterator[Path]:
    """Yield what a writer may have left behind."""
    return (path for path in folder.rglob(".*") if path.name.startswith("."))


def adds_up(snapshot: PoolSnapshot) -> bool:
    """Tell whether the counts of every file, and of the pool, add up."""
    parts: list[PoolSnapshot | SourceFile] = [*snapshot.files, snapshot]
    return all(part.read == part.kept + part.duplicates + part.rejects + part.unread for part in parts)
