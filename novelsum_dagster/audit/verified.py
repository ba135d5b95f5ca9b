"""The files of a run's outputs, compared with their records before a command reads them.

Belongs here: which record states a file's hash, the comparison, what is said of damage. Does not: everything else that
can be verified (`verify`), the records (`artifacts.provenance`).

A run's records are in the lineage. A later run that makes the same output writes its record again, with the hashes of
its own files: the same content in another version of Parquet, or last digits of another processor. Either is accepted.
"""

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from novelsum_dagster.artifacts.provenance import Provenance, StoredFile, is_stored, record_path
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import SEAL, read_json
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run, find_run

VECTORS = "vectors"
"""In place of a file's name: all files of the run's vectors."""
EXPLAINED = (
    "samples.parquet",
    "origins.parquet",
    "rejects.parquet",
    "near_duplicates.parquet",
    "density.parquet",
    "novelty.parquet",
    "picks.parquet",
    "eligibility.parquet",
    "covering.parquet",
    "remaining.parquet",
    "picks_vectors.parquet",
    "subset.jsonl",
    VECTORS,
)
"""Files from which `novelsum why` answers."""
COMPARED = ("samples.parquet", "near_duplicates.parquet", "picks.parquet")
"""Files from which `novelsum diff` answers."""
REPLAYED = ("density.parquet", "nearest.parquet", VECTORS)
"""Files from which selections are replayed; where some are missing, they are not."""
_THREADS = 4


def verified_run(
    connection: Connection,
    root: Path,
    name: str | None,
    files: Collection[str] | None = None,
    if_present: Collection[str] = (),
) -> Run:
    """Return a run as `find_run` does, once the files that a command is about to read are as its records state.

    An unchanged file is read once per process. Outputs without a record, of earlier releases, are not checked.

    Args:
        connection: to the lineage.
        root: the storage folder.
        name: id of the run or a prefix of it; None takes the newest.
        files: their names in the folders of the outputs, and `VECTORS`; None checks all files of the run.
        if_present: more of them, which may be missing.

    Raises:
        InputError: as `find_run` does, or naming every file that is missing or damaged.
    """
    run = find_run(connection, name)
    records = records_in(connection, run.run_id)
    if files is not None and "distinct_pool" in records:
        records.pop("raw_pool", None)  # Its files have the same names, and no command reads them.
    found = [line for made in records.values() for line in _damage(root, run.run_id, made, files, if_present)]
    if found:
        raise InputError("stored files are not as they were written:\n" + "\n".join(f"  {line}" for line in found))
    return run


def records_in(connection: Connection, run_id: str) -> dict[str, Provenance]:
    """Return the records of a run's outputs in the lineage, by asset; none for runs of earlier releases."""
    rows = all_rows(connection, "SELECT asset, record FROM provenance WHERE run_id = ?", [run_id])
    return {row["asset"]: Provenance.model_validate(json.loads(row["record"])) for row in rows}


def _damage(
    root: Path, run_id: str, made: Provenance, files: Collection[str] | None, if_present: Collection[str]
) -> list[str]:
    """Return a line for each file of an output that is missing or damaged; arguments as in `verified_run`."""
    accepted = stated(root, made)
    labels = {name: VECTORS if made.asset == "embeddings" else Path(name).name for name in made.files}
    wanted = [name for name, label in labels.items() if files is None or label in files or label in if_present]
    with ThreadPoolExecutor(_THREADS) as threads:
        states = threads.map(lambda name: state_of(root / name, accepted[name]), wanted)
        return [
            described(made, root / name, state, run_id)
            for name, state in zip(wanted, states, strict=True)
            if state == "damaged" or (state == "missing" and labels[name] not in if_present)
        ]


def stated(root: Path, made: Provenance) -> dict[str, list[StoredFile]]:
    """Return what the records of an output state of each of its files: that of the run, and the present one."""
    present = present_files(root, made)
    return {
        name: [file, *([present[name]] if name in present and present[name] != file else [])]
        for name, file in made.files.items()
    }


def present_files(root: Path, made: Provenance) -> Mapping[str, StoredFile]:
    """Return the files of an output's present record; none if it is missing, damaged or without its own SHA-256."""
    path = record_path(root, made.asset, made.output)
    try:
        values = read_json(path)
        return Provenance.model_validate(values).files if SEAL in values else {}
    except (OSError, ValueError):
        return {}


def state_of(path: Path, accepted: Collection[StoredFile]) -> str | None:
    """Return what is wrong with a file: "missing" or "damaged"; None for nothing."""
    if not path.is_file():
        return "missing"
    return None if is_stored(path, *accepted) else "damaged"


def described(made: Provenance, path: Path, state: str, run_id: str) -> str:
    """Return a line that names a file that is missing or damaged, its output and run, and what to do."""
    reason = " (its SHA-256 differs from the record)" if state == "damaged" else ""
    return (
        f"{made.asset} of run {run_id[:8]}: {path} is {state}{reason}; {'delete it, and ' if reason else ''}"
        "restore it (novelsum restore, or a backup), or make it again (novelsum run)"
    )
