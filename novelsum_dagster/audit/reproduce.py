"""Rebuilding a run's subset from its record, and comparing it byte for byte: `novelsum reproduce`.

Belongs here: what is rebuilt, from what, and the comparison. Does not: the record (`provenance`), how each step
works.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from novelsum_dagster.artifacts.provenance import (
    MACHINE_DEPENDENT,
    Provenance,
    code_version,
    damaged_files,
    package_versions,
)
from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.diversity.distinct import distinct_pool
from novelsum_dagster.diversity.tables import build_density
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import load_vectors, vectors_key
from novelsum_dagster.embedding.vectors_of_pool import Work, vectors_of_pool
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.ingest import build_snapshot, hashed_sources
from novelsum_dagster.selection.chosen import PoolSelection, with_config
from novelsum_dagster.selection.extension import EXTENDS, earlier_subset
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.settings import Settings, problems

_STEPS = ("raw_pool", "embeddings", "distinct_pool", "density", "selected_subset")
"""Assets from which a subset is built, in order."""
_LATER = ("distinct_pool",)
"""Those of them that are missing in runs of earlier releases."""
_LATER_FILES = ("eligibility.parquet",)
"""Files that subsets of earlier releases lack."""


@dataclass(frozen=True)
class Reproduction:
    """A rebuilt subset.

    Attributes:
        run: whose subset was rebuilt.
        outputs: by asset, the keys recorded and rebuilt.
        files: by name in the subset's folder, whether the bytes are equal; None for a file missing on one side.
        embedded_again: whether the vectors were recomputed.
        differences: versions and code that changed since the run, as text.
    """

    run: Run
    outputs: dict[str, tuple[str, str]]
    files: dict[str, bool | None]
    embedded_again: bool
    differences: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every key and every byte is equal."""
        return all(self.files.values()) and all(then == now for then, now in self.outputs.values())


def records_of(connection: Connection, run: Run) -> dict[str, Provenance]:
    """Return the records of a run's outputs, by asset.

    Raises:
        InputError: if the run has none, because it is of an earlier version.
    """
    rows = all_rows(connection, "SELECT asset, record FROM provenance WHERE run_id = ?", [run.run_id])
    found = {row["asset"]: Provenance.model_validate(json.loads(row["record"])) for row in rows}
    missing = [asset for asset in _STEPS if asset not in found and asset not in _LATER]
    if missing:
        raise InputError(f"run {run.short} has no record of {', '.join(missing)}: it is of an earlier version")
    return found


def reproduce(
    records: Mapping[str, Provenance], run: Run, root: Path, base: Path, reporter: Reporter, embed_again: bool = False
) -> Reproduction:
    """Rebuild a run's subset in a temporary folder and compare it with the stored one.

    Args:
        records: of the run's outputs.
        run: the run.
        root: the storage folder, which is not changed.
        base: folder to which relative source paths refer.
        reporter: shows progress.
        embed_again: recompute the vectors, too; otherwise the stored ones are used.

    Raises:
        InputError: naming every source, vector file and file of the subset that differs from its record.
    """
    settings = _settings_then(run, base)
    _require_unchanged(records, settings, root, embed_again)
    with tempfile.TemporaryDirectory(prefix="novelsum-") as folder:
        scratch = Path(folder)
        keys, subset = _build(run, settings, records, root, scratch, reporter, embed_again)
        outputs = {**keys, "selected_subset": subset.key}
        files = _compared(records["selected_subset"], run, scratch, subset)
    return Reproduction(
        run=run,
        outputs={asset: (records[asset].output, outputs[asset]) for asset in _STEPS if asset in records},
        files=files,
        embedded_again=embed_again,
        differences=tuple(_differences(records)),
    )


def _settings_then(run: Run, base: Path) -> Settings:
    try:
        return Settings.model_validate({**run.settings, "base": base})
    except ValidationError as error:
        raise InputError(f"run {run.short} has settings of another version: {problems(error)}") from None


