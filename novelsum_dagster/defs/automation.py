"""Automatic runs: the sensor `landing`, the schedule `recurate`, the condition that propagates a change downstream.

Belongs here: when a run starts, and the reason why one does not. Does not: the listing and its cursor
(`pool.landing`), the job, runs that died (`defs.dead_runs`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from novelsum_dagster.artifacts.layout import newest_file
from novelsum_dagster.artifacts.newest import newest_or_none
from novelsum_dagster.artifacts.provenance import STEPS, code_version, read_record, settings_of
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import read_json
from novelsum_dagster.common.progress import counted
from novelsum_dagster.defs.dead_runs import unfinished_run
from novelsum_dagster.embedding.vector_files import read_vectors
from novelsum_dagster.lineage.models import models
from novelsum_dagster.pool.landing import (
    Changes,
    Cursor,
    Listing,
    list_sources,
    look,
    read_cursor,
    read_listing,
    short,
    start_cursor,
)
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Settings
from novelsum_dagster.workspace import Workspace

BATCH_TAG = "novelsum/batch"
"""Tag of a run: the number of files in its batch."""
FILES_TAG = "novelsum/files"
"""Tag of a run: the first file names of its batch."""
REASON_TAG = "novelsum/because"
"""Tag of a run started by the schedule: what changed."""

CARRY = (
    dg.AutomationCondition.any_deps_match(
        # A new version, not only a new materialisation, and not from a run that also materialises this asset.
        (dg.AutomationCondition.data_version_changed() & ~dg.AutomationCondition.executed_with_root_target())
        | dg.AutomationCondition.will_be_requested()
    )
    .with_label("an input changed in a run without this asset")
    .since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
)
"""Condition of every asset but the first: its inputs changed, exist, and passed their blocking checks."""


def landing_sensor(settings: Settings, job: str, clock: Callable[[], float] = time.time) -> dg.SensorDefinition:
    """Return the sensor that starts a run once for each batch of files that landed at the pool's sources."""
    workspace = Workspace(settings)

    @dg.sensor(
        name="landing",
        job_name=job,
        minimum_interval_seconds=settings.automation.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.automation.watch else dg.DefaultSensorStatus.STOPPED,
        description="Starts a run when files of pool.sources were added, changed or removed, once for each batch.",
    )
    def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            listing = list_sources(settings.pool.sources, settings.base, settings.s3)
        except InputError as error:
            return _skipped(f"A run would fail: {error}", context.cursor)
        if not listing.files:
            return _skipped("No source is a file or a local folder: there is nothing to watch.", context.cursor)
        cursor = read_cursor(context.cursor) or _start_cursor(workspace, listing, context.cursor)
        found = look(cursor, listing, clock(), settings.automation.settle_seconds)
        if not found.changes:
            return _skipped(_nothing_new(context.instance, workspace, job, listing), _text(found.waiting))
        if read_listing(workspace.root, _newest_key(workspace)) == listing.marks:
            return _skipped(f"The newest pool has it already ({found.changes}).", _text(found.taken))
        running = unfinished_run(context.instance, workspace, job)
        if running is not None:
            return _skipped(f"Run {running.run_id[:8]} is in progress; {found.changes} since.", _text(found.waiting))
        if found.unsettled:
            reason = f"{found.changes}; may still be being written: {short(found.unsettled)}."
            return _skipped(reason, _text(found.waiting))
        request = dg.RunRequest(
            run_key=found.taken.batch, tags={BATCH_TAG: str(found.changes), FILES_TAG: found.changes.names}
        )
        return dg.SensorResult(run_requests=[request], cursor=_text(found.taken))

    return landing


def recurate_schedule(settings: Settings, job: str) -> dg.ScheduleDefinition | None:
    """Return the schedule that starts a run at the settings' times unless nothing changed; None without times.

    Args:
        settings: all settings.
        job: name of the job that is run.

    Raises:
        InputError: if the times are not a cron schedule.
    """
    times = settings.automation.schedule
    if times is None:
        return None
    require_cron("automation.schedule", times)
    workspace = Workspace(settings)

    @dg.schedule(
        name="recurate",
        job_name=job,
        cron_schedule=times,
        execution_timezone=settings.automation.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Starts a run unless files, settings and code are unchanged since the last successful one.",
    )
    def recurate(context: dg.ScheduleEvaluationContext) -> dg.SkipReason | dg.RunRequest:
        running = unfinished_run(context.instance, workspace, job)
        if running is not None:
            return dg.SkipReason(f"Run {running.run_id[:8]} is in progress.")
        try:
            changes = list(_changes(workspace, context.instance, job))
        except InputError as error:
            return dg.SkipReason(f"A run would fail: {error}")
        if not changes:
            return dg.SkipReason(
                "Nothing changed since the last successful run: files, settings and code are the same."
            )
        return dg.RunRequest(tags={REASON_TAG: short(changes)})

    return recurate


def require_cron(setting: str, times: str) -> None:
    """Require that the times of a setting are a cron schedule.

    Raises:
        InputError: if they are not.
    """
    try:
        dg.ScheduleDefinition(name="tried", job_name="tried", cron_schedule=times)
    except dg.DagsterInvalidDefinitionError:
        raise InputError(
            f"{setting}: {times!r} is not a cron schedule; expected five fields: minute, hour, day, month, weekday, as"
            ' "0 3 * * *"'
        ) from None


