"""The smallest k that lets a sample in: a run's selection goes on from its picks until the sample is picked.

Belongs here: that, exactly, with the run's qualities, caps and floors. Does not: why a sample was left out (`explain`).

Without floors the picks of a larger k begin with those of a smaller one. Floors keep the last places free for labels
that lack samples, so a larger k parts from the run's picks at the first place that was kept free; after it, it goes on
as if there were no floors until its own places must be kept free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.audit.run_fields import can_read, pool_of
from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import field_values, positive_numbers
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.limits import Quota
from novelsum_dagster.selection.novelselect import novelselect
from novelsum_dagster.selection.scoring import Scoring

_TIMES_K = 4
"""The selection goes on up to so many times its k."""
_LEAST_STEP = 16


@dataclass(frozen=True)
class SmallestK:
    """What was found: `k`; or else `more_than`, up to which the sample is not in; or else, in words, why there is none.

    Exactly one of them is not None.
    """

    k: int | None = None
    more_than: int | None = None
    none_because: str | None = None

    @property
    def words(self) -> str:
        """The same as a sentence."""
        if self.k is not None:
            return f"The smallest k that lets it in is {self.k:,}."
        if self.more_than is not None:
            return f"The smallest k that lets it in is more than {self.more_than:,}: so far the selection went on."
        return f"No smallest k is given: {self.none_because}."


def smallest_k(
    connection: Connection, root: Path, run: Run, id_: str, progress: Progress = no_progress, times_k: int = _TIMES_K
) -> SmallestK:
    """Return the smallest k, over that of the run, with which a sample of its pool that was left out is picked.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        run: which run.
        id_: of the sample.
        progress: called with picks made, and those that are made at most.
        times_k: up to how many times the run's k the selection goes on.

    Raises:
        InputError: where vectors are missing or files damaged.
    """
    options = run.options
    if run.strategy != "novelselect":
        return SmallestK(none_because=f"{run.strategy} scores no candidates, so there is nothing to go on with")
    if options.get("token_budget") is not None:
        return SmallestK(none_because="the run counts tokens (selection.token_budget), not samples")
    if options.get("partitions") is not None:
        return SmallestK(none_because="the run selected in parts (selection.partitions), which pick anew for each k")
    if options.get("swap_rounds"):
        return SmallestK(
            none_because="the run exchanged picks in the end (selection.swap_rounds); a larger k exchanges others"
        )
    if id_ in options.get("must_exclude", ()):
        return SmallestK(none_because="the settings exclude it (selection.must_exclude), whatever k is")
    if options.get("extends") and any(quota.get("floors") for quota in options.get("quotas", ())):
        return SmallestK(none_because="the run extends an earlier subset and has floors")
    pool = pool_of(connection, root, run)
    columns = [quota["column"] for quota in options.get("quotas", ())]
    for name in (*columns, *([options["quality"]] if options.get("quality") else [])):
        if not can_read(pool, name):
            return SmallestK(none_because=f"{name} of records that are Arrow rows can be read for the newest pool only")
    return _Selection(connection, root, run, pool, id_, progress).find(times_k * run.k)


class _Selection:
    """A run's selection, as it was asked for, with its picks."""

    def __init__(
        self, connection: Connection, root: Path, run: Run, pool: PoolSnapshot, id_: str, progress: Progress
    ) -> None:
        ids = pool.samples(root, ["id"])["id"].to_pylist()
        row_of = {one: row for row, one in enumerate(ids)}
        rows = connection.execute("SELECT id FROM picks WHERE selection = ? ORDER BY rank", [run.selection]).fetchall()
        self._picks = np.array([row_of[row[0]] for row in rows], np.int64)
        self._sample = row_of[id_]
        self._progress = progress
        self._excluded = [row_of[one] for one in run.options.get("must_exclude", ())]
        self._quotas = [
            Quota(
                [str(value) for value in field_values(pool, root, quota["column"])],
                quota.get("caps", {}),
                quota.get("floors", {}),
                quota["column"],
            )
            for quota in run.options.get("quotas", ())
        ]
        quality = run.options.get("quality")
        self._quality = None if quality is None else np.array(positive_numbers(pool, root, quality))
        self._factor = _factors(connection, run, row_of)
        self._vectors = load_vectors(root / run.vectors_folder, ids)
        self._scoring, self._seed = Scoring.recorded(run.options, run.proximity_power), run.seed
        self._given = len(run.options.get("must_include", ()))
        self._device = cuda_or_cpu("auto")

    def find(self, bound: int) -> SmallestK:
        """Return the smallest k, up to a bound."""
        end = min(bound, self._room())
        kept = self._picks[: self._kept()]
        full = self._full_cap(kept)
        if full:
            return SmallestK(none_because=full)
        path, end = self._until_picked(kept, end)
        at = self._free_k(path)
        # Places that are kept free may let the sample in earlier, where its label lacks samples.
        before = end + 1 if at is None else at
        for k in range(len(self._picks) + 1, before) if self._lacks(kept) else ():
            if self._is_in(k, kept):
                return SmallestK(k)
            self._progress(k, end)
        if at is not None and at <= end:
            return SmallestK(at)
        if end < bound:
            return SmallestK(
                none_because=f"the pool and the limits allow no more than {end:,} picks, and it is in none"
            )
        return SmallestK(more_than=bound)

    def _room(self) -> int:
        """Return how many picks the pool and the caps of each column allow."""
        n = len(self._vectors)
        open_ = np.ones(n, np.bool_)
        open_[self._excluded] = False
        most = int(open_.sum())
        for quota in self._quotas:
            names, sizes = np.unique(np.asarray(quota.labels)[open_], return_counts=True)
            caps = [quota.caps.get(name, n) for name in names.tolist()]
            most = min(most, int(np.minimum(sizes, caps).sum()))
        return most

    def _lacking(self, picks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many places must be kept free after 0, 1, ... picks: the most that any column's floors lack."""
        most = np.zeros(len(picks) + 1, np.int64)
        for quota in self._quotas:
            labels = np.asarray(quota.labels)[picks]
            lacking = np.zeros(len(picks) + 1, np.int64)
            for label, floor in quota.floors.items():
                lacking += np.maximum(floor - np.concatenate([[0], np.cumsum(labels == label)]), 0)
            most = np.maximum(most, lacking)
        return most

    def _kept(self) -> int:
        """Return how many of the run's picks were made before a place was kept free: a larger k begins with them."""
        lacking = self._lacking(self._picks)
        made = np.arange(len(lacking))
        bound = np.flatnonzero((lacking > 0) & (made + lacking >= len(self._picks)))
        return max(int(bound[0]), self._given) if len(bound) else len(self._picks)

    def _free_k(self, path: NDArray[np.int64] | None) -> int | None:
        """Return the smallest k that makes all picks of a path, the last one too, before it keeps places free."""
        if path is None:
            return None
        lacking = self._lacking(path)[:-1]
        made = np.arange(len(lacking))
        return max(len(path), int((made + lacking + 1)[lacking > 0].max(initial=0)))

    def _full_cap(self, kept: NDArray[np.int64]) -> str | None:
        """Return, in words, the cap that these picks reach and that bars the sample; None if there is none."""
        for quota in self._quotas:
            labels = np.asarray(quota.labels)
            label = str(labels[self._sample])
            if label in quota.caps and (labels[kept] == label).sum() >= quota.caps[label]:
                return f"the cap of {quota.caps[label]:,} on {quota.name} {label} is reached before it, whatever k is"
        return None

    def _lacks(self, kept: NDArray[np.int64]) -> bool:
        """Return whether the sample's label lacks samples after these picks, in any column."""
        for quota in self._quotas:
            labels = np.asarray(quota.labels)
            floor = quota.floors.get(str(labels[self._sample]), 0)
            if (labels[kept] == labels[self._sample]).sum() < floor:
                return True
        return False

    def _until_picked(self, kept: NDArray[np.int64], end: int) -> tuple[NDArray[np.int64] | None, int]:
        """Go on without floors; return the picks up to the sample, it too, or None if it is in none up to `end`.

        In growing steps: each begins with a pass over the picks before it. Caps on several columns may together allow
        fewer picks than those of each; `end` is returned as far as the selection can go on.
        """
        caps = [replace(quota, floors={}) for quota in self._quotas if quota.caps]
        made, step = kept, max(_LEAST_STEP, len(kept) // 8)
        while len(made) < end:
            size = min(end, len(made) + step)
            try:
                going_on = self._select(size, made, caps, end)
            except ValueError:
                if len(caps) < 2:
                    raise
                end, step = size - 1, max(1, (size - len(made)) // 2)
                continue
            at = np.flatnonzero(going_on == self._sample)
            if len(at):
                return going_on[: at[0] + 1], end
            made, step = going_on, 2 * step
        return None, end

    def _is_in(self, k: int, kept: NDArray[np.int64]) -> bool:
        """Return whether the selection of k picks has the sample; one whose floors contradict each other has not."""
        try:
            return self._sample in self._select(k, kept, self._quotas, k)
        except ValueError:
            if len(self._quotas) < 2:
                raise
            return False

    def _select(self, k: int, initial: NDArray[np.int64], quotas: Sequence[Quota], total: int) -> NDArray[np.int64]:
        return novelselect(
            self._vectors,
            k,
            density_factor=self._factor,
            quality=self._quality,
            seed=self._seed,
            initial=initial,
            must_exclude=self._excluded,
            quotas=quotas,
            device=self._device,
            progress=lambda done, _: self._progress(done, total),
            **self._scoring.options(),
        ).indices


def _factors(connection: Connection, run: Run, row_of: dict[str, int]) -> NDArray[np.float64]:
    """Return the density factors as the selection had them, float64, (n,), in pool order."""
    found = connection.execute(
        "SELECT id, mean_squared_distance FROM density WHERE density = ?", [run.density]
    ).fetchnumpy()
    squared = np.empty(len(row_of))
    squared[[row_of[id_] for id_ in found["id"].tolist()]] = found["mean_squared_distance"]
    return density_factor(squared, run.density_power)
