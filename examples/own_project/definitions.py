"""A Dagster project of your own: the curation of this folder's settings, and one asset that uses the subset.

Put files into the folder `pool`, then, in this folder:

    novelsum run                                                      # once: it also creates Dagster's home
    DAGSTER_HOME=$PWD/curated/dagster dagster dev -f definitions.py
"""

import json
from pathlib import Path

import dagster as dg

from novelsum_dagster.definitions import build_defs
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.settings import load_settings
from novelsum_dagster.workspace import Workspace

SETTINGS = load_settings(Path(__file__).with_name("curation.yaml"))
VALIDATION_SHARE = 0.1


@dg.asset(group_name="training", kinds={"json"})
def training_files(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace], selected_subset: Subset
) -> dg.MaterializeResult:
    """The subset as train.jsonl and validation.jsonl, in the folder `training` beside the settings."""
    records = (workspace.root / selected_subset.folder / "subset.jsonl").read_text().splitlines()
    every = round(1 / VALIDATION_SHARE)
    parts = {
        "validation": records[::every],
        "train": [record for place, record in enumerate(records) if place % every],
    }
    folder = workspace.settings.base / "training"
    folder.mkdir(exist_ok=True)
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{record}\n" for record in part))
    context.log.info(f"subset {selected_subset.key} written to {folder}")
    return dg.MaterializeResult(
        metadata={
            **{name: len(part) for name, part in parts.items()},
            "fields": ", ".join(sorted(json.loads(records[0]))),
            "path": dg.MetadataValue.path(str(folder)),
        }
    )


defs = dg.Definitions.merge(build_defs(SETTINGS), dg.Definitions(assets=[training_files]))
