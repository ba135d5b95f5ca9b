"""Garbage collection of a storage folder: `novelsum gc`.

Belongs here: what is in use, what is not, removing it so that a kill at any moment does no harm. Does not: the rows
that record whose data was removed (`store`), detecting live runs (`liveness`), messages (`cli.gc`).

In use is what the newest artifacts and the kept runs name, by key or by file. Removal has three steps, each safe by
itself: the lineage records whose data will be removed; every path gets a hidden name, records before the data that they
name; the hidden paths are deleted. After a kill, the next gc resumes. A path is opened component by component from
the storage folder, so that no link leads out of it. Unknown files are left alone.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from novelsum_dagster.artifacts.layout import OUTPUTS, RECORDS, newest_file, outputs_glob
from novelsum_dagster.artifacts.provenance import Provenance
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import KEY_LENGTH, content_key, read_json
from novelsum_dagster.common.liveness import live_runs
from novelsum_dagster.embedding.store import shards_with
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.settings import Retention

LEFTOVER_AGE = timedelta(hours=1)
"""Younger temporary files are never touched: another process may be writing them."""
KINDS = (
    "records",
    "checks",
    *(name for name in OUTPUTS if name != "pool"),
    "vectors",
    "pool",
    "checkpoints",
    "leftovers",
)
"""In the order of removal: records before the data that they name."""
_TABLES = ("runs", "run_outputs", "steps", "selections", "embeddings", "provenance")
_RUN_KEYS = ("snapshot", "vectors", "density", "novelty", "selection", "report")
"""Columns of `run_outputs`, in the order of the key of the asset `lineage`."""
_KEY = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")
_ENTRY = re.compile(rf"(?:(\w+)=)?({_KEY.pattern})(?:\.\w+)?")
_LEFT_BY_THE_DEAD = re.compile(r"\.building-.+|\..+\.tmp(\.wal)?")
_HIDDEN = ".removing"
_STUDY = "study"


@dataclass(frozen=True)
class Item:
    """A file or folder to be removed: its kind, its path in the storage folder, its bytes."""

    kind: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What gc would remove.

    Attributes:
        items: in the order of removal.
        runs: runs that lose data, oldest first.
        kept: runs whose data is kept, newest first.
        live: runs in progress; nothing is removed while there are any.
    """

    items: tuple[Item, ...]
    runs: tuple[str, ...]
    kept: tuple[str, ...]
    live: tuple[str, ...]

    def totals(self) -> dict[str, tuple[int, int]]:
        """Return (count, bytes) of each kind with at least one item."""
        sizes_of = {kind: [item.bytes for item in self.items if item.kind == kind] for kind in KINDS}
        return {kind: (len(sizes), sum(sizes)) for kind, sizes in sizes_of.items() if sizes}


@dataclass
class _Runs:
    """The rows of the lineage, by table; runs that have only a run file are added."""

    tables: dict[str, list[dict[str, Any]]]
    retention: Retention
    now: datetime
    live: tuple[str, ...]

    @cached_property
    def finished(self) -> list[dict[str, Any]]:
        """Rows of runs that ended with a subset and have their data, newest first."""
        rows = [
            {**row, "started_at": self.started[row["run_id"]]}
            for row in self.tables["run_outputs"]
            if row["run_id"] in self.started and row.get("data_removed_at") is None
        ]
        return sorted(rows, key=lambda row: (row["started_at"], row["run_id"]), reverse=True)

    @cached_property
    def started(self) -> dict[str, datetime]:
        """Start time of each run."""
        return {row["run_id"]: _as_time(row["started_at"]) for row in self.tables["runs"]}

    @cached_property
    def kept(self) -> list[dict[str, Any]]:
        """The rows of finished runs that keep their data: the newest always does."""
        runs, days = self.retention.runs, self.retention.days
        if runs is None and days is None:
            return self.finished
        since = None if days is None else self.now - timedelta(days=days)
        return [
            row
            for place, row in enumerate(self.finished)
            if place < (runs or 1) or (since is not None and row["started_at"] >= since)
        ]

    @cached_property
    def settled(self) -> float:
        """Start of the newest finished run, in seconds; interrupted work from before then is never resumed."""
        return self.finished[0]["started_at"].timestamp() if self.finished else 0.0


