"""Atomic writes, so that a reader never sees half a file, and content hashes.

Belongs here: atomic writes of bytes, JSON, Parquet and folders; content hashes, also within JSON files; which names
stay within a folder. Does not: the meaning of the content.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

KEY_LENGTH = 32
"""Hexadecimal digits of a content key: 128 bits of SHA-256."""
SEAL = "sha256"
"""Key of a JSON object under which it has the SHA-256 of all its other keys and values."""


def content_key(value: Any) -> str:
    """Return the key of a JSON-able value: the same for equal values, whatever the order of their keys."""
    return _digest(value)[:KEY_LENGTH]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own SHA-256, by which `unsealed` notices a change."""
    return {**value, SEAL: _digest(value)}


def unsealed(value: Any) -> Any:
    """Return a JSON value without its own SHA-256; one that has none, as of earlier releases, is returned as it is.

    Raises:
        ValueError: if it was changed since `sealed` returned it.
    """
    if not isinstance(value, dict) or SEAL not in value:
        return value
    content = {name: inner for name, inner in value.items() if name != SEAL}
    if _digest(content) != value[SEAL]:
        raise ValueError("its content differs from the SHA-256 that it has of itself: it was edited")
    return content


def is_name(name: str) -> bool:
    """Return whether a name, with forward slashes, can be that of a file within a folder."""
    return "\0" not in name and not set(name.split("/")) & {"", ".", ".."}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_hash(path: Path) -> str:
    """Return the SHA-256 of a file; an unchanged file is read only once per process."""
    status = path.stat()
    # Programs can set a file's modification time (copying does), but not the change time of its inode.
    return _hash_of(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=100_000)
def _hash_of(path: Path, *_identity: int) -> str:
    return file_hash(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `parent`; it is deleted after the block unless `place_folder` moved it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".building-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place_folder(built: Path, destination: Path) -> None:
    """Move a finished content-addressed folder into place; an existing one keeps its files.

    Files missing from the existing folder, e.g. because they were damaged and deleted, are restored.
    """
    if destination.exists():
        for path in sorted(built.rglob("*")):
            place = destination / path.relative_to(built)
            if path.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
        return
    built.chmod(0o755)
    try:
        built.rename(destination)
    except OSError:
        if not destination.is_dir():  # Otherwise another process placed the same content first.
            raise


def write_bytes(data: bytes, path: Path) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(value: Any, path: Path) -> None:
    """Write a JSON-able value to `path` atomically, indented, with a final newline."""
    write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), path)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_bytes())


def write_table(table: pa.Table, path: Path) -> None:
    """Write an Arrow table to `path` as Parquet, atomically."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_csv_and_table(table: pa.Table, path: Path) -> None:
    """Write an Arrow table to `path`.csv and to `path`.parquet, each atomically."""
    write_table(table, path.with_suffix(".parquet"))
    with replacing(path.with_suffix(".csv")) as temporary:
        pa_csv.write_csv(table, temporary)
