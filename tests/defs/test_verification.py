"""The check of the whole storage, its job and its schedule, as Dagster runs them."""

import dagster as dg
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.definitions import CURATE_JOB, build_defs
from novelsum_dagster.defs.verification import VERIFY_JOB
from novelsum_dagster.settings import Settings
from tests.curated import write_wrong
from tests.defs.conftest import Curation


def test_the_check_is_in_its_own_job_alone() -> None:
    definitions = build_defs(Settings())
    steps = {name: {node.name for node in definitions.resolve_job_def(name).nodes} for name in (CURATE_JOB, VERIFY_JOB)}
    assert steps[VERIFY_JOB] == {"lineage_storage_unchanged"}
    assert not steps[CURATE_JOB] & steps[VERIFY_JOB] and "density_checks" in steps[CURATE_JOB]


def test_the_schedule_is_set_by_the_settings() -> None:
    assert not build_defs(Settings()).schedules
    times = {"verify": "0 4 * * 0", "timezone": "Europe/Berlin"}
    [schedule] = build_defs(Settings.model_validate({"automation": times})).schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.job_name, schedule.cron_schedule) == (VERIFY_JOB, "0 4 * * 0")
    assert schedule.execution_timezone == "Europe/Berlin"
    with pytest.raises(InputError, match=r"automation\.verify: 'weekly' is not a cron schedule"):
        build_defs(Settings.model_validate({"automation": {"verify": "weekly"}}))


def test_the_check_passes_and_fails(curation: Curation) -> None:
    assert curation.run(models=False).success
    job = build_defs(curation.settings).resolve_job_def(VERIFY_JOB)

    def found() -> dg.AssetCheckEvaluation:
        [evaluation] = job.execute_in_process(instance=curation.instance).get_asset_check_evaluations()
        return evaluation

    evaluation = found()
    assert (evaluation.check_name, evaluation.passed, evaluation.description) == ("storage_unchanged", True, None)
    [path] = curation.root.glob("density/*/density.parquet")
    write_wrong(path)
    evaluation = found()
    assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert f"{path} is damaged" in (evaluation.description or "")
    assert {"totals", "failed", "not_checked", "runs"} <= set(evaluation.metadata)
