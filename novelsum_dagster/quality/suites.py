"""Expectation suites for each step's output.

Belongs here: which columns are checked, which expectations they must meet, which failures stop the pipeline.
Does not: running Great Expectations (`validate`), Dagster.

Each suite sees a small frame of aggregates or columns, never a copy of texts or vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from novelsum_dagster.report.novelsum_report import SELECTED, NovelSumReport
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

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


@dataclass(frozen=True)
class Suite:
    """One check of one step.

    Attributes:
        step: the asset's name.
        name: the check's name.
        blocking: True if a failure means wrong data and stops the pipeline; False if it only warns.
        description: shown to users.
        frame: returns the rows to check.
        expectations: returns the Great Expectations expectations over those rows.
    """

    step: str
    name: str
    blocking: bool
    description: str
    frame: "Callable[[Subject], pd.DataFrame]"
    expectations: "Callable[[Subject], list[Expectation]]"


def _pool(subject: Subject) -> PoolSnapshot:
    pool = subject.output if isinstance(subject.output, PoolSnapshot) else subject.snapshot
    assert pool is not None
    return pool


def _samples(columns: list[str]) -> "Callable[[Subject], pd.DataFrame]":
    return lambda subject: _pandas(_pool(subject).samples(subject.root, columns))


def _pandas(table: pa.Table) -> "pd.DataFrame":
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _frame(**columns: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(columns)


def _first_rows(subject: Subject) -> "pd.DataFrame":
    return _pandas(_pool(subject).table(subject.root, "samples").slice(0, 100))


def _expect_schema(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [gxe.ExpectTableColumnsToMatchSet(column_set=SAMPLES.names)]


def _expect_ids(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToNotBeNull(column="id"),
        gxe.ExpectColumnValuesToBeUnique(column="id"),
        gxe.ExpectColumnValuesToMatchRegex(column="id", regex=_ID),
        gxe.ExpectTableRowCountToEqual(value=_pool(subject).kept),
    ]


def _expect_fields(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limits = {"turns": (1, None), "characters": (1, None), "tokens": (0, None), "position": (1, None)}
    return [
        *(gxe.ExpectColumnValuesToNotBeNull(column=name) for name in ("source", "file", "form", *limits)),
        *(
            gxe.ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high)
            for name, (low, high) in limits.items()
        ),
    ]


def _file_counts(subject: Subject) -> "pd.DataFrame":
    files = _pool(subject).files
    return _frame(
        file=[file.file for file in files],
        read=[file.read for file in files],
        accounted_for=[file.kept + file.duplicates + file.rejects + file.unread for file in files],
        complete=[file.complete for file in files],
    )


def _expect_counts(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnPairValuesToBeEqual(column_A="read", column_B="accounted_for"),
        gxe.ExpectColumnValuesToBeBetween(column="read", min_value=1),
    ]


def _folded_columns(subject: Subject) -> "pd.DataFrame":
    folded = [(file.file, found) for file in _pool(subject).files for found in file.folded]
    places = [f"{found.column}: {file}, record {found.position} repeats {found.id}" for file, found in folded]
    return _frame(differs=places or [""], records=[found.records for _, found in folded] or [0])


def _expect_agreement(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeBetween(column="records", max_value=0),
        gxe.ExpectColumnValuesToBeInSet(column="differs", value_set=[""]),
    ]


def _expect_complete(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [gxe.ExpectColumnValuesToBeInSet(column="complete", value_set=[True])]


def _text_shares(subject: Subject) -> "pd.DataFrame":
    """Language-independent shares: of replacement and control characters, and of the most frequent character."""
    shares = [_shares(text) for text in _pool(subject).samples(subject.root, ["text"])["text"].to_pylist()]
    return _frame(
        replacement=[share[0] for share in shares],
        control=[share[1] for share in shares],
        commonest=[share[2] for share in shares],
    )


def _shares(text: str) -> tuple[float, float, float]:
    from collections import Counter

    counts = Counter(text)
    control = sum(count for character, count in counts.items() if character < " " and character not in "\t\n\r")
    commonest = max(count for character, count in counts.items())
    return counts["\ufffd"] / len(text), control / len(text), commonest / len(text)


def _expect_sane_text(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limits = {"replacement": 0.01, "control": 0.01, "commonest": 0.6}
    return [
        gxe.ExpectColumnValuesToBeBetween(column=name, max_value=limit, mostly=_MOSTLY)
        for name, limit in limits.items()
    ]


def _near_duplicate_share(subject: Subject) -> "pd.DataFrame":
    pool = _pool(subject)
    kept = pool.kept + (pool.near_duplicates if pool.near_duplicates_dropped else 0)
    return _frame(share=[pool.near_duplicates / max(kept, 1)])


def _similar_share(subject: Subject) -> "pd.DataFrame":
    """The share of near-duplicates by vectors among the samples that were compared."""
    pool = _pool(subject)
    if pool.read_as is None:
        return _frame(share=[0.0])
    by = pool.table(subject.root, "near_duplicates", ["found_by"])["found_by"].to_pylist()
    compared = pool.table(subject.root, "similar", ["id"])
    return _frame(share=[by.count(BY_VECTORS) / len(compared)])


def _counted(subject: Subject) -> "pd.DataFrame":
    pool = _pool(subject)
    near = pool.table(subject.root, "near_duplicates", ["id"])["id"]
    everything = pool.table(subject.root, "samples", ["id"])["id"]
    left = len(everything) - (pc.count_distinct(near).as_py() if pool.near_duplicates_dropped else 0)
    return _frame(
        count=["samples", "samples left", "near-duplicates"],
        said=[pool.kept, pool.kept, pool.near_duplicates],
        found=[len(pool.samples(subject.root, ["id"])), left, len(near)],
    )


def _expect_said(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [gxe.ExpectColumnPairValuesToBeEqual(column_A="said", column_B="found")]


def _partners(subject: Subject) -> "pd.DataFrame":
    """Near-duplicates by vectors, and whether their partners were kept."""
    pool = _pool(subject)
    near = pool.table(subject.root, "near_duplicates")
    if pool.read_as is None:
        return _frame(id=[], score=[], partner_kept=[])
    flagged = set(near["id"].to_pylist())
    rows = [row for row in near.to_pylist() if row["found_by"] == BY_VECTORS]
    return _frame(
        id=[row["id"] for row in rows],
        score=[row["score"] for row in rows],
        partner_kept=[row["partner_id"] not in flagged for row in rows],
    )


def _expect_partners(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    least = subject.settings.pool.near_duplicates.similarity
    return [
        gxe.ExpectColumnValuesToBeUnique(column="id"),
        gxe.ExpectColumnValuesToBeBetween(column="score", min_value=least, max_value=1),
        gxe.ExpectColumnValuesToBeInSet(column="partner_kept", value_set=[True]),
    ]


def _expect_few_near_duplicates(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limit = subject.settings.checks.max_near_duplicate_fraction
    return [gxe.ExpectColumnValuesToBeBetween(column="share", max_value=limit)]


def _vector_facts(subject: Subject) -> "pd.DataFrame":
    vectors, output = np.asarray(subject.vectors), subject.output
    assert isinstance(output, VectorSet)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    finite = np.isfinite(vectors).all(axis=1)
    return _frame(norm=norms, finite=finite, dimension=np.full(len(vectors), vectors.shape[1]))


def _unread(subject: Subject) -> "pd.DataFrame":
    assert isinstance(subject.output, VectorSet)
    return _frame(unread_share=[subject.output.unread_fraction], samples_cut=[subject.output.cut_samples])


def _expect_read(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limit = subject.settings.embedding.max_cut_fraction
    return [gxe.ExpectColumnValuesToBeBetween(column="unread_share", max_value=limit)]


def _expect_vectors(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=_pool(subject).kept),
        gxe.ExpectColumnValuesToBeInSet(column="dimension", value_set=[subject.output.dimension]),
        gxe.ExpectColumnValuesToBeInSet(column="finite", value_set=[True]),
        gxe.ExpectColumnValuesToBeBetween(column="norm", min_value=0, strict_min=True),
    ]


def _distinct_vectors(subject: Subject) -> "pd.DataFrame":
    vectors = np.asarray(subject.vectors)
    return _frame(distinct_share=[len(distinct_rows(vectors)[0]) / len(vectors)])


def _expect_distinct(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [gxe.ExpectColumnValuesToBeBetween(column="distinct_share", min_value=0.9)]


def _own_table(subject: Subject) -> "pd.DataFrame":
    assert isinstance(subject.output, DensityTable | NoveltyTable)
    return _pandas(subject.output.table(subject.root))


def _density_rows(subject: Subject) -> "pd.DataFrame":
    return _own_table(subject).assign(recall=subject.output.recall)


def _expect_density(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    largest = float(np.finfo(np.float64).max)
    return [
        gxe.ExpectTableRowCountToEqual(value=_pool(subject).kept),
        gxe.ExpectColumnValuesToNotBeNull(column="mean_squared_distance"),
        gxe.ExpectColumnValuesToBeBetween(column="mean_squared_distance", min_value=0, max_value=largest),
        gxe.ExpectColumnValuesToBeBetween(column="density_factor", min_value=0, strict_min=True, max_value=largest),
        gxe.ExpectColumnValuesToBeBetween(column="recall", min_value=subject.settings.novelsum.min_recall),
    ]


def _expect_novelty(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    # A cosine distance is at most 2, the largest factor is epsilon ** -beta; rounding can reach just below zero.
    largest = 2 * 1e9**subject.output.density_power
    return [
        gxe.ExpectTableRowCountToEqual(value=_pool(subject).kept),
        gxe.ExpectColumnValuesToNotBeNull(column="novelty"),
        gxe.ExpectColumnValuesToBeBetween(column="novelty", min_value=-1e-3, max_value=largest),
    ]


def _picks(subject: Subject) -> "pd.DataFrame":
    assert isinstance(subject.output, Subset)
    picks = _pandas(subject.output.picks(subject.root, ["rank", "id"]))
    pool = set(_pool(subject).samples(subject.root, ["id"])["id"].to_pylist())
    picks["in_pool"] = picks["id"].isin(pool)
    return picks


def _expect_picks(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=subject.output.settings.k),
        *([] if subject.output.settings.strategy == "duplicate" else [gxe.ExpectColumnValuesToBeUnique(column="id")]),
        gxe.ExpectColumnValuesToBeInSet(column="in_pool", value_set=[True]),
        gxe.ExpectColumnValuesToBeUnique(column="rank"),
        gxe.ExpectColumnValuesToBeBetween(column="rank", min_value=1, max_value=subject.output.settings.k),
    ]


def _source_shares(subject: Subject) -> "pd.DataFrame":
    pool = _pool(subject).samples(subject.root, ["source"])["source"].to_pandas().value_counts(normalize=True)
    subset = subject.output.picks(subject.root, ["source"])["source"].to_pandas().value_counts(normalize=True)
    subset = subset.reindex(pool.index).fillna(0.0)
    return _frame(source=pool.index, pool=pool.to_numpy(), subset=subset.to_numpy(), growth=(subset / pool).to_numpy())


def _expect_balanced(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    checks = subject.settings.checks
    several = len({file.source for file in _pool(subject).files}) > 1
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(column="growth", max_value=checks.max_source_growth)
    ]
    if several:
        expectations.append(gxe.ExpectColumnValuesToBeBetween(column="subset", max_value=checks.max_source_share))
    return expectations


def _near_duplicate_growth(subject: Subject) -> "pd.DataFrame":
    pool = _pool(subject)
    flagged = set(pool.table(subject.root, "near_duplicates", ["id"])["id"].to_pylist())
    picked = subject.output.picks(subject.root, ["id"])["id"].to_pylist()
    in_pool = 0 if pool.near_duplicates_dropped else len(flagged)
    in_subset = sum(id_ in flagged for id_ in picked)
    return _frame(
        pool_share=[in_pool / pool.kept],
        subset_share=[in_subset / len(picked)],
        growth=[in_subset / len(picked) * pool.kept / in_pool if in_pool else 0.0],
    )


def _expect_few_near_duplicates_picked(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limit = subject.settings.checks.max_near_duplicate_growth
    return [gxe.ExpectColumnValuesToBeBetween(column="growth", max_value=limit)]


def _report_values(subject: Subject) -> "pd.DataFrame":
    report = subject.output
    assert isinstance(report, NovelSumReport)
    return _frame(selected=[report.of("selected").value], random=[report.of("random").value])


def _expect_gain(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="selected", column_B="random", or_equal=True)]


def _comparison(subject: Subject) -> Comparison:
    assert isinstance(subject.output, Changes)
    return subject.output.comparison(subject.root)


def _novelsum_drift(subject: Subject) -> "pd.DataFrame":
    """The subset's NovelSum before and after; no row if the two cannot be compared."""
    row = _comparison(subject).measure(SELECTED, "novelsum")
    rows = [row] if row is not None and row.difference is not None else []
    return _frame(
        before=[row.before for row in rows],
        after=[row.after for row in rows],
        drift=[abs(row.after - row.before) / max(abs(row.before), 1e-12) for row in rows],
    )


