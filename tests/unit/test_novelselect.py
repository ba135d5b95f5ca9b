"""NovelSelect against a plain reference: properties over random small pools, and larger ones for every shortcut."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from novelsum_dagster.diversity import density
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.selection import Picks, novelselect, standing
from novelsum_dagster.selection.picks import Found
from novelsum_dagster.selection.search import cpu as search_cpu
from novelsum_dagster.selection.search import ladder
from novelsum_dagster.selection.search.base import Candidates, Search, VerificationError
from novelsum_dagster.selection.search.cpu import CpuSearch
from tests.plain import PlainPicks, PlainScores, plain_novelselect, plain_scores

FEW = settings(max_examples=60, deadline=None)
ALPHAS = [0.0, 0.5, 1.0, 2.0, 7.0]
SAME = 1e-9


class Case:
    """One selection: a pool and its settings."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        alpha: float,
        quality: NDArray[np.float64] | None,
        k: int,
        seed: int,
        initial: list[int],
    ) -> None:
        self.rows, self.factor, self.alpha, self.quality = rows, factor, alpha, quality
        self.k, self.seed, self.initial = k, seed, initial

    def __repr__(self) -> str:
        return f"Case({vars(self)})"

    def picks(self, k: int | None = None, **options: Any) -> Picks:
        return novelselect(
            self.rows,
            k or self.k,
            density_factor=self.factor,
            proximity_power=self.alpha,
            quality=self.quality,
            seed=self.seed,
            **{"initial": self.initial, "threads": 1, **options},
        )

    def plain(self, k: int | None = None) -> PlainPicks:
        return plain_novelselect(self.rows, k or self.k, self.factor, self.alpha, self.seed, self.quality, self.initial)

    def rounding(self) -> float:
        """Return what scores may differ by: sums in another order, and digits lost where cosines are near 1."""
        highest = 2 * float(self.factor.max()) * (1.0 if self.quality is None else float(self.quality.max()))
        return 1e-12 * highest * float(rank_weights(self.k, self.alpha).sum())

    def group(self) -> NDArray[np.int64]:
        """Return equal numbers for samples that nothing tells apart."""
        quality = np.ones(len(self.rows)) if self.quality is None else self.quality
        facts = np.column_stack([self.rows.astype(np.float64), self.factor, quality])
        return np.unique(facts, axis=0, return_inverse=True)[1].reshape(-1)


@st.composite
def cases(draw: st.DrawFn, duplicates: bool = True, initials: bool = True) -> Case:
    n, d = draw(st.integers(1, 60)), draw(st.integers(1 if duplicates else 3, 8))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.normal(size=(n, d))
    if duplicates and draw(st.booleans()):
        rows = np.round(rows)
        rows[(rows == 0).all(1)] = 1
    factor = generator.uniform(0.5, 4, n) ** draw(st.sampled_from([0, 1, 10]))
    quality = generator.uniform(0.1, 1, n) if draw(st.booleans()) else None
    if duplicates:
        origin = generator.integers(0, draw(st.integers(1, n)), n)
        rows, factor = rows[origin], factor[origin]
        if quality is not None and draw(st.booleans()):
            quality = quality[origin]
    k = draw(st.integers(1, n))
    initial = generator.permutation(n)[: draw(st.integers(0, k))].tolist() if initials else []
    alpha = draw(st.sampled_from(ALPHAS))
    return Case(rows.astype(np.float32), factor, alpha, quality, k, draw(st.integers(0, 1000)), initial)


