"""Findings of studies, computed from their tables: which measures predict performance, which strategy is best.

Belongs here: cells, groups, predictors, and every number that a page shows. Does not: the statistics themselves
(`statistics`), words and pictures (`page`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.settings import OWN_REPRESENTATION
from novelsum_dagster.study.correlation import ALL_SETS, NOT_SELECTING, SELECTING
from novelsum_dagster.study.statistics import (
    FEWEST,
    Cell,
    Floats,
    Interval,
    Method,
    correlations,
    detectable_correlation,
    detectable_difference,
    gain,
)
from novelsum_dagster.study.tables import SEEN, UNSEEN, Rows

WITHIN = "within strategies"
"""The group of all sets as deviations from the mean of their strategy's sets."""
GROUPS = (ALL_SETS, SELECTING, WITHIN)
METHODS: tuple[Method, ...] = get_args(Method)
EVERY_CELL = "all"
Given = Literal["", "length", "near-duplicates", "length and near-duplicates"]
GIVEN: dict[Given, tuple[str, ...]] = {
    "": (),
    "length": ("tokens",),
    "near-duplicates": ("close",),
    "length and near-duplicates": ("tokens", "close"),
}
"""Control variables by name, and the predictors that represent each."""
_SEED = 20260218
RANDOM = "random"


@dataclass(frozen=True)
class Predictor:
    """A predictor of performance: a measure under a representation, or a plain fact of the set.

    `sign` is -1 if a lower value is to predict better performance.
    """

    key: str
    label: str
    representation: str
    sign: int
    is_measure: bool


PLAIN = {
    "tokens": ("Tokens", 1),
    "distinct_tokens": ("Distinct tokens trained on", 1),
    "characters_a_sample": ("Characters a sample", 1),
    "near_duplicates": ("Near-duplicates in the pool (MinHash)", -1),
    "close": ("Near-duplicates in the set (cosine)", -1),
    "bigram": ("Loss of a bigram model", -1),
}
"""Label and sign of the plain facts; tokens count by their logarithm."""


@dataclass(frozen=True)
class Found(Interval):
    """One coefficient.

    Attributes:
        cell: `EVERY_CELL`, or pool and size.
        measure, label, representation: of the predictor.
        is_measure: whether it is one of diversity.
        kind: of the sources that performance is on, seen or unseen.
        group: of sets, one of `GROUPS`.
        method: pearson or spearman.
        given: the control variables.
        sets: how many.
        value, low, high: above 0 if more diverse sets, or longer ones, perform better.
    """

    cell: str
    measure: str
    label: str
    representation: str
    is_measure: bool
    kind: str
    group: str
    method: Method
    given: Given
    sets: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Gain(Interval):
    """The loss of random sets minus that of a strategy's sets, bits per byte, in one cell.

    `rank` is 1 for the largest gain; `share` is the gain as a fraction of random's loss.
    """

    pool: str
    size: int
    kind: str
    strategy: str
    rank: int
    sets: int
    random_sets: int
    training_seeds: int
    loss: float
    value: float
    share: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Literal["better", "worse", "not distinguished"]:
        """Whether the whole interval lies above 0, below it, or neither."""
        return "better" if self.is_positive else "worse" if self.is_negative else "not distinguished"


@dataclass(frozen=True)
class Power:
    """Statistical power of a study of this size.

    Attributes:
        group: of sets.
        sets: how many, over all cells.
        correlation: the least correlation that is detected with a probability of 0.8.
    """

    group: str
    sets: int
    correlation: float | None


@dataclass(frozen=True)
class Detectable:
    """The least difference between a strategy and random that is detected with a probability of 0.8, in one cell.

    `share` is the difference as a fraction of random's loss.
    """

    pool: str
    size: int
    kind: str
    sets: int
    random_sets: int
    difference: float | None
    share: float | None


@dataclass(frozen=True)
class Findings:
    """All findings of studies.

    Attributes:
        pools: facts of each study, by pool and name.
        cells: pool, size, sets and training seeds of each.
        correlations: of every predictor.
        gains: of every strategy but random, in every cell that has random sets.
        power, detectable: the least correlations and differences that would be detected.
    """

    pools: dict[str, dict[str, str]]
    cells: list[dict[str, Any]]
    correlations: list[Found]
    gains: list[Gain]
    power: list[Power]
    detectable: list[Detectable]

    def records(self) -> dict[str, Any]:
        """Return everything as a JSON-able value."""
        return asdict(self)


