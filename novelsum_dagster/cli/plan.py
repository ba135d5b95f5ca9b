"""The command `novelsum plan`, which estimates what a curation needs before it starts.

Belongs here: its arguments, the size of pool and vectors, table and JSON. Does not: what steps need (`needs`).
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from novelsum_dagster.cli.terminal import AsJson, SettingsFile, print_json, print_table, say, settings_in
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.memory import readable_bytes
from novelsum_dagster.common.progress import counted
from novelsum_dagster.settings import PACKAGED_MODEL, Embedding, Settings

if TYPE_CHECKING:
    from novelsum_dagster.cli.needs import Need, Room, Size

_UNKNOWN = "unknown until downloaded"
"""Shown as the need of a step for a model that is not downloaded yet."""


def plan(
    samples: Annotated[int | None, typer.Option(min=1, help="Samples in the pool. Default: counted.")] = None,
    dimension: Annotated[int | None, typer.Option(min=1, help="Of a vector. Default: the model's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers to plan for, with the engine ray. Default: the settings'.")
    ] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what each step needs in memory, on the GPU and on disk, and whether it fits on this machine.

    Steps refuse work that would not fit; this command reports it before the first one starts.

    Example: [bold]novelsum plan --samples 396000 --dimension 4096[/]
    """
    from novelsum_dagster.cli.needs import Size, room
    from novelsum_dagster.cli.needs import plan as planned

    chosen = settings_in(settings)
    number, text = (samples, None) if samples is not None else _pool_size(chosen)
    by_model = chosen.embedding.vectors is None
    folder = _model_folder(chosen.embedding) if by_model else None
    size = Size(number, dimension or _dimension(chosen, folder), text, _weights(folder) if by_model else 0)
    if workers is not None:
        chosen = chosen.model_copy(update={"engine": "ray"})
    asked = workers or (chosen.ray.workers if chosen.engine == "ray" else 1)
    needs, there = planned(size, chosen, asked), room(chosen, asked)
    if as_json:
        print_json(_as_json(size, asked, needs, there))
    else:
        _print(size, asked if chosen.engine == "ray" else None, needs, there)


def _pool_size(settings: Settings) -> tuple[int, int | None]:
    """Return the number of samples in the newest snapshot, else of records in the sources, and their texts' bytes."""
    from novelsum_dagster.artifacts.newest import newest_or_none
    from novelsum_dagster.pool.buckets import is_in_bucket
    from novelsum_dagster.pool.ingest import count_records
    from novelsum_dagster.pool.landing import list_sources
    from novelsum_dagster.pool.snapshot import PoolSnapshot

    root = settings.storage_path
    snapshot = newest_or_none(root, "raw_pool", PoolSnapshot)
    if snapshot is not None and (root / snapshot.folder).is_dir():
        try:
            list_sources([one for one in settings.pool.sources if not is_in_bucket(one.path)], settings.base)
        except InputError as error:
            say(f"warning: these are the figures of the stored pool; a run would not find its sources: {error}")
        characters = snapshot.samples(root, ["characters"])["characters"]
        return snapshot.kept, sum(characters.to_pylist())
    say("counting the records of the sources")
    count = count_records(settings.pool.sources, settings.base)
    if not count:
        raise InputError("pool.sources: no records to plan for; list sources, or give --samples")
    return count, None


def _model_folder(embedding: Embedding) -> Path | None:
    """Return the folder of the model; None for a hub model that is not downloaded, or only in part.

    Raises:
        InputError: for a hub model without a revision, or a folder without a model.
    """
    from novelsum_dagster.common.files import read_json
    from novelsum_dagster.embedding.encoder import model_location

    is_here = embedding.model == PACKAGED_MODEL or Path(embedding.model).expanduser().is_dir()
    if is_here or embedding.revision is None:
        return model_location(embedding)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(embedding.model, revision=embedding.revision, local_files_only=True))
    except (OSError, ValueError):  # Raised by the hub's client if the model is not downloaded.
        return None
    index = folder / "model.safetensors.index.json"
    weights = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return folder if all((folder / name).exists() for name in weights) else None


def _dimension(settings: Settings, folder: Path | None) -> int:
    """Return the dimension of the model's vectors, from its newest vectors or its configuration.

    Args:
        settings: that name the model.
        folder: of the model; None downloads its configuration from the hub.

    Raises:
        InputError: if the configuration cannot be read, or lacks the dimension.
    """
    from novelsum_dagster.common.files import read_json
    from novelsum_dagster.embedding.encoder import identify
    from novelsum_dagster.embedding.vector_files import read_vectors

    own = settings.embedding
    if own.vectors is not None:
        path = settings.base / Path(own.vectors).expanduser()
        return int(read_vectors(path, own.vectors_column, own.vectors_id).vectors.shape[1])
    if folder is not None:
        made = settings.storage_path / "vectors" / identify(settings.embedding).key / "model.json"
        if made.exists():
            return int(read_json(made)["dimension"])
        dense = sorted(folder.glob("*_Dense/config.json"))
        if dense:
            return int(read_json(dense[-1])["out_features"])
    from transformers import AutoConfig

    model = settings.embedding.model
    try:
        config = AutoConfig.from_pretrained(
            str(folder or model),
            revision=settings.embedding.revision,
            local_files_only=folder is not None,
            trust_remote_code=False,
        )
        return int(config.get_text_config().hidden_size)
    except Exception as error:  # A damaged configuration raises errors of many types.
        raise InputError(f"the dimension of {model} is unknown ({error}); give --dimension") from None


def _weights(folder: Path | None) -> int | None:
    """Return the bytes of a model's weight files; None for a model that is not downloaded."""
    return None if folder is None else sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _as_json(size: "Size", workers: int, needs: "list[Need]", there: "Room") -> dict[str, Any]:
    return {
        "samples": size.samples,
        "dimension": size.dimension,
        "workers": workers,
        "available": asdict(there),
        "steps": [{**asdict(need), "fits": there.fits(need)} for need in needs],
    }


def _print(size: "Size", workers: int | None, needs: "list[Need]", there: "Room") -> None:
    own = () if workers is None else (f"each of {counted(workers, 'worker')}",)
    uses_gpu = any(need.device is not None for need in needs)
    rows = []
    for need in needs:
        over = "" if need.is_known else "over "
        memory, worker = over + _shown(need.memory), over * (need.worker is not None) + _shown(need.worker)
        gpu = _UNKNOWN if uses_gpu and not need.is_known else _shown(need.device)
        fits = "no" if not there.fits(need) else "yes" if need.is_known else _UNKNOWN
        rows.append((need.step, memory, *([worker] * len(own)), gpu, _shown(need.disk), fits))
    blank = [""] * len(own)
    print_table(
        f"{size.samples:,} samples, vectors of {size.dimension:,} dimensions",
        ("step", "memory", *own, "GPU", "disk", "fits here"),
        rows,
        text=("step", "fits here"),
        totals=[
            ("all", "", *blank, "", _shown(sum(need.disk for need in needs)), ""),
            ("available", _shown(there.memory), *blank, _shown(there.device), _shown(there.disk), ""),
        ],
    )
    if any(not there.fits(need) for need in needs):
        say("A step that does not fit fails before it starts work; docs/gpu.md explains how to reduce its needs.")


def _shown(size: int | None) -> str:
    return "-" if size is None else readable_bytes(size)
