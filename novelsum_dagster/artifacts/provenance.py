"""Provenance: a record of the inputs, settings and code of every output, checked before the output is used.

Belongs here: the records, what each step depends on, finding every mismatch. Does not: the steps, rebuilding an output
(`reproduce`).

The record of an output is `provenance/<asset>/<key>.json` in the storage folder.
"""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import record_file
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import known_hash, sealed, unsealed, write_json
from novelsum_dagster.settings import Settings

PACKAGES = (
    "novelsum-dagster",
    "dagster",
    "numpy",
    "torch",
    "sentence-transformers",
    "transformers",
    "faiss-cpu",
    "numba",
    "pyarrow",
    "duckdb",
)
"""Packages whose versions are recorded: those that compute or write an output."""


MACHINE_DEPENDENT = ("covering.parquet", "picks_vectors.parquet", "remaining.parquet")
"""Files of a subset whose last digits depend on the processor, or on where an interrupted selection resumed."""


@dataclass(frozen=True)
class StepFacts:
    """What a step's output depends on, besides its inputs.

    Attributes:
        code_version: raised by hand when the step would produce a different output from the same input.
        settings: sections and keys of the settings.
    """

    code_version: str
    settings: tuple[str, ...] = ()


_TEXT = ("embedding.text", "embedding.include")
_QUALITY = "selection.quality"
"""Affects the pool's steps only if near-duplicates are kept by quality."""
_MEASURED = ("novelsum.density_side", "novelsum.self_distance")
"""Affect the selection only if it maximises NovelSum."""
_VECTORS = (
    *(f"embedding.{name}" for name in ("model", "revision", "max_tokens", "dtype", "pooling", "backend", "long")),
    *("embedding.whiten", "embedding.reduce"),
    *_TEXT,
    *("embedding.vectors", "embedding.vectors_column", "embedding.vectors_id"),
)
STEPS = {
    "raw_pool": StepFacts("2", ("pool", _QUALITY, "embedding.model", "embedding.revision", *_TEXT)),
    "embeddings": StepFacts("3", _VECTORS),
    "distinct_pool": StepFacts("1", ("pool.near_duplicates", _QUALITY)),
    "density": StepFacts(
        "4",
        tuple(
            f"novelsum.{name}"
            for name in ("neighbors", "neighbor_policy", "density_index", "min_recall", "density_power")
        ),
    ),
    "sample_novelty": StepFacts("3", ("novelsum",)),
    "selected_subset": StepFacts("4", ("selection", "novelsum.density_power", "novelsum.proximity_power", *_MEASURED)),
    "novelsum_report": StepFacts("5", ("novelsum", "measures")),
    "lineage": StepFacts("1"),
    "changes": StepFacts("2"),
    "data_card": StepFacts("3", ("card",)),
    "study_pool": StepFacts("3", ("novelsum", "study.held_out", "study.neighbors", "study.unseen")),
    "study_set": StepFacts("3", ("novelsum", "study.variants", "study.representations")),
    "study_measures": StepFacts(
        "4",
        (
            "novelsum",
            "measures",
            "study.neighbors",
            "study.density_powers",
            "study.proximity_powers",
            "study.representations",
        ),
    ),
    "study_performance": StepFacts("2", ("study.training", "study.training_seeds")),
    "study_correlation": StepFacts("2", ("study",)),
}
"""By asset."""
_NOT_CONTENT = {"pool.max_reject_fraction", "selection.verify"}
"""Settings of these sections that do not affect an output."""
_OF_VECTORS = "pool.near_duplicates.similarity"
"""Does not affect the pool as read."""


