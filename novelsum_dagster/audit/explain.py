"""Why a sample was picked or left out: `novelsum why`.

Belongs here: the facts about a sample in one run. Does not: which run (`runs`), finding the sample (`find_sample`), the
facts as sentences (`explanation_text`), comparing runs (`difference`).
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.audit.barred_picks import barred_picks
from novelsum_dagster.audit.explanation_text import sentences
from novelsum_dagster.audit.find_sample import AMONG, PLACE, find_sample
from novelsum_dagster.audit.run_fields import labels_of_picks, quality_of_sample
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.lineage.query import Connection, all_rows, one_row
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.fields import COLUMNS
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.selection.picks import BARS
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.trajectory import bounds_at_end, closest_pick, scores_at_end, trajectory

_SNIPPET = 160
_NEAREST = 3
_MOST_PAIRS = 2**22
"""Distances between samples and picks that are computed for one answer: a few tenths of a second at most."""
_ROUNDING = 1e-6
"""Relative tolerance of scores: closer ones may be in either order, since the selection keeps distances in float32."""


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
        query: the sample's id or a prefix of it (at least 4 characters), FILE:LINE, or a piece of its text.

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
    return partner and {**partner, "keep": rule.get("keep", "first"), "similarity": rule.get("similarity")}


def _repeated(query: str, places: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the places of the query that repeat the sample."""
    matched = PLACE.fullmatch(query)
    if matched is None:
        return []
    named = (matched["file"], int(matched["line"]))
    return [
        place
        for place in places
        if not place["is_first"]
        and (place["file"].endswith(f"/{named[0]}") or place["file"] == named[0])
        and (place["position"] if place["line"] is None else place["line"]) == named[1]
    ]


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
    by_score = ~np.isnan(scored.winning)
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
    """Inputs for computing a sample's scores: its own vector and factor, and those of the picks in order.

    Attributes:
        vector, factor, quality: of the sample; the quality is 1 if the run has none.
        picks: float32, (k, d).
        pick_factors: float64, (k,).
        winning: float64, (k,), the score of each pick, including its quality; NaN if it was not picked by score.
        scoring: which score.
    """

    vector: NDArray[np.float32]
    factor: float
    quality: float
    picks: NDArray[np.float32]
    pick_factors: NDArray[np.float64]
    winning: NDArray[np.float64]
    scoring: Scoring

    @staticmethod
    def of(
        connection: Connection, root: Path, run: Run, sample: dict[str, Any], factor: float | None
    ) -> "_Scored | None":
        """Return the inputs for a sample; None without scores, or if its quality cannot be read.

        Also None if picks were exchanged at the end: their scores do not belong to one order.
        """
        path = root / run.folder / "picks_vectors.parquet"
        if run.strategy != "novelselect" or factor is None:
            return None
        scoring = Scoring.recorded(run.options, run.proximity_power)
        if scoring.swap_rounds:
            return None
        quality = quality_of_sample(connection, root, run, sample["id"])
        if quality is None:
            return None
        vectors = _vectors(connection, root, run, [sample["id"]])
        if not vectors or not path.exists():
            return None
        picks = all_rows(
            connection, "SELECT score, density_factor FROM picks WHERE selection = ? ORDER BY rank", [run.selection]
        )  # fmt: skip
        # As one long column: Arrow's way to NumPy imports pandas.
        stored = connection.execute("SELECT unnest(vector) AS value FROM read_parquet(?)", [str(path)]).fetchnumpy()
        return _Scored(
            vectors[sample["id"]],
            factor,
            quality,
            stored["value"].reshape(len(picks), -1),
            _column(picks, "density_factor"),
            _column(picks, "score"),
            scoring,
        )


def _vectors(connection: Connection, root: Path, run: Run, ids: list[str]) -> dict[str, NDArray[np.float32]]:
    found = connection.execute(
        f"SELECT id, vector FROM read_parquet(?) WHERE {AMONG}",
        [str(root / run.vectors_folder / "*.parquet"), ids],
    ).fetchnumpy()
    return dict(zip(found["id"].tolist(), found["vector"], strict=True))


