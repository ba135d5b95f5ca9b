"""The command `novelsum restore`, which copies a storage on S3 to an empty machine.

Belongs here: its argument and messages. Does not: transfers (`remote`), the lineage's rows (`lineage.store`).
"""

from novelsum_dagster.cli.terminal import SettingsFile, new_reporter, say, settings_in
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import counted


def restore(settings: SettingsFile = None) -> None:
    """Fetch every file of a storage on S3 that is missing here, and rebuild the lineage database from them.

    A run fetches what it needs by itself; this command makes all earlier runs available to queries.

    Example: [bold]novelsum restore --settings curation.yaml[/]
    """
    from novelsum_dagster.artifacts.outputs import fetch_everything
    from novelsum_dagster.lineage.models import build
    from novelsum_dagster.remote.lock import StorageLock
    from novelsum_dagster.workspace import Workspace

    workspace = Workspace(settings_in(settings))
    mirror, store = workspace.mirror, workspace.lineage
    if mirror is None:
        raise InputError(
            f"storage is the folder {workspace.root}, not on S3: there is nothing to fetch. To rebuild a damaged"
            " lineage database, run novelsum rebuild-lineage"
        )
    with (
        StorageLock(workspace.root, mirror.remote).held("restore"),
        new_reporter().step("fetching folders") as progress,
    ):
        fetched = fetch_everything(mirror, progress)
        runs = store.rebuild()
        build(store)
    say(f"{counted(fetched, 'file')} fetched from {mirror.remote.place}; {store.path} has {counted(runs, 'run')} again")
