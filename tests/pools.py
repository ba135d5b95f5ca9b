"""Small pools of real text for tests: documentation of installed packages, as the demo pool has it."""

import json
from pathlib import Path
from typing import Any

import yaml

from novelsum_dagster.pool.demo import documented
from novelsum_dagster.settings import PACKAGED_MODEL
from tests.tiny import tiny_model

REAL_MODEL: dict[str, Any] = {"model": PACKAGED_MODEL, "dtype": "auto"}
"""For the section `embedding` where the model matters, or the time that it takes."""


def pairs(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Return (question, answer) pairs from numpy's documentation."""
    return list(documented("numpy", ("numpy",)))[start : start + count]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def alpaca(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return Alpaca records."""
    return [{"instruction": question, "input": "", "output": answer} for question, answer in pairs(count, start)]


def write_settings(folder: Path, **sections: Any) -> Path:
    """Write a settings file whose storage is `folder/curated`; sections are merged into a small curation.

    The model is the tiny one, in float32, where the section `embedding` names no other.
    """
    values: dict[str, Any] = {
        "storage": "curated",
        "pool": {"sources": [{"path": "pool/*"}]},
        "selection": {"k": 20},
        **sections,
        "embedding": {"model": tiny_model(), "dtype": "float32", **sections.get("embedding", {})},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "curation.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
