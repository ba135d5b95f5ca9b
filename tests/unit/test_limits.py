"""What NovelSelect may pick: caps, floors, budgets, ids that must or must not be in, against the rule done plainly."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from novelsum_dagster.selection import Picks, Quota, novelselect
from novelsum_dagster.selection.picks import BARS
from tests.plain import Allowed, PlainLimits, PlainQuota, plain_novelselect

FEW = settings(max_examples=80, deadline=None)


class Plan:
    """A small pool and its limits."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        cost: NDArray[np.float64],
        budget: float,
        quotas: list[Quota],
        excluded: list[int],
        seed: int,
    ) -> None:
        self.rows, self.factor, self.cost, self.budget = rows, factor, cost, budget
        self.quotas, self.excluded, self.seed = quotas, excluded, seed

    def __repr__(self) -> str:
        return f"Plan({vars(self)})"

    @property
    def counts_samples(self) -> bool:
        return bool((self.cost == 1).all())

    def picks(self, **options: Any) -> Picks:
        limit = {"k": int(self.budget)} if self.counts_samples else {"cost": self.cost, "budget": self.budget}
        return novelselect(
            self.rows,
            density_factor=self.factor,
            quotas=self.quotas,
            must_exclude=self.excluded,
            seed=self.seed,
            **{"verify": 2, "threads": 1, **limit, **options},
        )

    @property
    def rule(self) -> PlainLimits:
        quotas = [PlainQuota(np.asarray(one.labels).tolist(), one.caps, one.floors) for one in self.quotas]
        return PlainLimits(self.cost, self.budget, quotas, self.excluded)

    def plain(self, initial: list[int] | None = None) -> list[int]:
        n = len(self.rows)
        return plain_novelselect(self.rows, n, self.factor, 1.0, self.seed, None, initial or (), self.allowed()).indices

    def allowed(self) -> Allowed:
        return self.rule.eligible

    def contradicts(self) -> bool:
        """Return whether one column's limits cannot be kept, whatever is picked."""
        open_ = np.setdiff1d(np.arange(len(self.rows)), self.excluded)
        for quota in self.quotas:
            labels = np.asarray(quota.labels)
            counts = Counter(labels[open_].tolist())
            if self.rule.filling(PlainQuota(labels.tolist(), quota.caps, quota.floors), []) > self.budget:
                return True
            if any(floor > quota.caps.get(label, len(labels)) for label, floor in quota.floors.items()):
                return True
            room = sum(min(counts[label], quota.caps.get(label, len(labels))) for label in set(labels.tolist()))
            if self.counts_samples and room < self.budget:
                return True
        if self.counts_samples:
            return len(open_) < self.budget
        return not self.allowed()([]).any()


