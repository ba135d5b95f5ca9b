"""What every step costs at any size, from constants measured here, and what the exchange of every pick costs.

    python -m benchmarks.scaling EMBEDDINGS.npy 'data/*' --price 0.05

Prints Markdown: the constants; time, memory, traffic and cost at 1e6, 1e7 and 1e9 samples; and a simulation of
NovelSelect over 2 to 64 workers, in which every worker's part is really searched, one after the other on one core, and
the exchange is reckoned: what a message costs the driver, the round trip of the network and its bandwidth. The last
columns reckon larger pools by the constants, with workers that are machines like this one.
"""

import argparse
import glob
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.pool import perturbed_pool
from benchmarks.timing import timed
from novelsum_dagster.cli.needs import Size, plan
from novelsum_dagster.common.memory import readable_bytes
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import no_progress
from novelsum_dagster.diversity import density, novelsum
from novelsum_dagster.diversity.density import index_bytes
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.embedding.encoder import load_encoder, token_counter
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.selection import novelselect
from novelsum_dagster.selection.novelselect import local_search
from novelsum_dagster.selection.search.base import Candidates, Search
from novelsum_dagster.settings import Embedding, Pool, Selection, Settings, Source

SIZES = (10**6, 10**7, 10**9)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
_EMBEDDED = 512
_PAIRS = 20_000
_LISTS = 100_000
_PICKS = 500
_HOUR = 3600
_BYTES = 8
"""Of a score or an index in a message."""


@dataclass(frozen=True)
class Constants:
    """Seconds on this machine, all cores.

    Attributes:
        reading: a sample, near-duplicate search and counting of tokens included.
        embedding: a sample.
        exact: a pair of rows, for density by exact search.
        lists: for density by the tuned index of n rows, times n^1.5.
        novelty: a pair of rows, for NovelSum of the pool.
        pick, pick_row: a pick, and each row that it is chosen from.
    """

    reading: float
    embedding: float
    exact: float
    lists: float
    novelty: float
    pick: float
    pick_row: float


