"""NovelSelect in parts: a selection within each part of the pool, then a last one among the picks of all parts.

An approximation of NovelSelect for pools whose rows do not fit into memory together, or parts of which are on several
machines. No part knows of another; only the last selection does.

Belongs here: the parts, the stored picks of finished ones. Does not: the selection of a part (`novelselect`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.progress import no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.vectors import as_rows, require_directions
from novelsum_dagster.selection.checkpoint import Checkpoint, selection_key
from novelsum_dagster.selection.inputs import check_density_factor, check_k, check_quality
from novelsum_dagster.selection.limits import Wanted
from novelsum_dagster.selection.novelselect import PUBLISHED_OPTIONS, NovelSelectOptions, local_search, novelselect_by
from novelsum_dagster.selection.picks import BARS, PickLog, Picks, Remaining


def partitioned(
    embeddings: NDArray[Any],
    k: int,
    *,
    partitions: int,
    density_factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None = None,
    options: NovelSelectOptions = PUBLISHED_OPTIONS,
    spread: Spread = in_turn,
) -> Picks:
    """Pick k samples among the picks of equal parts of the pool, each of which picks k samples or all that it has.

    `Picks.remaining` has scores of the samples that the parts picked; those of all others are unknown.

    Args:
        embeddings: (n, d), as the model gives them: an array, or a memory-mapped file, of which one part is read at a
            time.
        k: number of picks, 1 to n.
        partitions: number of parts, 1 to n; samples are dealt out by a seeded shuffle.
        density_factor: float64, (n,), of the samples in the whole pool.
        quality: float64, (n,), positive; None takes 1.
        options: of each part and of the last selection. The seed is of the shuffle, too. Beside `checkpoint`, where the
            last selection saves its picks, those of finished parts are saved. `search_on` and `threads` are of the last
            selection. `progress` is called with picks made, in all parts and at last, and their number.
        spread: selects in the parts; default: one after the other.

    Raises:
        ValueError: as `novelselect` does; for more parts than samples.
        NotEnoughMemory: before work starts.
        VerificationError: if `verify` finds a better candidate.
    """
    embeddings = np.asanyarray(embeddings)
    n = len(embeddings)
    check_k(k, n)
    if not 1 <= partitions <= n:
        raise ValueError(f"partitions is {partitions:,}, but the pool has {n:,} samples; each part needs at least one")
    factor = check_density_factor(density_factor, n)
    qualities = None if quality is None else check_quality(quality, n)
    shuffled = np.random.default_rng(options.seed).permutation(n)
    parts = [np.sort(part) for part in np.array_split(shuffled, partitions)]
    counts = [min(k, len(part)) for part in parts]
    total = sum(counts) + k
    saved = None
    if options.checkpoint is not None:
        settings = {"k": k, "partitions": partitions, "seed": options.seed, **options.scoring.facts()}
        key = selection_key(settings, rows=embeddings, factor=factor, quality=qualities)
        saved = Checkpoint(options.checkpoint.with_suffix(".parts.parquet"), key)
    forward = _loaded(saved, counts)
    left = parts[len(forward) :]
    asks = _asks(embeddings, left, factor, qualities)
    in_part = replace(
        options,
        # Exchanges are for the last selection.
        scoring=replace(options.scoring, swap_rounds=0),
        threads=None,
        checkpoint=None,
        search_on=local_search,
        progress=no_progress,
    )
    for part, picks in zip(left, spread(_Part(k, in_part), asks), strict=True):
        forward.append(part[picks])
        if saved:
            saved.save(PickLog.of(np.concatenate(forward)))
        options.progress(sum(map(len, forward)), total)
    merged = np.sort(np.concatenate(forward))
    last = novelselect_by(
        embeddings[merged],
        Wanted(k),
        replace(options, progress=lambda done, _: options.progress(len(merged) + done, total)),
        factor[merged],
        None if qualities is None else qualities[merged],
    )
    if saved:
        saved.remove()
    return _in_pool(last, merged, n)


@dataclass(frozen=True)
class _Part:
    """The selection settings that all parts share."""

    k: int
    options: NovelSelectOptions

    def picks(
        self, rows: NDArray[Any], factor: NDArray[np.float64], quality: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        """Return the picks of a part among its rows, (m, d): all rows if it has at most k."""
        if len(rows) <= self.k:
            return np.arange(len(rows))
        return novelselect_by(rows, Wanted(self.k), self.options, factor, quality).indices


def _asks(
    embeddings: NDArray[Any],
    parts: list[NDArray[np.int64]],
    factor: NDArray[np.float64],
    quality: NDArray[np.float64] | None,
) -> Iterator[Callable[[_Part], NDArray[np.int64]]]:
    """Yield the input of each part, one after the other.

    Raises:
        ValueError: for NaN, infinite or zero rows; names the first of a part by its place in the pool.
    """
    for part in parts:
        rows = embeddings[part]
        require_directions(as_rows(rows, places=part), places=part)
        yield methodcaller("picks", rows, factor[part], None if quality is None else quality[part])


def _loaded(saved: Checkpoint | None, counts: list[int]) -> list[NDArray[np.int64]]:
    """Return the picks of finished parts as rows of the pool, one array per part."""
    trace = saved.load() if saved else None
    if trace is None:
        return []
    ends = np.cumsum(counts)
    return np.split(trace.indices, ends[ends < len(trace.indices)])


def _in_pool(last: Picks, merged: NDArray[np.int64], n: int) -> Picks:
    """Return the picks of the last selection as rows of the pool."""
    score, at, is_exact = np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    known = last.remaining
    if known is not None:
        score[merged], at[merged], is_exact[merged] = known.score, known.at, known.is_exact
    eligible = last.eligibility
    if eligible is not None:
        eligible_picks, barred = np.zeros(n, np.int64), np.full(n, BARS.index("partition"))
        eligible_picks[merged], barred[merged] = eligible.eligible_picks, eligible.barred
        outside = np.where(eligible.eligible > 0, n - len(merged), 0)
        eligible = replace(
            eligible,
            ruled_out={**eligible.ruled_out, "partition": outside},
            eligible_picks=eligible_picks,
            barred=barred,
        )
    return replace(
        last,
        indices=merged[last.indices],
        runner_up=np.where(last.runner_up >= 0, merged[last.runner_up], -1),
        remaining=Remaining(score, at, is_exact),
        eligibility=eligible,
    )
