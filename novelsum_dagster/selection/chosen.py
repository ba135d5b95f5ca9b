"""A selection as the settings describe it: ids become rows, fields become qualities and labels.

Belongs here: from settings to the call of a strategy. Does not: the strategies, writing a subset (`subset`).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.devices import cuda_or_cpu
from novelsum_dagster.errors import InputError
from novelsum_dagster.pool.fields import field_values, positive_numbers
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.progress import Progress, no_progress
from novelsum_dagster.selection.inputs import check_k
from novelsum_dagster.selection.limits import Quota, limits_of
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.settings import Selection


def choose_from_pool(
    snapshot: PoolSnapshot,
    root: Path,
    vectors: ArrayLike,
    density_factor: NDArray[np.float64],
    selection: Selection,
    *,
    proximity_power: float,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> Picks:
    """Return the picks that the settings ask for.

    Args:
        snapshot: the pool.
        root: the storage folder.
        vectors: (n, d), in pool order.
        density_factor: float64, (n,).
        selection: the settings.
        proximity_power: alpha of NovelSelect.
        checkpoint: where NovelSelect saves its picks, so that a selection that was broken off goes on.
        progress: called as the strategy says.

    Raises:
        InputError: for unknown ids, or samples without the field that the settings name.
        ValueError: as the strategy does.
    """
    quality = None
    if selection.quality is not None:
        quality = np.array(positive_numbers(snapshot, root, selection.quality))
    options = selection.options
    if selection.strategy == "novelselect":
        options = {
            **_limits(snapshot, root, selection),
            "proximity_power": proximity_power,
            "device": cuda_or_cpu(selection.device),
            "verify": selection.verify,
            "checkpoint": checkpoint,
        }
    return select(
        selection.strategy,
        vectors,
        selection.k,
        density_factor=density_factor,
        quality=quality,
        seed=selection.seed,
        progress=progress,
        **options,
    )


def require_possible(snapshot: PoolSnapshot, root: Path, selection: Selection) -> None:
    """Check all that needs no vectors, before hours of embedding.

    Raises:
        InputError: for unknown ids, or samples without the field that the settings name.
        ValueError: for k out of range, or limits that contradict each other or that no subset can keep.
    """
    if selection.k is not None:
        check_k(selection.k, snapshot.kept)
    if selection.quality is not None:
        positive_numbers(snapshot, root, selection.quality)
    if selection.strategy == "novelselect":
        asked = _limits(snapshot, root, selection)
        given = asked.pop("must_include", [])
        limits_of(snapshot.kept, selection.k, **asked).take_given(given)


def _limits(snapshot: PoolSnapshot, root: Path, selection: Selection) -> dict[str, Any]:
    limits: dict[str, Any] = {
        "quotas": [
            Quota(_labels(snapshot, root, quota.column), quota.caps, quota.floors, quota.column)
            for quota in selection.quotas
        ]
    }
    if selection.must_include or selection.must_exclude:
        row_of = {id_: row for row, id_ in enumerate(snapshot.samples(root, ["id"])["id"].to_pylist())}
        limits["must_include"] = _rows(row_of, selection.must_include, "must_include")
        limits["must_exclude"] = _rows(row_of, selection.must_exclude, "must_exclude")
    if selection.token_budget is not None:
        limits["cost"] = np.array(field_values(snapshot, root, "tokens"), dtype=np.float64)
        limits["budget"] = selection.token_budget
    return limits


def _labels(snapshot: PoolSnapshot, root: Path, column: str) -> list[str]:
    return [str(value) for value in field_values(snapshot, root, column)]


def _rows(row_of: dict[str, int], ids: tuple[str, ...], name: str) -> list[int]:
    unknown = [id_ for id_ in ids if id_ not in row_of]
    if unknown:
        raise InputError(f"selection.{name}: no sample of the pool has the id {unknown[0]!r} ({len(unknown)} such ids)")
    return [row_of[id_] for id_ in ids]
