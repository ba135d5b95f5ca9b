"""Time exact NovelSelect against another implementation of it, in one run, on the same vectors and density.

    python -m benchmarks.selection EMBEDDINGS.npy -k 5000
    python -m benchmarks.selection EMBEDDINGS.npy --rows 396000 -k 10000 --baseline path/to/novelselect_draft.py
    python -m benchmarks.selection EMBEDDINGS.npy -k 300 --plain

Each one runs in a process of its own, several times in turn, so that both see the same noise. `--baseline` names a
module with `novelselect_draft(unit_rows, density_factor, k, first) -> (picks, evaluations)`; `--plain` is the
published way, every row sorted anew at every pick. Prints a Markdown table: seconds, ratio, peak memory, whether the
picks are the same (where they differ, whether both picks had the same score, up to rounding).
"""

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pool import perturbed_pool
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.diversity import density
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.selection import novelselect
from novelsum_dagster.selection.search.exact import exact_scores

_SEED = 42
_TIE = 2e-5
"""Scores of float32 distances that differ by less, relatively, depend on the order of sums."""


def main() -> None:
    """Prepare the pool, time all in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help=".npy file, (n, d)")
    parser.add_argument("--rows", type=int, help="make so many rows of them by perturbed repetition")
    parser.add_argument("-k", type=int, default=5000)
    parser.add_argument("--baseline", type=Path, help="a Python file with novelselect_draft")
    parser.add_argument("--plain", action="store_true", help="also time the published way")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _run_one(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as folder:
        prepared = Path(folder) / "rows.npy"
        rows = np.load(arguments.embeddings).astype(np.float32)
        if arguments.rows:
            rows = perturbed_pool(rows, arguments.rows)
        rows = unit_rows(rows)
        factor = density(rows).factor(0.5)
        np.save(prepared, rows)
        np.save(Path(folder) / "factor.npy", factor)
        names = ["novelselect", *(["baseline"] if arguments.baseline else []), *(["plain"] if arguments.plain else [])]
        done: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(arguments.repeat):
            for name in names:
                done[name].append(_in_a_process(arguments, prepared, name))
        _print_table(arguments.k, rows, factor, done)


def _in_a_process(arguments: argparse.Namespace, prepared: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.selection", str(prepared), "-k", str(arguments.k), "--one", name]
    if arguments.baseline:
        command += ["--baseline", str(arguments.baseline)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return dict(json.loads(output))


def _run_one(arguments: argparse.Namespace) -> None:
    rows, factor = np.load(arguments.embeddings), np.load(arguments.embeddings.with_name("factor.npy"))
    pick = {"novelselect": _ours, "baseline": _baseline, "plain": _plain}[arguments.one]
    small = min(200, len(rows))
    pick(arguments, rows[:small].copy(), factor[:small].copy(), min(20, small))  # Compiles.
    started = time.perf_counter()
    picks = pick(arguments, rows, factor, arguments.k)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak": peak, "picks": picks.tolist()}))


def _ours(_: argparse.Namespace, rows: NDArray[np.float32], factor: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    return novelselect(rows, k, density_factor=factor, seed=_SEED).indices


def _baseline(
    arguments: argparse.Namespace, rows: NDArray[np.float32], factor: NDArray[np.float64], k: int
) -> NDArray[np.int64]:
    spec = importlib.util.spec_from_file_location("baseline", arguments.baseline)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run: Callable[..., Any] = _baseline.__dict__.setdefault("run", module.novelselect_draft)
    return np.asarray(run(rows, factor, k, _first(len(rows)))[0])


def _plain(_: argparse.Namespace, rows: NDArray[np.float32], factor: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the picks as the published code finds them: all similarities computed and sorted at every pick."""
    weights = rank_weights(k, 1.0)
    picks = [_first(len(rows))]
    while len(picks) < k:
        distances = (1 - rows @ rows[picks].T) * (factor[:, None] + factor[picks]).astype(np.float32)
        distances.sort(axis=1)
        scores = distances @ weights[: len(picks)]
        scores[picks] = -np.inf
        picks.append(int(scores.argmax()))
    return np.array(picks)


def _first(n: int) -> int:
    return int(np.random.RandomState(_SEED).randint(0, n))


def _print_table(
    k: int, rows: NDArray[np.float32], factor: NDArray[np.float64], done: dict[str, list[dict[str, Any]]]
) -> None:
    n, d = rows.shape
    print(f"{date.today()}, {platform.machine()}, {usable_processors()} cores, {platform.python_version()}\n")
    print(
        f"| {n:,} x {d}, k = {k:,} | seconds (median of {len(done['novelselect'])}) | times slower | peak GiB | picks |"
    )
    print("|---|---|---|---|---|")
    picks = np.array(done["novelselect"][0]["picks"])
    ours = [run["seconds"] for run in done["novelselect"]]
    for name, runs in done.items():
        seconds = [run["seconds"] for run in runs]
        ratio = statistics.median(other / own for other, own in zip(seconds, ours, strict=True))
        same = _compared(np.array(runs[0]["picks"]), picks, rows, factor)
        print(f"| {name} | {statistics.median(seconds):.2f} | {ratio:.2f} | {runs[0]['peak']:.2f} | {same} |")


def _compared(
    other: NDArray[np.int64], picks: NDArray[np.int64], rows: NDArray[np.float32], factor: NDArray[np.float64]
) -> str:
    """Say whether picks are the same; where they part, whether both had the same score there."""
    apart = np.flatnonzero(other != picks)
    if not len(apart):
        return "the same"
    at = int(apart[0])
    two = np.array([picks[at], other[at]])
    own, others = exact_scores(two, rows, factor, picks[:at], rank_weights(at, 1.0))
    word = "a tie" if abs(own - others) <= _TIE * own else "no tie"
    return f"{len(apart):,} places differ, first at {at + 1:,} ({word}: {own:.9g} and {others:.9g})"


if __name__ == "__main__":
    main()
