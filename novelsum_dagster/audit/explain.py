"""Why a sample was picked or left out: `novelsum why`.

Belongs here: the facts about a sample in one run. Does not: which run (`runs`), finding the sample (`find_sample`), the
facts as sentences (`explanation_text`), comparing runs (`difference`).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.audit.barred_picks import barred_picks
from novelsum_dagster.audit.explanation_text import sentences
from novelsum_dagster.audit.find_sample import AMONG, asked_place, find_sample
from novelsum_dagster.audit.run_fields import full_labels, quality_of_sample
from novelsum_dagster.audit.run_scores import ROUNDING, RunScores, Unpicked, vectors_of
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.lineage.query import Connection, all_rows, one_row
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import COLUMNS
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.selection.picks import BARS
from novelsum_dagster.selection.trajectory import closest_pick

_SNIPPET = 160
_NEAREST = 3
_MOST_PAIRS = 2**25
"""Distances between samples and picks that are computed for one answer: a few seconds at most."""


@dataclass(frozen=True)
class Explanation:
    """The outcome for a sample in a run, with its reasons.

    Attributes:
        run: the run.
        sample: id, source, file, line, position, form, turns, tokens, text; for a rejected record, those that exist.
        outcome: "chosen", "left out", "near-duplicate" (dropped from the pool) or "rejected".
        facts: everything found, by name; JSON-able.
    """

    run: Run
    sample: dict[str, Any]
    outcome: str
    facts: dict[str, Any]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The same as sentences, the most important first."""
        return sentences(self.outcome, self.sample, self.facts)

    def with_facts(self, **facts: Any) -> "Explanation":
        """Return the explanation with more facts."""
        return replace(self, facts={**self.facts, **facts})


def explain(connection: Connection, root: Path, run: Run, query: str) -> Explanation:
    """Return why a sample was picked in a run, or was not.

    Args:
        connection: to the lineage, for reading.
        root: the storage folder.
        run: which run.
        query: the sample's id or a prefix of it (at least 4 characters), FILE:LINE, FILE#RECORD, or a piece of text.

    Raises:
        InputError: if no sample or several samples match; offers the nearest.
    """
    sample = find_sample(connection, run, query)
    facts: dict[str, Any] = {"selection": _of_selection(run), "places": []}
    if "reason" in sample:
        return Explanation(run, sample, "rejected", facts)
    facts["places"] = all_rows(
        connection, "SELECT source, file, position, line, is_first FROM origins WHERE snapshot = ? AND id = ?",
        [run.snapshot, sample["id"]],
    )  # fmt: skip
    facts["repeats"] = _repeated(query, facts["places"])
    facts["near_duplicate"] = _near_duplicate(connection, run, sample["id"])
    facts |= _measured(connection, run, sample["id"])
    picked = one_row(
        connection, "SELECT * FROM picks WHERE selection = ? AND id = ? ORDER BY rank LIMIT 1",
        [run.selection, sample["id"]],
    )  # fmt: skip
    if picked:
        return Explanation(run, sample, "chosen", facts | _of_pick(connection, run, picked))
    if facts["near_duplicate"] and run.settings["pool"]["near_duplicates"]["drop"]:
        return Explanation(run, sample, "near-duplicate", facts)
    return Explanation(run, sample, "left out", facts | _of_left_out(connection, root, run, sample, facts))


def _of_selection(run: Run) -> dict[str, Any]:
    """Return the run and the settings of its selection that sentences name."""
    names = (
        "run_id",
        "snapshot",
        "model",
        "model_revision",
        "seed",
        "package_version",
        "git_revision",
        "strategy",
        "k",
    )
    asked = run.settings["selection"].get("k")
    return {
        **{name: getattr(run, name) for name in names},
        "started_at": f"{run.started_at:%Y-%m-%d %H:%M}",
        "extends": run.options.get(EXTENDS),
        "quality": run.options.get("quality"),
        "token_budget": run.options.get("token_budget"),
        "partitions": run.options.get("partitions"),
        # With floors, other picks may be made for a larger k; a subset that extends another has no k of its own.
        "k_can_grow": asked == run.k and not any(quota.get("floors") for quota in run.options.get("quotas", ())),
    }


def _near_duplicate(connection: Connection, run: Run, id_: str) -> dict[str, Any] | None:
    """Return the sample that a near-duplicate resembles, by which measure, and by which rule that one was kept."""
    partner = one_row(
        connection, "SELECT partner_id, score, found_by FROM near_duplicates WHERE snapshot = ? AND id = ?",
        [run.snapshot, id_],
    )  # fmt: skip
    rule = run.settings["pool"]["near_duplicates"]
    if partner is None:
        return None
    picked = one_row(
        connection,
        "SELECT * FROM picks WHERE selection = ? AND id = ? ORDER BY rank LIMIT 1",
        [run.selection, partner["partner_id"]],
    )
    how = picked and {"rank": picked["rank"], "score": picked["score"], **_how(connection, run, picked)}
    rules = {"keep": rule.get("keep", "first"), "similarity": rule.get("similarity")}
    return {**partner, **rules, "partner_pick": how}


