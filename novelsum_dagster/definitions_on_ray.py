"""The definitions with every step a Ray job of its own, for a code location on a Ray cluster (docs/ray.md).

Belongs here: dagster-ray's executor. Does not: the definitions (`definitions`), work on Ray within a step (`engine`).
"""

from dagster_ray import ray_executor

from novelsum_dagster.definitions import build_defs, settings_in_force
from novelsum_dagster.settings import SETTINGS_VARIABLE

_PASSED_ON = ["DAGSTER_HOME", SETTINGS_VARIABLE]
"""Variables that a step's job needs from the process that submits it."""

defs = build_defs(settings_in_force(), executor=ray_executor.configured({"ray": {"env_vars": _PASSED_ON}}))
