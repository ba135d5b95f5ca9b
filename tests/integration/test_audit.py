"""`novelsum why`, `diff` and `rebuild-lineage` after real runs, compared with what Python finds in the files."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from novelsum_dagster.embedding.store import load_vectors
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.pool.forms import Reading, parse
from novelsum_dagster.selection.novelselect import novelselect
from novelsum_dagster.selection.search.exact import standing
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.machines import Done, called
from tests.pools import pairs, write_jsonl, write_settings

ROOT = Path(__file__).resolve().parents[2]
SQL = "'; DROP TABLE runs; --"
SOURCE = f"it's {SQL} [/b]"
NEAR = " ".join(f"word{number}" for number in range(120))


@dataclass
class Audited:
    """Some runs over one storage folder, by name."""

    folder: Path
    runs: dict[str, str]
    codes: dict[str, int]

    @property
    def root(self) -> Path:
        return self.folder / "curated"

    def ask(self, *arguments: str) -> Done:
        """Call the command line in this process, as a terminal would."""
        return called(self.folder, *arguments)

    def why(self, sample: str, run: str = "base") -> dict[str, Any]:
        """Return the JSON answer, once it agrees with the words."""
        done = self.ask("why", sample, "--run", self.runs[run], "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)
        words = self.ask("why", sample, "--run", self.runs[run])
        assert words.code == 0
        assert words.out.endswith("\n".join(found["words"]) + "\n")
        assert found["run"] == self.runs[run]
        return found

    def diff(self, a: str, b: str) -> dict[str, Any]:
        done = self.ask("diff", self.runs[a], self.runs[b], "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)
        return found

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with LineageStore(self.root).reading() as connection:
            return connection.execute(query, list(values)).fetchall()

    def selection(self, run: str) -> Path:
        [(folder,)] = self.rows(
            "SELECT folder FROM selections JOIN run_outputs USING (selection) WHERE run_id = ?", self.runs[run]
        )
        return self.root / str(folder)

    def picks(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(
            self.selection(run) / "picks.parquet", partitioning=None
        ).to_pylist()
        return found


@dataclass
class Pool:
    """The pool of a run as arrays, and its picks."""

    ids: list[str]
    vectors: NDArray[np.float32]
    factor: NDArray[np.float64]
    picks: NDArray[np.int64]


def _alpaca(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return short records, which are embedded fast."""
    return [{"instruction": q, "input": "", "output": answer[:150]} for q, answer in pairs(count, start)]


def _write(folder: Path) -> str:
    """Write the pools and the settings of all runs; return the id of a sample that one of them excludes."""
    first = _alpaca(22)
    first[7] = {"instruction": f"What does {SQL} do?", "input": "", "output": f"Robert{SQL} is a SCHOOLBOY's name."}
    write_jsonl(folder / "pool" / "one.jsonl", [*first, first[2]])
    chats: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
        for row in _alpaca(14, start=22)
    ]
    chats += [
        {"messages": [{"role": "user", "content": f"Say this, {name}."}, {"role": "assistant", "content": NEAR}]}
        for name in ("Ann", "Bob", "Cid")
    ]
    write_jsonl(folder / "pool" / "two.jsonl", [*chats, {"messages": f"none {SQL}"}])
    write_jsonl(folder / "more" / "new.jsonl", _alpaca(12, start=36))
    one = {"path": "pool/one.jsonl", "name": SOURCE}
    two, more = {"path": "pool/two.jsonl"}, {"path": "more/new.jsonl"}
    old: dict[str, Any] = {"sources": [one, two], "max_reject_fraction": 0.1}
    new = {**old, "sources": [one, two, more], "near_duplicates": {"drop": True}}
    excluded = parse(_alpaca(12, start=36)[4], Reading()).sample.id
    limits = {
        "token_budget": 700,
        "must_exclude": [excluded],
        "quotas": [{"column": "form", "caps": {"messages": 3}}, {"column": "source", "caps": {SOURCE: 0}}],
    }
    for name, pool, measure, selection in (
        ("base", old, {}, {"k": 12}),
        ("more", old, {}, {"k": 18}),
        ("limits", new, {"proximity_power": 2.0}, limits),
        ("random", old, {"neighbors": 4}, {"k": 12, "strategy": "random", "seed": 7}),
        ("big", old, {}, {"k": 1000}),
        ("missing", {**old, "sources": [one, {"path": "pool/three.jsonl"}]}, {}, {"k": 12}),
    ):
        write_settings(folder, pool=pool, novelsum=measure, selection=selection).rename(folder / f"{name}.yaml")
    shutil.copyfile(folder / "base.yaml", folder / "curation.yaml")
    return excluded