def findings(tables: Mapping[str, Rows], draws: int, progress: Progress = no_progress) -> Findings:
    """Return the findings computed from the tables of studies.

    Args:
        tables: as `read_tables` returns them.
        draws: number of resamples of every bootstrap.
        progress: called with predictors done and all.

    Raises:
        InputError: if no training seed has been done for all sets of a pool and size.
    """
    cells = _cells(tables)
    pools: dict[str, dict[str, str]] = {}
    for row in tables["studies"]:
        pools.setdefault(row["pool"], {})[row["fact"]] = row["value"]
    kinds = [kind for kind in (SEEN, UNSEEN) if any(kind in cell.kinds for cell in cells)]
    return Findings(
        pools=pools,
        cells=[
            {"pool": cell.pool, "size": cell.size, "sets": len(cell.names), "training_seeds": cell.losses.shape[1]}
            for cell in cells
        ],
        correlations=_correlations(cells, kinds, draws, progress),
        gains=[one for kind in kinds for cell in cells for one in _gains(cell, kind, draws)],
        power=[_power(cells, group) for group in GROUPS],
        detectable=[one for kind in kinds for cell in cells for one in _detectable(cell, kind)],
    )


@dataclass(frozen=True)
class _Sets:
    """The sets of one pool and size.

    Attributes:
        strategies: of each, with its variant and copies.
        is_selecting: bool, (n,), whether a strategy chose the set.
        losses: bits per byte, float64, (n, seeds, sources).
        kinds: of each source.
        values: of the predictors, float64, (n,), NaN if a set has none, by key and representation.
    """

    number: int
    pool: str
    size: int
    names: list[str]
    strategies: list[str]
    is_selecting: NDArray[np.bool_]
    losses: Floats
    kinds: list[str]
    values: dict[tuple[str, str], Floats]

    @property
    def place(self) -> str:
        return f"{self.pool}, {self.size:,}"

    def of_kind(self, kind: str) -> Floats:
        """Return the losses on one kind of sources, (n, seeds, sources)."""
        return self.losses[:, :, [at for at, one in enumerate(self.kinds) if one == kind]]

    def performance(self, kind: str) -> Floats:
        """Return performance, float64, (n, seeds): the mean over sources of z-scores of the negative loss.

        Mean and standard deviation of a source are those of the sets' means over seeds.
        """
        losses = self.of_kind(kind)
        means = losses.mean(axis=1)
        deviation = means.std(axis=0)
        deviation[np.ptp(means, axis=0) == 0] = 1.0
        return np.asarray(((means.mean(axis=0) - losses) / deviation).mean(axis=2))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The strategy of each set as a number, (n,)."""
        return np.unique(self.strategies, return_inverse=True)[1].astype(np.int64)

    def members(self, group: str) -> NDArray[np.bool_]:
        """Return which sets a group has: bool, (n,)."""
        if group == SELECTING:
            return self.is_selecting
        if group == WITHIN:
            return np.bincount(self.labels)[self.labels] > 1
        return np.ones(len(self.names), dtype=np.bool_)

    def predicting(self, predictor: Predictor, kind: str) -> Floats:
        """Return a predictor's values, with reversed sign if lower predicts better performance."""
        key = f"bigram_{kind}" if predictor.key == "bigram" else predictor.key
        missing = np.full(len(self.names), np.nan)
        return predictor.sign * self.values.get((key, predictor.representation), missing)


def strategy_of(row: Mapping[str, Any]) -> str:
    """Return the name of a set's strategy with its variant and copies, as `novelselect-column` or `duplicate-x5`."""
    parts = [row["strategy"], row["variant"], f"x{row['copies']}" if row["copies"] > 1 else ""]
    return "-".join(part for part in parts if part)


