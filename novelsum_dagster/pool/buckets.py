"""Sources in S3 buckets: the objects that match a pattern, and a local copy of each.

Belongs here: patterns over objects, the copies. Does not: transfers (`remote.s3`), local files (`readers`).

Keys and server are those of `storage` on S3: the settings' section `s3` and the environment.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key
from novelsum_dagster.pool.formats import file_format
from novelsum_dagster.pool.readers import SUCCESS_MARKER
from novelsum_dagster.remote.s3 import Remote, RemoteFile
from novelsum_dagster.settings import S3, S3Place

SCHEME = "s3://"
_PARTS = re.compile(r"\*\*/|\*|\?|\[[^\]]+\]")


@dataclass(frozen=True)
class BucketFile:
    """An object that a source names.

    Attributes:
        name: `s3://bucket/key`.
        object: its name below the prefix of `remote`.
        remote: bucket and prefix.
        found: its size and ETag when it was listed.
    """

    name: str
    object: str
    remote: Remote
    found: RemoteFile

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> str:
        """Its name without the last part."""
        return self.name.rpartition("/")[0]


def is_in_bucket(path: str | None) -> bool:
    """Return whether a source's path is in a bucket."""
    return path is not None and path.startswith(SCHEME)


def bucket_files(pattern: str, s3: S3, success_marker: bool = False) -> tuple[list[BucketFile], set[str]]:
    """Return the objects that a name or glob names, sorted, and the folders whose files do not count yet.

    Args:
        pattern: as `s3://bucket/prefix/*.jsonl`; `*` stays within a folder, `**` does not.
        s3: how the server is reached.
        success_marker: leave out files whose folder has no _SUCCESS.

    Raises:
        InputError: if nothing matches, a format is unknown, or S3 fails.
    """
    bucket, _, key = pattern.removeprefix(SCHEME).partition("/")
    if not bucket or not key:
        raise InputError(f"{pattern}: name a bucket and files, as s3://bucket/folder/*.jsonl")
    mark = _PARTS.search(key)
    folder = key[: mark.start() if mark else len(key)].rpartition("/")[0]
    remote = Remote(S3Place(bucket, folder), s3)
    listed = remote.files()
    prefix = f"{folder}/" if folder else ""
    # A name with brackets is taken literally before it is read as a pattern.
    wanted = re.compile(re.escape(key)) if key.removeprefix(prefix) in listed else _expression(key)
    names = [name for name in sorted(listed) if wanted.fullmatch(prefix + name) and not _is_hidden(name)]
    there = [BucketFile(f"{SCHEME}{bucket}/{prefix}{name}", name, remote, listed[name]) for name in names]
    files = [file for file in there if not (success_marker and PurePosixPath(file.object).name == SUCCESS_MARKER)]
    if not files:
        raise InputError(f"{pattern}: no such file; correct the path or glob")
    for file in files:
        file_format(Path(file.name))
    if not success_marker:
        return files, set()
    marked = {f"{SCHEME}{bucket}/{prefix}{name}".rpartition("/")[0] for name in listed if _is_marker(name)}
    unfinished = {file.folder for file in files} - marked
    finished = [file for file in files if file.folder in marked]
    if not finished:
        raise InputError(f"{pattern}: no folder of these files has a file {SUCCESS_MARKER} yet")
    return finished, unfinished


def fetched(file: BucketFile, root: Path) -> Path:
    """Return a local copy of a listed object; fetch it if it is missing.

    Args:
        file: the object.
        root: the storage folder.

    Raises:
        InputError: if the object changed after it was listed, or S3 fails.
    """
    path = _copy_path(file, root)
    if path.exists():
        return path
    temporary = path.with_name(f".new-{path.name}")
    file.remote.download(file.object, temporary)
    now = file.remote.stat(file.object)
    if now is None or (now.etag, now.size) != (file.found.etag, temporary.stat().st_size):
        temporary.unlink()
        raise InputError(f"{file.name}: changed while it was read; run again when nothing is writing there")
    temporary.replace(path)
    return path


def forget_other_copies(files: Iterable[BucketFile], root: Path) -> None:
    """Delete copies of objects that were deleted or changed."""
    kept = {_copy_path(file, root).parent for file in files}
    for folder in (root / "landing").glob("object=*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _copy_path(file: BucketFile, root: Path) -> Path:
    key = content_key([file.name, file.found.etag, file.found.size])
    return root / "landing" / f"object={key}" / PurePosixPath(file.object).name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_marker(name: str) -> bool:
    return name.rpartition("/")[2] == SUCCESS_MARKER


def _expression(pattern: str) -> "re.Pattern[str]":
    """Return a glob as a regular expression over whole keys."""
    translated, at = "", 0
    for part in _PARTS.finditer(pattern):
        translated += re.escape(pattern[at : part.start()]) + _translated(part.group())
        at = part.end()
    return re.compile(translated + re.escape(pattern[at:]), re.DOTALL)


def _translated(part: str) -> str:
    if part.startswith("["):
        inner = part[1:-1].replace("\\", r"\\")
        return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
    return {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}[part]
