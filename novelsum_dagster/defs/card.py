"""The asset `data_card`: the subset ready for publication."""

import dagster as dg

from novelsum_dagster.artifacts.provenance import code_version, read_record
from novelsum_dagster.defs.automation import CARRY
from novelsum_dagster.defs.steps import OWNERS, recorded
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.embedding.store import StoredVectors, VectorSet
from novelsum_dagster.lineage.runs import first_run_with
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.quality.suites import Subject
from novelsum_dagster.quality.validate import verdicts_of
from novelsum_dagster.report.card import DataCard, build_card
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset
from novelsum_dagster.workspace import Workspace


@dg.asset(
    group_name="selection",
    kinds={"markdown"},
    owners=OWNERS,
    code_version=code_version("data_card"),
    automation_condition=CARRY,
)
def data_card(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    raw_pool: PoolSnapshot,
    distinct_pool: PoolSnapshot,
    embeddings: VectorSet,
    density: DensityTable,
    sample_novelty: NoveltyTable,
    selected_subset: Subset,
    novelsum_report: NovelSumReport,
) -> dg.MaterializeResult[DataCard]:
    """The subset's data, a card (sources, licences, measures, biases), and a manifest with every file's SHA-256."""
    root, settings = workspace.root, workspace.settings
    used = {
        "raw_pool": raw_pool,
        "embeddings": embeddings,
        "distinct_pool": distinct_pool,
        "density": density,
        "sample_novelty": sample_novelty,
        "selected_subset": selected_subset,
        "novelsum_report": novelsum_report,
    }
    with recorded(context, workspace, used) as step:
        # Read only if the embeddings' suites never ran.
        vectors = StoredVectors.of_pool(root, raw_pool, embeddings)
        of_pool = {"embeddings": Subject(embeddings, root, settings, raw_pool, vectors)}
        verdicts = [
            verdict
            for name, output in used.items()
            for verdict in verdicts_of(name, of_pool.get(name, Subject(output, root, settings, distinct_pool)))
        ]
        made = read_record(root, "selected_subset", selected_subset.key)
        with workspace.lineage.reading() as connection:
            first = first_run_with(connection, selected_subset.key)
        card = build_card(
            root,
            distinct_pool,
            embeddings,
            selected_subset,
            novelsum_report,
            made=made,
            run_id=first or made.run_id,
            verdicts=verdicts,
            settings=settings,
        )
        folder = root / card.folder
        return step.result(
            card,
            card=dg.MetadataValue.md((folder / "README.md").read_text().split("\n---\n", 1)[1]),
            manifest_sha256=card.digest,
            signed_off_by=settings.card.signed_off_by or "nobody",
            path=dg.MetadataValue.path(str(folder)),
        )
