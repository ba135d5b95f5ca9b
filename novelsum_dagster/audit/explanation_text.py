"""The facts about a sample in a run as sentences: the text of `novelsum why`.

Belongs here: sentences, made of the facts alone, so that each can be checked against them. Does not: the facts
(`explain`).
"""

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context
from typing import Any

from novelsum_dagster.audit.find_sample import snippet
from novelsum_dagster.common.progress import counted
from novelsum_dagster.pool.snapshot import BY_VECTORS
from novelsum_dagster.report.tables import place_of

_OFFERED = 5
_RULED_OUT = {
    "must_exclude": "excluded by selection.must_exclude",
    "budget": "longer than what was left of the token budget",
    "cap": "of a label whose cap was reached",
    "floor": "not of the labels for whose floors the rest was reserved",
    "partition": "not picked within their part (selection.partitions)",
}
"""What each of `selection.picks.BARS` ruled out at a pick, after a number of samples."""
_ROUNDING = 1e-9
"""Relative difference up to which scores are called equal."""
_NEARLY = 0.9999
"""Share of the winning score above which the difference is given instead."""
Facts = Mapping[str, Any]


def sentences(outcome: str, sample: Facts, facts: Facts) -> tuple[str, ...]:
    """Return what is known of a sample as sentences, the most important first.

    Args:
        outcome: "chosen", "left out", "near-duplicate" or "rejected".
        sample: the sample or rejected record.
        facts: as `Explanation.facts` has them.
    """
    if outcome == "rejected":
        words = [f"Rejected while reading: {sample['reason']}: {sample['detail']}."]
        return (*words, *_came_from(sample, facts))
    words = [f"The record at {place_of(one)} repeats {place_of(sample)}, which was kept." for one in facts["repeats"]]
    if outcome == "chosen":
        words += _why_in(facts)
    elif outcome == "near-duplicate":
        words.append(
            f"Left out before the selection, as the settings drop near-duplicates (pool.near_duplicates.drop):"
            f" {_resembles(facts)}."
        )
    else:
        words += _why_out(facts)
    if "smallest_k" in facts:
        words.insert(len(facts["repeats"]) + 1, _smallest_k(facts))
    return (*words, *_came_from(sample, facts))


def _why_in(facts: Facts) -> list[str]:
    words = [_how(facts)]
    if facts["chosen_by"] in ("score", "exchange") and facts["score"] is not None:
        words += _score(facts)
    if facts["nearest_pick_id"]:
        words.append(
            f"The nearest sample picked before it is {facts['nearest_pick_id'][:8]} (pick"
            f" {facts['nearest_pick_rank']:,}), at cosine distance {facts['nearest_distance']:.4f}."
        )
    covers = facts["covers"]
    if covers.get("samples") == 1:
        words.append("It is not the nearest pick of any other sample.")
    elif covers.get("samples"):
        others = counted(covers["samples"] - 1, "other sample")
        words.append(f"It is the nearest pick of {others}, up to distance {covers['farthest']:.4f}.")
    return words


def _how(facts: Facts) -> str:
    """Return the sentence that says how a pick was made."""
    selection = facts["selection"]
    picked = f"Picked as number {facts['rank']:,} of {selection['k']:,} by {selection['strategy']}"
    reason = _reason(facts["chosen_by"], selection)
    return f"{picked}: {reason}." if reason else f"{picked}."


def _reason(chosen_by: str | None, selection: Facts) -> str | None:
    """Return why a pick was made that was not made by score; None for one that was."""
    seed = selection["seed"]
    if chosen_by is None:
        return "required by the settings or kept from an earlier subset"
    return {
        "seed": f"the first pick is drawn at random (seed {seed})",
        "drawn": f"drawn at random (seed {seed})",
        "threshold": "the next sample that did not resemble an earlier pick (selection.repr_filter.threshold)",
        "must_include": "required by the settings (selection.must_include)",
        "kept": f"kept from the earlier subset {str(selection['extends'])[:8]}, which this one extends",
        "exchange": "in an exchange at the end (selection.swap_rounds)",
    }.get(chosen_by)


