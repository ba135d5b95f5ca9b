"""Files of vectors: reading the user's own, and exporting those of the store.

Belongs here: formats. Does not: matching rows with samples (`own_vectors`). Nothing is unpickled.

| format | vectors are |
|---|---|
| .npy | the array |
| .npz, .safetensors | the array or tensor named by the column setting, else the only one besides the ids |
| .parquet, .arrow, .feather | a column of lists of floats, else the only one |
| folder of `datasets.save_to_disk` | the same |
| .json | a list of lists of numbers |
| folder of `0.json`, `1.json`, ... | the same in each, in the order of their numbers |

The last is what the paper's code (UmeanNever/NovelSum, embedding.py) writes.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import known_hash, replacing, write_table
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.pool.snapshot import PoolSnapshot

_FORMATS = (
    ".npy, .npz, .parquet, .arrow, .feather, .safetensors, .json, or a folder of datasets.save_to_disk or 0.json, …"
)
_UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException
)  # fmt: skip
"""Exceptions of the libraries for a damaged file."""
_WRITTEN = (".npy", ".npz", ".parquet", ".safetensors")


@dataclass(frozen=True, slots=True)
class VectorFile:
    """Vectors in a file or folder.

    Attributes:
        path: file or folder.
        files: the files read.
        vectors: float16, float32 or float64, (n, d); memory-mapped if the format allows it.
        ids: of the rows, as text, None for a row without one; None if no column of ids was named.
    """

    path: Path
    files: tuple[Path, ...]
    vectors: NDArray[np.floating[Any]]
    ids: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows as float32; values beyond its range become infinite."""
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.vectors[places], dtype=np.float32)

    def content_hash(self) -> str:
        """Return the SHA-256 of the file; for a folder, that of the list of its files as printed by `sha256sum`."""
        if self.files == (self.path,):
            return known_hash(self.path)
        lines = "".join(f"{known_hash(file)}  {file.relative_to(self.path).as_posix()}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


def read_vectors(path: Path, column: str | None = None, id_column: str | None = None) -> VectorFile:
    """Read a file or folder of vectors.

    Args:
        path: file or folder.
        column: array, tensor or column with the vectors; None takes the only one.
        id_column: array, tensor or column with the ids of the rows; None reads none.

    Raises:
        InputError: for a file that is missing, damaged or of another format; for missing or ambiguous columns; for
            vectors that differ in length or are not floats.
    """
    if path.is_dir():
        return _of_folder(path, column, id_column)
    if not path.is_file():
        raise InputError(f"embedding.vectors: {path}: no such file or folder")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"embedding.vectors: {path}: not one of the formats {_FORMATS}")
    vectors, ids = _guarded(path, lambda: reader(path, column, id_column))
    return VectorFile(path, (path,), _checked(path, vectors), ids)


def export_vectors(root: Path, snapshot: PoolSnapshot, vectors: VectorSet, path: Path) -> None:
    """Write the vectors of a pool to a file, float32, in pool order.

    Args:
        root: the storage folder.
        snapshot: the pool.
        vectors: its vectors.
        path: by its ending .npy, an array (n, d); .npz, arrays `id` and `vector`; .parquet, columns `id` and `vector`;
            .safetensors, a tensor `vector`, and in the metadata `id`, the ids as a JSON list.

    Raises:
        InputError: for another ending, or as `pool_vectors` does.
    """
    if path.suffix not in _WRITTEN:
        raise InputError(f"{path}: vectors are written to {', '.join(_WRITTEN)}")
    ids, found = pool_vectors(root, snapshot, vectors)
    if path.suffix == ".parquet":
        rows = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])
        write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": rows}), path)
        return
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file({"vector": found}, temporary, {"id": json.dumps(ids)})
            return
        with temporary.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, found, allow_pickle=False)
            else:
                np.savez(file, id=np.array(ids, dtype=np.str_), vector=found)


_Read = tuple[Any, list[str | None] | None]
"""Vectors, and ids if a column of ids was named."""


