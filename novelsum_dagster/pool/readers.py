"""Reading records one by one from files, without holding a file in memory.

Belongs here: finding files, refusing unreadable files, decompressing. Does not: the formats' names
(`formats`), splitting text into records (`json_reader`), rows (`table_reader`), datasets (`datasets_reader`), what the
fields mean (`forms`), duplicates and snapshots (`ingest`).
"""

import codecs
import glob
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path

import pyarrow as pa

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.datasets_reader import first_outside, is_saved_dataset
from novelsum_dagster.pool.formats import COMPRESSIONS, ENDINGS, TABLES, file_format
from novelsum_dagster.pool.json_reader import read_json
from novelsum_dagster.pool.records import Record, end_record
from novelsum_dagster.pool.table_reader import (
    arrow_schema,
    csv_header,
    read_arrow,
    read_csv,
    read_parquet,
    require_distinct,
)

SUCCESS_MARKER = "_SUCCESS"
"""The file by which a writer marks a folder as complete, as Spark does."""
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEAD_BYTES = 1024
_COMPRESSED_STARTS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_TABLE_STARTS = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_MARKUP = re.compile(rb"\s*<(!doctype|!--|\?xml|html|head|body|error)\b", re.IGNORECASE)
_OFFICE_PARTS = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"xl/")
_FOREIGN_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file; run git lfs pull",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel or other Office file; save it as CSV",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"BZh": "compressed with bzip2; decompress it, or compress it with gzip",
    b"\xfd7zXZ\x00": "compressed with xz; decompress it, or compress it with gzip",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"FEA1": "a Feather file of version 1; write it as version 2 or Parquet",
    b"SQLite format 3\x00": "an SQLite database; save its table as CSV",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; save it as Parquet or CSV",
    b"ORC": "an ORC file; save it as Parquet or CSV",
    b"Obj\x01": "an Avro file; save it as Parquet or CSV",
    b"\x93NUMPY": "a NumPy array; save it as Parquet or CSV",
    b"%PDF": "a PDF; records are read from JSON, CSV, Parquet or Arrow files",
}
"""Starts of files that cannot be read, with what they are and what to do."""


def find_files(pattern: str, base: Path, success_marker: bool = False) -> list[Path]:
    """Return the files that a path or glob names, sorted; relative ones start at `base`.

    Args:
        pattern: path or glob; a part with brackets that exists literally is not a glob.
        base: folder.
        success_marker: leave out files whose folder has no file _SUCCESS.

    Raises:
        InputError: if nothing matches, a match is a folder or leads out of the glob's folder, or its format is
            unknown.
    """
    path = base / Path(pattern).expanduser()
    files = _matches(pattern, base)
    if success_marker:
        files = [file for file in files if file.name != SUCCESS_MARKER]
    missing = [path] if not files else [file for file in files if not file.exists()]
    if missing:
        hint = "; in a glob, brackets match one of the characters in them; write [[] for a bracket"
        raise InputError(
            f"{_shown(pattern)}: no such file (looked for {_shown(missing[0])}); correct the path or glob"
            + (hint if "[" in pattern else "")
        )
    for file in files:
        if file.is_dir():
            raise InputError(f"{_shown(pattern)}: is a {_what_folder(pattern, file)}")
        if _shown(file) != str(file):
            raise InputError(f"{_shown(file)}: the name is not UTF-8; rename the file")
        file_format(file)
    if not success_marker:
        return files
    finished = {folder for folder in {file.parent for file in files} if (folder / SUCCESS_MARKER).exists()}
    if not finished:
        raise InputError(f"{pattern}: no folder of these files has a file {SUCCESS_MARKER} yet")
    return [file for file in files if file.parent in finished]


def unfinished_folders(pattern: str, base: Path) -> set[Path]:
    """Return the folders of files that a path or glob names which have no file _SUCCESS."""
    return {
        folder for folder in {file.parent for file in _matches(pattern, base)} if not (folder / SUCCESS_MARKER).exists()
    }


def _matches(pattern: str, base: Path) -> list[Path]:
    wanted = Path(pattern).expanduser()
    if not glob.has_magic(pattern) or (base / wanted).exists():
        return [base / wanted]
    # Only the pattern is a glob: the base folder's own name may have brackets, and so may existing folders.
    folder, parts = base, list(wanted.parts)
    while parts and (not glob.has_magic(parts[0]) or (folder / parts[0]).exists()):
        folder /= parts.pop(0)
    if not parts:
        return [folder]
    rest = str(Path(*parts))
    names = _found(rest, folder) or _found(rest.replace("[", "[[]"), folder)
    files = [folder / name for name in names if not (folder / name).is_dir()]
    outside = first_outside(files, folder)
    if outside is not None:
        # A link in the folder could otherwise expose any file of this machine.
        raise InputError(
            f"{pattern}: {outside} leads out of {folder}, to {realpath(outside)}; list that file itself in"
            " pool.sources, or remove the link"
        )
    return files


