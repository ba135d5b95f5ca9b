"""Measures that compare pairs of samples: DistSum L2, KNN distance, facility location.

Belongs here: those measures, a tile of pairs at a time. Does not: NovelSum, which ranks whole rows (`novelsum`).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.devices import DeviceMemory, cuda_or_cpu, torch_device
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import ExactSearch
from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.vectors import as_rows, distinct_rows, unit_rows

if TYPE_CHECKING:
    import torch

_TILE_VALUES = 2**24
"""Number of distances held at a time."""
_SEARCHED = 4096
"""Number of rows whose nearest neighbours are searched at a time."""


def distsum_l2(target: ArrayLike, *, device: str = "cpu", progress: Progress = no_progress) -> Measured:
    """Return DistSum L2: the mean Euclidean distance over all n^2 ordered pairs, a sample with itself among them.

    Rows are taken as given. Products are in float64; on another processor the value may differ by a relative 1e-9.
    (Paper, section 3.)

    Args:
        target: (n, d) embeddings.
        device: "cpu" (default), or a torch device that has float64, such as "cuda".
        progress: called with rows done and n.

    Raises:
        ValueError: for bad rows.
        NotEnoughMemory: if the device has too little.
    """
    rows = as_rows(target, "target")
    there = torch_device(cuda_or_cpu(device))
    with DeviceMemory(there, _distsum_memory_needed(*rows.shape), f"DistSum L2 of {len(rows):,} samples"):
        means = _mean_distances(rows, there, progress)
    value = float(means.mean())
    return Measured(value, 2 * (means - value))


def _distsum_memory_needed(n: int, d: int) -> int:
    """Return the bytes that DistSum L2 of n samples takes on a device at most."""
    # The rows in float64, and what is made of them: centred ones, then their squares. A tile, the next, what is added.
    return 2 * 8 * n * d + 2 * 8 * n + 3 * 8 * max(_TILE_VALUES // 2, n)


def _mean_distances(target: NDArray[np.float32], device: "torch.device", progress: Progress) -> NDArray[np.float64]:
    """Return the mean Euclidean distance of each row, (n, d), to all: float64, (n,)."""
    import torch

    rows = torch.from_numpy(target).to(device).double()
    # Distances stay, and what cancels in |x|^2 + |y|^2 - 2xy becomes small.
    rows = rows - rows.mean(dim=0)
    squares = (rows * rows).sum(dim=1)
    size = len(rows)
    means = np.empty(size)
    tile = max(1, _TILE_VALUES // (2 * size))
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        distances = torch.addmm(squares[start:stop, None] + squares, rows[start:stop], rows.T, alpha=-2)
        own = torch.arange(stop - start, device=device)
        distances[own, start + own] = 0
        means[start:stop] = distances.clamp_(min=0).sqrt_().mean(dim=1).cpu().numpy()
        progress(stop, size)
    return means


def knn_distance(
    target: ArrayLike, *, neighbor: int = 1, device: str = "cpu", progress: Progress = no_progress
) -> Measured:
    """Return the mean cosine distance of each sample to its k-th nearest other one; 0 for one sample.

    Distances are exact to float32 and the same on every processor and device. (Stasaski and Hearst, 2022; paper,
    section 3.)

    Args:
        target: (n, d) embeddings.
        neighbor: k, default 1; the farthest other sample if the set has fewer.
        device: "cpu" (default), or a torch device.
        progress: called with rows done and n.

    Raises:
        ValueError: for bad rows, or k below 1.
    """
    if neighbor < 1:
        raise ValueError(f"neighbor is {neighbor}; it must be 1 or more")
    units = unit_rows(as_rows(target, "target"), "target")
    # The sample itself, at distance 0, is the first; the k-th other one comes k places later.
    found = to_nearest(units, units, min(neighbor, len(units) - 1) + 1, device, progress)
    return Measured(float(found.mean()), found - found.mean())


def facility_location(
    target: ArrayLike, pool: ArrayLike | None = None, *, device: str = "cpu", progress: Progress = no_progress
) -> Measured:
    """Return the sum, over the pool, of the cosine distance to the nearest sample of the set.

    LOWER is better covered, so more diverse. The interval is over the pool's samples, of which there are m. Distances
    are exact to float32 and the same on every processor and device. (Farahani and Hekmatfar, 2009; paper, section 3.)

    Args:
        target: (n, d) embeddings of the set.
        pool: (m, d) embeddings; None takes the target, whose distance is 0.
        device: "cpu" (default), or a torch device.
        progress: called with rows of the pool done and m.

    Raises:
        ValueError: for bad rows, or unequal dimensions.
    """
    units = unit_rows(as_rows(target, "target"), "target")
    covered = units if pool is None else unit_rows(as_rows(pool, "pool"), "pool")
    if covered.shape[1] != units.shape[1]:
        raise ValueError(f"target has {units.shape[1]} dimensions, pool {covered.shape[1]}; embed both alike")
    found = to_nearest(covered, units, 1, device, progress)
    return Measured(float(found.sum()), len(found) * (found - found.mean()))


def to_nearest(
    rows: NDArray[np.float32],
    others: NDArray[np.float32],
    rank: int,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """Return the cosine distance of each unit row, (n, d), to the rank-th nearest of the others: float64, (n,)."""
    # Of others that repeat one is searched and all count, so that many equal rows cost no more than one.
    points, point_of = distinct_rows(others)
    copies = np.bincount(point_of)
    search = ExactSearch(points, device)
    found = np.empty(len(rows))
    for start in range(0, len(rows), _SEARCHED):
        squared, near = search.search(rows[start : start + _SEARCHED], min(rank, len(points)))
        place = (copies[near].cumsum(axis=1) >= rank).argmax(axis=1)
        found[start : start + _SEARCHED] = squared[np.arange(len(place)), place] / 2.0
        progress(min(start + _SEARCHED, len(rows)), len(rows))
    return found
