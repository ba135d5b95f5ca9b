"""NovelSum in every variant against the definition, one row at a time, in float64."""

import importlib
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novelsum_dagster.diversity.density import Search
from novelsum_dagster.diversity.novelsum import (
    Grid,
    NovelSumOptions,
    Powers,
    novelsum,
    novelsum_grid,
    novelsum_with_densities,
)

# The package has a function of the same name.
novelsum_module = importlib.import_module("novelsum_dagster.diversity.novelsum")

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

POLICIES = ["published", "self"]
SELVES = ["included", "excluded"]
SIDES = ["row", "column"]
AGGREGATES = ["mean", "sum"]
VARIANTS = list(product(POLICIES, SELVES, SIDES, AGGREGATES))
PUBLISHED = list(product((5, 10), (0, 0.25, 0.5), (0, 1, 2)))
"""K, beta, alpha of the 18 published settings."""


def _rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _with_duplicates() -> tuple[np.ndarray, np.ndarray]:
    """A target with exact duplicates, in twos and in fives, of a pool that has more of them."""
    pool = _rows(120)
    pool[60:80] = pool[:20]
    pool[80:84] = pool[0]
    return pool[[*range(40), *range(60, 70), *range(80, 84)]], pool


def _plain_factor(target: np.ndarray, reference: np.ndarray, neighbors: int, beta: float, policy: str) -> np.ndarray:
    points = np.unique(reference, axis=0).astype(np.float64)
    factors = []
    for row in target.astype(np.float64):
        squared = ((points - row) ** 2).sum(1)
        if policy == "self":
            squared = squared[(points != row).any(1)]
        nearest = np.sort(squared)[1 : neighbors + 1] if policy == "published" else np.sort(squared)[:neighbors]
        factors.append(((nearest.mean() if len(nearest) else 0) + 1e-9) ** -beta)
    return np.array(factors)


def _plain_novelty(
    target: np.ndarray, factor: np.ndarray, alpha: float, own: str, side: str, aggregate: str
) -> np.ndarray:
    wide = target.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    novelty = []
    for i in range(len(target)):
        others = [j for j in range(len(target)) if j != i]
        distance = {j: 0.0 if (target[i] == target[j]).all() else 1 - float((unit[i] * unit[j]).sum()) for j in others}
        ranked = sorted(others, key=lambda j: (distance[j], j))
        if own == "included":
            ranked, distance[i] = [i, *ranked], 0.0
        weights = [rank**-alpha for rank in range(1, len(ranked) + 1)]
        scale = [factor[i if side == "row" else j] for j in ranked]
        total = sum(w * s * distance[j] for w, s, j in zip(weights, scale, ranked, strict=True))
        novelty.append(total / sum(weights) if aggregate == "mean" and weights else total)
    return np.array(novelty)


