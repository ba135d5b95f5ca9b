"""Why measures find a random subset more diverse than the selected one, and which setting may help.

Belongs here: the facts, their sentences, the rules of the recommendation. Does not: the measures, the page.

Every statement is based on a number of `Facts` that chance does not explain.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from novelsum_dagster.diversity.distances import to_nearest
from novelsum_dagster.diversity.measured import RESAMPLES, mean_interval
from novelsum_dagster.diversity.measures import MEASURES, Value
from novelsum_dagster.diversity.vectors import as_rows, unit_rows
from novelsum_dagster.report.tables import coverage, shortened
from novelsum_dagster.settings import Settings

SELECTED, RANDOM = "selected", "random"
CROWDED = 0.1
"""Cosine distance within which picks crowd: paraphrases and texts of one template are closer than this in MiniLM."""
LEAST = 0.05
"""Smallest difference that is reported, whatever its interval: with many samples every difference is significant.

Of shares (picks that crowd, sources) it is five points; of the mean distance to the nearest pick, 5 % of it. Among
random subsets of 1,000 of the real pool that distance varies by 0.5 %.
"""
_CONFIDENCE = 0.95
_LOWER_POWER = 0.25
"""Power of the density factor that is recommended if picks crowd: on the real pool, it minimises the number of measures
that prefer a random subset, while NovelSum stays above that of a random one."""
_EXAMPLES = 3
"""Number of measures named in the line on a terminal."""


@dataclass(frozen=True)
class Compared:
    """One measure of the selected subset and of a random one of the same size."""

    measure: str
    selected: Value
    random: Value

    @property
    def ahead(self) -> str | None:
        """The set that is more diverse, `SELECTED` or `RANDOM`; None if the intervals overlap."""
        if self.selected.low <= self.random.high and self.random.low <= self.selected.high:
            return None
        higher = MEASURES[self.measure].higher_is_diverse
        return SELECTED if (self.selected.value > self.random.value) == higher else RANDOM

    @property
    def words(self) -> str:
        """The measure's name and both values."""
        return f"{MEASURES[self.measure].label} {_number(self.selected.value)} against {_number(self.random.value)}"

    def record(self) -> dict[str, Any]:
        """Return the row of a table: measure, selected, random, more_diverse."""
        values = {SELECTED: self.selected.value, RANDOM: self.random.value}
        return {"measure": self.measure, **values, "more_diverse": self.ahead}


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Contrast(_Recorded):
    """A mean of the selected subset and of the random one, and the 95 % bootstrap interval of their difference."""

    selected: float
    random: float
    low: float
    high: float


class Drift(_Recorded):
    """Difference between the subset's and the pool's shares of sources.

    Attributes:
        variation: total variation: half the sum of the absolute differences, from 0 to 1.
        chance: 97.5 % quantile of random subsets of the same size.
        source: the source whose share grew most; `pool_share` and `selected_share` are its shares.
    """

    variation: float
    chance: float
    source: str
    pool_share: float
    selected_share: float


class Facts(_Recorded):
    """Facts about a subset besides its measures.

    Attributes:
        picks: samples of the subset; one that was picked twice counts twice.
        radius: cosine distance within which two picks crowd.
        crowding: share of the picks that have another within `radius`.
        drift: of sources.
        coverage: mean cosine distance of the pool's samples to their nearest pick; lower means better coverage.
        near_duplicates: picks that are near-duplicates of another sample of the pool.
        unread: fraction of the texts' tokens that the model did not read.
    """

    picks: int
    radius: float
    crowding: Contrast
    drift: Drift
    coverage: Contrast
    near_duplicates: int
    unread: float


class Recommendation(_Recorded):
    """Settings to change, by dotted key, and the supporting facts."""

    settings: dict[str, Any]
    because: str

    @property
    def changes(self) -> list[str]:
        """The settings in the syntax of a settings file, one line each."""
        return [f"{key}: {_yaml(value)}" for key, value in self.settings.items()]

    @property
    def words(self) -> str:
        """Settings and reason in one line."""
        return f"{', '.join(self.changes)}, because {self.because}"


