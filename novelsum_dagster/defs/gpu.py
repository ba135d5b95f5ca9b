"""What steps that use a GPU tell Dagster.

Belongs here: pool and tags. Does not: which device a step computes on (`devices`).
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from novelsum_dagster.settings import Settings

GPU_POOL = "gpu"
"""Dagster pool of the steps that use a GPU; dagster.yaml lets one run at a time, so that two never share a card."""
_TAGS = {
    "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    "dagster-ray/config": {"num_gpus": 1},
}


class GpuOp(TypedDict):
    """Arguments of `dagster.asset` for a step that computes on the settings' device."""

    pool: str | None
    op_tags: Mapping[str, Any] | None


def gpu_op(settings: Settings) -> GpuOp:
    """Return pool and tags of such a step; neither where it can be no CUDA device, so that the step waits for none."""
    if settings.device == "auto" or settings.device.startswith("cuda"):
        return GpuOp(pool=GPU_POOL, op_tags=_TAGS)
    return GpuOp(pool=None, op_tags=None)