def _cells(tables: Mapping[str, Rows]) -> list[_Sets]:
    places: dict[tuple[str, int], Rows] = {}
    for row in tables["sets"]:
        places.setdefault((row["pool"], row["size"]), []).append(row)
    losses: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    kinds: dict[str, dict[str, str]] = {}
    for row in tables["trials"]:
        of_set = losses.setdefault((row["pool"], row["set"]), {})
        of_set.setdefault(row["training_seed"], {})[row["source"]] = row["bits_per_byte"]
        kinds.setdefault(row["pool"], {})[row["source"]] = row["kind"]
    measured: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in tables["measures"]:
        measured.setdefault((row["pool"], row["set"]), {})[row["measure"], row["representation"]] = float(row["value"])
    found = []
    for number, ((pool, size), rows) in enumerate(places.items()):
        names = [row["set"] for row in rows]
        trained = [losses.get((pool, name), {}) for name in names]
        seeds = [seed for seed in trained[0] if all(seed in one for one in trained)]
        if not seeds:
            raise InputError(
                f"pool {pool}, size {size:,}: no training seed is complete for all sets; run study correlate"
            )
        sources = kinds[pool]
        found.append(
            _Sets(
                number=number,
                pool=pool,
                size=size,
                names=names,
                strategies=[strategy_of(row) for row in rows],
                is_selecting=np.array([row["strategy"] not in NOT_SELECTING for row in rows]),
                losses=np.array([[[one[seed][source] for source in sources] for seed in seeds] for one in trained]),
                kinds=list(sources.values()),
                values=_values(rows, [measured.get((pool, name), {}) for name in names]),
            )
        )
    return found


def _values(rows: Rows, measured: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], Floats]:
    plain = [key for key in PLAIN if key != "bigram"] + [f"bigram_{SEEN}", f"bigram_{UNSEEN}"]
    found = {(key, ""): np.array([np.nan if row[key] is None else row[key] for row in rows]) for key in plain}
    found["tokens", ""] = np.log(found["tokens", ""])
    for key in dict.fromkeys(key for one in measured for key in one):
        found[key] = np.array([one.get(key, np.nan) for one in measured])
    return found


def _predictors(cells: Sequence[_Sets]) -> list[Predictor]:
    there = dict.fromkeys(key for cell in cells for key in cell.values)
    measures = [
        Predictor(key, MEASURES[key].label, representation, 1 if MEASURES[key].higher_is_diverse else -1, True)
        for key, representation in there
        if key in MEASURES
    ]
    return measures + [Predictor(key, label, "", sign, False) for key, (label, sign) in PLAIN.items()]


def _correlations(cells: Sequence[_Sets], kinds: Sequence[str], draws: int, progress: Progress) -> list[Found]:
    predictors = _predictors(cells)
    asked = [(kind, group) for kind in kinds for group in GROUPS]
    found: list[Found] = []
    for done, (kind, group) in enumerate(asked):
        resampled = _Resampled(cells, kind, group, draws)
        for at, predictor in enumerate(predictors):
            progress(done * len(predictors) + at, len(asked) * len(predictors))
            found += resampled.found(predictor)
    progress(len(asked) * len(predictors), len(asked) * len(predictors))
    return found


class _Resampled:
    """The resamples of a group of sets in every cell; sets for which a predictor has no value are omitted."""

    def __init__(self, cells: Sequence[_Sets], kind: str, group: str, draws: int) -> None:
        self._cells = [cell for cell in cells if kind in cell.kinds]
        self._performance = [cell.performance(kind) for cell in self._cells]
        self._kind, self._group, self._draws = kind, group, draws
        self._kept: dict[tuple[int, bytes], Cell] = {}

    def found(self, predictor: Predictor) -> Iterator[Found]:
        """Yield the coefficients of a predictor over all cells and, if there are several cells, in each."""
        parts = []
        for at, cell in enumerate(self._cells):
            values = cell.predicting(predictor, self._kind)
            members = cell.members(self._group) & np.isfinite(values)
            if members.sum() >= FEWEST:
                controls = {key: cell.values[key, ""][members] for key in ("tokens", "close")}
                parts.append((cell.place, self._resampled(at, members), values[members], controls))
        yield from self._of(predictor, EVERY_CELL, parts, GIVEN)
        if len(parts) > 1:
            for part in parts:
                yield from self._of(predictor, part[0], [part], {"": ()})

    def _of(
        self,
        predictor: Predictor,
        place: str,
        parts: Sequence[tuple[str, Cell, Floats, dict[str, Floats]]],
        given: Mapping[Given, tuple[str, ...]],
    ) -> Iterator[Found]:
        resampled, values = [part[1] for part in parts], [part[2] for part in parts]
        fixed = [[[part[3][key] for part in parts] for key in keys] for keys in given.values()]
        for method in METHODS:
            for name, one in zip(given, correlations(resampled, values, method, fixed), strict=True):
                yield Found(
                    cell=place,
                    measure=predictor.key,
                    label=predictor.label,
                    representation=predictor.representation,
                    is_measure=predictor.is_measure,
                    kind=self._kind,
                    group=self._group,
                    method=method,
                    given=name,
                    sets=sum(map(len, values)),
                    **asdict(one),
                )

    def _resampled(self, at: int, members: NDArray[np.bool_]) -> Cell:
        key = (at, members.tobytes())
        if key not in self._kept:
            cell = self._cells[at]
            labels = cell.labels[members] if self._group == WITHIN else None
            generator = np.random.default_rng([_SEED, cell.number, GROUPS.index(self._group)])
            self._kept[key] = Cell.of(self._performance[at][members], generator, labels, self._draws)
        return self._kept[key]


