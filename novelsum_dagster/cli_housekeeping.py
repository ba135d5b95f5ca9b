"""The command that makes room: `novelsum gc`.

Belongs here: its arguments, table and JSON. Does not: what is removed (`lineage.housekeeping`).
"""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from novelsum_dagster.errors import InputError
from novelsum_dagster.terminal import AsJson, SettingsFile, say, settings_in

if TYPE_CHECKING:
    from novelsum_dagster.lineage.housekeeping import Plan


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Remove data of old runs, as the section retention of the settings says, and what killed processes left.

    Without that section every finished run keeps its data. Nothing is removed while a run is live.

    Example: [bold]novelsum gc --dry-run[/]
    """
    from novelsum_dagster.lineage.housekeeping import collect, plan
    from novelsum_dagster.workspace import Workspace

    chosen = settings_in(settings)
    if chosen.s3_place is not None:
        raise InputError(f"gc works on a storage folder; {chosen.s3_place} is not one. Nothing was removed")
    store = Workspace(chosen).lineage
    found = (plan if dry_run else collect)(store, chosen.retention)
    if as_json:
        print(json.dumps(_as_json(found, dry_run), indent=2))
    else:
        _print(found, dry_run)


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
    from rich.console import Console
    from rich.table import Table

    title = "Would be removed" if dry_run else "Removed"
    table = Table(title=title, title_justify="left", show_footer=True)
    size = sum(item.bytes for item in found.items)
    table.add_column("kind", "total")
    table.add_column("how many", f"{len(found.items):,}", justify="right")
    table.add_column("bytes", f"{size:,}", justify="right")
    for kind, (count, of_kind) in found.totals().items():
        table.add_row(kind, f"{count:,}", f"{of_kind:,}")
    Console().print(table)
    if found.runs:
        print(f"{'Runs that lose' if dry_run else 'Runs that lost'} data: {', '.join(found.runs)}")
    if found.live:
        say(f"run {', '.join(found.live)} is live: until it has ended, nothing is removed")
