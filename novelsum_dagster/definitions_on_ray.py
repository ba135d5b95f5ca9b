"""The definitions with every step as a separate Ray job, for a code location on a Ray cluster (docs/ray.md).

Belongs here: dagster-ray's executor. Does not: the definitions (`definitions`), work on Ray within a step (`engine`).
"""

from typing import TYPE_CHECKING

from novelsum_dagster.common.extras import require_extra
from novelsum_dagster.definitions import build_defs, settings_in_force
from novelsum_dagster.settings import SETTINGS_VARIABLE

if TYPE_CHECKING:
    from dagster import ExecutorDefinition

_PASSED_ON = ["DAGSTER_HOME", SETTINGS_VARIABLE]
"""Environment variables passed from the submitting process to a step's job."""


def _executor() -> "ExecutorDefinition":
    require_extra("ray", "novelsum_dagster.definitions_on_ray", "dagster_ray", "ray")
    from dagster_ray import ray_executor

    return ray_executor.configured({"ray": {"env_vars": _PASSED_ON}})


defs = build_defs(settings_in_force(), executor=_executor())