def carry_sensor(settings: Settings, assets: dg.AssetSelection) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that evaluates the assets' conditions.

    Args:
        settings: all settings.
        assets: whose conditions are evaluated.
    """
    is_on = settings.automation.carry
    return dg.AutomationConditionSensorDefinition(
        "carry",
        target=assets,
        minimum_interval_seconds=settings.automation.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if is_on else dg.DefaultSensorStatus.STOPPED,
        description="Materialises what depends on an asset that was materialised alone, once its checks passed.",
    )


def _skipped(reason: str, cursor: str | None) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=cursor)


def _nothing_new(instance: dg.DagsterInstance, workspace: Workspace, job: str, listing: Listing) -> str:
    files = counted(len(listing.files), "file")
    if read_listing(workspace.root, _newest_key(workspace)) == listing.marks:
        return f"Nothing new: {files}, as in the newest pool."
    running = unfinished_run(instance, workspace, job)
    if running is not None:
        return f"Nothing new since the last batch; run {running.run_id[:8]} is in progress."
    return (
        f"Nothing new since the last batch ({files}), but its run made no pool: it failed or was stopped. Fix the"
        " cause, then start a run by hand."
    )


def _text(cursor: Cursor) -> str:
    return cursor.model_dump_json()


def _newest_pool(workspace: Workspace) -> PoolSnapshot | None:
    try:
        return newest_or_none(workspace.root, "raw_pool", PoolSnapshot)
    except InputError:
        return None


def _newest_key(workspace: Workspace) -> str:
    pool = _newest_pool(workspace)
    return pool.key if pool else ""


def _start_cursor(workspace: Workspace, listing: Listing, unusable: str | None) -> Cursor:
    """Return a cursor with the newest pool as the last batch."""
    pool = _newest_pool(workspace)
    key = pool.key if pool else ""
    sums = {file.file: file.sha256 or "" for file in pool.files} if pool else {}
    read = read_listing(workspace.root, key) or {}
    return start_cursor(listing, workspace.settings.base, f"{key} {unusable or ''}", read, sums)


def _changes(workspace: Workspace, instance: dg.DagsterInstance, job: str) -> Iterator[str]:
    """Yield a line for each change since the last successful run.

    Raises:
        InputError: if a run would refuse the sources.
    """
    settings = workspace.settings
    listing = list_sources(settings.pool.sources, settings.base, settings.s3)
    succeeded = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS])
    pool = _newest_pool(workspace)
    if pool is None or not instance.get_run_records(succeeded, limit=1):
        yield "no run has succeeded yet"
        return
    read = read_listing(workspace.root, pool.key)
    if read is None:
        yield "the files from which the pool was read are unknown"
    elif read != listing.marks:
        yield _words(read, listing)
    for source in settings.pool.sources:
        if source.dataset and not source.revision and not (settings.base / source.dataset).expanduser().exists():
            yield f"dataset {source.dataset} has no revision"
    yield from _changed_vectors(workspace)
    yield from _stale_outputs(workspace)
    yield from _changed_models(instance)


def _words(read: dict[str, str], listing: Listing) -> str:
    before = Cursor(batch="", taken=read)
    changes: Changes = look(before, listing, 0, 0).changes
    return f"{changes} ({changes.names})"


def _changed_vectors(workspace: Workspace) -> Iterator[str]:
    """Yield the file of the user's own vectors if it changed since the newest vectors were read."""
    own = workspace.settings.embedding
    newest = workspace.root / newest_file("embeddings")
    if own.vectors is not None and newest.exists():
        path = workspace.settings.base / Path(own.vectors).expanduser()
        if read_vectors(path, own.vectors_column, own.vectors_id).content_hash() != read_json(newest)["revision"]:
            yield f"{own.vectors} has changed"


def _stale_outputs(workspace: Workspace) -> Iterator[str]:
    """Yield the outputs that were built with other settings, code or inputs."""
    assets = [asset for asset in STEPS if not asset.startswith("study_")]
    keys = {asset: _key(workspace, asset) for asset in assets}
    for asset, key in keys.items():
        try:
            made = read_record(workspace.root, asset, key)
        except InputError:
            yield f"{asset} is missing"
            continue
        now = settings_of(asset, workspace.settings)
        changed = [name for name in {**made.settings, **now} if made.settings.get(name) != now.get(name)]
        yield from (f"{name} for {asset}" for name in changed)
        if made.code_version != code_version(asset):
            yield f"the code of {asset}"
        if any(used in keys and keys[used] != then for used, then in made.inputs.items()):
            yield f"{asset} is of another pool"


def _key(workspace: Workspace, asset: str) -> str:
    try:
        found: Any = read_json(workspace.root / newest_file(asset))
        return str(found["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _changed_models(instance: dg.DagsterInstance) -> Sequence[str]:
    wanted = {dg.AssetKey(model.name): model.code_version for model in models()}
    made = instance.get_latest_materialization_code_versions(list(wanted))
    return [f"the model {key.to_user_string()}" for key, version in wanted.items() if made.get(key) != version]
