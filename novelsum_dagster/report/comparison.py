"""A comparison of sets as JSON and as tables on disk.

Belongs here: the exchange format of measures for other programs. Does not: measuring (`measures`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from novelsum_dagster.common.files import write_csv_and_table, write_json
from novelsum_dagster.diversity.measures import Comparison, SetMeasures

_TABLES = ("measures", "novelsum", "novelty")
WRITTEN = ("comparison.json", *(f"{name}{ending}" for name in _TABLES for ending in (".csv", ".parquet")))
"""Names of the files that `write_comparison` writes."""


def comparison_json(comparison: Comparison, settings: dict[str, Any], content: Mapping[str, str]) -> dict[str, Any]:
    """Return a comparison as a JSON-able value.

    Args:
        comparison: what was measured.
        settings: of the measures.
        content: content hash of each set, and of the reference.
    """
    return {
        "sets": [_set_json(one, content.get(one.name)) for one in comparison.sets],
        "settings": {**settings, "ttr_tokens": comparison.ttr_tokens},
        "content": dict(content),
        "notes": list(comparison.notes),
    }


def write_comparison(
    comparison: Comparison,
    ids: Mapping[str, Sequence[str]],
    settings: dict[str, Any],
    content: Mapping[str, str],
    folder: Path,
) -> None:
    """Write a comparison to a folder: comparison.json, and as .csv and .parquet measures, novelsum and novelty.

    Args:
        comparison: what was measured.
        ids: ids of each set's samples, in order.
        settings: of the measures.
        content: content hash of each set, and of the reference.
        folder: destination.
    """
    write_json(comparison_json(comparison, settings, content), folder / "comparison.json")
    write_csv_and_table(
        pa.Table.from_pylist([row for one in comparison.sets for row in one.records()]), folder / "measures"
    )
    write_csv_and_table(
        pa.Table.from_pylist([row for one in comparison.sets for row in grid_records(one)]), folder / "novelsum"
    )
    novelty = [
        pa.table(
            {
                "set": [one.name] * len(one.rows),
                "id": [ids[one.name][row] for row in one.rows],
                "novelty": one.novelsum.novelty,
            }
        )
        for one in comparison.sets
    ]
    write_csv_and_table(pa.concat_tables(novelty), folder / "novelty")


def grid_records(one: SetMeasures) -> list[dict[str, Any]]:
    """Return one row per setting of NovelSum: set, neighbors, density_power, proximity_power, value, low, high."""
    rows = []
    for powers, found in one.grid.items():
        low, high = found.interval()
        rows.append({"set": one.name, **powers._asdict(), "value": found.value, "low": low, "high": high})
    return rows


def _set_json(one: SetMeasures, content: str | None) -> dict[str, Any]:
    return {
        "set": one.name,
        "content": content,
        "samples": one.samples,
        "measured": len(one.rows),
        "measures": {key: asdict(found) for key, found in one.values.items()},
        "novelsum": [{name: row[name] for name in row if name != "set"} for row in grid_records(one)],
    }