def main() -> None:
    """Measure, then print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help="real embeddings, (m, d), as .npy")
    parser.add_argument("files", nargs="+", help="files or globs of real samples")
    parser.add_argument("-k", type=int, default=10_000)
    parser.add_argument("--price", type=float, default=0.05, help="of a core for an hour")
    # (2.82 - 0.79 / 2) / 2 ms of `benchmarks.engines` with two workers.
    parser.add_argument("--message", type=float, default=1.2e-3, help="seconds that a message costs the driver")
    parser.add_argument("--round-trip", type=float, default=2e-4, help="seconds")
    parser.add_argument("--bandwidth", type=float, default=1.25e9, help="bytes a second")
    arguments = parser.parse_args()
    paths = sorted(path for pattern in arguments.files for path in glob.glob(pattern))
    rows = unit_rows(perturbed_pool(np.load(arguments.embeddings, allow_pickle=False), _LISTS))
    constants = measure([Source(path=str(Path(path).resolve())) for path in paths], rows)
    cores = usable_processors()
    machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"
    print(f"{date.today()}, {machine}, d = {rows.shape[1]}\n")
    _print_constants(constants)
    _print_steps(constants, arguments.k, cores, arguments.price)
    _print_memory(rows.shape[1], arguments.k)
    _print_traffic(rows.shape[1], arguments.k)
    _print_exchange(rows, constants, arguments.message, arguments.round_trip, arguments.bandwidth)


def measure(sources: list[Source], rows: NDArray[np.float32]) -> Constants:
    """Return the constants: of text by the sources, of vectors by unit rows, (n, d)."""
    embedding = Embedding()
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as folder:
        pool, root = Pool(sources=tuple(sources)), Path(folder)
        reading, snapshot = timed(lambda: build_snapshot(pool, root, root, token_counter(embedding), no_progress))
        texts = snapshot.samples(root, ["text"])["text"].to_pylist()
    chosen = np.random.default_rng(0).permutation(len(texts))[:_EMBEDDED]
    encoder = load_encoder(embedding, None, "cpu")
    embedded, _ = timed(lambda: list(encoder.batches([texts[at] for at in chosen])))
    exact, few = timed(lambda: density(rows[:_PAIRS], index="exact"))
    lists, many = timed(lambda: density(rows[:_LISTS], index="ivf"))
    novelty, _ = timed(lambda: novelsum(rows[:_PAIRS]))
    novelselect(rows[:1000], 20)  # Compiles.
    factor = many.factor()
    small, _ = timed(lambda: novelselect(rows[:_PAIRS], _PICKS, density_factor=few.factor()))
    large, _ = timed(lambda: novelselect(rows[:_LISTS], _PICKS, density_factor=factor))
    pick_row = max(0.0, large - small) / _PICKS / (_LISTS - _PAIRS)
    return Constants(
        reading=reading / snapshot.read,
        embedding=embedded / len(chosen),
        exact=exact / _PAIRS**2,
        lists=lists / _LISTS**1.5,
        novelty=max(0.0, novelty - exact) / _PAIRS**2,
        pick=max(0.0, small / _PICKS - _PAIRS * pick_row),
        pick_row=pick_row,
    )


def _print_constants(constants: Constants) -> None:
    print("| constant | seconds |\n|---|---:|")
    for name, words in (
        ("reading", "a sample read, counted, compared with near-duplicates"),
        ("embedding", "a sample embedded"),
        ("exact", "a pair of rows, exact density"),
        ("lists", "density by the tuned index, times n^1.5"),
        ("novelty", "a pair of rows, novelty"),
        ("pick", "a pick"),
        ("pick_row", "a pick, for each row"),
    ):
        print(f"| {words} | {getattr(constants, name):.3g} |")


def _print_steps(constants: Constants, k: int, cores: int, price: float) -> None:
    print(f"\n| one machine of {cores} cores | " + " | ".join(f"{size:.0e}" for size in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    steps: dict[str, Callable[[float], float]] = {
        "reading": lambda n: n * constants.reading,
        "embedding": lambda n: n * constants.embedding,
        "density, exact": lambda n: n * n * constants.exact,
        "density, tuned index": lambda n: n**1.5 * constants.lists,
        "novelty of every sample": lambda n: n * n * constants.novelty,
        f"selection, k = {k:,}": lambda n: k * (constants.pick + n * constants.pick_row),
    }
    for name, seconds in steps.items():
        cells = (f"{_duration(seconds(n))}, {_cost(seconds(n) / _HOUR * cores * price)}" for n in SIZES)
        print(f"| {name} | {' | '.join(cells)} |")


def _print_memory(d: int, k: int) -> None:
    settings = Settings(device="cpu", selection=Selection(k=k))
    plans = [plan(Size(size, d), settings) for size in SIZES]
    shared = [plan(Size(size, d), settings, WORKERS[-1]) for size in SIZES]
    print(f"\n| memory here / on each of {WORKERS[-1]} workers; disk | " + " | ".join(f"{n:.0e}" for n in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    for needs, others in zip(zip(*plans, strict=True), zip(*shared, strict=True), strict=True):
        cells = [
            f"{readable_bytes(need.memory)} / {readable_bytes(other.worker) if other.worker else '-'};"
            f" {readable_bytes(need.disk)}"
            for need, other in zip(needs, others, strict=True)
        ]
        print(f"| {needs[0].step} | {' | '.join(cells)} |")


def _print_traffic(d: int, k: int) -> None:
    workers, neighbors = WORKERS[-1], Settings().novelsum.neighbors
    print(f"\n| between {workers} machines | " + " | ".join(f"{size:.0e}" for size in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    steps: dict[str, Callable[[int], int]] = {
        "embedding: texts out, vectors back": lambda n: Size(n, d).texts + 4 * n * d,
        "density: vectors and index to each, neighbours back": lambda n: (
            workers * (4 * n * d + index_bytes(n, d)) + 12 * n * (neighbors + 1)
        ),
        f"selection: a part to each, {k:,} exchanges": lambda n: 4 * n * d + k * workers * _exchanged(d),
    }
    for name, traffic in steps.items():
        print(f"| {name} | {' | '.join(readable_bytes(traffic(n)) for n in SIZES)} |")


def _exchanged(d: int) -> int:
    """Return the bytes that a pick takes to a worker, its row, factor and index, and back, the two best."""
    return 4 * (d + 2) + 4 * _BYTES


def _duration(seconds: float) -> str:
    for size, name in ((365 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} s"


def _cost(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 1 else f"${amount:.2f}"


def _print_exchange(
    rows: NDArray[np.float32], constants: Constants, message: float, round_trip: float, bandwidth: float
) -> None:
    d = rows.shape[1]
    candidates = Candidates.of(rows, density(rows, index="ivf").factor(), None)
    print(f"\n{len(rows):,} x {d}, {_PICKS} picks; a message {message * 1e6:.0f} us, a round trip")
    print(f"{round_trip * 1e6:.0f} us, {bandwidth / 1e9:.2f} GB/s\n")
    larger = SIZES[1:]
    print(
        "| workers | slowest part, ms | all parts, ms | exchange, ms | a pick, ms | times faster | bytes a pick |"
        + "".join(f" at {n:.0e}, ms |" for n in larger)
    )
    print("|---:|---:|---:|---:|---:|---:|---:|" + "---:|" * len(larger))
    alone, expected = 0.0, list[int]()
    for workers in WORKERS:
        slowest, together, picks = _searched(candidates, workers)
        assert picks == (expected := expected or picks)
        sent = workers * _exchanged(d) if workers > 1 else 0
        exchange = round_trip + workers * message + sent / bandwidth if workers > 1 else 0.0
        took = slowest + exchange
        alone = alone or took
        print(
            f"| {workers} | {1e3 * slowest:.2f} | {1e3 * together:.2f} | {1e3 * exchange:.2f} | {1e3 * took:.2f} |"
            f" {alone / took:.2f} | {sent:,} |"
            + "".join(f" {1e3 * (constants.pick + n / workers * constants.pick_row + exchange):,.1f} |" for n in larger)
        )


def _searched(candidates: Candidates, workers: int) -> tuple[float, float, list[int]]:
    """Return the seconds a pick of the slowest part, and of all parts together, each alone on one core; the picks."""
    marks = np.linspace(0, len(candidates.rows), workers + 1).astype(int).tolist()
    weights = rank_weights(_PICKS, 1.0)
    searches = [local_search(candidates.part(*ends), weights, "cpu", 1) for ends in pairwise(marks)]
    pick, slowest, together = 0, 0.0, 0.0
    picks: list[int] = []
    for _ in range(_PICKS - 1):
        took, found = [], []
        for search, (first, last) in zip(searches, pairwise(marks), strict=True):
            seconds, best = timed(partial(_step, search, candidates, pick, first, last))
            took.append(seconds)
            found.append(best)
        slowest, together = slowest + max(took), together + sum(took)
        pick = min(found)[1]
        picks.append(pick)
    for search in searches:
        search.close()
    return slowest / (_PICKS - 1), together / (_PICKS - 1), picks


def _step(search: Search, candidates: Candidates, pick: int, first: int, last: int) -> tuple[float, int]:
    """Take a pick and return the negative score and the index of the best of the part: the least of all is picked."""
    search.take(candidates.rows[pick], float(candidates.factor[pick]), pick - first if first <= pick < last else -1)
    found = search.best()
    assert found is not None
    return -found.score, found.best + first


if __name__ == "__main__":
    main()
