"""The audit on a large storage: how long its models take to build, and `why`, `diff` and the models to answer.

    python -m benchmarks.lineage --samples 396000 --runs 50

Writes a storage as the pipeline does: one pool, its vectors in shards of 512, one density and one novelty, and for
every run a selection of its own with its picks, their vectors, which picks stand for which samples and what remained
(about 50 MB a run at 396,000 samples, 5 GB in all). It lies in a temporary folder, or in `--folder`, which is kept and
used again.

Belongs here: the synthetic storage, and what is timed on it. Does not: the models (`dbt_like_sql`).
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.audit.difference import difference
from novelsum_dagster.audit.explain import explain
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key, write_table
from novelsum_dagster.lineage.models import build, failures, models
from novelsum_dagster.lineage.query import all_rows
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import FILE_NAME, LineageStore, insert
from novelsum_dagster.pool.snapshot import NEAR_DUPLICATES, ORIGINS, REJECTS, SAMPLES

SOURCES = ["chat", "code", "maths", "stories"]
MEASURES = ["novelsum", "vendi_score", "knn_distance"]
_SNAPSHOT, _VECTORS, _DENSITY, _NOVELTY = (content_key(name) for name in ("pool", "vectors", "density", "novelty"))
_SEPARATE = 20
"""Every so manieth sample is a near-duplicate of the one before it."""
_START = datetime(2026, 1, 1, tzinfo=UTC)


_DIMENSION, _SHARD, _ROW_GROUP = 384, 512, 1000
"""As the pipeline writes them."""
_VECTORS_FOLDER = "vectors/model"
_SETTINGS = {"pool": {"near_duplicates": {"drop": False}}}


def write_storage(root: Path, samples: int, runs: int, picks: int) -> None:
    """Write a storage of many runs over one pool under `root`."""
    ids = [hashlib.sha256(str(row).encode()).hexdigest()[:32] for row in range(samples)]
    _write_pool(root, ids)
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((samples, _DIMENSION), np.float32)
    for start in range(0, samples, _SHARD):
        shard = ids[start : start + _SHARD]
        name = hashlib.sha256("\n".join(shard).encode()).hexdigest()[:32]
        _write_vectors(root / _VECTORS_FOLDER / f"{name}.parquet", shard, vectors[start : start + _SHARD])
    factor = generator.lognormal(0, 0.25, samples)
    columns = {"id": ids, "mean_squared_distance": factor**-2, "density_factor": factor}
    write_table(pa.table(columns), root / f"density/density={_DENSITY}/density.parquet")
    novelty = {"id": ids, "novelty": generator.gamma(2, 1, samples)}
    write_table(pa.table(novelty), root / f"novelty/sample_novelty={_NOVELTY}/novelty.parquet")
    for run in range(runs):
        _write_selection(root / _folder(run), ids, vectors, factor, picks, run)
    _record(LineageStore(root), samples, runs, picks)


def _write_vectors(path: Path, ids: list[str], vectors: NDArray[np.float32]) -> None:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), _DIMENSION)
    write_table(pa.table({"id": ids, "vector": rows}), path)


def _write_pool(root: Path, ids: list[str]) -> None:
    rows = np.arange(len(ids))
    place = {
        "source": pa.array([SOURCES[row % len(SOURCES)] for row in rows]),
        "file": pa.array([f"pool/{SOURCES[row % len(SOURCES)]}.jsonl" for row in rows]),
        "position": rows // len(SOURCES),
        "line": rows // len(SOURCES) + 1,
    }
    lengths = np.random.default_rng(1).integers(20, 900, len(ids))
    words = " ".join(f"word{number}" for number in np.random.default_rng(2).integers(0, 9999, 200_000))
    starts = np.random.default_rng(3).integers(0, len(words) - 4000, len(ids))
    texts = zip(ids, starts, lengths, strict=True)
    text = pa.array([f"Question {id_}? Answer {words[start : start + 4 * length]}." for id_, start, length in texts])
    samples = {
        "id": ids, **place, "form": ["alpaca"] * len(ids), "turns": np.full(len(ids), 2, np.int32),
        "characters": lengths * 4, "tokens": lengths, "text_tokens": lengths, "former_id": pa.nulls(len(ids), "string"),
        "text": text, "original": text.cast(pa.binary()),
    }  # fmt: skip
    folder = root / f"pool/snapshot={_SNAPSHOT}"
    origins = {"id": ids, **place, "is_first": [True] * len(ids)}
    folder.mkdir(parents=True)
    for name, columns, schema in (("samples", samples, SAMPLES), ("origins", origins, ORIGINS)):
        path = folder / f"{name}.parquet"
        pq.write_table(pa.table(columns, schema), path, compression="zstd", row_group_size=_ROW_GROUP)
    near: dict[str, Any] = {"id": ids[1::_SEPARATE], "partner_id": ids[: len(ids) - 1 : _SEPARATE]}
    near["score"] = [0.9] * len(near["id"])
    write_table(pa.table(near, NEAR_DUPLICATES), folder / "near_duplicates.parquet")
    reject = {name: values[:100] for name, values in place.items()}
    rejects = {**reject, "reason": ["broken_json"] * 100, "detail": [None] * 100, "original": [b"{"] * 100}
    write_table(pa.table(rejects, REJECTS), folder / "rejects.parquet")


def _write_selection(
    folder: Path, ids: list[str], vectors: NDArray[np.float32], factor: NDArray[np.float64], picks: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    # Half of the picks are those of every run, so that runs differ in part.
    shared = np.random.default_rng(0).permutation(len(ids))[: picks // 2]
    rest = np.setdiff1d(generator.permutation(len(ids))[: 2 * picks], shared)
    rows = generator.permutation(np.concatenate([shared, generator.permutation(rest)[: picks - len(shared)]]))
    chosen = [ids[row] for row in rows]
    # In so many dimensions all cosines are near 0, so a score is about this: it grows with the picks.
    won = 1.9 * (np.log(np.arange(1, picks + 1)) + 0.577) * 1.6
    picked = {
        "rank": np.arange(1, picks + 1), "id": chosen, "source": [SOURCES[row % len(SOURCES)] for row in rows],
        "file": [f"pool/{SOURCES[row % len(SOURCES)]}.jsonl" for row in rows], "position": rows // len(SOURCES),
        "line": rows // len(SOURCES) + 1, "turns": np.full(picks, 2, np.int32), "tokens": np.full(picks, 300),
        "score": won, "runner_up_id": chosen[::-1], "runner_up_score": won - 0.01, "margin": np.full(picks, 0.01),
        "nearest_pick_rank": np.arange(picks), "nearest_pick_id": [None, *chosen[:-1]],
        "nearest_distance": np.full(picks, 0.4), "density_factor": factor[rows], "quality": pa.nulls(picks, "double"),
    }  # fmt: skip
    write_table(pa.table(picked), folder / "picks.parquet")
    after = generator.integers(1, picks, len(ids))
    score = (np.log(after) + 0.577) * (factor + 1) * generator.uniform(1, 1.01, len(ids))
    left = {"id": ids, "score": score, "after_picks": after, "is_exact": generator.random(len(ids)) < 0.1}
    write_table(pa.table(left), folder / "remaining.parquet")
    _write_vectors(folder / "picks_vectors.parquet", chosen, vectors[rows])
    # A pick stands for itself; what stands for the others is drawn.
    ranks = generator.integers(1, picks + 1, (len(ids), 3))
    distances = np.sort(generator.uniform(0.3, 0.9, (len(ids), 3)), axis=1)
    ranks[rows, 0], distances[rows, 0] = np.arange(1, picks + 1), 0
    covering: dict[str, Any] = {"id": ids}
    for place in range(3):
        covering |= {f"rank_{place + 1}": ranks[:, place], f"distance_{place + 1}": distances[:, place]}
    write_table(pa.table(covering), folder / "covering.parquet")


def _record(store: LineageStore, samples: int, runs: int, picks: int) -> None:
    """Write what the finished runs recorded, in one transaction."""
    powers = {"density_power": 0.5, "proximity_power": 1.0}
    counts = {"read": samples + 100, "kept": samples, "duplicates": 0, "rejects": 100}
    pool = {
        "snapshot": _SNAPSHOT, "folder": f"pool/snapshot={_SNAPSHOT}", **counts, "near_duplicates": 0,
        "near_duplicates_dropped": False,
    }  # fmt: skip
    files = [
        {
            "snapshot": _SNAPSHOT, "source": source, "file": f"pool/{source}.jsonl", "format": "jsonl",
            "form": "alpaca", "complete": True, **{name: count // len(SOURCES) for name, count in counts.items()},
        }
        for source in SOURCES
    ]  # fmt: skip
    vectors = {
        "vectors": _VECTORS, "snapshot": _SNAPSHOT, "folder": _VECTORS_FOLDER, "model": "m", "revision": "r",
        "max_tokens": 256, "dtype": "bfloat16", "dimension": _DIMENSION, "samples": samples,
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
                "run_id": run_id, "started_at": at, "settings": json.dumps(_SETTINGS), "package_version": "0",
                "python": "3.11", "platform": "synthetic",
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
            {
                "selection": _selection(run), **keys, "folder": _folder(run), "strategy": "novelselect", "k": picks,
                "seed": run, **powers,
            }
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


def _folder(run: int) -> str:
    return f"selections/selection={_selection(run)}"


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


def _time_commands(store: LineageStore, runs: int) -> None:
    """Time `why` and `diff`, within this process and as whole commands."""
    root, newest, before = store.path.parent, _run_id(runs - 1), _run_id(max(0, runs - 2))
    with store.reading() as connection:
        asked = _asked(connection, newest)
        run = find_run(connection, newest)
        for what, sample in asked.items():

            def ask(sample: str = sample) -> str:
                try:
                    return explain(connection, root, run, sample).outcome
                except InputError:
                    return "none"

            _timed(f"why: {what}", ask)
        _timed(
            "diff",
            lambda: f"{len(difference(connection, root, find_run(connection, before), run).entered):,} entered",
        )
    settings = root / "curation.yaml"
    settings.write_text(f"storage: {json.dumps(str(root))}\n")
    for what, sample in asked.items():

        def command(sample: str = sample) -> str:
            return _command(settings, "why", sample)

        _timed(f"novelsum why, whole command: {what}", command)
    _timed("novelsum diff, whole command", lambda: _command(settings, "diff", before, newest))


def _asked(connection: Any, run_id: str) -> dict[str, str]:
    """Return what `why` is asked for: samples of a run, as people name them."""
    [picked] = all_rows(
        connection,
        "SELECT id FROM picks INNER JOIN run_outputs USING (selection) WHERE run_id = ? AND rank = 500", [run_id],
    )  # fmt: skip
    left_out = all_rows(
        connection,
        "SELECT density.id, samples.file, samples.line FROM density"
        " INNER JOIN run_outputs ON run_outputs.density = density.density AND run_outputs.run_id = ?"
        " INNER JOIN samples ON samples.id = density.id AND samples.snapshot = run_outputs.snapshot"
        " ANTI JOIN picks ON picks.id = density.id AND picks.selection = run_outputs.selection"
        " ORDER BY density.density_factor DESC", [run_id],
    )  # fmt: skip
    middle = left_out[len(left_out) // 2]
    return {
        "chosen": picked["id"],
        "left out": middle["id"],
        "left out, by the beginning of its id": middle["id"][:8],
        "left out, 1,000 before it": left_out[1000]["id"],
        "left out, by text": f"Question {middle['id']}?",
        "left out, by FILE:LINE": f"{middle['file']}:{middle['line']}",
        "an id that is not there": "f" * 12,
        "a text that is not there": "such words stand nowhere",
    }


def _command(settings: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "novelsum_dagster", *arguments, "--settings", str(settings)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"exit {done.returncode}"


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
        _time_commands(store, asked.runs)
        start = time.perf_counter()
        _time_tests(store)
        print(f"| all tests | {time.perf_counter() - start:.2f} s | |")


if __name__ == "__main__":
    main()