class StoredFile(BaseModel):
    """A file of an output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Provenance(BaseModel):
    """The record of one output.

    Attributes:
        asset: its name.
        output: key of the output.
        run_id: of the run that produced it.
        made_at: time of production.
        code_version: of the step.
        inputs: keys by asset; for the raw pool, SHA-256 by source file (empty for a hub dataset).
        settings: in force for the step, by key, e.g. `novelsum.neighbors`.
        config: values from the launchpad, which override or extend the settings.
        seed: of all random draws.
        files: of the output, by path in the storage folder.
        versions: of packages and of Python.
        git_revision: of the code, if it is a checkout; `git_is_clean` says whether the code is unchanged from it.
        machine: platform, processor, cores, memory in bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asset: str
    output: str
    run_id: str
    made_at: datetime
    code_version: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    config: dict[str, Any]
    seed: int
    files: dict[str, StoredFile]
    versions: dict[str, str]
    git_revision: str | None
    git_is_clean: bool | None
    machine: dict[str, str | int]

    @model_validator(mode="before")
    @classmethod
    def _is_unchanged(cls, values: Any) -> Any:
        return unsealed(values)


def code_version(asset: str) -> str:
    """Return the code version of an asset's step."""
    return STEPS[asset].code_version


def record(
    root: Path,
    settings: Settings,
    asset: str,
    output: Artifact,
    inputs: Mapping[str, Artifact],
    run_id: str,
    config: Mapping[str, Any],
) -> Provenance:
    """Write the record of a new output, and return it.

    Args:
        root: the storage folder.
        settings: in force.
        asset: the output's name.
        output: its artifact.
        inputs: artifacts that it was built from, by asset.
        run_id: of the run.
        config: values from the launchpad.

    Raises:
        InputError: naming every existing file that differs from what an earlier run wrote: a rebuild does not overwrite
            it, and its damage must not become part of the record.
    """
    revision, is_clean = _git()
    made = Provenance(
        asset=asset,
        output=output.key,
        run_id=run_id,
        made_at=datetime.now(UTC),
        code_version=code_version(asset),
        inputs={name: artifact.key for name, artifact in inputs.items()} or output.sources(),
        settings=settings_of(asset, settings),
        config=dict(config),
        seed=_seed(settings, output, inputs, config),
        files={name: _stored(root / name) for name in output.stored_files(root)},
        versions=package_versions(),
        git_revision=revision,
        git_is_clean=is_clean,
        machine=_machine(),
    )
    damaged = _changed_since(root, made)
    if damaged:
        raise InputError("stored files of this output differ from what the step wrote:\n" + _lines(damaged))
    write_json(sealed(made.model_dump(mode="json")), record_path(root, asset, output.key))
    return made


def _seed(settings: Settings, output: Artifact, inputs: Mapping[str, Artifact], config: Mapping[str, Any]) -> int:
    """Return the seed used: the launchpad's, that of the measured subset, or the settings'."""
    if "seed" in config:
        return int(config["seed"])
    seeds = (artifact.drawn_with for artifact in (output, *inputs.values()))
    return next((seed for seed in seeds if seed is not None), settings.selection.seed)


def _changed_since(root: Path, made: Provenance) -> list[str]:
    """Return a line for each file that the same step wrote differently before, on this machine with these libraries."""
    try:
        before = read_record(root, made.asset, made.output)
    except InputError:
        return []
    if (before.code_version, before.versions, before.machine) != (made.code_version, made.versions, made.machine):
        return []
    return [
        _damaged(made.asset, root / name)
        for name, file in made.files.items()
        if before.files.get(name, file) != file and Path(name).name not in MACHINE_DEPENDENT
    ]


def record_path(root: Path, asset: str, key: str) -> Path:
    """Return the path of an output's record."""
    return root / record_file(asset, key)


def read_record(root: Path, asset: str, key: str) -> Provenance:
    """Return the record of an output.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = record_path(root, asset, key)
    again = f"materialise {asset} again"
    try:
        found = Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{asset} {key}: has no provenance record ({path.name}); {again}") from None
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: damaged ({_reason(error)}); {again}") from None
    if (found.asset, found.output) != (asset, key):
        raise InputError(f"{path}: damaged (it is the record of {found.asset} {found.output}); {again}")
    return found


def _reason(error: OSError | ValidationError) -> str:
    """Return why a record could not be read, in a line."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return str(error).splitlines()[0]


