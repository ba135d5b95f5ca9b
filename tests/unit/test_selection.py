"""NovelSelect against a plain reference that sorts every row at every pick, its record, and its refusals."""

from pathlib import Path

import numpy as np
import pytest

from novelsum_dagster.diversity import density
from novelsum_dagster.selection import novelselect
from novelsum_dagster.selection.picks import nearest_earlier


def _rows(n: int, d: int = 12, seed: int = 0) -> np.ndarray:
    """Clustered rows with some exact duplicates."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, n // 10), d))
    rows = centres[generator.integers(0, len(centres), n)] + 0.3 * generator.normal(size=(n, d))
    rows[: n // 20] = rows[n // 2 : n // 2 + n // 20]
    return rows.astype(np.float32)


def _plain_scores(unit: np.ndarray, factor: np.ndarray, picked: list[int], alpha: float) -> np.ndarray:
    distances = (1 - unit @ unit[picked].T) * (factor[:, None] + factor[picked][None, :])
    distances.sort(axis=1)
    return np.asarray(distances @ (np.arange(1, len(picked) + 1) ** -alpha))


def _assert_every_pick_is_an_argmax(rows: np.ndarray, factor: np.ndarray, k: int, alpha: float) -> None:
    """Each pick must reach the best score up to rounding, and the record must hold that score and the second's."""
    picks = novelselect(rows, k, density_factor=factor, proximity_power=alpha)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    chosen = picks.indices.tolist()
    assert len(set(chosen)) == k
    for rank in range(1, k):
        scores = _plain_scores(unit, factor, chosen[:rank], alpha)
        scores[chosen[:rank]] = -np.inf
        assert scores[chosen[rank]] == pytest.approx(scores.max(), rel=2e-6, abs=1e-6)
        assert picks.score[rank] == pytest.approx(scores[chosen[rank]], rel=2e-6, abs=1e-6)
        if rank < len(rows) - 1:
            scores[chosen[rank]] = -np.inf
            assert picks.runner_up_score[rank] == pytest.approx(scores.max(), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_pick_is_the_best_one(alpha: float, seed: int) -> None:
    rows = _rows(150, seed=seed)
    factor = np.random.default_rng(seed).uniform(0.5, 4, len(rows))
    _assert_every_pick_is_an_argmax(rows, factor, 60, alpha)


def test_every_pick_is_the_best_one_on_the_golden_embeddings() -> None:
    rows = np.load(Path(__file__).resolve().parents[1] / "golden" / "real.npy", allow_pickle=False)
    _assert_every_pick_is_an_argmax(rows, density(rows).factor(0.5), 150, 1.0)


def test_ties_go_to_the_lowest_index() -> None:
    rows = np.zeros((6, 6), np.float32)
    rows[[0, 1, 2, 3, 4, 5], [0, 1, 1, 2, 2, 3]] = 1
    picks = novelselect(rows, 4, density_power=0, seed=0)
    first = int(np.random.RandomState(0).randint(0, 6))
    others = [row for row in (0, 1, 3, 5) if row not in (first, {1: 2, 2: 1, 3: 4, 4: 3}.get(first))]
    assert picks.indices.tolist() == [first, *others]


def test_all_rows_alike_are_picked_once_each() -> None:
    rows = np.ones((9, 5), np.float32)
    first = int(np.random.RandomState(42).randint(0, 9))
    expected = [first, *(row for row in range(9) if row != first)]
    assert novelselect(rows, 9, density_power=0).indices.tolist() == expected


def test_a_pool_of_one() -> None:
    picks = novelselect(np.ones((1, 3)), 1, density_power=0)
    assert picks.indices.tolist() == [0]
    assert picks.runner_up.tolist() == [-1]


def test_more_picks_keep_the_first_ones() -> None:
    rows = _rows(200)
    assert novelselect(rows, 80).indices[:30].tolist() == novelselect(rows, 30).indices.tolist()


def test_a_permuted_pool_gives_permuted_picks() -> None:
    rows = np.random.default_rng(5).normal(size=(120, 12)).astype(np.float32)
    factor = density(rows).factor(0.5)
    picks = novelselect(rows, 40, density_factor=factor).indices
    first = int(picks[0])
    order = np.random.default_rng(6).permutation(len(rows))
    order[[int(np.flatnonzero(order == first)[0]), first]] = order[[first, int(np.flatnonzero(order == first)[0])]]
    permuted = novelselect(rows[order], 40, density_factor=factor[order]).indices
    assert order[permuted].tolist() == picks.tolist()


def test_nearest_earlier_is_the_same_over_tiles() -> None:
    rows = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    nearest, distance = nearest_earlier(rows)
    for rank in (1, 1023, 1024, 1025, 2499):
        distances = 1 - rows[:rank] @ rows[rank]
        assert distance[rank] == pytest.approx(max(float(distances.min()), 0), abs=1e-6)
        assert distances[nearest[rank]] == pytest.approx(distances.min(), abs=1e-6)
    assert nearest[0] == -1


@pytest.mark.parametrize("k", [0, -1, 51])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 50"):
        novelselect(_rows(50), k)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_bad_density_factors_are_named(bad: float) -> None:
    factor = np.ones(50)
    factor[9] = bad
    with pytest.raises(ValueError, match="row 9"):
        novelselect(_rows(50), 5, density_factor=factor)


def test_density_factors_of_another_pool_are_refused() -> None:
    with pytest.raises(ValueError, match="50 samples"):
        novelselect(_rows(50), 5, density_factor=np.ones(49))


def test_progress_ends_with_k_of_k() -> None:
    seen: list[tuple[int, int]] = []
    novelselect(_rows(60), 25, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (25, 25)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
