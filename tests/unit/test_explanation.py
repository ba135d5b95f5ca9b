"""Every claim of `novelsum why` on random pools, limits and settings, against brute force from the stored vectors."""

import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from novelsum_dagster.audit.explain import Explanation, explain
from novelsum_dagster.audit.explanation_text import sentences
from novelsum_dagster.audit.near_misses import near_misses
from novelsum_dagster.audit.record import Outputs, record_outputs
from novelsum_dagster.diversity.tables import build_density, build_novelty
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.embedding.vectors_of_pool import vectors_of_pool
from novelsum_dagster.lineage.models import build
from novelsum_dagster.lineage.runs import Run, find_run
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.report.novelsum_report import NovelSumReport
from novelsum_dagster.selection import Picks, Quota
from novelsum_dagster.selection.chosen import PoolSelection, with_config
from novelsum_dagster.selection.limits import Wanted
from novelsum_dagster.selection.novelselect import novelselect_by
from novelsum_dagster.selection.picks import BARS
from novelsum_dagster.settings import Settings, load_settings
from tests.curated import Curated
from tests.plain import PlainLimits, PlainQuota
from tests.pools import write_jsonl, write_settings

RUN = "0b3c8a52-8f5c-4d0e-9a59-0a4ed4d1f5b7"
CLOSE: dict[str, Any] = {"rel": 1e-5, "abs": 1e-9}
"""Distances are kept in float32 by the selection."""


@dataclass
class Made:
    """A run over a small random pool, and what brute force needs of it."""

    root: Path
    settings: Settings
    ids: list[str]
    units: NDArray[np.float64]
    vectors: NDArray[np.float32]
    factor: NDArray[np.float64]
    quality: NDArray[np.float64]
    rule: PlainLimits
    picks: list[int]
    given: int
    """How many of the first picks were not made by score."""
    run: Run
    explanations: list[Explanation]

    def novelsum(self, rows: list[int]) -> float:
        """Return NovelSum of some samples, by the definition."""
        weights = np.arange(1, len(rows) + 1.0) ** -self.settings.novelsum.proximity_power
        ascending = np.sort(np.maximum(1 - self.units[rows] @ self.units[rows].T, 0), axis=1)
        return float((self.factor[rows] * (ascending @ weights)).mean() / weights.sum())

    def scores(self, picked: list[int]) -> NDArray[np.float64]:
        """Return the score of every sample after some picks, by the definition."""
        selection, alpha = self.settings.selection, self.settings.novelsum.proximity_power
        if selection.density_side == "objective":
            now = self.novelsum(picked)
            return np.array([self.novelsum([*picked, row]) - now for row in range(len(self.ids))])
        distance = 1 - self.units @ self.units[picked].T
        weights = np.arange(1, len(picked) + 1.0) ** -alpha
        if selection.density_side == "column":
            order = np.argsort(distance, axis=1, kind="stable")
            summed = np.take_along_axis(distance * self.factor[picked], order, axis=1)
        elif selection.density_side == "row":
            summed = np.sort(distance * self.factor[:, None], axis=1)
        else:
            summed = np.sort(distance * (self.factor[:, None] + self.factor[picked]), axis=1)
        return np.asarray(self.quality * (summed @ weights))


