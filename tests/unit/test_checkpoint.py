"""A selection that is broken off or killed goes on where it stopped and ends as if nothing had happened."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.selection import Picks, Quota, novelselect
from novelsum_dagster.selection.search import cpu as search_cpu

N, K = 400, 60
ROWS = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
ROWS[:30] = ROWS[200:230]
QUALITY = np.random.default_rng(1).uniform(1, 2, N)
COST = np.random.default_rng(2).integers(1, 50, N).astype(np.float64)
LABELS = np.random.default_rng(3).integers(0, 4, N)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"k": K},
    "quality": {"k": K, "quality": QUALITY, "proximity_power": 2.0, "seed": 5},
    "given": {"k": K, "initial": [7, 3, 9], "must_include": [3, 50], "must_exclude": [1, 2]},
    "quotas": {"k": K, "quotas": [Quota(LABELS, {0: 4}, {1: 30, 2: 3}, "source")]},
    "budget": {"cost": COST, "budget": 1200.0},
    "budget and quotas": {"cost": COST, "budget": 900, "quotas": [Quota(LABELS, {0: 9}, {1: 40}, "source")]},
}


class Stopped(Exception):
    """Raised by a progress callback."""


def stop_at(call: int) -> Any:
    """Return a progress callback that raises when it is called so often."""
    calls = iter(range(1, call))

    def progress(done: int, total: int) -> None:
        if next(calls, None) is None:
            raise Stopped

    return progress


def assert_same(picks: Picks, expected: Picks) -> None:
    for name in set(vars(expected)) - {"remaining", "eligibility"}:
        np.testing.assert_array_equal(getattr(picks, name), getattr(expected, name), err_msg=name)
    assert picks.eligibility is not None and expected.eligibility is not None
    np.testing.assert_equal(vars(picks.eligibility), vars(expected.eligibility))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [1, 3, 5])
def test_an_exception_leaves_a_checkpoint_from_which_the_same_call_goes_on(
    kind: str, call: int, tmp_path: Path
) -> None:
    options, file = KINDS[kind], tmp_path / "picks.parquet"
    expected = novelselect(ROWS, **options)
    for stop in (call, 1):
        with pytest.raises(Stopped):
            novelselect(ROWS, **options, checkpoint=file, progress=stop_at(stop))
        assert file.exists()
    saved = len(pq.read_table(file))
    assert 0 < saved <= len(expected.indices)
    seen: list[int] = []
    picks = novelselect(ROWS, **options, checkpoint=file, progress=lambda done, total: seen.append(done))
    assert_same(picks, expected)
    assert list(tmp_path.iterdir()) == []
    if "k" in options:
        assert min(seen) > saved or min(seen) == options["k"]


def test_an_exception_at_the_last_report_leaves_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "picks.parquet"

    def stop_at_the_end(done: int, total: int) -> None:
        if done == total:
            raise Stopped

    with pytest.raises(Stopped):
        novelselect(ROWS, 25, checkpoint=file, progress=stop_at_the_end)
    assert len(pq.read_table(file)) == 25
    assert_same(novelselect(ROWS, 25, checkpoint=file), novelselect(ROWS, 25))


def test_ctrl_c_leaves_a_checkpoint_at_any_pick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "picks.parquet"
    expected = novelselect(ROWS, K)
    best = search_cpu.CpuSearch._best
    for at in (1, 2, 17, 33, 59):

        def interrupted(self: search_cpu.CpuSearch, at: int = at) -> Any:
            if self.picked == at:
                raise KeyboardInterrupt
            return best(self)

        monkeypatch.setattr(search_cpu.CpuSearch, "_best", interrupted)
        with pytest.raises(KeyboardInterrupt):
            novelselect(ROWS, K, checkpoint=file)
        assert len(pq.read_table(file)) == at
    monkeypatch.setattr(search_cpu.CpuSearch, "_best", best)
    assert_same(novelselect(ROWS, K, checkpoint=file), expected)


def test_a_checkpoint_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["novelsum_dagster.selection.novelselect"]
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", 0.0)
    sizes: list[int] = []
    file = tmp_path / "picks.parquet"
    novelselect(ROWS, K, checkpoint=file, progress=lambda *_: sizes.append(_saved(file)))
    assert sizes[1:-1] == [19, 29, 39, 49, 59]
    assert not file.exists()


def _saved(file: Path) -> int:
    # Opened once: the child replaces the file meanwhile.
    return len(pq.read_table(pa.BufferReader(file.read_bytes()))) if file.exists() else 0


def test_extending_an_earlier_result_goes_on_too(tmp_path: Path) -> None:
    file = tmp_path / "picks.parquet"
    first = novelselect(ROWS, 20)
    expected = novelselect(ROWS, K, initial=first)
    np.testing.assert_array_equal(expected.indices, novelselect(ROWS, K).indices)
    with pytest.raises(Stopped):
        novelselect(ROWS, K, initial=first, checkpoint=file, progress=stop_at(2))
    assert_same(novelselect(ROWS, K, initial=first, checkpoint=file), expected)


CHILD = """
import sys, time
from pathlib import Path
import numpy as np
from novelsum_dagster.selection import novelselect
module = sys.modules["novelsum_dagster.selection.novelselect"]
module._SAVE_EVERY_SECONDS = 0.0
folder = Path(sys.argv[1])
rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)

