"""NovelSelect in parts: a selection within each part of the pool, then a last one among the picks of all parts.

An approximation of NovelSelect for pools whose rows do not fit into memory together, or parts of which are on several
machines. No part knows of another; only the last selection does.

Belongs here: the parts, the stored picks of finished ones. Does not: the selection of a part (`novelselect`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.vectors import as_rows, require_directions
from novelsum_dagster.selection.checkpoint import Checkpoint, PickLog, selection_key
from novelsum_dagster.selection.inputs import check_density_factor, check_k, check_quality
from novelsum_dagster.selection.novelselect import SearchOn, local_search, novelselect
from novelsum_dagster.selection.picks import Picks, Remaining
from novelsum_dagster.selection.scoring import PUBLISHED, Scoring


def partitioned(
    embeddings: NDArray[Any],
    k: int,
    *,
    partitions: int,
    density_factor: NDArray[np.float64],
    scoring: Scoring = PUBLISHED,
    seed: int = 42,
    quality: NDArray[np.float64] | None = None,
    device: str = "cpu",
    verify: int = 0,
    checkpoint: Path | None = None,
    search_on: SearchOn = local_search,
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> Picks:
    """Pick k samples among the picks of equal parts of the pool, each of which picks k samples or all that it has.

    `Picks.remaining` has scores of the samples that the parts picked; those of all others are unknown.

    Args:
        embeddings: (n, d), as the model gives them: an array, or a memory-mapped file, of which one part is read at a
            time.
        k: number of picks, 1 to n.
        partitions: number of parts, 1 to n; samples are dealt out by a seeded shuffle.
        density_factor: float64, (n,), of the samples in the whole pool.
        scoring: which score, with alpha; default: the published one.
        seed: of the shuffle and of every first pick, default 42.
        quality: float64, (n,), positive; None takes 1.
        device, verify: as in `novelselect`, of each part and of the last selection.
        checkpoint: where the last selection saves its picks; the picks of finished parts are saved beside it.
        search_on: searches for each pick of the last selection.
        spread: selects in the parts; default: one after the other.
        progress: called with picks made, in all parts and at last, and their number.

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
    shuffled = np.random.default_rng(seed).permutation(n)
    parts = [np.sort(part) for part in np.array_split(shuffled, partitions)]
    counts = [min(k, len(part)) for part in parts]
    total = sum(counts) + k
    saved = None
    if checkpoint is not None:
        settings = {"k": k, "partitions": partitions, "seed": seed, **scoring.facts()}
        key = selection_key(settings, rows=embeddings, factor=factor, quality=qualities)
        saved = Checkpoint(checkpoint.with_suffix(".parts.parquet"), key)
    forward = _loaded(saved, counts)
    left = parts[len(forward) :]
    asks = _asks(embeddings, left, factor, qualities)
    # Exchanges are for the last selection.
    in_part = replace(scoring, swap_rounds=0)
    for part, picks in zip(left, spread(_Part(k, seed, in_part, device, verify), asks), strict=True):
        forward.append(part[picks])
        if saved:
            saved.save(_trace(forward))
        progress(sum(map(len, forward)), total)
    merged = np.sort(np.concatenate(forward))
    last = novelselect(
        embeddings[merged],
        k,
        density_factor=factor[merged],
        quality=None if qualities is None else qualities[merged],
        seed=seed,
        device=device,
        verify=verify,
        checkpoint=checkpoint,
        search_on=search_on,
        progress=lambda done, _: progress(len(merged) + done, total),
        **scoring.options(),
    )
    if saved:
        saved.remove()
    return _in_pool(last, merged, n)


@dataclass(frozen=True)
class _Part:
    """The selection settings that all parts share."""

    k: int
    seed: int
    scoring: Scoring
    device: str
    verify: int

    def picks(
        self, rows: NDArray[Any], factor: NDArray[np.float64], quality: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        """Return the picks of a part among its rows, (m, d): all rows if it has at most k."""
        if len(rows) <= self.k:
            return np.arange(len(rows))
        return novelselect(
            rows,
            self.k,
            density_factor=factor,
            quality=quality,
            seed=self.seed,
            device=self.device,
            verify=self.verify,
            **self.scoring.options(),
        ).indices


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


def _trace(forward: list[NDArray[np.int64]]) -> PickLog:
    indices = np.concatenate(forward)
    trace = PickLog.empty(len(indices))
    trace.indices[:] = indices
    return trace


def _in_pool(last: Picks, merged: NDArray[np.int64], n: int) -> Picks:
    """Return the picks of the last selection as rows of the pool."""
    score, at, is_exact = np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    known = last.remaining
    if known is not None:
        score[merged], at[merged], is_exact[merged] = known.score, known.at, known.is_exact
    return replace(
        last,
        indices=merged[last.indices],
        runner_up=np.where(last.runner_up >= 0, merged[last.runner_up], -1),
        remaining=Remaining(score, at, is_exact),
    )
