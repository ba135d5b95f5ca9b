"""The smallest k with which a sample is picked: a run's selection is extended from its picks until it picks the sample.

Belongs here: the exact search, with the run's qualities, caps and floors. Does not: why a sample was left out
(`explain`).

Without floors, the picks of a larger k begin with those of a smaller one. Floors reserve the last places for labels
with too few samples, so a larger k diverges from the run's picks at the first reserved place; from there it continues
as if there were no floors until its own places must be reserved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.audit.explain import Explanation
from novelsum_dagster.audit.run_selection import RunSelection
from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.selection.limits import Quota
from novelsum_dagster.selection.novelselect import novelselect

_TIMES_K = 4
"""The selection is extended up to this multiple of its k."""
_LEAST_STEP = 16


@dataclass(frozen=True)
class SmallestK:
    """Result of the search: `k`, or `more_than` (no k up to this one), or the reason why there is none.

    Exactly one of the fields is not None.
    """

    k: int | None = None
    more_than: int | None = None
    none_because: str | None = None


def with_smallest_k(
    connection: Connection, root: Path, found: Explanation, progress: Progress = no_progress
) -> Explanation:
    """Return an explanation with the smallest k that lets the sample in, or why there is none.

    Adds the facts `smallest_k`, `smallest_k_is_more_than` and `no_smallest_k_because`, of which one is not None.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        found: the explanation.
        progress: as `smallest_k` calls it.

    Raises:
        InputError: as `smallest_k` does.
    """
    if found.outcome == "chosen":
        answer = _of_pick(found)
    elif found.outcome == "left out":
        answer = smallest_k(connection, root, found.run, found.sample["id"], progress)
    else:
        answer = SmallestK(none_because="it is not in the pool")
    return found.with_facts(
        smallest_k=answer.k, smallest_k_is_more_than=answer.more_than, no_smallest_k_because=answer.none_because
    )


def _of_pick(found: Explanation) -> SmallestK:
    if reason := _no_k(found.run):
        return SmallestK(none_because=reason)
    if found.facts["chosen_by"] not in ("score", "seed"):
        return SmallestK(none_because="it was not picked by score")
    if any(quota.get("floors") for quota in found.run.options.get("quotas", ())):
        return SmallestK(none_because="the run has floors, which reserve other places for a smaller k")
    return SmallestK(k=found.facts["rank"])


def _no_k(run: Run) -> str | None:
    """Return why no k can be given for any sample of a run; None if one can."""
    options = run.options
    if run.strategy != "novelselect":
        return f"{run.strategy} scores no candidates, so it cannot be extended"
    if options.get("token_budget") is not None:
        return "the run counts tokens (selection.token_budget), not samples"
    if options.get("partitions") is not None:
        return "the run selected in parts (selection.partitions), whose picks differ for each k"
    if options.get("swap_rounds"):
        return "the run exchanged picks at the end (selection.swap_rounds); a larger k exchanges others"
    return None


def smallest_k(
    connection: Connection, root: Path, run: Run, id_: str, progress: Progress = no_progress, times_k: int = _TIMES_K
) -> SmallestK:
    """Return the smallest k, above that of the run, with which a left-out sample of its pool is picked.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        run: which run.
        id_: of the sample.
        progress: called with the picks made and the largest possible number of picks.
        times_k: multiple of the run's k up to which the selection is extended.

    Raises:
        InputError: if vectors are missing or files damaged.
    """
    options = run.options
    if reason := _no_k(run):
        return SmallestK(none_because=reason)
    if id_ in options.get("must_exclude", ()):
        return SmallestK(none_because="the settings exclude it (selection.must_exclude), whatever k is")
    if options.get("extends") and any(quota.get("floors") for quota in options.get("quotas", ())):
        return SmallestK(none_because="the run extends an earlier subset and has floors")
    selection = RunSelection(connection, root, run)
    columns = [quota["column"] for quota in options.get("quotas", ())]
    for name in (*columns, *([options["quality"]] if options.get("quality") else [])):
        if not selection.can_read(name):
            return SmallestK(none_because=f"{name} of records that are Arrow rows can be read for the newest pool only")
    return _Selection(selection, id_, progress).find(times_k * run.k)


class _Selection:
    """A run's selection: its settings and its picks."""

    def __init__(self, made: RunSelection, id_: str, progress: Progress) -> None:
        self._picks = np.array([made.row_of[pick] for pick in made.picks], np.int64)
        self._sample = made.row_of[id_]
        self._progress = progress
        self._excluded = [made.row_of[one] for one in made.run.options.get("must_exclude", ())]
        self._quotas, self._quality = made.quotas, made.quality
        self._factor, self._vectors = made.factor, made.vectors
        self._scoring, self._seed = made.scoring, made.run.seed
        self._given = len(made.run.options.get("must_include", ()))
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
        # Reserved places may let the sample in earlier, if its label has too few samples.
        before = end + 1 if at is None else at
        for k in range(len(self._picks) + 1, before) if self._lacks(kept) else ():
            if self._is_in(k, kept):
                return SmallestK(k)
            self._progress(k, end)
        if at is not None and at <= end:
            return SmallestK(at)
        if end < bound:
            return SmallestK(
                none_because=f"the pool and the limits allow at most {end:,} picks, and it is not among them"
            )
        return SmallestK(more_than=bound)

    def _room(self) -> int:
        """Return the number of picks that the pool and the caps of each column allow."""
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
        """Return the number of places to reserve after 0, 1, ... picks: the largest deficit of any column's floors."""
        most = np.zeros(len(picks) + 1, np.int64)
        for quota in self._quotas:
            labels = np.asarray(quota.labels)[picks]
            lacking = np.zeros(len(picks) + 1, np.int64)
            for label, floor in quota.floors.items():
                lacking += np.maximum(floor - np.concatenate([[0], np.cumsum(labels == label)]), 0)
            most = np.maximum(most, lacking)
        return most

    def _kept(self) -> int:
        """Return the number of picks made before a place was reserved: a larger k begins with them."""
        lacking = self._lacking(self._picks)
        made = np.arange(len(lacking))
        bound = np.flatnonzero((lacking > 0) & (made + lacking >= len(self._picks)))
        return max(int(bound[0]), self._given) if len(bound) else len(self._picks)

    def _free_k(self, path: NDArray[np.int64] | None) -> int | None:
        """Return the smallest k that makes all picks of a path before it reserves places."""
        if path is None:
            return None
        lacking = self._lacking(path)[:-1]
        made = np.arange(len(lacking))
        return max(len(path), int((made + lacking + 1)[lacking > 0].max(initial=0)))

    def _full_cap(self, kept: NDArray[np.int64]) -> str | None:
        """Return the cap, as text, that these picks reach and that excludes the sample; None if there is none."""
        for quota in self._quotas:
            labels = np.asarray(quota.labels)
            label = str(labels[self._sample])
            if label in quota.caps and (labels[kept] == label).sum() >= quota.caps[label]:
                return f"the cap of {quota.caps[label]:,} on {quota.name} {label} is reached before it, whatever k is"
        return None

    def _lacks(self, kept: NDArray[np.int64]) -> bool:
        """Return whether the floor of the sample's label is unmet after these picks, in any column."""
        for quota in self._quotas:
            labels = np.asarray(quota.labels)
            floor = quota.floors.get(str(labels[self._sample]), 0)
            if (labels[kept] == labels[self._sample]).sum() < floor:
                return True
        return False

    def _until_picked(self, kept: NDArray[np.int64], end: int) -> tuple[NDArray[np.int64] | None, int]:
        """Extend without floors; return the picks up to and including the sample, or None if it is not picked by `end`.

        In growing steps: each begins with a pass over the earlier picks. Caps on several columns may together allow
        fewer picks than each alone; the returned `end` is as far as the selection can be extended.
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
        """Return whether a selection of k picks has the sample; False if its floors contradict each other."""
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
