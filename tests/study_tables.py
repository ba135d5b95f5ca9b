"""The tables of docs/studies.md, from the CSV files in docs/study. `python -m tests.study_tables` rewrites them."""

import re
from collections.abc import Iterator
from pathlib import Path

from novelsum_dagster.settings import OWN_REPRESENTATION
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING
from novelsum_dagster.study.findings import Findings, Found, Gain, findings
from novelsum_dagster.study.statistics import DRAWS
from novelsum_dagster.study.tables import SEEN, UNSEEN, read_tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "studies.md"
BEGIN, END = "<!-- tables: python -m tests.study_tables -->\n", "<!-- end of tables -->\n"


def page_with_tables() -> str:
    """Return docs/studies.md with its tables as the CSV files have them."""
    folders = sorted(path.parent for path in DOCS.glob("study/*/studies.csv"))
    by_pool: dict[str, Findings] = {}
    for folder in folders:
        found = findings(read_tables([folder]), DRAWS)
        (pool,) = found.pools
        by_pool[pool] = found
    text = "\n".join([*_gains(by_pool, SEEN), *_gains(by_pool, UNSEEN), *_measures(by_pool), *_power(by_pool)])
    page = PAGE.read_text(encoding="utf-8")
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", page, flags=re.DOTALL)


def _gains(by_pool: dict[str, Findings], kind: str) -> Iterator[str]:
    yield f"**Gain over random sets on {kind} sources**, % of random's bits per byte; above 0 is better than random:\n"
    strategies = dict.fromkeys(one.strategy for found in by_pool.values() for one in found.gains)
    yield from _head(["strategy", *by_pool])
    for strategy in strategies:
        cells = [
            next((_gain(one) for one in found.gains if (one.strategy, one.kind) == (strategy, kind)), "")
            for found in by_pool.values()
        ]
        yield _row([strategy, *cells])
    yield ""


def _gain(one: Gain) -> str:
    random = one.loss + one.value
    return _interval(one.share * 100, _percent(one.low, random), _percent(one.high, random), 1)


def _percent(part: float | None, whole: float) -> float | None:
    return None if part is None else 100 * part / whole


def _measures(by_pool: dict[str, Findings]) -> Iterator[str]:
    for kind, group in ((SEEN, ALL_SETS), (SEEN, SELECTING), (UNSEEN, ALL_SETS)):
        yield f"**Spearman with performance on {kind} sources, {group}**; plain facts of the sets last:\n"
        yield from _head(["predictor", *by_pool])
        shown = {
            pool: {
                (one.label, one.is_measure): one
                for one in found.correlations
                if (one.kind, one.group, one.method, one.given) == (kind, group, "spearman", "")
                and one.representation in ("", OWN_REPRESENTATION)
            }
            for pool, found in by_pool.items()
        }
        predictors = dict.fromkeys(key for one in shown.values() for key in one)
        for label, is_measure in sorted(predictors, key=lambda key: not key[1]):
            cells = [_found(one.get((label, is_measure))) for one in shown.values()]
            yield _row([label if is_measure else f"*{label}*", *cells])
        yield ""


def _found(one: Found | None) -> str:
    return "" if one is None or one.value is None else _interval(one.value, one.low, one.high, 2)


def _power(by_pool: dict[str, Findings]) -> Iterator[str]:
    yield "**What would have been found with a probability of 0.8**:\n"
    yield from _head(["", *by_pool])
    for group in (ALL_SETS, SELECTING):
        found = [next(one for one in found.power if one.group == group) for found in by_pool.values()]
        yield _row(
            [f"correlation, {group}", *("" if one.correlation is None else f"{one.correlation:.2f}" for one in found)]
        )
    for kind in (SEEN, UNSEEN):
        shares = [next((one.share for one in found.detectable if one.kind == kind), None) for found in by_pool.values()]
        yield _row([f"difference from random, {kind}", *("" if share is None else f"{share:.1%}" for share in shares)])
    yield ""


def _interval(value: float, low: float | None, high: float | None, digits: int) -> str:
    if low is None or high is None:
        return f"{value:+.{digits}f}"
    text = f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _head(columns: list[str]) -> Iterator[str]:
    yield _row(columns)
    yield _row(["---"] * len(columns))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(), encoding="utf-8")
