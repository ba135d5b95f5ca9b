"""Time the density of a large pool made of real embeddings, and measure its recall anew.

    python -m benchmarks.density EMBEDDINGS.npy --rows 396000

Prints the machine and a Markdown table: seconds of every part, recall against a plain exact search for queries of
another seed than those that tuned the index, and the index.
"""

import argparse
import importlib
import platform
import resource
import time
from datetime import date
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.pool import perturbed_pool
from novelsum_dagster.common.processors import usable_processors

# The package has a function of the same name.
module = importlib.import_module("novelsum_dagster.diversity.density")

_QUERIES = 2000
_SEED = 7
"""Of the queries; the index is tuned with seed 42."""


class Parts:
    """Wraps functions of the module: seconds that each took, and what it returned last."""

    def __init__(self, *names: str) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        self.returned: dict[str, Any] = {}
        for name in names:
            setattr(module, name, self._timed(name, getattr(module, name)))

    def _timed(self, name: str, function: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            self.returned[name] = function(*arguments)
            self.seconds[name] = time.perf_counter() - started
            return self.returned[name]

        return timed


def main() -> None:
    """Make the pool, time its density, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help="real embeddings, (m, d), as .npy")
    parser.add_argument("--rows", type=int, default=396_000)
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("--index", default="auto")
    parser.add_argument("--min-recall", type=float, default=0.99)
    arguments = parser.parse_args()
    pool = perturbed_pool(np.load(arguments.embeddings, allow_pickle=False), arguments.rows)
    parts = Parts("distinct_rows", "_tuned_lists", "_measured")
    started = time.perf_counter()
    found = module.density(pool, neighbors=arguments.neighbors, index=arguments.index, min_recall=arguments.min_recall)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    search = parts.returned.get("_tuned_lists")
    recall = recall_anew(search, parts.returned["distinct_rows"][0], arguments.neighbors) if search else 1.0
    print(f"{date.today()}, {platform.machine()}, {usable_processors()} cores, {platform.python_version()}\n")
    print("| rows | K | index | duplicates out, s | building and tuning, s | search, s | all, s | recall told |"
          " recall anew | peak, GiB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    part = " | ".join(f"{value:.1f}" for value in (*parts.seconds.values(), seconds))
    print(
        f"| {len(pool):,} x {pool.shape[1]} | {arguments.neighbors} | {found.index} | {part} | {found.recall:.4f} |"
        f" {recall:.4f} | {peak:.1f} |"
    )


def recall_anew(search: Any, points: NDArray[np.float32], neighbors: int) -> float:
    """Return the part of the true neighbours, by plain exact search, that the index finds; the first is dropped."""
    rows = points[np.random.default_rng(_SEED).choice(len(points), min(_QUERIES, len(points)), replace=False)]
    _, true = faiss.knn(rows, points, neighbors + 1)
    _, ids = search.search(rows, neighbors + 1)
    shared = [len(np.intersect1d(one, other)) for one, other in zip(true[:, 1:], ids[:, 1:], strict=True)]
    return sum(shared) / true[:, 1:].size


if __name__ == "__main__":
    main()
