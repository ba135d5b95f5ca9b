"""The report of a selection: pool, random subset and selected subset, measured identically at equal size.

Belongs here: which sets are measured, and the report's folder. Does not: the measures, the page (`page`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.files import content_key, place_folder, temporary_folder, write_json
from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.diversity.measures import (
    Comparison,
    Evaluator,
    Samples,
    SetMeasures,
    Value,
    measure_sets,
    record,
)
from novelsum_dagster.diversity.novelsum import Factors, novelsum_with_densities
from novelsum_dagster.embedding.cut import cut_of
from novelsum_dagster.embedding.encoder import special_tokens
from novelsum_dagster.report.explanation import (
    RANDOM,
    SELECTED,
    Compared,
    Explanation,
    compare,
    explain,
    facts_of,
    random_rows,
)
from novelsum_dagster.report.page import Contents, write_page
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.settings import Settings

__all__ = [
    "FRESH",
    "POOL_SAMPLE",
    "RANDOM",
    "REPORT_COLUMNS",
    "SELECTED",
    "NovelSumReport",
    "SetMeasure",
    "build_report",
]

POOL_DRAWS = 10
"""Samples of the pool whose NovelSum is measured; the report gives their mean and range."""
POOL_SAMPLE, FRESH = "pool sample", "fresh"
REPORT_COLUMNS = [
    *("id", "source", "file", "position", "line"),
    *("tokens", "text_tokens", "turns", "characters", "text"),
]
"""Columns of the pool's samples that the report shows."""


