"""A small curation made step by step without Dagster, every output with its record, for tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.provenance import Provenance, record, record_path
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.tables import build_density, build_novelty
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.store import embed, load_vectors
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.report.novelsum_report import REPORT_COLUMNS, build_report
from novelsum_dagster.selection.chosen import PoolSelection, with_config
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.selection.subset import rows_of
from novelsum_dagster.settings import Settings, load_settings
from tests.pools import pairs

RUN = "0b3c8a52-8f5c-4d0e-9a59-0a4ed4d1f5b7"


def short(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return short Alpaca records, which are embedded fast."""
    return [{"instruction": q, "input": "", "output": answer[:120]} for q, answer in pairs(count, start)]


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def write_wrong(path: Path, at: int = 100) -> bytes:
    """Change one byte in the middle of a file, whose size stays; return what it held."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[min(at, len(before) - 1)] ^= 1
    path.write_bytes(bytes(changed))
    return before


@dataclass
class Curated:
    """The outputs of a settings file, by asset, as far as they were made."""

    settings: Settings
    made: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Provenance] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.settings.storage_path

    def with_settings(self, **sections: Any) -> Settings:
        """Return the settings with other values, as if the file had been edited."""
        values = self.settings.model_dump(mode="json")
        for name, section in sections.items():
            values[name] = {**values[name], **section} if isinstance(section, dict) else section
        return Settings.model_validate({**values, "base": self.settings.base})

    def record_of(self, asset: str) -> Path:
        return record_path(self.root, asset, self.made[asset].key)

    def files_of(self, asset: str) -> list[Path]:
        return [self.root / name for name in self.records[asset].files]

    def keep(self, asset: str, output: Artifact, *inputs: str, **config: Any) -> None:
        """Record an output, as its step does."""
        used: Mapping[str, Artifact] = {name: self.made[name] for name in inputs}
        self.records[asset] = record(self.root, self.settings, asset, output, used, RUN, config)
        self.made[asset] = output


def curate(settings_file: Path, until: str = "novelsum_report", **config: Any) -> Curated:
    """Make the outputs of a settings file up to one asset; `config` is what the launchpad says of the selection."""
    curated = Curated(load_settings(settings_file))
    settings, root, made = curated.settings, curated.root, curated.made
    snapshot = build_snapshot(settings.pool, settings.base, root, token_counter(settings.embedding))
    curated.keep("raw_pool", snapshot)
    samples = snapshot.samples(root, REPORT_COLUMNS)
    ids, texts = samples["id"].to_pylist(), samples["text"].to_pylist()
    vector_set = embed(root, settings.embedding, ids, texts, snapshot.key, device=settings.device)
    curated.keep("embeddings", vector_set, "raw_pool")
    vectors = load_vectors(root / vector_set.folder, ids)
    density = build_density(root, ids, vectors, vector_set.key, settings=settings.novelsum)
    curated.keep("density", density, "raw_pool", "embeddings")
    whole = {
        **settings.selection.model_dump(include={"strategy", "k", "token_budget", "quality", "seed"}),
        **settings.novelsum.model_dump(include={"density_power", "proximity_power"}),
        **config,
    }
    chosen, options = with_config(settings, whole)
    subset = PoolSelection(root, snapshot, vectors, chosen, options).subset(vector_set.key, density)
    curated.keep("selected_subset", subset, "raw_pool", "embeddings", "density", **whole)
    if until == "selected_subset":
        return curated
    novelty = build_novelty(root, density, vectors, settings=settings.novelsum)
    curated.keep("sample_novelty", novelty, "raw_pool", "embeddings", "density")
    inputs = {name: made[name].key for name in ("raw_pool", "embeddings", "density", "selected_subset")}
    rows = rows_of(ids, subset.picks(root, ["id"])["id"])
    report = build_report(
        root,
        samples,
        vectors,
        density.table(root)["density_factor"].to_numpy(),
        np.asarray(novelty.table(root)["novelty"].to_numpy()),
        rows,
        covering(vectors, rows, 1).distance[:, 0],
        inputs=inputs,
        near_duplicates=0,
        settings=settings,
        seed=subset.settings.seed,
        reporter=LogReporter(lambda line: None),
    )
    curated.keep("novelsum_report", report, *inputs, "sample_novelty")
    return curated