def _score(facts: Facts) -> list[str]:
    """Return the sentences on the score of a pick, its runner-up, and the samples that were not eligible."""
    score, runner_up, eligible = facts["score"], facts["runner_up"], facts["eligible"]
    among = "" if eligible is None else f" of {counted(eligible, 'eligible sample')}"
    if facts["chosen_by"] == "exchange":
        first = f"In its place it raised NovelSum of the other picks by {score:.6g}, the most"
    elif not runner_up and eligible == 1:
        return [f"Its score was {score:.6g}; no other sample was eligible.", *_ruled_out(facts)]
    elif not runner_up:
        return [f"Its score was {score:.6g}.", *_ruled_out(facts)]
    else:
        first = f"Its score of {score:.6g} was the highest{among}"
    if not runner_up:
        return [f"{first}.", *_ruled_out(facts)]
    later = f"later pick {runner_up['rank']:,}" if runner_up["rank"] else "never picked"
    second = runner_up["id"][:8]
    compared = (
        f"{second} had the same, and comes later in the pool"
        if facts["margin"] == 0
        else f"{second} came second by {facts['margin']:.3g}"
    )
    return [f"{first}; {compared} ({later}): {snippet(runner_up)}", *_ruled_out(facts)]


def _ruled_out(facts: Facts) -> list[str]:
    """Return a sentence on the samples that were not eligible at a pick; empty if all were, or if it is not known."""
    kinds = [f"{count:,} {_RULED_OUT[name]}" for name, count in facts["ruled_out"].items()]
    return [f"Not eligible at this pick: {'; '.join(kinds)}."] if kinds else []


def _why_out(facts: Facts) -> list[str]:
    selection = facts["selection"]
    words = [f"Not among the {selection['k']:,} picks of {selection['strategy']}."]
    words += _when_barred(facts["barred"], selection)
    if not facts["limits_are_known"]:
        words.append("At which picks it was eligible is not known.")
    closest = facts["closest"]
    if closest:
        words += _closest(facts, closest)
    words += _at_end(facts)
    if facts["covered_by"]:
        names = "; ".join(
            f"pick {one['rank']:,} ({one['id'][:8]}) at cosine distance {one['distance']:.4f}"
            for one in facts["covered_by"]
        )
        words.append(f"The picks nearest to it: {names}.")
    if facts["near_duplicate"]:
        words.append(f"In the pool, {_resembles(facts)}.")
    return words


def _when_barred(barred: Sequence[Facts], selection: Facts) -> list[str]:
    """Return a sentence for each reason for which a sample was not eligible."""
    words = []
    for one in barred:
        by, first, last = one["by"], one["first"], one["last"]
        if by == "must_exclude":
            return ["Excluded by the settings (selection.must_exclude)."]
        if by == "partition":
            return [
                f"Not picked within its part, one of {selection['partitions']:,} (selection.partitions), so the last"
                " selection did not score it."
            ]
        if by == "cap":
            why = f"the cap of {one['cap']:,} on {one['column']} {one['label']} was reached"
        elif by == "budget":
            why = f"it has {one['cost']:,.0f} tokens, and {one['left']:,.0f} of the budget were left"
        else:
            unit = "places" if selection["token_budget"] is None else "tokens"
            left, reserved = one["left"], one["reserved"]
            part = f"the {left:,.0f}" if reserved == left else f"{reserved:,.0f} of the {left:,.0f}"
            why = f"{part} {unit} left were reserved for floors on {one['column']}"
        if last == selection["k"]:
            words.append(f"From pick {first:,} on it was not eligible: {why}.")
        elif first == last:
            words.append(f"At pick {first:,} it was not eligible: {why}.")
        else:
            words.append(f"From pick {first:,} to {last:,} it was not eligible: at pick {first:,}, {why}.")
    more = len(words) - _OFFERED
    return [*words[:_OFFERED], f"And {more} more such spans of picks (--json has all)."] if more > 0 else words