def assert_best(case: Case, picks: Picks) -> None:
    """Every pick must be a brute-force argmax, the first of those that nothing tells apart, and be recorded so."""
    n, given_, rounding = len(case.rows), len(case.initial), case.rounding()
    chosen = picks.indices.tolist()
    assert len(chosen) == len(set(chosen)) == case.k
    assert chosen[:given_] == case.initial
    group = case.group()
    plain = PlainScores(case.rows, case.factor, case.alpha, case.quality)
    open_ = np.ones(n, np.bool_)
    for rank, pick in enumerate(chosen):
        if rank < max(given_, 1):
            assert np.isnan(picks.score[rank])
            assert picks.runner_up[rank] == -1
        else:
            scores = np.where(open_, plain.scores(), -np.inf)
            assert scores[pick] >= scores.max() - rounding
            assert pick == np.flatnonzero(open_ & (group == group[pick]))[0]
            assert picks.score[rank] == pytest.approx(scores[pick], rel=SAME, abs=rounding)
            scores[pick] = -np.inf
            second = int(picks.runner_up[rank])
            if open_.sum() == 1:
                assert second == -1
                assert np.isnan(picks.runner_up_score[rank])
            else:
                assert open_[second]
                assert second != pick
                assert scores[second] >= scores.max() - rounding
                assert picks.runner_up_score[rank] == pytest.approx(scores[second], rel=SAME, abs=rounding)
        plain.add(pick)
        open_[pick] = False
    if not given_:
        assert chosen[0] == np.random.RandomState(case.seed).randint(0, n)


@FEW
@given(cases())
def test_every_pick_is_a_brute_force_argmax(case: Case) -> None:
    assert_best(case, case.picks())


@FEW
@given(cases(duplicates=False))
def test_picks_equal_the_plain_reference_index_for_index(case: Case) -> None:
    picks, plain = case.picks(verify=3), case.plain()
    assert picks.indices.tolist() == plain.indices
    assert picks.runner_up.tolist() == plain.runner_up
    np.testing.assert_allclose(picks.score, plain.score, rtol=SAME, atol=case.rounding())


@FEW
@given(cases(initials=False), st.integers(0, 10**6))
def test_the_first_picks_of_more_are_the_same_and_extend_to_them(case: Case, cut: int) -> None:
    k = 1 + cut % case.k
    fewer, more = case.picks(k), case.picks()
    assert more.indices[:k].tolist() == fewer.indices.tolist()
    extended = case.picks(initial=fewer)
    for name in ("indices", "score", "runner_up", "runner_up_score", "nearest_pick", "nearest_distance"):
        np.testing.assert_array_equal(getattr(extended, name), getattr(more, name), err_msg=name)


@FEW
@given(cases(duplicates=False), st.randoms(use_true_random=False))
def test_a_permuted_pool_gives_permuted_picks(case: Case, random: Any) -> None:
    # The first pick depends on the place alone, so it is given here.
    case.initial = case.initial or [0]
    order = np.arange(len(case.rows))
    random.shuffle(order)
    place = np.argsort(order)
    quality = None if case.quality is None else case.quality[order]
    initial = place[case.initial].tolist()
    permuted = Case(case.rows[order], case.factor[order], case.alpha, quality, case.k, case.seed, initial)
    assert order[permuted.picks().indices].tolist() == case.picks().indices.tolist()


@FEW
@given(cases(), st.integers(0, 10**6))
def test_what_is_known_of_the_others_holds(case: Case, where: int) -> None:
    picks = case.picks()
    known = picks.remaining
    assert known is not None
    assert known.score.shape == known.at.shape == known.is_exact.shape == (len(case.rows),)
    assert known.at[picks.indices].tolist() == list(range(case.k))
    np.testing.assert_array_equal(known.score[picks.indices], picks.score)
    others = np.setdiff1d(np.arange(len(case.rows)), picks.indices)
    assert ((known.at[others] >= 0) & (known.at[others] <= case.k)).all()
    for at in np.unique(known.at[others]):
        here = others[known.at[others] == at]
        if at == 0:
            assert np.isnan(known.score[here]).all()
            continue
        scores = plain_scores(case.rows, picks.indices[:at].tolist(), case.factor, case.alpha, case.quality)[here]
        assert (known.score[here] >= scores - case.rounding()).all()
        exact = known.is_exact[here]
        np.testing.assert_allclose(known.score[here][exact], scores[exact], rtol=SAME, atol=case.rounding())


