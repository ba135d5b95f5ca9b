"""NovelSelect: greedy selection of the sample most novel relative to the picks so far, exactly as published.

Belongs here: the public function, its options and checks, the loop over picks. Does not: the search for a pick
(`search`, `search.torch_device`), what may be picked (`limits`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.memory import available_memory, require_memory
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.novelsum import DensitySide, SelfDistance, rank_weights
from novelsum_dagster.diversity.vectors import as_rows, unit_rows
from novelsum_dagster.selection.checkpoint import Checkpoint, selection_key
from novelsum_dagster.selection.eligibility import eligibility
from novelsum_dagster.selection.inputs import check_quality, factor_or_density
from novelsum_dagster.selection.limits import Limits, Quota, Wanted
from novelsum_dagster.selection.picks import (
    ChosenBy,
    Eligibility,
    Exchanges,
    Found,
    PickLog,
    Picks,
    Remaining,
    recorded,
)
from novelsum_dagster.selection.scoring import PUBLISHED, Scoring, Side
from novelsum_dagster.selection.search.base import Candidates, Search

SearchOn = Callable[[Candidates, NDArray[np.float64], str, int | None], Search]
"""Makes the search of candidates, as `local_search` does."""

_REPORT_EVERY = 10
_SAVE_EVERY_SECONDS = 10.0


def local_search(
    candidates: Candidates, weights: NDArray[np.float64], device: str, threads: int | None = None
) -> Search:
    """Return the search in this process; numba and torch are loaded only here.

    Args:
        candidates: n rows.
        weights: float64, (k,), proximity weights by rank.
        device: as `novelselect` takes it.
        threads: on the CPU; None takes all cores that the process may use.

    Raises:
        ValueError: for a device that does not exist.
        NotEnoughMemory: if the search would not fit.
    """
    device = cuda_or_cpu(device)
    side = candidates.scoring.density_side
    if side == "objective":
        from novelsum_dagster.selection.search.objective import ObjectiveSearch

        return ObjectiveSearch(candidates, weights, device, threads)
    if side == "column":
        from novelsum_dagster.selection.search.column import ColumnSearch

        return ColumnSearch(candidates, weights, threads)
    if device == "cpu":
        from novelsum_dagster.selection.search.cpu import CpuSearch, memory_needed

        n, d = candidates.rows.shape
        needed = memory_needed(n, d, len(weights))
        fits = int(n * available_memory() / needed)
        require_memory(needed, f"NovelSelect of {len(weights):,} out of {n:,}", f"about {fits:,} samples would fit")
        return CpuSearch(candidates, weights, threads)
    from novelsum_dagster.selection.search.torch_device import TorchSearch

    return TorchSearch(candidates, weights, device)


@dataclass(frozen=True)
class NovelSelectOptions:
    """How NovelSelect scores candidates, and where and how carefully it works.

    Attributes:
        scoring: which score, with alpha; default: the published one.
        neighbors, density_power: K and beta of the density factors, where none are given; defaults 10, 0.5.
        seed: of the first pick, default 42.
        device, threads, verify, checkpoint, search_on, progress: as `novelselect` takes them. They change no pick.
    """

    scoring: Scoring = PUBLISHED
    neighbors: int = 10
    density_power: float = 0.5
    seed: int = 42
    device: str = "cpu"
    threads: int | None = None
    verify: int = 0
    checkpoint: Path | None = None
    search_on: SearchOn = local_search
    progress: Progress = no_progress


PUBLISHED_OPTIONS = NovelSelectOptions()
"""The published score, in this process."""


def novelselect(
    embeddings: ArrayLike,
    k: int | None = None,
    *,
    neighbors: int = 10,
    density_power: float = 0.5,
    proximity_power: float = 1.0,
    density_side: Side = "both",
    measured_side: DensitySide = "row",
    self_distance: SelfDistance = "included",
    swap_rounds: int = 0,
    seed: int = 42,
    density_factor: ArrayLike | None = None,
    quality: ArrayLike | None = None,
    initial: Picks | Sequence[int] | NDArray[np.int64] = (),
    must_include: Sequence[int] | NDArray[np.int64] = (),
    must_exclude: Sequence[int] | NDArray[np.int64] = (),
    quotas: Sequence[Quota] = (),
    cost: ArrayLike | None = None,
    budget: float | None = None,
    device: str = "cpu",
    threads: int | None = None,
    verify: int = 0,
    checkpoint: Path | str | None = None,
    search_on: SearchOn = local_search,
    progress: Progress = no_progress,
) -> Picks:
    """Pick samples by the published algorithm, index for index, for a small part of its work.

    The first pick is `numpy.random.RandomState(seed).randint(0, n)`. Each further pick is the candidate i of the
    highest `y_i F_i`, `F_i = sum_r r^-alpha D_(r)(i)`, where `D(i, s) = (1 - cos(i, s)) (f_i + f_s)` over the picks
    s, ascending, f is the density factor and y the quality; the lowest index wins a tie. (Paper, section 6;
    UmeanNever/NovelSum. What saves the work: `search`.) That is the score of `density_side` "both"; the others have
    different scores (`Scoring`).

    Any exception, one raised by `progress` too, ends the selection and leaves `checkpoint` behind.

    Args:
        embeddings: (n, d), as the model gives them: an array, a memory-mapped file, or anything that NumPy can turn
            into an array, as `StoredVectors` of the vector store. The pool is its own reference.
        k: number of picks, 1 to n, those given included. Either k or `budget`.
        neighbors: K of the density factor, default 10.
        density_power: beta, default 0.5; 0 leaves density out.
        proximity_power: alpha, default 1.0.
        density_side: whose density counts in F. "both" (default): as above, the published code. "column": the picks',
            `sum_r r^-alpha f_(r) d_(r)(i)` with the cosine distances d ascending: the equation of the paper's figure
            and caption, and of MagicAgent (arXiv 2602.19000). "row": the candidate's, `f_i sum_r r^-alpha d_(r)(i)`.
            "objective": F is the increase of the picks' NovelSum when i joins them.
        measured_side, self_distance: `density_side` and `self_distance` of the NovelSum that "objective" increases.
        swap_rounds: with "objective", rounds in which picks are exchanged in the end while NovelSum increases.
        seed: of the first pick, default 42. If the limits rule that sample out, the next one that they allow is taken.
        density_factor: (n,), if already computed; `neighbors` and `density_power` are then not used.
        quality: (n,), positive; the score is multiplied by it. None takes 1.
        initial: the first picks, in order: rows, or an earlier result that is to be extended, whose record is kept.
        must_include: rows picked right after `initial`, in this order.
        must_exclude: rows never picked.
        quotas: caps and floors on the number of picks by source or any other column.
        cost: (n,), 0 or more, of each sample, as its tokens; needs `budget`.
        budget: what the picks may cost together, in place of k; samples are picked as long as one is affordable.
        device: "cpu", a CUDA device as torch names it, or "auto" for CUDA if there is one; the picks are the same.
        threads: on the CPU; None takes all cores that the process may use.
        verify: number of random candidates that are scored at every pick and compared with it.
        checkpoint: a file to which picks are saved every ten seconds and at an exception, and from which the same call
            resumes; it is removed at the end.
        search_on: searches for each pick; default: this process.
        progress: called with picks made and k, or cost spent and budget.

    Raises:
        ValueError: for NaN, infinite or zero rows; k, indices, quality, cost or factors out of range; limits that
            contradict each other or cannot be kept; a checkpoint of another selection.
        NotEnoughMemory: before work starts.
        VerificationError: if `verify` finds a better candidate.
    """
    options = NovelSelectOptions(
        scoring=Scoring(density_side, proximity_power, measured_side, self_distance, swap_rounds),
        neighbors=neighbors,
        density_power=density_power,
        seed=seed,
        device=device,
        threads=threads,
        verify=verify,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        search_on=search_on,
        progress=progress,
    )
    wanted = Wanted(k, cost, budget, quotas, initial, must_include, must_exclude)
    return novelselect_by(embeddings, wanted, options, density_factor, quality)


def novelselect_by(
    embeddings: ArrayLike,
    wanted: Wanted,
    options: NovelSelectOptions,
    density_factor: ArrayLike | None = None,
    quality: ArrayLike | None = None,
) -> Picks:
    """Pick samples as `novelselect` does, by options that belong together.

    Raises:
        ValueError, NotEnoughMemory, VerificationError: as `novelselect` does.
    """
    scoring = options.scoring
    rows = as_rows(embeddings)
    n = len(rows)
    limits = wanted.limits(n)
    most = limits.most_picks
    if options.verify < 0:
        raise ValueError(f"verify is {options.verify}; it must be 0 or more")
    given = wanted.given(n)
    kept = len(given.indices)
    if quality is not None and scoring.density_side == "objective":
        raise ValueError("density_side objective takes no quality: NovelSum has none")
    qualities = None if quality is None else check_quality(quality, n)
    factor = factor_or_density(rows, density_factor, options.neighbors, options.density_power, options.device)
    units = unit_rows(rows)
    del rows
    saved = None
    if options.checkpoint is not None:
        settings = {
            "samples_or_budget": [wanted.k is None, limits.budget],
            "seed": int(options.seed),
            **scoring.facts(),
            "quotas": [quota.facts() for quota in wanted.quotas],
        }
        key = selection_key(
            settings,
            rows=units,
            factor=factor,
            quality=qualities,
            cost=None if wanted.cost is None else np.asarray(wanted.cost, np.float64),
            excluded=np.asarray(wanted.must_exclude, np.int64),
            given=given.indices,
        )
        saved = Checkpoint(options.checkpoint, key)
        given = saved.load() or given
    limits.take_given(given.indices.tolist())
    room = max(most, len(given.indices))
    candidates = Candidates.of(units, factor, qualities, scoring)
    weights = rank_weights(room, scoring.proximity_power)
    with (
        threadpool_limits(1, user_api="blas"),
        closing(options.search_on(candidates, weights, options.device, options.threads)) as search,
    ):
        run = _Run(search, limits, options, saved, PickLog.empty(room))
        run.go_on(given)
        remaining = search.remaining()
    picks, exchanges = run.log.head(search.picked), None
    if scoring.swap_rounds:
        from novelsum_dagster.selection.swaps import improved

        with run.saved_if_broken_off():
            picks, remaining, exchanges = improved(
                units, factor, picks, scoring, limits, kept=kept, threads=options.threads, report=run.report
            )
    if saved:
        saved.remove()
    eligible = None
    if exchanges is None or not exchanges.count:
        eligible = eligibility(wanted.limits(n), picks.indices, max(kept, 1))
    return recorded(
        picks,
        units,
        factor,
        qualities,
        chosen_by=_chosen_by(wanted, kept, len(picks.indices), exchanges),
        remaining=_of_all(remaining, picks, eligible),
        exchanges=exchanges,
        eligibility=eligible,
    )


def _chosen_by(wanted: Wanted, given: int, k: int, exchanges: Exchanges | None) -> list[ChosenBy]:
    """Return how each pick was made; `given` were not chosen here."""
    initial = wanted.initial.indices if isinstance(wanted.initial, Picks) else np.atleast_1d(wanted.initial)
    found: list[ChosenBy] = ["score"] * k
    found[:given] = ["kept" if rank < len(initial) else "must_include" for rank in range(given)]
    if not given:
        found[0] = "seed"
    if exchanges is not None:
        for rank in np.flatnonzero(exchanges.by_exchange):
            found[rank] = "exchange"
    return found


class _Run:
    """One running selection: queries the search, applies the limits, fills the log of picks."""

    def __init__(
        self, search: Search, limits: Limits, options: NovelSelectOptions, saved: Checkpoint | None, log: PickLog
    ) -> None:
        self.log = log
        self._search, self._limits, self._options, self._saved = search, limits, options, saved

    def report(self) -> None:
        """Report how much of the budget is spent."""
        self._options.progress(*self._limits.spent())

    def go_on(self, given: PickLog) -> None:
        """Take the given picks, which the limits count already, then pick until the budget is spent."""
        saved_at = time.monotonic()
        for values in zip(given.indices.tolist(), given.score, given.runner_up, given.runner_up_score, strict=True):
            self._add(Found(*values))
        with self.saved_if_broken_off():
            if not self._search.picked:
                self._pick(Found(self._limits.first(self._options.seed), np.nan))
            while self._search.picked < len(self.log.indices) and (found := self._next()) is not None:
                self._pick(found)
                if self._search.picked % _REPORT_EVERY == 0:
                    self.report()
                if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                    self._save()
                    saved_at = time.monotonic()
            self._limits.require_kept()
            self.report()

    @contextmanager
    def saved_if_broken_off(self) -> Iterator[None]:
        """Save the picks at any exception."""
        try:
            yield
        except BaseException:
            self._save()
            raise

    def _next(self) -> Found | None:
        allowed = self._limits.changes()
        if allowed is not None:
            self._search.allow(allowed)
        found = self._search.best()
        if found and self._options.verify:
            self._search.verify(found, self._options.verify)
        return found

    def _pick(self, found: Found) -> None:
        self._add(found)
        self._limits.add(found.best)

    def _add(self, found: Found) -> None:
        self.log.put(self._search.picked, found)
        self._search.add(found.best)

    def _save(self) -> None:
        if self._saved and self._search.picked:
            self._saved.save(self.log.head(self._search.picked))


def _of_all(remaining: Remaining, picks: PickLog, eligible: Eligibility | None) -> Remaining:
    """Return the last score or bound of every sample; for picks, the score by which they won; NaN if never eligible."""
    score, at, is_exact = remaining.score.copy(), remaining.at.copy(), remaining.is_exact.copy()
    if eligible is not None:
        never = (eligible.eligible_picks == 0) & (eligible.barred >= 0)
        score[never], at[never], is_exact[never] = np.nan, 0, False
    score[picks.indices], at[picks.indices], is_exact[picks.indices] = picks.score, np.arange(len(picks.indices)), True
    return Remaining(score, at, is_exact)
