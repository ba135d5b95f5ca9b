"""Each suite on sound and on unsound output: a check that cannot fail is none."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.distinct import distinct_pool
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable, build_density, build_novelty
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.store import VectorSet, embed, pool_vectors
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.quality.suites import SUITES, Subject, suites_of
from novelsum_dagster.quality.validate import check, require_passed, validate
from novelsum_dagster.report.novelsum_report import REPORT_COLUMNS, NovelSumReport, build_report
from novelsum_dagster.selection import novelselect
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.selection.subset import Subset, write_subset
from novelsum_dagster.settings import Checks, Embedding, NearDuplicates, NovelSum, Pool, Settings
from tests.pools import alpaca, write_jsonl
from tests.tiny import tiny_model

SETTINGS = Settings()


class Curated:
    """The outputs of every step over 40 samples of two sources."""

    def __init__(self, folder: Path) -> None:
        write_jsonl(folder / "one.jsonl", alpaca(20))
        write_jsonl(folder / "two.jsonl", alpaca(20, start=20))
        self.root = folder / "curated"
        settings = Embedding(model=tiny_model(), dtype="float32")
        pool = Pool.model_validate({"sources": [{"path": "*.jsonl"}]})
        self.pool = build_snapshot(pool, folder, self.root, token_counter(settings))
        samples = self.pool.samples(self.root, ["id", "text"])
        ids = samples["id"].to_pylist()
        self.vectors_set = embed(self.root, settings, ids, samples["text"].to_pylist(), self.pool.key)
        _, self.vectors = pool_vectors(self.root, self.pool, self.vectors_set)
        similar = np.repeat(np.random.default_rng(0).normal(size=(34, 8)), [7, *[1] * 33], axis=0).astype(np.float32)
        rule = NearDuplicates(by="embedding", drop=True)
        dropping = pool.model_copy(update={"near_duplicates": rule})
        read = build_snapshot(dropping, folder, self.root, token_counter(settings))
        self.distinct = distinct_pool(self.root, read, similar, "other vectors", rule)
        measure = NovelSum(neighbors=5)
        self.density = build_density(self.root, ids, self.vectors, self.vectors_set.key, settings=measure)
        self.novelty = build_novelty(self.root, self.density, self.vectors, settings=measure)
        factor = self.density.factor(self.root, 0.5)
        picks = novelselect(self.vectors, 10, density_factor=factor)
        keys = {"snapshot": self.pool.key, "vectors": self.vectors_set.key, "density": self.density.key}
        chosen = {
            "strategy": "novelselect",
            "k": 10,
            "seed": 42,
            "options": {},
            "density_power": 0.5,
            "proximity_power": 1.0,
        }
        self.subset = write_subset(self.pool, self.root, picks, self.vectors, {**chosen, **keys})
        self.report = build_report(
            self.root,
            self.pool.samples(self.root, REPORT_COLUMNS),
            self.vectors,
            factor,
            self.novelty.table(self.root)["novelty"].to_numpy(),
            picks.indices,
            covering(self.vectors, picks.indices, 1).distance[:, 0],
            inputs=keys,
            near_duplicates=0,
            settings=SETTINGS,
            seed=42,
            reporter=LogReporter(lambda line: None),
        )

    def subject(self, output: Any, vectors: np.ndarray | None = None) -> Subject:
        return Subject(output, self.root, SETTINGS, self.pool, self.vectors if vectors is None else vectors)

    def outputs(self) -> dict[str, Any]:
        return {
            "raw_pool": self.pool,
            "embeddings": self.vectors_set,
            "distinct_pool": self.distinct,
            "density": self.density,
            "sample_novelty": self.novelty,
            "selected_subset": self.subset,
            "novelsum_report": self.report,
        }


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return Curated(tmp_path_factory.mktemp("quality"))


def _failed(step: str, subject: Subject) -> set[str]:
    return {suite.name for suite in suites_of(step) if not validate(suite, subject).passed}


def test_sound_output_passes_every_suite(curated: Curated) -> None:
    for step, output in curated.outputs().items():
        assert suites_of(step)
        assert _failed(step, curated.subject(output)) == set()
    # Those of `changes` are tried in test_changes.
    assert {suite.step for suite in SUITES} == {*curated.outputs(), "changes"}


def _rewritten(curated: Curated, path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Write a changed copy of a table beside the sound ones; return its folder relative to the root."""
    folder = Path(tempfile.mkdtemp(dir=curated.root, prefix="unsound-"))
    for other in path.parent.glob("*.parquet"):
        table = pq.read_table(other, partitioning=None)
        pq.write_table(change(table) if other == path else table, folder / other.name)
    return folder.relative_to(curated.root)


