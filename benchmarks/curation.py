"""Time a whole curation, step by step, from an empty storage folder.

    python -m benchmarks.curation FILE_OR_GLOB ... -k 1000

Prints a Markdown table: seconds of every step (from the lineage), counts, NovelSum, peak memory, machine and date.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import duckdb
import yaml


def main() -> None:
    """Run `novelsum run` on the given files and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files or globs of the pool")
    parser.add_argument("-k", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as folder:
        settings = Path(folder) / "curation.yaml"
        sources = [{"path": str(Path(name).resolve())} for name in arguments.files]
        settings.write_text(
            yaml.safe_dump({"storage": folder, "pool": {"sources": sources}, "selection": {"k": arguments.k}})
        )
        command = [sys.executable, "-m", "novelsum_dagster", "run", "--settings", str(settings), "--json"]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        seconds = time.perf_counter() - started
        report(json.loads(done.stdout), Path(folder) / "lineage.duckdb", seconds)


def report(summary: dict, lineage: Path, seconds: float) -> None:  # type: ignore[type-arg]
    """Print the table."""
    query = "SELECT step, epoch(ended_at - started_at) FROM steps ORDER BY started_at"
    with duckdb.connect(str(lineage), read_only=True) as connection:
        steps = connection.execute(query).fetchall()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{date.today()}, {platform.machine()}, {len(_cores())} cores, Python {platform.python_version()}\n")
    print("| | |\n|---|---|")
    for name, value in summary["pool"].items():
        print(f"| {name.replace('_', '-')} | {value:,} |")
    for row in summary["novelsum"]:
        print(f"| NovelSum, {row['set']} ({row['samples']:,} samples) | {row['novelsum']:.4f} |")
    for step, took in steps:
        print(f"| {step} | {took:.1f} s |")
    print(f"| whole command | {seconds:.0f} s |\n| peak memory | {peak:.1f} GiB |")


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0)


if __name__ == "__main__":
    main()
