"""NovelSelect by whose density counts: `column` and `row` against plain references, in every place that scores."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity.novelsum import novelsum, rank_weights
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.selection import Picks, novelselect, standing
from novelsum_dagster.selection.checkpoint import selection_key
from novelsum_dagster.selection.limits import Quota
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.selection.scoring import PUBLISHED, Scoring, Side
from novelsum_dagster.selection.search import column as search_column
from novelsum_dagster.selection.search import ladder
from novelsum_dagster.selection.search.base import Candidates, VerificationError
from novelsum_dagster.selection.search.column import ColumnSearch, memory_needed
from novelsum_dagster.selection.trajectory import bounds_at_end, scores_at_end, trajectory
from novelsum_dagster.settings import NovelSum, Selection

FEW = settings(max_examples=60, deadline=None)
ALPHAS = [0.0, 0.5, 1.0, 2.0, 7.0]
SIDES: tuple[Side, ...] = ("both", "column", "row", "objective")


class Plain:
    """The scores of all samples over a growing list of picks, summed outright in exact arithmetic of distances."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        side: str,
        alpha: float,
        quality: NDArray[np.float64] | None = None,
    ) -> None:
        wide = rows.astype(np.float64)
        unit = np.round(wide / np.linalg.norm(wide, axis=1, keepdims=True) * 2**25) / 2**25
        self._unit = unit.astype(np.float32).astype(np.float64)
        self._factor, self._side, self._alpha = factor, side, alpha
        self._quality = np.ones(len(rows)) if quality is None else quality
        self._seen: list[list[tuple[float, int, float]]] = [[] for _ in rows]

    def add(self, pick: int) -> None:
        distances = np.square(self._unit - self._unit[pick]).sum(1) / 2
        for seen, distance in zip(self._seen, distances.tolist(), strict=True):
            # Sorted by distance, and among equals in the order of picks.
            seen.append((distance, len(seen), float(self._factor[pick])))

    def scores(self) -> NDArray[np.float64]:
        found = []
        for row, seen in enumerate(self._seen):
            terms = [
                (rank + 1.0) ** -self._alpha * distance * (factor if self._side == "column" else self._factor[row])
                for rank, (distance, _, factor) in enumerate(sorted(seen))
            ]
            found.append(math.fsum(terms) * self._quality[row])
        return np.array(found)

    def rounding(self, picks: int) -> float:
        """Return what scores may differ by; by row, distances are rounded to float32."""
        highest = 2.0 * self._factor.max() * self._quality.max() * rank_weights(picks, self._alpha).sum()
        return float(highest) * (1e-13 if self._side == "column" else 2e-7)


