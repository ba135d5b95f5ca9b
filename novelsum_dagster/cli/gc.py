"""The command `novelsum gc`, which deletes data of old runs.

Belongs here: its arguments, table and JSON. Does not: what is removed (`audit.gc`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from novelsum_dagster.cli.terminal import AsJson, SettingsFile, new_reporter, print_json, print_table, say, settings_in

if TYPE_CHECKING:
    from novelsum_dagster.audit.gc import Plan
    from novelsum_dagster.remote.mirror import Mirror


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete data of old runs, following `retention` in the settings, and leftovers of killed processes.

    Without that section every finished run keeps its data. Nothing is deleted while a run is live.

    Example: [bold]novelsum gc --dry-run[/]
    """
    from novelsum_dagster.audit.gc import collect, plan
    from novelsum_dagster.workspace import Workspace

    chosen = settings_in(settings)
    workspace = Workspace(chosen)
    made = plan if dry_run else collect
    if workspace.mirror is None:
        found = made(workspace.lineage, chosen.retention)
    else:
        with _of_s3(workspace.mirror) as removed:
            found = made(workspace.lineage, chosen.retention)
            removed += [] if dry_run else [item.path for item in found.items]
    if as_json:
        print_json(_as_json(found, dry_run))
    else:
        _print(found, dry_run)


@contextmanager
def _of_s3(mirror: "Mirror") -> Iterator[list[str]]:
    """Fetch everything from S3, so that all of it is considered; then delete on S3 the paths that the block names."""
    from novelsum_dagster.artifacts.outputs import fetch_everything, remove
    from novelsum_dagster.lineage.store import RUN_FILES
    from novelsum_dagster.remote.lock import StorageLock

    removed: list[str] = []
    with StorageLock(mirror.root, mirror.remote).held("gc"):
        with new_reporter().step("fetching folders") as progress:
            fetch_everything(mirror, progress)
        yield removed
        # Sent first: the run files record whose data is removed before it is.
        mirror.put(*(path.relative_to(mirror.root).as_posix() for path in sorted(mirror.root.glob(RUN_FILES))))
        remove(mirror, removed)


def _as_json(found: "Plan", dry_run: bool) -> dict[str, object]:
    totals = found.totals()
    return {
        "dry_run": dry_run,
        "kinds": [{"kind": kind, "count": count, "bytes": size} for kind, (count, size) in totals.items()],
        "count": len(found.items),
        "bytes": sum(item.bytes for item in found.items),
        "runs_that_lose_data": list(found.runs),
        "runs_kept": list(found.kept),
        "runs_live": list(found.live),
        "paths": [item.path for item in found.items],
    }


def _print(found: "Plan", dry_run: bool) -> None:
    if not found.items:
        print("Nothing to remove. What killed processes left behind is removed once it is an hour old.")
        return
    print_table(
        "Would be removed" if dry_run else "Removed",
        ("kind", "how many", "bytes"),
        [(kind, f"{count:,}", f"{size:,}") for kind, (count, size) in found.totals().items()],
        text=("kind",),
        totals=[("total", f"{len(found.items):,}", f"{sum(item.bytes for item in found.items):,}")],
    )
    if found.runs:
        print(f"{'Runs that lose' if dry_run else 'Runs that lost'} data: {', '.join(found.runs)}")
    if found.live:
        say(f"run {', '.join(found.live)} is live: until it has ended, nothing is removed")