@st.composite
def plans(draw: st.DrawFn, columns: int = 1, costs: bool | None = None) -> Plan:
    n = draw(st.integers(1, 25))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.normal(size=(n, 5)).astype(np.float32)
    factor = generator.uniform(0.5, 4, n)
    if draw(st.booleans()) if costs is None else costs:
        cost = generator.integers(draw(st.integers(0, 1)), draw(st.integers(2, 30)), n).astype(np.float64)
        assume((cost != 1).any())
        budget = float(draw(st.integers(0, int(cost.sum()) + 5)))
    else:
        cost, budget = np.ones(n), float(draw(st.integers(1, n)))
    quotas = []
    for column in range(columns):
        labels = generator.integers(0, draw(st.integers(1, 4)), n)
        names = sorted(set(labels.tolist()))
        counts = st.dictionaries(st.sampled_from(names), st.integers(0, 6))
        quotas.append(Quota(labels, draw(counts), draw(counts), name=f"column {column}"))
    excluded = generator.permutation(n)[: draw(st.integers(0, n // 3))].tolist()
    return Plan(rows, factor, cost, budget, quotas, excluded, draw(st.integers(0, 99)))


def assert_kept(plan: Plan, picks: Picks) -> None:
    chosen = picks.indices.tolist()
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(plan.excluded)
    assert plan.cost[chosen].sum() <= plan.budget
    for quota in plan.quotas:
        counts = Counter(np.asarray(quota.labels)[chosen].tolist())
        assert all(counts[label] <= cap for label, cap in quota.caps.items())
        assert all(counts[label] >= floor for label, floor in quota.floors.items())


@FEW
@given(plans())
def test_one_column_gives_the_plain_picks_or_is_refused(plan: Plan) -> None:
    if plan.contradicts():
        with pytest.raises(ValueError, match=r"lower|raise|contradict"):
            plan.picks()
        return
    picks = plan.picks()
    assert picks.indices.tolist() == plan.plain()
    assert_kept(plan, picks)
    # Nothing that could still be paid for is left over.
    assert not plan.allowed()(picks.indices.tolist()).any()


@FEW
@given(plans(columns=2))
def test_two_columns_give_the_plain_picks_or_are_refused(plan: Plan) -> None:
    plain = plan.plain() if plan.allowed()([]).any() else []
    too_few = plan.counts_samples and len(plain) < plan.budget
    if not plain or too_few or any(_lacks(quota, plain) for quota in plan.quotas):
        with pytest.raises(ValueError, match=r"lower|raise|contradict"):
            plan.picks()
        return
    picks = plan.picks()
    assert picks.indices.tolist() == plain
    assert_kept(plan, picks)


@FEW
@given(plans(columns=2), st.integers(0, 10**6))
def test_the_record_says_what_was_eligible_and_what_ruled_out_the_others(plan: Plan, where: int) -> None:
    n = len(plan.rows)
    included = np.random.default_rng(where).permutation(n)[: where % 3].tolist()
    try:
        picks = plan.picks(must_include=included)
    except ValueError:
        return
    record, chosen, given = picks.eligibility, picks.indices.tolist(), max(len(included), 1)
    assert record is not None
    assert (
        picks.chosen_by
        == (*["must_include"] * len(included), *["seed"] * (not included), *["score"] * n)[: len(chosen)]
    )
    eligible_picks = np.zeros(n, int)
    for rank in range(given, len(chosen)):
        allowed = plan.allowed()(chosen[:rank])
        eligible_picks += allowed
        assert record.eligible[rank] == allowed.sum()
        barred = plan.rule.barred(chosen[:rank])
        assert {bar: int(counts[rank]) for bar, counts in record.ruled_out.items()} == {
            bar: len(barred.get(bar, ())) for bar in BARS
        }
        assert set().union(*barred.values()) == set(np.flatnonzero(~allowed)) - set(chosen[:rank])
        if rank == len(chosen) - 1:
            for row in range(n):
                bars = {bar for bar, rows in barred.items() if row in rows}
                number = int(record.barred[row])
                assert (None if number < 0 else BARS[number]) == next((bar for bar in BARS if bar in bars), None)
    assert not record.eligible[:given].any()
    if len(chosen) > given:
        np.testing.assert_array_equal(record.eligible_picks, eligible_picks)


def _lacks(quota: Quota, picked: list[int]) -> bool:
    counts = Counter(np.asarray(quota.labels)[picked].tolist())
    return any(counts[label] < floor for label, floor in quota.floors.items())


@FEW
@given(plans(columns=1), st.integers(0, 10**6))
def test_included_samples_come_first_or_are_refused(plan: Plan, where: int) -> None:
    assume(not plan.contradicts())
    n = len(plan.rows)
    included = np.random.default_rng(where).permutation(n)[: 1 + where % 3].tolist()
    for at, row in enumerate(included):
        if not plan.allowed()(included[:at])[row]:
            with pytest.raises(ValueError, match=f"must_include or initial: row {row} "):
                plan.picks(must_include=included)
            return
    picks = plan.picks(must_include=included)
    assert picks.indices.tolist() == plan.plain(included)
    assert_kept(plan, picks)


@FEW
@given(plans(columns=0, costs=True))
def test_a_budget_alone_is_spent_to_the_last_affordable_sample(plan: Plan) -> None:
    assume(not plan.contradicts())
    chosen = plan.picks().indices.tolist()
    left = plan.budget - plan.cost[chosen].sum()
    others = np.setdiff1d(np.arange(len(plan.rows)), [*chosen, *plan.excluded])
    assert left >= 0
    assert (plan.cost[others] > left).all()


ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
SOURCE = ["web"] * 6 + ["book"] * 4 + ["chat"] * 2
COST = np.array([5.0] * 6 + [20.0] * 4 + [1.0] * 2)


@pytest.mark.parametrize("costs", [False, True])
@pytest.mark.slow
def test_a_larger_pool_keeps_its_limits(costs: bool) -> None:
    generator = np.random.default_rng(1)
    n = 1200
    rows, factor = generator.normal(size=(n, 12)).astype(np.float32), generator.uniform(0.5, 4, n)
    source, language = generator.integers(0, 5, n), generator.integers(0, 3, n)
    cost = generator.integers(10, 500, n).astype(np.float64) if costs else np.ones(n)
    quotas = [Quota(source, {0: 9, 3: 20}, {1: 60, 4: 5}, "source"), Quota(language, {1: 15}, {2: 40}, "language")]
    plan = Plan(rows, factor, cost, 60_000.0 if costs else 150.0, quotas, list(range(0, n, 7)), 3)
    picks = plan.picks(verify=20)
    assert_kept(plan, picks)
    # At a few picks, the plain rule and plain scores give the same one.
    chosen = picks.indices.tolist()
    for rank in (1, 5, 20, 60, len(chosen) - 1):
        plain = plain_novelselect(rows, rank + 1, factor, 1.0, 3, None, chosen[:rank], plan.allowed())
        assert plain.indices[rank] == chosen[rank]
    assert not plan.allowed()(chosen).any()


def test_labels_of_any_kind() -> None:
    kinds: list[Any] = [SOURCE, np.array(SOURCE), np.array(SOURCE, object), tuple(SOURCE)]
    for labels in kinds:
        picks = novelselect(ROWS, 8, quotas=[Quota(labels, caps={"web": 3}, floors={"chat": 2})])
        counts = Counter(SOURCE[i] for i in picks.indices)
        assert counts == {"web": 3, "book": 3, "chat": 2}


def test_the_first_pick_moves_on_where_it_may_not_be_taken() -> None:
    drawn = int(np.random.RandomState(42).randint(0, 12))
    assert novelselect(ROWS, 1).indices.tolist() == [drawn]
    barred = [drawn, (drawn + 1) % 12]
    assert novelselect(ROWS, 1, must_exclude=barred).indices.tolist() == [(drawn + 2) % 12]
    last = novelselect(ROWS, 1, must_exclude=range(drawn, 12)).indices.tolist()
    assert last == [0]


def test_a_budget_of_ones_is_k() -> None:
    by_budget = novelselect(ROWS, cost=np.ones(12), budget=7)
    np.testing.assert_array_equal(by_budget.indices, novelselect(ROWS, 7).indices)


def test_samples_that_cost_nothing_are_all_taken() -> None:
    cost = COST.copy()
    cost[[1, 7, 10]] = 0
    chosen = novelselect(ROWS, cost=cost, budget=10).indices.tolist()
    assert {1, 7, 10} <= set(chosen)
    assert cost[chosen].sum() <= 10
    assert sorted(novelselect(ROWS, cost=cost, budget=0).indices.tolist()) == [1, 7, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quotas": [Quota(SOURCE[:-1], name="source")]}, r"source has \(11,\) labels; .* 12 samples"),
        (
            {"quotas": [Quota(SOURCE, {"wbe": 3}, name="source")]},
            "source 'wbe' has a cap but no sample; .* 'web', 'book",
        ),
        ({"quotas": [Quota(SOURCE, floors={"wbe": 3}, name="source")]}, "source 'wbe' has a floor but no sample"),
        ({"quotas": [Quota(SOURCE, {"web": -1}, name="source")]}, "source 'web': the cap is -1"),
        ({"quotas": [Quota(SOURCE, floors={"web": -2}, name="source")]}, "source 'web': the floor is -2"),
        (
            {"quotas": [Quota(SOURCE, {"web": 2}, {"web": 3}, "source")]},
            "source 'web': the floor is 3, but only 2 samples",
        ),
        ({"quotas": [Quota(SOURCE, {}, {"chat": 3}, "source")]}, "source 'chat': the floor is 3, but only 2 samples"),
        (
            {"quotas": [Quota(SOURCE, {}, {"chat": 2}, "source")], "must_exclude": [11]},
            "source 'chat': the floor is 2, but only 1 samples",
        ),
        ({"quotas": [Quota(SOURCE, {}, {"web": 4, "book": 2}, "source")]}, "floors on source need 6, but k is 5"),
        ({"quotas": [Quota(SOURCE, {"web": 1, "book": 1}, name="source")]}, "caps on source allow 4 samples, but k is"),
        (
            {"quotas": [Quota(SOURCE, {"chat": 1}, name="source")], "must_include": [10, 11]},
            "row 11 violates the caps and floors on source .*'chat'",
        ),
        (
            {"quotas": [Quota(SOURCE, {}, {"chat": 2, "book": 2}, "source")], "must_include": [4, 2]},
            "row 2 violates the caps and floors on source .*'web'",
        ),
        ({"must_include": [3], "initial": [3, 5], "must_exclude": [5]}, "row 5 is also excl"),
        (
            {
                "quotas": [
                    Quota(SOURCE, {"book": 0, "chat": 0}, name="source"),
                    Quota([0, 0, 0, 0, 1, 1] + [1] * 6, {0: 2}, name="part"),
                ]
            },
            "no further pick after 4 of 5",
        ),
        (
            {
                "quotas": [
                    Quota(SOURCE, {"chat": 0}, name="source"),
                    Quota([0] * 10 + [1] * 2, floors={1: 1}, name="part"),
                ]
            },
            "part 1 lacks 1",
        ),
        ({"cost": COST}, "either k, or budget and cost"),
        ({"budget": 5}, "either k, or budget and cost"),
        ({"k": None, "budget": 5}, "either k, or budget and cost"),
        ({"k": None, "cost": COST, "budget": 0.5}, "budget"),
        ({"k": None, "cost": COST, "budget": -1}, "budget"),
        ({"k": None, "cost": COST, "budget": np.nan}, "budget"),
        (
            {"k": None, "cost": COST, "budget": 50, "must_exclude": range(12)},
            "is below the cost of every eligible sample",
        ),
        ({"k": None, "cost": COST[:5], "budget": 5}, r"cost has shape \(5,\)"),
        ({"k": None, "cost": np.r_[COST[:7], -1, COST[8:]], "budget": 5}, "cost: row 7 is -1"),
        ({"k": None, "cost": np.r_[COST[:7], np.nan, COST[8:]], "budget": 5}, "cost: row 7 is nan"),
        ({"k": None, "cost": COST, "budget": 24, "must_include": [2, 6]}, "row 6 costs 20, but 19 of the budget"),
        (
            {"k": None, "cost": COST, "budget": 39, "quotas": [Quota(SOURCE, {}, {"book": 2}, "source")]},
            "floors on source need 40, but the budget is 39",
        ),
        (
            {"quotas": [Quota(np.array([None, *SOURCE[1:]]), {None: 2}, {None: 3}, "source")]},
            "source None: the floor is 3",
        ),
    ],
)
def test_contradictions_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        novelselect(**{"embeddings": ROWS, "k": 5, **options})


def test_budgets_report_what_is_spent() -> None:
    seen: list[tuple[int, int]] = []
    picks = novelselect(ROWS, cost=COST, budget=50, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (int(COST[picks.indices].sum()), 50)


def test_a_large_budget_takes_all() -> None:
    assert len(novelselect(ROWS, cost=COST, budget=1e9).indices) == 12