RUNS = ("base", "more", "limits", "random", "big", "missing")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[Done]]:
    """The folder, the excluded sample, and what the commands said before any run."""
    folder = tmp_path_factory.mktemp("audit")
    excluded = _write(folder)
    asked = [("why", "abcd"), ("diff", "a", "b"), ("rebuild-lineage",)]
    return folder, excluded, [called(folder, *arguments) for arguments in asked]


@pytest.fixture(scope="module")
def audited(before: tuple[Path, str, list[Done]]) -> Audited:
    """Runs with settings that change, without the SQL models, which no command here reads."""
    folder = before[0]
    with in_memory() as instance:
        done = {name: Curation(folder, folder / f"{name}.yaml", instance).run(models=False) for name in RUNS}
    codes = {name: 0 if one.success else 1 for name, one in done.items()}
    made = Audited(folder, {}, codes)
    made.runs = dict(
        zip(RUNS, (row[0] for row in made.rows("SELECT run_id FROM runs ORDER BY started_at")), strict=True)
    )
    assert all(code == (1 if name in ("big", "missing") else 0) for name, code in codes.items()), done
    return made


@pytest.fixture(scope="module")
def pool(audited: Audited) -> Pool:
    """The pool of run `base`."""
    return _pool(audited, "base")


def _pool(audited: Audited, run: str) -> Pool:
    [(snapshot, vectors, density)] = audited.rows(
        "SELECT snapshots.folder, embeddings.folder, densities.file FROM run_outputs JOIN snapshots USING (snapshot)"
        " JOIN embeddings USING (vectors) JOIN densities USING (density) WHERE run_id = ?", audited.runs[run]
    )  # fmt: skip
    ids = pq.read_table(audited.root / snapshot / "samples.parquet", columns=["id"], partitioning=None)[
        "id"
    ].to_pylist()
    table = pq.read_table(audited.root / density, partitioning=None)
    assert table["id"].to_pylist() == ids
    picks = np.array([ids.index(row["id"]) for row in audited.picks(run)])
    return Pool(ids, load_vectors(audited.root / vectors, ids), table["density_factor"].to_numpy(), picks)


def _left_out(pool: Pool) -> list[int]:
    return [int(row) for row in np.setdiff1d(np.arange(len(pool.ids)), pool.picks)]


def test_before_any_run_it_is_said_what_to_do(before: tuple[Path, str, list[Done]]) -> None:
    for done, words in zip(before[2], ("novelsum run", "novelsum run", "no run files"), strict=True):
        assert (done.code, done.out) == (2, "")
        assert words in done.err
    assert not (before[0] / "curated" / "lineage.duckdb").exists()


def test_a_chosen_sample(audited: Audited, pool: Pool) -> None:
    units = pool.vectors / np.linalg.norm(pool.vectors, axis=1)[:, None]
    distances = 1 - units @ units[pool.picks].T
    nearest = distances.argmin(axis=1)
    picks = audited.picks("base")
    for row in (picks[1], picks[5], picks[11]):
        found = audited.why(row["id"])
        assert (found["outcome"], found["sample"]["id"]) == ("chosen", row["id"])
        for name in ("rank", "score", "margin", "runner_up_score", "nearest_pick_id", "nearest_distance"):
            assert found[name] == row[name]
        runner_up = found["runner_up"]["id"]
        assert runner_up == row["runner_up_id"]
        assert found["runner_up"]["rank"] == next((one["rank"] for one in picks if one["id"] == runner_up), None)
        assert found["covers"]["samples"] == (nearest == row["rank"] - 1).sum()
        assert found["covers"]["farthest"] == pytest.approx(
            distances[nearest == row["rank"] - 1].min(axis=1).max(), abs=1e-5
        )
        examples = [pool.ids.index(one["id"]) for one in found["covers"]["examples"]]
        assert all(nearest[one] == row["rank"] - 1 for one in examples)
        words = " ".join(found["words"])
        assert f"Picked as number {row['rank']} of 12 by novelselect." in words
        eligible = len(pool.ids) - row["rank"] + 1
        assert (found["chosen_by"], found["eligible"], found["ruled_out"]) == ("score", eligible, {})
        assert (
            f"{row['score']:.6g} was the highest of {eligible} eligible samples; {runner_up[:8]} came second" in words
        )
        covers = found["covers"]["samples"]
        near = f"is the nearest pick of {covers - 1} other" if covers > 1 else "not the nearest pick of any other"
        assert near in words and " 1 other samples" not in words
        assert found["run"] in words and f"seed {42}" in words


