"""Density of a pool that grew equals, bit for bit, density of the pool searched at once."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novelsum_dagster.common import devices
from novelsum_dagster.common.files import write_table
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.definitions import build_defs
from novelsum_dagster.diversity import density_torch, growth
from novelsum_dagster.diversity.growth import Nearest, nearest_in_pool
from novelsum_dagster.diversity.tables import DensityTable, build_density
from novelsum_dagster.settings import NovelSum, load_settings
from tests.defs.conftest import write_pool
from tests.pools import write_jsonl, write_settings

# The package has a function of the same name.
module = importlib.import_module("novelsum_dagster.diversity.density")

FILES = ["density.parquet", "nearest.parquet"]
FIVE = NovelSum(neighbors=5)


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FAISS compare few points as it does many: by matrix products, which round."""
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 1)


def _rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


class Pools:
    """Builds densities of pools, each in its own way: what they write must not depend on it."""

    def __init__(self, folder: Path) -> None:
        self.grown, self.at_once, self.searched = folder / "grown", folder / "at_once", ""

    def _build(
        self, root: Path, rows: np.ndarray, measure: NovelSum, earlier: DensityTable | None, device: str = "cpu"
    ) -> DensityTable:
        ids = [str(row) for row in range(len(rows))]
        key = f"{hash(rows.tobytes())}"
        return build_density(root, ids, rows, key, settings=measure, earlier=earlier, device=device, say=self._say)

    def _say(self, line: str) -> None:
        self.searched = line

    def first(self, rows: np.ndarray, measure: NovelSum = FIVE, device: str = "cpu") -> DensityTable:
        return self._build(self.grown, rows, measure, None, device)

    def grow(
        self, earlier: DensityTable, rows: np.ndarray, measure: NovelSum = FIVE, device: str = "cpu"
    ) -> DensityTable:
        """Return the densities made with the earlier ones, once they equal those made without."""
        whole = self._build(self.at_once, rows, measure, None)
        table = self._build(self.grown, rows, measure, earlier, device)
        assert table == whole
        assert table.stored_files(self.grown) == [f"{table.place}/{name}" for name in FILES]
        for name in FILES:
            written = [(root / table.place / name).read_bytes() for root in (self.grown, self.at_once)]
            assert written[0] == written[1], name
        return table

    def values(self, table: DensityTable) -> np.ndarray:
        return np.asarray(table.table(self.grown)["mean_squared_distance"].to_numpy())


@pytest.fixture
def pools(tmp_path: Path) -> Pools:
    return Pools(tmp_path)


BASE, MORE = _rows(200), _rows(30, seed=1)
TWINS = np.concatenate([BASE, BASE[:20]])


@pytest.mark.parametrize("policy", ["published", "self"])
@pytest.mark.parametrize(
    ("old", "now", "searched"),
    [
        (BASE, np.concatenate([BASE, MORE]), "30 new against all, 200 against the new"),
        (BASE, np.concatenate([MORE, BASE[::-1]]), "30 new against all, 200 against the new"),
        (BASE, BASE[::-1].copy(), "0 new against all, 0 against the new"),
        (BASE, BASE[1:], "0 new and 4 that lost a neighbour against all, 0 against the new"),
        (
            BASE,
            np.concatenate([MORE[:3], BASE[:80], BASE[81:]]),
            "3 new and 2 that lost a neighbour against all, 197 against the new",
        ),
        (BASE, TWINS, "0 new against all, 0 against the new"),
        (TWINS, BASE, "0 new against all, 0 against the new"),
        # The first of equal vectors leaves, the other stays.
        (TWINS, TWINS[20:], "0 new against all, 0 against the new"),
        # A sample leaves and another of an equal vector comes.
        (TWINS[5:], np.concatenate([BASE, MORE]), "30 new against all, 200 against the new"),
        (BASE, MORE, "all 30 against all (30 are new, 0 lost a neighbour)"),
    ],
)  # fmt: skip
def test_what_came_went_and_moved_is_as_if_searched_at_once(
    pools: Pools, policy: Any, old: np.ndarray, now: np.ndarray, searched: str
) -> None:
    measure = NovelSum(neighbors=5, neighbor_policy=policy)
    table = pools.grow(pools.first(old, measure), now, measure)
    if "lost" not in searched or searched.startswith("all"):
        assert pools.searched == searched
    else:
        assert pools.searched.startswith(searched[:6])
        assert "lost a neighbour against all, " in pools.searched
    whole = module.density(now, neighbors=5, neighbor_policy=policy)
    np.testing.assert_array_equal(pools.values(table), whole.mean_squared_distance)
    assert (table.neighbors_used, table.reference_size) == (whole.neighbors_used, whole.reference_size)


