"""Selection by settings: ids become rows, fields become qualities and labels.

Belongs here: from settings to the call of a strategy, and to a subset. Does not: the strategies, a subset's files
(`subset`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.tables import DensityTable
from novelsum_dagster.pool.fields import field_values, positive_numbers
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.extension import EXTENDS, Earlier
from novelsum_dagster.selection.inputs import check_k
from novelsum_dagster.selection.limits import Quota, limits_of
from novelsum_dagster.selection.novelselect import SearchOn, local_search
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.selection.subset import Subset, describe, write_subset
from novelsum_dagster.settings import Selection, problems


def choose_from_pool(
    snapshot: PoolSnapshot,
    root: Path,
    vectors: ArrayLike,
    density_factor: NDArray[np.float64],
    selection: Selection,
    *,
    scoring: Scoring,
    earlier: Earlier | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    search_on: SearchOn = local_search,
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> Picks:
    """Return the picks of the selection that the settings describe.

    Args:
        snapshot: the pool.
        root: the storage folder.
        vectors: (n, d), in pool order.
        density_factor: float64, (n,).
        selection: the settings.
        scoring: the score that NovelSelect maximises, with alpha.
        earlier: the subset whose samples are the first picks; `selection.extend_by` are added to them.
        checkpoint: where NovelSelect saves its picks, so that an interrupted selection can resume.
        device: as the setting `device`; for NovelSelect.
        search_on, spread: of an engine; default: this process.
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
            "device": device,
            "verify": selection.verify,
            "checkpoint": checkpoint,
            "search_on": search_on,
        }
    k = selection.k
    if k is not None and selection.partitions is not None:
        return partitioned(
            np.asarray(vectors),
            k,
            partitions=selection.partitions,
            density_factor=density_factor,
            quality=quality,
            scoring=scoring,
            seed=selection.seed,
            spread=spread,
            progress=progress,
            **options,
        )
    if selection.strategy == "novelselect":
        options |= scoring.options() | _limits(snapshot, root, selection)
    if earlier is not None and selection.extend_by is not None:
        options["initial"] = _rows(_row_of(snapshot, root), {}, earlier.kept, "extend_by")
        k = len(earlier.kept) + selection.extend_by
    return select(
        selection.strategy,
        vectors,
        k,
        density_factor=density_factor,
        quality=quality,
        seed=selection.seed,
        progress=progress,
        **options,
    )


def with_config(selection: Selection, config: Mapping[str, Any]) -> Selection:
    """Return the settings of a selection with the values that the launchpad overrides.

    Raises:
        InputError: if these contradict each other.
    """
    instead = {name: value for name, value in config.items() if name in Selection.model_fields}
    try:
        return Selection.model_validate({**selection.model_dump(), **instead})
    except ValidationError as error:
        raise InputError(problems(error, "selection")) from None


def select_subset(
    root: Path,
    snapshot: PoolSnapshot,
    vectors: NDArray[np.float32],
    vectors_key: str,
    density: DensityTable,
    selection: Selection,
    *,
    density_power: float,
    scoring: Scoring,
    earlier: Earlier | None = None,
    device: str = "auto",
    search_on: SearchOn = local_search,
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> Subset:
    """Choose a subset of a pool and write it; an interrupted selection resumes from its checkpoint.

    Args:
        root: the storage folder.
        snapshot: the pool.
        vectors: float32, (n, d), in pool order; `vectors_key` is the key of the set.
        density: of the pool.
        selection: the settings.
        density_power: beta of NovelSelect.
        scoring: the score that it maximises, with alpha.
        earlier: the subset that is extended.
        device: as the setting `device`.
        search_on, spread: of an engine; default: this process.
        progress: called as the strategy says.

    Raises:
        ValueError: as `choose_from_pool` does.
    """
    own = describe(selection)
    described = {
        **own,
        "options": {**own["options"], **scoring.measured(), **({EXTENDS: earlier.key} if earlier else {})},
        "density_power": density_power,
        "proximity_power": scoring.proximity_power,
        "snapshot": snapshot.key,
        "vectors": vectors_key,
        "density": density.key,
    }
    picks = choose_from_pool(
        snapshot,
        root,
        vectors,
        density.factor(root, density_power),
        selection,
        scoring=scoring,
        earlier=earlier,
        checkpoint=root / "checkpoints" / f"{content_key(described)}.parquet",
        device=device,
        search_on=search_on,
        spread=spread,
        progress=progress,
    )
    reached = reached_by(picks, vectors, density.factor(root, density_power), scoring, progress)
    return write_subset(snapshot, root, picks, vectors, described, reached)


def reached_by(
    picks: Picks,
    vectors: NDArray[np.float32],
    density_factor: NDArray[np.float64],
    scoring: Scoring,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Return the outcome of a selection by density_side `objective` (`objective_facts`); empty for other sides.

    Args:
        picks: of the selection.
        vectors: float32, (n, d), the pool.
        density_factor: float64, (n,).
        scoring: by which the picks were chosen.
        progress: called with samples compared and n.

    Raises:
        ValueError, NotEnoughMemory: as `objective_facts` does.
    """
    if scoring.density_side != "objective":
        return {}
    from novelsum_dagster.selection.swaps import objective_facts

    return objective_facts(vectors, density_factor, picks, scoring, progress)


def require_possible(snapshot: PoolSnapshot, root: Path, selection: Selection) -> None:
    """Check everything that needs no vectors, before hours of embedding.

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
        row_of, renamed = _row_of(snapshot, root), snapshot.ids_by_former(root)
        limits["must_include"] = _rows(row_of, renamed, selection.must_include, "must_include")
        limits["must_exclude"] = _rows(row_of, renamed, selection.must_exclude, "must_exclude")
    if selection.token_budget is not None:
        limits["cost"] = np.array(field_values(snapshot, root, "tokens"), dtype=np.float64)
        limits["budget"] = selection.token_budget
    return limits


def _row_of(snapshot: PoolSnapshot, root: Path) -> dict[str, int]:
    return {id_: row for row, id_ in enumerate(snapshot.samples(root, ["id"])["id"].to_pylist())}


def _labels(snapshot: PoolSnapshot, root: Path, column: str) -> list[str]:
    return [str(value) for value in field_values(snapshot, root, column)]


def _rows(row_of: dict[str, int], renamed: dict[str, list[str]], ids: tuple[str, ...], name: str) -> list[int]:
    for id_ in ids:
        if len(renamed.get(id_, ())) > 1 and id_ not in row_of:
            raise InputError(
                f"selection.{name}: {id_} was the id of {len(renamed[id_])} records that release 0.2 distinguishes;"
                f" list the new ids that you want: {', '.join(renamed[id_])}"
            )
    ids = tuple(id_ if id_ in row_of else renamed.get(id_, [id_])[0] for id_ in ids)
    unknown = [id_ for id_ in ids if id_ not in row_of]
    if unknown:
        raise InputError(f"selection.{name}: no sample of the pool has the id {unknown[0]!r} ({len(unknown)} such ids)")
    return [row_of[id_] for id_ in ids]
