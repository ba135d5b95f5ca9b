"""PCA whitening and reduction against scikit-learn, its limits, and pools whose vectors are transformed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from novelsum_dagster.cli.oneshot import transformed, untransformed
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.diversity import novelsum
from novelsum_dagster.diversity.measures import Samples
from novelsum_dagster.embedding.encoder import Model
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import VectorSet, load_vectors, pool_vectors
from novelsum_dagster.embedding.vectors_of_pool import Work, vectors_of_pool
from novelsum_dagster.embedding.whitening import NoDirection, Whitening
from novelsum_dagster.settings import Embedding
from tests.tiny import tiny_model
from tests.unit.test_own_vectors import IDS, ROWS, VECTORS, given, made_pool, stored


def _vectors(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated vectors, far from the origin, whose directions vary by different amounts."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((n, d)) * np.linspace(3, 0.1, d) @ np.linalg.qr(generator.random((d, d)))[0]
    return np.asarray(mixed + generator.standard_normal(d), dtype=np.float32)


def _same_but_for_sign(found: NDArray[Any], expected: NDArray[Any]) -> None:
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("reduce", [None, 1, 3, 8])
@pytest.mark.parametrize("n", [50, 5000])
def test_it_is_scikit_learns_pca(n: int, reduce: int | None, whiten: bool) -> None:
    vectors = _vectors(n, 8)
    fitted = Whitening.of(vectors, whiten=whiten, reduce=reduce)
    found = fitted.apply(vectors)
    assert found.dtype == np.float32 and found.shape == (n, reduce or 8) and fitted.rank == 8
    expected = PCA(reduce, whiten=whiten, svd_solver="full").fit_transform(vectors.astype(np.float64))
    _same_but_for_sign(found, expected)


def test_whitened_vectors_have_unit_covariance_and_mean_zero() -> None:
    found = Whitening.of(_vectors(400, 6)).apply(_vectors(400, 6)).astype(np.float64)
    np.testing.assert_allclose(np.cov(found.T), np.eye(6), atol=1e-5)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)


def test_reduction_keeps_differences_within_what_is_kept() -> None:
    vectors = _vectors(60, 6)
    moved = Whitening.of(vectors, whiten=False).apply(vectors)
    for one, other in ((0, 1), (5, 40)):
        expected = np.linalg.norm(vectors[one] - vectors[other])
        assert np.linalg.norm(moved[one] - moved[other]) == pytest.approx(expected, rel=1e-5)


def test_signs_are_fixed() -> None:
    vectors = _vectors(100, 5)
    fitted = Whitening.of(vectors, whiten=False)
    largest = np.abs(fitted.matrix).argmax(axis=0)
    assert (fitted.matrix[largest, np.arange(5)] > 0).all()
    again = Whitening.of(vectors.copy(), whiten=False)
    np.testing.assert_array_equal(again.matrix, fitted.matrix)


@pytest.mark.parametrize(("n", "d", "rank"), [(2, 5, 1), (5, 5, 4), (4, 20, 3), (30, 5, 5)])
def test_fewer_vectors_than_dimensions_have_fewer_directions(n: int, d: int, rank: int) -> None:
    vectors = _vectors(n, d)
    fitted = Whitening.of(vectors)
    assert fitted.rank == rank and fitted.apply(vectors).shape == (n, rank)
    assert Whitening.of(vectors, reduce=rank).apply(vectors).shape == (n, rank)
    with pytest.raises(ValueError, match=rf"vary in {rank} directions, fewer than the {rank + 1} .* {rank} or less"):
        Whitening.of(vectors, reduce=rank + 1)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_directions_at_rounding_level_are_left_out(scale: float) -> None:
    """A constant dimension, one that repeats another, and one whose values differ by the rounding of float32 alone."""
    vectors = np.empty((200, 5), dtype=np.float32)
    vectors[:, :2] = _vectors(200, 2) * scale
    vectors[:, 2] = 7 * scale
    vectors[:, 3] = vectors[:, 0]
    vectors[:, 4] = np.nextafter(np.float32(scale), np.float32(0), dtype=np.float32)
    vectors[::2, 4] = scale
    fitted = Whitening.of(vectors)
    assert fitted.rank == 2
    found = fitted.apply(vectors).astype(np.float64)
    np.testing.assert_allclose(np.cov(found.T), np.eye(2), atol=1e-4)


@pytest.mark.parametrize("vectors", [np.ones((1, 3), np.float32), np.full((9, 3), 0.3, np.float32)])
def test_vectors_that_do_not_vary_are_refused(vectors: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="vary in 0 directions; there is nothing to whiten or reduce"):
        Whitening.of(vectors)


@pytest.mark.parametrize("whiten", [True, False])
def test_a_vector_that_is_the_mean_has_no_direction(whiten: bool) -> None:
    half = _vectors(2500, 4) - np.float32(0.1)
    vectors = np.concatenate([half, -half, np.zeros((1, 4), np.float32)]) + np.float32(0.7)
    fitted = Whitening.of(vectors, whiten=whiten)
    with pytest.raises(NoDirection, match="row 5000 equals the mean") as raised:
        fitted.apply(vectors)
    assert raised.value.row == 5000
    assert np.isfinite(fitted.apply(vectors[:5000])).all()


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    vectors = _vectors(50, 6)
    fitted = Whitening.of(vectors, reduce=3)
    fitted.save(tmp_path / "map.safetensors")
    fitted.save(tmp_path / "again.safetensors")
    assert (tmp_path / "map.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    loaded = Whitening.load(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(loaded.apply(vectors), fitted.apply(vectors))
    assert (loaded.rank, loaded.whitens) == (6, True)
    (tmp_path / "map.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"map.safetensors: damaged .* delete it"):
        Whitening.load(tmp_path / "map.safetensors")


# Pools.


@pytest.fixture
def pool(tmp_path: Path) -> PoolAt:
    np.save(tmp_path / "v.npy", VECTORS)
    return made_pool(tmp_path)


OWN = VECTORS[ROWS]
"""The vectors of the pool's samples."""