@dataclass
class _InUse:
    """What artifacts and kept runs name: keys of outputs, files and folders in the storage folder."""

    root: Path
    keys: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)

    @cached_property
    def ids(self) -> set[str]:
        """Ids of the samples of all pools that are kept."""
        found: set[str] = set()
        for path in self.root.glob(outputs_glob("pool", "samples.parquet")):
            if path.parent.name.partition("=")[2] in self.keys:
                found.update(_ids(path))
        return found

    @cached_property
    def tops(self) -> set[str]:
        """Paths of two components, e.g. `pool/snapshot=<key>`, in which a file is named."""
        return {"/".join(name.split("/")[:2]) for name in (*self.files, *self.places)}

    def follow(self, keys: set[str]) -> None:
        """Add outputs and, from their records, their files and inputs."""
        records: dict[str, list[Path]] = {}
        for path in self.root.glob(f"{RECORDS}/*/*.json"):
            records.setdefault(path.stem, []).append(path)
        waiting = deque(keys - self.keys)
        while waiting:
            key = waiting.popleft()
            self.keys.add(key)
            for path in records.get(key, ()):
                waiting.extend(self.add_record(read_record_file(path)) - self.keys)

    def add_record(self, made: Provenance) -> set[str]:
        """Add the files of a record; return the keys that it names."""
        self.files.update(made.files)
        self.models.update("/".join(name.split("/")[:2]) for name in made.files if name.startswith("vectors/"))
        return {made.output, *made.inputs.values()} & set(_keys([made.output, *made.inputs.values()]))


def plan(
    store: LineageStore, retention: Retention, now: datetime | None = None, leftover_age: timedelta = LEFTOVER_AGE
) -> Plan:
    """Return what gc would remove; changes nothing.

    Args:
        store: of the storage.
        retention: which finished runs keep their data.
        now: the time from which days count.
        leftover_age: age from which temporary files count as those of killed processes.

    Raises:
        InputError: if there is no lineage, or a file that decides what is in use is damaged.
    """
    root, live = store.root, tuple(live_runs(store.root))
    runs = _Runs(store.tables(_TABLES), retention, now or datetime.now(UTC), live)
    used = _in_use(root, runs)
    items = [
        *_named_items(root, used),
        *_outputs(root, used),
        *_vectors(root, used, runs.settled),
        *_checkpoints(root, runs.settled),
    ]
    items += _leftovers(root, leftover_age, {item.path for item in items})
    kept = tuple(row["run_id"] for row in runs.kept)
    lost = [row["run_id"] for row in reversed(runs.finished) if row["run_id"] not in kept and _loses(row, used, runs)]
    ordered = sorted(items, key=lambda item: (KINDS.index(item.kind), item.path))
    return Plan(
        tuple(ordered), tuple(lost), tuple(row["run_id"] for row in runs.finished if row["run_id"] in kept), live
    )


def collect(
    store: LineageStore, retention: Retention, now: datetime | None = None, leftover_age: timedelta = LEFTOVER_AGE
) -> Plan:
    """Remove what `plan` returns, and return it. A run that starts meanwhile waits.

    Raises:
        InputError: while a run is live, if something cannot be removed, or as `plan` does.
    """
    store.tables(())  # Without a lineage nothing is touched, not even a lock.
    try:
        with store.exclusive():
            found = plan(store, retention, now, leftover_age)
            if found.live:
                raise InputError(
                    f"run {', '.join(found.live)} is live: its process uses this storage. Nothing was removed; try"
                    " again when it has ended"
                )
            going = [item for item in found.items if not item.path.endswith(_HIDDEN)]
            if going or found.runs:
                with store.removing(found.runs):
                    for item in going:
                        _hide(store.root, item.path)
        for path in _hidden(store.root):
            _delete(store.root, path)
    except OSError as error:
        raise InputError(f"{store.root}: {error}; the next gc removes the rest") from error
    return found


def read_record_file(path: Path) -> Provenance:
    """Read a record.

    Raises:
        InputError: if it is damaged: the files that it names would look unused.
    """
    with _undamaged(path):
        return Provenance.model_validate_json(path.read_bytes())


