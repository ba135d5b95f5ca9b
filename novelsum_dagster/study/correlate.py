"""Outcome of the correlation study: measures and performance of all sets joined, correlated, and written.

Belongs here: performance figures from a file or from the proxy, the best setting of NovelSum, the folder of results.
Does not: the coefficients (`correlation`), pictures (`scatter`), the sets (`sets`).
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import (
    content_key,
    place_folder,
    temporary_folder,
    write_bytes,
    write_csv_and_table,
    write_json,
)
from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.study.correlation import Correlation, coefficient, correlations, records
from novelsum_dagster.study.scatter import correlations_png, scatter_png, scatters_png
from novelsum_dagster.study.sets import StudyMeasures, StudyPerformance
from novelsum_dagster.study.training import z_scores

LABELS = {key: known.label for key, known in MEASURES.items()}
LOWER_IS_DIVERSE = frozenset(key for key, known in MEASURES.items() if not known.higher_is_diverse)
_PLACES = ("set", "strategy", "size", "seed", "copies", "performance")


class StudyCorrelation(Artifact):
    """The stored outcome of a study, in `folder`; `performance` describes the origin of its figures."""

    folder: str
    performance: str
    sets: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of a study.

    Attributes:
        sets: one row per set: set, strategy, performance, and one column per measure, null if a set has none; also
            size, seed and copies, if known.
        correlations: of every measure with performance.
        grid: one row per setting of NovelSum: neighbors, density_power, proximity_power, and pearson, spearman and
            kendall over all sets, the best Pearson first; empty if no grid was measured.
        performance: a phrase that describes the origin of the performance figures.
    """

    sets: pa.Table
    correlations: list[Correlation]
    grid: list[dict[str, Any]]
    performance: str

    @property
    def measures(self) -> dict[str, str]:
        """The measures' labels by column."""
        return {name: LABELS.get(name, name) for name in self.sets.column_names if name not in _PLACES}


def joined(measured: Mapping[str, StudyMeasures], performance: Mapping[str, float], source: str) -> Outcome:
    """Correlate the measures of sets with their performance, within sets of equal size.

    Args:
        measured: by set.
        performance: by set, higher is better; exactly those measured.
        source: a phrase that describes the origin of the performance figures.

    Raises:
        InputError: for sets without performance, or performance of unknown sets.
    """
    _require_same(set(measured), set(performance))
    names = list(measured)
    values = {
        key: np.array([_value(measured[name], key) for name in names])
        for key in MEASURES
        if any(key in measured[name].values for name in names)
    }
    achieved = np.array([performance[name] for name in names], dtype=np.float64)
    recipes = [measured[name].recipe for name in names]
    columns: dict[str, Any] = {
        "set": names,
        "strategy": [recipe.strategy for recipe in recipes],
        "size": [recipe.size for recipe in recipes],
        "seed": [recipe.seed for recipe in recipes],
        "copies": [recipe.copies for recipe in recipes],
        "performance": achieved,
        **{key: pa.array(of_sets, from_pandas=True) for key, of_sets in values.items()},
    }
    sizes = np.array(columns["size"])
    compared = {key: within_sizes(of_sets, sizes) for key, of_sets in values.items()}
    performed = within_sizes(achieved, sizes)
    found = correlations(compared, performed, columns["strategy"], LOWER_IS_DIVERSE)
    return Outcome(pa.table(columns), found, _grid([measured[name] for name in names], performed, sizes), source)