@FEW
@given(cases(), st.integers(0, 10**6))
def test_standing_equals_brute_force(case: Case, cut: int) -> None:
    n, picks = len(case.rows), case.picks()
    before = 1 + cut % case.k
    so_far = picks.indices[:before]
    options: dict[str, Any] = {
        "density_factor": case.factor, "proximity_power": case.alpha, "quality": case.quality
    }  # fmt: skip
    all_ = standing(case.rows, so_far, **options)
    scores = plain_scores(case.rows, so_far.tolist(), case.factor, case.alpha, case.quality)
    np.testing.assert_allclose(all_.score, scores, rtol=SAME, atol=case.rounding())
    open_ = np.setdiff1d(np.arange(n), so_far)
    assert (all_.rank[so_far] == 0).all()
    assert sorted(all_.rank[open_].tolist()) == list(range(1, len(open_) + 1))
    falling = all_.score[open_[np.argsort(all_.rank[open_])]]
    assert (np.diff(falling) <= 0).all()
    unit = unit_rows(case.rows).astype(np.float64)
    distances = 1 - unit @ unit[so_far].T
    np.testing.assert_allclose(all_.nearest_distance, np.maximum(distances.min(1), 0), atol=1e-6)
    np.testing.assert_allclose(distances[np.arange(n), all_.nearest_pick], distances.min(1), atol=1e-6)
    if before < case.k and before >= len(case.initial):
        assert all_.rank[picks.indices[before]] == 1
        assert all_.score[picks.indices[before]] == pytest.approx(picks.score[before], rel=SAME, abs=case.rounding())
    asked = open_[::2]
    some = standing(case.rows, so_far, rows=asked, **options)
    for name in ("rows", "score", "rank"):
        np.testing.assert_array_equal(getattr(some, name), getattr(all_, name)[asked], err_msg=name)
    np.testing.assert_allclose(some.nearest_distance, all_.nearest_distance[asked], atol=1e-6)


def test_standing_of_nobody_and_after_nothing() -> None:
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="none given"):
        standing(rows, [], density_factor=np.ones(4))
    with pytest.raises(ValueError, match="row 4 is not in the pool"):
        standing(rows, [0, 4], density_factor=np.ones(4))
    assert standing(rows, [0], density_factor=np.ones(4), rows=[]).score.shape == (0,)


class Large:
    """A pool of 3,000 in clusters, some of them duplicates, with the plain reference's 400 picks."""

    def __init__(self) -> None:
        generator = np.random.default_rng(3)
        n, d, self.k = 3000, 16, 400
        centres = generator.normal(size=(60, d))
        rows = centres[generator.integers(0, 60, n)] + 0.3 * generator.normal(size=(n, d))
        rows[:100] = rows[1500:1600]
        self.rows = rows.astype(np.float32)
        self.factor = density(self.rows).factor(0.5)
        self.quality = generator.uniform(0.5, 1, n)
        self.plain = plain_novelselect(self.rows, self.k, self.factor, 1.0, 42)
        self.plain_with_quality = plain_novelselect(self.rows, 150, self.factor, 0.5, 42, self.quality)


@pytest.fixture(scope="module")
def large() -> Large:
    return Large()


def assert_same(picks: Picks, plain: PlainPicks) -> None:
    assert picks.indices.tolist() == plain.indices
    assert picks.runner_up.tolist() == plain.runner_up
    np.testing.assert_allclose(picks.score, plain.score, rtol=SAME)
    np.testing.assert_allclose(picks.runner_up_score, plain.runner_up_score, rtol=SAME)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lists", ["kept", "evicted"])
@pytest.mark.parametrize("scan", ["alone", "threads"])
def test_a_larger_pool_gives_the_plain_picks(
    large: Large, monkeypatch: pytest.MonkeyPatch, threads: int, lists: str, scan: str
) -> None:
    if lists == "evicted":
        monkeypatch.setattr(ladder, "_LIST_BYTES", 1)
        assert ladder.list_slots(3000, 400) < 100
    if scan == "threads":
        monkeypatch.setattr(search_cpu, "_SCAN_ALONE", 0)
    assert_same(novelselect(large.rows, large.k, threads=threads, verify=5), large.plain)


def test_a_larger_pool_with_quality_gives_the_plain_picks(large: Large) -> None:
    picks = novelselect(large.rows, 150, proximity_power=0.5, quality=large.quality, verify=5)
    assert_same(picks, large.plain_with_quality)
    np.testing.assert_array_equal(picks.quality, large.quality[picks.indices])