def _expect_steady_novelsum(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limit = subject.settings.checks.max_novelsum_drift
    return [gxe.ExpectColumnValuesToBeBetween(column="drift", max_value=limit)]


def _source_drift(subject: Subject) -> "pd.DataFrame":
    pool = _comparison(subject).pool
    sources = pool.sources if pool else ()
    return _frame(
        source=[one.source for one in sources],
        before=[one.share_before for one in sources],
        after=[one.share_after for one in sources],
        drift=[abs(one.share_after - one.share_before) for one in sources],
    )


def _expect_steady_sources(subject: Subject) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    limit = subject.settings.checks.max_source_drift
    return [gxe.ExpectColumnValuesToBeBetween(column="drift", max_value=limit)]


SUITES: tuple[Suite, ...] = (
    Suite("raw_pool", "schema", True, "The samples table has the expected columns.", _first_rows, _expect_schema),
    Suite("raw_pool", "unique_ids", True, "Ids are content hashes, none twice.", _samples(["id"]), _expect_ids),
    Suite(
        "raw_pool",
        "fields_present",
        True,
        "Source, place, form and sizes are present and in range.",
        _samples(["source", "file", "form", "turns", "characters", "tokens", "position"]),
        _expect_fields,
    ),
    Suite(
        "raw_pool",
        "counts_add_up",
        True,
        "For every file: read = kept + duplicates + rejects + unread.",
        _file_counts,
        _expect_counts,
    ),
    Suite(
        "raw_pool",
        "folded_records_agree",
        False,
        "Exact duplicates agree in the columns that are not training content.",
        _folded_columns,
        _expect_agreement,
    ),
    Suite("raw_pool", "files_complete", True, "Every file was read to its end.", _file_counts, _expect_complete),
    Suite("raw_pool", "text_sanity", False, "Texts are text, in any language.", _text_shares, _expect_sane_text),
    Suite(
        "raw_pool",
        "few_near_duplicates",
        False,
        "The share of near-duplicates is at most the setting's.",
        _near_duplicate_share,
        _expect_few_near_duplicates,
    ),
    Suite(
        "embeddings",
        "vectors_sound",
        True,
        "One finite, non-zero vector of the model's dimension for each sample.",
        _vector_facts,
        _expect_vectors,
    ),
    Suite(
        "embeddings",
        "texts_read",
        False,
        "The fraction of tokens that the model does not read is at most embedding.max_cut_fraction.",
        _unread,
        _expect_read,
    ),
    Suite("embeddings", "vectors_differ", False, "Nine of ten vectors differ.", _distinct_vectors, _expect_distinct),
    Suite(
        "distinct_pool",
        "counts_agree",
        True,
        "The numbers of samples and near-duplicates match the counts.",
        _counted,
        _expect_said,
    ),
    Suite(
        "distinct_pool",
        "counts_add_up",
        True,
        "For every file: read = kept + duplicates + rejects + unread.",
        _file_counts,
        _expect_counts,
    ),
    Suite(
        "distinct_pool",
        "partners_kept",
        True,
        "Every near-duplicate by vectors occurs once, and is at least as similar to a kept sample as the threshold.",
        _partners,
        _expect_partners,
    ),
    Suite(
        "distinct_pool",
        "few_near_duplicates",
        False,
        "The share of near-duplicates by vectors is at most the setting's.",
        _similar_share,
        _expect_few_near_duplicates,
    ),
    Suite(
        "density",
        "density_sound",
        True,
        "Densities are finite, factors positive, and the search reached the required recall.",
        _density_rows,
        _expect_density,
    ),
    Suite("sample_novelty", "novelty_in_range", True, "Novelty is finite and in range.", _own_table, _expect_novelty),
    Suite("selected_subset", "picks_sound", True, "k distinct samples of the pool, ranked.", _picks, _expect_picks),
    Suite(
        "selected_subset",
        "sources_balanced",
        False,
        "No source dominates the subset.",
        _source_shares,
        _expect_balanced,
    ),
    Suite(
        "selected_subset",
        "near_duplicates_not_favoured",
        False,
        "Near-duplicates are not picked far more often than others. They are in dense regions, where the density factor"
        " raises scores; set pool.near_duplicates.drop if this warns.",
        _near_duplicate_growth,
        _expect_few_near_duplicates_picked,
    ),
    Suite(
        "novelsum_report",
        "selected_beats_random",
        False,
        "NovelSum of the subset is at least that of a random one.",
        _report_values,
        _expect_gain,
    ),
    Suite(
        "changes",
        "novelsum_steady",
        False,
        "NovelSum of the subset is close to that of the previous state, if the two can be compared.",
        _novelsum_drift,
        _expect_steady_novelsum,
    ),
    Suite(
        "changes",
        "sources_steady",
        False,
        "Each source has about the same share of the pool as in the previous state.",
        _source_drift,
        _expect_steady_sources,
    ),
)


def suites_of(step: str) -> list[Suite]:
    """Return the suites of one step."""
    return [suite for suite in SUITES if suite.step == step]