def _repeated(query: str, places: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the places of the query that repeat the sample."""
    asked = asked_place(query)
    return [] if asked is None else [place for place in places if not place["is_first"] and asked.is_of(place)]


def _measured(connection: Connection, run: Run, id_: str) -> dict[str, Any]:
    density = one_row(
        connection, "SELECT mean_squared_distance FROM density WHERE density = ? AND id = ?", [run.density, id_]
    )  # fmt: skip
    novelty = one_row(connection, "SELECT novelty FROM novelty WHERE sample_novelty = ? AND id = ?", [run.novelty, id_])
    return {
        # The table's factors have the settings' power; the launchpad may have overridden it for the selection.
        "density_factor": density
        and float(density_factor(np.array(density["mean_squared_distance"]), run.density_power)),
        "novelty": novelty and novelty["novelty"],
    }


def _of_pick(connection: Connection, run: Run, picked: dict[str, Any]) -> dict[str, Any]:
    """Return the facts about a pick: its record, the runner-up, the nearest earlier picks, the samples it covers."""
    covered = one_row(
        connection,
        "SELECT count(*) AS samples, max(distance_1) AS farthest FROM covering WHERE selection = ? AND rank_1 = ?",
        [run.selection, picked["rank"]],
    )
    examples = all_rows(
        connection,
        "SELECT id, distance_1 AS distance FROM covering WHERE selection = ? AND rank_1 = ? AND id <> ?"
        " ORDER BY distance_1, id LIMIT ?",
        [run.selection, picked["rank"], picked["id"], _NEAREST],
    )
    runner_up = one_row(
        connection,
        "SELECT samples.id, picks.rank FROM samples LEFT JOIN picks ON picks.id = samples.id AND picks.selection = ?"
        " WHERE samples.snapshot = ? AND samples.id = ?",
        [run.selection, run.snapshot, picked["runner_up_id"]],
    )
    text = _snippets(connection, run, [row["id"] for row in (*examples, *([runner_up] if runner_up else []))])
    names = ("rank", "score", "margin", "runner_up_score", "nearest_pick_rank", "nearest_pick_id", "nearest_distance")
    return {
        **{name: picked[name] for name in (*names, "quality")},
        **_how(connection, run, picked),
        "runner_up": runner_up and {**runner_up, "text": text[runner_up["id"]]},
        "covers": {**(covered or {}), "examples": [{**row, "text": text[row["id"]]} for row in examples]},
    }


def _snippets(connection: Connection, run: Run, ids: list[str]) -> dict[str, str]:
    found = all_rows(
        connection, f"SELECT id, left(text, ?) AS text FROM samples WHERE snapshot = ? AND {AMONG}",
        [_SNIPPET, run.snapshot, ids],
    )  # fmt: skip
    return {row["id"]: row["text"] for row in found}


def _how(connection: Connection, run: Run, picked: dict[str, Any]) -> dict[str, Any]:
    """Return how a pick was made, how many samples were eligible, and how many each limit ruled out."""
    recorded = one_row(
        connection, "SELECT * FROM eligibility WHERE selection = ? AND rank = ?", [run.selection, picked["rank"]]
    )
    if recorded is None:
        return {"chosen_by": _chosen_by(run, picked), "eligible": None, "ruled_out": {}}
    return {
        "chosen_by": recorded["chosen_by"],
        "eligible": recorded["eligible"],
        "ruled_out": {name: recorded[name] for name in BARS if recorded[name]},
    }


def _chosen_by(run: Run, picked: dict[str, Any]) -> str | None:
    """Return how a pick of an earlier release, which did not record it, was made; None if that is not known."""
    if picked.get("by_exchange"):
        return "exchange"
    if run.strategy in ("random", "duplicate", "kmeans"):
        return "drawn"
    if run.strategy == "repr_filter":
        return "threshold"
    if picked["score"] is not None:
        return "score"
    if picked["id"] in run.options.get("must_include", ()) and EXTENDS not in run.options:
        return "must_include"
    if run.options.get("must_include") or EXTENDS in run.options:
        return None
    return "seed" if picked["rank"] == 1 else None


def _of_left_out(
    connection: Connection, root: Path, run: Run, sample: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the facts about a sample that was not picked: its nearest picks, its best score, what excluded it."""
    covered_by = all_rows(
        connection,
        """
        SELECT near.rank, picks.id, near.distance
        FROM (
            SELECT
                unnest([1, 2, 3]) AS place, unnest([rank_1, rank_2, rank_3]) AS rank,
                unnest([distance_1, distance_2, distance_3]) AS distance
            FROM covering WHERE selection = ? AND id = ?
        ) AS near
        INNER JOIN picks ON picks.selection = ? AND picks.rank = near.rank
        ORDER BY near.place
        """,
        [run.selection, sample["id"], run.selection],
    )
    remaining = one_row(
        connection, "SELECT score, after_picks, is_exact FROM remaining WHERE selection = ? AND id = ?",
        [run.selection, sample["id"]],
    )  # fmt: skip
    barred = barred_picks(connection, root, run, sample) if run.strategy == "novelselect" else []
    found: dict[str, Any] = {
        "covered_by": covered_by,
        "last_known": remaining,
        "limits_are_known": barred is not None,
        "barred": barred or [],
        **dict.fromkeys(("scored_picks", "eligible_picks", "closest", "at_most_before_it", "before_it_is_exact")),
    }
    scored = _Scored.of(connection, root, run, sample, facts["density_factor"])
    if scored is None or barred is None:
        return found
    by_score = ~np.isnan(scored.scores.winning)
    is_eligible = by_score.copy()
    for one in barred:
        is_eligible[one["first"] - 1 : one["last"]] = False
    found |= {"scored_picks": int(by_score.sum()), "eligible_picks": int(is_eligible.sum())}
    found["closest"] = _closest(scored, is_eligible)
    # A floor that ruled a sample out is met in the end; all other limits would still hold for a further pick.
    if not any(one["last"] == run.k and one["by"] != "floor" for one in barred):
        before = _before(connection, root, run, sample, scored)
        if before is not None:
            found["at_most_before_it"], found["before_it_is_exact"] = before
    return found


@dataclass(frozen=True)
class _Scored:
    """A sample that was not picked, and the scores of its run.

    Attributes:
        vector, factor, quality: of the sample; the quality is 1 if the run has none.
        scores: of the run.
    """

    vector: NDArray[np.float32]
    factor: float
    quality: float
    scores: RunScores

    @staticmethod
    def of(
        connection: Connection, root: Path, run: Run, sample: dict[str, Any], factor: float | None
    ) -> "_Scored | None":
        """Return a sample's vector, factor and quality; None without scores, or if its quality cannot be read."""
        scores = None if factor is None else RunScores.of(connection, root, run)
        if factor is None or scores is None:
            return None
        quality = quality_of_sample(connection, root, run, sample["id"])
        vector = vectors_of(connection, root, run, [sample["id"]]).get(sample["id"])
        return None if quality is None or vector is None else _Scored(vector, factor, quality, scores)


def _closest(scored: _Scored, is_eligible: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return the pick at which the score of a sample that was eligible was closest to the winning one.

    `share`, the fraction of the winning score, is None if scores may be negative. None if it was eligible at no pick.
    """
    score = scored.scores.after_each_pick(scored.vector, scored.factor, scored.quality)
    winning = scored.scores.winning
    signed = scored.scores.scoring.density_side == "objective"
    at = closest_pick(score, np.where(is_eligible, winning, np.nan), by_difference=signed)
    if at is None:
        return None
    own, won = float(score[at - 1]), float(winning[at])
    share = None if signed else own / won
    return {"rank": at + 1, "score": own, "winning_score": won, "share": share, "quality": scored.quality}


def _before(
    connection: Connection, root: Path, run: Run, sample: dict[str, Any], scored: _Scored
) -> tuple[int, bool] | None:
    """Return how many samples, eligible for one more pick, score higher at the end, and whether that is exact.

    Exact, except for rounding, if the candidates are few enough to be scored; otherwise an upper bound. None for a
    sample whose cap is reached; for a token budget, which is spent; for partitions, since a further pick would change
    what each part picks; for a quality, or a quota on a field of the records, whose values for all other samples are
    not in the lineage.
    """
    columns = [quota["column"] for quota in run.options.get("quotas", ())]
    if any(run.options.get(name) is not None for name in ("token_budget", "quality", "partitions")) or any(
        column not in COLUMNS for column in columns
    ):
        return None
    full = full_labels(connection, root, run)
    if any(str(sample[column]) in labels for column, labels in full.items()):
        return None
    others = Unpicked.of(connection, run, full)
    own = scored.scores.at_end(scored.vector[None, :], np.array([scored.factor]))[0]
    bound = scored.scores.bounds_at_end(others.score, others.after_picks, others.factors)
    level = own - abs(own) * ROUNDING
    near = [row for row in np.flatnonzero(bound >= level).tolist() if others.ids[row] != sample["id"]]
    if len(near) * len(scored.scores.picks) > _MOST_PAIRS:
        return len(near), False
    if not near:
        return 0, True
    ids = [others.ids[row] for row in near]
    vectors = vectors_of(connection, root, run, ids)
    scores = scored.scores.at_end(np.stack([vectors[id_] for id_ in ids]), others.factors[near])
    return int((scores >= level).sum()), True
