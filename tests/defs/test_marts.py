"""The audit through Dagster, on three real runs; its figures are computed again in Python from the handles' files."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import dagster as dg
import pyarrow.parquet as pq
import pytest

from novelsum_dagster.artifacts.newest import read_newest
from novelsum_dagster.defs.marts import GROUP, STEP
from novelsum_dagster.diversity.tables import DensityTable, NoveltyTable
from novelsum_dagster.lineage.models import models
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection.subset import Subset
from tests.defs.conftest import ASSETS, Curation, write_pool
from tests.instances import in_memory
from tests.pools import alpaca, write_jsonl, write_settings

pytestmark = pytest.mark.slow

EVIL = "'; DROP TABLE runs; --"
CONFIGS: list[dict[str, Any]] = [
    {},
    {"k": 30, "strategy": "duplicate", "duplicate": {"copies": 3}, "seed": 3},
    {"k": 25},
]
"""Of the selections of the runs that finish, in order; the last but one run fails."""


class Run(NamedTuple):
    """A finished run, and what was newest when it ended."""

    id: str
    result: dg.ExecuteInProcessResult
    pool_folder: Path
    pool: list[dict[str, Any]]
    near: dict[str, dict[str, Any]]
    dropped: bool
    picks: list[dict[str, Any]]
    remaining: dict[str, dict[str, Any]]
    covering: dict[str, dict[str, Any]]
    density: dict[str, float]
    novelty: dict[str, float]
    report: NovelSumReport

    @property
    def ranks(self) -> dict[str, int]:
        """First ranks by id."""
        return {row["id"]: row["rank"] for row in reversed(self.picks)}

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The samples that could be picked."""
        return [row for row in self.pool if not (self.dropped and row["id"] in self.near)]


def _finished(curation: Curation, result: dg.ExecuteInProcessResult) -> Run:
    assert result.success
    root = curation.root
    snapshot = read_newest(root, "raw_pool", PoolSnapshot)
    subset = read_newest(root, "selected_subset", Subset)
    left = root / subset.folder / "remaining.parquet"
    density = read_newest(root, "density", DensityTable).table(root).to_pylist()
    novelty = read_newest(root, "sample_novelty", NoveltyTable).table(root).to_pylist()
    columns = ["id", "source", "file", "position", "turns", "characters", "tokens"]
    return Run(
        result.run_id,
        result,
        root / snapshot.folder,
        snapshot.table(root, "samples", columns).to_pylist(),
        {row["id"]: row for row in snapshot.table(root, "near_duplicates").to_pylist()},
        snapshot.near_duplicates_dropped,
        subset.picks(root).to_pylist(),
        {row["id"]: row for row in pq.read_table(left, partitioning=None).to_pylist()} if left.exists() else {},
        {
            row["id"]: row
            for row in pq.read_table(root / subset.folder / "covering.parquet", partitioning=None).to_pylist()
        },
        {row["id"]: row["density_factor"] for row in density},
        {row["id"]: row["novelty"] for row in novelty},
        read_newest(root, "novelsum_report", NovelSumReport),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Curation, list[Run]]]:
    folder = tmp_path_factory.mktemp("audit")
    write_pool(folder)
    rows = alpaca(15, start=100)
    # Near-duplicates of samples of their own file and of another.
    near = [{**row, "output": row["output"] + " Yes."} for row in [*rows[:3], *alpaca(2)] if len(row["output"]) > 80]
    write_jsonl(folder / "pool" / f"{EVIL}.jsonl", [*rows, *near])
    pool = {"sources": [{"path": "pool/*"}], "max_reject_fraction": 0.05, "near_duplicates": {"drop": True}}
    settings = [
        write_settings(folder, pool=pool, selection={"k": 20, **config}).read_text() for config in CONFIGS
    ]  # fmt: skip
    with in_memory() as instance:
        curation = Curation(folder, folder / "curation.yaml", instance)
        found: list[Run] = []
        for text in settings:
            if len(found) == len(settings) - 1:
                assert not curation.run(ops={"selected_subset": {"config": {"k": 10_000}}}).success
            curation.settings_file.write_text(text)
            found.append(_finished(curation, curation.run()))
        yield curation, found


@pytest.fixture
def curation(runs: tuple[Curation, list[Run]]) -> Curation:
    return runs[0]


@pytest.fixture
def finished(runs: tuple[Curation, list[Run]]) -> list[Run]:
    return runs[1]