def within_sizes(values: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return values, (n,), as z-scores among the sets of equal size; values of sets of one size are returned as such.

    NaN stays NaN; equal values become 0.
    """
    if len(np.unique(sizes)) == 1:
        return values
    scores = np.full(len(values), np.nan)
    for size in np.unique(sizes):
        of_size = values[sizes == size]
        known = of_size[np.isfinite(of_size)]
        deviation = known.std() if len(known) and np.ptp(known) > 0 else 1.0
        scores[sizes == size] = (of_size - (known.mean() if len(known) else 0.0)) / deviation
    return scores


def read_scatter(path: Path) -> Outcome:
    """Correlate figures in a CSV file: strategy, performance, and one column per measure.

    A column `set` names the sets; without it they are numbered. Other columns are taken as measures, by the names or
    labels of `MEASURES` or any other; higher is taken as more diverse, but for facility_location.

    Raises:
        InputError: for a file that cannot be read, lacks a column, or has a value that is not a number; names the line.
    """
    rows = csv_rows(path, {"strategy", "performance"})
    names = [name for name in rows[0][1] if name not in _PLACES]
    if not names:
        raise InputError(f"{path}: has no column besides strategy and performance; add a measure, as novelsum")
    if "" in names:
        raise InputError(f"{path}: has a column without a name; name it, or leave it out")
    values = {_key(name): np.array([csv_number(path, line, row, name) for line, row in rows]) for name in names}
    achieved = np.array([csv_number(path, line, row, "performance") for line, row in rows])
    strategies = [row["strategy"] for _, row in rows]
    columns = {
        "set": [row.get("set") or str(number) for number, (_, row) in enumerate(rows, 1)],
        "strategy": strategies,
        "performance": achieved,
        **values,
    }
    return Outcome(
        pa.table(columns), correlations(values, achieved, strategies, LOWER_IS_DIVERSE), [], f"column of {path.name}"
    )


def _key(name: str) -> str:
    """Return the key of the measure that a column name or label means; other names are returned unchanged."""
    words = re.sub("[^a-z0-9]+", "_", name.strip().lower())
    return words if words in MEASURES else name


def read_performance(path: Path, sets: Sequence[str]) -> dict[str, float]:
    """Return the performance of each set from a CSV file with the columns set and performance.

    Raises:
        InputError: for a file that cannot be read, lacks a column, names a set twice, lacks a set, has an unknown one,
            or a value that is not a number; says which.
    """
    found: dict[str, float] = {}
    for line, row in csv_rows(path, {"set", "performance"}):
        name = row["set"]
        if name not in sets:
            raise InputError(f"{path}:{line}: the study has no set {name!r}; its sets are {_some(sorted(sets))}")
        if name in found:
            raise InputError(f"{path}:{line}: set {name} is listed twice")
        found[name] = csv_number(path, line, row, "performance")
    _require_same(set(sets), set(found), f"{path}: ")
    return {name: found[name] for name in sets}


def proxy_performance(trained: Mapping[str, StudyPerformance], unseen: str | None = None) -> dict[str, float]:
    """Return the z-score of each set's held-out loss with reversed sign (higher is better), averaged over sources.

    The loss is the mean over training seeds. Sets are compared with those of their own size. The source `unseen`, from
    which no set is chosen, does not count.

    Raises:
        InputError: as `z_scores` does.
    """
    by_size: dict[int, dict[str, dict[str, float]]] = {}
    for name, one in trained.items():
        seen = {source: loss for source, loss in one.losses.items() if source != unseen}
        by_size.setdefault(one.recipe.size, {})[name] = seen
    scores = {name: score for of_size in by_size.values() for name, score in z_scores(of_size).items()}
    return {name: scores[name] for name in trained}


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write a study's outcome into a folder.

    sets, correlations and, if measured, grid as .csv and .parquet; outcome.json; scatter.png of the first
    measure, measures.png of all, and correlations.png.

    Args:
        outcome: of the study.
        folder: target; files of these names are replaced.
    """
    write_csv_and_table(outcome.sets, folder / "sets")
    write_csv_and_table(pa.Table.from_pylist(records(outcome.correlations)), folder / "correlations")
    if outcome.grid:
        write_csv_and_table(pa.Table.from_pylist(outcome.grid), folder / "grid")
    write_json(outcome_json(outcome), folder / "outcome.json")
    first = next(iter(outcome.measures))
    write_bytes(scatter_png(outcome.sets, outcome.correlations, first, outcome.measures[first]), folder / "scatter.png")
    write_bytes(scatters_png(outcome.sets, outcome.correlations, outcome.measures), folder / "measures.png")
    write_bytes(correlations_png(outcome.correlations, outcome.measures), folder / "correlations.png")


def keep_outcome(root: Path, outcome: Outcome, inputs: Sequence[str]) -> StudyCorrelation:
    """Write a study's outcome under the storage folder, unless it exists already.

    Args:
        root: the storage folder.
        outcome: of the study.
        inputs: keys of the inputs of the study.
    """
    key = content_key({"inputs": list(inputs), "outcome": outcome_json(outcome)})
    folder = f"study/correlation={key}"
    if not (root / folder).exists():  # The folder is placed atomically, so one file implies all.
        with temporary_folder(root / "study") as built:
            write_outcome(outcome, built)
            place_folder(built, root / folder)
    return StudyCorrelation(key=key, folder=folder, performance=outcome.performance, sets=len(outcome.sets))


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return a study's outcome as a JSON-able value."""
    return {
        "performance": outcome.performance,
        "sets": outcome.sets.to_pylist(),
        "correlations": records(outcome.correlations),
        "grid": outcome.grid,
    }


def _value(measured: StudyMeasures, key: str) -> float:
    return measured.values[key].value if key in measured.values else math.nan


def _grid(
    measured: Sequence[StudyMeasures], performance: NDArray[np.float64], sizes: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return every setting of NovelSum with its coefficients over all sets, the best first."""
    rows = []
    for number, setting in enumerate(measured[0].grid):
        values = within_sizes(np.array([one.grid[number].value for one in measured]), sizes)
        found = {method: coefficient(values, performance, method)[0] for method in ("pearson", "spearman", "kendall")}
        rows.append({**setting.model_dump(exclude={"value"}), **found})
    return sorted(rows, key=lambda row: math.inf if row["pearson"] is None else -row["pearson"])


def _require_same(wanted: set[str], given: set[str], where: str = "") -> None:
    if missing := sorted(wanted - given):
        raise InputError(f"{where}no performance for {len(missing)} of {len(wanted)} sets: {_some(missing)}")
    if unknown := sorted(given - wanted):
        raise InputError(
            f"{where}performance of {len(unknown)} sets that the study does not have: {_some(unknown)}; its sets are"
            f" {_some(sorted(wanted))}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def csv_rows(path: Path, needed: set[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV file by column, each with the line on which it begins; empty lines are left out.

    Raises:
        InputError: for a file that cannot be read, lacks a column, has one twice, or has no rows; names the line.
    """
    lines, line = [], 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for values in reader:
                lines.append((line, values))
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from None
    (_, columns), *rows = [(line, values) for line, values in lines if values] or [(1, [])]
    if lacking := sorted(needed - set(columns)):
        raise InputError(f"{path}: has no column {lacking[0]}; it has {', '.join(columns) or 'none'}")
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}: has two columns {max(columns, key=columns.count)}")
    if not rows:
        raise InputError(f"{path}: has no rows")
    for line, values in rows:
        if len(values) != len(columns):
            raise InputError(f"{path}:{line}: has {len(values)} values in place of {len(columns)}")
    return [(line, dict(zip(columns, values, strict=True))) for line, values in rows]


def csv_number(path: Path, line: int, row: Mapping[str, str], column: str) -> float:
    """Return the number in a column of a row.

    Raises:
        InputError: if it is none, or not finite; names the line.
    """
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}:{line}: {column} is {text!r}; it must be a number")
    return value