def test_the_first_pick(audited: Audited) -> None:
    row = audited.picks("base")[0]
    found = audited.why(row["id"])
    assert (found["rank"], found["score"], found["runner_up"], found["nearest_pick_id"]) == (1, None, None, None)
    assert found["chosen_by"] == "seed" and found["eligible"] is None
    assert "drawn at random (seed 42)" in found["words"][0]


@pytest.mark.parametrize("run", ["base", "more"])
def test_a_sample_that_was_left_out(audited: Audited, run: str) -> None:
    """Where it came closest, and how many stood before it, against scores computed outright."""
    pool = _pool(audited, run)
    given: dict[str, Any] = {"density_factor": pool.factor}
    won = [row["score"] for row in audited.picks(run)]
    left = _left_out(pool)
    shares = {
        made: standing(pool.vectors, pool.picks[:made], rows=left, **given).score / won[made]
        for made in range(1, len(pool.picks))
    }
    end = standing(pool.vectors, pool.picks, rows=left, **given)
    order = novelselect(pool.vectors, len(pool.ids), initial=pool.picks.tolist(), **given).indices
    units = pool.vectors / np.linalg.norm(pool.vectors, axis=1)[:, None]
    firsts = 0
    # The next pick, the one after, the last, and one between.
    for at in (np.argsort(end.rank)[[0, 1, len(left) // 2, -1]]).tolist():
        sample = left[at]
        found = audited.why(pool.ids[sample], run)
        assert found["outcome"] == "left out"
        closest = found["closest"]
        best = max(float(share[at]) for share in shares.values())
        assert closest["share"] == pytest.approx(best, rel=1e-6)
        assert closest["share"] == pytest.approx(float(shares[closest["rank"] - 1][at]), rel=1e-6)
        assert closest["winning_score"] == won[closest["rank"] - 1]
        assert closest["score"] == pytest.approx(closest["share"] * closest["winning_score"])
        assert f"came closest at pick {closest['rank']}" in " ".join(found["words"])
        # With a pool so small, all that may stand before it are scored.
        assert (found["at_most_before_it"], found["before_it_is_exact"]) == (end.rank[at] - 1, True)
        is_next = order[len(pool.picks)] == sample
        assert (found["at_most_before_it"] == 0) == is_next
        assert (f"It would be the next pick: k = {len(pool.picks) + 1} lets it in." in found["words"]) == is_next
        firsts += is_next
        distance = 1 - units[pool.picks] @ units[sample]
        assert [one["rank"] - 1 for one in found["covered_by"]] == np.argsort(distance)[:3].tolist()
        assert [one["id"] for one in found["covered_by"]] == [pool.ids[pool.picks[r]] for r in np.argsort(distance)[:3]]
        assert (found["barred"], found["scored_picks"]) == ([], found["eligible_picks"])
    assert firsts == 1


def test_it_is_a_bound_also_where_it_is_not_computed(
    audited: Audited, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {row: audited.why(pool.ids[row])["at_most_before_it"] for row in _left_out(pool)[::4]}
    monkeypatch.setattr("novelsum_dagster.audit.explain._MOST_PAIRS", 0)
    for row, rank in exact.items():
        found = audited.why(pool.ids[row])
        assert rank <= found["at_most_before_it"] <= len(pool.ids) - 12 - 1
        assert found["before_it_is_exact"] == (found["at_most_before_it"] == 0)


def test_a_larger_k_lets_the_next_pick_in(audited: Audited, pool: Pool) -> None:
    row = audited.picks("more")[12]
    assert audited.why(row["id"])["at_most_before_it"] == 0
    assert audited.why(row["id"], "more")["rank"] == 13


def test_a_pick_that_stands_for_itself_alone(audited: Audited) -> None:
    alone = audited.rows(
        "SELECT picks.id FROM picks JOIN run_outputs USING (selection) WHERE run_id = ? AND"
        " (SELECT count(*) FROM covering WHERE covering.selection = picks.selection AND rank_1 = rank) = 1",
        audited.runs["more"],
    )
    assert alone
    found = audited.why(alone[0][0], "more")
    assert "It is not the nearest pick of any other sample." in found["words"]


def test_the_smallest_k_that_lets_a_sample_in(audited: Audited) -> None:
    for row in (audited.picks("more")[12], audited.picks("more")[17]):
        asked = ("why", row["id"], "--smallest-k", "--run", audited.runs["base"])
        found = json.loads(audited.ask(*asked, "--json").out)
        assert (found["smallest_k"], found["smallest_k_is_more_than"]) == (row["rank"], None)
        assert f"The smallest k that lets it in is {row['rank']}." in audited.ask(*asked).out.splitlines()
    chosen = ("why", audited.picks("base")[3]["id"], "--smallest-k", "--run", audited.runs["base"], "--json")
    answer = json.loads(audited.ask(*chosen).out)
    assert answer["smallest_k"] == 4
    done = audited.ask("why", "one.jsonl:4", "--smallest-k", "--run", audited.runs["limits"])
    assert "selection.token_budget" in done.out


def test_ways_to_name_a_sample(audited: Audited, pool: Pool) -> None:
    [(id_, text)] = audited.rows("SELECT id, text FROM samples WHERE file = 'pool/one.jsonl' AND line = 12 LIMIT 1")
    piece = str(text).split("for, and")[0][-25:]
    names = [id_, id_[:9], id_[:9].upper(), "pool/one.jsonl:12", "one.jsonl:12", piece, piece.upper(), piece.lower()]
    assert [audited.why(name)["sample"]["id"] for name in names] == [id_] * len(names)


def test_what_fits_several_samples_offers_their_ids(audited: Audited, pool: Pool) -> None:
    done = audited.ask("why", "say this, ", "--run", audited.runs["base"])
    assert (done.code, done.out) == (2, "")
    offered = re.findall(r"^  ([0-9a-f]{32})  pool/two.jsonl:\d+ ", done.err, re.MULTILINE)
    assert len(offered) == 3 and set(offered) <= set(pool.ids)
    assert "matches 3 samples" in done.err
    done = audited.ask("why", "numpy", "--run", audited.runs["base"])
    assert done.code == 2 and "matches more than 5 samples" in done.err


@pytest.mark.parametrize(
    "name",
    [
        "ffffffffffff", "FFFFFFFFFFFF", "no such text at all", "pool/one.jsonl:9999", "one.jsonl:" + "9" * 40,
        f"{SQL} SELECT 1", "one.jsonl:0", "%%%", "x" * 5000,
    ],
)  # fmt: skip
def test_what_fits_none_is_said(audited: Audited, pool: Pool, name: str) -> None:
    done = audited.ask("why", name)
    assert (done.code, done.out) == (2, ""), done.err
    assert "no sample of run" in done.err and "Traceback" not in done.err
    if name.lower().startswith("ffff"):
        assert len([word for word in re.findall(r"[0-9a-f]{32}", done.err) if word in pool.ids]) == 3


def test_an_ambiguous_prefix_offers_ids(audited: Audited, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of a common beginning of four letters are rare in so small a pool: one letter is made enough."""
    monkeypatch.setattr("novelsum_dagster.audit.find_sample._ID", re.compile("[0-9a-f]+"))
    letter, count = Counter(id_[0] for id_ in pool.ids).most_common(1)[0]
    done = audited.ask("why", letter, "--run", audited.runs["base"])
    assert done.code == 2 and count > 1
    assert f"{letter!r} matches {count} samples; give one of these ids" in done.err or "more than 5" in done.err
    assert sum(id_ in done.err for id_ in pool.ids if id_[0] == letter) == min(count, 5)


def _not_needed(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("cache", "dagster", "report")]


def test_a_record_that_repeats_another_leads_to_the_sample(audited: Audited) -> None:
    found, first = audited.why("one.jsonl:23"), audited.why("one.jsonl:3")
    assert found["sample"] == first["sample"]
    assert (found["sample"]["line"], found["sample"]["source"]) == (3, SOURCE)
    assert "The same sample also occurs at pool/one.jsonl:23." in found["words"]


def test_a_rejected_record(audited: Audited) -> None:
    found = audited.why("pool/two.jsonl:18")
    assert found["outcome"] == "rejected"
    assert (found["sample"]["reason"], found["sample"]["line"]) == ("wrong_type", 18)
    assert found["words"][0].startswith("Rejected while reading: wrong_type: ")
    assert "It is from pool/two.jsonl:18 (source two)." in found["words"]


def test_a_record_that_repeats_another_is_told_so_first(audited: Audited) -> None:
    [(file, line, id_), *_] = audited.rows(
        "SELECT file, line, id FROM origins JOIN run_outputs USING (snapshot) WHERE run_id = ? AND NOT is_first"
        " AND line IS NOT NULL ORDER BY file, line",
        audited.runs["base"],
    )
    found = audited.why(f"{file}:{line}")
    assert found["sample"]["id"] == id_
    assert found["words"][0].startswith(f"The record at {file}:{line} repeats ")
    assert not audited.why(id_)["words"][0].startswith("The record at")


def test_near_duplicates(audited: Audited) -> None:
    kept = audited.why("two.jsonl:15")["sample"]["id"]
    dropped = audited.why("two.jsonl:16", "limits")
    assert dropped["outcome"] == "near-duplicate"
    assert dropped["near_duplicate"]["partner_id"] == kept
    assert f"it resembles {kept[:8]}" in dropped["words"][0] and "near_duplicates.drop" in dropped["words"][0]
    flagged = audited.why("two.jsonl:16")
    assert flagged["outcome"] in ("chosen", "left out")
    same = ("partner_id", "score", "found_by", "keep")
    assert [flagged["near_duplicate"][name] for name in same] == [dropped["near_duplicate"][name] for name in same]
    picked = {row["id"]: row["rank"] for row in audited.picks("base")}.get(kept)
    assert (flagged["near_duplicate"]["partner_pick"] or {"rank": None})["rank"] == picked


def test_limits_are_named(audited: Audited, before: tuple[Path, str, list[Done]]) -> None:
    picks = audited.picks("limits")
    found = audited.why(before[1], "limits")
    assert [(one["by"], one["first"], one["last"]) for one in found["barred"]] == [("must_exclude", 2, len(picks))]
    assert (found["closest"], found["last_known"]["score"]) == (None, None)
    assert any("selection.must_exclude" in sentence for sentence in found["words"])
    rows = audited.rows(
        "SELECT id, form, source, tokens FROM samples JOIN run_outputs USING (snapshot) WHERE run_id = ?",
        audited.runs["limits"],
    )
    form = {id_: form for id_, form, _, _ in rows}
    near = dict(audited.rows("SELECT DISTINCT id, partner_id FROM near_duplicates"))
    chosen = [row["id"] for row in picks]
    assert not [1 for id_, _, source, _ in rows if source == SOURCE and id_ in chosen]
    left = [700 - sum(row["tokens"] for row in picks[:made]) for made in range(len(picks))]
    messages = [sum(form[id_] == "messages" for id_ in chosen[:made]) for made in range(len(picks))]
    assert max(messages) == 3
    for id_, its_form, source, tokens in rows:
        if id_ in chosen or id_ in near or id_ == before[1]:
            continue
        found = audited.why(id_, "limits")
        reasons = [
            next((one for one in found["barred"] if one["first"] <= made + 1 <= one["last"]), None)
            for made in range(1, len(picks))
        ]
        for made, reason in enumerate(reasons, 1):
            expected: set[tuple[str, str | None, int | None]] = set()
            if tokens > left[made]:
                expected.add(("budget", None, None))
            if its_form == "messages" and messages[made] == 3:
                expected.add(("cap", "form", 3))
            if source == SOURCE:
                expected.add(("cap", "source", 0))
            assert (reason is None) == (not expected)
            assert reason is None or (reason["by"], reason["column"], reason["cap"]) in expected
        # The selection goes on as long as a sample may be picked.
        assert reasons[-1] is None or found["barred"][-1]["last"] == len(picks)
        assert found["eligible_picks"] == reasons.count(None)
        assert (found["closest"] is None) == (found["eligible_picks"] == 0)
        assert found["at_most_before_it"] is None
        words = " ".join(found["words"])
        assert "next pick" not in words and words.count("was not eligible: ") == len(found["barred"])


def test_a_strategy_without_scores(audited: Audited) -> None:
    picks = audited.picks("random")
    found = audited.why(picks[4]["id"], "random")
    assert (found["outcome"], found["rank"], found["score"]) == ("chosen", 5, None)
    assert found["chosen_by"] == "drawn" and "drawn at random (seed 7)" in found["words"][0]
    chosen = {row["id"] for row in picks}
    other = next(row["id"] for row in audited.picks("base") if row["id"] not in chosen)
    found = audited.why(other, "random")
    assert (found["closest"], found["last_known"], found["at_most_before_it"]) == (None, None, None)
    assert "Not among the 12 picks of random." in found["words"]
    assert len(found["covered_by"]) == 3


def test_runs_by_name(audited: Audited) -> None:
    sample = audited.picks("base")[0]["id"]
    newest = json.loads(audited.ask("why", sample, "--json").out)
    assert newest["run"] == audited.runs["random"]  # The two after it have no subset.
    found = json.loads(audited.ask("why", sample, "-r", audited.runs["base"][:13], "--json").out)
    assert found["run"] == audited.runs["base"]
    for arguments in (("why", sample, "--run", "zzzz"), ("diff", "zzzz", audited.runs["base"])):
        done = audited.ask(*arguments)
        assert done.code == 2
        assert "no run begins with zzzz; the newest are" in done.err
        assert audited.runs["missing"] in done.err
    done = audited.ask("why", sample, "--run", "")
    assert done.code == 2 and f"{len(RUNS)} runs begin with" in done.err
    done = audited.ask("why", sample, "--run", f"x{SQL}")
    assert done.code == 2 and "no run begins with" in done.err


@pytest.mark.parametrize(("run", "words"), [("big", "k must be from 1 to"), ("missing", "three.jsonl: no such file")])
def test_a_run_that_failed_is_named_with_its_step(audited: Audited, run: str, words: str) -> None:
    for arguments in (
        ("why", "numpy", "--run", audited.runs[run][:13]),
        ("diff", audited.runs["base"], audited.runs[run]),
    ):
        done = audited.ask(*arguments)
        assert (done.code, done.out) == (2, "")
        assert f"run {audited.runs[run]} has no subset: its step raw_pool failed:" in done.err
        assert words in done.err


def test_nothing_in_texts_or_names_is_run(audited: Audited) -> None:
    before = audited.rows("SELECT count(*) FROM runs")
    found = audited.why("one.jsonl:8")
    assert SQL in found["sample"]["text"] and found["sample"]["source"] == SOURCE
    assert audited.why(f"robert{SQL} is a schoolboy's")["sample"] == found["sample"]
    done = audited.ask("why", f"{SQL} [/b]")
    assert done.code == 2
    assert audited.rows("SELECT count(*) FROM runs") == before == [(len(RUNS),)]
    assert audited.rows("SELECT DISTINCT source FROM source_files WHERE file = 'pool/one.jsonl'") == [(SOURCE,)]
    shown = audited.ask("diff", audited.runs["base"], audited.runs["more"])
    assert shown.code == 0, shown.err
    assert "[/b]" in shown.out


def _sets(audited: Audited, a: str, b: str) -> tuple[list[str], list[str], int]:
    """Return the ids that entered and left, by rank, and how many stayed."""
    mine, theirs = ([row["id"] for row in audited.picks(run)] for run in (a, b))
    entered, left = [id_ for id_ in theirs if id_ not in mine], [id_ for id_ in mine if id_ not in theirs]
    return entered, left, len(set(mine) & set(theirs))


@pytest.mark.parametrize(
    ("a", "b"), [("base", "more"), ("more", "base"), ("limits", "base"),
                 ("base", "limits"), ("more", "random"), ("base", "base")],
)  # fmt: skip
def test_differences_are_those_of_the_picks(audited: Audited, a: str, b: str) -> None:
    found = audited.diff(a, b)
    entered, left, stayed = _sets(audited, a, b)
    assert [change["id"] for change in found["entered"]] == entered
    assert [change["id"] for change in found["left"]] == left
    assert found["stayed"] == stayed
    assert (found["run_a"], found["run_b"]) == (audited.runs[a], audited.runs[b])
    ranks = {row["id"]: row["rank"] for row in audited.picks(b)}
    assert all(change["rank"] == ranks[change["id"]] for change in found["entered"])
    assert found["same_code"] and found["same_model"]
    values = []
    for run in (a, b):
        rows = audited.rows(
            "SELECT set_name, measure, value, size FROM set_measures JOIN run_outputs USING (report) WHERE run_id = ?",
            audited.runs[run],
        )
        values.append({(name, measure): (value, size) for name, measure, value, size in rows})
        report = next(path for path in (audited.root / "reports").glob("*/*.parquet") if _is_of(audited, run, path))
        for row in pq.read_table(report, partitioning=None).to_pylist():
            assert values[-1][row.get("set_name", row.get("set")), row["measure"]] == (row["value"], row["size"])
    assert {(row["set_name"], row["measure"]) for row in found["measures"]} == set(values[0]) & set(values[1])
    for row in found["measures"]:
        at = row["set_name"], row["measure"]
        assert ((row["a"], row["size_a"]), (row["b"], row["size_b"])) == (values[0][at], values[1][at])


def _is_of(audited: Audited, run: str, path: Path) -> bool:
    [(key,)] = audited.rows("SELECT report FROM run_outputs WHERE run_id = ?", audited.runs[run])
    return str(key) in path.parent.name and path.name == "measures.parquet"


def test_a_larger_k_keeps_all(audited: Audited) -> None:
    found = audited.diff("base", "more")
    assert (len(found["entered"]), found["left"], found["stayed"]) == (6, [], 12)
    assert found["settings"] == {"selection.k": {"a": 12, "b": 18}}
    assert {(change["kind"], *change["causes"]) for change in found["entered"]} == {("attributed", "selection.k")}
    assert found["inputs"] == [{"code": "selection.k", "keys": {"selection.k": [12, 18]}}]
    assert (found["replayed"], found["not_replayed"]) == (0, None)
    words = audited.ask("diff", audited.runs["base"], audited.runs["more"]).out
    assert "6 samples entered, 0 left, 12 stayed." in words
    assert "  selection.k: 12 -> 18" in words and "  6: changed settings (selection.k)" in words
    assert "The sets differ in size" in words
    back = audited.diff("more", "base")
    assert (back["entered"], [change["id"] for change in back["left"]]) == (
        [], [change["id"] for change in found["entered"]],
    )  # fmt: skip
    assert back["settings"] == {"selection.k": {"a": 18, "b": 12}}


def test_seed_and_density_are_causes(audited: Audited) -> None:
    found = audited.diff("base", "random")
    changed = {"novelsum.neighbors", "selection.seed", "selection.strategy"}
    assert set(found["settings"]) == {one["code"] for one in found["inputs"]} == changed
    assert found["settings"]["selection.seed"] == {"a": 42, "b": 7}
    assert found["entered"] and found["replayed"] > 0 and found["not_replayed"] is None
    for change in [*found["entered"], *found["left"]]:
        assert change["kind"] in ("attributed", "together") and set(change["causes"]) <= changed
        assert all(code in change["cause"] for code in change["causes"])


def test_new_and_removed_data_and_near_duplicates_are_causes(audited: Audited) -> None:
    files = dict(audited.rows("SELECT DISTINCT id, file FROM samples"))
    near = dict(audited.rows("SELECT DISTINCT id, partner_id FROM near_duplicates"))
    for a, b, side, code in (("base", "limits", "entered", "data_added"), ("limits", "base", "left", "data_removed")):
        found = audited.diff(a, b)
        assert {"near_duplicates", code} <= {one["code"] for one in found["inputs"]}
        new = [one for one in found[side] if one["id"] not in near and files[one["id"]] == "more/new.jsonl"]
        assert new and all(code in one["causes"] for one in new)
        words = "new data: not in the pool before" if side == "entered" else "removed data: no longer in the pool"
        for change in found[side]:
            assert (words in change["cause"]) == (change in new)
            assert change["kind"] != "possible" and set(change["causes"]) <= {one["code"] for one in found["inputs"]}


def test_a_near_duplicate_that_is_dropped_is_no_removed_data(audited: Audited) -> None:
    """Nor is one that is no longer dropped new data."""
    near = dict(audited.rows("SELECT DISTINCT id, partner_id FROM near_duplicates"))
    holder = next(run for run in ("more", "base", "random") if near.keys() & {r["id"] for r in audited.picks(run)})
    for a, b, side, which in ((holder, "limits", "left", "new"), ("limits", holder, "entered", "old")):
        causes = {change["id"]: change["cause"] for change in audited.diff(a, b)[side] if change["id"] in near}
        assert causes
        for id_, cause in causes.items():
            assert cause.startswith(f"a near-duplicate of {near[id_][:8]} in the {which} pool")


def test_a_run_against_itself(audited: Audited) -> None:
    found = audited.diff("base", "base")
    assert (found["entered"], found["left"], found["stayed"], found["settings"]) == ([], [], 12, {})
    words = audited.ask("diff", audited.runs["base"], audited.runs["base"]).out
    assert "0 samples entered, 0 left" in words and "entered:" not in words


def _all_rows(store: LineageStore, tables: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    with store.reading() as connection:
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in tables}


def _own_tables(folder: Path) -> list[str]:
    """Return the tables of the lineage itself; the audit models are made of them by every run."""
    store = LineageStore(folder)
    store.start_run("r", "{}")
    with store.reading() as connection:
        found = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    return [name for (name,) in found if name != "contents"]  # It also has the models, which are built once more.


def test_a_damaged_database_is_named_and_rebuilt_with_equal_rows(audited: Audited, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audited.folder, audited.folder.parent / "damaged", ignore=_not_needed))
    store = LineageStore(copy / "curated")
    tables = _own_tables(tmp_path)
    expected = _all_rows(store, tables)
    assert len(expected["runs"]) == len(RUNS) and all(expected.values())
    damaged = store.path.read_bytes()[:5000]
    store.path.write_bytes(damaged)
    for arguments in (("why", "numpy"), ("diff", "a", "b")):
        done = called(copy, *arguments)
        assert done.code == 2
        assert str(store.path) in done.err and "novelsum rebuild-lineage" in done.err and "Traceback" not in done.err
    done = called(copy, "rebuild-lineage")
    assert done.code == 0, done.err
    assert f"{len(RUNS)} runs are in {store.path} again" in done.err
    assert _all_rows(store, tables) == expected
    assert store.path.with_name("lineage.duckdb.old").read_bytes() == damaged
    for name in ("base", "limits"):
        sample = audited.picks(name)[1]["id"]
        again = json.loads(called(copy, "why", sample, "--run", audited.runs[name], "--json").out)
        assert again == json.loads(audited.ask("why", sample, "--run", audited.runs[name], "--json").out)


def test_a_truncated_file_is_named(audited: Audited, pool: Pool) -> None:
    """Of the files that an answer needs: a view's, and one that is read beside the database."""
    copy = Path(shutil.copytree(audited.folder, audited.folder.parent / "cut", ignore=_not_needed))
    LineageStore(copy / "curated").start_run("aaaa", "{}")
    sample = pool.ids[_left_out(pool)[0]]
    folder = audited.selection("base").relative_to(audited.root)
    for name in ("picks_vectors.parquet", "covering.parquet"):
        path = copy / "curated" / folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        done = called(copy, "why", sample, "--run", audited.runs["base"])
        assert done.code == 2
        assert str(path) in done.err and "Traceback" not in done.err
        path.write_bytes(whole)
    assert called(copy, "why", sample, "--run", audited.runs["base"]).code == 0


@pytest.mark.slow
def test_readers_of_the_command_line_meet_no_error_while_one_writes(audited: Audited) -> None:
    """Real processes: what scripts call while a run is under way."""
    copy = Path(shutil.copytree(audited.folder, audited.folder.parent / "busy", ignore=_not_needed))
    store = LineageStore(copy / "curated")
    sample = audited.picks("base")[3]["id"]
    command = [sys.executable, "-m", "novelsum_dagster", "why", sample, "--run", audited.runs["base"], "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NOVELSUM_SETTINGS", None)
    expected = json.loads(audited.ask(*command[3:]).out)
    readers = [
        subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    written = 0
    while any(reader.poll() is None for reader in readers):
        store.start_run(f"w{written}", "{}")
        written += 1
    for reader in readers:
        out, errors = reader.communicate()
        assert (reader.returncode, errors) == (0, "")
        assert json.loads(out) == expected
    assert written > 3


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    environment = dict(os.environ)
    yield
    assert dict(os.environ).get("NOVELSUM_SETTINGS") == environment.get("NOVELSUM_SETTINGS")