def _ask(curation: Curation, query: str, *values: Any) -> list[dict[str, Any]]:
    with LineageStore(curation.root).reading() as connection:
        found = connection.execute(query, list(values))
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_the_pool_has_what_is_tested(finished: list[Run]) -> None:
    first = finished[0]
    assert {row["source"] for row in first.pool} == {"alpaca", "chat", EVIL}
    assert first.near and first.dropped and first.remaining
    assert len(finished[1].ranks) < len(finished[1].picks)


def test_every_model_is_an_asset_and_every_test_a_check(finished: list[Run]) -> None:
    made = {
        event.asset_key.to_user_string()
        for event in finished[-1].result.get_asset_materialization_events()
        if event.asset_key
    }
    assert {model.name for model in models()} <= made
    names = {model.name for model in models()}
    checks = [
        one for one in finished[-1].result.get_asset_check_evaluations() if one.asset_key.to_user_string() in names
    ]
    assert {(one.asset_key.to_user_string(), one.check_name) for one in checks} == {
        (test.model, test.name) for model in models() for test in model.tests
    }
    assert [(one.asset_key, one.check_name) for one in checks if not one.passed or one.blocking] == []


def test_dagster_knows_the_models(curation: Curation) -> None:
    from novelsum_dagster.definitions import build_defs

    graph = build_defs(curation.settings).resolve_asset_graph()
    for model in models():
        node = graph.get(dg.AssetKey(model.name))
        parents = {key.to_user_string() for key in node.parent_keys}
        assert parents == {*model.depends_on, *({"lineage"} if model.sources else ())}
        assert (node.group_name, node.code_version, node.kinds) == (GROUP, model.code_version, {"sql", "duckdb"})
        assert node.owners and node.description == model.description


def test_dagster_shows_columns_lineage_rows_and_sql(finished: list[Run]) -> None:
    events = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in finished[0].result.get_asset_materialization_events()
        if event.asset_key
    }
    coverage: Any = events["source_coverage"]
    assert coverage["dagster/row_count"].value == 3
    types = {column.name: column.type for column in coverage["dagster/column_schema"].schema.columns}
    assert (types["source"], types["pool_samples"], types["pool_share"]) == ("varchar", "bigint", "double")
    audit: Any = events["selection_audit"]
    assert "dagster/row_count" not in audit
    deps = audit["dagster/column_lineage"].lineage.deps_by_column
    assert {(one.asset_key.to_user_string(), one.column_name) for one in deps["score"]} == {
        ("picked_samples", "score"),
        ("lineage", "remaining.score"),
    }
    assert audit["sql"].value.startswith("```sql\nCREATE OR REPLACE VIEW selection_audit AS")


def test_selection_audit(curation: Curation, finished: list[Run]) -> None:
    for run in finished:
        rows = {row["id"]: row for row in _ask(curation, "FROM selection_audit WHERE run_id = ?", run.id)}
        assert len(rows) == len(run.pool)
        times = Counter(row["id"] for row in run.picks)
        kept = {row["id"] for row in run.kept}
        for sample in run.pool:
            row, id_ = rows[sample["id"]], sample["id"]
            assert row["picked"] == (id_ in run.ranks)
            assert (row["rank"], row["times_picked"]) == (run.ranks.get(id_), times[id_])
            assert row["in_pool"] == (id_ in kept)
            assert [row[name] for name in ("source", "file", "position", "turns", "tokens")] == [
                sample[name] for name in ("source", "file", "position", "turns", "tokens")
            ]
            assert (row["density_factor"], row["novelty"]) == (run.density.get(id_), run.novelty.get(id_))
            near = run.near.get(id_, {})
            assert (row["near_duplicate_of"], row["near_duplicate_score"]) == (
                near.get("partner_id"),
                near.get("score"),
            )


