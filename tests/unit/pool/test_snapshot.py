"""A handle, which may come from another's storage, names nothing outside of it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.diversity.tables import NoveltyTable
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.pool.snapshot import PoolSnapshot

SNAPSHOT: dict[str, Any] = {
    "key": "k", "folder": "pool/snapshot=k", "files": (), "near_duplicates": 0, "near_duplicates_dropped": False,
}  # fmt: skip
VECTORS: dict[str, Any] = {
    "key": "k", "folder": "vectors/m", "ids_from": "p", "model": "m", "revision": "r", "max_tokens": 9,
    "dtype": "float32", "device": "cpu", "dimension": 2, "samples": 1, "embedded": 1,
}  # fmt: skip
NOVELTY: dict[str, Any] = {
    "key": "k", "file": "novelty/k.parquet", "density": "d", "density_power": 0.5, "proximity_power": 1.0,
    "self_distance": "included", "density_side": "row", "aggregate": "mean", "novelsum": 1.0,
}  # fmt: skip
OUTSIDE = ["../outside", "/etc", "pool/../../outside", "pool//x", "pool/.", "", "..\\outside", "pool\0"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_handle_names_nothing_outside_of_the_storage_folder(name: str) -> None:
    kinds: list[tuple[type[Artifact], dict[str, Any], str]] = [
        (PoolSnapshot, SNAPSHOT, "folder"),
        (VectorSet, VECTORS, "folder"),
        (VectorSet, VECTORS, "ids_from"),
        (NoveltyTable, NOVELTY, "file"),
        (NoveltyTable, NOVELTY, "key"),
    ]
    for kind, values, field in kinds:
        kind.model_validate(values)
        with pytest.raises(ValidationError, match="cannot be the name of a file in the storage folder"):
            kind.model_validate({**values, field: name})


def test_a_key_is_no_path() -> None:
    with pytest.raises(ValidationError, match="it has a slash"):
        Artifact(key="a/b")


def test_a_stored_artifact_that_leads_out_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "assets" / "raw_pool.json"
    path.parent.mkdir()
    path.write_text(PoolSnapshot(**SNAPSHOT).model_dump_json().replace("pool/snapshot=k", "../outside"))
    with pytest.raises(InputError) as error:
        read_newest(tmp_path, "raw_pool", PoolSnapshot)
    assert f"{path} is damaged" in str(error.value) and "'../outside'" in str(error.value)