def _settings(generator: np.random.Generator, ids: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return random settings of a selection."""
    n = len(ids)
    chosen: dict[str, Any] = {"seed": int(generator.integers(100))}
    chosen["density_side"] = str(generator.choice(["both", "both", "both", "row", "column", "objective"]))
    if generator.random() < 0.3:
        chosen["token_budget"] = int(sum(row["tokens"] for row in rows) * generator.uniform(0.1, 0.6))
    else:
        chosen["k"] = int(generator.integers(2, max(3, n // 2)))
        if generator.random() < 0.2:
            return {**chosen, "partitions": 2}
    if generator.random() < 0.2:
        return chosen
    shuffled = generator.permutation(n).tolist()
    if generator.random() < 0.4:
        chosen["must_exclude"] = [ids[row] for row in shuffled[: n // 5]]
    if generator.random() < 0.3:
        chosen["must_include"] = [ids[row] for row in shuffled[-2:]]
    if chosen["density_side"] == "objective":
        chosen["swap_rounds"] = int(generator.integers(2))
    elif generator.random() < 0.4:
        chosen["quality"] = "score"
    quotas = []
    for column in ("source", "lang"):
        if generator.random() < 0.5:
            labels = sorted({row[column] for row in rows})
            caps = {label: int(generator.integers(0, n // 3)) for label in labels[1:] if generator.random() < 0.6}
            floors = {label: int(generator.integers(0, 3)) for label in labels if generator.random() < 0.5}
            quotas += [{"column": column, "caps": caps, "floors": floors}] if caps or floors else []
    return {**chosen, "quotas": quotas} if quotas else chosen


def _make(folder: Path, seed: int) -> Made | None:
    """Make a run from a seed; None if its random limits contradict each other."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(12, 45))
    records = [
        {
            "instruction": f"Question {seed} {row}",
            "input": "",
            "output": "word " * int(generator.integers(1, 30)),
            "lang": str(generator.choice(["en", "de", "fr"])),
            "score": float(generator.uniform(0.5, 2)),
        }
        for row in range(n)
    ]
    parts = 1 + np.sort(generator.permutation(n - 1)[:2])
    for name, part in zip("abc", np.split(np.arange(n), parts), strict=True):
        write_jsonl(folder / "pool" / f"{name}.jsonl", [records[row] for row in part])
    centres = generator.normal(size=(4, 6))
    rows = centres[generator.integers(0, 4, n)] + 0.5 * generator.normal(size=(n, 6))
    rows[n // 2] = rows[0]  # A tie.
    np.save(folder / "own.npy", rows.astype(np.float32))
    powers = {
        "proximity_power": float(generator.choice([0.5, 1, 2])),
        "density_power": float(generator.choice([0, 0.5, 1])),
    }
    sections = {
        "embedding": {"vectors": "own.npy"},
        "novelsum": {"neighbors": 3, **powers},
        "pool": {"sources": [{"path": "pool/*"}], "near_duplicates": {"by": "off"}},
    }
    settings = load_settings(write_settings(folder, **sections, selection={"k": 2}))
    snapshot = build_snapshot(
        settings.pool, settings.base, settings.storage_path, lambda texts: [len(t) for t in texts]
    )
    table = snapshot.samples(settings.storage_path, ["id", "source", "tokens", "position"]).to_pylist()
    for row, record in zip(table, records, strict=True):
        row |= {"lang": record["lang"], "score": record["score"]}
    ids = [row["id"] for row in table]
    selection = _settings(generator, ids, table)
    settings = load_settings(write_settings(folder, **sections, selection=selection))
    curated = Curated(settings)
    root = curated.root
    curated.keep("raw_pool", snapshot)
    vector_set = vectors_of_pool(PoolAt(snapshot, root, settings.base), settings.embedding, root)
    curated.keep("embeddings", vector_set, "raw_pool")
    curated.made["distinct_pool"] = snapshot
    curated.keep("distinct_pool", snapshot, "raw_pool", "embeddings")
    vectors = load_vectors(root / vector_set.folder, ids)
    density = build_density(root, ids, vectors, vector_set.key, settings=settings.novelsum)
    curated.keep("density", density, "raw_pool", "embeddings")
    config = {
        **settings.selection.model_dump(include={"strategy", "k", "token_budget", "quality", "seed"}),
        **settings.novelsum.model_dump(include={"density_power", "proximity_power"}),
    }
    chosen, options = with_config(settings, config)
    try:
        subset = PoolSelection(root, snapshot, vectors, chosen, options).subset(vector_set.key, density)
    except ValueError:
        return None
    curated.keep("selected_subset", subset, "raw_pool", "embeddings", "density", **config)
    novelty = build_novelty(root, density, vectors, settings=settings.novelsum)
    curated.keep("sample_novelty", novelty, "raw_pool", "embeddings", "density")
    (root / "reports" / "report=none").mkdir(parents=True)
    report = NovelSumReport(key="none", folder="reports/report=none", sets=())
    curated.keep("novelsum_report", report, "selected_subset")
    store = LineageStore(root)
    store.start_run(RUN, settings.model_dump_json())
    record_outputs(store, RUN, Outputs(snapshot, vector_set, snapshot, density, novelty, subset, report))
    cost = np.array([row["tokens"] for row in table], np.float64)
    budget = selection.get("token_budget")
    quotas = [
        PlainQuota([row[one["column"]] for row in table], one["caps"], one["floors"])
        for one in selection.get("quotas", ())
    ]
    row_of = {id_: row for row, id_ in enumerate(ids)}
    picks = [row_of[id_] for id_ in subset.picks(root, ["id"])["id"].to_pylist()]
    factor = density.table(root)["density_factor"].to_numpy()
    wide = vectors.astype(np.float64)
    with store.reading() as connection:
        run = find_run(connection, None)
        explanations = [explain(connection, root, run, id_) for id_ in ids]
    return Made(
        root,
        settings,
        ids,
        wide / np.linalg.norm(wide, axis=1, keepdims=True),
        vectors,
        factor,
        np.array([row["score"] for row in table]) if "quality" in selection else np.ones(n),
        PlainLimits(
            np.ones(n) if budget is None else cost,
            float(len(picks)) if budget is None else float(budget),
            quotas,
            [row_of[id_] for id_ in selection.get("must_exclude", ())],
        ),
        picks,
        max(len(selection.get("must_include", ())), 1),
        run,
        explanations,
    )


def _again(made: Made, quality: NDArray[np.float64] | None = None, more: int = 0) -> list[int]:
    """Return the picks of the same selection with other qualities, or a larger k."""
    selection = made.settings.selection
    _, options = with_config(made.settings, {**made.settings.novelsum.model_dump(), **selection.model_dump()})
    row_of = {id_: row for row, id_ in enumerate(made.ids)}
    budget = selection.token_budget
    wanted = Wanted(
        None if budget is not None else int(made.rule.budget) + more,
        cost=None if budget is None else made.rule.cost,
        budget=budget,
        quotas=[Quota(one.labels, one.caps, one.floors) for one in made.rule.quotas],
        must_include=[row_of[id_] for id_ in selection.must_include],
        must_exclude=made.rule.excluded,
    )
    options = replace(options, seed=selection.seed)
    found: Picks = novelselect_by(made.vectors, wanted, options, made.factor, quality)
    return [int(row) for row in found.indices]


def _check_pick(made: Made, rank: int, found: Explanation) -> None:
    facts, row = found.facts, made.picks[rank - 1]
    before = made.picks[: rank - 1]
    if before:
        distance = 1 - made.units[before] @ made.units[row]
        assert facts["nearest_distance"] == pytest.approx(distance.min(), abs=1e-6)
        assert distance[facts["nearest_pick_rank"] - 1] == pytest.approx(distance.min(), abs=1e-6)
    if rank <= made.given:
        required = made.settings.selection.must_include
        if made.settings.selection.swap_rounds and facts["chosen_by"] == "exchange":
            assert not required
            return
        assert facts["chosen_by"] == ("must_include" if required else "seed")
        assert facts["score"] is None and facts["eligible"] is None
        return
    if made.settings.selection.swap_rounds:
        assert facts["chosen_by"] in ("score", "exchange")
        return
    assert facts["chosen_by"] == "score"
    if made.settings.selection.partitions is not None:
        assert facts["ruled_out"].keys() <= {"partition"}
        assert facts["eligible"] + facts["ruled_out"].get("partition", 0) == len(made.ids) - len(before)
        return
    eligible = made.rule.eligible(before)
    scores = made.scores(before)
    assert eligible[row] and facts["eligible"] == eligible.sum()
    assert facts["score"] == pytest.approx(scores[row], **CLOSE)
    others = np.where(eligible, scores, -np.inf)
    others[row] = -np.inf
    assert scores[row] >= others.max() - 1e-5 * abs(others.max() if eligible.sum() > 1 else 0)
    if eligible.sum() > 1:
        second = made.ids.index(facts["runner_up"]["id"])
        assert eligible[second] and scores[second] == pytest.approx(others.max(), **CLOSE)
        assert facts["margin"] == pytest.approx(
            scores[row] - scores[second], abs=1e-5 * np.abs(scores[[row, second]]).max()
        )
    else:
        assert facts["runner_up"] is None
    barred = made.rule.barred(before)
    assert facts["ruled_out"] == {bar: len(barred[bar]) for bar in BARS if barred.get(bar)}


def _check_left_out(made: Made, row: int, found: Explanation) -> None:
    facts, k = found.facts, len(made.picks)
    if made.settings.selection.partitions is not None:
        assert {one["by"] for one in facts["barred"]} <= {"partition"}
        return
    if made.settings.selection.swap_rounds:
        assert facts["closest"] is None and facts["at_most_before_it"] is None
        return
    assert facts["limits_are_known"]
    signed = made.settings.selection.density_side == "objective"
    best = None
    for rank in range(made.given + 1, k + 1):
        before = made.picks[: rank - 1]
        reason = next((one for one in facts["barred"] if one["first"] <= rank <= one["last"]), None)
        assert (reason is None) == bool(made.rule.eligible(before)[row])
        if reason is not None:
            assert row in made.rule.barred(before)[reason["by"]]
            if rank == reason["first"]:
                assert reason["left"] == made.rule.budget - made.rule.cost[before].sum()
                assert reason["cost"] == made.rule.cost[row]
            continue
        scores = made.scores(before)
        won = scores[made.picks[rank - 1]]
        share = scores[row] - won if signed else scores[row] / won
        best = share if best is None else max(best, share)
    scored = k - made.given
    assert facts["scored_picks"] == max(scored, 0)
    barred = sum(one["last"] - one["first"] + 1 for one in facts["barred"])
    assert facts["eligible_picks"] == facts["scored_picks"] - barred
    closest = facts["closest"]
    assert (closest is None) == (best is None)
    if closest is not None:
        near = closest["score"] - closest["winning_score"] if signed else closest["share"]
        assert near == pytest.approx(best, rel=1e-5, abs=1e-6 if signed else 1e-9)
        at = made.picks[: closest["rank"] - 1]
        assert closest["score"] == pytest.approx(made.scores(at)[row], **CLOSE)
        assert closest["winning_score"] == pytest.approx(made.scores(at)[made.picks[closest["rank"] - 1]], **CLOSE)
        if not signed and closest["share"] < 1 - 1e-6:
            quality = made.quality.copy()
            named = re.search(r"(?:more than|over) ([\d.]+) (?:times|instead)", " ".join(found.words))
            assert named
            quality[row] = float(named[1]) * (1 if "quality" in made.run.options else quality[row]) * (1 + 1e-6)
            # Other picks may lead caps and floors of two columns into a contradiction.
            with suppress(ValueError):
                assert row in _again(made, quality)[: closest["rank"]]
    before_it = facts["at_most_before_it"]
    if before_it is None:
        return
    own = made.scores(made.picks)
    # After all picks, no floor is unmet; one more place is then open to all but excluded samples and full labels.
    ruled_out = {*made.rule.excluded, *made.rule.barred(made.picks)["cap"], *made.picks, row}
    higher = [i for i in range(len(made.ids)) if i not in ruled_out and own[i] >= own[row] - 1e-5 * abs(own[row])]
    certain = [i for i in higher if own[i] > own[row] + 1e-5 * abs(own[row])]
    assert row not in made.rule.barred(made.picks)["cap"]
    assert facts["before_it_is_exact"] and len(certain) <= before_it <= len(higher)
    if before_it == 0 and facts["selection"]["k_can_grow"]:
        assert _again(made, more=1)[-1] == row


def _check_near_misses(made: Made) -> None:
    """The table of the explorer has the true order."""
    with LineageStore(made.root).reading() as connection:
        table = near_misses(connection, made.root, made.run, 5)
    selection = made.settings.selection
    if selection.partitions is not None or selection.swap_rounds:
        assert table is None
        return
    assert table is not None
    scores = made.scores(made.picks)
    closed = {*made.picks, *made.rule.excluded, *made.rule.barred(made.picks)["cap"]}
    open_ = [row for row in range(len(made.ids)) if row not in closed]
    best = sorted((scores[row] for row in open_), reverse=True)[:5]
    assert table["place"].to_pylist() == list(range(1, len(best) + 1))
    assert table["score"].to_pylist() == pytest.approx(best, rel=1e-5, abs=1e-7)
    for id_, score in zip(table["id"].to_pylist(), best, strict=True):
        assert scores[made.ids.index(id_)] == pytest.approx(score, rel=1e-5, abs=1e-7)


def _check_words(found: Explanation) -> None:
    """The words are made of the facts alone, and no number in them is missing from the facts."""
    facts = json.loads(json.dumps(found.facts))
    sample = json.loads(json.dumps(found.sample))
    assert sentences(found.outcome, sample, facts) == found.words
    words = " ".join(found.words)
    if found.outcome == "chosen":
        highest = re.search(r"was the highest of ([\d,]+) eligible", words)
        assert highest is None or int(highest[1].replace(",", "")) == facts["eligible"]
        assert ("highest" in words) <= (facts["chosen_by"] == "score")
        assert ("Not eligible at this pick" in words) == bool(facts["ruled_out"])
    else:
        assert ("was not eligible" in words) == any(one["by"] in ("cap", "floor", "budget") for one in facts["barred"])
        assert "at most" not in words or facts["before_it_is_exact"] is False
        assert ("came closest" in words) == (facts["closest"] is not None)


def _check_audit(made: Made) -> None:
    """The SQL model's columns and sentences."""
    store = LineageStore(made.root)
    build(store)
    with store.reading() as connection:
        rows = connection.execute(
            "SELECT id, picked, rank, chosen_by, eligible, eligible_picks, barred_by, reason FROM selection_audit"
        ).fetchall()
    facts = {one.sample["id"]: one.facts for one in made.explanations}
    assert len(rows) == len(made.ids)
    for id_, picked, rank, chosen_by, eligible, eligible_picks, barred_by, reason in rows:
        own = facts[id_]
        if picked:
            assert (rank, chosen_by, eligible) == (own["rank"], own["chosen_by"], own["eligible"])
            assert (f"; {eligible} sample" in reason) == (eligible is not None)
            continue
        last = own["barred"][-1] if own["barred"] else None
        if made.settings.selection.swap_rounds == 0 and len(made.picks) > made.given:
            assert eligible_picks == own["eligible_picks"]
            is_barred = last is not None and last["last"] == len(made.picks)
            assert (barred_by is not None) == is_barred
            assert (
                barred_by is None
                or made.settings.selection.partitions
                or barred_by
                in {bar for bar, barred in made.rule.barred(made.picks[:-1]).items() if made.ids.index(id_) in barred}
            )
            assert ("eligible at no pick" in reason) == (eligible_picks == 0)


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 60))])
def test_every_claim_holds(tmp_path: Path, seed: int) -> None:
    made = _make(tmp_path, seed)
    if made is None:
        pytest.skip("its random limits contradict each other")
    outcomes = Counter(one.outcome for one in made.explanations)
    assert outcomes["chosen"] == len(made.picks)
    for row, found in enumerate(made.explanations):
        if found.outcome == "chosen":
            _check_pick(made, made.picks.index(row) + 1, found)
        else:
            _check_left_out(made, row, found)
        _check_words(found)
    _check_audit(made)
    _check_near_misses(made)
