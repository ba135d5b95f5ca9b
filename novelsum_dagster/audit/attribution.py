"""Which input changed a pick: run a's selection is replayed with the inputs of run b, one or two at a time.

Belongs here: the state of a selection, states with some inputs of either run, the replay, the attribution. Does not:
reading a run's state (`run_selection`), which inputs differ (`changed_inputs`), sentences (`cause_words`).

A sample left because of an input if run a no longer picks it once that input alone is as in run b; it entered because
of an input if run a then picks it. Several inputs may each do that. Two inputs caused it together if neither does alone
and both do; all of them if no one and no two do.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import Search, densities, density_factor
from novelsum_dagster.diversity.growth import Nearest, nearest_in_pool
from novelsum_dagster.selection.chosen import picks_by
from novelsum_dagster.selection.inputs import check_quality
from novelsum_dagster.selection.limits import Quota, Wanted
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.settings import NovelSum, Selection

Kind = Literal["attributed", "together", "possible"]

ORDER, ADDED, REMOVED, NEAR = "order", "data_added", "data_removed", "near_duplicates"
VECTORS, DENSITIES = "vectors", "densities"
QUALITY, LABELS, TOKENS = "quality_values", "labels", "tokens"
EXTENDS, CODE, IDS = "extends", "code", "renamed_ids"
SIZE = "selection.k"
OF_POOL = (ADDED, REMOVED, NEAR)
DENSITY_SETTINGS = ("neighbors", "neighbor_policy", "density_index", "min_recall")
"""Settings of the section `novelsum` that change the stored densities."""
_FIELDS_TOGETHER = (
    ("k", "token_budget", "extend_by"),
    ("strategy", "kmeans", "qdit", "repr_filter", "gist", "duplicate"),
    ("density_side", "swap_rounds"),
)
"""Settings of the section `selection` that only make sense together: they count as one input."""

PAIRS = 900_000_000
"""Most pairs of a candidate and a pick that are scored by replays: about a minute on two cores."""
FEW_PAIRS = PAIRS // 6
"""The same for the asset `changes`, which compares at the end of every run: about ten seconds."""
_NEIGHBOR_PAIRS = 4
"""Pairs that a search of neighbours compares in the time in which a selection scores one."""
_SIDE_PAIRS = {"both": 1, "row": 1, "column": 4, "objective": 12}
"""How many times longer a pair takes by density side."""


class NotKnown(Exception):
    """A replay cannot be made: data is missing or unreadable, or it would take too long. The message says which."""


class Impossible(Exception):
    """A state that no selection accepts, as a k larger than the pool."""


class ById:
    """Values by sample id.

    Args:
        ids: of the samples, (n,).
        values: of each: an array, (n, ...), or values of any kind.
    """

    def __init__(self, ids: Sequence[str], values: NDArray[Any] | Sequence[Any]) -> None:
        self._row_of = {id_: row for row, id_ in enumerate(ids)}
        self._values = values if isinstance(values, np.ndarray) else _objects(values)

    def of(self, ids: Sequence[str], otherwise: "ById | None" = None) -> NDArray[Any]:
        """Return the values of samples; of those that are not known, from another one.

        Raises:
            NotKnown: if one has none.
        """
        rows = np.array([self._row_of.get(id_, -1) for id_ in ids], np.int64)
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return self._values[rows]
        if otherwise is None:
            raise NotKnown(f"{len(missing):,} samples have no stored values under the other run's inputs")
        rest = otherwise.of([ids[place] for place in missing.tolist()])
        if rest.shape[1:] != self._values.shape[1:]:
            raise NotKnown("the vectors of the two runs have different dimensions")
        found = np.empty((len(ids), *self._values.shape[1:]), np.result_type(self._values, rest))
        found[rows >= 0], found[missing] = self._values[rows[rows >= 0]], rest
        return found


@dataclass(frozen=True)
class State:
    """All that a selection depends on.

    Attributes:
        ids: the pool, in order.
        dropped: near-duplicates that were read and dropped from the pool.
        vectors: float32, (d,) each, of the pool's samples, perhaps of more.
        is_fitted: whether the vectors are fitted on the pool (PCA), so that no other pool has them.
        squared: mean squared distances to the nearest neighbours, float64, of the pool's samples.
        nearest: returns the stored result of the neighbour search; None if it has none.
        values: returns a column or field of every sample, by name; raises NotKnown.
        selection: the settings.
        novelsum: the section, with the powers in force.
        kept: the samples of the subset that is extended, in pick order; None without one.
        picks: recorded, in order.
    """

    ids: tuple[str, ...]
    dropped: frozenset[str]
    vectors: ById
    is_fitted: bool
    squared: ById
    nearest: Callable[[], Nearest | None]
    values: Callable[[str], ById]
    selection: Selection
    novelsum: NovelSum
    kept: tuple[str, ...] | None
    picks: tuple[str, ...]


@dataclass(frozen=True)
class Cause:
    """Why a sample entered or left.

    Attributes:
        kind: attributed: each of the causes alone does it; together: they all do it together, and no one and no two of
            them do, unless they are two; possible: no replay decided, and no other input had a part.
        codes: of the inputs.
    """

    kind: Kind
    codes: tuple[str, ...]


@dataclass(frozen=True)
class MovedSample:
    """A sample that entered or left the subset.

    Attributes:
        entered: whether it entered; otherwise it left.
        outside: the input because of which it is not in the other run's pool; None if it is.
    """

    entered: bool
    outside: str | None = None


@dataclass
class Attribution:
    """The causes by sample id, the number of selections replayed, and why others were not (None: none was needed)."""

    causes: dict[str, Cause] = field(default_factory=dict)
    replayed: int = 0
    not_replayed: str | None = None


def attribute(
    changes: Mapping[str, MovedSample],
    codes: Sequence[str],
    grows: bool | None,
    replays: Callable[[], "Replays"],
) -> Attribution:
    """Find the cause of every change.

    Args:
        changes: the samples that entered or left, by id.
        codes: of the inputs that differ.
        grows: what `grows` returns.
        replays: reads the states; called only if a replay is needed. May raise NotKnown.
    """
    found = Attribution()
    may = {id_: _may(change, codes, grows) for id_, change in changes.items()}
    for id_, change in changes.items():
        if change.outside == IDS or (change.outside is not None and not change.entered):
            found.causes[id_] = Cause("attributed", (change.outside,))
        elif len(may[id_]) == 1:
            found.causes[id_] = Cause("attributed", may[id_])
    rest = {id_: change for id_, change in changes.items() if id_ not in found.causes}
    if rest and codes:
        try:
            _replay(found, rest, may, replays())
        except NotKnown as error:
            found.not_replayed = str(error)
    for id_ in rest:
        found.causes.setdefault(id_, Cause("possible", may[id_]))
    return found


def _replay(
    found: Attribution, rest: Mapping[str, MovedSample], may: Mapping[str, tuple[str, ...]], replays: "Replays"
) -> None:
    """Add the causes that replays decide.

    Raises:
        NotKnown: if today's selection does not reproduce the picks of both runs.
    """
    try:
        replays.require_reproduced()
        undecided: set[str] = set()
        for size in (1, 2):
            left = rest.keys() - found.causes.keys() - undecided
            open_ = {id_: sample for id_, sample in rest.items() if id_ in left}
            for id_, sets in _explained(found, open_, may, replays, size, undecided).items():
                alone = tuple(code for (code,) in sets) if size == 1 else ()
                found.causes[id_] = Cause("attributed", alone) if alone else Cause("together", sets[0])
        for id_ in rest.keys() - found.causes.keys() - undecided:
            found.causes[id_] = Cause("together", tuple(code for code in may[id_] if code in replays.codes))
    finally:
        found.replayed = replays.made


def _explained(
    found: Attribution,
    samples: Mapping[str, MovedSample],
    may: Mapping[str, tuple[str, ...]],
    replays: "Replays",
    size: int,
    undecided: set[str],
) -> dict[str, list[tuple[str, ...]]]:
    """Return for each sample the sets of this many inputs that do what it did; add those without an answer."""
    explained: dict[str, list[tuple[str, ...]]] = {}
    for chosen in combinations(replays.codes, size):
        open_ = [id_ for id_, sample in samples.items() if _can(sample, may[id_], chosen)]
        try:
            picks = replays.picks(frozenset(chosen)) if open_ else frozenset()
        except Impossible:
            continue
        except NotKnown as error:
            found.not_replayed = str(error)
            undecided.update(open_)
            continue
        for id_ in open_:
            if (id_ in picks) == samples[id_].entered:
                explained.setdefault(id_, []).append(chosen)
    return explained


def _can(change: MovedSample, may: tuple[str, ...], chosen: tuple[str, ...]) -> bool:
    """Return whether inputs can have caused a change: without the input that brought it, no sample enters."""
    return set(chosen) <= set(may) and (change.outside is None or change.outside in chosen)


def _may(change: MovedSample, codes: Sequence[str], grows: bool | None) -> tuple[str, ...]:
    """Return the inputs that can have had a part in a change."""
    has_no_part = SIZE if grows is not None and grows != change.entered else None
    return tuple(code for code in codes if code != has_no_part)


def grows(a: Selection, b: Selection) -> bool | None:
    """Return whether a larger k makes run b's selection longer; None if its part cannot be known before a replay.

    Without reserved places the picks of a larger k begin with those of a smaller one. So a larger k lets no sample
    leave, and a smaller one lets none enter, whatever else changes.
    """
    if a.k is None or b.k is None or not (_begins_alike(a) and _begins_alike(b)):
        return None
    return b.k > a.k


def _begins_alike(selection: Selection) -> bool:
    """Return whether the picks of a larger k begin with those of a smaller one."""
    return (
        selection.strategy == "novelselect"
        and selection.k is not None
        and selection.extend_by is None
        and selection.partitions is None
        and not selection.swap_rounds
        and not any(quota.floors for quota in selection.quotas)
    )


def fields_with(name: str) -> tuple[str, ...]:
    """Return the settings of the section `selection` that count as one input with one of them."""
    return next((group for group in _FIELDS_TOGETHER if name in group), (name,))


class Replays:
    """Selections of run a with some inputs of run b.

    Args:
        a, b: the states of both runs.
        codes: of the inputs that differ.
        pairs: the most pairs that may be scored, all replays together.
        device: as `novelselect` takes it; the picks are the same.
        progress: called with the number of selections replayed, and 0: how many are needed is not known before.
    """

    def __init__(
        self,
        a: State,
        b: State,
        codes: Sequence[str],
        *,
        pairs: int = PAIRS,
        device: str = "cpu",
        progress: Progress = no_progress,
    ) -> None:
        # What cannot be taken from the other run: the code that made it.
        self.codes = tuple(code for code in codes if code != CODE)
        self.made = 0
        self._a, self._b, self._left, self._pairs, self._device = a, b, pairs, pairs, device
        self._progress = progress
        self._pools = frozenset(a.ids), frozenset(b.ids)
        self._orders = _merged(a.ids, b.ids), _merged(b.ids, a.ids)
        self._paths: dict[frozenset[str], list[str]] = {}
        self._densities: dict[frozenset[str], ById] = {}

    def require_reproduced(self) -> None:
        """Raise NotKnown unless the selection reproduces the recorded picks of both runs."""
        for name, state, changed in (("a", self._a, frozenset[str]()), ("b", self._b, frozenset(self.codes))):
            try:
                if self.picks(changed) != frozenset(state.picks):
                    raise NotKnown(f"a replay of run {name} does not give the picks that it recorded")
            except Impossible as error:
                raise NotKnown(f"run {name} cannot be replayed: {error}") from error

    def picks(self, changed: frozenset[str]) -> frozenset[str]:
        """Return the ids that run a picks with some inputs as in run b.

        Raises:
            NotKnown: if data is missing, or it would take too long.
            Impossible: if the inputs contradict each other.
        """
        try:
            selection = self._selection(changed)
            k = selection.k
            if not _begins_alike(selection) or k is None:
                return frozenset(self._path(changed, selection))
            others = changed - {SIZE}
            if len(self._paths.get(others, ())) < k:
                most = max(one.k or k for one in (self._a.selection, self._b.selection))
                try:
                    path = self._path(others, selection.model_copy(update={"k": most}))
                except ValueError:  # More than the pool or the caps allow.
                    path = self._path(others, selection)
                self._paths[others] = path
            return frozenset(self._paths[others][:k])
        except NotEnoughMemory as error:
            raise NotKnown(str(error)) from error
        except ValueError as error:
            raise Impossible(str(error)) from error

    def _path(self, changed: frozenset[str], selection: Selection) -> list[str]:
        """Return the picks in order."""
        a, b = self._a, self._b
        inside = self._pool(changed)
        ids = [id_ for id_ in self._orders[ORDER in changed] if id_ in inside]
        novelsum = self._novelsum(changed)
        k = selection.k or max(len(a.picks), len(b.picks))
        self._spend(_pairs_scored(len(ids), k, selection))
        vectors = self._vectors(changed, ids)
        squared = self._squared(changed, ids, vectors, novelsum)
        named = selection.quality
        quality = None
        if named is not None:
            of_b = named == b.selection.quality and (named != a.selection.quality or QUALITY in changed)
            quality = check_quality(_numbers(self._values(named, of_b, ids), named), len(ids))
        kept = (b if EXTENDS in changed else a).kept
        self.made += 1
        self._progress(self.made, 0)
        picks = picks_by(
            selection,
            NovelSelectOptions(Scoring.of(selection, novelsum), seed=selection.seed, device=self._device),
            vectors,
            density_factor(squared, novelsum.density_power),
            quality,
            lambda: self._wanted(changed, ids, selection, kept),
        )
        return [ids[row] for row in picks.indices]

    def _wanted(
        self, changed: frozenset[str], ids: list[str], selection: Selection, kept: tuple[str, ...] | None
    ) -> Wanted:
        row_of = {id_: row for row, id_ in enumerate(ids)}
        quotas = [
            Quota(
                [str(value) for value in self._values(one.column, LABELS in changed, ids).tolist()],
                one.caps,
                one.floors,
                one.column,
            )
            for one in selection.quotas
        ]
        cost = None
        if selection.token_budget is not None:
            cost = self._values("tokens", TOKENS in changed, ids).astype(np.float64)
        initial = [row_of[id_] for id_ in kept or () if id_ in row_of]
        extended = kept is not None and selection.extend_by is not None
        return Wanted(
            len(initial) + (selection.extend_by or 0) if extended else selection.k,
            cost=cost,
            budget=selection.token_budget,
            quotas=quotas,
            initial=initial if extended else (),
            must_include=_rows(row_of, selection.must_include),
            must_exclude=_rows(row_of, selection.must_exclude),
        )

    def _selection(self, changed: Collection[str]) -> Selection:
        values, others = (one.selection.model_dump() for one in (self._a, self._b))
        for code in changed:
            if code.startswith("selection."):
                values |= {name: others[name] for name in fields_with(code.removeprefix("selection."))}
        return Selection.model_validate(values)

    def _novelsum(self, changed: Collection[str]) -> NovelSum:
        names = [code.removeprefix("novelsum.") for code in changed if code.startswith("novelsum.")]
        return self._a.novelsum.model_copy(update={name: getattr(self._b.novelsum, name) for name in names})

    def _pool(self, changed: frozenset[str]) -> set[str]:
        """Return the samples of the pool."""
        a, b = self._a, self._b
        mine, theirs = self._pools
        inside = {id_ for id_ in mine if id_ in theirs or (NEAR if id_ in b.dropped else REMOVED) not in changed}
        return inside | {id_ for id_ in theirs if id_ not in mine and (NEAR if id_ in a.dropped else ADDED) in changed}

    def _vectors(self, changed: frozenset[str], ids: list[str]) -> NDArray[np.float32]:
        a, b = self._a, self._b
        if a.is_fitted or b.is_fitted:
            differ = VECTORS in self.codes
            for state, of_b in ((a, False), (b, True)):
                if tuple(ids) == state.ids and (not differ or (VECTORS in changed) == of_b):
                    return state.vectors.of(ids)
            raise NotKnown("vectors that are fitted on a pool (embedding.whiten, reduce) exist for that pool only")
        if VECTORS in self.codes:
            return (b if VECTORS in changed else a).vectors.of(ids)
        return a.vectors.of(ids, b.vectors)

    def _squared(
        self, changed: frozenset[str], ids: list[str], vectors: NDArray[np.float32], novelsum: NovelSum
    ) -> NDArray[np.float64]:
        """Return the mean squared distances of a pool: stored ones where they are of its samples, else searched."""
        relevant = frozenset(
            code for code in changed if code in (*OF_POOL, VECTORS, *(f"novelsum.{name}" for name in DENSITY_SETTINGS))
        )
        if DENSITIES in changed:
            return self._b.squared.of(ids)
        pool = set(ids)
        for state, of_b in ((self._a, False), (self._b, True)):
            same_vectors = VECTORS not in self.codes or (VECTORS in changed) == of_b
            same_settings = all(getattr(novelsum, n) == getattr(state.novelsum, n) for n in DENSITY_SETTINGS)
            if same_vectors and same_settings and len(pool) == len(state.ids) and pool.issuperset(state.ids):
                return state.squared.of(ids)
        if relevant not in self._densities:
            self._densities[relevant] = ById(ids, self._searched(changed, vectors, novelsum))
        return self._densities[relevant].of(ids)

    def _searched(
        self, changed: frozenset[str], vectors: NDArray[np.float32], novelsum: NovelSum
    ) -> NDArray[np.float64]:
        n, neighbors = len(vectors), novelsum.neighbors
        search = Search.of(novelsum, self._device)
        if search.tries_lists(n, n):
            self._spend(n * n // _NEIGHBOR_PAIRS)
            return densities(vectors, None, (neighbors,), search)[neighbors].mean_squared_distance
        state = self._b if VECTORS in changed else self._a
        known = state.nearest() if state.novelsum.neighbors == neighbors else None
        moved = len(set(self._a.ids) ^ set(self._b.ids)) * (neighbors + 1) if known else n
        self._spend(n * min(n, moved) // _NEIGHBOR_PAIRS)
        return nearest_in_pool(vectors, neighbors, known, device=self._device).density(neighbors).mean_squared_distance

    def _values(self, name: str, of_b: bool, ids: list[str]) -> NDArray[Any]:
        """Return a column or field of samples; of a sample in both pools, as the chosen run has it."""
        first, second = (self._b, self._a) if of_b else (self._a, self._b)
        return first.values(name).of(ids, second.values(name))

    def _spend(self, pairs: int) -> None:
        if pairs > self._left:
            raise NotKnown(_too_many(self._pairs))
        self._left -= pairs


def require_within(pairs: int, selections: Iterable[tuple[int, int, Selection]]) -> None:
    """Raise NotKnown if the replay of each of some selections would score more pairs than allowed.

    Args:
        pairs: the most, all together.
        selections: of each the size of the pool, the picks made, and the settings.
    """
    if sum(_pairs_scored(*one) for one in selections) > pairs:
        raise NotKnown(_too_many(pairs))


def _pairs_scored(n: int, k: int, selection: Selection) -> int:
    """Return the number of pairs that a selection of k from n scores, in those of the published score."""
    if selection.strategy in ("random", "duplicate"):
        return n
    if selection.strategy in ("qdit", "gist"):
        return n * n
    return n * k * _SIDE_PAIRS[selection.density_side] * (1 + selection.swap_rounds)


def _too_many(pairs: int) -> str:
    return f"replays may score {pairs:,} pairs of samples, and these would score more"


def _merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return all ids: those of `first` in order, each other one after its predecessor in `second`."""
    known, followers, at = set(first), dict[str | None, list[str]](), None
    for id_ in second:
        if id_ in known:
            at = id_
        else:
            followers.setdefault(at, []).append(id_)
    merged = list(followers.get(None, ()))
    for id_ in first:
        merged += [id_, *followers.get(id_, ())]
    return merged


def _rows(row_of: Mapping[str, int], ids: Iterable[str]) -> list[int]:
    """Return the rows of ids.

    Raises:
        ValueError: for an id that is not in the pool, as the selection does.
    """
    try:
        return [row_of[id_] for id_ in ids]
    except KeyError as error:
        raise ValueError(f"no sample of the pool has the id {error}") from error


def _numbers(values: NDArray[Any], name: str) -> NDArray[np.float64]:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{name} is not a number for every sample")
    return values.astype(np.float64)


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return values as an array of objects, (n,): also lists, which NumPy would make a dimension of."""
    found = np.empty(len(values), object)
    for row, value in enumerate(values):
        found[row] = value
    return found