@pytest.mark.parametrize("changes", [{"whiten": True}, {"reduce": 2}, {"whiten": True, "reduce": 2}])
def test_every_reader_of_a_pools_vectors_has_transformed_ones(pool: PoolAt, changes: dict[str, Any]) -> None:
    plain, _ = stored(pool, given("v.npy"))
    found, vectors = stored(pool, given("v.npy", **changes))
    expected = Whitening.of(OWN, whiten=changes.get("whiten", False), reduce=changes.get("reduce")).apply(OWN)
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(pool_vectors(pool.root, pool.snapshot, found)[1], expected)
    assert found.key != plain.key and found.folder != plain.folder == found.transformed_from
    assert (found.dimension, found.rank, found.samples) == (expected.shape[1], 4, 5)
    assert (plain.transformed_from, plain.rank) == (None, None)
    facts = json.loads((pool.root / found.folder / "model.json").read_text())
    assert facts["fitted_on"] == plain.key and facts["dimension"] == expected.shape[1]


def test_nothing_is_made_twice_and_what_is_missing_is_made_again(pool: PoolAt) -> None:
    first, vectors = stored(pool, given("v.npy", whiten=True))
    folder = pool.root / first.folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 3 + 2  # Shards of 2 of 5 samples; the model and the map.
    committed: list[str] = []
    work = Work(committed=lambda *names: committed.extend(names))
    again = vectors_of_pool(pool, given("v.npy", whiten=True), pool.root, work)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before and not committed
    assert again.model_copy(update={"embedded": 5}) == first
    for name in ("whitening.safetensors", sorted(folder.glob("*.parquet"))[1].name):
        (folder / name).unlink()
        mended = vectors_of_pool(pool, given("v.npy", whiten=True), pool.root, work)
        assert mended.key == first.key
        assert f"{first.folder}/{name}" in committed
        np.testing.assert_array_equal(load_vectors(folder, IDS), vectors)


def test_a_pool_that_grows_keeps_the_models_vectors(tmp_path: Path) -> None:
    settings = Embedding(model=tiny_model(), dtype="float32", whiten=True)
    whole = made_pool(tmp_path / "whole")
    part = made_pool(tmp_path / "part", near_duplicates_dropped=True)
    fetched: list[str] = []
    small = vectors_of_pool(part, settings, tmp_path, Work(device="cpu"))
    grown = vectors_of_pool(whole, settings, tmp_path, Work(fetched=fetched.append, device="cpu"))
    assert (small.embedded, grown.embedded) == (4, 1)
    assert small.transformed_from == grown.transformed_from and small.folder != grown.folder
    assert fetched == [grown.transformed_from, grown.folder]
    assert load_vectors(tmp_path / grown.folder, IDS).shape == (5, 4)