def test_bounds_of_a_larger_pool_hold(large: Large) -> None:
    picks = novelselect(large.rows, large.k)
    known = picks.remaining
    assert known is not None
    others = np.setdiff1d(np.arange(len(large.rows)), picks.indices)
    assert known.is_exact[others].any()
    assert not known.is_exact[others].all()
    for at in np.unique(known.at[others])[::8]:
        here = others[known.at[others] == at]
        scores = standing(large.rows, picks.indices[:at], density_factor=large.factor, rows=here).score
        assert (known.score[here] >= scores * (1 - SAME)).all()
        exact = known.is_exact[here]
        np.testing.assert_allclose(known.score[here][exact], scores[exact], rtol=SAME)
        # A bound that is of use: far from the largest score that there could be.
        assert (known.score[here] < 4 * scores).all()


def test_standing_follows_a_larger_selection(large: Large) -> None:
    for rank in (1, 2, 33, 128, 399):
        stood = standing(large.rows, large.plain.indices[:rank], density_factor=large.factor)
        pick, second = large.plain.indices[rank], large.plain.runner_up[rank]
        assert (stood.rank[pick], stood.rank[second]) == (1, 2)
        assert stood.score[pick] == pytest.approx(large.plain.score[rank], rel=SAME)


def test_a_file_mapped_into_memory_gives_the_same(large: Large, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", large.rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r", allow_pickle=False)
    assert novelselect(mapped, 40).indices.tolist() == large.plain.indices[:40]
    assert novelselect(large.rows.astype(np.float64), 40).indices.tolist() == large.plain.indices[:40]
    assert novelselect(np.asfortranarray(large.rows), 40).indices.tolist() == large.plain.indices[:40]


def test_a_wrong_bound_is_found_by_verification(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    reaching = CpuSearch._reaching

    def leaves_many_out(self: CpuSearch, *options: Any) -> NDArray[np.int64]:
        found = reaching(self, *options)
        return found[found % 3 > 0] if self.picked > 20 else found

    monkeypatch.setattr(CpuSearch, "_reaching", leaves_many_out)
    assert novelselect(large.rows, 60).indices.tolist() != large.plain.indices[:60]
    with pytest.raises(VerificationError, match=r"pick \d+: row \d+ was found"):
        novelselect(large.rows, 60, verify=len(large.rows))


def test_a_wrong_score_is_found_by_verification(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    best = CpuSearch._best

    def slightly_off(self: CpuSearch) -> Found | None:
        found = best(self)
        return replace(found, score=found.score * (1 + 1e-7)) if found and self.picked == 21 else found

    monkeypatch.setattr(CpuSearch, "_best", slightly_off)
    with pytest.raises(VerificationError, match="pick 22"):
        novelselect(large.rows, 60, verify=1)


@pytest.mark.parametrize("same", [0, 1, 2])
def test_verification_accepts_equal_scores(same: int) -> None:
    """Rows that are alike have distances that rounding may push below 0."""
    rows = np.tile(np.random.default_rng(same).normal(size=(1, 5)), (40, 1))
    first = int(np.random.RandomState(42).randint(0, 40))
    expected = [first, *(row for row in range(40) if row != first)]
    assert novelselect(rows, 40, density_power=0, verify=5).indices.tolist() == expected


@pytest.mark.parametrize("noise", [0, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_verification_accepts_what_another_device_rounds_otherwise(noise: float, seed: int, scale: float) -> None:
    """Among rows that are nearly alike most of a distance is rounding, whatever the factors are scaled by."""
    generator = np.random.default_rng(seed)
    dimensions = int(generator.integers(4, 200))
    rows = generator.normal(size=dimensions) * (1 + noise * generator.normal(size=(60, dimensions)))
    factor = np.full(60, scale) if noise == 0 else scale * generator.uniform(0.5, 3, 60)
    quality = generator.uniform(0.1, 9, 60) if seed else None
    picks = novelselect(rows, 60, density_factor=factor, quality=quality, device="cpu:0", verify=60)
    assert len(set(picks.indices.tolist())) == 60


def test_large_density_powers_do_not_overflow() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 6)).astype(np.float32)
    rows[20:40] = rows[0] + np.float32(1e-4) * rows[20:40]
    rows[40:] = rows[:20]
    factor = density(rows).factor(5.0)
    assert factor.max() / factor.min() > 1e20
    with np.errstate(over="raise", invalid="raise"):
        picks = novelselect(rows, 60, density_power=5.0, verify=5)
    assert np.isfinite(picks.score[1:]).all()
    assert_best(Case(rows, factor, 1.0, None, 60, 42, []), picks)


@pytest.mark.parametrize("excluded", [1e30, 1e60])
def test_the_factor_of_a_sample_that_may_not_be_picked_changes_nothing(excluded: float) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 4))
    factor = np.random.default_rng(1).uniform(1, 2, 30)
    expected = novelselect(rows, 10, density_factor=factor, must_exclude=[3])
    factor[3] = excluded
    picks = novelselect(rows, 10, density_factor=factor, must_exclude=[3])
    assert picks.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(picks.score, expected.score, rtol=1e-6)


