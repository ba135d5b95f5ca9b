"""The newest artifact of each asset: `assets/<asset>.json`, or of a partition `assets/<asset>/<partition>.json`.

Belongs here: reading it. Does not: its path (`layout`), writing it (`defs.io_manager`), sending it (`outputs`).
"""

from pathlib import Path
from typing import TypeVar

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import newest_file
from novelsum_dagster.common.errors import InputError

AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)


def read_newest(root: Path, asset: str, kind: type[AnyArtifact], partition: str | None = None) -> AnyArtifact:
    """Return an asset's newest artifact, or that of one partition.

    Raises:
        InputError: if the asset is not materialised yet, or the file is damaged.
    """
    found = newest_or_none(root, asset, kind, partition)
    if found is None:
        what = f"{asset}, partition {partition}," if partition else asset
        raise InputError(f"{what} is not materialised yet; materialise it first")
    return found


def newest_or_none(root: Path, asset: str, kind: type[AnyArtifact], partition: str | None = None) -> AnyArtifact | None:
    """Return an asset's newest artifact; None if the asset is not materialised yet.

    Raises:
        InputError: if the file is damaged.
    """
    path = root / newest_file(asset, partition)
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged or from another version ({error}); materialise {asset} again") from error
