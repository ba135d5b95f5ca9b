"""The audit's models on a large storage: how long they take to build, and to answer.

    python -m benchmarks.lineage --samples 396000 --runs 50

Writes a storage as the pipeline does: one pool, one density and one novelty, and for every run a selection of its own
with its picks and what remained (about 12 MB a run at 396,000 samples). It lies in a temporary folder, or in
`--folder`, which is kept and used again.

Belongs here: the synthetic storage, and what is timed on it. Does not: the models (`dbt_like_sql`).
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from novelsum_dagster.files import content_key, write_table
from novelsum_dagster.lineage.models import build, failures, models
from novelsum_dagster.lineage.store import FILE_NAME, LineageStore, insert
from novelsum_dagster.pool.snapshot import NEAR_DUPLICATES, ORIGINS, REJECTS, SAMPLES

SOURCES = ["chat", "code", "maths", "stories"]
MEASURES = ["novelsum", "vendi_score", "knn_distance"]
_SNAPSHOT, _VECTORS, _DENSITY, _NOVELTY = (content_key(name) for name in ("pool", "vectors", "density", "novelty"))
_SEPARATE = 20
"""Every so manieth sample is a near-duplicate of the one before it."""
_START = datetime(2026, 1, 1, tzinfo=UTC)


def write_storage(root: Path, samples: int, runs: int, picks: int) -> None:
    """Write a storage of many runs over one pool under `root`."""
    ids = [hashlib.sha256(str(row).encode()).hexdigest()[:32] for row in range(samples)]
    _write_pool(root, ids)
    generator = np.random.default_rng(0)
    factor = generator.lognormal(0, 0.5, samples)
    columns = {"id": ids, "mean_squared_distance": 1 / factor, "density_factor": factor}
    write_table(pa.table(columns), root / f"density/density={_DENSITY}/density.parquet")
    novelty = {"id": ids, "novelty": generator.gamma(2, 1, samples)}
    write_table(pa.table(novelty), root / f"novelty/sample_novelty={_NOVELTY}/novelty.parquet")
    for run in range(runs):
        _write_selection(root / f"selections/selection={_selection(run)}", ids, factor, picks, run)
    _record(LineageStore(root), samples, runs, picks)


def _write_pool(root: Path, ids: list[str]) -> None:
    rows = np.arange(len(ids))
    place = {
        "source": pa.array([SOURCES[row % len(SOURCES)] for row in rows]),
        "file": pa.array([f"pool/{SOURCES[row % len(SOURCES)]}.jsonl" for row in rows]),
        "position": rows // len(SOURCES),
        "line": rows // len(SOURCES) + 1,
    }
    lengths = np.random.default_rng(1).integers(20, 900, len(ids))
    text = pa.array([f"Question {id_}? Answer {id_}." for id_ in ids])
    samples = {
        "id": ids, **place, "form": ["alpaca"] * len(ids), "turns": np.full(len(ids), 2, np.int32),
        "characters": lengths * 4, "tokens": lengths, "text": text, "original": text.cast(pa.binary()),
    }  # fmt: skip
    folder = root / f"pool/snapshot={_SNAPSHOT}"
    write_table(pa.table(samples, SAMPLES), folder / "samples.parquet")
    write_table(pa.table({"id": ids, **place, "is_first": [True] * len(ids)}, ORIGINS), folder / "origins.parquet")
    near: dict[str, Any] = {"id": ids[1::_SEPARATE], "partner_id": ids[: len(ids) - 1 : _SEPARATE]}
    near["score"] = [0.9] * len(near["id"])
    write_table(pa.table(near, NEAR_DUPLICATES), folder / "near_duplicates.parquet")
    reject = {name: values[:100] for name, values in place.items()}
    rejects = {**reject, "reason": ["broken_json"] * 100, "detail": [None] * 100, "original": [b"{"] * 100}
    write_table(pa.table(rejects, REJECTS), folder / "rejects.parquet")


def _write_selection(folder: Path, ids: list[str], factor: np.ndarray, picks: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Half of the picks are those of every run, so that runs differ in part.
    shared = np.random.default_rng(0).permutation(len(ids))[: picks // 2]
    rest = np.setdiff1d(generator.permutation(len(ids))[: 2 * picks], shared)
    rows = generator.permutation(np.concatenate([shared, generator.permutation(rest)[: picks - len(shared)]]))
    chosen = [ids[row] for row in rows]
    won = np.linspace(9, 5, picks)
    picked = {
        "rank": np.arange(1, picks + 1), "id": chosen, "source": [SOURCES[row % len(SOURCES)] for row in rows],
        "file": [f"pool/{SOURCES[row % len(SOURCES)]}.jsonl" for row in rows], "position": rows // len(SOURCES),
        "line": rows // len(SOURCES) + 1, "turns": np.full(picks, 2, np.int32), "tokens": np.full(picks, 300),
        "score": won, "runner_up_id": chosen[::-1], "runner_up_score": won - 0.01, "margin": np.full(picks, 0.01),
        "nearest_pick_rank": np.arange(picks), "nearest_pick_id": [None, *chosen[:-1]],
        "nearest_distance": np.full(picks, 0.4), "density_factor": factor[rows], "quality": pa.nulls(picks, "double"),
    }  # fmt: skip
    write_table(pa.table(picked), folder / "picks.parquet")
    after = generator.integers(0, picks, len(ids))
    left = {"id": ids, "score": won[after] - 0.5, "after_picks": after, "is_exact": generator.random(len(ids)) < 0.1}
    write_table(pa.table(left), folder / "remaining.parquet")


def _record(store: LineageStore, samples: int, runs: int, picks: int) -> None:
    """Write what the finished runs recorded, in one transaction."""
    powers = {"density_power": 0.5, "proximity_power": 1.0}
    counts = {"read": samples + 100, "kept": samples, "duplicates": 0, "rejects": 100}
    pool = {"snapshot": _SNAPSHOT, "folder": "", **counts, "near_duplicates": 0, "near_duplicates_dropped": False}
    files = [
        {
            "snapshot": _SNAPSHOT, "source": source, "file": f"pool/{source}.jsonl", "format": "jsonl",
            "form": "alpaca", "complete": True, **{name: count // len(SOURCES) for name, count in counts.items()},
        }
        for source in SOURCES
    ]  # fmt: skip
    vectors = {
        "vectors": _VECTORS, "snapshot": _SNAPSHOT, "folder": "", "model": "m", "revision": "r", "max_tokens": 256,
        "dtype": "bfloat16", "dimension": 384, "samples": samples,
    }  # fmt: skip
    density = {"density": _DENSITY, "vectors": _VECTORS, "file": "", "neighbors": 10, "reference_size": samples}
    novelty = {"novelty": _NOVELTY, "density": _DENSITY, "file": "", "proximity_power": 1.0, "novelsum": 0.9}
    rows: dict[str, list[dict[str, Any]]] = {
        "snapshots": [pool],
        "source_files": files,
        "embeddings": [vectors],
        "densities": [{**density, "density_power": 0.5}],
        "novelties": [novelty],
    }
    for run in range(runs):
        for table, added in _rows_of_run(run, picks, powers).items():
            rows.setdefault(table, []).extend(added)
    with store.writing() as connection:
        for table, added in rows.items():
            insert(connection, table, added)


def _rows_of_run(run: int, picks: int, powers: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    run_id, report, at = _run_id(run), content_key(["report", run]), _START + timedelta(hours=run)
    keys = {"snapshot": _SNAPSHOT, "vectors": _VECTORS, "density": _DENSITY}
    steps = ["raw_pool", "embeddings", "density", "sample_novelty", "selected_subset", "novelsum_report", "lineage"]
    size = {"size": picks, "value": 1.0 + run / 100, "low": 0.9, "high": 2.0}
    return {
        "runs": [
            {
                "run_id": run_id, "started_at": at, "settings": "{}", "package_version": "0", "python": "3.11",
                "platform": "synthetic",
            }
        ],
        "steps": [
            {
                "run_id": run_id, "step": step, "attempt": 1, "started_at": at + timedelta(minutes=minute),
                "ended_at": at + timedelta(minutes=minute + 1), "status": "done",
            }
            for minute, step in enumerate(steps)
        ],
        "selections": [
            {"selection": _selection(run), **keys, "folder": "", "strategy": "novelselect", "k": picks, "seed": run}
            | powers
        ],
        "set_measures": [
            {"report": report, "selection": _selection(run), "set_name": name, "measure": measure, **size}
            for name in ("selected", "random")
            for measure in MEASURES
        ],
        "run_outputs": [
            {"run_id": run_id, **keys, "novelty": _NOVELTY, "selection": _selection(run), "report": report}
        ],
    }  # fmt: skip


def _run_id(run: int) -> str:
    return f"run-{run:04d}"


def _selection(run: int) -> str:
    return content_key(["selection", run])


def _timed(what: str, work: Callable[[], Any], repeat: int = 3) -> None:
    """Print the best time of a few, and how many rows came back."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - start)
    print(f"| {what} | {min(times):.2f} s | {found} |", flush=True)


