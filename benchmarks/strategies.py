"""Time the strategies: QDIT against submodlib, K-Center-Greedy against the memory's bandwidth, and the others.

    python -m benchmarks.strategies EMBEDDINGS.npy [--rows 396000 -k 10000]

Prints Markdown tables. QDIT runs at n = 10,000, k = 1,000 of the embeddings as they are; the others on a pool of
`--rows` rows made of them (`benchmarks.pool`).
"""

import argparse
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.pool import perturbed_pool
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.selection.strategies import select

_QDIT_SAMPLES = 10_000
_QDIT_PICKS = 1_000
_OTHERS = ("random", "duplicate", "farthest", "kmeans", "repr_filter")
_READS = 5


def main() -> None:
    """Print the machine and all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="a .npy of (samples, dimensions)")
    parser.add_argument("--rows", type=int, default=396_000, help="rows of the pool for all but QDIT")
    parser.add_argument("-k", type=int, default=10_000, help="picks of all but QDIT")
    arguments = parser.parse_args()
    cores = usable_processors()
    print(f"{date.today()}, {platform.machine()}, {cores} cores, Python {platform.python_version()}\n")
    embeddings = np.load(arguments.embeddings, allow_pickle=False)
    _compile(embeddings)
    compare_qdit(embeddings)
    pool = perturbed_pool(embeddings, arguments.rows)
    time_kcenter(pool, arguments.k)
    time_others(pool, arguments.k)


def compare_qdit(embeddings: NDArray[Any]) -> None:
    """Print objective and seconds of QDIT and of submodlib's lazy greedy facility location."""
    from submodlib import FacilityLocationFunction  # type: ignore[import-untyped]

    n, k = min(_QDIT_SAMPLES, len(embeddings)), min(_QDIT_PICKS, len(embeddings))
    rows = embeddings[np.sort(np.random.default_rng(0).permutation(len(embeddings))[:n])]
    units = unit_rows(np.ascontiguousarray(rows, dtype=np.float32))
    kernel = np.maximum(units @ units.T, 0)
    picks, ours = _timed(lambda: select("qdit", rows, k, density_factor=np.ones(n)).indices)
    function, passing = _timed(
        lambda: FacilityLocationFunction(n=n, mode="dense", sijs=kernel, separate_rep=False, pybind_mode="array")
    )
    greedy, theirs = _timed(lambda: function.maximize(budget=k, optimizer="LazyGreedy", show_progress=False))
    objective = kernel[picks].max(0).sum(dtype=np.float64)
    their_objective = kernel[[index for index, _ in greedy]].max(0).sum(dtype=np.float64)
    print(f"QDIT against submodlib, n = {n:,}, k = {k:,}, d = {units.shape[1]}\n")
    print("| | objective | seconds | times QDIT's |\n|---|---|---|---|")
    print(f"| QDIT, cosines included | {objective:.6f} | {ours:.2f} | 1 |")
    for name, seconds in (("without", theirs), ("with", theirs + passing)):
        print(
            f"| submodlib LazyGreedy, cosines ready, {name} passing them on | {their_objective:.6f}"
            f" | {seconds:.2f} | {seconds / ours:.2f} |"
        )
    print(f"\nrelative difference of the objectives: {objective / their_objective - 1:.1e}\n")


def time_kcenter(pool: NDArray[np.float32], k: int) -> None:
    """Print the time of K-Center-Greedy, and what a plain pass over the pool per pick would take at full bandwidth."""
    bandwidth = max(_read_rate(pool) for _ in range(_READS))
    _, seconds = _timed(lambda: select("kcenter", pool, k, density_factor=np.ones(len(pool))))
    rate = pool.nbytes * (k - 1) / seconds
    print(f"K-Center-Greedy, {len(pool):,} x {pool.shape[1]}, k = {k:,}\n")
    print("| | |\n|---|---|")
    print(f"| seconds | {seconds:.1f} |")
    print(f"| memory bandwidth, plain threaded read of the pool | {bandwidth / 1e9:.1f} GB/s |")
    print(f"| one plain pass per pick at that bandwidth | {pool.nbytes * (k - 1) / bandwidth:.1f} s |")
    print(f"| bandwidth that plain passes would need for the same time | {rate / 1e9:.1f} GB/s |")
    print(f"| fraction of the bandwidth | {rate / bandwidth:.2f} |\n")


def time_others(pool: NDArray[np.float32], k: int) -> None:
    """Print the seconds of the strategies that are neither QDIT, K-Center-Greedy nor NovelSelect."""
    print(f"The others, {len(pool):,} x {pool.shape[1]}, k = {k:,}\n\n| strategy | seconds |\n|---|---|")
    for name in _OTHERS:
        _, seconds = _timed(partial(select, name, pool, k, density_factor=np.ones(len(pool))))
        print(f"| {name} | {seconds:.2f} |")


def _compile(embeddings: NDArray[Any]) -> None:
    """Have numba compile before anything is timed."""
    for name in ("qdit", "kcenter"):
        select(name, embeddings[:64], 8, density_factor=np.ones(64))
    _read_rate(np.ones((64, 4), np.float32))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _read_rate(pool: NDArray[np.float32]) -> float:
    """Return the bytes per second at which all cores together read the array once."""
    values = pool.reshape(-1)
    cores = usable_processors()
    parts = [values[start:stop] for start, stop in pairwise(np.linspace(0, len(values), cores + 1).astype(int))]
    with ThreadPoolExecutor(cores) as threads:
        _, seconds = _timed(lambda: list(threads.map(_sum, parts)))
    return pool.nbytes / seconds


@njit(nogil=True, fastmath=True)
def _sum(values: Any) -> Any:
    # An index, not an iterator: only so does the compiler use vector instructions.
    total = np.float32(0)
    for position in range(len(values)):
        total += values[position]
    return total


if __name__ == "__main__":
    main()
