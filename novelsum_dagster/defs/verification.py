"""The check `storage_unchanged`, which is `novelsum verify` in the UI, and the schedule of the job that runs it alone.

Belongs here: how the outcome is shown, when it runs. Does not: what is compared (`audit.verify`).

The job `curate` leaves the check out: it reads the whole storage, not the outputs of one run.
"""

from typing import Any

import dagster as dg

from novelsum_dagster.audit.verify import Verification, verify
from novelsum_dagster.defs.automation import require_cron
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace

VERIFY_JOB = "verify"
STORAGE_CHECK = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("lineage"), "storage_unchanged"))
_SHOWN = 50
"""Failures that are listed in the UI."""


@dg.asset_check(
    asset="lineage",
    name="storage_unchanged",
    description="No output, record, run file or row of the lineage was changed, lost or added since it was written.",
)
def storage_unchanged(
    context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.AssetCheckResult:
    """Verify all runs and outputs of the storage."""
    with workspace.reporter_for(context.log.info).step("hashing") as progress:
        return _result(verify(workspace.lineage, progress=progress))


def verify_schedule(settings: Settings) -> dg.ScheduleDefinition | None:
    """Return the schedule of the job; None if the settings have no times for it.

    Raises:
        InputError: if the times are not a cron schedule.
    """
    times = settings.automation.verify
    if times is None:
        return None
    require_cron("automation.verify", times)
    return dg.ScheduleDefinition(
        name=VERIFY_JOB,
        job_name=VERIFY_JOB,
        cron_schedule=times,
        execution_timezone=settings.automation.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Checks that nothing stored was changed.",
    )


def _result(found: Verification) -> dg.AssetCheckResult:
    failed, unchecked = found.having("failed"), found.having("not checked")
    totals = [dg.TableRecord({"what": kind, **row}) for kind, row in found.totals().items()]
    metadata: dict[str, Any] = {"runs": len(found.runs), "totals": dg.MetadataValue.table(totals)}
    for name, checks in (("failed", failed), ("not_checked", unchecked)):
        rows = [dg.TableRecord({"what": one.kind, "name": one.name, "why": one.reason}) for one in checks[:_SHOWN]]
        metadata[name] = dg.MetadataValue.table(rows) if rows else "nothing"
    return dg.AssetCheckResult(
        passed=found.passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{len(failed):,} failed: {failed[0].reason}" if failed else None,
        metadata=metadata,
    )