@contextmanager
def _undamaged(path: Path, unknown: str = "what it names is") -> Iterator[None]:
    """Raise an InputError instead of any error of reading a file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged ({reason}), so {unknown} unknown; nothing was removed") from error


def _in_use(root: Path, runs: _Runs) -> _InUse:
    used = _InUse(root)
    kept = {row["run_id"] for row in runs.kept}
    keys = {row[name] for row in runs.kept for name in _RUN_KEYS}
    keys |= {content_key([row[name] for name in _RUN_KEYS]) for row in runs.kept}
    keys |= {row["output"] for row in runs.tables["steps"] if row["run_id"] in {*kept, *runs.live} and row["output"]}
    for row in runs.tables["provenance"]:
        if row["run_id"] in kept:
            keys |= used.add_record(Provenance.model_validate_json(row["record"]))
    for path in sorted(root.glob("assets/**/*.json")):
        artifact = _json(path)
        keys.update(_keys(artifact))
        places = (artifact.get(name) for name in ("folder", "file", "transformed_from"))
        used.places.update(place for place in places if isinstance(place, str))
    used.follow(keys)
    used.models |= {row["folder"] for row in runs.tables["embeddings"] if row["vectors"] in used.keys}
    used.models |= {place for place in used.places if place.startswith("vectors/")}
    used.keys |= _cards(root, used.keys)
    # Of a subset that is extended, the picks are needed, but not its pool.
    used.keys |= _extended(root, runs, used.keys)
    return used


def _extended(root: Path, runs: _Runs, keys: set[str]) -> set[str]:
    options = [row.get("options") or "{}" for row in runs.tables["selections"] if row["selection"] in keys]
    found = {json.loads(text).get(EXTENDS) for text in options}
    newest = root / newest_file("selected_subset")
    if newest.exists():
        found.add(_json(newest).get("settings", {}).get("options", {}).get(EXTENDS))
    return found - {None}


def _cards(root: Path, keys: set[str]) -> set[str]:
    """Return the cards of subsets that are kept."""
    records = [read_record_file(path) for path in root.glob(f"{RECORDS}/data_card/*.json")]
    return {made.output for made in records if made.inputs.get("selected_subset") in keys}


def _loses(row: Mapping[str, Any], used: _InUse, runs: _Runs) -> bool:
    """Return whether a run has data that is not in use."""
    folders = {one["folder"] for one in runs.tables["embeddings"] if one["vectors"] == row["vectors"]}
    return any(row[name] not in used.keys for name in _RUN_KEYS if name != "vectors") or not folders <= used.models


def _named_items(root: Path, used: _InUse) -> Iterator[Item]:
    """Yield records, verdicts and listings of outputs that are not in use; those of studies are kept."""
    yield from _unused(root, "landing", "pool", used)
    for kind, folder in (("records", RECORDS), ("checks", "checks")):
        for asset in _entries(root, folder):
            if asset.is_dir(follow_symlinks=False) and not asset.name.startswith(_STUDY):
                yield from _unused(root, f"{folder}/{asset.name}", kind, used)


def _unused(root: Path, folder: str, kind: str, used: _InUse) -> Iterator[Item]:
    for entry in _entries(root, folder):
        found = _ENTRY.fullmatch(entry.name)
        if found and found[2] not in used.keys:
            yield _item(root, kind, f"{folder}/{entry.name}")


def _outputs(root: Path, used: _InUse) -> Iterator[Item]:
    for folder, name in OUTPUTS.items():
        for entry in _entries(root, folder):
            found, path = _ENTRY.fullmatch(entry.name), f"{folder}/{entry.name}"
            if not found or path in used.tops:
                continue
            is_double = found[1] not in (None, name) and (root / folder / f"{name}={found[2]}").exists()
            if is_double or found[2] not in used.keys:
                yield _item(root, folder, path)


def _vectors(root: Path, used: _InUse, settled: float) -> Iterator[Item]:
    for model in _entries(root, "vectors"):
        folder, path = f"vectors/{model.name}", root / "vectors" / model.name
        if not model.is_dir(follow_symlinks=False) or not (path / "model.json").is_file():
            continue
        if folder not in used.models:
            if _newest(path) < settled:
                yield _item(root, "vectors", folder)
            continue
        names = [entry.name for entry in _entries(root, folder) if entry.name.endswith(".parquet")]
        old = [
            name for name in names if f"{folder}/{name}" not in used.files and (path / name).lstat().st_mtime < settled
        ]
        if old:
            needed = {shard.name for shard in shards_with([path / name for name in old], used.ids)}
            yield from (_item(root, "vectors", f"{folder}/{name}") for name in old if name not in needed)


def _checkpoints(root: Path, settled: float) -> Iterator[Item]:
    for entry in _entries(root, "checkpoints"):
        if _ENTRY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < settled:
            yield _item(root, "checkpoints", f"checkpoints/{entry.name}")


def _leftovers(root: Path, age: timedelta, taken: set[str]) -> Iterator[Item]:
    oldest = time.time() - age.total_seconds()
    for path in [*_walk(root), *_hidden(root)]:
        within = {"/".join(path.split("/")[:count]) for count in range(1, path.count("/") + 2)}
        if not within & taken and (path.endswith(_HIDDEN) or _newest(root / path) < oldest):
            yield _item(root, "leftovers", path)


def _walk(root: Path, pattern: re.Pattern[str] = _LEFT_BY_THE_DEAD) -> Iterator[str]:
    """Yield all paths whose name matches, in the folders known to gc, without paths inside of them."""
    known = {*OUTPUTS, "assets", "checkpoints", "checks", "landing", "runs", "vectors", RECORDS}
    waiting = deque([("", entry) for entry in _entries(root, "")])
    while waiting:
        folder, entry = waiting.popleft()
        path = f"{folder}{entry.name}"
        if entry.is_symlink():
            continue
        if pattern.fullmatch(entry.name):
            yield path
        elif entry.is_dir(follow_symlinks=False) and path.split("/")[0] in known:
            waiting.extend((f"{path}/", inner) for inner in _entries(root, path))


def _hidden(root: Path) -> list[str]:
    """Return the paths hidden by this gc or an earlier one."""
    return list(_walk(root, re.compile(rf"\..+{re.escape(_HIDDEN)}")))


def _entries(root: Path, folder: str) -> "list[os.DirEntry[str]]":
    """Return the entries of a folder by name, without links; none if it or a parent is not a folder or is a link."""
    try:
        with _folder(root, folder), os.scandir(root / folder) as found:
            return sorted((entry for entry in found if not entry.is_symlink()), key=lambda entry: entry.name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise


@contextmanager
def _folder(root: Path, folder: str) -> Iterator[int]:
    """Open a folder in the storage folder component by component, following no link."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in filter(None, folder.split("/")):
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _hide(root: Path, path: str) -> None:
    """Rename a path to a hidden name, which readers ignore."""
    folder, _, name = path.rpartition("/")
    with _folder(root, folder) as handle, suppress(FileNotFoundError):
        hidden = f".{name.lstrip('.')}.{secrets.token_hex(4)}{_HIDDEN}"
        os.rename(name, hidden, src_dir_fd=handle, dst_dir_fd=handle)


