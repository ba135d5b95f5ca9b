"""Compare the engines on one pool: selection here, over shards on Ray, with workers that are killed, and in parts.

    python -m benchmarks.engines EMBEDDINGS.npy -k 1000
    python -m benchmarks.engines EMBEDDINGS.npy -k 1000 --kills 10 --partitions 8

Ray is started on this machine with two workers. Picks and scores of all but the last must be the same; of the last,
which is an approximation, NovelSum of the subset is compared. Prints a Markdown table. Fails where picks differ.
"""

import argparse
import platform
import threading
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.diversity import density
from novelsum_dagster.diversity.novelsum import NovelSumOptions, novelsum_with_densities
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.engine.ray_engine import RayEngine
from novelsum_dagster.selection import Picks, novelselect
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.partitioned import partitioned
from novelsum_dagster.settings import Ray


def main() -> None:
    """Prepare the pool, select in every way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help=".npy file, (n, d)")
    parser.add_argument("-k", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10, help="selections during which a worker is killed")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which they are killed")
    arguments = parser.parse_args()
    rows = unit_rows(np.load(arguments.embeddings).astype(np.float32))
    factor = density(rows).factor(0.5)
    k, engine = arguments.k, RayEngine(Ray())
    print(f"{date.today()}, {platform.machine()}, {usable_processors()} cores, {platform.python_version()}\n")
    print(f"| {len(rows):,} x {rows.shape[1]}, k = {k:,} | seconds | picks and scores | NovelSum |\n|---|---|---|---|")

    novelselect(rows[:500].copy(), 50, density_factor=factor[:500])  # Compiles.
    here, seconds = _timed(lambda: novelselect(rows, k, density_factor=factor))
    _line("in this process", seconds, here, here, rows, factor)
    list(engine.spread(None, []))  # Starts Ray.
    clock = _Clock()
    there, seconds = _timed(
        lambda: novelselect(rows, k, density_factor=factor, search_on=engine.search, progress=clock.tick)
    )
    _line("over two shards on Ray, with the start of the workers", seconds, there, here, rows, factor)
    later, picks_made = clock.span()
    own = _Clock()
    novelselect(rows, k, density_factor=factor, threads=1, progress=own.tick)
    one, _ = own.span()
    rng = np.random.default_rng(arguments.seed)
    for at, after in zip(
        rng.integers(10, k - 10, arguments.kills), rng.uniform(0, 0.005, arguments.kills), strict=True
    ):
        killed, seconds = _timed(partial(_with_kill, engine, rows, factor, k, int(at), float(after)))
        _line(f"a worker killed {1000 * after:.1f} ms after pick {at:,}", seconds, killed, here, rows, factor)
    in_parts = partial(partitioned, rows, k, partitions=arguments.partitions, density_factor=factor)
    for name, work in (
        ("one after the other", in_parts),
        (
            "side by side on Ray",
            partial(in_parts, spread=engine.spread, options=NovelSelectOptions(search_on=engine.search)),
        ),
    ):
        parts, seconds = _timed(work)
        _line(f"in {arguments.partitions} parts, {name}", seconds, parts, here, rows, factor, may_differ=True)
    print(
        f"\nA pick, the first ten left out: {1000 * later / picks_made:.2f} ms over two shards,"
        f" {1000 * one / picks_made:.2f} ms in this process with one thread."
    )


class _Clock:
    """Notes when picks were made."""

    def __init__(self) -> None:
        self._at: list[tuple[int, float]] = []

    def tick(self, done: int, _: float) -> None:
        self._at.append((int(done), time.perf_counter()))

    def span(self) -> tuple[float, int]:
        """Return the seconds from the first note to the last, and the picks between."""
        (first, start), (last, end) = self._at[0], self._at[-1]
        return end - start, last - first


def _timed(work: Callable[[], Picks]) -> tuple[Picks, float]:
    started = time.perf_counter()
    picks = work()
    return picks, time.perf_counter() - started


def _with_kill(
    engine: RayEngine, rows: NDArray[np.float32], factor: NDArray[np.float64], k: int, at: int, after: float
) -> Picks:
    """Select over shards; some seconds after so many picks one of the workers is killed."""
    killers: list[threading.Timer] = []

    def kill() -> None:
        workers = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::_Worker")]
        workers[at % len(workers)].kill()

    def watch(done: int, _: float) -> None:
        if done >= at and not killers:
            killers.append(threading.Timer(after, kill))
            killers[0].start()

    picks = novelselect(rows, k, density_factor=factor, search_on=engine.search, progress=watch)
    killers[0].join()
    return picks


def _line(
    name: str,
    seconds: float,
    picks: Picks,
    here: Picks,
    rows: NDArray[np.float32],
    factor: NDArray[np.float64],
    may_differ: bool = False,
) -> None:
    same = all(
        np.array_equal(getattr(picks, field), getattr(here, field), equal_nan=True)
        for field in ("indices", "score", "runner_up", "runner_up_score")
    )
    if not same and not may_differ:
        raise SystemExit(f"{name}: the picks differ")
    common = len(np.intersect1d(picks.indices, here.indices))
    value, exact = (_novelsum(rows, factor, one.indices) for one in (picks, here))
    words = "the same" if same else f"{common:,} of {len(here.indices):,} in common"
    print(f"| {name} | {seconds:.2f} | {words} | {value:.6f} ({value / exact - 1:+.3%}) |", flush=True)


def _novelsum(rows: NDArray[np.float32], factor: NDArray[np.float64], picks: NDArray[np.int64]) -> float:
    (found,) = novelsum_with_densities(rows[picks], {(10, 0.5): factor[picks]}, NovelSumOptions()).values()
    return found.value


if __name__ == "__main__":
    main()
