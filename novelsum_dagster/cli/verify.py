"""The commands `novelsum verify` and `novelsum sign`.

Belongs here: their arguments, table and JSON. Does not: what is compared (`audit.verify`), signatures
(`audit.signature`).
"""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from novelsum_dagster.cli.terminal import AsJson, SettingsFile, new_reporter, print_json, print_table, say, settings_in

if TYPE_CHECKING:
    from novelsum_dagster.audit.verify import Check, Verification

_SHOWN = 5
"""Names of what was not checked for one reason that are listed."""


def verify(
    run: Annotated[str | None, typer.Argument(help="Run, or the beginning of its id. Default: all.")] = None,
    allowed_signers: Annotated[
        Path | None, typer.Option(help="Check signatures (novelsum sign) against the keys in this file.")
    ] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Check that no stored output, record, run file or row of the lineage was changed, lost or added.

    Every file is hashed. Nothing is repaired; what failed is named, with what restores it.
    Exit code 1: something failed.

    Example: [bold]novelsum verify[/], [bold]novelsum verify 614f8acc[/]
    """
    from novelsum_dagster.audit.verify import verify as verified
    from novelsum_dagster.workspace import Workspace

    store = Workspace(settings_in(settings)).lineage
    with new_reporter().step("hashing") as progress:
        found = verified(store, run, progress, allowed_signers)
    if as_json:
        print_json(
            {
                "passed": found.passed,
                "runs": list(found.runs),
                "totals": found.totals(),
                "failed": [asdict(check) for check in found.having("failed")],
                "not_checked": [asdict(check) for check in found.having("not checked")],
            }
        )
    else:
        _print(found)
    if not found.passed:
        raise typer.Exit(1)


def sign(
    run: Annotated[str | None, typer.Argument(help="Run, or the beginning of its id. Default: the newest.")] = None,
    key: Annotated[Path, typer.Option(help="Private SSH key.")] = Path("~/.ssh/id_ed25519"),
    settings: SettingsFile = None,
) -> None:
    """Sign the manifests of a run's subset and data cards with an SSH key, once all files of the run are verified.

    `novelsum verify --allowed-signers FILE` checks the signatures.

    Example: [bold]novelsum sign 614f8acc --key ~/.ssh/id_ed25519[/]
    """
    from novelsum_dagster.artifacts.outputs import publish
    from novelsum_dagster.audit.signature import cards_of, sign_manifests
    from novelsum_dagster.audit.verified import verified_run
    from novelsum_dagster.workspace import Workspace

    workspace = Workspace(settings_in(settings))
    with workspace.lineage.reading() as connection:
        found = verified_run(connection, workspace.root, run)
    folders = [found.folder, *cards_of(workspace.root, found.selection)]
    for path in sign_manifests(workspace.root, folders, key.expanduser()):
        name = path.relative_to(workspace.root).as_posix()
        publish(workspace.mirror, name)
        say(f"signed: {path}")


def _print(found: "Verification") -> None:
    columns = ("what", "ok", "failed", "not checked", "bytes read")
    rows = [
        (kind, *(f"{row[name]:,}" for name in ("ok", "failed", "not checked", "bytes")))
        for kind, row in found.totals().items()
    ]
    runs = f"{len(found.runs)} runs" if len(found.runs) != 1 else f"Run {found.runs[0]}"
    print_table(runs, columns, rows, text=("what",))
    _print_unchecked(found.having("not checked"))
    for check in found.having("failed"):
        print(f"FAILED {check.kind}: {check.reason if check.name in check.reason else f'{check.name}: {check.reason}'}")
    print("Nothing failed." if found.passed else f"{len(found.having('failed')):,} failed.")


def _print_unchecked(checks: "list[Check]") -> None:
    for reason, count in Counter(check.reason for check in checks).items():
        names = [check.name for check in checks if check.reason == reason]
        more = f" and {count - _SHOWN:,} more (--json has all)" if count > _SHOWN else ""
        print(f"Not checked: {', '.join(names[:_SHOWN])}{more}: {reason}.")