def test_a_new_sample_changes_what_is_near_to_it_only(pools: Pools) -> None:
    """The growth is no search of all: what it did not look at is taken as it was."""
    old = pools.first(BASE)
    before = old.nearest(pools.grown)
    assert before is not None
    grown = nearest_in_pool(np.concatenate([BASE, MORE]), 5, before)
    looked: list[int] = []
    search = module.ExactSearch.search

    def counting(self: Any, rows: np.ndarray, asked: int) -> Any:
        looked.append(len(rows))
        return search(self, rows, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.ExactSearch, "search", counting)
        again = nearest_in_pool(np.concatenate([BASE, MORE]), 5, before)
    assert looked == [30]
    np.testing.assert_array_equal(grown.nearest.squared, again.nearest.squared)
    changed = (pools.values(old) != grown.density(5).mean_squared_distance[:200]).sum()
    assert 0 < changed < 200


@pytest.mark.parametrize("policy", ["published", "self"])
def test_pools_with_fewer_points_than_are_asked_for(pools: Pools, policy: Any) -> None:
    measure = NovelSum(neighbors=5, neighbor_policy=policy)
    rows = _rows(9)
    for old in range(1, 9):
        for now in range(1, 10):
            twice = np.repeat(rows[:now], 2, axis=0)
            table = pools.grow(pools.first(rows[:old], measure), twice, measure)
            assert (table.neighbors_used, table.reference_size) == (min(5, now - 1), now)


def test_growth_upon_growth(pools: Pools) -> None:
    rows = _rows(400)
    table = pools.first(rows[:100])
    for size in (130, 131, 180, 250, 400):
        table = pools.grow(table, rows[:size])
        assert not pools.searched.startswith("all")
    for size in (399, 390):
        table = pools.grow(table, rows[:size])
    pools.grow(table, rows)


_grids = st.integers(1, 3).flatmap(
    lambda d: st.lists(
        st.lists(st.lists(st.integers(-2, 2), min_size=d, max_size=d), min_size=1, max_size=25), min_size=2, max_size=4
    )
)


