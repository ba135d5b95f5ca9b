"""Selection by settings: ids become rows, fields become qualities and labels.

Belongs here: from settings to the call of a strategy, and to a subset. Does not: the strategies, a subset's files
(`subset`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.tables import DensityTable
from novelsum_dagster.pool.fields import field_values, positive_numbers
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.extension import EXTENDS, Earlier, present_ids
from novelsum_dagster.selection.inputs import check_k
from novelsum_dagster.selection.limits import Quota, Wanted
from novelsum_dagster.selection.novelselect import NovelSelectOptions, novelselect_by
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.selection.subset import Subset, describe, write_subset
from novelsum_dagster.settings import Selection, Settings, problems


@dataclass(frozen=True)
class PoolSelection:
    """A selection from a pool that the settings describe.

    Attributes:
        root: the storage folder.
        snapshot: the pool.
        vectors: float32, (n, d), in pool order.
        selection: the settings; its seed, verify and k or budget count, not those of `options`.
        options: of NovelSelect: the score, where it works; progress is that of every strategy.
        earlier: the subset whose samples are the first picks; `selection.extend_by` are added to them.
        spread: of an engine; default: this process.
    """

    root: Path
    snapshot: PoolSnapshot
    vectors: NDArray[np.float32]
    selection: Selection
    options: NovelSelectOptions
    earlier: Earlier | None = None
    spread: Spread = in_turn

    def picks(self, density_factor: NDArray[np.float64], checkpoint: Path | None = None) -> Picks:
        """Return the picks.

        Args:
            density_factor: float64, (n,).
            checkpoint: where NovelSelect saves its picks, so that an interrupted selection can resume.

        Raises:
            InputError: for unknown ids, or samples without the field that the settings name.
            ValueError: as the strategy does.
        """
        selection, quality = self.selection, None
        if selection.quality is not None:
            quality = np.array(positive_numbers(self.snapshot, self.root, selection.quality))
        options = replace(self.options, seed=selection.seed, verify=selection.verify, checkpoint=checkpoint)
        return picks_by(selection, options, self.vectors, density_factor, quality, self._wanted, self.spread)

    def _wanted(self) -> Wanted:
        """Return which samples NovelSelect may and must pick, those of the extended subset first."""
        wanted = _wanted(self.snapshot, self.root, self.selection)
        if self.earlier is None or self.selection.extend_by is None:
            return wanted
        row_of = _row_of(self.snapshot, self.root)
        kept = [row_of[id_] for id_ in self.earlier.kept]
        return replace(wanted, k=len(kept) + self.selection.extend_by, initial=kept)

    def reached(self, picks: Picks, density_factor: NDArray[np.float64]) -> dict[str, Any]:
        """Return the outcome of a selection by density_side `objective` (`objective_facts`); empty for other sides.

        Raises:
            ValueError, NotEnoughMemory: as `objective_facts` does.
        """
        scoring = self.options.scoring
        if scoring.density_side != "objective":
            return {}
        from novelsum_dagster.selection.swaps import objective_facts

        return objective_facts(self.vectors, density_factor, picks, scoring, self.options.progress)

    def subset(self, vectors_key: str, density: DensityTable) -> Subset:
        """Choose the subset and write it; an interrupted selection resumes from its checkpoint.

        Args:
            vectors_key: of the set of vectors.
            density: of the pool; its factor has the power of the options.

        Raises:
            ValueError: as `picks` does.
        """
        own, scoring, power = describe(self.selection), self.options.scoring, self.options.density_power
        extends = {EXTENDS: self.earlier.key} if self.earlier else {}
        described = {
            **own,
            "options": {**own["options"], **scoring.measured(), **extends},
            "density_power": power,
            "proximity_power": scoring.proximity_power,
            "snapshot": self.snapshot.key,
            "vectors": vectors_key,
            "density": density.key,
        }
        factor = density.factor(self.root, power)
        picks = self.picks(factor, self.root / "checkpoints" / f"{content_key(described)}.parquet")
        reached = self.reached(picks, factor)
        return write_subset(self.snapshot, self.root, picks, self.vectors, described, reached)


def picks_by(
    selection: Selection,
    options: NovelSelectOptions,
    vectors: NDArray[np.float32],
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None,
    wanted: Callable[[], Wanted],
    spread: Spread = in_turn,
) -> Picks:
    """Return the picks of a selection from vectors: by another strategy, by NovelSelect in parts or as a whole.

    Args:
        selection: the settings.
        options: of NovelSelect, with the seed of the settings; progress is that of every strategy.
        vectors: float32, (n, d).
        density_factor: float64, (n,).
        quality: float64, (n,), or None.
        wanted: returns which samples NovelSelect as a whole may and must pick.
        spread: of an engine, for parts; default: this process.

    Raises:
        ValueError: as the strategy does.
    """
    if selection.strategy != "novelselect":
        return select(
            selection.strategy,
            vectors,
            selection.k,
            density_factor=density_factor,
            quality=quality,
            seed=selection.seed,
            progress=options.progress,
            **selection.options,
        )
    if selection.k is not None and selection.partitions is not None:
        return partitioned(
            vectors,
            selection.k,
            partitions=selection.partitions,
            density_factor=density_factor,
            quality=quality,
            options=options,
            spread=spread,
        )
    return novelselect_by(vectors, wanted(), options, density_factor, quality)


def with_config(settings: Settings, config: Mapping[str, Any]) -> tuple[Selection, NovelSelectOptions]:
    """Return the settings of a selection and its score and powers, with the values that the launchpad overrides.

    Raises:
        InputError: if these contradict each other.
    """
    instead = {name: value for name, value in config.items() if name in Selection.model_fields}
    try:
        selection = Selection.model_validate({**settings.selection.model_dump(), **instead})
    except ValidationError as error:
        raise InputError(problems(error, "selection")) from None
    scoring = replace(Scoring.of(selection, settings.novelsum), proximity_power=config["proximity_power"])
    return selection, NovelSelectOptions(scoring, density_power=config["density_power"])


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
        wanted = _wanted(snapshot, root, selection)
        wanted.limits(snapshot.kept).take_given(wanted.given(snapshot.kept).indices.tolist())


def _wanted(snapshot: PoolSnapshot, root: Path, selection: Selection) -> Wanted:
    """Return which samples the settings allow and require."""
    wanted = Wanted(
        selection.k,
        quotas=[
            Quota(_labels(snapshot, root, quota.column), quota.caps, quota.floors, quota.column)
            for quota in selection.quotas
        ],
    )
    if selection.must_include or selection.must_exclude:
        row_of, renamed = _row_of(snapshot, root), snapshot.ids_by_former(root)
        wanted = replace(
            wanted,
            must_include=_rows(row_of, renamed, selection.must_include, "must_include"),
            must_exclude=_rows(row_of, renamed, selection.must_exclude, "must_exclude"),
        )
    if selection.token_budget is not None:
        tokens = np.array(field_values(snapshot, root, "tokens"), dtype=np.float64)
        wanted = replace(wanted, cost=tokens, budget=selection.token_budget)
    return wanted


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
    present = present_ids(ids, row_of, renamed)
    unknown = [id_ for id_ in present if id_ not in row_of]
    if unknown:
        raise InputError(f"selection.{name}: no sample of the pool has the id {unknown[0]!r} ({len(unknown)} such ids)")
    return [row_of[id_] for id_ in present]
