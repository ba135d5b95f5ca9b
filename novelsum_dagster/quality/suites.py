"""Expectation suites for each step's output.

Belongs here: which columns are checked, which expectations they must meet, which failures stop the pipeline.
Does not: running Great Expectations (`validate`), Dagster.

Each suite sees a small frame of aggregates or columns, never a copy of texts or vectors.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from novelsum_dagster.audit.comparison import Changes, Comparison
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.diversity.vectors import distinct_rows
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.pool.snapshot import BY_VECTORS, SAMPLES, PoolSnapshot
from novelsum_dagster.report.novelsum_report import RANDOM, SELECTED, NovelSumReport
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

    _Expected = tuple[pd.DataFrame, list[Expectation]]
    _Expect = Callable[[ModuleType, "Subject"], _Expected]

_ID = "^[0-9a-f]{32}$"
_MOSTLY = 0.99


@dataclass(frozen=True)
class Subject:
    """Input of a suite: the output of one step, the settings, and the rows that the step read.

    Attributes:
        output: the step's artifact.
        root: the storage folder.
        settings: all settings.
        vectors: float32, (n, d), or array-like; only for the suites of the embeddings.
        snapshot: the pool; only for the suites of later steps.
    """

    output: Any
    root: Path
    settings: Settings
    snapshot: PoolSnapshot | None = None
    vectors: ArrayLike | None = None

    @property
    def pool(self) -> PoolSnapshot:
        """The pool: the output itself for the suites of a pool."""
        pool = self.output if isinstance(self.output, PoolSnapshot) else self.snapshot
        assert pool is not None
        return pool

    def samples(self, columns: list[str]) -> pa.Table:
        """Return columns of the pool's samples."""
        return self.pool.samples(self.root, columns)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return a table of the pool, or some of its columns."""
        return self.pool.table(self.root, name, columns)


@dataclass(frozen=True)
class Suite:
    """One check of one step.

    Attributes:
        step: the asset's name.
        name: the check's name.
        blocking: True if a failure means wrong data and stops the pipeline; False if it only warns.
        description: shown to users.
        expect: called with the module `great_expectations.expectations`, which is slow to import; returns the rows
            to check, and the expectations over those rows.
    """

    step: str
    name: str
    blocking: bool
    description: str
    expect: "_Expect"


SUITES: list[Suite] = []
"""All suites, those of each step in the order in which they run."""


def suites_of(step: str) -> list[Suite]:
    """Return the suites of one step."""
    return [suite for suite in SUITES if suite.step == step]


def _suite(step: str, name: str, description: str, *, blocking: bool = False) -> "Callable[[_Expect], _Expect]":
    """Return a decorator that adds a function to `SUITES`."""

    def add(expect: "_Expect") -> "_Expect":
        SUITES.append(Suite(step, name, blocking, description, expect))
        return expect

    return add


def _frame(**columns: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(columns)


def _pandas(table: pa.Table) -> "pd.DataFrame":
    frame: pd.DataFrame = table.to_pandas()
    return frame


@_suite("raw_pool", "schema", "The samples table has the expected columns.", blocking=True)
def _schema(gxe: ModuleType, subject: Subject) -> "_Expected":
    first_rows = subject.table("samples").slice(0, 100)
    return _pandas(first_rows), [gxe.ExpectTableColumnsToMatchSet(column_set=SAMPLES.names)]


@_suite("raw_pool", "unique_ids", "Ids are content hashes, none twice.", blocking=True)
def _unique_ids(gxe: ModuleType, subject: Subject) -> "_Expected":
    return _pandas(subject.samples(["id"])), [
        gxe.ExpectColumnValuesToNotBeNull(column="id"),
        gxe.ExpectColumnValuesToBeUnique(column="id"),
        gxe.ExpectColumnValuesToMatchRegex(column="id", regex=_ID),
        gxe.ExpectTableRowCountToEqual(value=subject.pool.kept),
    ]


@_suite("raw_pool", "fields_present", "Source, place, form and sizes are present and in range.", blocking=True)
def _fields_present(gxe: ModuleType, subject: Subject) -> "_Expected":
    least = {"turns": 1, "characters": 1, "tokens": 0, "position": 1}
    columns = ["source", "file", "form", *least]
    return _pandas(subject.samples(columns)), [
        *(gxe.ExpectColumnValuesToNotBeNull(column=name) for name in columns),
        *(gxe.ExpectColumnValuesToBeBetween(column=name, min_value=value) for name, value in least.items()),
    ]


_COUNTS_ADD_UP = "For every file: read = kept + duplicates (with dropped near-duplicates) + rejects + unread."


@_suite("raw_pool", "counts_add_up", _COUNTS_ADD_UP, blocking=True)
def _counts_add_up(gxe: ModuleType, subject: Subject) -> "_Expected":
    return _file_counts(subject), [
        gxe.ExpectColumnPairValuesToBeEqual(column_A="read", column_B="accounted_for"),
        gxe.ExpectColumnValuesToBeBetween(column="read", min_value=1),
    ]


def _file_counts(subject: Subject) -> "pd.DataFrame":
    files = subject.pool.files
    return _frame(
        file=[file.file for file in files],
        read=[file.read for file in files],
        accounted_for=[file.kept + file.duplicates + file.rejects + file.unread for file in files],
        complete=[file.complete for file in files],
    )


@_suite("raw_pool", "folded_records_agree", "Exact duplicates agree in the columns that are not training content.")
def _folded_records_agree(gxe: ModuleType, subject: Subject) -> "_Expected":
    folded = [(file.file, found) for file in subject.pool.files for found in file.folded]
    places = [f"{found.column}: {file}, record {found.position} repeats {found.id}" for file, found in folded]
    return _frame(differs=places or [""], records=[found.records for _, found in folded] or [0]), [
        gxe.ExpectColumnValuesToBeBetween(column="records", max_value=0),
        gxe.ExpectColumnValuesToBeInSet(column="differs", value_set=[""]),
    ]


@_suite("raw_pool", "files_complete", "Every file was read to its end.", blocking=True)
def _files_complete(gxe: ModuleType, subject: Subject) -> "_Expected":
    return _file_counts(subject), [gxe.ExpectColumnValuesToBeInSet(column="complete", value_set=[True])]


@_suite("raw_pool", "text_sanity", "Texts are text, in any language.")
def _text_sanity(gxe: ModuleType, subject: Subject) -> "_Expected":
    """Language-independent shares: of replacement and control characters, and of the most frequent character."""
    most = {"replacement": 0.01, "control": 0.01, "commonest": 0.6}
    shares = [_shares(text) for text in subject.samples(["text"])["text"].to_pylist()]
    return _frame(**{name: [share[place] for share in shares] for place, name in enumerate(most)}), [
        gxe.ExpectColumnValuesToBeBetween(column=name, max_value=share, mostly=_MOSTLY) for name, share in most.items()
    ]


def _shares(text: str) -> tuple[float, float, float]:
    counts = Counter(text)
    control = sum(count for character, count in counts.items() if character < " " and character not in "\t\n\r")
    return counts["\ufffd"] / len(text), control / len(text), max(counts.values()) / len(text)


@_suite("raw_pool", "few_near_duplicates", "The share of near-duplicates is at most the setting's.")
def _few_near_duplicates(gxe: ModuleType, subject: Subject) -> "_Expected":
    pool = subject.pool
    kept = pool.kept + (pool.near_duplicates if pool.near_duplicates_dropped else 0)
    limit = subject.settings.checks.max_near_duplicate_fraction
    return _frame(share=[pool.near_duplicates / max(kept, 1)]), [
        gxe.ExpectColumnValuesToBeBetween(column="share", max_value=limit)
    ]


@_suite(
    "embeddings",
    "vectors_sound",
    "One finite, non-zero vector of the model's dimension for each sample.",
    blocking=True,
)
def _vectors_sound(gxe: ModuleType, subject: Subject) -> "_Expected":
    vectors, output = np.asarray(subject.vectors), subject.output
    assert isinstance(output, VectorSet)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    finite = np.isfinite(vectors).all(axis=1)
    return _frame(norm=norms, finite=finite, dimension=np.full(len(vectors), vectors.shape[1])), [
        gxe.ExpectTableRowCountToEqual(value=subject.pool.kept),
        gxe.ExpectColumnValuesToBeInSet(column="dimension", value_set=[output.dimension]),
        gxe.ExpectColumnValuesToBeInSet(column="finite", value_set=[True]),
        gxe.ExpectColumnValuesToBeBetween(column="norm", min_value=0, strict_min=True),
    ]


@_suite(
    "embeddings",
    "texts_read",
    "The fraction of tokens that the model does not read is at most embedding.max_cut_fraction.",
)
def _texts_read(gxe: ModuleType, subject: Subject) -> "_Expected":
    assert isinstance(subject.output, VectorSet)
    limit = subject.settings.embedding.max_cut_fraction
    return _frame(unread_share=[subject.output.unread_fraction], samples_cut=[subject.output.cut_samples]), [
        gxe.ExpectColumnValuesToBeBetween(column="unread_share", max_value=limit)
    ]


@_suite("embeddings", "vectors_differ", "Nine of ten vectors differ.")
def _vectors_differ(gxe: ModuleType, subject: Subject) -> "_Expected":
    vectors = np.asarray(subject.vectors)
    return _frame(distinct_share=[len(distinct_rows(vectors)[0]) / len(vectors)]), [
        gxe.ExpectColumnValuesToBeBetween(column="distinct_share", min_value=0.9)
    ]


@_suite("distinct_pool", "counts_agree", "The numbers of samples and near-duplicates match the counts.", blocking=True)
def _counts_agree(gxe: ModuleType, subject: Subject) -> "_Expected":
    pool = subject.pool
    near, everything = subject.table("near_duplicates", ["id"])["id"], subject.table("samples", ["id"])
    left = len(everything) - (pc.count_distinct(near).as_py() if pool.near_duplicates_dropped else 0)
    counts = _frame(
        count=["samples", "samples left", "near-duplicates"],
        said=[pool.kept, pool.kept, pool.near_duplicates],
        found=[len(subject.samples(["id"])), left, len(near)],
    )
    return counts, [gxe.ExpectColumnPairValuesToBeEqual(column_A="said", column_B="found")]


_suite("distinct_pool", "counts_add_up", _COUNTS_ADD_UP, blocking=True)(_counts_add_up)


@_suite(
    "distinct_pool",
    "partners_kept",
    "Every near-duplicate by vectors occurs once, and is at least as similar to a kept sample as the threshold.",
    blocking=True,
)
def _partners_kept(gxe: ModuleType, subject: Subject) -> "_Expected":
    near = [] if subject.pool.read_as is None else subject.table("near_duplicates").to_pylist()
    flagged = {row["id"] for row in near}
    rows = [row for row in near if row["found_by"] == BY_VECTORS]
    partners = _frame(
        id=[row["id"] for row in rows],
        score=[row["score"] for row in rows],
        partner_kept=[row["partner_id"] not in flagged for row in rows],
    )
    least = subject.settings.pool.near_duplicates.similarity
    return partners, [
        gxe.ExpectColumnValuesToBeUnique(column="id"),
        gxe.ExpectColumnValuesToBeBetween(column="score", min_value=least, max_value=1),
        gxe.ExpectColumnValuesToBeInSet(column="partner_kept", value_set=[True]),
    ]


@_suite("distinct_pool", "few_near_duplicates", "The share of near-duplicates by vectors is at most the setting's.")
def _few_near_duplicates_by_vectors(gxe: ModuleType, subject: Subject) -> "_Expected":
    """The share is that among the samples that were compared."""
    share = 0.0
    if subject.pool.read_as is not None:
        by = subject.table("near_duplicates", ["found_by"])["found_by"].to_pylist()
        share = by.count(BY_VECTORS) / len(subject.table("similar", ["id"]))
    limit = subject.settings.checks.max_near_duplicate_fraction
    return _frame(share=[share]), [gxe.ExpectColumnValuesToBeBetween(column="share", max_value=limit)]


@_suite(
    "density",
    "density_sound",
    "Densities are finite, factors positive, and the search reached the required recall.",
    blocking=True,
)
def _density_sound(gxe: ModuleType, subject: Subject) -> "_Expected":
    assert isinstance(subject.output, DensityTable)
    rows = _pandas(subject.output.table(subject.root)).assign(recall=subject.output.recall)
    largest = float(np.finfo(np.float64).max)
    return rows, [
        gxe.ExpectTableRowCountToEqual(value=subject.pool.kept),
        gxe.ExpectColumnValuesToNotBeNull(column="mean_squared_distance"),
        gxe.ExpectColumnValuesToBeBetween(column="mean_squared_distance", min_value=0, max_value=largest),
        gxe.ExpectColumnValuesToBeBetween(column="density_factor", min_value=0, strict_min=True, max_value=largest),
        gxe.ExpectColumnValuesToBeBetween(column="recall", min_value=subject.settings.novelsum.min_recall),
    ]


@_suite("sample_novelty", "novelty_in_range", "Novelty is finite and in range.", blocking=True)
def _novelty_in_range(gxe: ModuleType, subject: Subject) -> "_Expected":
    assert isinstance(subject.output, NoveltyTable)
    # A cosine distance is at most 2, the largest factor is epsilon ** -beta; rounding can reach just below zero.
    largest = 2 * 1e9**subject.output.density_power
    return _pandas(subject.output.table(subject.root)), [
        gxe.ExpectTableRowCountToEqual(value=subject.pool.kept),
        gxe.ExpectColumnValuesToNotBeNull(column="novelty"),
        gxe.ExpectColumnValuesToBeBetween(column="novelty", min_value=-1e-3, max_value=largest),
    ]


@_suite("selected_subset", "picks_sound", "k distinct samples of the pool, ranked.", blocking=True)
def _picks_sound(gxe: ModuleType, subject: Subject) -> "_Expected":
    subset = subject.output
    assert isinstance(subset, Subset)
    picks = _pandas(subset.picks(subject.root, ["rank", "id"]))
    picks["in_pool"] = picks["id"].isin(set(subject.samples(["id"])["id"].to_pylist()))
    k = subset.settings.k
    return picks, [
        gxe.ExpectTableRowCountToEqual(value=k),
        *([] if subset.settings.strategy == "duplicate" else [gxe.ExpectColumnValuesToBeUnique(column="id")]),
        gxe.ExpectColumnValuesToBeInSet(column="in_pool", value_set=[True]),
        gxe.ExpectColumnValuesToBeUnique(column="rank"),
        gxe.ExpectColumnValuesToBeBetween(column="rank", min_value=1, max_value=k),
    ]


@_suite("selected_subset", "sources_balanced", "No source dominates the subset.")
def _sources_balanced(gxe: ModuleType, subject: Subject) -> "_Expected":
    picks = subject.output.picks(subject.root, ["source"])
    pool, subset = (
        table["source"].to_pandas().value_counts(normalize=True) for table in (subject.samples(["source"]), picks)
    )
    subset = subset.reindex(pool.index).fillna(0.0)
    shares = _frame(
        source=pool.index, pool=pool.to_numpy(), subset=subset.to_numpy(), growth=(subset / pool).to_numpy()
    )
    checks = subject.settings.checks
    most = {"growth": checks.max_source_growth}
    if len({file.source for file in subject.pool.files}) > 1:
        most["subset"] = checks.max_source_share
    return shares, [gxe.ExpectColumnValuesToBeBetween(column=name, max_value=share) for name, share in most.items()]


@_suite(
    "selected_subset",
    "near_duplicates_not_favoured",
    "Near-duplicates are not picked far more often than others. They are in dense regions, where the density factor"
    " raises scores; set pool.near_duplicates.drop if this warns.",
)
def _near_duplicates_not_favoured(gxe: ModuleType, subject: Subject) -> "_Expected":
    pool = subject.pool
    flagged = set(subject.table("near_duplicates", ["id"])["id"].to_pylist())
    picked = subject.output.picks(subject.root, ["id"])["id"].to_pylist()
    in_pool = 0 if pool.near_duplicates_dropped else len(flagged)
    in_subset = sum(id_ in flagged for id_ in picked)
    shares = _frame(
        pool_share=[in_pool / pool.kept],
        subset_share=[in_subset / len(picked)],
        growth=[in_subset / len(picked) * pool.kept / in_pool if in_pool else 0.0],
    )
    limit = subject.settings.checks.max_near_duplicate_growth
    return shares, [gxe.ExpectColumnValuesToBeBetween(column="growth", max_value=limit)]


@_suite("novelsum_report", "selected_beats_random", "NovelSum of the subset is at least that of a random one.")
def _selected_beats_random(gxe: ModuleType, subject: Subject) -> "_Expected":
    report = subject.output
    assert isinstance(report, NovelSumReport)
    return _frame(selected=[report.of(SELECTED).value], random=[report.of(RANDOM).value]), [
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="selected", column_B="random", or_equal=True)
    ]


def _comparison(subject: Subject) -> Comparison:
    assert isinstance(subject.output, Changes)
    return subject.output.comparison(subject.root)


@_suite(
    "changes",
    "novelsum_steady",
    "NovelSum of the subset is close to that of the previous state, if the two can be compared.",
)
def _novelsum_steady(gxe: ModuleType, subject: Subject) -> "_Expected":
    """The subset's NovelSum before and after; no row if the two cannot be compared."""
    row = _comparison(subject).measure(SELECTED, "novelsum")
    rows = [row] if row is not None and row.difference is not None else []
    values = _frame(
        before=[row.before for row in rows],
        after=[row.after for row in rows],
        drift=[abs(row.after - row.before) / max(abs(row.before), 1e-12) for row in rows],
    )
    limit = subject.settings.checks.max_novelsum_drift
    return values, [gxe.ExpectColumnValuesToBeBetween(column="drift", max_value=limit)]


@_suite("changes", "sources_steady", "Each source has about the same share of the pool as in the previous state.")
def _sources_steady(gxe: ModuleType, subject: Subject) -> "_Expected":
    pool = _comparison(subject).pool
    sources = pool.sources if pool else ()
    shares = _frame(
        source=[one.source for one in sources],
        before=[one.share_before for one in sources],
        after=[one.share_after for one in sources],
        drift=[abs(one.share_after - one.share_before) for one in sources],
    )
    limit = subject.settings.checks.max_source_drift
    return shares, [gxe.ExpectColumnValuesToBeBetween(column="drift", max_value=limit)]
