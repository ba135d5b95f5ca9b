"""How a step's small result reaches the next: as JSON under `assets/`, never as a pickle.

Belongs here: the IO manager and its files. Does not: bulk data, which steps write themselves and handles name.
"""

from pathlib import Path
from typing import TypeVar

import dagster as dg

from novelsum_dagster.files import write_bytes
from novelsum_dagster.pool.snapshot import Handle

AnyHandle = TypeVar("AnyHandle", bound=Handle)


def read_handle(root: Path, asset: str, kind: type[AnyHandle]) -> AnyHandle:
    """Return an asset's newest handle.

    Raises:
        dg.Failure: where the asset is not materialised yet, or its file is damaged.
    """
    path = _path(root, asset)
    if not path.exists():
        raise dg.Failure(f"{asset} is not materialised yet; materialise it first", allow_retries=False)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise dg.Failure(
            f"{path} is damaged or from another version ({error}); materialise {asset} again", allow_retries=False
        ) from error


class HandleIOManager(dg.IOManager):
    """Keeps the newest handle of each asset in `root/assets/<asset>.json`, written atomically.

    Args:
        root: the storage folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def handle_output(self, context: dg.OutputContext, obj: Handle) -> None:
        """Write a handle."""
        path = _path(self._root, context.asset_key.to_user_string())
        write_bytes((obj.model_dump_json(indent=2) + "\n").encode(), path)

    def load_input(self, context: dg.InputContext) -> Handle:
        """Read the handle that the input's type annotation names."""
        kind: type[Handle] = context.dagster_type.typing_type
        return read_handle(self._root, context.asset_key.to_user_string(), kind)


def _path(root: Path, asset: str) -> Path:
    return root / "assets" / f"{asset}.json"