def _of_folder(path: Path, column: str | None, id_column: str | None) -> VectorFile:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_bytes()).get("splits", [])
        raise InputError(f"embedding.vectors: {path} has splits; name one, as {path / (splits or ['train'])[0]}")
    if (path / "state.json").is_file():
        return _of_saved_dataset(path, column, id_column)
    _refuse_names(path, column, id_column)
    files = [file for file in path.iterdir() if file.suffix == ".json" and not file.name.startswith(".")]
    if not files:
        raise InputError(f"embedding.vectors: {path}: not one of the formats {_FORMATS}")
    unnumbered = sorted(file.name for file in files if not file.stem.isdecimal())
    if unnumbered:
        raise InputError(
            f"embedding.vectors: {path} has {unnumbered[0]}, whose name is not a number, so its order is unknown; name"
            " the files 0.json, 1.json, …"
        )
    files.sort(key=lambda file: int(file.stem))
    parts = [_checked(file, _guarded(file, partial(_json, file, None, None))[0]) for file in files]
    widths = {part.shape[1]: file.name for file, part in zip(files, parts, strict=True)}
    if len(widths) > 1:
        said = ", ".join(f"{width:,} in {name}" for width, name in widths.items())
        raise InputError(f"embedding.vectors: {path}: vectors have different lengths: {said}")
    return VectorFile(path, tuple(files), np.concatenate(parts))