@pytest.mark.parametrize("largest_part", [0.5, 1.0])
@given(chain=_grids, neighbors=st.integers(1, 6), policy=st.sampled_from(["published", "self"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_any_pool_can_follow_any(
    tmp_path: Path, largest_part: float, chain: list[list[list[int]]], neighbors: int, policy: Any
) -> None:
    """Points of a small grid: most are equal to others, or as far away as others."""
    pools, measure = Pools(tmp_path), NovelSum(neighbors=neighbors, neighbor_policy=policy)
    table: DensityTable | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "_MOST_AGAIN", largest_part)
        for cells in chain:
            # Thirds: sums of their squares are rounded.
            rows = np.array(cells, dtype=np.float32) / np.float32(3)
            table = pools.grow(table, rows, measure) if table else pools.first(rows, measure)
            points = np.unique(rows, axis=0).astype(np.float64)
            squared = np.sort(((rows[:, None].astype(np.float64) - points) ** 2).sum(2), axis=1)[:, 1 : neighbors + 1]
            mean = squared.sum(1) / max(1, squared.shape[1])
            np.testing.assert_allclose(pools.values(table), mean, rtol=1e-5, atol=1e-12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(2, 400),
    dimensions=st.sampled_from([1, 2, 3, 7, 16, 33, 384]),
    scale=st.sampled_from([1e-18, 1e-3, 1.0, 1e8, 1e17]),
    spread=st.sampled_from([1e-7, 1e-5, 1e-3, 1.0]),
    asked=st.integers(1, 20),
    seed=st.integers(0, 2**16),
    device=st.sampled_from(["cpu", "cpu:0"]),
)
def test_the_exact_search_does_not_depend_on_how_candidates_are_rounded(
    size: int, dimensions: int, scale: float, spread: float, asked: int, seed: int, device: str
) -> None:
    """On the CPU FAISS finds them; "cpu:0" is torch, as on a GPU."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=dimensions) + spread * generator.normal(size=(size, dimensions))
    points, _ = module.distinct_rows((scale * rows).astype(np.float32))
    asked = min(asked, len(points))
    everything = np.tile(np.arange(len(points)), (len(points), 1))
    search = module.ExactSearch(points, device)
    squared = search.distances(points, everything)
    order = np.lexsort((everything, squared), axis=-1)[:, :asked]
    found = search.search(points, asked)
    np.testing.assert_array_equal(found[1], order)
    np.testing.assert_array_equal(found[0], np.take_along_axis(squared, order, 1))
    np.testing.assert_array_equal(squared, squared.T)


def test_faiss_alone_would_miss_the_nearest_of_near_duplicates() -> None:
    """Else the test above could not fail."""
    rows = (np.full(384, 384**-0.5) + 1e-6 * np.random.default_rng(0).normal(size=(300, 384))).astype(np.float32)
    _, rough = faiss.knn(rows, rows, 11)
    _, exact = module.ExactSearch(rows).search(rows, 11)
    assert (np.sort(rough) != np.sort(exact)).any()


@pytest.mark.parametrize("tile", [70, 2**27])
def test_a_torch_device_finds_the_same(pools: Pools, monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Searched at once and grown, by torch as on a GPU, in whatever tiles."""
    monkeypatch.setattr(density_torch, "_TILE_VALUES", tile)
    near = (np.full(384, 384**-0.5) + 1e-6 * np.random.default_rng(0).normal(size=(150, 384))).astype(np.float32)
    for rows in (np.concatenate([near, _rows(150, 384), near[:9]]), _rows(300, 3)):
        expected = pools.first(rows)
        assert pools.first(rows, device="cpu:0") == expected
        monkeypatch.setattr(faiss, "knn", None)  # It is not asked.
        pools.first(rows, device="cpu:0")
        monkeypatch.undo()
        monkeypatch.setattr(density_torch, "_TILE_VALUES", tile)
        pools.grow(pools.first(rows[30:]), rows, device="cpu:0")
        assert pools.searched.startswith("30 new against all, 270 " if rows.shape[1] == 3 else "21 new")


def test_points_that_do_not_fit_on_the_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = density_torch.device_memory_needed(200, 16)
    monkeypatch.setattr(devices, "free_device_memory", lambda device: needed)
    module.density(BASE, device="cpu:0")
    monkeypatch.setattr(devices, "free_device_memory", lambda device: needed - 1)
    with pytest.raises(NotEnoughMemory, match=r"density against 200 points needs about .* on cpu:0"):
        module.density(BASE, device="cpu:0")


def test_near_duplicates_grow(pools: Pools) -> None:
    rows = (np.full(384, 384**-0.5) + 1e-6 * np.random.default_rng(0).normal(size=(300, 384))).astype(np.float32)
    pools.grow(pools.first(rows[40:]), rows)
    assert pools.searched == "40 new against all, 260 against the new"


def _rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda path: write_table(change(pq.read_table(path, partitioning=None)), path)


def _with(column: str, row: int, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = change(values[row])
        at = table.column_names.index(column)
        return table.set_column(at, table.schema.field(column), pa.array(values, table.schema.field(column).type))

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PAR1 not a table PAR1"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(2000) + path.read_bytes()[2100:]),
        _rewritten(lambda table: table.slice(0, 0)),
        _rewritten(lambda table: table.slice(0, 4)),
        _rewritten(lambda table: table.slice(0, 150)),
        _rewritten(lambda table: table.drop_columns(["nearest"])),
        _rewritten(lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1)])),
        _rewritten(_with("vector", 3, lambda value: None)),
        _rewritten(_with("nearest", 3, lambda value: None)),
        _rewritten(_with("nearest", 3, lambda value: [*value[:-1], None])),
        _rewritten(_with("nearest", 3, lambda value: [*value[:-1], 200])),
        _rewritten(_with("nearest", 3, lambda value: [*value[:-1], -1])),
        _rewritten(_with("squared_distance", 3, lambda value: [*value[:-1], None])),
        _rewritten(_with("squared_distance", 3, lambda value: [*value[:-1], float("nan")])),
        _rewritten(_with("squared_distance", 3, lambda value: [*value[:-1], 0.0])),
    ],
)
def test_damage_costs_a_search_of_all(pools: Pools, damage: Callable[[Path], None]) -> None:
    old = pools.first(BASE)
    damage(pools.grown / old.place / "nearest.parquet")
    pools.grow(old, np.concatenate([BASE, MORE]))
    assert pools.searched == (
        "all 230 against all (the earlier densities have no sound nearest.parquet for 5 neighbours)"
    )


def test_distances_that_come_out_otherwise_now_are_not_kept(pools: Pools) -> None:
    """As those that another release computed."""
    old = pools.first(BASE)
    table = _with("squared_distance", 3, lambda value: [*value[:-1], float(np.nextafter(np.float32(value[-1]), 1e9))])
    _rewritten(table)(pools.grown / old.place / "nearest.parquet")
    pools.grow(old, np.concatenate([BASE, MORE]))
    assert "another release" in pools.searched


