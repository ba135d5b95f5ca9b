"""The command that tells what a curation needs before it starts: `novelsum plan`.

Belongs here: its arguments, how large the pool and the vectors are, table and JSON. Does not: what steps need (`plan`).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from novelsum_dagster.errors import InputError
from novelsum_dagster.memory import readable_bytes
from novelsum_dagster.settings import Embedding, Settings
from novelsum_dagster.terminal import AsJson, SettingsFile, say, settings_in

if TYPE_CHECKING:
    from novelsum_dagster.plan import Need, Room, Size


def plan(
    samples: Annotated[int | None, typer.Option(min=1, help="Samples in the pool. Default: counted.")] = None,
    dimension: Annotated[int | None, typer.Option(min=1, help="Of a vector. Default: the model's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers. Default: the settings'.")] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell what each step needs, in memory, on the GPU and on disk, and whether it fits here.

    Steps refuse work that would not fit; this tells it before the first one starts.

    Example: [bold]novelsum plan --samples 396000 --dimension 4096[/]
    """
    from novelsum_dagster.plan import Size, room
    from novelsum_dagster.plan import plan as planned

    chosen = settings_in(settings)
    counted, text = (samples, None) if samples is not None else _pool_size(chosen)
    size = Size(counted, dimension or _dimension(chosen), text, _weights(chosen.embedding))
    asked = workers or (chosen.ray.workers if chosen.engine == "ray" else 1)
    needs, there = planned(size, chosen, asked), room(chosen)
    if as_json:
        print(json.dumps(_as_json(size, asked, needs, there), indent=2))
    else:
        _print(size, asked, needs, there)


def _pool_size(settings: Settings) -> tuple[int, int | None]:
    """Return the samples of the pool as it was read last, else the records of its sources; bytes of their texts."""
    from novelsum_dagster.pool.ingest import count_records
    from novelsum_dagster.pool.snapshot import PoolSnapshot
    from novelsum_dagster.storage.outputs import handle_name

    root = settings.storage_path
    newest = root / handle_name("raw_pool")
    if newest.exists():
        snapshot = PoolSnapshot.model_validate_json(newest.read_bytes())
        if (root / snapshot.folder).is_dir():
            characters = snapshot.samples(root, ["characters"])["characters"]
            return snapshot.kept, sum(characters.to_pylist())
    say("counting the records of the sources")
    count = count_records(settings.pool.sources, settings.base)
    if not count:
        raise InputError("pool.sources: no records to plan for; list sources, or give --samples")
    return count, None


def _dimension(settings: Settings) -> int:
    """Return the length of the model's vectors, as its last vectors or its configuration have it.

    Raises:
        InputError: where the configuration cannot be read, or does not say.
    """
    from novelsum_dagster.embedding.encoder import identify, model_location
    from novelsum_dagster.files import read_json

    made = settings.storage_path / "vectors" / identify(settings.embedding).key / "model.json"
    if made.exists():
        return int(read_json(made)["dimension"])
    location = model_location(settings.embedding)
    if isinstance(location, Path):
        dense = sorted(location.glob("*_Dense/config.json"))
        if dense:
            return int(read_json(dense[-1])["out_features"])
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(location), revision=settings.embedding.revision, trust_remote_code=False
        )
        return int(config.get_text_config().hidden_size)
    except Exception as error:  # A damaged configuration raises many kinds.
        raise InputError(
            f"the dimension of {settings.embedding.model} is not known ({error}); give --dimension"
        ) from None


def _weights(embedding: Embedding) -> int:
    """Return the bytes of a model's files of weights; 0 for one that is not in a folder here."""
    from novelsum_dagster.embedding.encoder import model_location

    location = model_location(embedding)
    return sum(path.stat().st_size for path in location.glob("*.safetensors")) if isinstance(location, Path) else 0


def _as_json(size: "Size", workers: int, needs: "list[Need]", there: "Room") -> dict[str, Any]:
    return {
        "samples": size.samples,
        "dimension": size.dimension,
        "workers": workers,
        "available": asdict(there),
        "steps": [{**asdict(need), "fits": there.fits(need)} for need in needs],
    }


def _print(size: "Size", workers: int, needs: "list[Need]", there: "Room") -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{size.samples:,} samples, vectors of {size.dimension:,} dimensions"
    table = Table(title=title, title_justify="left")
    own = f"each of {workers} workers" if workers > 1 else "a worker"
    for name in ("step", "memory", own, "GPU", "disk", "fits here"):
        table.add_column(name, justify="left" if name in ("step", "fits here") else "right")
    for need in needs:
        shown = (_shown(value) for value in (need.memory, need.worker, need.device, need.disk))
        table.add_row(need.step, *shown, "yes" if there.fits(need) else "no")
    table.add_section()
    table.add_row("there is", _shown(there.memory), "", _shown(there.device), _shown(there.disk), "")
    Console().print(table)
    if any(not there.fits(need) for need in needs):
        say("A step that does not fit refuses before it works; docs/gpu.md says what makes it smaller.")


def _shown(size: int | None) -> str:
    return "-" if size is None else readable_bytes(size)