def _delete(root: Path, path: str) -> None:
    folder, _, name = path.rpartition("/")
    with suppress(FileNotFoundError), _folder(root, folder) as handle:
        if stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=handle)
        else:
            os.unlink(name, dir_fd=handle)


def _item(root: Path, kind: str, path: str) -> Item:
    return Item(kind, path, sum(status.st_size for status in _statuses(root / path) if stat.S_ISREG(status.st_mode)))


def _newest(path: Path) -> float:
    """Return the time of the last change within a path, in seconds."""
    return max((status.st_mtime for status in _statuses(path)), default=time.time())


def _statuses(path: Path) -> Iterator[os.stat_result]:
    with suppress(FileNotFoundError):
        yield path.lstat()
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                yield (Path(folder) / name).lstat()


def _keys(value: Any) -> Iterator[str]:
    """Yield every key in a JSON value, except that of an extended subset."""
    if isinstance(value, str):
        if _KEY.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name != EXTENDS:
                yield from _keys(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _keys(inner)


def _ids(path: Path) -> list[str]:
    with _undamaged(path, "the vectors in use are"):
        ids: list[str] = pq.read_table(path, columns=["id"], partitioning=None)["id"].to_pylist()
        return ids


def _json(path: Path) -> dict[str, Any]:
    with _undamaged(path):
        value: dict[str, Any] = read_json(path)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return value


def _as_time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
