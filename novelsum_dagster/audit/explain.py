"""Why a sample was picked or left out: `novelsum why`.

Belongs here: finding a sample by id, place or text, the facts about it in one run, and those facts as sentences.
Does not: which run (`runs`), comparing runs (`difference`).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.audit.run_fields import label_of_sample, labels_of_picks, quality_of_sample
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import counted
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.lineage.query import Connection, all_rows, one_row
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.pool.snapshot import BY_VECTORS
from novelsum_dagster.report.tables import place_of
from novelsum_dagster.selection.extension import EXTENDS
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.trajectory import bounds_at_end, closest_pick, scores_at_end, trajectory

_SNIPPET = 160
_OFFERED = 5
_NEAREST = 3
_ID = re.compile(r"[0-9a-fA-F]{4,}")
_SHORT_ID = re.compile(r"[0-9a-fA-F]{1,3}")
_SURELY_ID = 8
_PLACE = re.compile(r"(?P<file>.+):(?P<line>\d{1,18})")
_AMONG = "id IN (SELECT unnest(?::VARCHAR[]))"
"""In this form, unlike list_contains, DuckDB reads the other columns only for matching rows: ten times faster."""
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
        words: the same as sentences, the most important first.
    """

    run: Run
    sample: dict[str, Any]
    outcome: str
    facts: dict[str, Any]
    words: tuple[str, ...]


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
    if "reason" in sample:
        words = [f"Rejected while reading: {sample['reason']}: {sample['detail']}.", *_came_from(run, sample, [])]
        return Explanation(run, sample, "rejected", {}, tuple(words))
    places = all_rows(
        connection, "SELECT source, file, position, line, is_first FROM origins WHERE snapshot = ? AND id = ?",
        [run.snapshot, sample["id"]],
    )  # fmt: skip
    partner = one_row(
        connection, "SELECT partner_id, score, found_by FROM near_duplicates WHERE snapshot = ? AND id = ?",
        [run.snapshot, sample["id"]],
    )  # fmt: skip
    facts: dict[str, Any] = {"places": places, "near_duplicate": partner, **_measured(connection, run, sample["id"])}
    picked = one_row(
        connection, "SELECT * FROM picks WHERE selection = ? AND id = ? ORDER BY rank LIMIT 1",
        [run.selection, sample["id"]],
    )  # fmt: skip
    if picked:
        facts |= _of_pick(connection, run, picked)
        words = _why_in(run, picked, facts)
        outcome = "chosen"
    elif partner and run.settings["pool"]["near_duplicates"]["drop"]:
        words = [
            f"Left out before the selection: {_resembles(run, partner)}, and the settings drop near-duplicates"
            " (pool.near_duplicates.drop)."
        ]
        outcome = "near-duplicate"
    else:
        facts |= _of_left_out(connection, root, run, sample, facts)
        words = _why_out(run, sample, facts)
        outcome = "left out"
    sentences = (*_repeated(query, sample, places), *words, *_came_from(run, sample, places))
    return Explanation(run, sample, outcome, facts, sentences)


def _resembles(run: Run, partner: dict[str, Any]) -> str:
    """Return which sample a near-duplicate resembles, by which measure, and why that one was kept."""
    rule = run.settings["pool"]["near_duplicates"]
    other, score, keep = partner["partner_id"][:8], partner["score"], rule.get("keep", "first")
    why = "read earlier" if keep == "first" else f'kept by the rule "{keep}"'
    if partner["found_by"] == BY_VECTORS:
        cosine = f"cosine {score:.4f} >= {rule['similarity']:g}"
        return f"it is a near-duplicate by embedding of {other} ({cosine}), {why}"
    return f"it resembles {other} (Jaccard {score:.2f}), {why}"


