"""The engines give one result: embedding, density and selection on a real Ray are those of this process, bit for bit.

One Ray for all tests: it takes seconds to start, and every worker a second or two.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.spread import in_turn
from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.growth import nearest_in_pool
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.embedding.store import embed, load_vectors
from novelsum_dagster.engine.engine import LocalEngine, engine_of
from novelsum_dagster.engine.ray_engine import RayEngine
from novelsum_dagster.selection import Picks, novelselect
from novelsum_dagster.selection.novelselect import NovelSelectOptions, local_search
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.selection.scoring import Side
from novelsum_dagster.selection.search.base import Candidates, Round
from novelsum_dagster.settings import Embedding, Ray, Settings
from tests.machines import kill_ray_head
from tests.unit.test_checkpoint import COST, KINDS, QUALITY, ROWS, K, N

FACTOR = np.random.default_rng(9).uniform(0.5, 3, N)


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two workers on a Ray of this machine."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Other tests of this process may have left another.
    yield RayEngine(Ray())
    import ray

    ray.shutdown()
    signal.signal(signal.SIGTERM, before)


def _workers() -> list[psutil.Process]:
    """Return the processes of Ray's workers that hold something, the oldest first."""
    below = psutil.Process().children(recursive=True)
    return sorted((one for one in below if one.name().startswith("ray::_Worker")), key=lambda one: one.create_time())


def _require_same(picks: Picks, others: Picks) -> None:
    for name in ("indices", "score", "runner_up", "runner_up_score", "nearest_pick", "nearest_distance", "quality"):
        assert np.array_equal(getattr(picks, name), getattr(others, name), equal_nan=True), name


def _require_bounds(picks: Picks, exact: Picks) -> None:
    """What is known of the others at the end need not be as tight, but must hold, of as many."""
    found, known = picks.remaining, exact.remaining
    assert found is not None and known is not None
    assert np.array_equal(np.isfinite(found.score), np.isfinite(known.score))
    both = found.is_exact & known.is_exact & (found.at == known.at)
    assert np.array_equal(found.score[both], known.score[both], equal_nan=True)
    looser = known.is_exact & (found.at == known.at) & ~found.is_exact
    assert (found.score[looser] >= known.score[looser]).all()


@pytest.mark.parametrize(
    "kind",
    ["quality", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("given", "quotas", "budget and quotas"))],
)
def test_a_selection_over_shards_is_the_same(engine: RayEngine, kind: str) -> None:
    here = novelselect(ROWS, density_factor=FACTOR, **KINDS[kind])
    there = novelselect(ROWS, density_factor=FACTOR, verify=2, search_on=engine.search, **KINDS[kind])
    _require_same(there, here)
    _require_bounds(there, here)


@pytest.mark.parametrize("side", ["column", "row"])
def test_a_selection_by_another_side_over_shards_is_the_same(engine: RayEngine, side: Side) -> None:
    options: dict[str, Any] = {"density_factor": FACTOR, "density_side": side, "k": 60, "quality": QUALITY}
    _require_same(novelselect(ROWS, verify=2, search_on=engine.search, **options), novelselect(ROWS, **options))


