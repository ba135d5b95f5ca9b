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


NO_GPU = GpuOp(pool=None, op_tags=None)
"""Of a step that uses none."""


def gpu_op(settings: Settings, *, on_engine: bool = False) -> GpuOp:
    """Return pool and tags of such a step.

    The pool where it may compute on a card, also with device `auto`. The tags, which make a cluster keep a card for it
    or wait until there is one, only where the settings ask for CUDA.

    Args:
        settings: all settings.
        on_engine: whether the engine does the work; on Ray its workers have the cards, and the step needs none.
    """
    is_cuda = settings.device.startswith("cuda")
    keeps_card = is_cuda and not (on_engine and settings.engine == "ray")
    return GpuOp(pool=GPU_POOL if is_cuda or settings.device == "auto" else None, op_tags=_TAGS if keeps_card else None)