class Explanation(_Recorded):
    """What a report states about a subset besides its measures.

    Attributes:
        facts: on which it is based.
        causes: names of the facts in which the two sets differ, if a measure finds the random one more diverse.
        sentences: one or two.
        recommendation: the setting most likely to help; None if no rule applies.
    """

    facts: Facts
    causes: tuple[str, ...]
    sentences: tuple[str, ...]
    recommendation: Recommendation | None


def random_rows(samples: int, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of a random subset of a pool: int64, (size,), or all rows of a smaller pool."""
    return generator.permutation(samples)[:size]


def compare(selected: Mapping[str, Value], random: Mapping[str, Value]) -> tuple[Compared, ...]:
    """Return the measures that both sets have, in the order of `MEASURES`."""
    return tuple(
        Compared(key, selected[key], random[key])
        for key in MEASURES
        if key in selected and key in random and np.isfinite([selected[key].value, random[key].value]).all()
    )


def less_diverse(compared: Sequence[Compared]) -> str | None:
    """Return a warning if most measures find the subset less diverse than a random one, else None.

    A measure counts if the intervals do not overlap. Those that differ most come first, by |a - b| / (|a| + |b|).
    """
    behind = [one for one in compared if one.ahead == RANDOM]
    if 2 * len(behind) <= len(compared):
        return None
    shown = sorted(behind, key=lambda one: -_apart(one.selected.value, one.random.value))[:_EXAMPLES]
    more = ", ..." if len(behind) > len(shown) else ""
    examples = ", ".join(one.words for one in shown)
    return f"Less diverse than a random subset by {len(behind)} of {len(compared)} measures ({examples}{more})"


def names_of(compared: Sequence[Compared]) -> str:
    """Return the names of the measures that were compared."""
    return ", ".join(MEASURES[one.measure].label for one in compared)


def _apart(one: float, other: float) -> float:
    return abs(one - other) / (abs(one) + abs(other))


def facts_of(
    vectors: NDArray[np.float32],
    sources: pa.ChunkedArray,
    selected: NDArray[np.int64],
    random: NDArray[np.int64],
    to_selected: NDArray[np.float64],
    to_random: NDArray[np.float64],
    *,
    near_duplicates: int,
    unread: float,
    seed: int,
) -> Facts:
    """Return the facts of a subset.

    Args:
        vectors: float32, (n, d), the pool.
        sources: string, (n,).
        selected: int64, (k,), rows of the subset; one that it holds twice counts twice.
        random: int64, (m,), rows of the random subset.
        to_selected, to_random: float64, (n,), cosine distances of the pool's samples to the nearest of each set.
        near_duplicates: picks that are near-duplicates of another sample of the pool.
        unread: fraction of the texts' tokens that the model did not read.
        seed: of the intervals.

    Raises:
        ValueError: for bad rows.
    """
    apart, apart_at_random = (nearest_others(vectors[rows]) for rows in (selected, random))
    # Some models place all texts close together: use at most half of the usual distance between random samples.
    radius = min(CROWDED, float(np.median(apart_at_random)) / 2)
    low, high = mean_interval(to_selected - to_random, _CONFIDENCE, seed)
    return Facts(
        picks=len(selected),
        radius=radius,
        crowding=_contrast_of_shares(apart <= radius, apart_at_random <= radius, seed),
        drift=_drift(sources, selected, seed),
        coverage=Contrast(selected=float(to_selected.mean()), random=float(to_random.mean()), low=low, high=high),
        near_duplicates=near_duplicates,
        unread=unread,
    )


def nearest_others(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine distance of each row, (m, d), to the nearest other row: float64, (m,), infinite for one row.

    Raises:
        ValueError: for bad rows.
    """
    units = unit_rows(as_rows(vectors))
    # The nearest is the row itself.
    return to_nearest(units, units, 2) if len(units) > 1 else np.full(1, np.inf)


def _contrast_of_shares(selected: NDArray[np.bool_], random: NDArray[np.bool_], seed: int) -> Contrast:
    generator = np.random.default_rng(seed)
    moved = [_resampled(selected, generator) - _resampled(random, generator) for _ in range(RESAMPLES)]
    low, high = np.quantile(moved, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Contrast(selected=float(selected.mean()), random=float(random.mean()), low=float(low), high=float(high))


def _resampled(values: NDArray[np.bool_], generator: np.random.Generator) -> float:
    return float(values[generator.integers(0, len(values), len(values))].mean())


def _drift(sources: pa.ChunkedArray, selected: NDArray[np.int64], seed: int) -> Drift:
    rows = coverage(sources, selected).to_pylist()
    codes = pc.index_in(sources, value_set=pa.array([row["source"] for row in rows])).to_numpy()
    pool = np.array([row["pool_share"] for row in rows])
    generator, size = np.random.default_rng(seed), min(len(selected), len(codes))
    draws = (generator.choice(len(codes), size, replace=False, shuffle=False) for _ in range(RESAMPLES))
    by_chance = [_variation(np.bincount(codes[draw], minlength=len(rows)) / size, pool) for draw in draws]
    most = max(rows, key=lambda row: row["selected_share"] - row["pool_share"])
    return Drift(
        variation=_variation(np.array([row["selected_share"] for row in rows]), pool),
        chance=float(np.quantile(by_chance, (1 + _CONFIDENCE) / 2)),
        source=most["source"],
        pool_share=most["pool_share"],
        selected_share=most["selected_share"],
    )


def _variation(shares: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    return float(np.abs(shares - others).sum() / 2)


def explain(compared: Sequence[Compared], facts: Facts, settings: Settings) -> Explanation:
    """Return the explanation of a subset: one or two sentences, and at most one recommendation.

    Args:
        compared: its measures beside a random subset's.
        facts: of the subset.
        settings: with which it was selected.
    """
    behind = any(one.ahead == RANDOM for one in compared)
    causes = _causes(facts) if behind else {}
    sentences = [_verdict(compared)]
    if causes:
        sentences.append(f"What differs from the random subset: {'; '.join(causes.values())}.")
    elif behind:
        sentences.append(
            "No cause was found: crowding of picks, shares of sources and coverage of the pool are like those of the"
            " random subset."
        )
    return Explanation(
        facts=facts,
        causes=tuple(causes),
        sentences=tuple(sentences),
        recommendation=recommend(causes, facts, settings),
    )


def _verdict(compared: Sequence[Compared]) -> str:
    if not compared:
        return "No measure was computed for both the selected subset and a random one."
    ahead = [one.ahead for one in compared]
    selected, random, total = ahead.count(SELECTED), ahead.count(RANDOM), len(compared)
    unclear = f"; for {total - selected - random} the intervals overlap" if total > selected + random else ""
    if not random:
        if not selected:
            return f"The measures agree: for all {total} the intervals of the selected and a random subset overlap."
        return f"The measures agree: {selected} of {total} find the selected subset the more diverse one{unclear}."
    others = f", {selected} the selected one" if selected else ""
    return f"{random} of {total} measures find a random subset of the same size more diverse{others}{unclear}."


def _causes(facts: Facts) -> dict[str, str]:
    """Return the facts in which a subset differs from a random one by more than chance, by name, each as a sentence."""
    crowding, drift, coverage = facts.crowding, facts.drift, facts.coverage
    found = {}
    if crowding.low > 0 and crowding.selected - crowding.random >= LEAST:
        found["crowding"] = (
            f"{crowding.selected:.1%} of the picks lie within a cosine distance of {facts.radius:.2g} of another pick"
            f" (random: {crowding.random:.1%})"
        )
    if drift.variation > drift.chance and drift.variation >= LEAST:
        found["drift"] = (
            f"the source “{shortened(drift.source, 40)}” grew from {drift.pool_share:.1%} of the pool to"
            f" {drift.selected_share:.1%} of the subset, and the total variation of all shares is {drift.variation:.2f}"
            f" (97.5% of random subsets: at most {drift.chance:.2f})"
        )
    if coverage.low > 0 and coverage.selected >= (1 + LEAST) * coverage.random:
        found["coverage"] = (
            f"the pool's samples are at a mean cosine distance of {coverage.selected:.3f} from the nearest pick"
            f" (random: {coverage.random:.3f})"
        )
    return found


_DISTINCT = {"pool.near_duplicates.by": "both", "pool.near_duplicates.drop": True}


def _options(causes: Mapping[str, str], facts: Facts, settings: Settings) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the settings that may help, by dotted key, each with the evidence for it.

    The order is by effect on the real pool (docs/measures.md), 1,000 of 27,518 samples.
    """
    selection, density_power = settings.selection, settings.novelsum.density_power
    if "crowding" in causes:
        if settings.pool.near_duplicates.by == "off":
            yield _DISTINCT, f"{causes['crowding']}, and near-duplicates were not searched for"
        near = f"{facts.near_duplicates:,} of the {facts.picks:,} picks are near-duplicates of another sample"
        if not facts.near_duplicates:
            near = "none of them is a near-duplicate of another sample by the settings"
        crowding_and_near = f"{causes['crowding']}, and {near}"
        # Both samples of a near-duplicate pair crowd but one is counted: each explains two crowded picks.
        if facts.near_duplicates >= (facts.crowding.selected - facts.crowding.random) * facts.picks / 2:
            yield _DISTINCT, crowding_and_near
        if selection.strategy == "novelselect" and density_power > _LOWER_POWER:
            yield {"novelsum.density_power": _LOWER_POWER}, crowding_and_near
        elif selection.strategy == "novelselect" and density_power > 0:
            yield {"selection.density_side": "column"}, crowding_and_near
    if "drift" in causes and all(quota.column != "source" for quota in selection.quotas):
        earlier = [quota.model_dump() for quota in selection.quotas]
        cap = int(np.ceil(facts.drift.pool_share * facts.picks))
        quotas = [*earlier, {"column": "source", "caps": {facts.drift.source: cap}}]
        yield {"selection.quotas": quotas}, causes["drift"]
    if "coverage" in causes and selection.strategy not in ("qdit", "gist"):
        yield {"selection.strategy": "qdit"}, causes["coverage"]
        yield {"selection.strategy": "gist", "selection.gist.coverage_weight": 0.5}, causes["coverage"]
    if facts.unread > settings.embedding.max_cut_fraction:
        yield {"embedding.long": "windows"}, f"the model did not read {facts.unread:.1%} of the texts' tokens"


def recommend(causes: Mapping[str, str], facts: Facts, settings: Settings) -> Recommendation | None:
    """Return the first of the settings that may help which is not in the settings already and goes with them, or None.

    Args:
        causes: that were found, by name, each as a sentence.
        facts: of the subset.
        settings: with which it was selected.
    """
    current = settings.model_dump()
    for wanted, because in _options(causes, facts, settings):
        changes = {key: value for key, value in wanted.items() if _at(current, key) != value}
        if changes and _go_together(current, wanted):
            return Recommendation(settings=changes, because=because)
    return None


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _go_together(current: dict[str, Any], changes: dict[str, Any]) -> bool:
    for key, value in changes.items():
        current = _with(current, key.split("."), value)
    try:
        Settings.model_validate(current)
    except ValidationError:
        return False
    return True


def _with(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**values, first: _with(values.get(first, {}), rest, value) if rest else value}


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