@examples(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 60),
    cut=st.floats(0, 1),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 1.0, 40.0]),
    has_quality=st.booleans(),
    repeats=st.booleans(),
)
def test_the_best_of_two_parts_are_the_best_of_all(
    n: int, cut: float, seed: int, spread: float, has_quality: bool, repeats: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    if repeats:
        rows = rows[rng.integers(0, n // 2 + 1, n)]
    units = unit_rows(rows)
    factor, quality = 10.0 ** rng.uniform(-spread, spread, n), rng.uniform(0.1, 9, n) if has_quality else None
    weights = rank_weights(min(n, 12), 1.0)
    everything = Candidates.of(units, factor, quality)
    border = 1 + int(cut * (n - 2))
    marks = [(0, border), (border, n)]
    whole = local_search(everything, weights, "cpu", 1)
    parts = [local_search(everything.part(*mark), weights, "cpu", 1) for mark in marks]
    pick = int(rng.integers(n))
    for _ in weights[1:]:
        whole.add(pick)
        for part, (first, last) in zip(parts, marks, strict=True):
            part.take(everything.rows[pick], everything.factor[pick], pick - first if first <= pick < last else -1)
        found, merged = whole.best(), Round()
        for part, (first, _) in zip(parts, marks, strict=True):
            two = part.best()
            if two is not None:
                merged.merge(two, first)
        best = merged.found()
        assert found is not None and best is not None
        unit = everything.unit
        assert (best.best, best.second) == (found.best, found.second)
        assert np.array_equal(
            [best.score * unit, best.second_score * unit], [found.score, found.second_score], equal_nan=True
        )
        pick = found.best
    for search in (whole, *parts):
        search.close()


@pytest.mark.slow
def test_lost_workers_change_nothing(engine: RayEngine) -> None:
    here = novelselect(ROWS, density_factor=FACTOR, **KINDS["quotas"])
    at = sorted(np.random.default_rng(0).choice(np.arange(10, K, 10), 3, replace=False).tolist())
    killed: list[int] = []

    def kill(done: int, _: int) -> None:
        if done in at:
            worker = _workers()[-2:][len(killed) % 2]
            killed.append(worker.pid)
            worker.kill()

    there = novelselect(ROWS, density_factor=FACTOR, search_on=engine.search, progress=kill, **KINDS["quotas"])
    assert len(set(killed)) == 3
    _require_same(there, here)


@pytest.mark.slow
def test_parts_on_workers_are_those_of_this_process(engine: RayEngine) -> None:
    options: dict[str, Any] = {"partitions": 5, "density_factor": FACTOR, "quality": QUALITY}
    here = partitioned(ROWS, 30, **options)
    on_ray = NovelSelectOptions(search_on=engine.search)
    _require_same(partitioned(ROWS, 30, spread=engine.spread, options=on_ray, **options), here)


@pytest.mark.slow
def test_density_is_the_same(engine: RayEngine) -> None:
    rows = np.random.default_rng(4).normal(size=(9000, 12)).astype(np.float32)
    rows[:500] = rows[500:1000]
    kinds: tuple[dict[str, Any], ...] = ({"neighbor_policy": "self"}, {"index": "ivf", "min_recall": 0.5})
    for options in kinds:
        here, there = density(rows, **options), density(rows, spread=engine.spread, **options)
        assert here.index == there.index and here.recall == there.recall
        assert np.array_equal(here.mean_squared_distance, there.mean_squared_distance)
    before = nearest_in_pool(rows[:8000], 10)
    own, others = (nearest_in_pool(rows, 10, before.nearest, spread=one) for one in (in_turn, engine.spread))
    assert "new against all" in others.searched and others.searched == own.searched
    assert np.array_equal(others.nearest.squared, own.nearest.squared)
    assert np.array_equal(others.nearest.points, own.nearest.points)


def test_vectors_are_the_same(engine: RayEngine, tmp_path: Path) -> None:
    words = (Path(__file__).parents[2] / "README.md").read_text().split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, length)) for length in rng.integers(2, 40, 300)]
    ids = [str(number) for number in range(len(texts))]
    settings = Embedding(shard_size=100)
    here = embed(tmp_path / "here", settings, ids, texts, "pool")
    committed: list[str] = []
    there = embed(
        tmp_path / "there",
        settings,
        ids,
        texts,
        "pool",
        committed=lambda *names: committed.extend(names),
        encoder_of=engine.encoder,
    )
    assert there == here
    assert len(list((tmp_path / "there" / there.folder).glob("*.parquet"))) == 3 and len(committed) >= 3
    own, others = (load_vectors(tmp_path / name / here.folder, ids) for name in ("here", "there"))
    assert np.array_equal(own, others)


@pytest.mark.slow
def test_work_of_a_lost_worker_is_done_again(engine: RayEngine, tmp_path: Path) -> None:
    def once(number: int) -> Callable[[int], int]:
        def ask(shared: int) -> int:
            marker = tmp_path / str(number)
            if number % 3 == 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return shared * number

        return ask

    assert list(engine.spread(7, map(once, range(8)))) == [7 * number for number in range(8)]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_work_raises_arrives_as_it_is(engine: RayEngine) -> None:
    def ask(_: None) -> None:
        raise InputError("a field is missing")

    with pytest.raises(InputError, match=r"^a field is missing$"):
        list(engine.spread(None, [ask]))


