"""Hugging Face datasets as Arrow record batches: from the hub, from folders of files, and saved ones.

Belongs here: configurations, splits and parts of them, and which files a dataset may name. Does not: rows
(`table_reader`).
"""

from collections.abc import Iterable, Iterator, Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

import pyarrow as pa

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.table_reader import ROWS_PER_BATCH

_NO_CONFIG = "Config name is missing"


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`: a dataset or a dictionary of them by split."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def dataset_batches(name: str, split: str, revision: str | None, config: str | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Hugging Face dataset (hub name, folder of files, or saved dataset) as record batches.

    Args:
        name: hub name or folder.
        split: name of a split, or parts of splits, as `train[:10%]` and `train+test`; such parts of a dataset that is
            not saved are made in the cache of `datasets` first.
        revision: commit or tag on the hub.
        config: name of the configuration, where there are several.

    Raises:
        InputError: if the dataset, its configuration or the split cannot be loaded, or it names files outside of its
            folder.
    """
    import datasets

    try:
        parts = _saved(name, split, config) if is_saved_dataset(Path(name)) else _built(name, split, revision, config)
        for part in parts:
            for table in part.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
                yield from table.to_batches()
    except InputError:
        raise
    # TypeError: files of unlike columns.
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        is_build = isinstance(error, datasets.exceptions.DatasetBuildError)
        said = " ".join(str(error.__cause__ or error if is_build else error).split())
        raise InputError(f"dataset {name}, split {split}: cannot be loaded: {said}") from error


def first_outside(files: Iterable[Path], folder: Path) -> Path | None:
    """Return the first file that is not in a folder once links are followed."""
    within = realpath(folder)  # Path.resolve raises where a link leads to itself.
    return next((file for file in files if not Path(realpath(file)).is_relative_to(within)), None)


def _is_part(split: str) -> bool:
    return "[" in split or "+" in split


def _saved(name: str, split: str, config: str | None) -> Iterator[Any]:
    import datasets

    if config is not None:
        raise InputError(f"dataset {name}: was written by save_to_disk and has no configurations; remove config")
    loaded = datasets.load_from_disk(name, keep_in_memory=False)  # In memory, it would not list its files.
    has_splits = isinstance(loaded, datasets.DatasetDict)
    names = [part.partition("[")[0].strip() for part in split.split("+")] if _is_part(split) else [split]
    missing = [part for part in names if has_splits and part not in loaded]
    if missing:
        raise InputError(f"dataset {name}: no split {missing[0]}; it has {', '.join(loaded)}")
    found = {part: loaded[part] if has_splits else loaded for part in names}
    for data in found.values():
        _require_within(name, [file["filename"] for file in data.cache_files])
    if not _is_part(split):
        yield found[split]
        return
    sizes = {part: len(data) for part, data in found.items()}
    for rows in datasets.ReadInstruction.from_spec(split).to_absolute(sizes):
        size = sizes[rows.splitname]
        yield found[rows.splitname].select(range(rows.from_ or 0, size if rows.to is None else rows.to))


def _built(name: str, split: str, revision: str | None, config: str | None) -> Iterator[Any]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    except ValueError as error:
        if _NO_CONFIG not in str(error):
            raise
        names = ", ".join(datasets.get_dataset_config_names(name, revision=revision))
        raise InputError(f"dataset {name}: has several configurations ({names}); choose one with config:") from None
    _require_within(name, [file for files in (builder.config.data_files or {}).values() for file in files])
    if not _is_part(split):
        yield builder.as_streaming_dataset(split=split)
        return
    datasets.disable_progress_bars()
    builder.download_and_prepare()
    yield builder.as_dataset(split=split)


def _require_within(name: str, files: Sequence[str]) -> None:
    """Refuse files outside of the dataset's folder; for a hub dataset, any file on this machine."""
    if Path(name).is_dir():
        # Addresses, such as `https://` and `zip://a::b`, are not paths.
        outside = [file for file in files if "://" in file or first_outside([Path(file)], Path(name))]
    else:
        outside = [file for file in files if not file.startswith("hf://")]
    if outside:
        raise InputError(f"dataset {name}: names {outside[0]}, which is not in its folder; copy it there, or remove it")
