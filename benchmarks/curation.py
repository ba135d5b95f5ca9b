"""Time a whole curation, step by step, from an empty storage folder; then curate again without near-duplicates.

    python -m benchmarks.curation FILE_OR_GLOB ... -k 1000

Prints Markdown tables: counts, NovelSum, near-duplicates among the picks, seconds of every step (from the lineage) and
peak memory. The second run finds all vectors in place, so its time is what a change of settings costs.
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
from typing import Any

import duckdb
import yaml

from novelsum_dagster.common.processors import usable_processors

NEAR_DUPLICATES_PICKED = """
SELECT count(*) FROM run_outputs JOIN runs USING (run_id) JOIN picks USING (selection)
JOIN near_duplicates USING (snapshot, id)
WHERE started_at = (SELECT max(started_at) FROM runs)
"""
STEPS = """
SELECT step, epoch(ended_at - steps.started_at) FROM steps JOIN runs USING (run_id)
WHERE runs.started_at = (SELECT max(started_at) FROM runs) ORDER BY steps.started_at
"""


def main() -> None:
    """Run `novelsum run` on the given files, twice, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files or globs of the pool")
    parser.add_argument("-k", type=int, default=1000)
    arguments = parser.parse_args()
    sources = [{"path": str(Path(name).resolve())} for name in arguments.files]
    print(f"{date.today()}, {platform.machine()}, {usable_processors()} cores, {platform.python_version()}\n")
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as folder:
        for drop in (False, True):
            pool = {"sources": sources, "near_duplicates": {"drop": drop}}
            curate(Path(folder), {"storage": folder, "pool": pool, "selection": {"k": arguments.k}})
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.1f} GiB")


def curate(folder: Path, settings: dict[str, Any]) -> None:
    """Run one curation in a process of its own and print its table."""
    path = folder / "curation.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "novelsum_dagster", "run", "--settings", str(path), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout)
    with duckdb.connect(summary["lineage"], read_only=True) as connection:
        steps = connection.execute(STEPS).fetchall()
        picked = connection.execute(NEAR_DUPLICATES_PICKED).fetchall()[0][0]
    print(f"| near-duplicates dropped: {settings['pool']['near_duplicates']['drop']} | |\n|---|---|")
    for name, value in summary["pool"].items():
        if name == "near_duplicates_dropped":
            continue
        print(f"| {name.replace('_', '-')} | {value:,} |")
    for row in summary["novelsum"]:
        print(f"| NovelSum, {row['set']} ({row['samples']:,} samples) | {row['novelsum']:.4f} |")
    print(f"| near-duplicates among the picks | {picked:,} |")
    for step, took in steps:
        print(f"| {step} | {took:.1f} s |")
    print(f"| whole command | {seconds:.0f} s |\n")


if __name__ == "__main__":
    main()
