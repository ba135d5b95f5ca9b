"""Near-duplicates by vectors equal a plain walk over all pairs, whatever the order, the device and what was known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity import similar, similar_torch
from novelsum_dagster.diversity.similar import Neighbours, Similar, similar_samples
from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "ROWS", 7)
    monkeypatch.setattr(similar, "COLUMNS", 10)


def pool(n: int, seed: int = 0, d: int = 8, noise: float = 0.3) -> np.ndarray:
    """Return clusters of several widths, chains, and rows that repeat or have one direction."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(max(1, n // 5), d))
    rows = centres[draw.integers(len(centres), size=n)] + draw.normal(size=(n, d)) * noise * draw.random((n, 1))
    again = draw.integers(n, size=n // 6)
    rows[draw.integers(n, size=n // 6)] = rows[again] * draw.choice([1.0, 2.0], size=(n // 6, 1))
    return rows.astype(np.float32)


def plain(vectors: np.ndarray, order: np.ndarray, least: float) -> tuple[dict[int, tuple[int, float]], np.ndarray]:
    """Walk as it is said to be done, over the whole matrix; return near-duplicates, and nearest cosines."""
    cosines = 1 - cosine_distances(unit_rows(vectors), unit_rows(vectors))
    kept: list[int] = []
    near = {}
    for row in order.tolist():
        best = max(kept, key=lambda other: cosines[row, other], default=-1)  # The first of several.
        if best >= 0 and cosines[row, best] >= least:
            near[row] = (best, float(cosines[row, best]))
        else:
            kept.append(row)
    np.fill_diagonal(cosines, -np.inf)
    return near, cosines.max(axis=1)


def as_dict(found: Similar) -> dict[int, tuple[int, float]]:
    assert (np.diff(found.rows) > 0).all()
    return {
        int(row): (int(partner), float(cosine))
        for row, partner, cosine in zip(found.rows, found.partners, found.similarity, strict=True)
    }


def checked(vectors: np.ndarray, order: np.ndarray, least: float, earlier: Neighbours | None = None) -> Similar:
    """Return what is found, once it equals the plain walk."""
    found = similar_samples(vectors, order, least, earlier)
    near, nearest = plain(vectors, order, least)
    assert as_dict(found) == near
    assert not set(found.partners.tolist()) & set(found.rows.tolist())
    np.testing.assert_array_equal(found.nearest, nearest if len(vectors) > 1 else [np.nan])
    return found


def same(one: Similar, other: Similar) -> None:
    for name in ("rows", "partners", "similarity", "nearest"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.neighbours.table().equals(other.neighbours.table())


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 0.9, 0.97, 0.999, 1.0]), st.booleans())
def test_it_is_the_plain_walk(n: int, seed: int, least: float, in_order: bool) -> None:
    order = np.arange(n) if in_order else np.random.default_rng(seed).permutation(n)
    checked(pool(n, seed), order, least)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_chains_and_ties(seed: int, d: int) -> None:
    """On a grid many cosines are equal, and near-duplicates of near-duplicates abound."""
    draw = np.random.default_rng(seed)
    rows = draw.integers(-3, 4, size=(80, d)).astype(np.float32)
    rows = rows[rows.any(axis=1)]
    for least in (0.3, 0.8, 0.95, 1.0):
        checked(rows, draw.permutation(len(rows)), least)


def test_a_cosine_that_equals_the_least_counts_and_one_below_does_not() -> None:
    rows = np.array([[1, 0], [0.8, 0.6]], dtype=np.float32)
    cosine = float(1 - cosine_distances(unit_rows(rows), unit_rows(rows))[0, 1])
    order = np.arange(2)
    assert as_dict(checked(rows, order, cosine)) == {1: (0, cosine)}
    assert as_dict(checked(rows, order, np.nextafter(cosine, 2))) == {}


def test_equal_samples_have_the_first_of_the_walk_as_partner() -> None:
    rows = np.ones((50, 4), dtype=np.float32)
    found = checked(rows, np.arange(50)[::-1].copy(), 1.0)
    assert as_dict(found) == dict.fromkeys(range(49), (49, 1.0))
    assert len(found.neighbours.hashes) == 1


def test_one_sample_has_nothing_near() -> None:
    found = checked(np.ones((1, 3), dtype=np.float32), np.arange(1), 0.5)
    assert np.isnan(found.nearest[0]) and not len(found.rows)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_pool_that_changed_is_as_if_compared_at_once(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    draw = np.random.default_rng(seed)
    rows = pool(60, seed)
    was = np.flatnonzero(draw.random(60) < data.draw(st.sampled_from([0.6, 0.9, 1.0])))
    now = np.flatnonzero(draw.random(60) < data.draw(st.sampled_from([0.8, 0.95, 1.0])))
    rank = draw.permutation(60) if data.draw(st.booleans()) else np.arange(60)  # Of each sample in the walk.
    if not len(was) or not len(now):
        return
    before = similar_samples(rows[was], np.argsort(rank[was]), 0.9)
    earlier = Neighbours.of_table(before.neighbours.table())
    assert earlier is not None
    order = np.argsort(rank[now])
    grown = checked(rows[now], order, 0.8, earlier)
    same(grown, similar_samples(rows[now], order, 0.8))


def test_what_landed_is_compared_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
    before = similar_samples(rows[:90], np.arange(90), 0.9).neighbours
    asked: list[tuple[int, int]] = []
    compare = similar.Directions.compare

    def counting(self: Any, some: np.ndarray, others: np.ndarray) -> Any:
        asked.append((len(some), len(others)))
        return compare(self, some, others)

    monkeypatch.setattr(similar.Directions, "compare", counting)
    grown = similar_samples(rows, np.arange(100), 0.9, before)
    assert grown.compared == "10 new with all 100" and asked == [(7, 97), (3, 100)]
    asked.clear()
    assert similar_samples(rows, np.arange(100), 0.5, grown.neighbours).compared == "0 new with all 100"
    assert asked == []
    for order, reason in (
        (np.arange(100)[::-1].copy(), "their order differs"),
        (np.r_[1, 0, 2:100], "their order differs"),
    ):
        found = similar_samples(rows, order, 0.9, grown.neighbours)
        assert found.compared == f"all 100 with each other ({reason})"
    other = similar_samples(rows + 1, np.arange(100), 0.9, grown.neighbours)
    assert other.compared == "all 100 with each other (100 are new, or lost what was nearest)"


def test_half_of_the_pairs_are_compared_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    minima = similar.Directions._minima

    def counting(self: Any, some: np.ndarray, others: np.ndarray) -> Any:
        nonlocal asked
        asked += len(some) * len(others)
        return minima(self, some, others)

    monkeypatch.setattr(similar.Directions, "_minima", counting)
    similar_samples(np.random.default_rng(1).normal(size=(210, 8)), np.arange(210), 0.9)
    assert asked == 210 * (210 + 7) / 2


def test_torch_finds_the_same() -> None:
    for seed, least in ((0, 0.9), (1, 0.5), (2, 1.0)):
        rows = pool(70, seed)
        order = np.random.default_rng(seed).permutation(70)
        units = unit_rows(rows[order])
        some, others = np.arange(20, 40), np.sort(np.random.default_rng(9).permutation(70)[:50])
        here, there = similar.Directions(units), similar_torch.UnitsOnDevice(units, "cpu")
        for part in (others, others[others < 20], others[others >= 40], some):
            found, expected = there.minima(some, part), here._minima(some, part)
            for one, other in zip([*found.rows, *found.columns], [*expected.rows, *expected.columns], strict=True):
                np.testing.assert_array_equal(one.distance, other.distance)
                np.testing.assert_array_equal(one.at, other.at)
        assert as_dict(similar_samples(rows, order, least)) == plain(rows, order, least)[0]


def test_a_device_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, order = pool(60), np.arange(60)
    expected = similar_samples(rows, order, 0.8)
    units_on_device, asked = similar_torch.UnitsOnDevice, []

    def on_cpu(units: np.ndarray, device: str) -> Any:
        asked.append(device)
        return units_on_device(units, "cpu")

    monkeypatch.setattr(similar, "cuda_or_cpu", lambda wanted: "cuda")
    monkeypatch.setattr(similar_torch, "UnitsOnDevice", on_cpu)
    same(similar_samples(rows, order, 0.8, device="cuda"), expected)
    assert asked == ["cuda"]


def test_tiles_can_be_compared_elsewhere() -> None:
    rows, order = pool(60), np.arange(60)
    shared: list[Any] = []

    def spread(directions: Any, asks: Any) -> Any:
        there = similar.Directions.__new__(similar.Directions)
        vars(there).update(directions.__getstate__())
        shared.append(there)
        return iter([ask(there) for ask in asks])

    same(similar_samples(rows, order, 0.8, spread=spread), similar_samples(rows, order, 0.8))
    assert len(shared) == 1


def test_progress_ends_at_the_number_of_directions() -> None:
    seen: list[tuple[int, int]] = []
    rows = np.random.default_rng(0).normal(size=(20, 4))
    before = similar_samples(rows, np.arange(20), 0.9, progress=lambda *at: seen.append(at))
    assert seen == [(0, 20), (7, 20), (14, 20), (20, 20)]
    seen.clear()
    similar_samples(rows, np.arange(20), 0.9, before.neighbours, progress=lambda *at: seen.append(at))
    assert seen == [(20, 20)]


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, order = np.ones((3, 2), dtype=np.float32), np.arange(3)
    for least in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"similarity is .*; it must be over 0 and at most 1"):
            similar_samples(rows, order, least)
    with pytest.raises(ValueError, match="row 1 has a NaN or infinite value"):
        similar_samples(np.array([[1, 2], [np.nan, 1]]), np.arange(2), 0.9)
    with pytest.raises(ValueError, match="row 1 is all zeros"):
        similar_samples(np.array([[1, 2], [0, 0]]), np.arange(2)[::-1].copy(), 0.9)
    monkeypatch.setattr("novelsum_dagster.common.memory.available_memory", lambda: 10)
    with pytest.raises(NotEnoughMemory, match="near-duplicates among 3 vectors"):
        similar_samples(rows, order, 0.9)


def test_an_unsound_table_is_not_taken() -> None:
    table = similar_samples(pool(30), np.arange(30), 0.9).neighbours.table()
    assert Neighbours.of_table(table) is not None
    assert Neighbours.of_table(table.slice(0, 0)) is None
    assert Neighbours.of_table(table.slice(0, 3)) is None  # Names rows that are not there.
    assert Neighbours.of_table(table.drop_columns(["before"])) is None