def _with(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    at = table.column_names.index(column)
    return table.set_column(at, column, pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize(
    ("change", "check_name"),
    [
        (lambda t: t.drop_columns(["turns"]), "schema"),
        (lambda t: _with(t, "id", 1, t["id"][0].as_py()), "unique_ids"),
        (lambda t: _with(t, "id", 1, None), "unique_ids"),
        (lambda t: _with(t, "id", 1, "x"), "unique_ids"),
        (lambda t: t.slice(0, 39), "unique_ids"),
        (lambda t: _with(t, "source", 3, None), "fields_present"),
        (lambda t: _with(t, "turns", 3, 0), "fields_present"),
        (lambda t: _with(t, "characters", 3, 0), "fields_present"),
        (lambda t: _with(t, "text", 3, "\ufffd" * 50), "text_sanity"),
        (lambda t: _with(t, "text", 3, "\x01\x02" * 50), "text_sanity"),
        (lambda t: _with(t, "text", 3, "a" * 50), "text_sanity"),
    ],
)
def test_unsound_samples_fail(curated: Curated, change: Callable[[pa.Table], pa.Table], check_name: str) -> None:
    path = curated.root / curated.pool.folder / "samples.parquet"
    folder = _rewritten(curated, path, change)
    subject = curated.subject(curated.pool.model_copy(update={"folder": str(folder)}))
    suite = next(suite for suite in suites_of("raw_pool") if suite.name == check_name)
    assert not validate(suite, subject).passed


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"read": 21}, {"counts_add_up"}),
        ({"read": 0, "kept": 0}, {"counts_add_up", "unique_ids"}),
        ({"complete": False}, {"files_complete"}),
    ],
)
def test_unsound_counts_fail(curated: Curated, change: dict[str, Any], failing: set[str]) -> None:
    files = (curated.pool.files[0].model_copy(update=change), *curated.pool.files[1:])
    assert _failed("raw_pool", curated.subject(curated.pool.model_copy(update={"files": files}))) == failing


def test_many_near_duplicates_warn(curated: Curated) -> None:
    crowded = curated.pool.model_copy(update={"near_duplicates": 30})
    assert _failed("raw_pool", curated.subject(crowded)) == {"few_near_duplicates"}


def test_unsound_near_duplicates_fail(curated: Curated) -> None:
    pool = curated.distinct
    assert (pool.near_duplicates, pool.kept, pool.duplicates) == (6, 34, 6)
    path = curated.root / pool.folder / "near_duplicates.parquet"
    changes: list[tuple[Callable[[pa.Table], pa.Table], set[str]]] = [
        (lambda t: t.slice(1), {"counts_agree"}),
        (lambda t: _with(t, "id", 1, t["id"][0].as_py()), {"counts_agree", "partners_kept"}),
        (lambda t: _with(t, "partner_id", 1, t["id"][0].as_py()), {"partners_kept"}),
        (lambda t: _with(t, "score", 1, 0.89), {"partners_kept"}),
    ]
    for change, failing in changes:
        unsound = pool.model_copy(update={"folder": str(_rewritten(curated, path, change))})
        assert _failed("distinct_pool", curated.subject(unsound)) == failing
    files = (pool.files[0].model_copy(update={"read": 21}), *pool.files[1:])
    assert _failed("distinct_pool", curated.subject(pool.model_copy(update={"files": files}))) == {"counts_add_up"}
    strict = Subject(pool, curated.root, Settings(checks=Checks(max_near_duplicate_fraction=0.1)))
    assert _failed("distinct_pool", strict) == {"few_near_duplicates"}
    assert _failed("distinct_pool", curated.subject(curated.pool)) == set()


@pytest.mark.parametrize(
    ("row", "failing"),
    [(np.nan, {"vectors_sound"}), (np.inf, {"vectors_sound"}), (0.0, {"vectors_sound"})],
)
def test_unsound_vectors_fail(curated: Curated, row: float, failing: set[str]) -> None:
    vectors = curated.vectors.copy()
    vectors[7] = row
    assert _failed("embeddings", curated.subject(curated.vectors_set, vectors)) == failing


def test_vectors_of_another_dimension_or_all_alike_fail(curated: Curated) -> None:
    subject = curated.subject(curated.vectors_set, curated.vectors[:, :30].copy())
    assert _failed("embeddings", subject) == {"vectors_sound"}
    alike = np.repeat(curated.vectors[:1], 40, axis=0)
    assert _failed("embeddings", curated.subject(curated.vectors_set, alike)) == {"vectors_differ"}
    assert "vectors_sound" in _failed("embeddings", curated.subject(curated.vectors_set, curated.vectors[:39]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, None])
