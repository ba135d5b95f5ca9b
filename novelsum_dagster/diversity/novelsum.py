"""NovelSum: the diversity of a set as the mean novelty of its samples, in every variant.

Belongs here: the measure and its confidence interval. Does not: density (`density`), the other measures, choosing a
subset (`selection`).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.devices import DeviceMemory, cuda_or_cpu, torch_device
from novelsum_dagster.common.memory import require_memory
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import DensityIndex, NeighborPolicy, Search, densities, require_choice
from novelsum_dagster.diversity.measured import mean_interval
from novelsum_dagster.diversity.vectors import as_rows, distinct_rows, half_squares, unit_rows
from novelsum_dagster.settings import NovelSum

SelfDistance = Literal["included", "excluded"]
DensitySide = Literal["row", "column"]
Aggregate = Literal["mean", "sum"]

_TILE_VALUES = 2**20
"""Number of distances that a thread holds at a time: 8 MiB."""
_TILE_BYTES = 40
"""Bytes held for each distance on the CPU: product, distance, rank, weight and summand, 8 bytes each."""
_TILE_VALUES_ON_DEVICE = 2**26
"""Number of distances that a torch device holds at a time: smaller products would leave it idle."""
_DEVICE_BYTES = 64
"""Bytes held for each distance on a torch device: those of the CPU plus the memory of sorting."""
_BEYOND = 3.0
"""A value above every cosine distance, which ranks a sample last in its own row, where its weight is 0."""


Factors = Mapping[tuple[int, float], NDArray[np.float64]]
"""Density factors, float64, (n,), by (K, beta)."""


class Powers(NamedTuple):
    """One setting of NovelSum: K, beta, alpha."""

    neighbors: int
    density_power: float
    proximity_power: float


@dataclass(frozen=True)
class Grid:
    """The settings of NovelSum that are computed together: every combination of K, beta and alpha."""

    neighbors: tuple[int, ...] = (10,)
    density_powers: tuple[float, ...] = (0.5,)
    proximity_powers: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, settings: NovelSum) -> "Grid":
        """Return the one combination that the settings name."""
        return cls((settings.neighbors,), (settings.density_power,), (settings.proximity_power,))


@dataclass(frozen=True)
class NovelSumOptions:
    """How NovelSum is computed.

    Attributes:
        grid: K, beta and alpha.
        search: of the neighbours; its device is also that on which pairs are compared.
        self_distance, density_side, aggregate: as in `novelsum`.

    Raises:
        ValueError: for an unknown variant.
    """

    grid: Grid = Grid()
    search: Search = field(default_factory=Search)
    self_distance: SelfDistance = "included"
    density_side: DensitySide = "row"
    aggregate: Aggregate = "mean"

    def __post_init__(self) -> None:
        require_choice("self_distance", self.self_distance, SelfDistance)
        require_choice("density_side", self.density_side, DensitySide)
        require_choice("aggregate", self.aggregate, Aggregate)

    @classmethod
    def of(cls, settings: NovelSum, grid: Grid | None = None, *, device: str = "cpu") -> "NovelSumOptions":
        """Return the options that the settings describe, with another grid if one is given."""
        search = Search.of(settings, device)
        return cls(grid or Grid.of(settings), search, settings.self_distance, settings.density_side, settings.aggregate)


@dataclass(frozen=True)
class NovelSumResult:
    """The diversity of a set of n samples.

    Attributes:
        value: NovelSum: the mean of `novelty`, or its sum if `aggregate` is "sum".
        novelty: float64, (n,): each sample's density-weighted, proximity-weighted distance to the set.
        aggregate: as requested.
    """

    value: float
    novelty: NDArray[np.float64]
    aggregate: Aggregate = "mean"

    def interval(self, confidence: float = 0.95, seed: int = 42) -> tuple[float, float]:
        """Return a bootstrap percentile interval of the value over 1,000 resamples of the set's samples.

        It shows how far the value depends on single samples; distances are not recomputed for each resample.
        """
        low, high = mean_interval(self.novelty, confidence, seed)
        scale = len(self.novelty) if self.aggregate == "sum" else 1
        return scale * low, scale * high


def novelsum(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    neighbors: int = 10,
    density_power: float = 0.5,
    proximity_power: float = 1.0,
    neighbor_policy: NeighborPolicy = "published",
    self_distance: SelfDistance = "included",
    density_side: DensitySide = "row",
    aggregate: Aggregate = "mean",
    index: DensityIndex = "auto",
    min_recall: float = 0.99,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> NovelSumResult:
    """Return NovelSum of a set; with its defaults, as the published code computes it.

    `v_i = s_i * sum_r r^-alpha d_(r)(i) / sum_r r^-alpha` over the whole ascending row of cosine distances, the
    sample itself included at rank 1; NovelSum is the mean of `v_i`. It depends on n: compare sets of equal size.
    Equal rows are at distance 0 exactly, so NovelSum of identical samples is 0. (Paper, section 4;
    UmeanNever/NovelSum.)

    Distances are exact (`cosine_distances`), so ranks and ties are the same on every processor, and with the default
    powers and the exact density so is every digit of the result. Other powers, and torch devices, change it by a
    relative 1e-12 at most.

    Args:
        target: (n, d) embeddings of the set.
        reference: (r, d) embeddings that define density, normally the pool; None takes the target. Not used where
            `density_power` is 0.
        neighbors: K of the density factor, default 10.
        density_power: beta, default 0.5.
        proximity_power: alpha, default 1.0.
        neighbor_policy, index, min_recall: as in `density`.
        self_distance: "included" (default): the sample itself has rank 1, so the nearest other one has weight
            2^-alpha. "excluded": the nearest other sample has rank 1.
        density_side: "row" (default): a row is scaled by its own sample's factor. "column": each distance is scaled
            by the other sample's, as in the paper's figure; ranks stay those of the distances, the lower index first
            among equal ones.
        aggregate: "mean" (default) of the weighted means; "sum" of the weighted sums, without division by the weights
            or by n.
        device: "cpu" (default), or a torch device such as "cuda", where pairs are then compared and candidates for
            neighbours found.
        progress: called with rows done and n.

    Raises:
        ValueError: for bad rows, unequal dimensions, negative powers or an unknown setting.
    """
    grid = Grid((neighbors,), (density_power,), (proximity_power,))
    search = Search(neighbor_policy, index, min_recall, device=device)
    options = NovelSumOptions(grid, search, self_distance, density_side, aggregate)
    return next(iter(_novelsums(target, reference, options, progress).values()))


def novelsum_grid(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    neighbors: Sequence[int] = (10,),
    density_powers: Sequence[float] = (0.5,),
    proximity_powers: Sequence[float] = (1.0,),
    neighbor_policy: NeighborPolicy = "published",
    self_distance: SelfDistance = "included",
    density_side: DensitySide = "row",
    aggregate: Aggregate = "mean",
    index: DensityIndex = "auto",
    min_recall: float = 0.99,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> dict[Powers, NovelSumResult]:
    """Return NovelSum for every combination of K, beta and alpha, from one search and one sort of each row.

    Args:
        target, reference: as in `novelsum`.
        neighbors: values of K.
        density_powers: values of beta.
        proximity_powers: values of alpha.
        neighbor_policy, self_distance, density_side, aggregate, index, min_recall, device, progress: as in `novelsum`.

    Raises:
        ValueError: as `novelsum` does.
    """
    grid = Grid(tuple(neighbors), tuple(density_powers), tuple(proximity_powers))
    search = Search(neighbor_policy, index, min_recall, device=device)
    options = NovelSumOptions(grid, search, self_distance, density_side, aggregate)
    return _novelsums(target, reference, options, progress)


def _novelsums(
    target: ArrayLike, reference: ArrayLike | None, options: NovelSumOptions, progress: Progress
) -> dict[Powers, NovelSumResult]:
    rows = as_rows(target, "target")
    factors, _ = density_factors(rows, reference, options)
    return novelsum_with_densities(rows, factors, options, progress)


def density_factors(
    target: ArrayLike, reference: ArrayLike | None, options: NovelSumOptions, progress: Progress = no_progress
) -> tuple[dict[tuple[int, float], NDArray[np.float64]], int]:
    """Return density factors by (K, beta), float64, (n,), and the fewest neighbours that the largest K had.

    Args:
        target, reference: as in `novelsum`.
        options: K, beta and the search; where every beta is 0, all factors are 1 and nothing is searched.
        progress: called with targets searched and n.

    Raises:
        ValueError: as `novelsum` does.
    """
    rows = as_rows(target, "target")
    grid = options.grid
    pairs = [(k, float(beta)) for k in grid.neighbors for beta in grid.density_powers]
    if not any(grid.density_powers):
        return {pair: np.ones(len(rows)) for pair in pairs}, max(grid.neighbors)
    found = densities(rows, reference, grid.neighbors, options.search, progress=progress)
    used = found[max(grid.neighbors)].neighbors_used
    if used == 0 and len(distinct_rows(rows)[0]) > 1:
        raise ValueError(
            "density needs at least two distinct reference samples; pass a larger reference or set density_power=0"
        )
    return {(k, beta): found[k].factor(beta) for k, beta in pairs}, used


def novelsum_with_densities(
    target: ArrayLike, factors: Factors, options: NovelSumOptions, progress: Progress = no_progress
) -> dict[Powers, NovelSumResult]:
    """Return NovelSum for every density factor and alpha.

    Args:
        target: (n, d) embeddings of the set.
        factors: density factors of the set's samples.
        options: alpha, the variant and the device.
        progress: called with rows done and n.

    Raises:
        ValueError: for bad rows or factors, or a negative power.
    """
    units = unit_rows(as_rows(target, "target"), "target")
    for (neighbors, beta), factor in factors.items():
        if np.shape(factor) != (len(units),) or not np.isfinite(factor).all():
            raise ValueError(
                f"density factors of K {neighbors} and beta {beta}: shape {np.shape(factor)}; expected {len(units)}"
                " finite values, one a sample"
            )
    excluded, alphas = options.self_distance == "excluded", options.grid.proximity_powers
    weights = np.stack([_weights(len(units), alpha, excluded) for alpha in alphas], axis=1)
    by_sample = np.stack(list(factors.values()), axis=1)
    by_column = options.density_side == "column"
    sums = _rank_sums(units, weights, by_sample if by_column else None, excluded, options.search.device, progress)
    if not by_column:
        sums = sums * by_sample[:, None, :]
    if options.aggregate == "mean":
        # One sample without itself has no weights and novelty 0.
        sums /= np.maximum(weights.sum(axis=0), np.finfo(np.float64).tiny)[:, None]
    results = {}
    for column, (neighbors, beta) in enumerate(factors):
        for row, alpha in enumerate(alphas):
            novelty = np.ascontiguousarray(sums[:, row, column])
            value = float(novelty.sum() if options.aggregate == "sum" else novelty.mean())
            results[Powers(neighbors, beta, alpha)] = NovelSumResult(value, novelty, options.aggregate)
    return results


def rank_weights(size: int, proximity_power: float) -> NDArray[np.float64]:
    """Return the proximity weights `r ** -proximity_power` of ranks 1 to `size`: float64, (size,).

    Raises:
        ValueError: for a negative power.
    """
    if not proximity_power >= 0:
        raise ValueError(f"proximity_power is {proximity_power}; it must be 0 or more")
    return np.arange(1, size + 1, dtype=np.float64) ** -proximity_power


def _weights(size: int, alpha: float, without_self: bool) -> NDArray[np.float64]:
    weights = rank_weights(size, alpha)
    if without_self:
        weights[-1] = 0  # The sample itself is ranked last.
    return weights


def _rank_sums(
    units: NDArray[np.float32],
    weights: NDArray[np.float64],
    columns: NDArray[np.float64] | None,
    without_self: bool,
    device: str,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return the weighted sums of each row's ranked distances: float64, (n, A, F), or (n, A, 1) without columns.

    Args:
        units: float32, (n, d), of length 1.
        weights: float64, (n, A), by rank.
        columns: float64, (n, F): what each sample's distances are scaled by before they are summed, not ranked.
        without_self: rank the sample itself last.
        device: "cpu", or a torch device.
        progress: called with rows done and n.
    """
    device, size = cuda_or_cpu(device), len(units)
    threads = usable_processors() if device == "cpu" else 1
    require_memory(
        memory_needed(size, units.shape[1], threads), f"NovelSum of {size:,} samples", "measure fewer samples"
    )
    job = _Job(units.astype(np.float64), half_squares(units), weights, columns, without_self)
    sums = np.empty((size, weights.shape[1], 1 if columns is None else columns.shape[1]))
    # Each row is ranked by one thread: the work is shared by rows, not by BLAS.
    values = _TILE_VALUES if device == "cpu" else _TILE_VALUES_ON_DEVICE
    tile = max(1, min(values // size, -(-size // threads)))
    work = job.on_cpu if device == "cpu" else job.on(device)
    done = 0
    with threadpool_limits(1 if threads > 1 else None, "blas"), ThreadPoolExecutor(threads) as pool:
        starts = range(0, size, tile)
        asked = starts, range(tile, size + tile, tile)
        # A new thread has no CUDA context: a device works in this one.
        parts = pool.map(work, *asked) if device == "cpu" else map(work, *asked)
        for start, found in zip(starts, parts, strict=True):
            sums[start : start + tile] = found
            done += len(found)
            progress(done, size)
    return sums


def memory_needed(n: int, d: int, threads: int) -> int:
    """Return the most bytes that NovelSum of n samples takes, in addition to their unit rows."""
    return 64 * n + 8 * n * d + threads * _TILE_BYTES * min(n * n, max(_TILE_VALUES, n))


def device_memory_needed(n: int, d: int) -> int:
    """Return the most bytes that NovelSum of n samples takes on a device."""
    return 8 * n * d + _DEVICE_BYTES * min(n * n, max(_TILE_VALUES_ON_DEVICE, n))


@dataclass(frozen=True)
class _Job:
    """The tiles of `_rank_sums`; `units` and their `halves` (`half_squares`) in float64."""

    units: NDArray[np.float64]
    halves: NDArray[np.float64]
    weights: NDArray[np.float64]
    columns: NDArray[np.float64] | None
    without_self: bool

    def on_cpu(self, start: int, stop: int) -> NDArray[np.float64]:
        distances = self.halves[start:stop, None] + self.halves
        distances -= self.units[start:stop] @ self.units.T
        if self.without_self:
            own = np.arange(len(distances))
            distances[own, start + own] = _BEYOND
        if self.columns is None:
            distances.sort(axis=1)
            return np.stack([_row_sums(distances, weights) for weights in self.weights.T], axis=1)[:, :, None]
        order = np.argsort(distances, axis=1, kind="stable")
        found = np.empty((len(distances), self.weights.shape[1], self.columns.shape[1]))
        weighted = np.empty_like(distances)
        for number, weights in enumerate(self.weights.T):
            np.put_along_axis(weighted, order, weights[None, :], axis=1)
            weighted *= distances
            for column, factors in enumerate(self.columns.T):
                found[:, number, column] = _row_sums(weighted, factors)
        return found

    def on(self, device: str) -> Callable[[int, int], NDArray[np.float64]]:
        """Return the same computation on a torch device, which keeps the rows.

        Raises:
            NotEnoughMemory: if the device has too little; so does the computation.
        """
        import torch

        needed, what = device_memory_needed(*self.units.shape), f"NovelSum of {len(self.units):,} samples"
        memory = DeviceMemory(torch_device(device), needed, what)
        with memory:
            units, halves, weights = (
                torch.from_numpy(values).to(device) for values in (self.units, self.halves, self.weights)
            )
            columns = None if self.columns is None else torch.from_numpy(self.columns).to(device)

        def sums(start: int, stop: int) -> NDArray[np.float64]:
            distances = torch.addmm(halves[start:stop, None] + halves, units[start:stop], units.T, alpha=-1)
            if self.without_self:
                own = torch.arange(len(distances), device=device)
                distances[own, start + own] = _BEYOND
            if columns is None:
                ranked = torch.sort(distances, dim=1).values
                return np.asarray((ranked @ weights).cpu().numpy())[:, :, None]
            order = torch.sort(distances, dim=1, stable=True).indices
            parts = []
            for number in range(weights.shape[1]):
                weighted = torch.empty_like(distances)
                weighted.scatter_(1, order, weights[:, number].expand_as(order))
                parts.append((weighted * distances) @ columns)
            return np.asarray(torch.stack(parts, dim=1).cpu().numpy())

        def work(start: int, stop: int) -> NDArray[np.float64]:
            with memory:
                return sums(start, stop)

        return work


def _row_sums(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted sum of each row: NumPy adds in the same order on every processor, BLAS does not."""
    return np.asarray((values * weights).sum(axis=1))