def test_scores_and_reasons(curation: Curation, finished: list[Run]) -> None:
    run = finished[0]
    rows = {row["id"]: row for row in _ask(curation, "FROM selection_audit WHERE run_id = ?", run.id)}
    won = {pick["rank"]: pick["score"] for pick in run.picks}
    for pick in run.picks[1:]:
        row = rows[pick["id"]]
        names = ("score", "margin", "runner_up_id", "nearest_pick_id", "nearest_distance", "quality")
        assert [row[name] for name in names] == [pick[name] for name in names]
        assert (row["after_picks"], row["score_is_exact"]) == (pick["rank"] - 1, True)
        suffix = {1: "st", 2: "nd", 3: "rd"}.get(pick["rank"], "th")
        short = pick["runner_up_id"][:8]
        eligible = len(run.kept) - pick["rank"] + 1
        assert (row["chosen_by"], row["eligible"]) == ("score", eligible)
        assert row["reason"] == (
            f"picked {pick['rank']}{suffix} with a score of {pick['score']:.5g}; {short} came second by"
            f" {pick['margin']:.3g}; {eligible} samples were eligible"
        )
    assert rows[run.picks[0]["id"]]["reason"] == "picked 1st: the first pick is drawn at random"
    for id_, left in run.remaining.items():
        if id_ in run.ranks:
            continue
        row, bound = rows[id_], "" if left["is_exact"] else "at most "
        assert (row["score"], row["score_is_exact"], row["after_picks"]) == (
            left["score"], left["is_exact"], left["after_picks"],
        )  # fmt: skip
        after, stands = left["after_picks"], run.covering[id_]
        nearest = run.picks[stands["rank_1"] - 1]["id"]
        assert (row["nearest_pick_id"], row["nearest_distance"]) == (nearest, stands["distance_1"])
        assert row["reason"] == (
            f"not picked: its score after {after} pick{'s' * (after != 1)} was {bound}{left['score']:.5g};"
            f" {won[after + 1]:.5g} won; its nearest pick is {nearest[:8]}, at cosine distance"
            f" {stands['distance_1']:.4f}"
        )
        assert left["score"] <= won[after + 1]
    for id_, near in run.near.items():
        assert rows[id_]["reason"] == f"left out: near-duplicate ({near['score']:.2f}) of {near['partner_id'][:8]}"
    assert sum(row["duplicates_folded"] for row in rows.values()) == 1


def test_selection_diff(curation: Curation, finished: list[Run]) -> None:
    """The run that failed between two others is passed over."""
    for before, run in pairwise(finished):
        rows = _ask(curation, "FROM selection_diff WHERE run_id = ?", run.id)
        expected = {
            id_: (before.id, run.ranks.get(id_), before.ranks.get(id_)) for id_ in {*run.ranks, *before.ranks}
        }  # fmt: skip
        assert {row["id"]: (row["previous_run_id"], row["rank"], row["previous_rank"]) for row in rows} == expected
        for row in rows:
            assert row["change"] == (
                "entered" if row["previous_rank"] is None else "left" if row["rank"] is None else "stayed"
            )
    assert _ask(curation, "FROM selection_diff WHERE run_id = ?", finished[0].id) == []


def test_source_coverage_and_length_bias(curation: Curation, finished: list[Run]) -> None:
    for run in finished:
        chosen = [row for row in run.pool if row["id"] in run.ranks]
        for row in _ask(curation, "FROM source_coverage WHERE run_id = ?", run.id):
            pool = [one for one in run.kept if one["source"] == row["source"]]
            subset = [one for one in chosen if one["source"] == row["source"]]
            assert (row["pool_samples"], row["subset_samples"]) == (len(pool), len(subset))
            assert (row["pool_tokens"], row["subset_tokens"]) == (
                sum(one["tokens"] for one in pool), sum(one["tokens"] for one in subset),
            )  # fmt: skip
            shares = len(pool) / len(run.kept), len(subset) / len(chosen)
            assert (row["pool_share"], row["subset_share"]) == pytest.approx(shares)
            assert row["share_ratio"] == pytest.approx(shares[1] / shares[0])
        bias = _ask(curation, "FROM length_bias WHERE run_id = ?", run.id)
        assert {row["unit"] for row in bias} == {"tokens", "turns", "characters"}
        for row in bias:
            in_pool, in_subset = ([one[row["unit"]] for one in rows] for rows in (run.kept, chosen))
            assert (row["pool_median"], row["subset_median"]) == (median(in_pool), median(in_subset))
            assert (row["pool_mean"], row["subset_mean"]) == pytest.approx((fmean(in_pool), fmean(in_subset)))
            assert row["mean_ratio"] == pytest.approx(fmean(in_subset) / fmean(in_pool))
            assert row["median_ratio"] == pytest.approx(median(in_subset) / median(in_pool))


def test_measure_drift(curation: Curation, finished: list[Run]) -> None:
    for before, run in zip([None, *finished], finished, strict=False):
        rows = _ask(curation, "FROM measure_drift WHERE run_id = ?", run.id)
        assert {(row["set_name"], row["measure"]): row["measured"] for row in rows} == {
            (one.set_name, one.measure): one.value for one in run.report.sets
        }
        for row in rows:
            if before is None:
                assert (row["previous_run_id"], row["change"]) == (None, None)
            else:
                earlier = before.report.of(row["set_name"], row["measure"]).value
                assert (row["previous_run_id"], row["previous_measured"]) == (before.id, earlier)
                assert row["change"] == pytest.approx(row["measured"] - earlier)