def _require_best(
    plain: Plain, picks: Picks, rows: NDArray[Any], given_: int, allowed: Callable[[list[int]], NDArray[np.bool_]]
) -> None:
    """Every pick by score must be the best that is allowed, the first of equal samples, the runner-up the second."""
    chosen: list[int] = []
    for rank, pick in enumerate(picks.indices.tolist()):
        if rank >= given_:
            near, scores = plain.rounding(rank), np.where(allowed(chosen), plain.scores(), -np.inf)
            scores[chosen] = -np.inf
            assert scores[pick] >= scores.max() - near
            assert picks.score[rank] == pytest.approx(scores[pick], rel=1e-6, abs=near)
            same = (rows == rows[pick]).all(1) & (plain._factor == plain._factor[pick])
            same &= plain._quality == plain._quality[pick]
            assert pick == np.flatnonzero(same & (scores > -np.inf))[0]
            scores[pick] = -np.inf
            second = int(picks.runner_up[rank])
            assert (second < 0) == (scores.max() == -np.inf)
            if second >= 0:
                assert scores[second] >= scores.max() - near
                assert picks.runner_up_score[rank] == pytest.approx(scores[second], rel=1e-6, abs=near)
        chosen.append(pick)
        plain.add(pick)


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Any]:
    """Pools with duplicates, clusters, and density factors of many sizes, and what is asked of them."""
    n, d = draw(st.integers(1, 60)), draw(st.integers(1, 8))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.normal(size=(n, d))
    if draw(st.booleans()):
        rows = rows[generator.integers(0, max(1, n // 4), n)] + draw(st.sampled_from([0, 1e-3, 0.2])) * rows
    if draw(st.booleans()):
        rows = np.round(rows)
    rows[(rows == 0).all(1)] = 1
    factor = generator.uniform(0.5, 4, n) ** draw(st.sampled_from([0, 1, 10]))
    quality = generator.uniform(0.1, 1, n) if draw(st.booleans()) else None
    if draw(st.booleans()):
        origin = generator.integers(0, draw(st.integers(1, n)), n)
        rows, factor = rows[origin], factor[origin]
        quality = None if quality is None else quality[origin]
    k = draw(st.integers(1, n))
    return {
        "rows": rows.astype(np.float32),
        "factor": factor,
        "quality": quality,
        "k": k,
        "alpha": draw(st.sampled_from(ALPHAS)),
        "initial": generator.permutation(n)[: draw(st.integers(0, k))].tolist(),
        "small": draw(st.booleans()),
    }


@pytest.mark.parametrize("side", ["column", "row"])
@FEW
@given(pool=pools())
def test_every_pick_is_a_brute_force_argmax(side: Side, pool: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if pool["small"]:  # So that small pools have bins, stale lists and chunks.
            for name, value in (("_FRONT", 3), ("_FEW", 1), ("_BATCH", 2), ("_CHUNK", 4), ("_ALONE", 1)):
                patch.setattr(search_column, name, value)
            patch.setattr(search_column, "_RAISED_ALONE", 0)
            patch.setattr(search_column, "_BINS", 5)
        picks = novelselect(
            pool["rows"], pool["k"], density_factor=pool["factor"], density_side=side, proximity_power=pool["alpha"],
            quality=pool["quality"], initial=pool["initial"], threads=2, verify=3,
        )  # fmt: skip
    plain = Plain(pool["rows"], pool["factor"], side, pool["alpha"], pool["quality"])
    everyone = np.ones(len(pool["rows"]), np.bool_)
    _require_best(plain, picks, pool["rows"], max(1, len(pool["initial"])), lambda _: everyone)
    known = picks.remaining
    assert known is not None
    if side == "column":
        others = np.setdiff1d(np.arange(len(pool["rows"])), picks.indices)
        assert (known.at[others] == pool["k"]).all()
        assert (known.score[others] >= plain.scores()[others] - plain.rounding(pool["k"])).all()


class Large:
    """A pool of 3,000 in clusters, some of them duplicates, and the first picks of it by column."""

    def __init__(self) -> None:
        generator = np.random.default_rng(3)
        n, d = 3000, 16
        centres = generator.normal(size=(60, d))
        rows = centres[generator.integers(0, 60, n)] + 0.3 * generator.normal(size=(n, d))
        rows[:100] = rows[1500:1600]
        self.rows = rows.astype(np.float32)
        self.factor = generator.uniform(0.7, 1.5, n) ** 3
        self.factor[:100] = self.factor[1500:1600]
        self.quality = generator.uniform(0.5, 1, n)
        self.picks = self.select(300)

    def select(self, k: int | None, **options: Any) -> Picks:
        return novelselect(self.rows, k, density_factor=self.factor, **{"density_side": "column", **options})


@pytest.fixture(scope="module")
def large() -> Large:
    return Large()


def _require_same(one: Picks, other: Picks) -> None:
    for name in ("indices", "score", "runner_up", "runner_up_score", "nearest_pick", "nearest_distance"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_a_larger_pool_gives_the_best_picks(large: Large) -> None:
    """Scored outright, every pick and runner-up is first and second of all, bit for bit."""
    for rank in (1, 2, 31, 32, 33, 100, 222, 299):
        stood = standing(
            large.rows, large.picks.indices[:rank], density_factor=large.factor, density_side="column"
        )  # fmt: skip
        pick, second = large.picks.indices[rank], large.picks.runner_up[rank]
        assert (stood.rank[pick], stood.rank[second]) == (1, 2)
        assert (stood.score[pick], stood.score[second]) == (
            large.picks.score[rank],
            large.picks.runner_up_score[rank],
        )


@pytest.mark.parametrize("options", [{"threads": 1}, {"device": "auto"}, {"verify": 200}])
@pytest.mark.parametrize("lists", ["kept", "evicted"])
def test_threads_devices_and_memory_change_nothing(
    large: Large, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], lists: str
) -> None:
    if lists == "evicted":
        monkeypatch.setattr(ladder, "_LIST_BYTES", 1)
        monkeypatch.setattr(search_column, "_BATCH", 8)
        monkeypatch.setattr(search_column, "_RAISED_ALONE", 0)
    _require_same(large.select(300, **options), large.picks)


def test_few_are_scored_exactly(large: Large) -> None:
    """The bounds are of use: near the scores, and of few samples more than bounds is needed."""
    known = large.picks.remaining
    assert known is not None
    others = np.setdiff1d(np.arange(3000), large.picks.indices)
    stood = standing(large.rows, large.picks.indices, density_factor=large.factor, density_side="column")
    assert (known.score[others] >= stood.score[others]).all()
    assert np.median(known.score[others] / stood.score[others]) < 1.5


def test_limits_hold_and_the_best_allowed_is_picked(large: Large) -> None:
    rows, factor = large.rows[::20], large.factor[::20]
    labels = [str(row % 3) for row in range(len(rows))]
    cost = np.random.default_rng(1).integers(1, 9, len(rows)).astype(float)
    quotas = [Quota(labels, {"0": 4, "1": 30}, {"2": 12}, "source")]
    common: dict[str, Any] = {"density_factor": factor, "density_side": "column", "must_exclude": [5, 6]}
    picks = novelselect(rows, 40, quotas=quotas, must_include=[9, 3], **common)
    assert picks.indices[:2].tolist() == [9, 3]
    names = np.array(labels)[picks.indices]
    assert (names == "0").sum() <= 4 and (names == "2").sum() >= 12
    assert not np.isin([5, 6], picks.indices).any()

    def allowed(chosen: list[int]) -> NDArray[np.bool_]:
        free = np.ones(len(rows), np.bool_)
        free[[5, 6]] = False
        if [labels[row] for row in chosen].count("0") >= 4:
            free[np.array(labels) == "0"] = False
        return free

    quotas = [Quota(labels, {"0": 4}, {}, "source")]
    picks = novelselect(rows, 40, quotas=quotas, **common)
    _require_best(Plain(rows, factor, "column", 1.0), picks, rows, 1, allowed)
    bought = novelselect(rows, cost=cost, budget=100, **common)

    def affordable(chosen: list[int]) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = cost <= 100 - cost[chosen].sum()
        free[[5, 6]] = False
        return free

    _require_best(Plain(rows, factor, "column", 1.0), bought, rows, 1, affordable)


def test_a_selection_goes_on_from_its_picks_and_from_its_checkpoint(large: Large, tmp_path: Any) -> None:
    _require_same(large.select(300, initial=large.select(120)), large.picks)

    def stop(done: float, _: float) -> None:
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        large.select(300, checkpoint=tmp_path / "c.parquet", progress=stop)
    with pytest.raises(ValueError, match="of a selection from other data or settings"):
        large.select(300, checkpoint=tmp_path / "c.parquet", density_side="both")
    _require_same(large.select(300, checkpoint=tmp_path / "c.parquet"), large.picks)


def test_picks_of_other_parts_with_smaller_factors(large: Large) -> None:
    """Parts are searched by themselves, as on Ray; their best two together are those of all."""
    units, weights = unit_rows(large.rows), rank_weights(60, 1.0)
    order = np.argsort(-large.factor, kind="stable")  # The second part has the smaller factors.
    candidates = Candidates.of(units[order], large.factor[order], None, Scoring("column"))
    first = int(np.flatnonzero(order == large.picks.indices[0])[0])
    parts = [(at, ColumnSearch(candidates.part(at, at + 1500), weights, 1)) for at in (0, 1500)]
    whole = ColumnSearch(candidates, weights, 1)
    pick = first
    for _ in range(59):
        whole.add(pick)
        for at, part in parts:
            part.take(candidates.rows[pick], float(candidates.factor[pick]), pick - at if 0 <= pick - at < 1500 else -1)
        found = whole.best()
        assert found is not None
        split = [(one.score * candidates.unit, -(one.best + at)) for at, part in parts if (one := part.best())]
        assert max(split) == (found.score, -found.best)
        pick = found.best
    for search in (whole, *(part for _, part in parts)):
        search.close()


def test_a_wrong_score_is_found_by_verification(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = ColumnSearch._raised

    def leaves_many_out(self: ColumnSearch, level: float) -> NDArray[np.int64]:
        found = raised(self, level)
        return found[found % 3 > 0] if self.picked > 20 else found

    monkeypatch.setattr(ColumnSearch, "_raised", leaves_many_out)
    with pytest.raises(VerificationError, match=r"pick \d+: row \d+ was found"):
        large.select(60, verify=3000)


def test_equal_factors_make_column_the_side_row() -> None:
    """Then both are the same sums of distances; the published score is twice that."""
    rows = np.random.default_rng(0).normal(size=(200, 5))
    chosen = {
        side: novelselect(rows, 50, density_power=0, density_side=side) for side in ("both", "column", "row")
    }  # fmt: skip
    for side in ("column", "row"):
        assert chosen[side].indices.tolist() == chosen["both"].indices.tolist()
        np.testing.assert_allclose(2 * chosen[side].score, chosen["both"].score, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 40])
def test_pools_of_duplicates_are_picked_in_order(n: int) -> None:
    rows = np.tile(np.random.default_rng(1).normal(size=(1, 5)), (n, 1))
    first = int(np.random.RandomState(42).randint(0, n))
    for side in ("column", "row"):
        picks = novelselect(rows, n, density_power=0, density_side=side, verify=3)
        assert picks.indices.tolist() == [first, *(row for row in range(n) if row != first)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_trajectories_and_scores_at_the_end_are_those_of_the_selection(side: Side, alpha: float) -> None:
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(60, 6)).astype(np.float32)
    rows[-3:] = rows[0]
    factor = generator.uniform(0.5, 4, 60)
    scoring = Scoring(side, alpha)
    named: dict[str, Any] = {"density_factor": factor, "density_side": side, "proximity_power": alpha}
    picks = novelselect(rows, 25, must_exclude=[50], **named)
    others = np.setdiff1d(np.arange(60), picks.indices)
    paths = [
        trajectory(rows[row], factor[row], rows[picks.indices], factor[picks.indices], scoring=scoring)
        for row in others
    ]
    for made in (1, 2, 13, 25):
        exact = standing(rows, picks.indices[:made], **named).score[others]
        np.testing.assert_allclose([path[made - 1] for path in paths], exact, rtol=1e-6, atol=1e-6)
    at_end = scores_at_end(rows[others], factor[others], rows[picks.indices], factor[picks.indices], scoring=scoring)
    np.testing.assert_allclose(at_end, exact, rtol=1e-6, atol=1e-6)
    for rank in range(1, 25):
        pick = picks.indices[rank]
        path = trajectory(rows[pick], factor[pick], rows[picks.indices], factor[picks.indices], scoring=scoring)
        assert path[rank - 1] == pytest.approx(picks.score[rank], rel=1e-6, abs=1e-6)
    known = picks.remaining
    assert known is not None
    bounds = bounds_at_end(
        known.score[others], known.at[others], factor[others], factor[picks.indices], scoring=scoring
    )  # fmt: skip
    assert (bounds >= exact - 1e-6 * np.abs(exact)).all()
    early = bounds_at_end(
        standing(rows, picks.indices[:5], **named).score[others], np.full(len(others), 5), factor[others],
        factor[picks.indices], scoring=scoring,
    )  # fmt: skip
    assert (early >= exact - 1e-6).all()


@pytest.mark.parametrize("side", ["column", "row"])
def test_partitions_select_by_the_side(large: Large, side: Side) -> None:
    rows, factor = large.rows[:400], large.factor[:400]
    exact = novelselect(rows, 30, density_factor=factor, density_side=side).indices
    options = NovelSelectOptions(Scoring(side), verify=3)
    picks = partitioned(rows, 30, partitions=4, density_factor=factor, options=options).indices
    both = partitioned(rows, 30, partitions=4, density_factor=factor).indices
    assert len(set(picks.tolist())) == 30
    assert picks.tolist() != both.tolist()
    values = [novelsum(rows[chosen], rows, density_side="row").value for chosen in (picks, exact)]
    assert values[0] == pytest.approx(values[1], rel=0.1)


def test_keys_of_the_published_side_stay_and_others_differ() -> None:
    assert Scoring().facts() == {"proximity_power": 1.0}
    # As release 0.2 made it of the same settings.
    assert selection_key({"seed": 1, **PUBLISHED.facts()}) == selection_key({"seed": 1, "proximity_power": 1.0})
    variants = [Scoring(side) for side in SIDES] + [
        Scoring("objective", measured_side="column"),
        Scoring("objective", self_distance="excluded"),
        Scoring("objective", swap_rounds=2),
        Scoring("column", proximity_power=2.0),
    ]
    assert len({selection_key(one.facts()) for one in variants}) == len(variants)
    # What the measure is changes nothing where it is not looked at.
    assert Scoring("column", measured_side="column").facts() == Scoring("column").facts()


def test_settings_become_a_score_and_their_record_the_same_one() -> None:
    selection = Selection(density_side="objective", swap_rounds=3)
    novelsum_ = NovelSum(density_side="column", self_distance="excluded", proximity_power=2.0)
    scoring = Scoring.of(selection, novelsum_)
    assert scoring == Scoring("objective", 2.0, "column", "excluded", 3)
    recorded = {"density_side": "objective", "swap_rounds": 3, **scoring.measured()}
    assert Scoring.recorded(recorded, 2.0) == scoring
    assert Scoring.recorded({}, 1.0) == PUBLISHED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density_side": "rows"}, "density_side is 'rows'; the choices are both, column, row, objective"),
        ({"measured_side": "both"}, "measured_side is 'both'; the choices are row, column"),
        ({"self_distance": "yes"}, "self_distance is 'yes'; the choices are included, excluded"),
        ({"swap_rounds": -1}, "swap_rounds is -1; it must be 0 or more"),
        ({"swap_rounds": 1, "density_side": "column"}, "swap_rounds works with density_side objective only"),
        ({"quality": np.ones(9), "density_side": "objective"}, "takes no quality"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        novelselect(np.eye(9), 3, **options)


def test_more_than_the_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_column, "available_memory", lambda: 10_000)
    monkeypatch.setattr("novelsum_dagster.common.memory.available_memory", lambda: 10_000)
    with pytest.raises(NotEnoughMemory, match="NovelSelect of 3 out of 9"):
        novelselect(np.eye(9), 3, density_side="column", density_factor=np.ones(9))
    assert memory_needed(2000, 384, 100) > memory_needed(1000, 384, 100) > 1000 * 384


def test_parts_have_the_score_of_all() -> None:
    part = Candidates.of(np.eye(4, dtype=np.float32), np.ones(4), None, Scoring("column")).part(1, 3)
    assert part.scoring == Scoring("column")
