"""Selection in parts: what it approximates, what it keeps apart, and that finished parts are not selected again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from novelsum_dagster.common.spread import in_turn
from novelsum_dagster.selection import Picks, novelselect
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.selection.subset import describe
from novelsum_dagster.settings import Selection
from tests.unit.test_checkpoint import QUALITY, ROWS, N

FACTOR = np.random.default_rng(9).uniform(0.5, 3, N)
K = 40


def _same(picks: Picks, others: Picks) -> bool:
    return all(
        np.array_equal(getattr(picks, name), getattr(others, name), equal_nan=True)
        for name in ("indices", "score", "runner_up", "runner_up_score", "nearest_pick", "nearest_distance")
    )


def _parts(count: int, seed: int = 42) -> list[np.ndarray]:
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(N), count)]


@pytest.mark.parametrize("quality", [None, QUALITY])
def test_parts_that_pick_all_they_have_give_the_exact_selection(quality: np.ndarray | None) -> None:
    k = N // 5 + 1
    exact = novelselect(ROWS, k, density_factor=FACTOR, quality=quality)
    assert _same(partitioned(ROWS, k, partitions=5, density_factor=FACTOR, quality=quality), exact)


def test_every_pick_is_one_of_its_part_by_itself() -> None:
    picks = partitioned(ROWS, K, partitions=4, density_factor=FACTOR, options=NovelSelectOptions(verify=3))
    forward = [part[novelselect(ROWS[part], K, density_factor=FACTOR[part]).indices] for part in _parts(4)]
    merged = np.sort(np.concatenate(forward))
    last = novelselect(ROWS[merged], K, density_factor=FACTOR[merged])
    assert np.array_equal(picks.indices, merged[last.indices])
    assert np.array_equal(picks.score, last.score, equal_nan=True)
    assert picks.remaining is not None and last.remaining is not None
    others = np.setdiff1d(np.arange(N), merged)
    assert np.isnan(picks.remaining.score[others]).all() and not picks.remaining.at[others].any()
    assert np.array_equal(picks.remaining.score[merged], last.remaining.score, equal_nan=True)
    assert picks.runner_up[0] == -1 and np.isin(picks.runner_up[1:], merged).all()


def test_the_seed_deals_the_pool_out() -> None:
    one, again, other = (
        partitioned(ROWS, K, partitions=4, density_factor=FACTOR, options=NovelSelectOptions(seed=seed)).indices
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again) and not np.array_equal(np.sort(one), np.sort(other))


def test_one_part_of_a_file_is_read_at_a_time(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    sizes: list[int] = []

    def seen(shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
        for ask in asks:
            rows: Any = ask.__reduce__()[1][1]
            assert not isinstance(rows.base, np.memmap)
            sizes.append(len(rows))
            yield ask(shared)

    picks = partitioned(mapped, K, partitions=4, density_factor=FACTOR, spread=seen)
    assert sizes == [N // 4] * 4
    assert _same(picks, partitioned(ROWS, K, partitions=4, density_factor=FACTOR))


class _Stopped(Exception):
    """Raised by a progress callback."""


@pytest.mark.parametrize("after", [2 * K, 4 * K + 20])
def test_it_goes_on_where_it_was_broken_off(tmp_path: Path, after: int) -> None:
    options = NovelSelectOptions(checkpoint=tmp_path / "checkpoint.parquet")

    def stop(done: int, total: int) -> None:
        assert total == 5 * K
        if done >= after:
            raise _Stopped

    with pytest.raises(_Stopped):
        partitioned(ROWS, K, partitions=4, density_factor=FACTOR, options=replace(options, progress=stop))
    asked: list[Any] = []

    def counted(shared: Any, asks: Iterable[Callable[[Any], Any]]) -> Iterator[Any]:
        asked.extend(asks)
        return in_turn(shared, asked)

    picks = partitioned(ROWS, K, partitions=4, density_factor=FACTOR, options=options, spread=counted)
    assert len(asked) == (2 if after == 2 * K else 0)
    assert _same(picks, partitioned(ROWS, K, partitions=4, density_factor=FACTOR))
    assert not list(tmp_path.iterdir())


def test_finished_parts_of_another_selection_are_refused(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done > K:
            raise _Stopped

    options = NovelSelectOptions(checkpoint=tmp_path / "checkpoint.parquet")
    with pytest.raises(_Stopped):
        partitioned(ROWS, K, partitions=4, density_factor=FACTOR, options=replace(options, progress=stop))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.parts.parquet"]
    with pytest.raises(ValueError, match="of a selection from other data or settings"):
        partitioned(ROWS, K, partitions=4, density_factor=FACTOR, options=replace(options, seed=1))


def test_a_bad_row_is_named_by_its_place_in_the_pool() -> None:
    for bad, words in ((np.nan, "has a NaN"), (0, "is all zeros")):
        rows = ROWS.copy()
        rows[3] = bad
        with pytest.raises(ValueError, match=f"embeddings: row 3 {words}"):
            partitioned(rows, K, partitions=4, density_factor=FACTOR)
        with pytest.raises(ValueError, match=f"embeddings: row 3 {words}"):
            partitioned(rows, N // 2, partitions=4, density_factor=FACTOR)  # Parts that pick all that they have.


def test_more_parts_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="partitions is 401, but the pool has 400 samples"):
        partitioned(ROWS, K, partitions=401, density_factor=FACTOR)


def test_settings_refuse_what_no_part_can_know() -> None:
    for limit in ({"token_budget": 100}, {"extend_by": 5}, {"must_include": ["a"]}, {"must_exclude": ["a"]}):
        with pytest.raises(ValidationError, match=f"partitions cannot be combined with {next(iter(limit))}"):
            Selection.model_validate({"partitions": 4, **limit})
    with pytest.raises(ValidationError, match="partitions works with strategy novelselect only, not with random"):
        Selection(partitions=4, strategy="random")


def test_the_record_says_so() -> None:
    assert describe(Selection(partitions=4))["options"] == {"partitions": 4}
    assert describe(Selection())["options"] == {}