def _assert_variant(
    target: np.ndarray, pool: np.ndarray | None, variant: tuple[str, str, str, str], powers: Powers, **options: Any
) -> None:
    policy, own, side, aggregate = variant
    found = novelsum(
        target,
        pool,
        **powers._asdict(),
        neighbor_policy=policy,  # type: ignore[arg-type]
        self_distance=own,  # type: ignore[arg-type]
        density_side=side,  # type: ignore[arg-type]
        aggregate=aggregate,  # type: ignore[arg-type]
        **options,
    )
    reference = target if pool is None else pool
    factor = _plain_factor(target, reference, powers.neighbors, powers.density_power, policy)
    expected = _plain_novelty(target, factor, powers.proximity_power, own, side, aggregate)
    np.testing.assert_allclose(found.novelty, expected, rtol=1e-5, atol=1e-9)
    value = expected.sum() if aggregate == "sum" else expected.mean()
    assert found.value == pytest.approx(value, rel=1e-5, abs=1e-9)
    assert found.aggregate == aggregate


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_every_variant_is_its_definition(variant: tuple[str, str, str, str], device: str) -> None:
    pool = _rows(110)
    _assert_variant(pool[:45], pool, variant, Powers(10, 0.5, 1.0), device=device)
    _assert_variant(pool[:45], None, variant, Powers(3, 0.25, 2.0), device=device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_every_variant_is_its_definition_with_exact_duplicates(variant: tuple[str, str, str, str], device: str) -> None:
    target, pool = _with_duplicates()
    _assert_variant(target, pool, variant, Powers(10, 0.5, 1.0), device=device)
    _assert_variant(target, None, variant, Powers(5, 1.0, 0.5), device=device)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_targets_outside_the_reference(variant: tuple[str, str, str, str]) -> None:
    _assert_variant(_rows(30, seed=1), _rows(60, seed=2), variant, Powers(4, 0.5, 1.0))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_among_equal_distances_the_lower_index_ranks_first(device: str) -> None:
    axes = np.eye(8)[[0, 1, 2, 3, 1, 4, 0, 5, 6, 7]]
    factor = np.random.default_rng(0).uniform(0.1, 10, 10)
    for own in SELVES:
        options = NovelSumOptions(
            search=Search(device=device),
            self_distance=own,  # type: ignore[arg-type]
            density_side="column",
        )
        found = novelsum_with_densities(axes, {(1, 0.5): factor}, options)
        expected = _plain_novelty(axes, factor, 1.0, own, "column", "mean")
        np.testing.assert_allclose(found[Powers(1, 0.5, 1.0)].novelty, expected, rtol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("n", [7, 50, 131])
def test_scaled_copies_tie_and_keep_their_own_factors(n: int, device: str) -> None:
    base = _rows(n)
    rows = np.concatenate([base, 4 * base[::-1]])
    factor = np.random.default_rng(0).uniform(0.1, 10, 2 * n)
    options = NovelSumOptions(search=Search(device=device), density_side="column")
    found = novelsum_with_densities(rows, {(1, 0.5): factor}, options)
    expected = _plain_novelty(
        np.concatenate([base, base[::-1]]), factor, 1.0, "included", "column", "mean"
    )  # Rows of the same direction.
    np.testing.assert_allclose(found[Powers(1, 0.5, 1.0)].novelty, expected, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_grid_equals_single_calls_in_all_published_settings(
    variant: tuple[str, str, str, str], device: str
) -> None:
    target, pool = _with_duplicates()
    options: dict[str, Any] = dict(
        zip(("neighbor_policy", "self_distance", "density_side", "aggregate"), variant, strict=True)
    )
    grid = novelsum_grid(
        target,
        pool,
        neighbors=(5, 10),
        density_powers=(0, 0.25, 0.5),
        proximity_powers=(0, 1, 2),
        device=device,
        **options,
    )
    assert set(grid) == {Powers(*powers) for powers in PUBLISHED}
    for powers in grid:
        one = novelsum(target, pool, **powers._asdict(), device=device, **options)
        np.testing.assert_allclose(grid[powers].novelty, one.novelty, rtol=1e-12)
        assert grid[powers].value == pytest.approx(one.value, rel=1e-12)


@pytest.mark.parametrize("tile", [1, 54 * 5, 54 * 20])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("own", SELVES)
@pytest.mark.parametrize("side", SIDES)
def test_tiles_do_not_change_values(
    monkeypatch: pytest.MonkeyPatch, side: str, own: str, device: str, tile: int
) -> None:
    target, pool = _with_duplicates()
    options: dict[str, Any] = {"density_side": side, "self_distance": own, "device": device}
    whole = novelsum(target, pool, **options)
    seen: list[tuple[int, int]] = []
    for name in ("_TILE_VALUES", "_TILE_VALUES_ON_DEVICE"):
        monkeypatch.setattr(novelsum_module, name, tile)
    tiled = novelsum(target, pool, **options, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(tiled.novelty, whole.novelty, rtol=1e-6)
    assert seen[-1] == (54, 54)
    assert len(seen) == -(-54 // max(1, tile // 54))


def test_variants_that_must_agree_do() -> None:
    rows = _rows(60)
    included, excluded = (novelsum(rows, proximity_power=0, self_distance=own) for own in ("included", "excluded"))
    np.testing.assert_allclose(excluded.novelty, included.novelty * 60 / 59, rtol=1e-9)
    for own in SELVES:
        sides = [novelsum(rows, density_power=0, self_distance=own, density_side=side) for side in SIDES]  # type: ignore[arg-type]
        np.testing.assert_allclose(sides[0].novelty, sides[1].novelty, rtol=1e-6)
    mean, total = novelsum(rows), novelsum(rows, aggregate="sum")
    np.testing.assert_allclose(total.novelty, mean.novelty * (1 / np.arange(1, 61)).sum(), rtol=1e-12)
    assert total.value == pytest.approx(total.novelty.sum())
    # Where the target is the reference and has no duplicates, the first point found is the sample itself.
    np.testing.assert_allclose(novelsum(rows, neighbor_policy="self").novelty, mean.novelty, rtol=1e-6)


def test_known_factors_give_the_same() -> None:
    rows = _rows(40)
    factor = _plain_factor(rows, rows, 10, 0.5, "published")
    options = NovelSumOptions(Grid(proximity_powers=(2.0,)))
    (found,) = novelsum_with_densities(rows, {(10, 0.5): factor}, options).values()
    assert found.value == pytest.approx(novelsum(rows, proximity_power=2.0).value, rel=1e-5)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_interval_holds_the_value_repeats_and_depends_on_the_seed(aggregate: Any) -> None:
    found = novelsum(_rows(150), aggregate=aggregate)
    low, high = found.interval()
    assert low < found.value < high
    assert found.interval() == (low, high)
    assert found.interval(seed=7) != (low, high)
    wider = found.interval(0.99)
    assert wider[0] < low < high < wider[1]


# Limits


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (100, 384)])
def test_identical_samples_have_none(variant: tuple[str, str, str, str], device: str, n: int, d: int) -> None:
    options: dict[str, Any] = dict(
        zip(("neighbor_policy", "self_distance", "density_side", "aggregate"), variant, strict=True)
    )
    rows = np.repeat(_rows(1, d), n, axis=0)
    for beta, alpha in ((0.5, 1), (1, 0)):
        found = novelsum(rows, density_power=beta, proximity_power=alpha, device=device, **options)
        assert found.value == 0
        assert found.novelty.tolist() == [0.0] * n
        assert found.interval() == (0, 0)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_one_and_two_samples(variant: tuple[str, str, str, str], device: str) -> None:
    pool = _rows(30)
    for powers in (Powers(10, 0.5, 1.0), Powers(40, 0.0, 2.0), Powers(1, 1.0, 0.0)):
        _assert_variant(pool[:1], pool, variant, powers, device=device)
        _assert_variant(pool[:2], pool, variant, powers, device=device)
        _assert_variant(pool[:1], None, variant, powers, device=device)
        _assert_variant(pool[:2], None, variant, powers, device=device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_two_samples_by_hand(device: str) -> None:
    rows = np.array([[1.0, 0.0], [3.0, 4.0]])
    distance = 1 - 0.6
    for own, aggregate, expected in (
        ("included", "mean", distance / 3),
        ("excluded", "mean", distance),
        ("included", "sum", distance),
        ("excluded", "sum", 2 * distance),
    ):
        found = novelsum(rows, density_power=0, self_distance=own, aggregate=aggregate, device=device)  # type: ignore[arg-type]
        assert found.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_cosines_do_not_depend_on_length(variant: tuple[str, str, str, str]) -> None:
    options: dict[str, Any] = dict(zip(("self_distance", "density_side", "aggregate"), variant[1:], strict=True))
    rows = _rows(50)
    lengths = np.random.default_rng(1).uniform(1e-3, 1e3, (50, 1)).astype(np.float32)
    found, again = (novelsum(given, density_power=0, **options) for given in (rows, rows * lengths))
    np.testing.assert_allclose(again.novelty, found.novelty, rtol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_value_is_finite_and_not_negative(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=d, max_size=d).filter(any)
    rows = np.array(data.draw(st.lists(row, min_size=1, max_size=10)), dtype=np.float32)
    variant = data.draw(st.sampled_from(VARIANTS))
    options: dict[str, Any] = dict(
        zip(("neighbor_policy", "self_distance", "density_side", "aggregate"), variant, strict=True)
    )
    options["device"] = data.draw(st.sampled_from(["cpu", "cpu:0"]))
    grid = novelsum_grid(rows, neighbors=(1, 5), density_powers=(0, 0.5), proximity_powers=(0, 2), **options)
    for found in grid.values():
        assert np.isfinite(found.novelty).all()
        assert (found.novelty >= 0).all()
        assert found.value >= 0
    assert np.isfinite(found.interval()).all()


# Refusals


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"self_distance": "none"}, "self_distance is 'none'; it must be one of included, excluded"),
        ({"density_side": "both"}, "density_side is 'both'; it must be one of row, column"),
        ({"aggregate": "median"}, "aggregate is 'median'; it must be one of mean, sum"),
        ({"neighbor_policy": "none"}, "neighbor_policy is 'none'; it must be one of published, self"),
        ({"neighbors": 0}, "neighbors is 0; it must be 1 or more"),
        ({"density_power": -1.0}, "density_power is -1.0; it must be 0 or more"),
        ({"density_power": np.nan}, "density_power is nan; it must be 0 or more"),
        ({"proximity_power": -0.5}, "proximity_power is -0.5; it must be 0 or more"),
        ({"proximity_power": np.nan}, "proximity_power is nan; it must be 0 or more"),
        ({"reference": np.ones((9, 5))}, "target has 16 dimensions, reference 5"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        novelsum(_rows(20), **setting)


@pytest.mark.parametrize("variant", list(product(SELVES, SIDES)), ids="-".join)
def test_factors_that_overflow_are_refused(variant: tuple[str, str]) -> None:
    rows = np.repeat(_rows(1), 5, axis=0)
    options: dict[str, Any] = dict(zip(("self_distance", "density_side"), variant, strict=True))
    for beta in (40.0, np.inf):
        with np.errstate(over="ignore"), pytest.raises(ValueError, match="density factors of K 10 and beta"):
            novelsum(rows, density_power=beta, **options)


@pytest.mark.parametrize("factor", [np.ones(19), np.ones((20, 1)), np.full(20, np.nan), np.float64(1)])
def test_known_factors_are_one_finite_value_a_sample(factor: Any) -> None:
    with pytest.raises(ValueError, match=r"density factors .* expected 20 finite values"):
        novelsum_with_densities(_rows(20), {(10, 0.5): factor}, NovelSumOptions())


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("variant", list(product(SELVES, SIDES, AGGREGATES)), ids="-".join)
def test_bad_rows_are_named_in_every_variant(variant: tuple[str, str, str], device: str) -> None:
    options: dict[str, Any] = dict(zip(("self_distance", "density_side", "aggregate"), variant, strict=True))
    nan, zero = _rows(20), _rows(20)
    nan[13, 2], zero[7] = np.nan, 0
    with pytest.raises(ValueError, match="target: row 13 has a NaN or infinite value"):
        novelsum(nan, device=device, **options)
    with pytest.raises(ValueError, match="target: row 7 is all zeros"):
        novelsum(zero, device=device, **options)
    with pytest.raises(ValueError, match="reference: row 13"):
        novelsum(_rows(20), nan, device=device, **options)
    for shape in ((0, 4), (4, 0), (4,)):
        with pytest.raises(ValueError, match=r"target: shape .* expected \(samples, dimensions\)"):
            novelsum(np.zeros(shape), device=device, **options)