def _time_queries(store: LineageStore, samples: int, runs: int) -> None:
    run_id, id_ = _run_id(runs - 1), hashlib.sha256(str(samples // 2).encode()).hexdigest()[:32]
    queries: list[tuple[str, str, list[Any]]] = [
        ("selection_audit: one run, one id", "FROM selection_audit WHERE run_id = ? AND id = ?", [run_id, id_]),
        ("selection_audit: one id in all runs", "FROM selection_audit WHERE id = ?", [id_]),
        ("selection_audit: one run, counted by reason's first word",
         "SELECT picked, count(*) FROM selection_audit WHERE run_id = ? GROUP BY ALL", [run_id]),
        ("selection_audit: one run, the 50 best left out",
         "FROM selection_audit WHERE run_id = ? AND NOT picked ORDER BY score DESC LIMIT 50", [run_id]),
        ("selection_diff: one run against the one before, counted",
         "SELECT change, count(*) FROM selection_diff WHERE run_id = ? GROUP BY ALL", [run_id]),
        ("selection_diff: all runs, counted", "SELECT run_id, change, count(*) FROM selection_diff GROUP BY ALL", []),
        ("source_coverage: all runs", "FROM source_coverage", []),
        ("length_bias: all runs", "FROM length_bias", []),
        ("near_duplicate_groups", "FROM near_duplicate_groups", []),
        ("run_costs: all runs", "FROM run_costs", []),
    ]  # fmt: skip
    with store.reading() as connection:
        for what, query, values in queries:

            def ask(query: str = query, values: list[Any] = values) -> str:
                return f"{len(connection.execute(query, values).fetchall()):,} rows"

            _timed(what, ask)


def _time_tests(store: LineageStore) -> None:
    with store.reading() as connection:
        for model in models():
            for test in model.tests:
                start = time.perf_counter()
                failing = failures(connection, test).count
                if (seconds := time.perf_counter() - start) > 0.5:
                    print(f"| test {test.name} | {seconds:.2f} s | {failing} failing |", flush=True)


@contextmanager
def _storage(folder: Path | None, samples: int, runs: int, picks: int) -> Iterator[LineageStore]:
    with tempfile.TemporaryDirectory(prefix="novelsum-lineage-") as temporary:
        root = folder or Path(temporary)
        if not (root / FILE_NAME).exists():
            write_storage(root, samples, runs, picks)
        yield LineageStore(root)


def main() -> None:
    """Make the storage, build the models and time the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=396_000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--picks", type=int, default=10_000, help="of each run")
    parser.add_argument("--folder", type=Path, help="to keep the storage in")
    asked = parser.parse_args()
    start = time.perf_counter()
    with _storage(asked.folder, asked.samples, asked.runs, asked.picks) as store:
        folder = store.path.parent
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(
            f"{asked.samples:,} samples, {asked.runs} runs, {size / 1e6:,.0f} MB; {time.perf_counter() - start:.0f} s"
        )
        print("| what | time | result |\n|---|---|---|")
        _timed("build of all models", lambda: f"{len(build(store))} models")
        print(f"| {FILE_NAME} | | {store.path.stat().st_size / 1e6:.1f} MB |")
        _time_queries(store, asked.samples, asked.runs)
        start = time.perf_counter()
        _time_tests(store)
        print(f"| all tests | {time.perf_counter() - start:.2f} s | |")


if __name__ == "__main__":
    main()