def _closest(facts: Facts, closest: Facts) -> list[str]:
    score, won, share = closest["score"], closest["winning_score"], closest["share"]
    among = ""
    if facts["eligible_picks"] < facts["scored_picks"]:
        among = f"It was eligible at {facts['eligible_picks']:,} of {facts['scored_picks']:,} picks made by score. "
    if score == won:
        compared = "equal to the winning score; the winner comes earlier in the pool"
    elif share is None:
        compared = f"{score - won:+.3g} from the winning {won:.6g}"
    else:
        compared = f"{share:.2%} of the winning {won:.6g}"
        if compared.startswith("100.00%"):
            compared = f"{won - score:.3g} below the winning {won:.6g}"
    words = [f"{among}It came closest at pick {closest['rank']:,}: its score of {score:.6g} was {compared}."]
    if share is not None and share < 1 - _ROUNDING:
        words.append(_quality_needed(facts["selection"]["quality"], closest))
    return words


def _quality_needed(field: str | None, closest: Facts) -> str:
    share, own = closest["share"], closest["quality"]
    if field is None:
        needed = f"a quality more than {_rounded_up(1 / share)} times the others' (selection.quality),"
    else:
        needed = f"{field} over {_rounded_up(own / share)} instead of {own:.6g},"
    return f"With {needed} it would have been picked at that pick or earlier."


def _rounded_up(value: float) -> str:
    """Return a number with six digits that is not below it, so that more than the text says is enough."""
    return f"{Context(prec=6, rounding=ROUND_CEILING).create_decimal_from_float(value):f}"


def _at_end(facts: Facts) -> list[str]:
    before, k = facts["at_most_before_it"], facts["selection"]["k"]
    if before is None:
        return []
    if before == 0:
        larger = f": k = {k + 1:,} lets it in" if facts["selection"]["k_can_grow"] else ""
        return [f"It would be the next pick{larger}."]
    most = "" if facts["before_it_is_exact"] else "at most "
    return [f"At the end, {most}{counted(before, 'eligible sample')} scored higher."]


def _smallest_k(facts: Facts) -> str:
    if facts["smallest_k"] is not None:
        return f"The smallest k that lets it in is {facts['smallest_k']:,}."
    if facts["smallest_k_is_more_than"] is not None:
        return f"Not picked up to k = {facts['smallest_k_is_more_than']:,}, where the search stopped."
    return f"No smallest k is given: {facts['no_smallest_k_because']}."


def _resembles(facts: Facts) -> str:
    """Return which sample a near-duplicate resembles, why that one was kept, and how it was picked."""
    partner, selection = facts["near_duplicate"], facts["selection"]
    other, score, keep, pick = (partner[name] for name in ("partner_id", "score", "keep", "partner_pick"))
    why = "read earlier" if keep == "first" else f'kept by the rule "{keep}"'
    alike = f"resembles {other[:8]} (Jaccard {score:.2f})"
    if partner["found_by"] == BY_VECTORS:
        alike = f"is a near-duplicate by embedding of {other[:8]} (cosine {score:.4f} >= {partner['similarity']:g})"
    if pick is None:
        return f"it {alike}, {why} and not picked"
    picked = f"it {alike}, {why} and picked as number {pick['rank']:,}"
    reason = _reason(pick["chosen_by"], selection)
    if reason:
        return f"{picked}: {reason}"
    among = "" if pick["eligible"] is None else f", the highest of {counted(pick['eligible'], 'eligible sample')}"
    return f"{picked} with a score of {pick['score']:.6g}{among}"


def _came_from(sample: Facts, facts: Facts) -> list[str]:
    selection = facts["selection"]
    others = [place_of(place) for place in facts["places"] if not place["is_first"]]
    words = [f"It is from {place_of(dict(sample))} (source {sample['source']})."]
    if others:
        named = ", ".join(others[:_OFFERED]) + (f" and {len(others) - _OFFERED} more" if len(others) > _OFFERED else "")
        words.append(f"The same sample also occurs at {named}.")
    code = f"code {selection['git_revision'][:12]}" if selection["git_revision"] else "no git revision"
    words.append(
        f"Run {selection['run_id']} of {selection['started_at']}, snapshot {selection['snapshot'][:8]}, model"
        f" {selection['model']} {selection['model_revision'][:12]}, seed {selection['seed']}, novelsum-dagster"
        f" {selection['package_version']}, {code}."
    )
    return words
