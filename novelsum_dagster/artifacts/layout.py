"""The layout of the storage folder: every path, defined once.

Belongs here: names of folders and files. Does not: their contents, the folders of a study (`study`).
"""

OUTPUTS = {
    "cards": "card",
    "changes": "changes",
    "reports": "report",
    "selections": "selection",
    "novelty": "sample_novelty",
    "density": "density",
    "pool": "snapshot",
}
"""Name of outputs by folder, as in `pool/snapshot=<key>`. DuckDB adds a column of that name, so no table has one."""
RECORDS, CHECKS, CHANGES, SIGNATURES = "provenance", "checks", "changes", "signatures"
SYNCED = (
    "pool",
    "vectors",
    "density",
    "novelty",
    "selections",
    "reports",
    "cards",
    CHANGES,
    CHECKS,
    RECORDS,
    SIGNATURES,
    "runs",
    "assets",
)
"""Folders of a storage on S3, in the order in which they are fetched."""


def output_folder(folder: str, key: str) -> str:
    """Return the folder of an output, e.g. `pool/snapshot=<key>`; `folder` is a key of `OUTPUTS`."""
    return f"{folder}/{OUTPUTS[folder]}={key}"


def outputs_glob(folder: str, file: str) -> str:
    """Return the glob of a file of all outputs in a folder, e.g. `pool/snapshot=*/samples.parquet`."""
    return f"{output_folder(folder, '*')}/{file}"


def newest_file(asset: str, partition: str | None = None) -> str:
    """Return the path of an asset's newest artifact, or that of a partition."""
    return f"assets/{asset}/{partition}.json" if partition else f"assets/{asset}.json"


def record_file(asset: str, key: str) -> str:
    """Return the path of an output's provenance record."""
    return f"{RECORDS}/{asset}/{key}.json"


def verdicts_file(step: str, key: str) -> str:
    """Return the path of the verdicts on an output."""
    return f"{CHECKS}/{step}/{key}.jsonl"


def run_file(run_id: str) -> str:
    """Return the path of a run's own file."""
    return f"runs/{run_id}.json"
