"""The selected subset on disk: the picks with their record, and the samples in their original form.

Belongs here: writing one selection as a content-addressed folder. Does not: how picks are made (`strategies`).

| file | content |
|---|---|
| picks.parquet | a row per pick, in order: rank (from 1), id, place, score, runner-up, nearest earlier pick, density |
| eligibility.parquet | a row per pick: how it was made, how many samples were eligible, how many each limit ruled out |
| remaining.parquet | NovelSelect only: one row per sample of the pool, with its last score or upper bound |
| covering.parquet | one row per sample of the pool, with its three nearest picks and their distances |
| picks_vectors.parquet | the picks' vectors, in pick order |
| subset.jsonl | the original records in pick order, one JSON object a line |
| original/ | the same records, one file for each source, in the source's own format |
| manifest.json | settings, keys of all inputs, counts a source, SHA-256 of every file |
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import (
    content_key,
    file_hash,
    place_folder,
    temporary_folder,
    write_json,
    write_table,
)
from novelsum_dagster.pool.export import chosen_records, write_by_source, write_records
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.covering import NEAREST, Covering, covering
from novelsum_dagster.selection.picks import BARS, Eligibility, Picks, Remaining
from novelsum_dagster.selection.strategies import STRATEGIES
from novelsum_dagster.settings import Selection

_FILES_VERSION = 2
"""Version of a folder's content, so that a folder of an earlier version is not reused."""

ELIGIBILITY = "eligibility.parquet"
"""Missing in subsets of earlier releases."""

PICK_COLUMNS = {
    "rank": "1 for the first pick",
    "id": "the sample's content hash",
    "score": "the value by which it won: F of NovelSelect",
    "runner_up_id": "the sample that came second",
    "runner_up_score": "the second's value",
    "margin": "score less runner_up_score",
    "nearest_pick_rank": "rank of the nearest sample picked before",
    "nearest_pick_id": "that sample",
    "nearest_distance": "cosine distance to it",
    "density_factor": "larger where the pool is denser",
    "quality": "the factor of its score that the settings name",
    "by_exchange": "whether it replaced another in the end: density_side objective with swap_rounds",
}
"""Descriptions of the columns of picks.parquet, except the sample's place and sizes."""
SAMPLE_COLUMNS = ["id", "source", "file", "position", "line", "turns", "tokens"]
"""Columns of the pool's samples that picks.parquet has, too."""


class SelectionSettings(Artifact):
    """The values that a selection depends on; `key` is the hash of everything else."""

    strategy: str
    k: int
    """Picks made."""
    seed: int
    options: dict[str, Any]
    """All other settings of the selection that differ from their defaults."""
    density_power: float
    proximity_power: float
    snapshot: str
    vectors: str
    density: str


class Subset(Artifact):
    """A selected subset."""

    folder: str
    settings: SelectionSettings

    @property
    def drawn_with(self) -> int:
        return self.settings.seed

    def picks(self, root: Path, columns: list[str] | None = None) -> pa.Table:
        """Read the picks, in pick order.

        Raises:
            InputError: if the file is missing or damaged.
        """
        return read_picks(root / self.folder, columns)

    def eligibility(self, root: Path) -> pa.Table | None:
        """Read how every pick was made and what was eligible (`eligibility_table`); None if it is not recorded.

        Raises:
            InputError: if the file is damaged.
        """
        path = root / self.folder / ELIGIBILITY
        return _read(path) if path.exists() else None

    def reached(self, root: Path) -> dict[str, Any]:
        """Return the NovelSum that density_side `objective` reached, with its bound; empty for other selections."""
        manifest = json.loads((root / self.folder / "manifest.json").read_bytes())
        return {name: value for name, value in manifest.get("objective", {}).items() if value is not None}