def _require_unchanged(records: Mapping[str, Provenance], settings: Settings, root: Path, embed_again: bool) -> None:
    found = hashed_sources(settings.pool.sources, settings.base, settings.s3, root)
    then = records["raw_pool"].inputs
    changed = [
        f"{name} has changed since" if name in found else f"{name} is missing"
        for name, sha256 in then.items()
        if found.get(name) != sha256
    ]
    if not embed_again:
        changed += damaged_files(root, records["embeddings"])
    changed += damaged_files(root, records["selected_subset"])
    if changed:
        raise InputError("this run cannot be rebuilt:\n" + "\n".join(f"  {line}" for line in changed))


def _build(
    run: Run,
    settings: Settings,
    records: Mapping[str, Provenance],
    root: Path,
    scratch: Path,
    reporter: Reporter,
    embed_again: bool,
) -> tuple[dict[str, str], Subset]:
    """Return the keys of the outputs from which the subset is built, and the subset."""
    with reporter.step("reading") as progress:
        snapshot = build_snapshot(
            settings.pool,
            settings.base,
            scratch,
            token_counter(settings.embedding),
            progress,
            s3=settings.s3,
            only=records["raw_pool"].inputs,
            text=settings.embedding.text_rule,
            quality=settings.selection.quality,
        )
    pool = PoolAt(snapshot, scratch, settings.base)
    ids = pool.column("id")
    if embed_again:
        with reporter.step("embedding") as progress:
            work = Work(progress, device=settings.device)
            folder = scratch / vectors_of_pool(pool, settings.embedding, scratch, work).folder
    else:
        # Not with `embed`: it would write to the storage if the model or a sample's id changed since.
        folder = root / Path(next(iter(records["embeddings"].files))).parent
    vectors = load_vectors(folder, ids)
    key = vectors_key(ids, vectors)
    rule = settings.pool.near_duplicates
    device = cuda_or_cpu(settings.device)
    distinct = snapshot
    if rule.by_vectors:
        with reporter.step("near-duplicates") as progress:
            distinct = distinct_pool(
                scratch, snapshot, vectors, key, rule, settings.selection.quality, device=device, progress=progress
            )
        ids = distinct.samples(scratch, ["id"])["id"].to_pylist()
        vectors = load_vectors(folder, ids)
    with reporter.step("density") as progress:
        density = build_density(
            scratch,
            ids,
            vectors,
            key,
            settings=settings.novelsum,
            among=distinct.key if distinct.read_as else None,
            device=device,
            progress=progress,
        )
    chosen, options = with_config(settings, records["selected_subset"].config)
    earlier = earlier_subset(root, distinct, run.options[EXTENDS]) if EXTENDS in run.options else None
    with reporter.step("selecting") as progress:
        options = replace(options, device=settings.device, progress=progress)
        subset = PoolSelection(scratch, distinct, vectors, chosen, options, earlier).subset(key, density)
    return {"raw_pool": snapshot.key, "embeddings": key, "distinct_pool": distinct.key, "density": density.key}, subset


def _compared(made: Provenance, run: Run, scratch: Path, subset: Subset) -> dict[str, bool | None]:
    """Return by name whether the files are equal; those whose last digits depend on the processor are left out."""
    then = {name.removeprefix(f"{run.folder}/"): file.sha256 for name, file in made.files.items()}
    now = {name.removeprefix(f"{subset.folder}/"): file_hash(scratch / name) for name in subset.stored_files(scratch)}
    left_out = {*MACHINE_DEPENDENT, *(name for name in _LATER_FILES if name not in then)}
    names = [name for name in dict.fromkeys([*then, *now]) if name not in left_out]
    return {name: then[name] == now[name] if name in then and name in now else None for name in names}


def _differences(records: Mapping[str, Provenance]) -> list[str]:
    made, now = records["selected_subset"], package_versions()
    pairs: list[tuple[str, str | None, str | None]] = [
        (f"the code of {asset}", records[asset].code_version, code_version(asset))
        for asset in _STEPS
        if asset in records
    ]
    pairs += [(name, made.versions.get(name), now.get(name)) for name in dict.fromkeys([*made.versions, *now])]
    return [f"{name} was {then or 'missing'}, is {is_ or 'missing'}" for name, then, is_ in pairs if then != is_]