def _found(pattern: str, folder: Path) -> list[str]:
    return sorted(glob.glob(pattern, root_dir=folder, recursive=True))


def _what_folder(pattern: str, folder: Path) -> str:
    """Return what a folder given instead of files is, and a remedy."""
    name = _shown(pattern.rstrip("/"))
    if is_saved_dataset(folder):
        return f"dataset written by save_to_disk; in pool.sources, name it as dataset: {name} instead of path:"
    for place, files in (("*", sorted(folder.iterdir())), ("**/*", folder.rglob("*"))):
        endings = (_ending(file) for file in files if not file.name.startswith(".") and file.is_file())
        ending = next(filter(None, endings), None)
        if ending is not None:
            return f"folder; name files or a glob such as {name}/{place}{ending}"
    return f"folder without a file that can be read; the names must end in {ENDINGS}"


def _ending(path: Path) -> str | None:
    """Return the ending of names of files like this one; None if its format is unknown."""
    try:
        file_format(path)
    except InputError:
        return None
    return "".join(path.suffixes[-2:] if path.suffix.lower() in COMPRESSIONS else path.suffixes[-1:])


def _shown(name: str | Path) -> str:
    """Return a file's name with a backslash escape for each byte that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown_name(path: Path, base: Path) -> str:
    """Return a source file's name as a snapshot shows it: relative to `base` where it is within."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def require_readable(path: Path) -> None:
    """Refuse a file whose records cannot be read, judging by its first bytes or its column names.

    Damaged and empty files are left to `read_file`.

    Raises:
        InputError: naming what the file is, with a remedy.
    """
    kind = file_format(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        what = _what_foreign(head, path, kind)
        if what is None and kind in TABLES:
            require_distinct(arrow_schema(path).names, path)
        elif what is None and kind == "csv":
            with _opened(path) as stream:
                require_distinct(csv_header(stream, path), path)
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: has a column whose name is not UTF-8; the file is damaged: fetch or write it again"
        ) from None
    except FileNotFoundError:
        return  # Deleted after it was listed; reading it reports that.
    except pa.ArrowException:
        return
    except OSError as error:
        if error.errno is None:  # Raised by Arrow for a damaged file.
            return
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if what is not None:
        raise InputError(f"{path}: is {what}")


def _what_foreign(head: bytes, path: Path, kind: str) -> str | None:
    """Return the actual type of a misnamed file, with a remedy; None if its content may match its name."""
    if _MARKUP.match(head.removeprefix(codecs.BOM_UTF8)):
        return "an HTML or XML page instead of the file; download the file itself"
    if head.startswith(b"PK\x03\x04") and any(part in head for part in _OFFICE_PARTS):
        return "an Excel or other Office file; save it as CSV"
    for start, what in _FOREIGN_STARTS.items():
        if head.startswith(start):
            return what
    for start, table in _TABLE_STARTS.items():
        if head.startswith(start) and kind != table:
            return f"{TABLES[table]}; name it {path.name.split('.')[0]}.{table}"
    for start, suffix in _COMPRESSED_STARTS.items():
        if head.startswith(start) and path.suffix.lower() != suffix:
            plain = path.stem if path.suffix.lower() in COMPRESSIONS else path.name
            how = "decompress it" if kind in TABLES else f"name it {plain}{suffix}"
            return f"compressed with {COMPRESSIONS[suffix]}; {how}"
    return None


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order; an unreadable one is a record that holds a `Reject`."""
    kind = file_format(path)
    if kind == "parquet":
        yield from read_parquet(path)
        return
    if kind == "arrow":
        yield from read_arrow(path)
        return
    with _opened(path) as stream:
        try:
            start = stream.peek(2)[:2]
        except OSError as error:
            yield end_record(1, 1, "unreadable_file", f"decompression failed: {error}")
            return
        if start in _UTF16_MARKS:
            yield end_record(1, 1, "wrong_encoding", "the file is UTF-16; convert it to UTF-8")
        elif kind == "csv":
            yield from read_csv(stream, path)
        else:
            yield from read_json(lambda: _opened(path), kind == "jsonl")


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    with pa.input_stream(str(path), compression=compression) as raw, io.BufferedReader(raw) as stream:
        yield stream