@pytest.mark.slow
def test_work_waits_for_room(engine: RayEngine, caplog: pytest.LogCaptureFixture) -> None:
    list(engine.spread(None, []))
    import ray

    class Other:
        def there(self) -> None: ...

    there: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    other: Any = ray.remote(Other).options(num_cpus=there["CPU"]).remote()
    ray.get(other.there.remote())
    threading.Timer(8, ray.kill, [other]).start()
    assert list(engine.spread(2, [lambda shared: shared + 1])) == [3]
    assert [record.message for record in caplog.records] == [
        "Ray: waiting for room: the workers need 1 CPUs in total, of 0"
    ]


# Ray Data keeps one of its workers after this.
@pytest.mark.slow
def test_a_block_that_ends_every_worker_ends_the_embedding(engine: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, _: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    encoder = engine.encoder(Embedding(), None, "cpu")
    monkeypatch.setattr("novelsum_dagster.engine.ray_embedding._Embedder", Lost)
    with pytest.raises(InputError, match="workers were lost repeatedly"):
        list(encoder.batches(["one", "two"]))


def test_workers_have_the_cards_that_ray_gives_them() -> None:
    none, some = RayEngine(Ray()), RayEngine(Ray(gpus_per_worker=0.5))
    assert [none.device(name) for name in ("auto", "cpu", "mps")] == ["cpu", "cpu", "mps"]
    assert [some.device(name) for name in ("auto", "cpu", "cuda:1")] == ["auto", "cpu", "cuda"]
    with pytest.raises(InputError, match=r"device cuda on Ray: ray\.gpus_per_worker is 0"):
        none.device("cuda")


@pytest.mark.slow
def test_a_worker_that_is_always_lost_ends_the_work(engine: RayEngine) -> None:
    def ask(_: None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="workers were lost repeatedly"):
        list(engine.spread(None, [ask]))


def test_too_many_workers_are_refused(engine: RayEngine) -> None:
    with pytest.raises(InputError, match=r"999 workers need 499\.5 CPUs .*; lower ray\.workers"):
        RayEngine(Ray(workers=999)).search(Candidates.of(ROWS, FACTOR, None), np.ones(3), "cpu")
    with pytest.raises(InputError, match="1 GPUs in total"):
        list(RayEngine(Ray(workers=1, gpus_per_worker=1)).spread(None, []))


def test_ray_of_this_machine_listens_to_this_machine_only(engine: RayEngine) -> None:
    list(engine.spread(None, []))
    listening = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # It ended meanwhile.
            listening += [one for one in process.net_connections("tcp") if one.status == "LISTEN"]
    assert listening
    assert all(one.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1") for one in listening)


def test_sigterm_is_answered_as_before(engine: RayEngine) -> None:
    list(engine.spread(None, []))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# It ends the Ray of the others, so it comes last.
@pytest.mark.slow
def test_a_lost_head_is_told_and_the_picks_are_kept(engine: RayEngine, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.parquet"
    options: dict[str, Any] = {"cost": COST, "budget": 1200.0, "density_factor": FACTOR}

    def kill(done: int, _: int) -> None:
        if done > 300:
            kill_ray_head()
            # Asked at every answer, not every few seconds.
            engine._cluster._looked = 0.0

    with pytest.raises(InputError, match=r"the Ray cluster is lost: its head .* Finished work is kept"):
        novelselect(ROWS, search_on=engine.search, checkpoint=checkpoint, progress=kill, **options)
    assert checkpoint.exists()
    _require_same(novelselect(ROWS, checkpoint=checkpoint, **options), novelselect(ROWS, **options))
    assert not checkpoint.exists()


def test_a_cluster_that_does_not_answer_is_named() -> None:
    import ray

    ray.shutdown()  # Else Ray stays with the one that it has.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=f"ray.address: {address} does not respond"):
        list(RayEngine(Ray(address=address)).spread(None, []))


def test_settings_choose_the_engine() -> None:
    assert isinstance(engine_of(Settings()), LocalEngine)
    assert isinstance(engine_of(Settings(engine="ray")), RayEngine)
