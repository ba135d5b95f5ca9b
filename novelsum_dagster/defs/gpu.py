"""What steps that use a GPU tell Dagster.

Belongs here: pool and tags. Does not: which device a step computes on (`devices`).
"""

from collections.abc import Mapping
from typing import Any

from novelsum_dagster.settings import Settings

GPU_POOL = "gpu"
"""Dagster pool of the steps that use a GPU; dagster.yaml lets one run at a time, so that two never share a card."""
_TAGS = {
    "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    "dagster-ray/config": {"num_gpus": 1},
}


def gpu_pool(settings: Settings) -> str | None:
    """Return the pool of a step that computes on the settings' device; None where that can be no CUDA device."""
    return GPU_POOL if _may_use_gpu(settings) else None


def gpu_tags(settings: Settings) -> Mapping[str, Any] | None:
    """Return the tags of such a step; None where the device can be no CUDA device, so that it waits for no card."""
    return _TAGS if _may_use_gpu(settings) else None


def _may_use_gpu(settings: Settings) -> bool:
    return settings.device == "auto" or settings.device.startswith("cuda")