def slowly(done, total):
    time.sleep(float(sys.argv[2]))

picks = novelselect(rows, 200, checkpoint=folder / "picks.parquet", progress=slowly, threads=1)
np.save(folder / "picks.npy", picks.indices)
np.save(folder / "scores.npy", picks.score)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_list(tmp_path: Path) -> None:
    rows = np.random.default_rng(4).normal(size=(2000, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    file = tmp_path / "picks.parquet"
    moments = np.random.default_rng(5).uniform(0, 0.25, 4)
    saved = 0
    for moment in moments:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), "0.05"])
        try:
            # Wait until this run has saved something of its own.
            give_up = time.monotonic() + 60
            while _saved(file) <= saved:
                assert child.poll() is None, "ended before it could be killed"
                assert time.monotonic() < give_up, "no checkpoint"
                time.sleep(0.005)
            time.sleep(moment)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert child.returncode == -signal.SIGKILL
        now = _saved(file)
        assert saved < now < 200
        saved = now
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), "0"], check=True, timeout=60)
    expected = novelselect(rows, 200)
    np.testing.assert_array_equal(np.load(tmp_path / "picks.npy", allow_pickle=False), expected.indices)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy", allow_pickle=False), expected.score)
    assert not file.exists()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The checkpoint of 60 picks out of ROWS, broken off at 20, with settings that tests change one by one."""
    file = tmp_path / "picks.parquet"
    with pytest.raises(Stopped):
        novelselect(ROWS, **_settings(), checkpoint=file, progress=stop_at(2))
    return file


def _settings(**changed: Any) -> dict[str, Any]:
    return {
        "k": K,
        "quality": QUALITY,
        "must_exclude": [5],
        "must_include": [6, 7],
        "quotas": [Quota(LABELS, {0: 20}, {}, "source")],
        **changed,
    }


def _other_rows() -> np.ndarray:
    rows = ROWS.copy()
    rows[399, 7] += np.float32(0.01)
    return rows


@pytest.mark.parametrize(
    "changed",
    [
        {"k": K + 1},
        {"seed": 1},
        {"proximity_power": 1.5},
        {"neighbors": 11},
        {"density_power": 1.0},
        {"density_factor": np.ones(N)},
        {"quality": QUALITY[::-1]},
        {"quality": None},
        {"must_exclude": []},
        {"must_exclude": [4]},
        {"must_exclude": [5, 6], "must_include": [7]},
        {"must_exclude": [], "must_include": [5, 6, 7]},
        {"must_include": [7, 6]},
        {"must_include": [7]},
        {"quotas": []},
        {"quotas": [Quota(LABELS, {0: 21}, {}, "source")]},
        {"quotas": [Quota(LABELS, {}, {0: 20}, "source")]},
        {"quotas": [Quota(LABELS[::-1], {0: 20}, {}, "source")]},
        {"embeddings": _other_rows()},
        {"embeddings": ROWS[:-1], "quality": QUALITY[:-1], "quotas": [Quota(LABELS[:-1], {0: 20}, {}, "source")]},
        {"k": None, "cost": np.ones(N), "budget": K},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_a_checkpoint_of_another_selection_is_refused(checkpoint: Path, changed: dict[str, Any]) -> None:
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"picks\.parquet: damaged, or of a selection from other data or settings"):
        novelselect(**{"embeddings": ROWS, **_settings(**changed)}, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


def test_what_changes_no_pick_may_change(checkpoint: Path) -> None:
    options = _settings(k=np.int64(K), seed=np.int64(42))
    picks = novelselect(ROWS, **options, checkpoint=checkpoint, threads=2, verify=1)
    assert_same(picks, novelselect(ROWS, **_settings()))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "table", "folder"])
def test_a_file_that_is_no_checkpoint_is_refused(checkpoint: Path, damage: str) -> None:
    content = checkpoint.read_bytes()
    if damage == "folder":
        checkpoint.unlink()
        checkpoint.mkdir()
    elif damage == "table":
        pq.write_table(pa.table({"indices": [1, 2]}), checkpoint)
    else:
        checkpoint.write_bytes({"empty": b"", "text": b"hello, world", "cut": content[:-100]}[damage])
    with pytest.raises(ValueError, match=r"picks\.parquet"):
        novelselect(ROWS, **_settings(), checkpoint=checkpoint)


def test_no_flipped_byte_changes_the_picks(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    expected = novelselect(ROWS, **_settings())
    refused = 0
    for at in np.random.default_rng(0).permutation(len(content))[:60]:
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        checkpoint.write_bytes(bytes(damaged))
        try:
            picks = novelselect(ROWS, **_settings(), checkpoint=checkpoint)
        except ValueError as error:
            assert "picks.parquet" in str(error)
            refused += 1
        else:
            assert_same(picks, expected)
    assert refused


def test_numbers_from_numpy_can_be_saved(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"budget": np.float32(300), "seed": np.int64(3), "proximity_power": np.float64(1)}
    picks = novelselect(ROWS, cost=COST, **numbers, checkpoint=tmp_path / "picks.parquet")
    assert_same(picks, novelselect(ROWS, cost=COST, budget=300, seed=3))
