"""Limits on which samples may be picked: exclusions, caps and floors by group, a budget.

Belongs here: the limits, which samples they allow, contradictions found before work starts. Does not: scores.

A subset of k samples is one with a budget of k and a cost of 1 each, so there is one rule. A sample is eligible if the
remaining budget, after paying for it, can still cover every unmet floor at its cheapest.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.selection.inputs import check_cost, check_indices, check_k
from novelsum_dagster.selection.picks import PickLog, Picks


@dataclass(frozen=True)
class Barred:
    """Why a sample may not be picked.

    Attributes:
        by: one of `picks.BARS`.
        left: what is left of the budget, or of k.
        cost: of the sample; 1 where k counts.
        column, label: of the cap that is reached, or of the floors for which the rest is reserved; None for others.
        reserved: how much of what is left is reserved for floors of other labels; None unless that is the reason.
    """

    by: str
    left: float
    cost: float
    column: str | None = None
    label: Hashable = None
    reserved: float | None = None


@dataclass(frozen=True)
class Quota:
    """Caps and floors on how many picks have each label.

    Attributes:
        labels: (n,), the label of every sample.
        caps: the most picks, by label.
        floors: the fewest picks, by label.
        name: of the column, for messages.
    """

    labels: ArrayLike
    caps: Mapping[Any, int] = field(default_factory=dict)
    floors: Mapping[Any, int] = field(default_factory=dict)
    name: str = "group"

    def facts(self) -> list[Any]:
        """Return the quota as plain values."""
        limits = [[[repr(label), int(count)] for label, count in given.items()] for given in (self.caps, self.floors)]
        return [self.name, *limits, [repr(label) for label in np.asarray(self.labels).tolist()]]


@dataclass(frozen=True)
class Wanted:
    """How many samples NovelSelect picks, and which it may and must pick.

    Attributes:
        k: number of picks, 1 to n, those given included. Either k, or `cost` and `budget`.
        cost: (n,), 0 or more, of each sample.
        budget: what the picks may cost together.
        quotas: caps and floors.
        initial: the first picks, in order: rows, or an earlier result that is to be extended, whose record is kept.
        must_include: rows picked right after `initial`.
        must_exclude: rows never picked.
    """

    k: int | None = None
    cost: ArrayLike | None = None
    budget: float | None = None
    quotas: Sequence[Quota] = ()
    initial: Picks | ArrayLike = ()
    must_include: ArrayLike = ()
    must_exclude: ArrayLike = ()

    def limits(self, n: int) -> "Limits":
        """Return the limits on picks out of n samples.

        Raises:
            ValueError: for neither or both of k and budget, numbers out of range, or limits that no subset can satisfy.
        """
        excluded = check_indices(self.must_exclude, n, "must_exclude")
        if self.k is not None and self.budget is None and self.cost is None:
            return Limits(n, check_k(self.k, n), None, self.quotas, excluded)
        if self.k is None and self.budget is not None and self.cost is not None:
            return Limits(n, self.budget, check_cost(self.cost, n), self.quotas, excluded)
        raise ValueError("give either k, or budget and cost")

    def given(self, n: int) -> PickLog:
        """Return the given picks, `initial` first; an earlier result keeps its scores.

        Raises:
            ValueError: for rows out of range, or one that comes twice.
        """
        first = check_indices(self.initial.indices if isinstance(self.initial, Picks) else self.initial, n, "initial")
        included = check_indices(self.must_include, n, "must_include")
        log = PickLog.of(np.concatenate([first, included[~np.isin(included, first)]]))
        if isinstance(self.initial, Picks):
            log.score[: len(first)], log.runner_up[: len(first)] = self.initial.score, self.initial.runner_up
            log.runner_up_score[: len(first)] = self.initial.runner_up_score
        return log


class Limits:
    """Decides which samples may be picked, given the picks so far.

    Args:
        n: number of samples.
        budget: to be spent; k if every cost is 1.
        cost: float64, (n,), of each sample; None takes 1 each.
        quotas: caps and floors.
        must_exclude: int64, samples never to be picked.

    Raises:
        ValueError: for limits that no subset can satisfy; names the column and label.
    """

    def __init__(
        self,
        n: int,
        budget: float,
        cost: NDArray[np.float64] | None,
        quotas: Sequence[Quota],
        must_exclude: NDArray[np.int64],
    ) -> None:
        self.budget = self.left = float(budget)
        self._counts_samples = cost is None
        self._limit = "k" if self._counts_samples else "the budget"
        self._cost = np.ones(n) if cost is None else cost
        self._excluded = np.zeros(n, np.bool_)
        self._excluded[must_exclude] = True
        self._open = ~self._excluded
        self._groups = [_Group(quota, self._open, self._cost) for quota in quotas]
        if not np.isfinite(self.budget):
            raise ValueError(f"budget is {budget}; a finite number is needed")
        if self._counts_samples and self._open.sum() < self.budget:
            raise ValueError(
                f"k is {self.budget:,.0f} and only {self._open.sum():,} samples are left after must_exclude; lower k"
            )
        if not self.most_picks:
            raise ValueError(
                f"the budget of {self.budget:,g} is below the cost of every eligible sample; raise it or exclude fewer"
            )
        self._dearest = float(self._cost.max())
        self._changed = bool(len(must_exclude)) or any(group.has_full_label() for group in self._groups)
        for group in self._groups:
            self._check(group)

    def take_given(self, picks: Sequence[int]) -> None:
        """Register given picks, in order.

        Raises:
            ValueError: if one may not be picked.
        """
        for pick in picks:
            if refusal := self._refusal(pick):
                raise ValueError(f"must_include or initial: row {pick} {refusal}")
            self.add(pick)

    @property
    def most_picks(self) -> int:
        """The largest number of picks that the budget can pay for."""
        return int(np.searchsorted(np.cumsum(np.sort(self._cost[self._open])), self.left, side="right"))

    def add(self, pick: int) -> None:
        """Register a pick."""
        self.left -= float(self._cost[pick])
        self._open[pick] = False
        for group in self._groups:
            self._changed |= group.count(pick)

    def may_replace(self, pick: int) -> NDArray[np.bool_]:
        """Return which samples may replace a pick without violating a limit, bool, (n,)."""
        allowed = self._open & (self._cost <= self.left + self._cost[pick])
        for group in self._groups:
            allowed &= group.may_replace(pick)
        return np.asarray(allowed)

    def replace(self, pick: int, other: int) -> None:
        """Register a sample in place of a pick."""
        self.left += float(self._cost[pick])
        self._open[pick] = True
        for group in self._groups:
            group.count(pick, -1)
        self.add(other)

    def changes(self) -> NDArray[np.bool_] | None:
        """Return which samples may be picked now, bool, (n,); None if unchanged, apart from the picks themselves."""
        ceilings = [group.ceiling(self.left) for group in self._groups]
        lowest = min((float(ceiling.min()) for ceiling in ceilings), default=self.left)
        if not self._changed and min(lowest, self.left) >= self._dearest:
            return None
        self._changed = False
        return self.eligible()

    def bars(self) -> dict[str, NDArray[np.bool_]]:
        """Return which samples that are not picked each limit of `picks.BARS` rules out now, bool, (n,)."""
        affordable = self._cost <= self.left
        full, reserved = np.zeros((2, len(self._open)), np.bool_)
        for group in self._groups:
            full |= group.is_full()
            reserved |= self._cost > group.unreserved(self.left)[group.codes]
        return {
            "must_exclude": self._excluded,
            "budget": self._open & ~affordable,
            "cap": self._open & full,
            "floor": self._open & affordable & reserved,
        }

    def spent(self) -> tuple[int, int]:
        """Return the amount spent, and the budget."""
        return round(self.budget - self.left), round(self.budget)

    def first(self, seed: int) -> int:
        """Return the first pick of the published code or, if the limits exclude it, the next eligible sample.

        Raises:
            ValueError: if no sample is eligible.
        """
        drawn = int(np.random.RandomState(seed).randint(0, len(self._open)))
        allowed = np.flatnonzero(self.eligible())
        if not len(allowed):
            raise ValueError("the limits leave no eligible sample; raise the budget or the caps")
        return int(allowed[np.searchsorted(allowed, drawn) % len(allowed)])

    def barred(self, row: int) -> Barred | None:
        """Return why a sample that is not picked may not be picked now; None if it may."""
        left, cost = self.left, float(self._cost[row])
        if self._excluded[row]:
            return Barred("must_exclude", left, cost)
        if cost > left:
            return Barred("budget", left, cost)
        for group in self._groups:
            if group.is_full_for(row):
                return Barred("cap", left, cost, group.name, group.label(row))
        for group in self._groups:
            unreserved = float(group.unreserved(left)[group.codes[row]])
            if cost > unreserved:
                return Barred("floor", left, cost, group.name, group.label(row), left - unreserved)
        return None

    def _refusal(self, pick: int) -> str:
        """Return why a given sample may not be picked now, as the predicate of a sentence; empty if it may."""
        if not self._open[pick]:
            return "is also excluded (or listed twice); remove it from one of the lists"
        barred = self.barred(pick)
        if barred is None:
            return ""
        if barred.column is not None:
            return f"violates the caps and floors on {barred.column} ({barred.label!r}); relax them or remove the row"
        if self._counts_samples:
            return f"does not fit: the rows before it fill k, {self.budget:,.0f}; raise k or list fewer rows"
        return (
            f"costs {barred.cost:,.0f}, but {self.left:,.0f} of the budget are left; raise the budget or remove the row"
        )

    def require_kept(self) -> None:
        """Raise a ValueError unless all floors are reached and, without a budget, k samples are picked."""
        unmet = "; ".join(words for group in self._groups for words in group.unmet())
        if unmet or (self._counts_samples and self.left > 0):
            raise ValueError(
                f"the limits allow no further pick after {self.spent()[0]:,} of {self.budget:,.0f}"
                + (f", and {unmet}" if unmet else "")
                + "; they contradict each other: relax one"
            )

    def eligible(self) -> NDArray[np.bool_]:
        """Return which samples may be picked now, bool, (n,)."""
        allowed = self._open & (self._cost <= self.left)
        for group in self._groups:
            allowed &= self._cost <= group.ceiling(self.left)[group.codes]
        return allowed

    def _check(self, group: "_Group") -> None:
        needed = group.reserve()
        if needed > self.left:
            raise ValueError(
                f"the floors on {group.name} need {needed:,.0f}, but {self._limit} is {self.left:,.0f}; lower them"
            )
        if self._counts_samples and group.room() < self.left:
            raise ValueError(
                f"the caps on {group.name} allow {group.room():,} samples, but k is {self.left:,.0f}; raise the caps"
            )


class _Group:
    """The labels of one column and what its caps and floors still allow."""

    def __init__(self, quota: Quota, open_: NDArray[np.bool_], cost: NDArray[np.float64]) -> None:
        labels = np.asarray(quota.labels)
        if labels.shape != open_.shape:
            raise ValueError(
                f"{quota.name} has {labels.shape} labels; one for each of the {len(open_):,} samples is needed"
            )
        code_of: dict[Any, int] = {}
        self.codes = np.array([code_of.setdefault(label, len(code_of)) for label in labels.tolist()], np.int64)
        self.name, self._names = quota.name, list(code_of)
        self._open, self._cost = open_, cost
        sizes = np.bincount(self.codes[open_], minlength=len(self._names))
        self._cap_left = self._by_label(quota.caps, "cap", sizes)
        self._floor = self._by_label(quota.floors, "floor", np.zeros_like(sizes))
        self._floor_left, self._picked = self._floor.copy(), np.zeros_like(sizes)
        for label, cap, floor, size in zip(self._names, self._cap_left, self._floor_left, sizes, strict=True):
            if floor > min(cap, size):
                raise ValueError(
                    f"{quota.name} {label!r}: the floor is {floor:,}, but only {min(cap, size):,} samples may be picked"
                    f" ({size:,} are not excluded" + (f", the cap is {cap:,}" if label in quota.caps else "") + ");"
                    " lower the floor"
                )
        # Cheapest first, to know what the floors still cost.
        cheapest = np.argsort(cost, kind="stable")
        self._members = {
            code: cheapest[self.codes[cheapest] == code] for code in np.flatnonzero(self._floor_left).tolist()
        }

    def label(self, row: int) -> Hashable:
        """Return a sample's label."""
        return self._names[int(self.codes[row])]  # type: ignore[no-any-return]

    def has_full_label(self) -> bool:
        return bool((self._cap_left <= 0).any())

    def count(self, pick: int, change: int = 1) -> bool:
        """Register a pick, or unregister it with a change of -1; return whether its label is now full."""
        code = self.codes[pick]
        self._cap_left[code] -= change
        self._picked[code] += change
        self._floor_left[code] = max(self._floor[code] - self._picked[code], 0)
        return bool(self._cap_left[code] <= 0)

    def may_replace(self, pick: int) -> NDArray[np.bool_]:
        """Return which samples may replace a pick: those of its label, and of others if its label can spare one."""
        code = self.codes[pick]
        alike = self.codes == code
        can_spare = self._picked[code] > self._floor[code]
        return np.asarray(alike | (self._cap_left > 0)[self.codes] if can_spare else alike)

    def room(self) -> int:
        """Return how many more samples the caps allow."""
        return int(np.minimum(self._cap_left, np.bincount(self.codes[self._open], minlength=len(self._names))).sum())

    def reserve(self) -> float:
        """Return the lowest cost of filling the unmet floors."""
        return float(sum(self._lacking(code).sum() for code in self._members))

    def is_full_for(self, row: int) -> bool:
        """Return whether the cap of a sample's label is reached."""
        return bool(self._cap_left[self.codes[row]] <= 0)

    def is_full(self) -> NDArray[np.bool_]:
        """Return which samples have a label whose cap is reached: bool, (n,)."""
        return np.asarray((self._cap_left <= 0)[self.codes])

    def ceiling(self, left: float) -> NDArray[np.float64]:
        """Return the highest cost that a pick of each label may have: float64, (labels,)."""
        ceiling = self.unreserved(left)
        ceiling[self._cap_left <= 0] = -np.inf
        return ceiling

    def unreserved(self, left: float) -> NDArray[np.float64]:
        """Return what is left for a pick of each label once the floors of all others are paid: float64, (labels,)."""
        lacking = {code: self._lacking(code) for code in self._members}
        ceiling = np.full(len(self._names), left - sum(costs.sum() for costs in lacking.values()))
        for code, costs in lacking.items():
            # A pick of this label replaces the most expensive sample reserved for its floor.
            ceiling[code] += costs[-1] if len(costs) else 0
        return ceiling

    def unmet(self) -> list[str]:
        return [
            f"{self.name} {self._names[code]!r} lacks {self._floor_left[code]:,}"
            for code in np.flatnonzero(self._floor_left)
        ]

    def _lacking(self, code: int) -> NDArray[np.float64]:
        """Return the costs of the cheapest samples that would fill a label's floor."""
        if not self._floor_left[code]:
            return np.empty(0)
        members = self._members[code]
        cheapest = members[self._open[members]][: self._floor_left[code]]
        return np.asarray(self._cost[cheapest])

    def _by_label(self, given: Mapping[Any, int], kind: str, default: NDArray[np.int64]) -> NDArray[np.int64]:
        values = default.copy()
        for label, count in given.items():
            if label not in self._names:
                raise ValueError(
                    f"{self.name} {label!r} has a {kind} but no sample; the labels are {self._some_names()}"
                )
            if count < 0:
                raise ValueError(f"{self.name} {label!r}: the {kind} is {count}; it must be 0 or more")
            values[self._names.index(label)] = count
        return values

    def _some_names(self) -> str:
        shown = ", ".join(repr(name) for name in self._names[:10])
        return shown if len(self._names) <= 10 else f"{shown} and {len(self._names) - 10} more"