def test_other_settings(pools: Pools) -> None:
    old = pools.first(BASE)
    now = np.concatenate([BASE, MORE])
    pools.grow(old, now, NovelSum(neighbors=6))
    assert "for 6 neighbours" in pools.searched
    for measure in (NovelSum(neighbors=5, density_power=0.1), NovelSum(neighbors=5, density_index="exact")):
        pools.grow(old, now, measure)
        assert pools.searched == "30 new against all, 200 against the new"


def test_another_model_is_searched_again(pools: Pools) -> None:
    pools.grow(pools.first(BASE), _rows(200, seed=3))
    assert pools.searched == "all 200 against all (200 are new, 0 lost a neighbour)"
    pools.grow(pools.first(BASE), _rows(200, d=8))
    assert pools.searched == "all 200 against all (200 are new, 0 lost a neighbour)"


def test_a_few_vectors_that_were_embedded_again_count_as_new(pools: Pools) -> None:
    rows = BASE.copy()
    rows[:3] *= np.float32(1.0001)
    pools.grow(pools.first(BASE), rows)
    assert pools.searched.startswith("3 new and ")


def test_the_tuned_index_keeps_nothing(pools: Pools) -> None:
    tuned = NovelSum(neighbors=5, density_index="ivf", min_recall=0.5)
    old = pools.first(_rows(6000, d=4), tuned)
    assert old.index.startswith("ivf")
    assert not (pools.grown / old.place / "nearest.parquet").exists()
    assert pools.searched == f"all 6,000 against all ({old.index})"
    pools.grow(old, BASE)
    assert "no sound nearest.parquet" in pools.searched


def test_what_is_kept_is_what_is_nearest(pools: Pools) -> None:
    table = pools.first(TWINS)
    kept = table.nearest(pools.grown)
    assert kept is not None
    found = nearest_in_pool(TWINS, 5)
    np.testing.assert_array_equal(kept.hashes, found.nearest.hashes)
    points = np.empty((200, 16), dtype=np.float32)
    points[found.vector] = TWINS
    for row, near, squared in zip(points, kept.points, kept.squared, strict=True):
        plain = ((points.astype(np.float64) - row) ** 2).sum(1)
        assert near.tolist() == np.argsort(plain)[:6].tolist()
        np.testing.assert_allclose(squared, plain[near], rtol=1e-5)
    assert Nearest.of_table(kept.table(), 6) is None


def test_progress_ends_at_the_number_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_TILE", 100)
    seen: list[tuple[int, int]] = []
    first = nearest_in_pool(BASE, 5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(100, 200), (200, 200)]
    seen.clear()
    nearest_in_pool(np.concatenate([BASE, MORE]), 5, first.nearest, progress=lambda *at: seen.append(at))
    assert seen == [(30, 230), (130, 230), (230, 230)]
    seen.clear()
    nearest_in_pool(BASE, 5, first.nearest, progress=lambda *at: seen.append(at))
    assert seen == [(200, 200)]


@pytest.mark.slow
def test_the_asset_compares_what_is_new(tmp_path: Path) -> None:
    write_pool(tmp_path)
    file = write_settings(tmp_path, pool={"sources": [{"path": "pool/*"}], "max_reject_fraction": 0.05})
    assets = [dg.AssetKey(name) for name in ("raw_pool", "embeddings", "distinct_pool", "density")]
    root, none = tmp_path / "curated", "all 101 against all (no earlier densities)"
    with dg.instance_for_test() as instance:
        job = build_defs(load_settings(file)).resolve_implicit_global_asset_job_def()

        def searched(*chosen: dg.AssetKey) -> str:
            result = job.execute_in_process(instance=instance, asset_selection=list(chosen))
            return str(result.asset_materializations_for_node("density")[0].metadata["searched"].value)

        assert searched(*assets) == "all 100 against all (no earlier densities)"
        write_jsonl(tmp_path / "pool" / "new.jsonl", [{"prompt": "What is new?", "completion": "This record."}])
        assert searched(*assets) == "1 new against all, 100 against the new"
        handle = json.loads((root / "assets" / "density.json").read_text())
        record = root / "provenance" / "density" / f"{handle['key']}.json"
        folder = f"density/density={handle['key']}"
        assert sorted(json.loads(record.read_text())["files"]) == [f"{folder}/{name}" for name in FILES]
        assert searched(assets[3]) == "0 new against all, 0 against the new"
        with (root / folder / "nearest.parquet").open("r+b") as nearest:
            nearest.seek(3000)
            nearest.write(b"other")
        assert searched(assets[3]) == none
        (root / "assets" / "density.json").write_text("{")
        assert searched(assets[3]) == none