@pytest.mark.parametrize("alpha", [7.0, 20.0, 50.0])
@pytest.mark.parametrize("even", [True, False])
def test_steep_weights_over_few_distinct_rows(alpha: float, even: bool) -> None:
    """Late scores are then many orders below the first ones."""
    generator = np.random.default_rng(0)
    rows = generator.choice([-1, 1], size=(400, 1)).astype(np.float32)
    factor = np.ones(400) if even else generator.uniform(0.5, 4, 400)
    picks = novelselect(rows, 400, density_factor=factor, proximity_power=alpha)
    plain = plain_novelselect(rows, 400, factor, alpha, 42)
    assert picks.indices.tolist() == plain.indices
    np.testing.assert_allclose(picks.score, plain.score, rtol=SAME)


@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_pools_of_exact_duplicates(clusters: int, n: int) -> None:
    rows = np.eye(3, dtype=np.float32)[np.arange(n) % clusters]
    picks = novelselect(rows, n)
    assert sorted(picks.indices.tolist()) == list(range(n))
    by_cluster = [[int(i) for i in picks.indices[1:] if i % clusters == c] for c in range(clusters)]
    assert by_cluster == [sorted(part) for part in by_cluster]
    if clusters == 2 and n > 1:
        assert picks.indices[1] == (picks.indices[0] + 1) % 2
        assert picks.nearest_distance[1] == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e25])
def test_the_length_of_rows_does_not_matter(scale: float) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    expected = novelselect(rows, 20, density_power=0).indices.tolist()
    assert novelselect(rows * np.float32(scale), 20, density_power=0).indices.tolist() == expected


def test_the_record_of_a_selection() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    factor, quality = density(rows).factor(0.5), np.random.default_rng(1).uniform(1, 2, 50)
    picks = novelselect(rows, 20, quality=quality, initial=[7, 3], must_include=[3, 9], must_exclude=[1, 2])
    assert picks.indices[:3].tolist() == [7, 3, 9]
    assert not np.isin([1, 2], picks.indices).any()
    assert np.isnan(picks.score[:3]).all()
    assert np.isfinite(picks.score[3:]).all()
    assert (picks.score[3:] >= picks.runner_up_score[3:]).all()
    assert not np.isin(picks.runner_up, [1, 2]).any()
    np.testing.assert_array_equal(picks.density_factor, factor[picks.indices])
    np.testing.assert_array_equal(picks.quality, quality[picks.indices])
    unit = unit_rows(rows).astype(np.float64)
    for rank in range(1, 20):
        distances = 1 - unit[picks.indices[:rank]] @ unit[picks.indices[rank]]
        assert picks.nearest_pick[rank] == distances.argmin()
        assert picks.nearest_distance[rank] == pytest.approx(distances.min(), abs=1e-6)
    assert picks.nearest_pick[0] == -1
    assert np.isnan(picks.nearest_distance[0])
    assert np.isnan(novelselect(rows, 3).quality).all()


def _rows(n: int = 30) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)


