"""Rebuilding a run's subset from its record, and comparing it byte for byte: `novelsum reproduce`.

Belongs here: what is rebuilt, from what, and the comparison. Does not: the record (`provenance`), how each step
works.

The sources must be unchanged. Stored files that are missing do no harm: they are compared by the hashes in the records,
and vectors are computed again. Files that are damaged are named, and nothing is rebuilt.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.provenance import MACHINE_DEPENDENT, Provenance, code_version, package_versions
from novelsum_dagster.audit.verified import described, records_in, state_of, stated
from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.common.progress import Reporter, counted
from novelsum_dagster.diversity.distinct import distinct_pool
from novelsum_dagster.diversity.tables import build_density, build_novelty
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import load_vectors, vectors_key
from novelsum_dagster.embedding.vectors_of_pool import Work, vectors_of_pool
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.ingest import build_snapshot, hashed_sources
from novelsum_dagster.selection.chosen import PoolSelection, with_config
from novelsum_dagster.selection.extension import EXTENDS, earlier_subset
from novelsum_dagster.settings import Settings, problems

_STEPS = ("raw_pool", "embeddings", "distinct_pool", "density", "selected_subset")
"""Assets from which a subset is built, in order."""
_LATER = ("distinct_pool",)
"""Those of them that are missing in runs of earlier releases."""
_NOVELTY = "sample_novelty"
"""Rebuilt and compared, too; no subset depends on it."""
_COMPARED = ("density", _NOVELTY, "selected_subset")
"""Assets whose files are compared; of the others only the keys, which are hashes of the content."""
_LATER_FILES = ("eligibility.parquet",)
"""Files that subsets of earlier releases lack."""
_NOT_COMPARED = {
    **dict.fromkeys(MACHINE_DEPENDENT, "its last digits depend on the processor"),
    "nearest.parquet": "it only speeds up the density of a pool that grows; density.parquet is compared",
}
"""Files that are rebuilt and not compared, with the reason."""


@dataclass(frozen=True)
class Reproduction:
    """A rebuilt subset.

    Attributes:
        run: whose subset was rebuilt.
        checked: what had its hashes compared with the records before, by name: how much.
        gone: by asset, the number of stored files that are missing.
        outputs: by asset, the keys recorded and rebuilt.
        files: by name in the folders of density, novelty and subset, whether the bytes are equal; None for a file
            missing on one side.
        not_checked: by name, why something of the run was not rebuilt or not compared.
        embedded_again: whether the vectors were recomputed.
        differences: versions and code that changed since the run, as text.
    """

    run: Run
    checked: dict[str, str]
    gone: dict[str, int]
    outputs: dict[str, tuple[str, str]]
    files: dict[str, bool | None]
    not_checked: dict[str, str]
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
    found = records_in(connection, run.run_id)
    missing = [asset for asset in _STEPS if asset not in found and asset not in _LATER]
    if missing:
        raise InputError(f"run {run.short} has no record of {', '.join(missing)}: it is of an earlier version")
    return found


def reproduce(
    records: Mapping[str, Provenance], run: Run, root: Path, base: Path, reporter: Reporter, embed_again: bool = False
) -> Reproduction:
    """Rebuild a run's subset, density and novelty in a temporary folder and compare them with what was recorded.

    Args:
        records: of the run's outputs.
        run: the run.
        root: the storage folder, which is not changed.
        base: folder to which relative source paths refer.
        reporter: shows progress.
        embed_again: recompute the vectors, too; otherwise the stored ones are used, unless some are missing.

    Raises:
        InputError: naming every source that differs from its record or is missing, and every damaged file.
    """
    settings = _settings_then(run, base)
    checked, gone = _checked(records, run, settings, root, embed_again)
    embed_again = embed_again or "embeddings" in gone
    with tempfile.TemporaryDirectory(prefix="novelsum-") as folder:
        scratch = Path(folder)
        outputs = _build(run, settings, records, root, scratch, reporter, embed_again)
        files = {
            name: is_equal
            for asset in _COMPARED
            if asset in records
            for name, is_equal in _compared(records[asset], outputs[asset], scratch).items()
        }
    return Reproduction(
        run=run,
        checked=checked,
        gone=gone,
        outputs={asset: (records[asset].output, made.key) for asset, made in outputs.items() if asset in records},
        files=files,
        not_checked=_not_checked(records, outputs),
        embedded_again=embed_again,
        differences=tuple(_differences(records)),
    )


def _settings_then(run: Run, base: Path) -> Settings:
    try:
        return Settings.model_validate({**run.settings, "base": base})
    except ValidationError as error:
        raise InputError(f"run {run.short} has settings of another version: {problems(error)}") from None


def _checked(
    records: Mapping[str, Provenance], run: Run, settings: Settings, root: Path, embed_again: bool
) -> tuple[dict[str, str], dict[str, int]]:
    """Compare sources and stored files with their records; return what was compared, and what is missing.

    Raises:
        InputError: naming every source that changed or is missing, and every stored file that is damaged.
    """
    found = hashed_sources(settings.pool.sources, settings.base, settings.s3, root)
    then = records["raw_pool"].inputs
    wrong = [
        f"{name} has changed since" if name in found else f"{name} is missing"
        for name, sha256 in then.items()
        if found.get(name) != sha256
    ]
    checked, gone = {"sources": counted(len(then), "file")}, {}
    for asset, made in records.items():
        if embed_again and asset == "embeddings":
            continue
        states = {name: state_of(root / name, files) for name, files in stated(root, made).items()}
        wrong += [
            described(made, root / name, "damaged", run.run_id) for name, one in states.items() if one == "damaged"
        ]
        missing = sum(one == "missing" for one in states.values())
        checked[asset] = counted(len(states) - missing, "stored file")
        if missing:
            gone[asset] = missing
    if wrong:
        raise InputError("this run cannot be rebuilt:\n" + "\n".join(f"  {line}" for line in wrong))
    return checked, gone


def _build(
    run: Run,
    settings: Settings,
    records: Mapping[str, Provenance],
    root: Path,
    scratch: Path,
    reporter: Reporter,
    embed_again: bool,
) -> dict[str, Artifact]:
    """Return the outputs from which the subset is built, the subset and the novelty, by asset."""
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
    outputs: dict[str, Artifact] = {
        "raw_pool": snapshot,
        "embeddings": Artifact(key=key),
        "distinct_pool": distinct,
        "density": density,
        "selected_subset": subset,
    }
    if _NOVELTY in records:
        with reporter.step("novelty") as progress:
            outputs[_NOVELTY] = build_novelty(
                scratch, density, vectors, settings=settings.novelsum, device=device, progress=progress
            )
    return outputs


def _compared(made: Provenance, output: Artifact, scratch: Path) -> dict[str, bool | None]:
    """Return by name whether the files of an output are equal."""
    then = {_within(name): file.sha256 for name, file in made.files.items()}
    now = {_within(name): file_hash(scratch / name) for name in output.stored_files(scratch)}
    left_out = {*_NOT_COMPARED, *(name for name in _LATER_FILES if name not in then)}
    names = [name for name in dict.fromkeys([*then, *now]) if name not in left_out]
    return {name: then[name] == now[name] if name in then and name in now else None for name in names}


def _within(name: str) -> str:
    """Return the name of a stored file within the folder of its output."""
    return name.split("/", 2)[2]


def _not_checked(records: Mapping[str, Provenance], outputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Return what of a run was not rebuilt, and which files were not compared, with the reason."""
    found = {asset: "not rebuilt; novelsum verify compares its files" for asset in records if asset not in outputs}
    names = [_within(name) for asset in _COMPARED if asset in records for name in records[asset].files]
    return found | {name: _NOT_COMPARED[name] for name in names if name in _NOT_COMPARED}


def _differences(records: Mapping[str, Provenance]) -> list[str]:
    made, now = records["selected_subset"], package_versions()
    pairs: list[tuple[str, str | None, str | None]] = [
        (f"the code of {asset}", records[asset].code_version, code_version(asset))
        for asset in _STEPS
        if asset in records
    ]
    pairs += [(name, made.versions.get(name), now.get(name)) for name in dict.fromkeys([*made.versions, *now])]
    return [f"{name} was {then or 'missing'}, is {is_ or 'missing'}" for name, then, is_ in pairs if then != is_]
