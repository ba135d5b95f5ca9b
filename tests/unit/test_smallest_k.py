"""Why a sample was left out where limits and qualities are fields of the records, and the smallest k that lets it in.

Every smallest k is compared with selections from scratch; shares and caps with what the selection itself says.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from novelsum_dagster.audit.explain import explain
from novelsum_dagster.audit.smallest_k import SmallestK, smallest_k
from novelsum_dagster.common.files import write_table
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.lineage.runs import Run, find_run
from novelsum_dagster.lineage.store import LineageStore, insert
from novelsum_dagster.pool.fields import field_values
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.chosen import PoolSelection
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.search.exact import standing
from novelsum_dagster.selection.subset import describe, write_subset
from novelsum_dagster.settings import Embedding, NovelSum, Pool, Selection, Source
from tests.pools import alpaca, write_jsonl

N, K = 40, 8
VECTORS = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
SQUARED = np.random.default_rng(1).uniform(0.1, 4, N)
POWERS = {"density_power": 0.5, "proximity_power": 1.0}
TOPIC: dict[str, Any] = {"column": "meta.topic"}


class Made:
    """A pool, and runs that select from it."""

    def __init__(self, folder: Path, parquet: bool) -> None:
        self.root = folder / "storage"
        rows = [
            {**row, "meta": {"score": 1 + number % 3, "topic": "aaabc"[number % 5]}}
            for number, row in enumerate(alpaca(N))
        ]
        if parquet:
            write_table(pa.Table.from_pylist(rows), folder / "pool.parquet")
        else:
            write_jsonl(folder / "pool.jsonl", rows)
        source = Source(path="pool.parquet" if parquet else "pool.jsonl", name="one")
        self.pool: PoolSnapshot = build_snapshot(Pool(sources=(source,)), folder, self.root, token_counter(Embedding()))
        self.ids: list[str] = self.pool.samples(self.root, ["id"])["id"].to_pylist()
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), VECTORS.shape[1])
        write_table(pa.table({"id": self.ids, "vector": vectors}), self.root / "vectors/m/one.parquet")
        density = {"id": self.ids, "mean_squared_distance": SQUARED, "density_factor": SQUARED}
        write_table(pa.table(density), self.root / "density/density=d/density.parquet")
        self.store = LineageStore(self.root)

    def picks(self, **settings: Any) -> Picks:
        """Select from scratch."""
        chosen = Selection.model_validate(settings)
        options = NovelSelectOptions(Scoring.of(chosen, NovelSum()))
        return PoolSelection(self.root, self.pool, VECTORS, chosen, options).picks(density_factor(SQUARED, 0.5))

    def run(self, name: str, **settings: Any) -> Picks:
        """Select, and record it as a run."""
        picks = self.picks(**settings)
        keys = {"snapshot": self.pool.key, "vectors": "v", "density": "d"}
        described = describe(Selection.model_validate(settings))
        subset = write_subset(self.pool, self.root, picks, VECTORS, {**described, **POWERS, **keys})
        given = {"settings": json.dumps({"pool": {"near_duplicates": {"drop": False}}, "selection": settings})}
        made = {"package_version": "1", "python": "3", "platform": "x"}
        rows: dict[str, dict[str, Any]] = {
            "runs": {"run_id": name, "started_at": datetime.now(UTC), **given, **made},
            "snapshots": {
                "snapshot": self.pool.key, "folder": self.pool.folder, "read": N, "kept": N, "duplicates": 0,
                "rejects": 0, "near_duplicates": 0, "near_duplicates_dropped": False,
            },
            "source_files": {
                "snapshot": self.pool.key, "source": "one", "file": self.pool.files[0].file,
                "format": self.pool.files[0].format, "complete": True, "read": N, "kept": N, "duplicates": 0,
                "rejects": 0,
            },
            "embeddings": {
                "vectors": "v", "snapshot": self.pool.key, "folder": "vectors/m", "model": "m", "revision": "r",
                "max_tokens": 9, "dtype": "float32", "dimension": VECTORS.shape[1], "samples": N,
            },
            "selections": {
                "selection": subset.key, **keys, "folder": subset.folder, "strategy": subset.settings.strategy,
                "k": subset.settings.k, "seed": subset.settings.seed, **POWERS,
                "options": json.dumps(subset.settings.options),
            },
            "run_outputs": {"run_id": name, **keys, "novelty": "n", "selection": subset.key, "report": "t"},
        }  # fmt: skip
        with self.store.writing() as connection:
            for table, row in rows.items():
                insert(connection, table, [row])
        return picks

    def ask(self, name: str, what: Callable[[Any, Run], Any]) -> Any:
        with self.store.reading() as connection:
            return what(connection, find_run(connection, name))

    def why(self, name: str, row: int) -> dict[str, Any]:
        found = self.ask(name, lambda connection, run: explain(connection, self.root, run, self.ids[row]))
        return {**found.facts, "outcome": found.outcome, "words": " ".join(found.words)}

    def smallest_k(self, name: str, row: int, **options: Any) -> SmallestK:
        found: SmallestK = self.ask(
            name, lambda connection, run: smallest_k(connection, self.root, run, self.ids[row], **options)
        )
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("smallest-k"), parquet=False)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plain", {}),
        pytest.param("caps", {"quotas": [{**TOPIC, "caps": {"a": 3}}]}, marks=pytest.mark.slow),
        pytest.param(
            "full caps",
            {"quotas": [{**TOPIC, "caps": {"a": 3, "b": 7}}, {"column": "turns", "caps": {"2": 10}}]},
            marks=pytest.mark.slow,
        ),
        pytest.param("idle floors", {"quotas": [{**TOPIC, "floors": {"a": 1}}]}, marks=pytest.mark.slow),
        pytest.param("floors", {"quotas": [{**TOPIC, "floors": {"b": 4}}]}, marks=pytest.mark.slow),
        pytest.param(
            "floors from the first", {"quotas": [{**TOPIC, "floors": {"b": 5, "c": 3}}]}, marks=pytest.mark.slow
        ),
        pytest.param(
            "both", {"quotas": [{**TOPIC, "floors": {"b": 3, "c": 3}, "caps": {"c": 4}}]}, marks=pytest.mark.slow
        ),
        pytest.param(
            "two columns",
            {"quotas": [{**TOPIC, "floors": {"b": 3}}, {"column": "meta.score", "floors": {"1": 4}}]},
            marks=pytest.mark.slow,
        ),
        ("quality", {"quality": "meta.score"}),
        ("ids", {"must_include": [30, 4], "must_exclude": [1, 2, 3]}),
    ],
)
def test_it_is_the_first_k_whose_selection_has_the_sample(made: Made, name: str, settings: dict[str, Any]) -> None:
    asked: dict[str, Any] = {**settings, "seed": 3}
    for key in {"must_include", "must_exclude"} & asked.keys():
        asked[key] = [made.ids[row] for row in asked[key]]
    picks = made.run(name, k=K, **asked)
    subsets: dict[int, set[int]] = {}
    for k in range(K + 1, N + 1):
        try:
            subsets[k] = set(made.picks(k=k, **asked).indices.tolist())
        except ValueError:  # The limits allow no subset of so many.
            break
    most = min(4 * K, max(subsets))
    answers = set()
    for row in np.setdiff1d(np.arange(N), picks.indices).tolist():
        expected = next((k for k in range(K + 1, most + 1) if row in subsets[k]), None)
        found = made.smallest_k(name, row)
        assert found.k == expected, (row, found)
        if expected is None:
            assert found.more_than == 4 * K or found.none_because
            assert found.more_than is None or most == 4 * K
        answers.add(found.k)
    assert len(answers) > 3 or name == "full caps"


def test_it_says_how_far_it_went(made: Made) -> None:
    made.run("far", k=K)
    last = int(made.picks(k=2 * K + 1).indices[-1])
    seen: list[tuple[int, int]] = []
    found = made.smallest_k("far", last, times_k=2, progress=lambda done, total: seen.append((done, total)))
    assert found == SmallestK(more_than=2 * K)
    assert seen and seen[-1] == (2 * K, 2 * K)
    assert made.smallest_k("far", last, times_k=3).k == 2 * K + 1


def test_it_says_why_there_is_none(made: Made) -> None:
    excluded = made.ids[5]
    quotas = [{**TOPIC, "caps": {"a": 2}}]
    picks = made.run("none", k=K, must_exclude=[excluded], quotas=quotas)
    topics = field_values(made.pool, made.root, "meta.topic")
    barred = next(row for row in range(N) if topics[row] == "a" and row not in picks.indices and row != 5)
    assert "selection.must_exclude" in str(made.smallest_k("none", 5).none_because)
    assert "the cap of 2 on meta.topic a is reached" in str(made.smallest_k("none", barred).none_because)
    budget = made.run("budget", token_budget=600)
    assert "token_budget" in str(made.smallest_k("budget", int(np.setdiff1d(range(N), budget.indices)[0])).none_because)
    floors = made.ask("none", lambda _, run: run)
    floors.options.update(extends="earlier", must_exclude=[], quotas=[{**TOPIC, "floors": {"a": 1}}])
    found = made.ask("none", lambda connection, _: smallest_k(connection, made.root, floors, made.ids[barred]))
    assert "extends an earlier subset" in str(found.none_because)
    drawn = made.run("random", k=K, strategy="random")
    left_out = made.smallest_k("random", int(np.setdiff1d(range(N), drawn.indices)[0]))
    assert "random scores no candidates" in str(left_out.none_because)


@pytest.mark.parametrize("parquet", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cap_on_a_field_of_the_records_is_named(tmp_path: Path, parquet: bool) -> None:
    made = Made(tmp_path, parquet)
    if parquet:  # As Dagster leaves it behind: the schema of Arrow rows is in the handle alone.
        (made.root / "assets").mkdir()
        (made.root / "assets" / "raw_pool.json").write_text(made.pool.model_dump_json())
    quotas = [{**TOPIC, "caps": {"a": 2, "b": 0}}]
    picks = made.run("r", k=K, quotas=quotas).indices.tolist()
    topics = field_values(made.pool, made.root, "meta.topic")
    reached = [rank for rank, row in enumerate(picks, 1) if topics[row] == "a"][1]
    expected = {"a": [("cap", "a", 2, reached + 1, K)], "b": [("cap", "b", 0, 2, K)], "c": []}
    for row in np.setdiff1d(np.arange(N), picks).tolist():
        barred = made.why("r", row)["barred"]
        found = [tuple(one[name] for name in ("by", "label", "cap", "first", "last")) for one in barred]
        assert found == expected[topics[row]]
    if parquet:
        (made.root / "assets" / "raw_pool.json").unlink()
        left = next(row for row in range(N) if row not in picks)
        assert not made.why("r", left)["limits_are_known"]
        assert "newest pool only" in str(made.smallest_k("r", left).none_because)


def test_where_a_sample_came_closest_counts_its_quality(made: Made) -> None:
    picks = made.run("graded", k=K, quality="meta.score")
    quality = np.array(field_values(made.pool, made.root, "meta.score"), float)
    left = np.setdiff1d(np.arange(N), picks.indices)
    given: dict[str, Any] = {"density_factor": density_factor(SQUARED, 0.5), "quality": quality, "rows": left}
    shares = np.array([standing(VECTORS, picks.indices[:m], **given).score / picks.score[m] for m in range(1, K)])
    for at, row in enumerate(left.tolist()):
        found = made.why("graded", row)
        closest = found["closest"]
        assert closest["share"] == pytest.approx(shares[:, at].max(), rel=1e-6)
        assert closest["rank"] == shares[:, at].argmax() + 2
        assert closest["quality"] == quality[row]
        needed = re.search(r"With meta.score over ([\d.]+) instead of ([\d.]+), it would", found["words"])
        assert needed and float(needed[1]) == pytest.approx(quality[row] / closest["share"], rel=1e-5)
        assert float(needed[2]) == quality[row]
        assert found["at_most_before_it"] is None


def test_the_quality_that_is_named_lets_the_sample_in(made: Made, tmp_path: Path) -> None:
    """A quality a little over the one that is named wins that pick; a little under it does not."""
    picks = made.run("graded", k=K, quality="meta.score")
    quality = np.array(field_values(made.pool, made.root, "meta.score"), float)
    row = int(np.setdiff1d(np.arange(N), picks.indices)[3])
    closest = made.why("graded", row)["closest"]
    before = picks.indices[: closest["rank"] - 1]
    for factor, wins in ((1.0001, True), (0.9999, False)):
        quality[row] = closest["quality"] / closest["share"] * factor
        stood = standing(VECTORS, before, density_factor=density_factor(SQUARED, 0.5), quality=quality, rows=[row])
        assert (stood.rank[0] == 1) == wins


@pytest.mark.parametrize("side", ["column", "row", "objective"])
def test_why_scores_by_the_side_of_the_run(made: Made, side: str) -> None:
    """Where each sample came closest, its share, and its place at the end equal scores computed outright."""
    picks = made.run(side, k=K, density_side=side)
    left = np.setdiff1d(np.arange(N), picks.indices)
    given: dict[str, Any] = {"density_factor": density_factor(SQUARED, 0.5), "density_side": side}
    scores = np.array([standing(VECTORS, picks.indices[:m], rows=left, **given).score for m in range(1, K)])
    won = picks.score[1:, None]
    near = scores - won if side == "objective" else scores / won
    end = standing(VECTORS, picks.indices, rows=left, **given)
    for at, row in enumerate(left.tolist()):
        found = made.why(side, row)
        closest = found["closest"]
        best = int(near[:, at].argmax())
        assert closest["rank"] == best + 2
        assert closest["score"] == pytest.approx(scores[best, at], rel=1e-6)
        assert closest["share"] == (None if side == "objective" else pytest.approx(near[best, at], rel=1e-6))
        assert found["at_most_before_it"] == end.rank[at] - 1
        assert ("With a quality more than" in found["words"]) == (side != "objective")
    for row in left[::9].tolist():
        smallest = made.smallest_k(side, row)
        k = smallest.k or smallest.more_than
        assert k is not None
        assert (row in made.picks(k=k, density_side=side).indices) == (smallest.k is not None)
        assert row not in made.picks(k=k - 1, density_side=side).indices


def test_nothing_is_said_of_scores_where_picks_were_exchanged(made: Made) -> None:
    picks = made.run("swapped", k=K, density_side="objective", swap_rounds=1)
    row = int(np.setdiff1d(np.arange(N), picks.indices)[0])
    found = made.why("swapped", row)
    assert (found["closest"], found["at_most_before_it"]) == (None, None)
    assert "exchanged picks" in str(made.smallest_k("swapped", row).none_because)