def _by_strategy(cell: _Sets, kind: str) -> dict[str, Floats]:
    """Return the losses of each strategy's sets, mean over sources of a kind: float64, (sets, seeds)."""
    losses = cell.of_kind(kind).mean(axis=2)
    return {one: losses[np.array(cell.strategies) == one] for one in dict.fromkeys(cell.strategies)}


def _gains(cell: _Sets, kind: str, draws: int) -> list[Gain]:
    losses = _by_strategy(cell, kind) if kind in cell.kinds else {}
    if RANDOM not in losses:
        return []
    base, found = losses[RANDOM], []
    for at, (strategy, of_strategy) in enumerate(losses.items()):
        if strategy != RANDOM:
            one = gain(of_strategy, base, np.random.default_rng([_SEED, cell.number, at]), draws)
            found.append((strategy, of_strategy, one))
    ranked = sorted(found, key=lambda one: -(one[2].value or 0.0))
    return [
        Gain(
            pool=cell.pool,
            size=cell.size,
            kind=kind,
            strategy=strategy,
            rank=rank,
            sets=len(of_strategy),
            random_sets=len(base),
            training_seeds=base.shape[1],
            loss=float(of_strategy.mean()),
            value=one.value or 0.0,
            share=(one.value or 0.0) / float(base.mean()),
            low=one.low,
            high=one.high,
        )
        for rank, (strategy, of_strategy, one) in enumerate(ranked, 1)
    ]


def _power(cells: Sequence[_Sets], group: str) -> Power:
    sets, informative = 0, 0
    for cell in cells:
        members = cell.members(group)
        count = int(members.sum())
        if count >= FEWEST:
            sets += count
            # Each mean of a strategy costs a degree of freedom; Fisher's transformation accounts for one already.
            informative += count - 3 - (len(np.unique(cell.labels[members])) - 1 if group == WITHIN else 0)
    return Power(group, sets, detectable_correlation(informative))


def _detectable(cell: _Sets, kind: str) -> list[Detectable]:
    losses = _by_strategy(cell, kind) if kind in cell.kinds else {}
    if RANDOM not in losses or len(losses) == 1:
        return []
    base = losses[RANDOM]
    sets = int(median(len(one) for strategy, one in losses.items() if strategy != RANDOM))
    least = detectable_difference(list(losses.values()), (sets, len(base)))
    share = None if least is None else least / float(base.mean())
    return [Detectable(cell.pool, cell.size, kind, sets, len(base), least, share)]


def main_findings(found: Findings, kind: str, group: str, method: Method = "spearman") -> list[Found]:
    """Return the coefficients over all cells without controls, highest first, under the pool's own representation."""
    chosen = [
        one
        for one in found.correlations
        if (one.cell, one.kind, one.group, one.method, one.given) == (EVERY_CELL, kind, group, method, "")
        and one.representation in ("", OWN_REPRESENTATION)
    ]
    return sorted(chosen, key=lambda one: -2.0 if one.value is None else one.value, reverse=True)