def read_picks(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the picks of a selection from its folder, in pick order.

    Raises:
        InputError: if the file is missing or damaged.
    """
    return _read(folder / "picks.parquet", columns)


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: missing or damaged ({error}); delete it and run novelsum run") from None


def picks_table(samples: pa.Table, picks: Picks) -> pa.Table:
    """Return the picks as a table, one row per pick, in order; `samples` has `SAMPLE_COLUMNS` of the pool."""
    ids = samples["id"].to_pylist()
    places = samples.take(pa.array(picks.indices))
    nearest = [None if rank < 0 else ids[picks.indices[rank]] for rank in picks.nearest_pick]
    runner_up = [None if row < 0 else ids[row] for row in picks.runner_up]
    columns: dict[str, Any] = {
        "rank": np.arange(1, len(picks.indices) + 1),
        **{name: places[name] for name in samples.column_names},
        "score": _numbers(picks.score),
        "runner_up_id": pa.array(runner_up, pa.string()),
        "runner_up_score": _numbers(picks.runner_up_score),
        "margin": _numbers(picks.score - picks.runner_up_score),
        "nearest_pick_rank": pa.array([None if rank < 0 else int(rank) + 1 for rank in picks.nearest_pick], pa.int64()),
        "nearest_pick_id": pa.array(nearest, pa.string()),
        "nearest_distance": _numbers(picks.nearest_distance),
        "density_factor": picks.density_factor,
        "quality": _numbers(picks.quality),
    }
    if picks.exchanges is not None:
        columns["by_exchange"] = picks.exchanges.by_exchange
    return pa.table(columns)


def eligibility_table(picks: Picks) -> pa.Table:
    """Return how every pick was made and what was eligible then, as a table: rank, chosen_by, eligible, one of `BARS`.

    `chosen_by` is one of `ChosenBy`. The counts are null where no scores were compared, and for strategies without
    limits.
    """
    known, size = picks.eligibility, len(picks.indices)
    is_known = np.zeros(size, np.bool_) if known is None else known.eligible > 0
    counts = {} if known is None else {"eligible": known.eligible, **known.ruled_out}
    return pa.table(
        {
            "rank": np.arange(1, size + 1),
            "chosen_by": pa.array(picks.chosen_by, pa.string()),
            **{
                name: pa.array(counts.get(name, np.zeros(size, np.int64)), mask=~is_known)
                for name in ("eligible", *BARS)
            },
        }
    )


def remaining_table(ids: pa.ChunkedArray, remaining: Remaining, eligibility: Eligibility | None) -> pa.Table:
    """Return the last score or bound of every sample as a table, in pool order.

    Columns: id, score, after_picks, is_exact; eligible_picks, at how many picks made by score it was eligible, and
    barred_by, the one of `BARS` that ruled it out at the last pick. Those two are null after exchanges.
    """
    known = {"eligible_picks": pa.nulls(len(ids), pa.int64()), "barred_by": pa.nulls(len(ids), pa.string())}
    if eligibility is not None:
        names = pa.array([*BARS, None], pa.string())
        known = {
            "eligible_picks": eligibility.eligible_picks,
            "barred_by": names.take(pa.array(eligibility.barred % len(names))),
        }
    return pa.table(
        {
            "id": ids,
            "score": _numbers(remaining.score),
            "after_picks": remaining.at,
            "is_exact": remaining.is_exact,
            **known,
        }
    )


def rows_of(ids: list[str], picked: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the rows of the pool that were picked, int64, (k,); `ids` is the pool in its order."""
    return np.asarray(pc.index_in(picked, value_set=pa.array(ids, pa.string())), dtype=np.int64)


def describe(selection: Selection) -> dict[str, Any]:
    """Return the settings of a selection as they are recorded."""
    rest = selection.model_dump(mode="json", exclude={"strategy", "k", "seed", "verify"}, exclude_defaults=True)
    own = rest.pop(selection.strategy, {})
    kept = {name: value for name, value in rest.items() if name not in STRATEGIES}
    options = {**kept, **own}
    return {"strategy": selection.strategy, "k": selection.k, "seed": selection.seed, "options": options}


def covering_table(ids: pa.ChunkedArray, found: Covering) -> pa.Table:
    """Return the nearest picks of every sample as a table: id, and rank_1, distance_1 (cosine) to rank_3, distance_3.

    Ranks are 1 for the first pick; null if there are fewer picks.
    """
    columns: dict[str, Any] = {"id": ids}
    for place in range(NEAREST):
        known = place < found.rank.shape[1]
        columns[f"rank_{place + 1}"] = pa.array(found.rank[:, place] + 1) if known else pa.nulls(len(ids), pa.int64())
        columns[f"distance_{place + 1}"] = found.distance[:, place] if known else pa.nulls(len(ids), pa.float64())
    return pa.table(columns)


def write_subset(
    snapshot: PoolSnapshot,
    root: Path,
    picks: Picks,
    vectors: NDArray[np.float32],
    settings: dict[str, Any],
    reached: dict[str, Any] | None = None,
) -> Subset:
    """Write a selection under `root/selections`.

    Args:
        snapshot: the pool.
        root: the storage folder.
        picks: rows of the pool, in pick order.
        vectors: float32, (n, d), in pool order.
        settings: what `describe` returns, powers and the keys of snapshot, vectors and density.
        reached: what `objective_facts` returns, for the manifest.
    """
    samples = snapshot.samples(root, SAMPLE_COLUMNS)
    table = picks_table(samples, picks)
    ids = table["id"].to_pylist()
    settings = {**settings, "k": len(ids)}
    chosen = SelectionSettings(key=content_key(settings), **settings)
    key = content_key({"settings": settings, "ids": ids, "files": _FILES_VERSION})
    records = chosen_records(snapshot, root, ids)
    with temporary_folder(root / "selections") as folder:
        write_table(table, folder / "picks.parquet")
        write_records(records, folder / "subset.jsonl")
        parts = [folder / "picks.parquet", folder / "subset.jsonl", *write_by_source(records, folder / "original")]
        write_json(
            {
                "selection": key,
                "settings": settings,
                "counts": _counts(table),
                **({"objective": reached} if reached else {}),
                "sha256": {str(part.relative_to(folder)): file_hash(part) for part in parts},
            },
            folder / "manifest.json",
        )
        # None of these is in the manifest: MACHINE_DEPENDENT, and `eligibility.parquet`, which earlier releases lack.
        write_table(covering_table(samples["id"], covering(vectors, picks.indices)), folder / "covering.parquet")
        chosen_vectors = pa.FixedSizeListArray.from_arrays(vectors[picks.indices].ravel(), vectors.shape[1])
        write_table(pa.table({"id": ids, "vector": chosen_vectors}), folder / "picks_vectors.parquet")
        if picks.remaining:
            table = remaining_table(samples["id"], picks.remaining, picks.eligibility)
            write_table(table, folder / "remaining.parquet")
        write_table(eligibility_table(picks), folder / ELIGIBILITY)
        place_folder(folder, root / output_folder("selections", key))
    return Subset(key=key, folder=output_folder("selections", key), settings=chosen)


def _counts(table: pa.Table) -> dict[str, int]:
    counted = table["source"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: str(entry["values"]))}


def _numbers(values: np.ndarray) -> pa.Array:
    """Return floats as an Arrow array in which NaN is null."""
    return pa.array(values, pa.float64(), from_pandas=True)