class SetMeasure(BaseModel):
    """One measure of one set.

    `low` and `high`: a 95 % bootstrap interval; for the pool sample the least and greatest of its draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set_name: str
    size: int
    measure: str
    value: float
    low: float
    high: float


class NovelSumReport(Artifact):
    """Measures of sets of equal size, with density taken from the pool."""

    folder: str
    sets: tuple[SetMeasure, ...]
    explanation: Explanation | None = None
    """None in reports of an earlier version."""

    def of(self, set_name: str, measure: str = "novelsum") -> SetMeasure:
        """Return one measure of one set: `pool sample` (NovelSum only), `random`, `selected`, `fresh`."""
        return next(row for row in self.sets if (row.set_name, row.measure) == (set_name, measure))

    @property
    def compared(self) -> tuple[Compared, ...]:
        """The measures of the selected subset and of the random one."""
        by_set: dict[str, dict[str, Value]] = {SELECTED: {}, RANDOM: {}}
        for row in self.sets:
            by_set.setdefault(row.set_name, {})[row.measure] = Value(row.value, row.low, row.high)
        return compare(by_set[SELECTED], by_set[RANDOM])

    @property
    def given_up(self) -> float | None:
        """Loss of NovelSum of a subset that extends an earlier one, compared with a fresh one of its size."""
        if all(row.set_name != FRESH for row in self.sets):
            return None
        return self.of(FRESH).value - self.of(SELECTED).value


def build_report(
    root: Path,
    samples: pa.Table,
    vectors: NDArray[np.float32],
    density_factor: NDArray[np.float64],
    novelty: NDArray[np.float64],
    selected: NDArray[np.int64],
    to_selected: NDArray[np.float64],
    *,
    inputs: dict[str, str],
    near_duplicates: int,
    settings: Settings,
    seed: int,
    reporter: Reporter,
    fresh: NDArray[np.int64] | None = None,
    nearest: NDArray[np.float64] | None = None,
) -> NovelSumReport:
    """Measure the sets and write the report's folder under `root/reports`: the page, its pictures and its tables.

    Args:
        root: the storage folder.
        samples: the pool, `REPORT_COLUMNS`, in pool order.
        vectors: float32, (n, d), the pool.
        density_factor: float64, (n,), against the pool, at the settings' K and beta.
        novelty: float64, (n,), within the pool.
        selected: int64, (k,), rows of the selected subset in pick order.
        to_selected: float64, (n,), cosine distance of each sample to the nearest pick.
        inputs: keys of what was measured.
        near_duplicates: picks that are near-duplicates of another sample of the pool.
        settings: of the curation.
        seed: of the random subset, the pool's draws and the measures.
        reporter: shows progress.
        fresh: int64, (k,), rows of a fresh selection, if the subset extends an earlier one.
        nearest: float64, cosine of each sample to its nearest neighbour, if vectors were compared.

    Raises:
        ValueError: as the measures do.
    """
    generator = np.random.default_rng(seed)
    draws = [random_rows(len(vectors), len(selected), generator) for _ in range(POOL_DRAWS + 1)]
    factors = {(settings.novelsum.neighbors, settings.novelsum.density_power): density_factor}
    with reporter.step("preparing"):
        evaluator = Evaluator(vectors, settings.novelsum, settings.measures, seed=seed, device=settings.device)
    sets = {RANDOM: draws[0], SELECTED: selected, **({FRESH: fresh} if fresh is not None else {})}
    comparison = measure_sets(
        {name: Samples(vectors[rows], _texts(samples, rows)) for name, rows in sets.items()},
        evaluator,
        factors={name: _of_rows(factors, rows) for name, rows in sets.items()},
        seed=seed,
        reporter=reporter,
    )
    pool = []
    for draw in draws[1:]:
        (novelsum,) = novelsum_with_densities(vectors[draw], _of_rows(factors, draw), evaluator.options).values()
        pool.append(novelsum.value)
    rows = [_pool_row(pool, len(selected)), *(row for one in comparison.sets for row in _rows(one))]
    cut = cut_of(samples["text_tokens"].to_pylist(), settings.embedding, special_tokens(settings.embedding))
    to_random = covering(vectors, draws[0], 1).distance[:, 0]
    facts = facts_of(
        vectors,
        samples["source"],
        selected,
        draws[0],
        to_selected,
        to_random,
        near_duplicates=near_duplicates,
        unread=cut.fraction,
        seed=seed,
    )
    values = {one.name: one.values for one in comparison.sets}
    explanation = explain(compare(values[SELECTED], values[RANDOM]), facts, settings)
    described: dict[str, Any] = {"inputs": inputs, "settings": _described(settings), "seed": seed}
    found = {
        "sets": [row.model_dump() for row in rows],
        "explanation": explanation.model_dump(mode="json"),
    }
    key = content_key({**described, **found})
    contents = Contents(
        title="Diversity of the selected subset",
        measures=pa.Table.from_pylist([_labelled(row) for row in rows]),
        samples=samples,
        vectors=vectors,
        novelty=novelty,
        selected=selected,
        to_selected=to_selected,
        to_random=to_random,
        cells=evaluator.partition.cells(vectors),
        explanation=explanation,
        settings={**described["settings"], "seed": seed},
        hashes={**inputs, "report": key},
        nearest=nearest,
        notes=(*_notes(comparison, len(selected)), *filter(None, [cut.words(settings.embedding)])),
    )
    with reporter.step("report"), temporary_folder(root / "reports") as folder:
        write_json({**described, **found}, folder / "novelsum.json")
        write_page(folder, contents)
        place_folder(folder, root / output_folder("reports", key))
    return NovelSumReport(key=key, folder=output_folder("reports", key), sets=tuple(rows), explanation=explanation)


def _texts(samples: pa.Table, rows: NDArray[np.int64]) -> list[str]:
    texts: list[str] = samples["text"].take(pa.array(rows)).to_pylist()
    return texts


def _of_rows(factors: Factors, rows: NDArray[np.int64]) -> Factors:
    return {key: factor[rows] for key, factor in factors.items()}


def _pool_row(found: list[float], size: int) -> SetMeasure:
    return SetMeasure(
        set_name=POOL_SAMPLE,
        size=size,
        measure="novelsum",
        value=float(np.mean(found)),
        low=min(found),
        high=max(found),
    )


def _rows(one: SetMeasures) -> list[SetMeasure]:
    return [
        SetMeasure(
            set_name=one.name, size=len(one.rows), measure=key, value=found.value, low=found.low, high=found.high
        )
        for key, found in one.values.items()
    ]


def _labelled(row: SetMeasure) -> dict[str, Any]:
    return record(row.set_name, row.size, row.measure, Value(row.value, row.low, row.high))


def _described(settings: Settings) -> dict[str, Any]:
    sections = ("pool", "embedding", "novelsum", "measures", "selection")
    return {name: getattr(settings, name).model_dump(mode="json") for name in sections}


def _notes(comparison: Comparison, size: int) -> tuple[str, ...]:
    return (
        f"All sets have {size:,} samples, because the measures depend on the number of samples.",
        f"The pool sample's NovelSum is the mean of {POOL_DRAWS} random draws, and its interval their range; the other"
        " intervals are 95 % bootstrap intervals over samples.",
        *comparison.notes,
    )
