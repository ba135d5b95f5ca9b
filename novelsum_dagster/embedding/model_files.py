"""The files of a model named in the settings: a local folder, or a commit of a model on the hub, which is fetched.

Belongs here: fetching, which files are refused, the hash of all loadable files. Does not: loading a model
(`encoder`, `vllm_encoder`, `study.training`).
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import is_name, known_hash

_LOADED = (".safetensors", ".json", ".txt", ".model", ".codes")
"""Endings of weights, configurations and tokenizers; nothing else of a hub model is fetched."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ADAPTER = "adapter_config.json"


def model_folder(model: str, revision: str | None, setting: str) -> Path:
    """Return the folder of a model; a hub model is fetched at its commit, unless it was before.

    Args:
        model: local folder, else name on the hub.
        revision: commit of a hub model.
        setting: section of the settings that names the model, for errors.

    Raises:
        InputError: for a hub model that has no revision or cannot be fetched; for a folder without safetensors, or
            from which pickled weights or files outside of it might be loaded.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _fetched(model, revision, setting)
    _require_safe(folder, setting)
    return folder


def files_hash(folder: Path) -> str:
    """Return the SHA-256 of a model: of the list of its files, as printed by `sha256sum`, ordered by name.

    Files that are never loaded, such as a README, do not count. An unchanged file is read only once per process.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder) if path.suffix in _LOADED)
    lines = "".join(f"{known_hash(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _fetched(model: str, revision: str | None, setting: str) -> Path:
    if revision is None:
        raise InputError(
            f"{setting}.model: {model} is not a local folder; for a model on the hub, name its commit as"
            f" {setting}.revision, so that results can be reproduced"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # They would be drawn over ours.
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[f"*{ending}" for ending in _LOADED]))
    except Exception as error:  # The hub's client and its libraries raise errors of many types.
        raise InputError(f"{setting}.model: {model} at {revision} cannot be fetched from the hub: {error}") from error


def _require_safe(folder: Path, setting: str) -> None:
    problem = next(_problems(folder), None)
    if problem is not None:
        raise InputError(f"{setting}.model: {folder} {problem}")


def _problems(folder: Path) -> Iterator[str]:
    files = list(_files(folder))
    if not any(path.suffix == ".safetensors" for path in files):
        yield "has no .safetensors weights; pickled weights are not loaded"
    for path in files:
        name = path.relative_to(folder)
        if path.is_dir():
            if path.is_symlink():
                yield f"has a link to another folder, {name}; put a copy in its place"
        elif path.name == _ADAPTER:
            yield f"is an adapter ({name}) without its base model; merge it into the base model"
        elif path.suffix in _PICKLED and not _is_passed_over(path):
            yield f"has pickled weights, {name}, which are not loaded; save them as .safetensors, or delete them"
        else:
            yield from _led_out(path, name)


def _files(folder: Path) -> list[Path]:
    """Return all files in a folder, sorted, without hidden ones such as a checkout's `.git`."""
    found = sorted(folder.rglob("*"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _is_passed_over(pickled: Path) -> bool:
    """Return whether a pickled file is never loaded, because safetensors take precedence or it is OpenVINO's."""
    # Modules of sentence-transformers load only files of these two names.
    taken = "model.safetensors" if pickled.name == "pytorch_model.bin" else "*.safetensors"
    return pickled.name.startswith("openvino_") or any(pickled.parent.glob(taken))


def _led_out(path: Path, name: Path) -> Iterator[str]:
    try:
        outside = [other for other in _named_in(path) if not _is_within(other)]
    except (ValueError, KeyError, TypeError, AttributeError):
        yield f"has a damaged file, {name}"
    else:
        yield from (f"names {other!r} in {name}, which is not a file or folder of the model" for other in outside)


def _named_in(path: Path) -> list[Any]:
    """Return the files and folders from which a configuration loads a model."""
    if path.name == "modules.json":
        return [module["path"] for module in json.loads(path.read_bytes())]
    if path.name == "router_config.json":
        return list(json.loads(path.read_bytes())["types"])
    if path.name.endswith(".index.json"):
        return list(json.loads(path.read_bytes())["weight_map"].values())
    return []


def _is_within(name: Any) -> bool:
    """Return whether a name stays in the folder and is not hidden; an empty name is the folder itself."""
    return name == "" or (isinstance(name, str) and is_name(name) and "/." not in f"/{name}")