@pytest.mark.parametrize(("step", "column"), [("density", "mean_squared_distance"), ("sample_novelty", "novelty")])
def test_unsound_measures_fail(curated: Curated, step: str, column: str, value: float | None) -> None:
    output = curated.outputs()[step]
    assert isinstance(output, DensityTable | NoveltyTable)
    path = curated.root / output.file
    folder = _rewritten(curated, path, lambda table: _with(table, column, 5, value))
    changed = output.model_copy(update={"file": str(folder / path.name)})
    assert len(_failed(step, curated.subject(changed))) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.slice(0, 9),
        lambda t: _with(t, "id", 1, t["id"][0].as_py()),
        lambda t: _with(t, "id", 1, "0" * 32),
        lambda t: _with(t, "rank", 1, 11),
    ],
)
def test_unsound_picks_fail(curated: Curated, change: Callable[[pa.Table], pa.Table]) -> None:
    path = curated.root / curated.subset.folder / "picks.parquet"
    folder = _rewritten(curated, path, change)
    subset = curated.subset.model_copy(update={"folder": str(folder)})
    assert "picks_sound" in _failed("selected_subset", curated.subject(subset))


def test_a_source_that_swallows_the_others_warns(curated: Curated) -> None:
    path = curated.root / curated.subset.folder / "picks.parquet"
    folder = _rewritten(
        curated, path, lambda t: t.set_column(t.column_names.index("source"), "source", pa.array(["one"] * 10))
    )
    subset = curated.subset.model_copy(update={"folder": str(folder)})
    assert _failed("selected_subset", curated.subject(subset)) == {"sources_balanced"}
    strict = Settings(checks=Checks(max_source_growth=1.0))
    subject = Subject(subset, curated.root, strict, curated.pool)
    assert _failed("selected_subset", subject) == {"sources_balanced"}


def test_favoured_near_duplicates_warn(curated: Curated) -> None:
    """Two samples of the pool are near-duplicates, and both were picked."""
    picked = curated.subset.picks(curated.root, ["id"])["id"].to_pylist()[:2]
    path = curated.root / curated.pool.folder / "near_duplicates.parquet"
    flagged = pa.table({"id": picked, "partner_id": ["0" * 32] * 2, "score": [0.9, 0.9]})
    folder = _rewritten(curated, path, lambda _: flagged)
    pool = curated.pool.model_copy(update={"folder": str(folder), "near_duplicates": 2})
    suite = next(suite for suite in suites_of("selected_subset") if suite.name == "near_duplicates_not_favoured")
    assert not validate(suite, Subject(curated.subset, curated.root, SETTINGS, pool)).passed
    calm = Settings(checks=Checks(max_near_duplicate_growth=4.0))
    assert validate(suite, Subject(curated.subset, curated.root, calm, pool)).passed
    dropped = pool.model_copy(update={"near_duplicates_dropped": True})
    assert validate(suite, Subject(curated.subset, curated.root, SETTINGS, dropped)).passed


def test_a_subset_that_gains_nothing_warns(curated: Curated) -> None:
    sets = tuple(
        row.model_copy(update={"value": 0.1} if row.set_name == "selected" else {}) for row in curated.report.sets
    )
    worse = curated.report.model_copy(update={"sets": sets})
    assert isinstance(worse, NovelSumReport)
    assert _failed("novelsum_report", curated.subject(worse)) == {"selected_beats_random"}


def test_the_gate_reads_the_verdict_of_exactly_this_output(curated: Curated) -> None:
    unsound = curated.pool.model_copy(
        update={"key": "other", "files": (curated.pool.files[0].model_copy(update={"complete": False}),)}
    )
    check("raw_pool", curated.subject(unsound))
    with pytest.raises(InputError, match="files_complete"):
        require_passed("raw_pool", curated.subject(unsound))
    require_passed("raw_pool", curated.subject(curated.pool))
    # The kept verdict counts, not a fresh look: it is what the checks' page shows.
    with pytest.raises(InputError, match="files_complete"):
        require_passed("raw_pool", curated.subject(curated.pool.model_copy(update={"key": "other"})))


def test_warnings_do_not_close_the_gate(curated: Curated) -> None:
    crowded = curated.pool.model_copy(update={"key": "crowded", "near_duplicates": 30})
    assert [v.name for v in check("raw_pool", curated.subject(crowded)) if not v.passed] == ["few_near_duplicates"]
    require_passed("raw_pool", curated.subject(crowded))


def test_handles_are_what_they_say(curated: Curated) -> None:
    kinds: list[type[Artifact]] = [
        PoolSnapshot,
        VectorSet,
        PoolSnapshot,
        DensityTable,
        NoveltyTable,
        Subset,
        NovelSumReport,
    ]
    for kind, output in zip(kinds, curated.outputs().values(), strict=True):
        assert kind.model_validate_json(output.model_dump_json()) == output
