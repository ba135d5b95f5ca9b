"""GIST against the algorithm written out plainly, and its guarantee against the best of all subsets."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.common import memory
from novelsum_dagster.common.memory import NotEnoughMemory
from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows
from novelsum_dagster.selection import Picks, select
from novelsum_dagster.selection.gist import STEP, thresholds

WEIGHTS = [
    {"distance_weight": weight, "coverage_weight": coverage}
    for weight, coverage in itertools.product((0.0, 0.3, 1.0, 20.0), (0.0, 0.4, 1.0))
]


def _pool(n: int, d: int = 6, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Clustered rows with exact duplicates, and qualities of which some are equal."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n // 4 + 1, d)).repeat(4, 0)[:n] + 0.5 * generator.normal(size=(n, d))
    rows[: n // 6] = rows[n - n // 6 :]
    return np.asarray(rows, np.float32), generator.integers(1, 9, n) / 4.0


def _gist(rows: NDArray[np.float32], k: int, **options: Any) -> Picks:
    return select("gist", rows, k, density_factor=np.ones(len(rows)), **options)


class _Plain:
    """Utility and value, straight from their definitions."""

    def __init__(
        self, rows: NDArray[np.float32], k: int, quality: NDArray[np.float64] | None, distance_weight: float,
        coverage_weight: float,
    ) -> None:  # fmt: skip
        units = unit_rows(rows)
        self.n, self.k = len(rows), k
        self.distances = cosine_distances(units, units)
        self._similarity = np.rint((1 - self.distances).clip(0) * 2.0**23) / 2.0**23
        self._quality = np.zeros(len(rows)) if quality is None else quality / np.sort(quality)[-k:].sum()
        self._lambda, self._c = distance_weight, coverage_weight

    def utility(self, picks: list[int]) -> float:
        covered = self._similarity[picks].max(0).mean() if picks else 0.0
        return float((1 - self._c) * self._quality[picks].sum() + self._c * covered)

    def apart(self, picks: list[int]) -> float:
        pairs = [self.distances[one, other] for one, other in itertools.combinations(picks, 2)]
        return float(np.sqrt(min(pairs) / 2)) if pairs else 0.0

    def value(self, picks: list[int]) -> float:
        return self.utility(picks) + self._lambda * self.apart(picks)

    def greedy(self, distance: float) -> list[int] | None:
        picks: list[int] = []
        while len(picks) < self.k:
            open_ = [
                row for row in range(self.n) if row not in picks and (self.distances[row, picks] >= distance).all()
            ]
            if not open_:
                return None
            gains = np.array([self.utility([*picks, row]) for row in open_]) - self.utility(picks)
            picks.append(open_[int(np.flatnonzero(gains > gains.max() - 1e-12)[0])])
        return picks


@pytest.mark.parametrize("options", WEIGHTS)
@pytest.mark.parametrize("has_quality", [True, False])
def test_picks_are_those_of_the_algorithm_written_out(options: dict[str, float], has_quality: bool) -> None:
    rows, quality = _pool(30)
    given = quality if has_quality else None
    plain = _Plain(rows, 7, given, **options)
    picks = _gist(rows, 7, quality=given, **options)
    apart = select("kcenter", rows, 7, density_factor=np.ones(30))
    sets = [plain.greedy(distance) for distance in thresholds(float(apart.score[-1]))]
    sets.append(apart.indices.tolist())
    reached = [one for one in sets if one is not None]
    values = np.array([plain.value(one) for one in reached])
    # Of equal values the first.
    assert picks.indices.tolist() == reached[int(np.flatnonzero(values > values.max() - 1e-12)[0])]
    chosen = picks.indices.tolist()
    for rank in range(7):
        gain = plain.utility(chosen[: rank + 1]) - plain.utility(chosen[:rank])
        assert picks.score[rank] == pytest.approx(gain, abs=1e-9)
        assert picks.runner_up_score[rank] <= picks.score[rank] or picks.runner_up[rank] == -1


@pytest.mark.parametrize("options", WEIGHTS)
def test_no_subset_is_better_than_the_guarantee_allows(options: dict[str, float]) -> None:
    for seed, k in itertools.product(range(4), (1, 2, 4, 8)):
        rows, quality = _pool(9, 3, seed)
        plain = _Plain(rows, k, quality, **options)
        best = max(plain.value(list(some)) for some in itertools.combinations(range(9), k))
        found = plain.value(_gist(rows, k, quality=quality, **options).indices.tolist())
        assert found <= best + 1e-12
        assert found >= best / (2 * (1 + STEP)) - 1e-12


def test_thresholds_fall_by_equal_parts_from_twice_the_distance_that_can_be_kept() -> None:
    tried = np.sqrt(np.array(thresholds(0.2)) / 2)
    reach = np.sqrt(0.2 / 2)
    assert tried[0] == 0
    assert tried[-1] == pytest.approx(2 * reach)
    assert tried[1] < STEP * reach <= tried[2]
    np.testing.assert_allclose(tried[2:] / tried[1:-1], 1 + STEP)
    assert thresholds(0.0) == [0.0] == thresholds(float("nan"))
    assert max(thresholds(1.9)) <= 2


def test_without_weight_on_distance_the_best_by_quality_are_picked() -> None:
    rows, quality = _pool(40)
    picks = _gist(rows, 12, quality=quality, distance_weight=0.0)
    assert picks.indices.tolist() == np.argsort(-quality, kind="stable")[:12].tolist()
    assert picks.score.sum() == pytest.approx(1.0)
    assert picks.runner_up[:-1].tolist() == picks.indices[1:].tolist()


def test_picks_keep_farther_apart_the_more_distance_weighs() -> None:
    rows, quality = _pool(200)
    apart = [
        np.nanmin(_gist(rows, 20, quality=quality, distance_weight=weight).nearest_distance)
        for weight in (0.0, 1.0, 50.0)
    ]
    assert apart[0] < apart[1] <= apart[2]
    assert apart[2] >= select("kcenter", rows, 20, density_factor=np.ones(200)).score[-1] - 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distance_weight": -1.0}, "distance_weight is -1.0"),
        ({"distance_weight": float("inf")}, "distance_weight is inf"),
        ({"coverage_weight": 1.5}, "coverage_weight is 1.5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _gist(_pool(12)[0], 3, **options)


def test_coverage_of_a_pool_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    with pytest.raises(NotEnoughMemory, match=r"GIST over all pairs of 300 samples .* set coverage_weight to 0"):
        _gist(_pool(300)[0], 3, coverage_weight=0.5)
