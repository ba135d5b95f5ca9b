"""How a step's small result reaches the next: as JSON under `assets/`, never as a pickle.

Belongs here: the IO manager and its files. Does not: bulk data, which steps write themselves and handles name.
"""

from pathlib import Path
from typing import TypeVar, get_args, get_origin

import dagster as dg

from novelsum_dagster.artifacts.outputs import fetch_handle, fetch_output, handle_name, publish
from novelsum_dagster.artifacts.provenance import code_version, damaged_files, read_record
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes
from novelsum_dagster.pool.snapshot import Handle
from novelsum_dagster.remote.mirror import Mirror
from novelsum_dagster.workspace import Workspace

AnyHandle = TypeVar("AnyHandle", bound=Handle)


def read_handle(root: Path, asset: str, kind: type[AnyHandle], partition: str | None = None) -> AnyHandle:
    """Return an asset's newest handle, or that of one partition.

    Raises:
        dg.Failure: where the asset is not materialised yet, or its file is damaged.
    """
    path = root / handle_name(asset, partition)
    if not path.exists():
        what = f"{asset}, partition {partition}," if partition else asset
        raise dg.Failure(f"{what} is not materialised yet; materialise it first", allow_retries=False)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise dg.Failure(
            f"{path} is damaged or from another version ({error}); materialise {asset} again", allow_retries=False
        ) from error


def current_handle(workspace: Workspace, asset: str, kind: type[AnyHandle]) -> AnyHandle:
    """Return an asset's newest handle, wherever storage is; what it names is at hand.

    Raises:
        dg.Failure: as `read_handle`, or where S3 fails.
    """
    try:
        fetch_handle(workspace.mirror, asset)
        handle = read_handle(workspace.root, asset, kind)
        fetch_output(workspace.mirror, asset, handle.key)
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return handle


def newest_handle(workspace: Workspace, asset: str, kind: type[AnyHandle]) -> AnyHandle | None:
    """Return an asset's newest handle, for a step that builds on what it made before; None without a sound one."""
    try:
        return current_handle(workspace, asset, kind)
    except dg.Failure:
        return None


def reusable_handle(workspace: Workspace, asset: str, kind: type[AnyHandle]) -> AnyHandle | None:
    """Return what a step made last; None where other code did, or its files are not what was written."""
    newest = newest_handle(workspace, asset, kind)
    if newest is None:
        return None
    try:
        made = read_record(workspace.root, asset, newest.key)
    except InputError:
        return None
    is_other = made.code_version != code_version(asset)
    return None if is_other or damaged_files(workspace.root, made) else newest


class HandleIOManager(dg.IOManager):
    """Keeps the newest handle of each asset in `root/assets/<asset>.json`, written atomically.

    A partition's is in `root/assets/<asset>/<partition>.json`. An input of several partitions is annotated
    `dict[str, Handle]`, by partition.

    Args:
        root: the storage folder.
        mirror: where storage is on S3; a handle is sent there last, once all that it names is there.
    """

    def __init__(self, root: Path, mirror: Mirror | None = None) -> None:
        self._root = root
        self._mirror = mirror

    def handle_output(self, context: dg.OutputContext, obj: Handle) -> None:
        """Write a handle."""
        partition = context.partition_key if context.has_partition_key else None
        name = handle_name(context.asset_key.to_user_string(), partition)
        write_bytes((obj.model_dump_json(indent=2) + "\n").encode(), self._root / name)
        publish(self._mirror, name)

    def load_input(self, context: dg.InputContext) -> Handle | dict[str, Handle]:
        """Read the handle that the input's type annotation names, or those of all partitions that it needs."""
        asset, kind = context.asset_key.to_user_string(), context.dagster_type.typing_type
        if get_origin(kind) is dict:
            of_partition: type[Handle] = get_args(kind)[1]
            return {key: self._read(asset, of_partition, key) for key in context.asset_partition_keys}
        partition = context.asset_partition_key if context.has_asset_partitions else None
        return self._read(asset, kind, partition)

    def _read(self, asset: str, kind: type[Handle], partition: str | None) -> Handle:
        try:
            fetch_handle(self._mirror, asset, partition)
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        return read_handle(self._root, asset, kind, partition)