def _with(row: int, value: float) -> NDArray[np.float32]:
    rows = _rows()
    rows[row:, 1 if np.isnan(value) or value else slice(None)] = value
    return rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embeddings": _with(6, np.nan)}, "row 6 has a NaN or infinite value"),
        ({"embeddings": _with(5, np.inf)}, "row 5 has a NaN or infinite value"),
        ({"embeddings": _with(4, 0)}, "row 4 is all zeros"),
        ({"embeddings": np.ones(3)}, r"shape \(3,\)"),
        ({"embeddings": np.ones((0, 3))}, r"shape \(0, 3\)"),
        ({"k": 0}, "k must be from 1 to 30"),
        ({"k": 31}, "k must be from 1 to 30"),
        ({"k": None}, "either k, or budget and cost"),
        ({"quality": np.ones(29)}, "quality has shape .* 30 samples"),
        ({"quality": np.r_[np.ones(8), 0, np.ones(20), -1]}, "quality: row 8 is 0.0"),
        ({"quality": np.r_[np.ones(9), np.nan, np.ones(20)]}, "quality: row 9 is nan"),
        ({"density_factor": np.ones((30, 1))}, "density_factor has shape"),
        ({"initial": [2, 30]}, "initial: row 30 is not in the pool"),
        ({"initial": [2, 5, 2]}, "initial: row 2 comes twice"),
        ({"must_include": [-1]}, "must_include: row -1 is not in the pool"),
        ({"must_exclude": [99]}, "must_exclude: row 99 is not in the pool"),
        ({"must_exclude": [1.5]}, "must_exclude: row numbers are needed"),
        ({"must_include": [4], "must_exclude": [3, 4]}, "row 4 is also excluded"),
        ({"must_include": range(6)}, "row 5 does not fit: .* k, 5"),
        ({"must_exclude": range(30)}, "0 samples are left after must_exclude"),
        ({"proximity_power": -0.5}, "proximity_power is -0.5"),
        ({"density_power": -0.5}, "density_power is -0.5"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        novelselect(**{"embeddings": _rows(), "k": 5, **options})


def test_a_density_power_that_no_number_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="density"), np.errstate(over="ignore", invalid="ignore"):
        novelselect(np.ones((10, 3)), 5, density_power=40.0)


# The search on a GPU, here on torch's CPU.


def _driven(search: Search, first: int, k: int, allowed: NDArray[np.bool_] | None = None) -> list[tuple[Any, ...]]:
    """Pick as `novelselect` does; `allowed` from the tenth pick on."""
    made: list[tuple[Any, ...]] = [(first, np.nan, -1, np.nan)]
    search.add(first)
    while search.picked < k:
        if search.picked == 10 and allowed is not None:
            search.allow(allowed)
        found = search.best()
        if found is None:
            break
        search.verify(found, 3)
        made.append((found.best, found.score, found.second, found.second_score))
        search.add(found.best)
    return made


def _both(case: Case, allowed: NDArray[np.bool_] | None = None) -> tuple[CpuSearch, Search]:
    """Drive both searches over the same case and compare; return them."""
    from novelsum_dagster.selection.search.torch_device import TorchSearch

    units, weights = unit_rows(case.rows), rank_weights(case.k, case.alpha)
    candidates = Candidates.of(units, case.factor, case.quality)
    cpu = CpuSearch(candidates, weights, 1)
    other = TorchSearch(candidates, weights, "cpu")
    here, there = (np.array(_driven(search, case.initial[0], case.k, allowed)) for search in (cpu, other))
    np.testing.assert_array_equal(here[:, 0], there[:, 0])
    np.testing.assert_array_equal(here[:, 2], there[:, 2])
    np.testing.assert_allclose(here[:, [1, 3]], there[:, [1, 3]], rtol=SAME)
    return cpu, other


@pytest.mark.parametrize(("alpha", "with_quality", "blocked"), [(1.0, False, False), (0.5, True, True), (2.0, True, False)])  # fmt: skip # noqa: E501
def test_torch_makes_the_same_picks(large: Large, alpha: float, with_quality: bool, blocked: bool) -> None:
    quality = large.quality[:1200] if with_quality else None
    case = Case(large.rows[:1200], large.factor[:1200], alpha, quality, 220, 42, [17])
    allowed = np.random.default_rng(0).random(1200) < 0.5 if blocked else None
    cpu, other = _both(case, allowed)
    for search in (cpu, other):
        known, chosen = search.remaining(), search.picks[: search.picked]
        assert ((known.at >= 0) & (known.at <= search.picked)).all()
        others = np.setdiff1d(np.arange(1200), chosen)
        for at in [*np.unique(known.at[others])[1::16].tolist(), int(known.at.max())]:
            here = others[known.at[others] == at]
            if not len(here):
                continue
            scores = standing(
                case.rows, chosen[:at], density_factor=case.factor, proximity_power=alpha, quality=quality, rows=here
            ).score
            assert (known.score[here] >= scores * (1 - SAME)).all()
        search.close()


