"""Time what new data costs: curate a pool, let a batch land, and curate the grown pool from nothing for comparison.

    python -m benchmarks.landing 'data/pool/*' --landing 'data/landing/*' -k 1000

Prints a Markdown table with the seconds of every step (from the lineage), says whether the subset after the landing is
the same, byte for byte, as that of a full run, how many samples were embedded, and the shares that matter.
"""

import argparse
import glob
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import yaml

NEWEST = "runs.started_at = (SELECT max(started_at) FROM runs)"
STEPS = f"""
SELECT step, sum(epoch(ended_at - steps.started_at)) FROM steps JOIN runs USING (run_id)
WHERE {NEWEST} GROUP BY step ORDER BY min(steps.started_at)
"""
EMBEDDED = f"SELECT embedded, selection FROM run_outputs JOIN runs USING (run_id) WHERE {NEWEST}"
BEFORE = ("raw_pool", "embeddings")


def main() -> None:
    """Curate three times and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files or globs of the pool")
    parser.add_argument("--landing", nargs="+", required=True, help="files or globs of the batch")
    parser.add_argument("-k", type=int, default=1000)
    arguments = parser.parse_args()
    pool, batch = (_paths(patterns) for patterns in (arguments.files, arguments.landing))
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as name:
        folder = Path(name)
        settings = {
            "pool": {"sources": [{"path": "pool/*"}], "near_duplicates": {"drop": True}},
            "selection": {"k": arguments.k},
        }
        (folder / "pool").mkdir()
        _copy(pool, folder / "pool")
        runs = {"first": _curate(folder, {**settings, "storage": "grown"})}
        _copy(batch, folder / "pool")
        runs["landing"] = _curate(folder, {**settings, "storage": "grown"})
        runs["full"] = _curate(folder, {**settings, "storage": "anew"})
    _print(runs)


def _paths(patterns: list[str]) -> list[Path]:
    return [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern))]


def _copy(paths: list[Path], folder: Path) -> None:
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def _curate(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    path = folder / "curation.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "novelsum_dagster", "run", "--settings", str(path), "--json"]
    summary = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    with duckdb.connect(summary["lineage"], read_only=True) as connection:
        steps = dict(connection.execute(STEPS).fetchall())
        embedded, selection = connection.execute(EMBEDDED).fetchall()[0]
    return {
        "steps": steps,
        "embedded": embedded,
        "selection": selection,
        "subset": Path(summary["subset"]).read_bytes(),
        "samples": summary["pool"]["samples"],
    }


def _print(runs: dict[str, dict[str, Any]]) -> None:
    print(f"| | {' | '.join(runs)} |\n|---|{'---:|' * len(runs)}")
    print(f"| samples in the pool | {' | '.join(format(run['samples'], ',') for run in runs.values())} |")
    print(f"| samples embedded | {' | '.join(format(run['embedded'], ',') for run in runs.values())} |")
    for step in runs["full"]["steps"]:
        print(f"| {step} | {' | '.join(format(run['steps'][step], '.1f') + ' s' for run in runs.values())} |")
    after = {name: sum(took for step, took in run["steps"].items() if step not in BEFORE) for name, run in runs.items()}
    total = {name: sum(run["steps"].values()) for name, run in runs.items()}
    print(f"| all after embedding | {' | '.join(format(after[name], '.1f') + ' s' for name in runs)} |")
    print(f"| all | {' | '.join(format(total[name], '.1f') + ' s' for name in runs)} |\n")
    landing, full = runs["landing"], runs["full"]
    same = landing["selection"] == full["selection"] and landing["subset"] == full["subset"]
    print(f"The subset after the landing is {'the same as' if same else 'NOT the same as'} that of a full run.")
    print(f"After the landing, all after embedding took {after['landing'] / total['full']:.0%} of a full run, and")
    print(f"{after['landing'] / after['full']:.0%} of all after embedding in a full run.")


if __name__ == "__main__":
    main()
