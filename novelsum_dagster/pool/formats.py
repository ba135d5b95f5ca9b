"""The one table of the file formats that are read, by the ending of the name.

Belongs here: endings, formats, compressions. Does not: reading (`readers`).
"""

from pathlib import Path

from novelsum_dagster.common.errors import InputError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
TABLES = {"parquet": "Parquet", "arrow": "Arrow"}
"""Formats that are compressed inside."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""By the ending that may follow that of any other format."""
_TEXTS = ", ".join(ending for ending, kind in FORMATS.items() if kind not in TABLES)
ENDINGS = f"{_TEXTS} (or with {' or '.join(COMPRESSIONS)} after it), " + ", ".join(
    ending for ending, kind in FORMATS.items() if kind in TABLES
)
"""All endings, for help and errors."""


def file_format(path: Path) -> str:
    """Return json, jsonl, csv, parquet or arrow by the file's name, compression aside.

    Raises:
        InputError: for any other name.
    """
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in COMPRESSIONS), "").lower()
    kind = FORMATS.get(suffix)
    if kind is None:
        raise InputError(f"{path}: unknown format; the name must end in {ENDINGS}; save another table as CSV")
    if kind in TABLES and path.suffix.lower() != suffix:
        raise InputError(
            f"{path}: {TABLES[kind]} is compressed inside and cannot be read from {path.suffix}; decompress it"
        )
    return kind
