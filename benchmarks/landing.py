"""Time what new data costs: curate a pool, let a batch land, and curate the grown pool from nothing for comparison.

    python -m benchmarks.landing 'data/pool/*' --landing 'data/landing/*' -k 1000

Prints a Markdown table with the seconds of every step (from the lineage), says whether the subset after the landing is
the same, byte for byte, as that of a full run, how many samples were embedded, and the shares that matter; then how
long the sensor takes to find that nothing is new, and whether another run makes any other output.
"""

import argparse
import glob
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import yaml

from novelsum_dagster.definitions import CURATE_JOB
from novelsum_dagster.defs.automation import landing_sensor
from novelsum_dagster.settings import load_settings

NEWEST = "runs.started_at = (SELECT max(started_at) FROM runs)"
STEPS = f"""
SELECT step, sum(epoch(ended_at - steps.started_at)) FROM steps JOIN runs USING (run_id)
WHERE {NEWEST} GROUP BY step ORDER BY min(steps.started_at)
"""
EMBEDDED = f"SELECT embedded, selection FROM run_outputs JOIN runs USING (run_id) WHERE {NEWEST}"
OUTPUTS = f"SELECT run_outputs.* EXCLUDE (run_id, embedded) FROM run_outputs JOIN runs USING (run_id) WHERE {NEWEST}"
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
        tick = _tick_with_nothing_new(folder)
        again = _curate(folder, {**settings, "storage": "grown"})
        runs["full"] = _curate(folder, {**settings, "storage": "anew"})
    _print(runs)
    print(f"With nothing new, a look of the sensor took {tick:.2f} s and started no run; a run made")
    print("the same outputs." if again["outputs"] == runs["landing"]["outputs"] else "OTHER outputs.")


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
        outputs = connection.execute(OUTPUTS).fetchall()
    return {
        "steps": steps,
        "embedded": embedded,
        "outputs": outputs,
        "selection": selection,
        "subset": Path(summary["subset"]).read_bytes(),
        "samples": summary["pool"]["samples"],
    }


def _tick_with_nothing_new(folder: Path) -> float:
    """Return the seconds of a look, once the sensor knows the files."""
    settings = load_settings(folder / "curation.yaml")
    sensor, cursor, seconds = landing_sensor(settings, CURATE_JOB), None, 0.0
    with dg.DagsterInstance.from_config(str(settings.storage_path / "dagster")) as instance:
        for _ in range(3):
            started = time.perf_counter()
            with dg.build_sensor_context(instance, cursor) as context:
                found = sensor.evaluate_tick(context)
            seconds, cursor = time.perf_counter() - started, found.cursor or cursor
            assert not found.run_requests
    assert "Nothing new" in str(found.skip_message)
    return seconds


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