def require_matching(root: Path, settings: Settings, inputs: Mapping[str, Artifact]) -> None:
    """Require that inputs were built from each other, with the current settings and code, and are not damaged.

    Args:
        root: the storage folder.
        settings: in force.
        inputs: artifacts that a step is about to use, by asset; of a partition as `asset[partition]`.

    Raises:
        InputError: with every mismatch.
    """
    found = [line for name, artifact in inputs.items() for line in mismatches(root, settings, name, artifact, inputs)]
    if found:
        raise InputError("the inputs of this step do not match:\n" + _lines(found))


def _lines(found: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in found)


def mismatches(
    root: Path, settings: Settings, name: str, artifact: Artifact, others: Mapping[str, Artifact]
) -> Sequence[str]:
    """Return a line for each difference between an output and its record, its inputs or the current settings."""
    asset = name.partition("[")[0]
    try:
        made = read_record(root, asset, artifact.key)
    except InputError as error:
        return [str(error)]
    again = f"; materialise {asset} again"
    now = settings_of(asset, settings)
    changed = [
        f"{name}: {key} was {made.settings.get(key)!r}, the settings say {now.get(key)!r}{again}"
        for key in dict.fromkeys([*made.settings, *now])
        if made.settings.get(key) != now.get(key)
    ]
    other_inputs = [
        f"{name}: was built from {used} {key[:8]}, which is {others[used].key[:8]} now{again}"
        for used, key in made.inputs.items()
        if used in others and others[used].key != key
    ]
    other_code = (
        [f"{name}: was built by version {made.code_version} of its code, which is {code_version(asset)} now{again}"]
        if made.code_version != code_version(asset)
        else []
    )
    return [*changed, *other_inputs, *other_code, *damaged_files(root, made)]


def damaged_files(root: Path, made: Provenance) -> list[str]:
    """Return a line for each file of an output that is missing or differs from what was written."""
    found = []
    for name, file in made.files.items():
        path = root / name
        if not path.is_file():
            found.append(f"{made.asset}: {path} is missing; materialise {made.asset} again")
        elif not is_stored(path, file):
            found.append(_damaged(made.asset, path))
    return found


def is_stored(path: Path, *files: StoredFile) -> bool:
    """Return whether a file is one of those that records state; content is read only if the size is equal."""
    size = path.stat().st_size
    return any(size == file.bytes for file in files) and _stored(path) in files


def _damaged(asset: str, path: Path) -> str:
    return f"{asset}: {path} is damaged (its SHA-256 differs from the record); delete it, and materialise {asset} again"


def settings_of(asset: str, settings: Settings) -> dict[str, Any]:
    """Return the settings that an asset depends on, by key."""
    values = flat(settings.model_dump(mode="json"))
    by_quality = settings.pool.near_duplicates.keep == "quality"
    measured = settings.selection.density_side == "objective"
    unused = (*(() if by_quality else (_QUALITY,)), *(() if measured else _MEASURED))
    wanted = [name for name in STEPS[asset].settings if name not in unused]
    ignored = _NOT_CONTENT | ({_OF_VECTORS} if asset == "raw_pool" else set())
    return {
        key: value
        for key, value in values.items()
        if key not in ignored and any(key == name or key.startswith(f"{name}.") for name in wanted)
    }


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping with keys like `pool.near_duplicates.drop`; lists are not flattened."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    dotted = f"{prefix}." if prefix else ""
    return {key: value for name, inner in values.items() for key, value in flat(inner, f"{dotted}{name}").items()}


def _stored(path: Path) -> StoredFile:
    return StoredFile(sha256=known_hash(path), bytes=path.stat().st_size)


@cache
def package_versions() -> dict[str, str]:
    """Return the installed versions of `PACKAGES` and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _git() -> tuple[str | None, bool | None]:
    """Return the commit of a source checkout, and whether the code is unchanged; None in an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None, None
    revision = _of_git(folder, "rev-parse", "HEAD")
    changes = _of_git(folder, "status", "--porcelain", "--", "novelsum_dagster", "dbt_like_sql")
    return revision or None, None if changes is None else not changes


def git_revision() -> str | None:
    """Return the commit of a source checkout; None in an installed package."""
    return _git()[0]


def _of_git(folder: Path, *command: str) -> str | None:
    found = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


@cache
def _machine() -> dict[str, str | int]:
    import psutil

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory": psutil.virtual_memory().total,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