def test_torch_picks_until_nothing_is_allowed() -> None:
    case = Case(_rows(40), np.ones(40), 1.0, None, 40, 42, [0])
    allowed = np.arange(40) % 2 == 0
    cpu, other = _both(case, allowed)
    assert cpu.picked == other.picked < 40
    assert cpu.best() is None
    assert other.best() is None


def test_torch_makes_the_same_picks_among_duplicates(large: Large) -> None:
    """Copies of what is picked already tie; the first of them must win on every device."""
    rows = np.concatenate([large.rows[200:260]] * 4)
    _both(Case(rows, np.tile(large.factor[200:260], 4), 1.0, None, 240, 42, [17]))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        novelselect(_rows(), 5, device="nonsense")


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers, so that small pools need all that large ones do."""
    from novelsum_dagster.selection.search import torch_device as search_torch

    for name, value in {"_FIRST_LOOK": 16, "_NEAR": 1 / 20, "_PENDING": 24, "_TILE": 500}.items():
        monkeypatch.setattr(search_torch, name, value)


def test_torch_makes_the_same_picks_among_some_duplicates(large: Large, near: None) -> None:
    """A matrix product may round the scores of equal rows apart; the lowest index must win all the same."""
    rows = np.concatenate([large.rows[:150], large.rows[1450:1800]])
    rows[300:] = rows[300 - 200 : 300]
    factor = density(rows).factor(0.5)
    cpu, other = _both(Case(rows, factor, 1.0, None, 400, 42, [3]))
    assert len(set(cpu.picks.tolist())) == 400
    for search in (cpu, other):
        search.close()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@FEW
@given(case=cases(duplicates=False, initials=False))
def test_torch_makes_the_plain_picks(alpha: float, case: Case) -> None:
    case.alpha = alpha
    picks, plain = case.picks(device="cpu:0", verify=3), case.plain()
    assert picks.indices.tolist() == plain.indices
    assert picks.runner_up.tolist() == plain.runner_up
    np.testing.assert_allclose(picks.score, plain.score, rtol=SAME, atol=case.rounding())


def test_torch_reads_all_rows_for_few_picks_and_seldom_waits(
    large: Large, near: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are what a pick costs on a GPU; a wait is a number that the program needs before it can go on."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from novelsum_dagster.selection.search.torch_device import TorchSearch

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
    seen: list[str] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            # A mask as an index makes the program wait, too.
            if seen[-1] == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
                seen.append("nonzero")
            return func(*args, **(kwargs or {}))

    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(torch.Tensor, "cpu", counted("fetched", torch.Tensor.cpu))
    monkeypatch.setattr(torch, "from_numpy", counted("sent", torch.from_numpy))
    monkeypatch.setattr(TorchSearch, "_catch_up", counted("passes", TorchSearch._catch_up))
    with Watch():  # type: ignore[no-untyped-call]
        picks = novelselect(large.rows, large.k, density_factor=large.factor, device="cpu:0")
    assert picks.indices.tolist() == large.plain.indices
    assert not set(seen) & set(waits)
    assert large.k <= calls["fetched"] < 4 * large.k
    # A number that is assigned would be sent, too.
    assert seen.count("lift_fresh") == calls["sent"] < 10
    assert calls["passes"] < large.k / 2


def test_more_than_a_device_has_is_refused_before_work(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    from novelsum_dagster.common import devices
    from novelsum_dagster.common.memory import NotEnoughMemory
    from novelsum_dagster.selection.search.torch_device import device_memory_needed

    needed = device_memory_needed(3000, 16, 10)
    monkeypatch.setattr(devices, "free_device_memory", lambda device: needed)
    assert len(novelselect(large.rows, 10, density_factor=large.factor, device="cpu:0").indices) == 10
    monkeypatch.setattr(devices, "free_device_memory", lambda device: needed - 1)
    with pytest.raises(NotEnoughMemory, match=r"NovelSelect of 10 out of 3,000 needs about .* on cpu:0"):
        novelselect(large.rows, 10, density_factor=large.factor, device="cpu:0")
