"""Dagster pool and tags of steps that use a GPU.

Does not belong here: which device a step computes on (`common.devices`).
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from novelsum_dagster.settings import Settings

GPU_POOL = "gpu"
"""Dagster pool of the steps that use a GPU; dagster.yaml limits it to one, so that two steps never share a GPU."""
_TAGS = {
    "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    "dagster-ray/config": {"num_gpus": 1},
}


class GpuOp(TypedDict):
    """Arguments of `dagster.asset` for a step that computes on the settings' device."""

    pool: str | None
    op_tags: Mapping[str, Any] | None


NO_GPU = GpuOp(pool=None, op_tags=None)
"""Arguments of a step that uses no GPU."""


def gpu_op(settings: Settings, *, on_engine: bool = False) -> GpuOp:
    """Return pool and tags of a step that computes on the settings' device.

    The pool is set if the step may compute on a GPU, including device `auto`. The tags, by which a cluster reserves a
    GPU or waits for one, are set only if the settings request CUDA.

    Args:
        settings: all settings.
        on_engine: whether the engine does the work; on Ray its workers have the GPUs, and the step needs none.
    """
    is_cuda = settings.device.startswith("cuda")
    keeps_card = is_cuda and not (on_engine and settings.engine == "ray")
    return GpuOp(pool=GPU_POOL if is_cuda or settings.device == "auto" else None, op_tags=_TAGS if keeps_card else None)