def _closest(scored: _Scored, is_eligible: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return the pick at which the score of a sample that was eligible was closest to the winning one.

    `share`, the fraction of the winning score, is None if scores may be negative. None if it was eligible at no pick.
    """
    score = trajectory(
        scored.vector,
        scored.factor,
        scored.picks,
        scored.pick_factors,
        scoring=scored.scoring,
        quality=scored.quality,
    )
    signed = scored.scoring.density_side == "objective"
    at = closest_pick(score, np.where(is_eligible, scored.winning, np.nan), by_difference=signed)
    if at is None:
        return None
    own, won = float(score[at - 1]), float(scored.winning[at])
    share = None if signed else own / won
    return {"rank": at + 1, "score": own, "winning_score": won, "share": share, "quality": scored.quality}


def _before(
    connection: Connection, root: Path, run: Run, sample: dict[str, Any], scored: _Scored
) -> tuple[int, bool] | None:
    """Return how many samples, eligible for one more pick, score higher at the end, and whether that is exact.

    Exact, except for rounding, if the candidates are few enough to be scored; otherwise an upper bound. None for a
    token budget, which is spent; for partitions, since a further pick would change what each part picks; for a quality,
    or a quota on a field of the records, whose values for all other samples are not in the lineage.
    """
    options = run.options
    columns = [quota["column"] for quota in options.get("quotas", ())]
    if any(options.get(name) is not None for name in ("token_budget", "quality", "partitions")) or any(
        column not in COLUMNS for column in columns
    ):
        return None
    full = {column: _full_labels(connection, root, run, column) for column in columns}
    others = connection.execute(
        "SELECT"
        " remaining.id, coalesce(remaining.score, 'nan') AS score, remaining.after_picks, density.mean_squared_distance"
        " FROM remaining"
        " INNER JOIN samples ON samples.id = remaining.id AND samples.snapshot = ?"
        " INNER JOIN density ON density.id = remaining.id AND density.density = ?"
        " ANTI JOIN (SELECT id FROM picks WHERE selection = ?) AS chosen ON chosen.id = remaining.id"
        " WHERE remaining.selection = ? AND remaining.id <> ?"
        " AND NOT list_has_any(?::VARCHAR[], [samples.id, samples.former_id])"
        + "".join(f" AND NOT list_contains(?::VARCHAR[], samples.{column}::VARCHAR)" for column in full),
        [
            *(run.snapshot, run.density, run.selection, run.selection, sample["id"]),
            list(options.get("must_exclude", ())),
            *full.values(),
        ],
    ).fetchnumpy()
    picks = (scored.picks, scored.pick_factors)
    own = scores_at_end(scored.vector[None, :], np.array([scored.factor]), *picks, scoring=scored.scoring)[0]
    factors = density_factor(others["mean_squared_distance"], run.density_power)
    bound = bounds_at_end(
        others["score"],
        others["after_picks"],
        factors,
        scored.pick_factors,
        scoring=scored.scoring,
    )
    level = own - abs(own) * _ROUNDING
    near = np.flatnonzero(bound >= level)
    if len(near) * len(scored.picks) > _MOST_PAIRS:
        return len(near), False
    if not len(near):
        return 0, True
    ids = others["id"][near].tolist()
    vectors = _vectors(connection, root, run, ids)
    found = np.stack([vectors[id_] for id_ in ids])
    scores = scores_at_end(found, factors[near], *picks, scoring=scored.scoring)
    return int((scores >= level).sum()), True


def _full_labels(connection: Connection, root: Path, run: Run, column: str) -> list[str]:
    """Return the labels of a column whose caps the picks have reached."""
    counts = Counter(labels_of_picks(connection, root, run, column))
    caps = [quota.get("caps", {}) for quota in run.options["quotas"] if quota["column"] == column]
    return [label for given in caps for label, cap in given.items() if counts[label] >= cap]


def _column(rows: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