def test_near_duplicate_groups_and_rejects(curation: Curation, finished: list[Run]) -> None:
    near = finished[0].near

    def first(id_: str) -> str:
        return first(near[id_]["partner_id"]) if id_ in near else id_

    sizes = Counter(first(id_) for id_ in near)
    groups = _ask(curation, "FROM near_duplicate_groups")
    assert {row["first_id"]: row["size"] for row in groups} == {id_: size + 1 for id_, size in sizes.items()}
    (reject,) = _ask(curation, "FROM rejects_by_reason")
    assert (reject["source"], reject["reason"], reject["rejects"]) == ("chat", "wrong_type", 1)
    assert (reject["records_read"], reject["share_of_read"]) == (41, pytest.approx(1 / 41))
    assert (reject["example_file"], reject["example_line"]) == ("pool/chat.jsonl", 41)


def test_run_costs(curation: Curation, finished: list[Run]) -> None:
    for run in finished:
        rows = {row["step"]: row for row in _ask(curation, "FROM run_costs WHERE run_id = ?", run.id)}
        assert set(rows) == {*ASSETS, STEP}
        for row in rows.values():
            assert (row["attempts"], row["failed_attempts"], row["status"]) == (1, 0, "done")
            assert row["run_finished"] and row["pool_samples"] == len(run.kept) and row["seconds"] > 0
        assert {name for name, row in rows.items() if row["bytes"] is None} == {"lineage", "changes", "data_card", STEP}
        assert rows["raw_pool"]["bytes"] == sum(path.stat().st_size for path in run.pool_folder.iterdir())
        shards = (curation.root / "vectors").rglob("*.*")
        assert rows["embeddings"]["bytes"] == sum(path.stat().st_size for path in shards)
        assert {name for name, row in rows.items() if row["samples_embedded"] is not None} == {"embeddings"}
    first, *later = (
        _ask(curation, "SELECT samples_embedded AS n FROM run_costs WHERE run_id = ? AND step = 'embeddings'", run.id)
        for run in finished
    )
    assert first == [{"n": len(finished[0].kept)}]
    assert later == [[{"n": 0}]] * len(later)
    broken = _ask(curation, "FROM run_costs WHERE NOT run_finished")
    steps = {"raw_pool", "embeddings", "distinct_pool", "density", "sample_novelty", "selected_subset"}
    assert {row["step"] for row in broken} == steps
    assert {row["status"] for row in broken if row["step"] == "selected_subset"} == {"failed"}
    assert {row["pool_samples"] for row in broken} == {len(finished[0].kept)}


def test_a_model_can_be_built_alone(curation: Curation, finished: list[Run]) -> None:
    result = curation.materialise("source_coverage")
    assert result.success
    assert len(result.get_asset_materialization_events()) == 1


def test_text_that_is_sql_was_only_text(curation: Curation, finished: list[Run]) -> None:
    assert len(_ask(curation, "FROM runs")) >= len(finished) + 1
    (row,) = _ask(curation, "FROM source_coverage WHERE run_id = ? AND source = ?", finished[0].id, EVIL)
    assert row["pool_samples"] > 0
    assert _ask(curation, "FROM selection_audit WHERE id = ?", EVIL) == []


@pytest.mark.slow
def test_a_test_that_fails_is_a_failed_check_and_the_run_goes_on(curation: Curation, finished: list[Run]) -> None:
    with LineageStore(curation.root).writing() as connection:
        connection.execute(
            "INSERT INTO set_measures SELECT report, selection, ?, 'm', 1, 1, 1, 1 FROM run_outputs LIMIT 1", [EVIL]
        )
    try:
        result = curation.run()
        assert result.success
        failed = [one for one in result.get_asset_check_evaluations() if not one.passed]
        (check,) = [one for one in failed if one.asset_key == dg.AssetKey("measure_drift")]
        assert (check.check_name, check.severity) == ("accepted_values_set_name", dg.AssetCheckSeverity.WARN)
        assert check.metadata["failing"].value == 1
        assert EVIL in str(check.metadata["examples"].value)
    finally:
        with LineageStore(curation.root).writing() as connection:
            connection.execute("DELETE FROM set_measures WHERE measure = 'm'")