def _repeated(query: str, sample: dict[str, Any], places: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each queried record that is a duplicate."""
    matched = _PLACE.fullmatch(query)
    if matched is None:
        return []
    named = (matched["file"], int(matched["line"]))
    repeats = [
        place
        for place in places
        if not place["is_first"]
        and (place["file"].endswith(f"/{named[0]}") or place["file"] == named[0])
        and (place["position"] if place["line"] is None else place["line"]) == named[1]
    ]
    return [f"The record at {place_of(place)} repeats {place_of(sample)}, which was kept." for place in repeats]


def find_sample(connection: Connection, run: Run, query: str) -> dict[str, Any]:
    """Return the sample or rejected record that matches the query.

    Raises:
        InputError: if no sample or several samples match; offers the nearest.
    """
    if _ID.fullmatch(query):
        for column in ("id", "former_id"):
            found = _samples(connection, run, f"starts_with({column}, ?)", [query.lower()])
            if found:
                return _only(found, query)
    place = _PLACE.fullmatch(query)
    if place:
        found = _at_place(connection, run, place["file"], int(place["line"]))
        if found:
            return _only(found, query)
    # Case-sensitive first: comparing in lower case takes twice as long.
    conditions = ("contains(text, ?)", "contains(lower(text), lower(?))")
    for condition in conditions[: 1 if _ID.fullmatch(query) and len(query) >= _SURELY_ID else 2]:
        found = _with_text(connection, run, condition, query)
        if found:
            return _only(found, query)
    near = all_rows(
        connection, "SELECT id FROM samples WHERE snapshot = ? ORDER BY levenshtein(left(id, ?), ?), id LIMIT 3",
        [run.snapshot, len(query), query.lower()],
    )  # fmt: skip
    offered = f"; similar ids are {', '.join(row['id'] for row in near)}" if _ID.fullmatch(query) and near else ""
    if _SHORT_ID.fullmatch(query):
        offered = "; give at least four characters of an id"
    raise InputError(
        f"no sample of run {run.short} has an id that begins with {query!r}, that place (FILE:LINE) or that text"
        f"{offered}"
    )


def _samples(connection: Connection, run: Run, condition: str, values: list[Any]) -> list[dict[str, Any]]:
    return all_rows(
        connection,
        "SELECT id, former_id, source, file, position, line, form, turns, tokens, text FROM samples"
        f" WHERE snapshot = ? AND {condition} LIMIT {_OFFERED + 1}",
        [run.snapshot, *values],
    )


def _with_text(connection: Connection, run: Run, condition: str, text: str) -> list[dict[str, Any]]:
    """Return the samples whose text matches; other columns are read only for those."""
    ids = all_rows(
        connection, f"SELECT id FROM samples WHERE snapshot = ? AND {condition} LIMIT {_OFFERED + 1}",
        [run.snapshot, text],
    )  # fmt: skip
    return _with_ids(connection, run, ids)


def _with_ids(connection: Connection, run: Run, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return _samples(connection, run, _AMONG, [[row["id"] for row in rows]]) if rows else []


def _at_place(connection: Connection, run: Run, file: str, line: int) -> list[dict[str, Any]]:
    """Return the sample read from a line (or record, in files without lines) of a file, given the end of its path."""
    where = "snapshot = ? AND (file = ? OR ends_with(file, ?)) AND coalesce(line, position) = ?"
    values = [run.snapshot, file, f"/{file}", line]
    ids = all_rows(connection, f"SELECT DISTINCT id FROM origins WHERE {where}", values)
    if ids:
        return _with_ids(connection, run, ids)
    return all_rows(
        connection, f"SELECT source, file, position, line, reason, detail FROM rejects WHERE {where}", values
    )


def _only(found: list[dict[str, Any]], query: str) -> dict[str, Any]:
    if len(found) > 1:
        offered = "\n".join(f"  {row.get('id', '')}  {place_of(row)}  {_snippet(row)}" for row in found[:_OFFERED])
        more = "more than " if len(found) > _OFFERED else ""
        count = f"{more}{min(len(found), _OFFERED)} samples"
        raise InputError(f"{query!r} matches {count}; give one of these ids:\n{offered}")
    return found[0]


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
        "runner_up": runner_up and {**runner_up, "text": text[runner_up["id"]]},
        "covers": {**(covered or {}), "examples": [{**row, "text": text[row["id"]]} for row in examples]},
    }


def _snippets(connection: Connection, run: Run, ids: list[str]) -> dict[str, str]:
    found = all_rows(
        connection, f"SELECT id, left(text, ?) AS text FROM samples WHERE snapshot = ? AND {_AMONG}",
        [_SNIPPET, run.snapshot, ids],
    )  # fmt: skip
    return {row["id"]: row["text"] for row in found}


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
    ruled_out = _ruled_out(connection, root, run, sample)
    parts = run.options.get("partitions")
    if parts and remaining and remaining["score"] is None:
        ruled_out.append(f"it was not picked within its part, one of {parts:,} (selection.partitions)")
    scored = _Scored.of(connection, root, run, sample, facts["density_factor"])
    return {
        "covered_by": covered_by,
        "last_known": remaining,
        "at_most_before_it": None if ruled_out or scored is None else _before(connection, root, run, sample, scored),
        "ruled_out": ruled_out,
        "closest": None if scored is None else _closest(scored),
    }


def _ruled_out(connection: Connection, root: Path, run: Run, sample: dict[str, Any]) -> list[str]:
    """Return the limits of the settings that excluded a sample, as text."""
    found = []
    if sample["id"] in run.options.get("must_exclude", ()):
        found.append("the settings exclude it (selection.must_exclude)")
    for quota in run.options.get("quotas", ()):
        column, caps = quota["column"], quota.get("caps", {})
        label = label_of_sample(connection, root, run, sample["id"], column) if caps else None
        if label is None or label not in caps:
            continue
        full = _rank_of_last(connection, root, run, column, label, caps[label])
        if full is not None:
            found.append(f"the cap of {caps[label]:,} on {column} {label} was reached at pick {full:,}")
        elif caps[label] == 0:
            found.append(f"the cap on {column} {label} is 0")
    budget = run.options.get("token_budget")
    if budget is not None:
        used = one_row(connection, "SELECT sum(tokens) AS tokens FROM picks WHERE selection = ?", [run.selection])
        left = budget - int((used and used["tokens"]) or 0)
        if sample["tokens"] > left:
            found.append(f"it has {sample['tokens']:,} tokens, but only {left:,} of the budget of {budget:,} were left")
    return found


def _rank_of_last(connection: Connection, root: Path, run: Run, column: str, label: str, cap: int) -> int | None:
    """Return the rank of the pick that reached a cap; None if the cap was not reached, or is 0."""
    ranks = [rank for rank, own in enumerate(labels_of_picks(connection, root, run, column), 1) if own == label]
    return ranks[cap - 1] if 0 < cap <= len(ranks) else None


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
        f"SELECT id, vector FROM read_parquet(?) WHERE {_AMONG}",
        [str(root / run.vectors_folder / "*.parquet"), ids],
    ).fetchnumpy()
    return dict(zip(found["id"].tolist(), found["vector"], strict=True))


def _closest(scored: _Scored) -> dict[str, Any] | None:
    """Return the pick at which a sample's score was closest to the winning one; None without scores.

    `share`, the fraction of the winning score, is None if scores may be negative.
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
    at = closest_pick(score, scored.winning, by_difference=signed)
    if at is None:
        return None
    own, won = float(score[at - 1]), float(scored.winning[at])
    share = None if signed else own / won
    return {"rank": at + 1, "score": own, "winning_score": won, "share": share, "quality": scored.quality}


def _before(connection: Connection, root: Path, run: Run, sample: dict[str, Any], scored: _Scored) -> int | None:
    """Return the number of samples that would be preferred to one at a further pick.

    Exact, except for rounding, if the candidates are few enough to be scored; otherwise an upper bound. None for a
    budget, a quality, or a quota on a field of the records: their values for all other samples are not in the lineage.
    None for partitions: a further pick would change what each part picks.
    """
    options = run.options
    if any(options.get(name) is not None for name in ("token_budget", "quality", "partitions")) or any(
        quota["column"] not in sample for quota in options.get("quotas", ())
    ):
        return None
    others = connection.execute(
        "SELECT"
        " remaining.id, coalesce(remaining.score, 'nan') AS score, remaining.after_picks, density.mean_squared_distance"
        " FROM remaining"
        " INNER JOIN density ON density.id = remaining.id AND density.density = ?"
        " ANTI JOIN (SELECT id FROM picks WHERE selection = ?) AS chosen ON chosen.id = remaining.id"
        " WHERE remaining.selection = ? AND remaining.id <> ? AND NOT list_contains(?::VARCHAR[], remaining.id)",
        [run.density, run.selection, run.selection, sample["id"], list(options.get("must_exclude", ()))],
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
    if len(near) * len(scored.picks) > _MOST_PAIRS or not len(near):
        return len(near)
    ids = others["id"][near].tolist()
    vectors = _vectors(connection, root, run, ids)
    found = np.stack([vectors[id_] for id_ in ids])
    scores = scores_at_end(found, factors[near], *picks, scoring=scored.scoring)
    return int((scores >= level).sum())


def _why_in(run: Run, picked: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    words = [f"Picked as number {picked['rank']:,} of {run.k:,} by {run.strategy}."]
    runner_up = facts["runner_up"]
    if picked["score"] is None and EXTENDS in run.options:
        words.append(f"Kept from the earlier subset {run.options[EXTENDS][:8]}, which this one extends.")
    elif picked["rank"] == 1 and picked["score"] is None:
        words.append(f"The first pick is drawn at random (seed {run.seed}), or required by the settings.")
    elif picked["score"] is None:
        words.append("It was required by the settings, or this strategy scores no candidates.")
    elif runner_up:
        later = f"later pick {runner_up['rank']:,}" if runner_up["rank"] else "never picked"
        words.append(
            f"Its score of {picked['score']:.6g} was the highest; {runner_up['id'][:8]} came second by"
            f" {picked['margin']:.3g} ({later}): {_snippet(runner_up)}"
        )
    else:
        words.append(f"Its score was {picked['score']:.6g}; no other sample was eligible.")
    if picked["nearest_pick_id"]:
        words.append(
            f"The nearest sample picked before it is {picked['nearest_pick_id'][:8]} (pick"
            f" {picked['nearest_pick_rank']:,}), at cosine distance {picked['nearest_distance']:.4f}."
        )
    covers = facts["covers"]
    if covers.get("samples") == 1:
        words.append("It is not the nearest pick of any other sample.")
    elif covers.get("samples"):
        others = counted(covers["samples"] - 1, "other sample")
        words.append(f"It is the nearest pick of {others}, up to distance {covers['farthest']:.4f}.")
    return words


def _why_out(run: Run, sample: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    words = [f"Not among the {run.k:,} picks of {run.strategy}."]
    words += [f"Excluded because {reason}." for reason in facts["ruled_out"]]
    closest = facts["closest"]
    if closest:
        won = f"the winning {closest['winning_score']:.6g}"
        share = closest["share"]
        compared = (
            f"{closest['score'] - closest['winning_score']:+.3g} from {won}"
            if share is None
            else f"{share:.2%} of {won}"
        )
        words.append(
            f"It came closest at pick {closest['rank']:,}: its score of {closest['score']:.6g} was {compared}."
        )
        if share is not None and share < 1 and not facts["ruled_out"]:
            words.append(_quality_needed(run, closest))
    before = facts["at_most_before_it"]
    if before == 0:
        words.append(f"It would be the next pick: k = {run.k + 1:,} lets it in.")
    elif before is not None:
        samples = f"{before:,} eligible samples" if before > 1 else "one eligible sample"
        words.append(f"At the end, at most {samples} scored higher.")
    if facts["covered_by"]:
        names = "; ".join(
            f"pick {one['rank']:,} ({one['id'][:8]}) at cosine distance {one['distance']:.4f}"
            for one in facts["covered_by"]
        )
        words.append(f"The picks nearest to it: {names}.")
    partner = facts["near_duplicate"]
    if partner:
        words.append(f"In the pool, {_resembles(run, partner)}.")
    return words


def _quality_needed(run: Run, closest: dict[str, Any]) -> str:
    field = run.options.get("quality")
    if field is None:
        needed = f"a quality more than {1 / closest['share']:.4f} times the others' (selection.quality),"
    else:
        needed = f"{field} over {closest['quality'] / closest['share']:.6g} instead of {closest['quality']:.6g},"
    return f"With {needed} it would have been picked at that pick or earlier."


def _came_from(run: Run, sample: dict[str, Any], places: list[dict[str, Any]]) -> list[str]:
    others = [place_of(place) for place in places if not place["is_first"]]
    words = [f"It is from {place_of(sample)} (source {sample['source']})."]
    if others:
        named = ", ".join(others[:_OFFERED]) + (f" and {len(others) - _OFFERED} more" if len(others) > _OFFERED else "")
        words.append(f"The same sample also occurs at {named}.")
    code = f"code {run.git_revision[:12]}" if run.git_revision else "no git revision"
    words.append(
        f"Run {run.run_id} of {run.started_at:%Y-%m-%d %H:%M}, snapshot {run.snapshot[:8]}, model {run.model}"
        f" {run.model_revision[:12]}, seed {run.seed}, novelsum-dagster {run.package_version}, {code}."
    )
    return words


def _snippet(row: dict[str, Any]) -> str:
    text = " ".join(str(row.get("text") or row.get("detail") or "").split())
    return f'"{text[: _SNIPPET // 2]}…"' if len(text) > _SNIPPET // 2 else f'"{text}"'


def _column(rows: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
