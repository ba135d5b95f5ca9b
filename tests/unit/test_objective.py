"""Picks by the increase of NovelSum, exchanges and the upper bound, against NovelSum itself."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.common import memory
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity.novelsum import (
    DensitySide,
    Grid,
    NovelSumOptions,
    SelfDistance,
    novelsum_with_densities,
)
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.selection import Quota, novelselect
from novelsum_dagster.selection.novelselect import local_search
from novelsum_dagster.selection.picks import Found, Picks
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.search.base import Candidates, Search, VerificationError
from novelsum_dagster.selection.search.objective import (
    Chosen,
    ObjectiveSearch,
    sides,
)
from novelsum_dagster.selection.subset import write_subset
from novelsum_dagster.selection.swaps import objective_facts, upper_bound
from novelsum_dagster.selection.trajectory import trajectory
from novelsum_dagster.settings import Embedding, Pool, Source
from tests.pools import alpaca, write_jsonl

ROW = Scoring("objective")
SIDES: tuple[DensitySide, ...] = ("row", "column")
OWN: tuple[SelfDistance, ...] = ("included", "excluded")
MEASURES = [Scoring("objective", *one) for one in itertools.product((0.0, 1.0, 2.0), SIDES, OWN)]
EVERY_MEASURE = pytest.mark.parametrize(
    "scoring", MEASURES, ids=lambda one: f"{one.measured_side}-{one.self_distance}-{one.proximity_power:g}"
)


def _pool(n: int, d: int = 5, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Clustered rows, a fifth of them exact duplicates, and density factors, equal for equal rows."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(n // 6 + 1, d)).repeat(6, 0)[:n]
    rows: NDArray[np.float32] = (centres + 0.6 * generator.normal(size=(n, d))).astype(np.float32)
    factor = generator.uniform(0.2, 4, n)
    copies = n // 5
    rows[:copies], factor[:copies] = rows[n - copies :], factor[n - copies :]
    return rows, factor


def _novelsum(rows: NDArray[np.float32], factor: NDArray[np.float64], picks: list[int], scoring: Scoring) -> float:
    if not picks:
        return 0.0
    grid = Grid(proximity_powers=(scoring.proximity_power,))
    options = NovelSumOptions(grid, self_distance=scoring.self_distance, density_side=scoring.measured_side)
    (found,) = novelsum_with_densities(rows[picks], {(0, 0.0): factor[picks]}, options).values()
    return found.value


def _increases(
    rows: NDArray[np.float32], factor: NDArray[np.float64], picks: list[int], scoring: Scoring
) -> NDArray[np.float64]:
    before = _novelsum(rows, factor, picks, scoring)
    return np.array(
        [
            -np.inf if row in picks else _novelsum(rows, factor, [*picks, row], scoring) - before
            for row in range(len(rows))
        ]
    )


def _select(rows: NDArray[np.float32], factor: NDArray[np.float64], k: int, scoring: Scoring, **given: Any) -> Picks:
    return novelselect(rows, k, density_factor=factor, **{**scoring.options(), **given})


def _on_torch(candidates: Candidates, weights: NDArray[np.float64], device: str, threads: int | None = None) -> Search:
    pytest.importorskip("torch")
    return ObjectiveSearch(candidates, weights, "cpu:0", threads)


def _same(one: Picks, other: Picks) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    for name in ("score", "runner_up", "runner_up_score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# Greedy picks.


@EVERY_MEASURE
def test_every_pick_increases_the_reported_novelsum_most(scoring: Scoring) -> None:
    rows, factor = _pool(30)
    picks = _select(rows, factor, 14, scoring, verify=3)
    assert picks.indices[0] == np.random.RandomState(42).randint(0, 30)
    for made in range(1, 14):
        expected = _increases(rows, factor, picks.indices[:made].tolist(), scoring)
        second, best = np.argsort(expected, kind="stable")[-2:]
        assert picks.score[made] == pytest.approx(expected[best], rel=1e-9, abs=1e-12)
        assert picks.runner_up_score[made] == pytest.approx(expected[second], rel=1e-9, abs=1e-12)
        assert expected[picks.indices[made]] == pytest.approx(expected[best], rel=1e-9, abs=1e-12)
        # Of samples that increase it alike, as exact duplicates do, the lowest index is picked.
        assert picks.indices[made] == np.flatnonzero(expected > expected[best] - 1e-12)[0]
        if expected[second] < expected[best] - 1e-9:
            assert expected[picks.runner_up[made]] == pytest.approx(expected[second], rel=1e-9, abs=1e-12)


@EVERY_MEASURE
def test_all_of_a_pool_can_be_picked(scoring: Scoring) -> None:
    rows, factor = _pool(24)
    picks = _select(rows, factor, 24, scoring)
    assert sorted(picks.indices.tolist()) == list(range(24))
    assert picks.runner_up[-1] == -1
    total = _novelsum(rows, factor, picks.indices.tolist(), scoring)
    first = _novelsum(rows, factor, picks.indices[:1].tolist(), scoring)
    assert first + np.nansum(picks.score) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("scoring", [ROW, Scoring("objective", self_distance="excluded")])
def test_a_pool_of_one_sample_or_of_equal_samples_is_picked_in_order(scoring: Scoring) -> None:
    assert _select(np.ones((1, 3), np.float32), np.ones(1), 1, scoring).indices.tolist() == [0]
    picks = _select(np.ones((9, 3), np.float32), np.full(9, 2.0), 9, scoring)
    first = int(np.random.RandomState(42).randint(0, 9))
    assert picks.indices.tolist() == [first, *(row for row in range(9) if row != first)]
    assert np.nansum(np.abs(picks.score)) == 0


def test_equal_distances_rank_as_in_the_measure() -> None:
    # Corners of a cube: many distances are equal, and by column it counts whose factor has which rank.
    rows = np.array(list(itertools.product((-1, 1), repeat=4)), np.float32)
    factor = np.random.default_rng(1).uniform(0.5, 2, 16)
    scoring = Scoring("objective", measured_side="column")
    picks = _select(rows, factor, 10, scoring, verify=16)
    for made in range(1, 10):
        expected = _increases(rows, factor, picks.indices[:made].tolist(), scoring)
        assert picks.score[made] == pytest.approx(expected.max(), rel=1e-9, abs=1e-12)


def test_quality_is_refused() -> None:
    rows, factor = _pool(12)
    with pytest.raises(ValueError, match="takes no quality"):
        _select(rows, factor, 3, ROW, quality=np.ones(12))


def test_factors_of_any_size_fit() -> None:
    rows, factor = _pool(20)
    plain = _select(rows, factor, 9, ROW)
    for scale in (2.0**-300, 2.0**300):
        picks = _select(rows, factor * scale, 9, ROW)
        assert picks.indices.tolist() == plain.indices.tolist()
        np.testing.assert_array_equal(picks.score, plain.score * scale)


@EVERY_MEASURE
def test_scores_outright_have_the_same_bits_as_those_of_a_search(scoring: Scoring) -> None:
    rows, factor = _pool(40)
    units = unit_rows(rows)
    search = ObjectiveSearch(Candidates.of(units, factor, None, scoring), np.ones(12), "cpu", 2)
    picks = np.random.default_rng(3).permutation(40)[:12]
    for made, pick in enumerate(picks.tolist()):
        search.add(pick)
        search.best()
        known = search.remaining()
        np.testing.assert_array_equal(
            known.score, Chosen.of(units[picks[: made + 1]], factor[picks[: made + 1]], scoring).scores(units, factor)
        )
        assert known.is_exact.all()
        assert (known.at == made + 1).all()
    search.close()
    assert search.remaining().score.tolist() == known.score.tolist()


@EVERY_MEASURE
def test_a_samples_trajectory_is_its_increase_after_every_pick(scoring: Scoring) -> None:
    rows, factor = _pool(30)
    picks = _select(rows, factor, 10, scoring).indices
    row = next(row for row in range(30) if row not in picks)
    found = trajectory(rows[row], factor[row], rows[picks], factor[picks], scoring=scoring)
    expected = [_increases(rows, factor, picks[:made].tolist(), scoring)[row] for made in range(1, 11)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@EVERY_MEASURE
def test_threads_torch_and_an_interruption_change_no_pick(scoring: Scoring, tmp_path: Path) -> None:
    rows, factor = _pool(70)
    whole = _select(rows, factor, 30, scoring, threads=1)
    _same(_select(rows, factor, 30, scoring, threads=2), whole)
    _same(_select(rows, factor, 30, scoring, search_on=_on_torch), whole)

    def kill(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    path = tmp_path / "unfinished.parquet"
    with pytest.raises(KeyboardInterrupt):
        _select(rows, factor, 30, scoring, checkpoint=path, progress=kill)
    _same(_select(rows, factor, 30, scoring, checkpoint=path), whole)
    assert not path.exists()


def test_more_candidates_than_a_block_and_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novelsum_dagster.selection.search.objective._ALONE", 0)
    monkeypatch.setattr("novelsum_dagster.selection.search.objective._PICKS_AT_ONCE", 20_000)
    rows, factor = _pool(9000, 8)
    one, three = (_select(rows, factor, 25, ROW, threads=threads, verify=4) for threads in (1, 3))
    _same(one, three)
    _same(_select(rows, factor, 25, ROW, search_on=_on_torch), one)


def test_a_search_shared_by_parts_of_the_pool_finds_the_same() -> None:
    rows, factor = _pool(50)
    units, weights = unit_rows(rows), np.ones(12)
    candidates = Candidates.of(units, factor, None, ROW)
    whole = local_search(candidates, weights, "cpu", 1)
    parts = [local_search(candidates.part(first, first + 25), weights, "cpu", 1) for first in (0, 25)]
    pick = 7
    for _ in range(11):
        whole.add(pick)
        for number, part in enumerate(parts):
            own = pick - 25 * number
            part.take(candidates.rows[pick], candidates.factor[pick], own if 0 <= own < 25 else -1)
        found = whole.best()
        assert found is not None
        halves = [part.best() for part in parts]
        scores = [half.score * candidates.unit for half in halves if half]
        assert found.score == max(scores)
        best = int(np.argmax(scores))
        assert found.best == halves[best].best + 25 * best  # type: ignore[union-attr]
        pick = found.best


def test_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, factor = _pool(60)
    labels = np.arange(60) % 3
    picks = _select(
        rows, factor, 20, Scoring("objective", swap_rounds=3), quotas=[Quota(labels, {0: 4}, {1: 9})],
        must_include=[5, 8], must_exclude=[11], initial=[2],
    )  # fmt: skip
    assert picks.indices[:3].tolist() == [2, 5, 8]
    assert 11 not in picks.indices
    counts = np.bincount(labels[picks.indices])
    assert counts[0] <= 4
    assert counts[1] >= 9
    assert len(set(picks.indices.tolist())) == 20
    cost = np.random.default_rng(0).integers(1, 9, 60)
    bought = _select(rows, factor, None, Scoring("objective", swap_rounds=3), cost=cost, budget=50)  # type: ignore[arg-type]
    assert cost[bought.indices].sum() <= 50


def test_too_little_memory_is_refused_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    monkeypatch.setattr("novelsum_dagster.selection.search.objective.available_memory", lambda: 100_000)
    with pytest.raises(NotEnoughMemory, match=r"samples would fit; set selection\.partitions"):
        _select(*_pool(600), 60, ROW)


def test_verify_finds_a_wrong_search() -> None:
    class Wrong(ObjectiveSearch):
        def _best(self) -> Any:
            found = super()._best()
            worst = int(np.where(self._blocked, np.inf, self._scores).argmin())
            return found and Found(worst, float(self._scores[worst]))

    rows, factor = _pool(30)
    with pytest.raises(VerificationError, match="please report"):
        _select(rows, factor, 12, ROW, verify=2, search_on=lambda one, w, d, t: Wrong(one, w, d, t))


# Exchanges.


@EVERY_MEASURE
def test_exchanges_end_where_no_single_one_increases_novelsum(scoring: Scoring) -> None:
    for seed in range(3):
        rows, factor = _pool(12, seed=seed)
        options = {**scoring.options(), "swap_rounds": 50}
        plain = _select(rows, factor, 5, scoring)
        picks = novelselect(rows, 5, density_factor=factor, **options)
        made = picks.exchanges
        assert made is not None
        value = _novelsum(rows, factor, picks.indices.tolist(), scoring)
        assert made.before == pytest.approx(_novelsum(rows, factor, plain.indices.tolist(), scoring), rel=1e-9)
        assert made.after == pytest.approx(value, rel=1e-9)
        assert made.after >= made.before
        assert (made.after > made.before) == (made.count > 0)
        assert made.rounds < 50
        np.testing.assert_array_equal(picks.indices[~made.by_exchange], plain.indices[~made.by_exchange])
        for place in range(5):
            for row in set(range(12)) - set(picks.indices.tolist()):
                other = picks.indices.copy()
                other[place] = row
                assert _novelsum(rows, factor, other.tolist(), scoring) <= value * (1 + 1e-9)


def test_an_exchange_is_recorded_at_the_place_that_it_took() -> None:
    rows, factor = _pool(40, seed=2)
    scoring = Scoring("objective", swap_rounds=1)
    picks = _select(rows, factor, 8, scoring)
    made = picks.exchanges
    assert made is not None
    assert made.rounds == 1
    assert made.count == made.by_exchange.sum() > 0
    last = int(np.flatnonzero(made.by_exchange)[-1])
    others = np.delete(picks.indices, last).tolist()
    increase = _novelsum(rows, factor, picks.indices.tolist(), scoring) - _novelsum(rows, factor, others, scoring)
    assert picks.score[last] == pytest.approx(increase, rel=1e-9)
    assert picks.runner_up_score[last] < picks.score[last]
    remaining = picks.remaining
    assert remaining is not None
    row = next(row for row in range(40) if row not in picks.indices)
    expected = _increases(rows, factor, picks.indices.tolist(), scoring)[row]
    assert remaining.score[row] == pytest.approx(expected, rel=1e-9)
    assert remaining.at[row] == 8


def test_exchanges_are_the_same_with_other_threads_and_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novelsum_dagster.selection.search.objective._ALONE", 0)
    rows, factor = _pool(90)
    scoring = Scoring("objective", swap_rounds=5)
    whole = _select(rows, factor, 20, scoring, threads=1)
    _same(_select(rows, factor, 20, scoring, threads=3), whole)
    calls = itertools.count()

    def kill(done: int, total: int) -> None:
        if done == total and next(calls) == 9:
            raise KeyboardInterrupt

    path = tmp_path / "unfinished.parquet"
    with pytest.raises(KeyboardInterrupt):
        _select(rows, factor, 20, scoring, checkpoint=path, progress=kill)
    assert path.exists()
    _same(_select(rows, factor, 20, scoring, checkpoint=path), whole)
    assert not path.exists()


def test_what_is_kept_of_picks_and_candidates_after_exchanges_is_as_if_made_outright() -> None:
    from novelsum_dagster.selection.search.objective import OnCpu

    generator = np.random.default_rng(0)
    rows = np.array(list(itertools.product((-1, 1), repeat=5)), np.float32)  # Many equal distances.
    units, factor = unit_rows(rows), generator.uniform(1, 2, 32)
    scoring = Scoring("objective", measured_side="column")
    chosen, columns = Chosen(9, 5, scoring), OnCpu(units, *sides(factor, scoring), 9, 1)
    picks = generator.permutation(32)[:9]
    for pick in picks:
        columns.join(units[pick], chosen.append(units[pick], factor[pick]))
    for place, row in ((3, 30), (8, 31), (0, 29)):
        if row in picks:
            continue
        former = chosen.distances(place)
        columns.exchange(place, units[row], former, chosen.exchange(place, units[row], factor[row]))
        picks[place] = row
        outright = Chosen.of(units[picks], factor[picks], scoring)
        assert chosen.total == outright.total
        for name in ("near", "order"):
            np.testing.assert_array_equal(getattr(chosen.rows, name)[:, :8], getattr(outright.rows, name)[:, :8])
        np.testing.assert_array_equal(chosen.rows.tails[:, :9], outright.rows.tails[:, :9])
        np.testing.assert_array_equal(chosen.increase(columns.added(chosen)[0]), outright.scores(units, factor))
    columns.close()


# The upper bound.


@EVERY_MEASURE
def test_no_subset_exceeds_the_upper_bound(scoring: Scoring) -> None:
    for seed, k in ((0, 1), (1, 2), (2, 4), (3, 9)):
        rows, factor = _pool(9, seed=seed)
        best = max(_novelsum(rows, factor, list(some), scoring) for some in itertools.combinations(range(9), k))
        bound = upper_bound(unit_rows(rows), factor, k, scoring)
        assert bound >= best
        assert bound <= 2.1 * 4 * 9


def test_the_upper_bound_of_far_samples_that_are_all_alike_is_reached() -> None:
    rows = np.eye(6, dtype=np.float32)
    bound = upper_bound(unit_rows(rows), np.ones(6), 4, ROW)
    assert bound == pytest.approx(_novelsum(rows, np.ones(6), [0, 1, 2, 3], ROW), rel=1e-9)


# What a subset records.


def test_a_subset_records_what_was_reached_and_exchanged(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", alpaca(40))
    root = tmp_path / "storage"
    snapshot = build_snapshot(Pool(sources=(Source(path="pool.jsonl"),)), tmp_path, root, token_counter(Embedding()))
    rows, factor = _pool(40, seed=2)
    scoring = Scoring("objective", swap_rounds=2)
    picks = _select(rows, factor, 8, scoring)
    made = picks.exchanges
    assert made is not None
    reached = objective_facts(rows, factor, picks, scoring)
    bound = upper_bound(unit_rows(rows), factor, 8, scoring)
    value = _novelsum(rows, factor, picks.indices.tolist(), scoring)
    assert reached == {
        "novelsum": pytest.approx(value, rel=1e-9),
        "upper_bound": bound,
        "part_of_bound": pytest.approx(value / bound, rel=1e-9),
        "exchanges": made.count,
        "rounds": made.rounds,
        "novelsum_before_exchanges": made.before,
    }
    settings = {
        "strategy": "novelselect", "seed": 42, "options": {}, "density_power": 0.5, "proximity_power": 1.0,
        "snapshot": snapshot.key, "vectors": "v", "density": "d",
    }  # fmt: skip
    subset = write_subset(snapshot, root, picks, rows, settings, reached)
    assert subset.picks(root, ["by_exchange"])["by_exchange"].to_pylist() == made.by_exchange.tolist()
    manifest = json.loads((root / subset.folder / "manifest.json").read_text())
    assert manifest["objective"]["exchanges"] == made.count
    assert manifest["objective"]["upper_bound"] == bound


def test_the_bound_is_left_out_of_large_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novelsum_dagster.selection.swaps.MOST_BOUNDED", 29)
    rows, factor = _pool(30)
    reached = objective_facts(rows, factor, _select(rows, factor, 5, ROW), ROW)
    assert reached["upper_bound"] is reached["part_of_bound"] is None
    assert "exchanges" not in reached
