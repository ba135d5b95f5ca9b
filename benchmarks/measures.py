"""Time NovelSum against a large pool, all measures of vectors and words, and NovelSum of a large set, with peak memory.

    python -m benchmarks.measures 'data/*' --rows 396000

Embeds the files (vectors are kept in the cache folder); the large pools are made of them by perturbed repetition. Every
case runs in a process of its own, so that its peak memory is its own. Prints the machine and a Markdown table.
"""

import argparse
import glob
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pool import perturbed_pool
from benchmarks.timing import timed
from novelsum_dagster.cli.oneshot import embedded_files
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.measures import MEASURES, Evaluator, Samples, measure_sets
from novelsum_dagster.diversity.novelsum import Powers, novelsum, novelsum_grid
from novelsum_dagster.settings import Embedding, Measures, NovelSum, Pool, Source

_GRID: dict[str, Any] = {
    "neighbors": (5, 10),
    "density_powers": (0, 0.25, 0.5),
    "proximity_powers": (0, 1, 2),
}
"""The 18 settings of the published code's defaults."""


def main() -> None:
    """Embed, run every case in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files or globs of real samples")
    parser.add_argument("--rows", type=int, default=396_000, help="rows of the large pool")
    parser.add_argument("--size", type=int, default=10_000, help="samples of the set that is measured")
    parser.add_argument("--large", type=int, default=100_000, help="rows of the set that is measured against itself")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of one setting and 18")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps({**CASES[arguments.case](arguments), "peak": _peak()}))
        return
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as folder:
        _embed(arguments.files, Path(folder))
        print(f"{date.today()}, {platform.machine()}, {usable_processors()} cores, {platform.python_version()}\n")
        print("| what | seconds | peak, GiB | |\n|---|---|---|---|", flush=True)
        for case in CASES:
            command = [sys.executable, "-m", "benchmarks.measures", *sys.argv[1:], "--case", case, "--folder", folder]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(f"| {found['what']} | {found['seconds']:.1f} | {found['peak']:.1f} | {found['note']} |", flush=True)


def _embed(patterns: list[str], folder: Path) -> None:
    paths = sorted(path for pattern in patterns for path in glob.glob(pattern))
    pool = Pool(sources=tuple(Source(path=str(Path(path).resolve())) for path in paths))
    with embedded_files(pool, Embedding(), LogReporter(lambda line: print(line, file=sys.stderr))) as files:
        samples = Samples(files.vectors, files.snapshot.samples(files.root, ["text"])["text"].to_pylist())
        np.save(folder / "vectors.npy", samples.vectors)
        (folder / "texts.json").write_text(json.dumps(samples.texts))


def _large_pool(arguments: argparse.Namespace) -> dict[str, Any]:
    """One setting and 18, in turn, of a set against the large pool."""
    pool = perturbed_pool(_vectors(arguments), arguments.rows)
    target = pool[_drawn(len(pool), arguments.size)]
    pairs = []
    for _ in range(arguments.repeat):
        one, found = timed(lambda: novelsum(target, pool))
        many, grid = timed(lambda: novelsum_grid(target, pool, **_GRID))
        assert abs(grid[Powers(10, 0.5, 1)].value / found.value - 1) < 1e-9
        pairs.append((one, many))
    ratio = statistics.median(many / one for one, many in pairs)
    return {
        "what": f"NovelSum, {arguments.size:,} against {arguments.rows:,} x {pool.shape[1]}",
        "seconds": statistics.median(one for one, _ in pairs),
        "note": f"18 settings take {ratio:.2f} times one (median of {arguments.repeat} pairs)",
    }


def _one_sort(arguments: argparse.Namespace) -> dict[str, Any]:
    """The ranks alone: our one pass for 18 settings against the published procedure for one."""
    vectors = _vectors(arguments)
    target = vectors[_drawn(len(vectors), arguments.size)]
    factor = density(target).factor()
    seconds, _ = timed(lambda: novelsum_grid(target, **_GRID))
    plain, value = timed(lambda: _plainly(target, factor))
    assert abs(value / novelsum(target).value - 1) < 1e-5
    return {
        "what": f"NovelSum at 18 settings, {arguments.size:,} x {target.shape[1]} against itself",
        "seconds": seconds,
        "note": f"one setting by a sort and a weighted mean a row, as published: {plain:.1f} s, density not counted",
    }


def _all_measures(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measures but G-Vendi of a set with texts, against the pool that it is from."""
    vectors, texts = _vectors(arguments), json.loads((arguments.folder / "texts.json").read_text())
    rows = _drawn(len(vectors), arguments.size)
    samples = Samples(vectors[rows], [texts[row] for row in rows])
    reporter = LogReporter(lambda line: None)

    def measured() -> Any:
        evaluator = Evaluator(vectors, NovelSum(), Measures())
        return measure_sets({"set": samples}, evaluator, reporter=reporter)

    seconds, found = timed(measured)
    assert set(found.sets[0].values) == set(MEASURES) - {"g_vendi"}
    return {
        "what": f"all measures but G-Vendi with intervals, {arguments.size:,} x {vectors.shape[1]} with texts",
        "seconds": seconds,
        "note": f"against the pool of {len(vectors):,}; libraries are loaded within",
    }


def _large_set(arguments: argparse.Namespace) -> dict[str, Any]:
    """A large set against itself."""
    rows = perturbed_pool(_vectors(arguments), arguments.large)
    seconds, _ = timed(lambda: novelsum(rows))
    return {"what": f"NovelSum, {arguments.large:,} x {rows.shape[1]} against itself", "seconds": seconds, "note": ""}


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "large_pool": _large_pool,
    "one_sort": _one_sort,
    "all_measures": _all_measures,
    "large_set": _large_set,
}


def _plainly(rows: NDArray[np.float32], factor: NDArray[np.float64]) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = (1 - units @ units.T) * factor[:, None]
    weights = 1 / np.arange(1, len(rows) + 1)

    def weighted(row: NDArray[np.float64]) -> float:
        return float(np.average(row[np.argsort(row)], weights=weights))

    return float(np.mean(np.apply_along_axis(weighted, 1, distances)))


def _vectors(arguments: argparse.Namespace) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(arguments.folder / "vectors.npy", allow_pickle=False)
    return vectors


def _drawn(size: int, count: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
