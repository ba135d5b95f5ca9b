"""A small curation, run for real through Dagster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from novelsum_dagster.definitions import CURATE_JOB, build_defs
from novelsum_dagster.lineage.models import models as sql_models
from novelsum_dagster.settings import Settings, load_settings
from tests.instances import in_memory
from tests.pools import REAL_MODEL, alpaca, pairs, write_jsonl, write_settings

ASSETS = [
    "raw_pool",
    "embeddings",
    "distinct_pool",
    "density",
    "sample_novelty",
    "selected_subset",
    "novelsum_report",
    "data_card",
    "lineage",
    "changes",
]
"""Of the job, in order; without the SQL models."""


@dataclass
class Curation:
    """A settings file with its pool, and a Dagster instance to run it on."""

    folder: Path
    settings_file: Path
    instance: dg.DagsterInstance

    @property
    def settings(self) -> Settings:
        return load_settings(self.settings_file)

    @property
    def root(self) -> Path:
        return self.settings.storage_path

    def run(self, models: bool = True, **config: Any) -> dg.ExecuteInProcessResult:
        """Curate; without the SQL models and their tests, which take as long as all else, where they do not matter."""
        job = build_defs(self.settings).resolve_job_def(CURATE_JOB)
        left_out = set() if models else {model.name for model in sql_models()}
        keys = [key for key in job.asset_layer.executable_asset_keys if key.to_user_string() not in left_out]
        return job.execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config=config,
            asset_selection=None if models else keys,
        )

    def materialise(self, asset: str, **config: Any) -> dg.ExecuteInProcessResult:
        """Materialise one asset alone, without its checks, as the UI can."""
        job = build_defs(self.settings).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance, asset_selection=[dg.AssetKey(asset)], raise_on_error=False, run_config=config
        )


def write_pool(folder: Path) -> None:
    """Write 100 samples in two forms, one exact duplicate and one bad record."""
    write_jsonl(folder / "pool" / "alpaca.jsonl", [*alpaca(60), alpaca(1)[0]])
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs(40, start=60)
    ]
    write_jsonl(folder / "pool" / "chat.jsonl", [*chats, {"messages": "none"}])


@pytest.fixture(scope="module")
def curation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Curation]:
    """A curation with the packaged model."""
    folder = tmp_path_factory.mktemp("curation")
    write_pool(folder)
    pool = {"sources": [{"path": "pool/*"}], "max_reject_fraction": 0.05}
    settings = write_settings(folder, pool=pool, embedding=REAL_MODEL)
    with in_memory() as instance:
        yield Curation(folder, settings, instance)
