"""The inputs of a run's selection, read from the storage when they are asked for.

Belongs here: pool, vectors, densities, fields and settings of one run, as its selection used them. Does not: selecting
again (`attribution`, `smallest_k`), one sample's fields (`run_fields`).
"""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.audit.changed_settings import settings_of
from novelsum_dagster.audit.run_fields import can_read, pool_of
from novelsum_dagster.audit.verified import verified_run
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import read_json
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.diversity.growth import Nearest
from novelsum_dagster.embedding.own_vectors import BACKEND
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import field_values, positive_numbers
from novelsum_dagster.selection.extension import EXTENDS, Earlier, earlier_subset, present_ids
from novelsum_dagster.selection.limits import Quota
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.settings import NovelSum, Selection, Settings

_NO_PART = ("batching", "dimension")
"""Facts in a model's file that are no setting."""


class RunSelection:
    """A run's selection.

    Args:
        connection: to the lineage, for reading; in use as long as this is.
        root: the storage folder.
        run: which run.
    """

    def __init__(self, connection: Connection, root: Path, run: Run) -> None:
        self.run, self.root, self._connection = run, root, connection
        self.pool = pool_of(connection, root, run)

    @cached_property
    def ids(self) -> list[str]:
        """The pool, in order.

        Raises:
            InputError: if its files are missing or damaged.
        """
        try:
            found: list[str] = self.pool.samples(self.root, ["id"])["id"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"the pool of run {self.run.short} cannot be read: {error}") from error
        return found

    def require_undamaged(self, files: Collection[str], if_present: Collection[str] = ()) -> None:
        """Check files of the run's outputs, as `verified_run` does.

        Raises:
            InputError: naming every file that is missing or damaged.
        """
        verified_run(self._connection, self.root, self.run.run_id, files, if_present)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each sample."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    @cached_property
    def dropped(self) -> frozenset[str]:
        """Near-duplicates that were read and dropped."""
        if not self.pool.near_duplicates_dropped:
            return frozenset()
        return frozenset(self.pool.table(self.root, "near_duplicates", ["id"])["id"].to_pylist())

    @cached_property
    def picks(self) -> list[str]:
        """Ids of the picks, in order."""
        rows = self._connection.execute(
            "SELECT id FROM picks WHERE selection = ? ORDER BY rank", [self.run.selection]
        ).fetchall()
        return [row[0] for row in rows]

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """float32, (n, d), in pool order.

        Raises:
            InputError: if some are missing or damaged.
        """
        return load_vectors(self.root / self.run.vectors_folder, self.ids)

    @cached_property
    def model(self) -> dict[str, Any]:
        """The parts of the model's key, by name as in the section `embedding`, and the number type of its weights."""
        try:
            facts = read_json(self.root / self.run.vectors_folder / "model.json")
        except (OSError, ValueError):
            facts = {"name": self.run.model, "revision": self.run.model_revision}
        return {"model": facts.pop("name"), **{name: value for name, value in facts.items() if name not in _NO_PART}}

    @property
    def is_fitted(self) -> bool:
        """Whether PCA, fitted on the pool, transformed the vectors."""
        return bool(self.model.get("fitted_on"))

    @property
    def has_own_vectors(self) -> bool:
        """Whether the vectors are the user's own."""
        return self.model.get("backend") == BACKEND

    @cached_property
    def squared(self) -> NDArray[np.float64]:
        """Mean squared distances to the nearest neighbours, float64, (n,), in pool order.

        Raises:
            InputError: if a sample has none.
        """
        found = self._connection.execute(
            "SELECT id, mean_squared_distance FROM density WHERE density = ?", [self.run.density]
        ).fetchnumpy()
        known = dict(zip(found["id"].tolist(), found["mean_squared_distance"].tolist(), strict=True))
        if missing := [id_ for id_ in self.ids if id_ not in known]:
            raise InputError(f"the densities of run {self.run.short} lack {len(missing):,} samples of its pool")
        return np.array([known[id_] for id_ in self.ids], np.float64)

    @property
    def factor(self) -> NDArray[np.float64]:
        """Density factors, float64, (n,), in pool order."""
        return density_factor(self.squared, self.run.density_power)

    def nearest(self) -> Nearest | None:
        """Return the stored result of the search for neighbours; None if there is none."""
        path = self.root / output_folder("density", self.run.density) / "nearest.parquet"
        try:
            return Nearest.of_table(pq.read_table(path, partitioning=None), self.settings.novelsum.neighbors)
        except (OSError, pa.ArrowException):
            return None

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the values that the launchpad overrode.

        Raises:
            InputError: if they are those of another version.
        """
        return settings_of(self.run)

    @property
    def novelsum(self) -> NovelSum:
        """The section `novelsum`, with the powers in force."""
        return self.settings.novelsum

    @cached_property
    def selection(self) -> Selection:
        """The section `selection`; samples that it names have their present ids."""
        section = self.settings.selection
        named = {name: ids for name in ("must_include", "must_exclude") if (ids := getattr(section, name))}
        renamed = self.pool.ids_by_former(self.root) if named else {}
        present = {name: tuple(present_ids(ids, self.row_of, renamed)) for name, ids in named.items()}
        return section.model_copy(update=present)

    @property
    def scoring(self) -> Scoring:
        """The score."""
        return Scoring.recorded(self.run.options, self.run.proximity_power)

    @cached_property
    def earlier(self) -> Earlier | None:
        """The subset that the run extended; None if it extended none.

        Raises:
            InputError: if its picks are missing or damaged.
        """
        return earlier_subset(self.root, self.pool, self.run.options[EXTENDS]) if EXTENDS in self.run.options else None

    def can_read(self, name: str) -> bool:
        """Return whether a column or field can be read for all samples."""
        return can_read(self.pool, name)

    def values(self, name: str) -> list[Any]:
        """Return a column or field of every sample, in pool order.

        Raises:
            InputError: if no sample has it, or the pool's files are of a format whose schema is gone.
        """
        if not self.can_read(name):
            raise InputError(f"{name} of records that are Arrow rows can be read for the newest pool only")
        return field_values(self.pool, self.root, name)

    @cached_property
    def quality(self) -> NDArray[np.float64] | None:
        """Quality, float64, (n,), in pool order; None if the run has none."""
        name = self.run.options.get("quality")
        return None if name is None else np.array(positive_numbers(self.pool, self.root, name))

    @cached_property
    def quotas(self) -> list[Quota]:
        """The quotas, with the label of every sample."""
        return [
            Quota(
                [str(value) for value in field_values(self.pool, self.root, quota["column"])],
                quota.get("caps", {}),
                quota.get("floors", {}),
                quota["column"],
            )
            for quota in self.run.options.get("quotas", ())
        ]