def _of_saved_dataset(path: Path, column: str | None, id_column: str | None) -> VectorFile:
    def read() -> tuple[tuple[Path, ...], _Read]:
        files = tuple(path / part["filename"] for part in json.loads((path / "state.json").read_bytes())["_data_files"])
        table = pa.concat_tables([_arrow_table(file) for file in files])
        return (path / "state.json", *files), _columns(path, table.schema, table.select, column, id_column)

    files, (vectors, ids) = _guarded(path, read)
    return VectorFile(path, files, _checked(path, vectors), ids)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Return the result of `read`.

    Raises:
        InputError: for a file that cannot be read in the format of its name.
    """
    from safetensors import SafetensorError

    try:
        return read()
    except InputError:
        raise
    except (*_UNREADABLE, SafetensorError) as error:
        raise InputError(f"embedding.vectors: {path} cannot be read: {error}") from error


def _npy(path: Path, column: str | None, id_column: str | None) -> _Read:
    _refuse_names(path, column, id_column)
    return np.load(path, mmap_mode="r", allow_pickle=False), None


def _npz(path: Path, column: str | None, id_column: str | None) -> _Read:
    with np.load(path, allow_pickle=False) as arrays:
        return _named(path, arrays.files, arrays.__getitem__, column, id_column)


def _safetensors(path: Path, column: str | None, id_column: str | None) -> _Read:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        return _named(path, list(tensors.keys()), tensors.get_tensor, column, id_column)


def _named(path: Path, names: list[str], get: Callable[[str], Any], column: str | None, id_column: str | None) -> _Read:
    name = _chosen(path, names, [name for name in names if name != id_column], column, "arrays")
    if id_column is None:
        return get(name), None
    _require_name(path, names, id_column, "embedding.vectors_id", "arrays")
    ids = get(id_column)
    if ids.ndim != 1 or len(ids) != len(get(name)):
        raise InputError(f"embedding.vectors_id: {path}: {id_column} is of shape {ids.shape}, not one id per vector")
    return get(name), _as_text(ids.tolist())


def _parquet(path: Path, column: str | None, id_column: str | None) -> _Read:
    return _columns(path, pq.read_schema(path), lambda names: pq.read_table(path, columns=names), column, id_column)


def _arrow(path: Path, column: str | None, id_column: str | None) -> _Read:
    table = _arrow_table(path)
    return _columns(path, table.schema, table.select, column, id_column)


def _arrow_table(path: Path) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:  # `datasets` writes streams.
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _columns(
    path: Path,
    schema: pa.Schema,
    read: Callable[[list[str]], pa.Table],
    column: str | None,
    id_column: str | None,
) -> _Read:
    fitting = [field.name for field in schema if _is_list_of_floats(field.type)]
    name = _chosen(path, schema.names, fitting, column, "columns")
    if name not in fitting:
        raise InputError(
            f"embedding.vectors_column: {path}: {name} is {schema.field(name).type}, not lists of float16, float32 or"
            " float64"
        )
    if id_column is None:
        return _of_lists(path, name, read([name])[name]), None
    _require_name(path, schema.names, id_column, "embedding.vectors_id", "columns")
    table = read([name, id_column])
    return _of_lists(path, name, table[name]), _as_text(table[id_column].to_pylist())


def _of_lists(path: Path, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
    lengths = np.array(pc.fill_null(pc.list_value_length(column), -1).to_numpy())
    width = int(lengths[0]) if len(lengths) else 0
    other = np.flatnonzero(lengths != width) if width >= 0 else np.array([0])
    if len(other):
        row = int(other[0])
        found = "null" if lengths[row] < 0 else f"{lengths[row]:,} numbers long, and the first {width:,}"
        raise InputError(f"embedding.vectors: {path}: {name} in row {row:,} (from 0) is {found}")
    parts = []
    for chunk in column.chunks:
        values = chunk.flatten()
        if values.null_count:
            raise InputError(f"embedding.vectors: {path}: {name} has nulls within its lists")
        parts.append(values.to_numpy(zero_copy_only=False).reshape(len(chunk), width))
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def _json(path: Path, column: str | None, id_column: str | None) -> _Read:
    _refuse_names(path, column, id_column)
    found = json.loads(path.read_bytes())
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        raise InputError(f"embedding.vectors: {path} is not a list of vectors, each a list of numbers")
    widths = [len(row) for row in found]
    if len(set(widths)) > 1:
        row = next(place for place, width in enumerate(widths) if width != widths[0])
        raise InputError(
            f"embedding.vectors: {path}: row {row:,} (from 0) is {widths[row]:,} numbers long, and the first"
            f" {widths[0]:,}"
        )
    with np.errstate(over="ignore"):
        # Via float64: the decimal digits of a float32 round-trip to the same float32.
        return np.array(found, dtype=np.float64).astype(np.float32), None


_READERS: Mapping[str, Callable[[Path, str | None, str | None], _Read]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".json": _json,
}


def _checked(path: Path, vectors: Any) -> NDArray[np.floating[Any]]:
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(f"embedding.vectors: {path} is of shape {vectors.shape}; one row per vector is needed, (n, d)")
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"embedding.vectors: {path} is of {vectors.dtype}; float16, float32 or float64 is needed")
    checked: NDArray[np.floating[Any]] = vectors
    return checked


def _chosen(path: Path, names: list[str], fitting: list[str], asked: str | None, what: str) -> str:
    if asked is not None:
        _require_name(path, names, asked, "embedding.vectors_column", what)
        return asked
    if len(fitting) != 1:
        raise InputError(
            f"embedding.vectors: {path} has {len(fitting)} {what} that may be the vectors, among {', '.join(names)};"
            " name one as embedding.vectors_column"
        )
    return fitting[0]


def _require_name(path: Path, names: list[str], name: str, setting: str, what: str) -> None:
    if name not in names:
        raise InputError(f"{setting}: {path} has no {name!r}; its {what} are {', '.join(names)}")


def _refuse_names(path: Path, column: str | None, id_column: str | None) -> None:
    for name, setting in ((column, "vectors_column"), (id_column, "vectors_id")):
        if name is not None:
            raise InputError(f"embedding.{setting}: {path} has rows of numbers without names; remove {setting}")


def _is_list_of_floats(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _as_text(ids: list[Any]) -> list[str | None]:
    """Return ids as text for comparison; numbers in their decimal notation."""
    return [None if id_ is None else str(id_) for id_ in ids]
