"""The IO manager: artifacts are passed between steps as JSON under `assets/`, never as pickles.

Belongs here: the IO manager, errors of Dagster. Does not: reading the newest artifact (`artifacts.newest`), bulk data,
which steps write themselves.
"""

from pathlib import Path
from typing import get_args, get_origin

import dagster as dg

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import newest_file
from novelsum_dagster.artifacts.newest import AnyArtifact, read_newest
from novelsum_dagster.artifacts.outputs import fetch_newest, fetch_output, publish
from novelsum_dagster.artifacts.provenance import code_version, damaged_files, read_record
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import sealed, write_json
from novelsum_dagster.remote.mirror import Mirror
from novelsum_dagster.workspace import Workspace


def current_artifact(workspace: Workspace, asset: str, kind: type[AnyArtifact]) -> AnyArtifact:
    """Return an asset's newest artifact, with its files fetched if storage is on S3.

    Raises:
        dg.Failure: as `read_newest`, or if S3 fails.
    """
    try:
        fetch_newest(workspace.mirror, asset)
        newest = read_newest(workspace.root, asset, kind)
        fetch_output(workspace.mirror, asset, newest.key)
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return newest


def newest_artifact(workspace: Workspace, asset: str, kind: type[AnyArtifact]) -> AnyArtifact | None:
    """Return an asset's newest artifact, for a step that builds on its previous output; None without a valid one."""
    try:
        return current_artifact(workspace, asset, kind)
    except dg.Failure:
        return None


def reusable_artifact(workspace: Workspace, asset: str, kind: type[AnyArtifact]) -> AnyArtifact | None:
    """Return a step's last output; None if its code version differs, or its files are damaged."""
    newest = newest_artifact(workspace, asset, kind)
    if newest is None:
        return None
    try:
        made = read_record(workspace.root, asset, newest.key)
    except InputError:
        return None
    is_other = made.code_version != code_version(asset)
    return None if is_other or damaged_files(workspace.root, made) else newest


class ArtifactIOManager(dg.IOManager):
    """Stores the newest artifact of each asset in `root/assets/<asset>.json`, written atomically.

    A partition's is in `root/assets/<asset>/<partition>.json`. An input of several partitions is annotated
    `dict[str, Artifact]`, by partition.

    Args:
        root: the storage folder.
        mirror: of storage on S3; an artifact is sent last, after all files that it names.
    """

    def __init__(self, root: Path, mirror: Mirror | None = None) -> None:
        self._root = root
        self._mirror = mirror

    def handle_output(self, context: dg.OutputContext, obj: Artifact) -> None:
        """Write an artifact."""
        partition = context.partition_key if context.has_partition_key else None
        name = newest_file(context.asset_key.to_user_string(), partition)
        write_json(sealed(obj.model_dump(mode="json")), self._root / name)
        publish(self._mirror, name)

    def load_input(self, context: dg.InputContext) -> Artifact | dict[str, Artifact]:
        """Read the artifact of the input's type annotation, or those of all partitions that it needs."""
        asset, kind = context.asset_key.to_user_string(), context.dagster_type.typing_type
        if get_origin(kind) is dict:
            of_partition: type[Artifact] = get_args(kind)[1]
            return {key: self._read(asset, of_partition, key) for key in context.asset_partition_keys}
        partition = context.asset_partition_key if context.has_asset_partitions else None
        return self._read(asset, kind, partition)

    def _read(self, asset: str, kind: type[Artifact], partition: str | None) -> Artifact:
        try:
            fetch_newest(self._mirror, asset, partition)
            return read_newest(self._root, asset, kind, partition)
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
