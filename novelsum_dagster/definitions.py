"""The entry point that Dagster loads: `defs`, built by `build_defs`.

Belongs here: combining assets, checks, resources, sensors and schedules. Does not: any of them.
"""

import dagster as dg

from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.defs.automation import carry_sensor, landing_sensor, recurate_schedule
from novelsum_dagster.defs.card import data_card
from novelsum_dagster.defs.changes import changes
from novelsum_dagster.defs.checks import asset_checks
from novelsum_dagster.defs.dead_runs import dead_runs_sensor
from novelsum_dagster.defs.distinct import distinct_asset
from novelsum_dagster.defs.embeddings import embeddings_asset
from novelsum_dagster.defs.io_manager import ArtifactIOManager
from novelsum_dagster.defs.lineage import lineage
from novelsum_dagster.defs.marts import audit_assets, audit_checks
from novelsum_dagster.defs.novelty import novelty_assets
from novelsum_dagster.defs.pool import raw_pool
from novelsum_dagster.defs.reports import report_asset
from novelsum_dagster.defs.selection import selection_asset
from novelsum_dagster.defs.study import GROUP, study_assets
from novelsum_dagster.defs.verification import STORAGE_CHECK, VERIFY_JOB, storage_unchanged, verify_schedule
from novelsum_dagster.settings import Settings, load_settings, settings_path
from novelsum_dagster.workspace import Workspace

CURATE_JOB = "curate"
"""Materialises every asset but the study's, and runs every check but that of the whole storage."""


def build_defs(
    settings: Settings,
    reporter: Reporter | None = None,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """Return all definitions for one curation.

    The study's assets exist only if the settings have a section `study`: they have partitions, so "Materialize all" in
    the UI then asks which ones, and would train a model for each.

    Args:
        settings: all settings.
        reporter: shows progress instead of log lines.
        executor: runs the steps; default: one process per run, so that steps share the imported libraries, which take
            seconds to load.
    """
    workspace = Workspace(settings, reporter, steps_apart=executor is not dg.in_process_executor)
    curated = dg.AssetSelection.all() - dg.AssetSelection.groups(GROUP)
    curate = dg.define_asset_job(CURATE_JOB, curated - STORAGE_CHECK, description="From sources to an audited subset.")
    verify = dg.define_asset_job(VERIFY_JOB, STORAGE_CHECK, description="Checks that nothing stored was changed.")
    schedules = (recurate_schedule(settings, CURATE_JOB), verify_schedule(settings))
    return dg.Definitions(
        assets=[
            raw_pool,
            embeddings_asset(settings),
            distinct_asset(settings),
            *novelty_assets(settings),
            selection_asset(settings),
            report_asset(settings),
            data_card,
            lineage,
            changes,
            audit_assets(),
            *(study_assets(settings) if "study" in settings.model_fields_set else ()),
        ],
        asset_checks=[*asset_checks(), audit_checks(), storage_unchanged],
        jobs=[curate, verify],
        sensors=[
            landing_sensor(settings, CURATE_JOB),
            dead_runs_sensor(settings, CURATE_JOB),
            carry_sensor(settings, curated),
        ],
        schedules=[schedule for schedule in schedules if schedule],
        executor=executor,
        resources={"workspace": workspace, "io_manager": ArtifactIOManager(workspace.root, workspace.mirror)},
    )


def settings_in_force() -> Settings:
    """Return the settings for Dagster: those of the file in force, else the defaults."""
    path = settings_path()
    return load_settings(path) if path.exists() else Settings()


defs = build_defs(settings_in_force())