@pytest.mark.parametrize(
    ("vectors", "changes", "words"),
    [
        (
            VECTORS,
            {"reduce": 5},
            r"embedding\.reduce: 5 vectors .* vary in 4 directions, fewer than the 5",
        ),
        (np.ones((7, 4), np.float32), {"whiten": True}, r"embedding\.whiten: 5 vectors .* vary in 0 directions"),
    ],
)
def test_what_cannot_be_had_is_refused(
    tmp_path: Path, vectors: NDArray[np.float32], changes: dict[str, Any], words: str
) -> None:
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(InputError, match=words):
        stored(made_pool(tmp_path), given("v.npy", **changes))


def test_a_sample_without_direction_is_named(tmp_path: Path) -> None:
    vectors = VECTORS.copy()
    vectors[ROWS] = np.concatenate([VECTORS[:2], 2 - VECTORS[:2], np.ones((1, 4), np.float32)])
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(InputError, match=r"embedding\.whiten: the vector of b\.jsonl, record 3 equals the mean"):
        stored(made_pool(tmp_path), given("v.npy", whiten=True))


def test_handles_and_keys_from_before_are_what_they_were(pool: PoolAt) -> None:
    found, _ = stored(pool, given("v.npy"))
    old = VectorSet.model_validate(found.model_dump(exclude={"transformed_from", "rank"}))
    assert old == found
    plain = Model("a/b", "1", 256, "auto")
    others = {
        Model("a/b", "1", 256, "auto", whiten=True, fitted_on="k").key,
        Model("a/b", "1", 256, "auto", reduce=3).key,
    }
    assert len({plain.key, *others}) == 3


# Files that are measured at once.


def test_sets_are_transformed_by_the_reference() -> None:
    rows = _vectors(40, 6)
    sets = {"a": Samples(rows[:10], ["x"] * 10), "b": Samples(rows[5:20])}
    for settings in (Embedding(whiten=True), Embedding(whiten=True, reduce=2)):
        found, moved = transformed(sets, rows, settings)
        expected = Whitening.of(rows, reduce=settings.reduce).apply(rows)
        np.testing.assert_array_equal(moved, expected)
        np.testing.assert_array_equal(found["a"].vectors, expected[:10])
        np.testing.assert_array_equal(found["b"].vectors, expected[5:20])
        assert found["a"].texts == ["x"] * 10
        assert np.isfinite(novelsum(found["a"].vectors, moved).value)


def test_without_reference_the_distinct_vectors_of_all_sets_count_in_any_order() -> None:
    rows = _vectors(30, 4)
    sets = {"a": Samples(rows[[0, *range(20)]]), "b": Samples(rows[10:])}
    found, moved = transformed(sets, None, Embedding(reduce=3))
    assert moved is None
    other, _ = transformed(dict(reversed(sets.items())), None, Embedding(reduce=3))
    np.testing.assert_array_equal(found["b"].vectors, other["b"].vectors)
    np.testing.assert_array_equal(found["b"].vectors, Whitening.of(rows, whiten=False, reduce=3).apply(rows[10:]))


def test_sets_stay_as_they_are_unless_asked() -> None:
    sets = {"a": Samples(_vectors(3, 4))}
    assert transformed(sets, None, Embedding()) == (sets, None)
    assert untransformed(Embedding(whiten=True, reduce=3, max_tokens=9)) == Embedding(max_tokens=9)


def test_sets_that_cannot_be_transformed_are_refused() -> None:
    sets = {"a.jsonl": Samples(_vectors(3, 4))}
    with pytest.raises(InputError, match=r"--reduce: 3 vectors of 4 dimensions vary in 2 directions"):
        transformed(sets, None, Embedding(reduce=3))
    half = _vectors(6, 4)
    pool = np.concatenate([half, -half])
    with pytest.raises(InputError, match=r"a\.jsonl: row 1 equals the mean .* omit --whiten and --reduce"):
        transformed({"a.jsonl": Samples(np.stack([half[0], 0 * half[0]]))}, pool, Embedding(whiten=True))
