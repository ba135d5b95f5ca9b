"""The density factor: how densely the sample space is filled around a sample.

In a dense region a small distance means more, so the factor is large there; it is largest among near-duplicates.

Belongs here: K-nearest-neighbour distances, exact and by a tuned index, and the factor made of them. Does not:
distances between samples of a set (`novelsum`), what is done on a GPU (`density_torch`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.memory import available_memory, require_memory
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.common.spread import Spread, in_turn
from novelsum_dagster.diversity.vectors import distinct_rows, find_rows, searchable_rows
from novelsum_dagster.settings import NovelSum

if TYPE_CHECKING:
    from novelsum_dagster.diversity.density_torch import PointsOnDevice

NeighborPolicy = Literal["published", "self"]
DensityIndex = Literal["auto", "exact", "ivf"]

EXACT_REFERENCE = 50_000
"""Most distinct reference points for which `auto` searches exactly."""
EXACT_TARGETS = 20_000
"""Most samples for which `auto` searches exactly: building an index would take longer."""

_TILE = 4096
_BLOCK_VALUES = 2**24
"""Number of coordinates copied at a time: 64 MiB of float32."""
_PAIRS = 2**14
"""Number of pairs of rows whose exact distances a thread computes at a time."""
_PRODUCTS = 2**22
"""Number of products of rows and points held at a time, small enough for the processor's cache."""
_SPARE = 3
"""Extra candidates requested from FAISS, so that its rounding rarely makes the result uncertain (see `_Rounding`)."""
_EPSILON = 1e-9
"""Keeps the factor finite where K neighbours are at distance 0 (published code)."""
_SAMPLE = 1000
"""Queries that tune the index, and others that measure it."""
_TRAINED_ON = 40
"""Training points per list; FAISS requires 39."""
_TRAINING_ROUNDS = 8


@dataclass(frozen=True)
class Density:
    """Distances of n samples to their neighbours in a reference set of r distinct points.

    Attributes:
        mean_squared_distance: float64, (n,): mean squared L2 distance to the nearest reference points that count; 0
            if there are none.
        neighbors: the requested K.
        neighbors_used: the fewest neighbours that any sample's mean is taken over; under K if r is too small.
        reference_size: r.
        index: "exact", or the tuned index, as in "ivf, 2,500 lists, 12 probed".
        recall: part of the true neighbours that was found, at least `min_recall`; 1.0 for the exact search. Measured
            on another sample of queries than the one that the index is tuned on.
    """

    mean_squared_distance: NDArray[np.float64]
    neighbors: int
    neighbors_used: int
    reference_size: int
    index: str
    recall: float

    def factor(self, density_power: float = 0.5) -> NDArray[np.float64]:
        """Return the density factor `(q + 1e-9) ** -density_power`: float64, (n,); larger where space is denser.

        Raises:
            ValueError: for a negative power.
        """
        return density_factor(self.mean_squared_distance, density_power)


def density_factor(mean_squared_distance: NDArray[np.float64], density_power: float) -> NDArray[np.float64]:
    """Return `(mean_squared_distance + 1e-9) ** -density_power`, elementwise.

    For the default power, 0.5, the same on every processor; for others equal to a relative 1e-14.

    Raises:
        ValueError: for a negative power.
    """
    if not density_power >= 0:
        raise ValueError(f"density_power is {density_power}; it must be 0 or more")
    shifted = mean_squared_distance + _EPSILON
    if density_power == 0.5:
        # Square roots and quotients are rounded alike by every processor; other powers may differ in the last digit.
        return np.asarray(1 / np.sqrt(shifted), dtype=np.float64)
    return np.asarray(shifted**-density_power, dtype=np.float64)


@dataclass(frozen=True)
class Search:
    """How the neighbours of samples are searched; the fields are those arguments of `density`.

    Raises:
        ValueError: for an unknown policy or index, or a recall out of range.
    """

    neighbor_policy: NeighborPolicy = "published"
    index: DensityIndex = "auto"
    min_recall: float = 0.99
    seed: int = 42
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.min_recall <= 1:
            raise ValueError(f"min_recall is {self.min_recall}; it must be over 0 and at most 1")
        require_choice("neighbor_policy", self.neighbor_policy, NeighborPolicy)
        require_choice("index", self.index, DensityIndex)

    @classmethod
    def of(cls, settings: NovelSum, device: str = "cpu") -> "Search":
        """Return the search that the settings describe."""
        return cls(settings.neighbor_policy, settings.density_index, settings.min_recall, device=device)

    def tries_lists(self, targets: int, reference: int) -> bool:
        """Return whether the tuned index is tried for these numbers of samples; see `density`."""
        large = reference > EXACT_REFERENCE and targets > EXACT_TARGETS
        return self.min_recall < 1 and (self.index == "ivf" or (self.index == "auto" and large))


def require_choice(name: str, value: str, choices: Any) -> None:
    """Raise an error unless a value is among those of a `Literal`.

    Raises:
        ValueError: names the value and the choices.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


def density(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    neighbors: int = 10,
    neighbor_policy: NeighborPolicy = "published",
    index: DensityIndex = "auto",
    min_recall: float = 0.99,
    seed: int = 42,
    device: str = "cpu",
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> Density:
    """Search each target's nearest points in the reference.

    Exact duplicates are removed from the reference, so K neighbours are K distinct points. If it has fewer, all
    of them count. (Paper, section 4; UmeanNever/NovelSum.)

    Args:
        target: (n, d) embeddings, as given (not normalised here).
        reference: (r, d) embeddings; None takes the target.
        neighbors: K, default 10.
        neighbor_policy: which points count. "published" (default), as in the published code: K + 1 points are asked
            for and the first is dropped as the sample itself, whatever it is. "self": the point whose every
            coordinate equals the sample's is dropped; a sample that is not in the reference keeps its K nearest.
        index: "exact" compares with every point and gives the same result on every processor. "ivf" clusters the
            points into lists, looks into the nearest ones, and takes the exact search instead if too many lists
            would have to be looked into to save time; FAISS clusters in float32, so on another processor up to
            1 - `min_recall` of the neighbours may be others. "auto" (default) is "ivf" over 50,000 reference points
            and 20,000 targets, else "exact".
        min_recall: least part of the true neighbours that "ivf" must find, measured against the exact search on
            1,000 seeded queries that tune it and 1,000 others; default 0.99. Points as near as a true neighbour
            count as one. 1 takes the exact search.
        seed: of the sampled queries and the clustering, default 42.
        device: "cpu" (default), a torch device such as "cuda", or "auto" for CUDA if there is one, on which the
            exact search finds candidates; what it finds is the same, bit for bit. The index is on the CPU.
        spread: searches parts of the target; default: one after the other.
        progress: called with targets searched and n.

    Raises:
        ValueError: for bad rows, rows too long to square in float32, unequal dimensions, or a setting out of range.
        NotEnoughMemory: if the index would not fit, or the points on the device.
    """
    search = Search(neighbor_policy, index, min_recall, seed, device)
    return densities(target, reference, (neighbors,), search, spread=spread, progress=progress)[neighbors]


def densities(
    target: ArrayLike,
    reference: ArrayLike | None,
    neighbors: Sequence[int],
    options: Search,
    *,
    spread: Spread = in_turn,
    progress: Progress = no_progress,
) -> dict[int, Density]:
    """Return the density for several K, from one search for the largest; `recall` is that search's.

    Args:
        target, reference, spread, progress: as in `density`.
        neighbors: values of K.
        options: of the search.

    Raises:
        ValueError, NotEnoughMemory: as `density` does.
    """
    if not neighbors or min(neighbors) < 1:
        raise ValueError(f"neighbors is {', '.join(map(str, neighbors)) or 'empty'}; it must be 1 or more")
    most = max(neighbors)
    rows = searchable_rows(target, "target")
    given = rows if reference is None else searchable_rows(reference, "reference")
    if given.shape[1] != rows.shape[1]:
        raise ValueError(f"target has {rows.shape[1]} dimensions, reference {given.shape[1]}; embed both alike")
    approximate = options.tries_lists(len(rows), len(given))
    require_search_memory(given, most, approximate)
    points, point_of = distinct_rows(given)
    own = None
    if options.neighbor_policy == "self":
        own = point_of if reference is None else find_rows(rows, points)
    query = _Query(rows, own, most, min(most + 1, len(points)))
    exact = ExactSearch(points, options.device)
    search = _tuned_lists(query, exact, options.min_recall, options.seed) if approximate else None
    return _measured(query, search or exact, len(points), neighbors, spread, progress)


def search_memory_needed(size: int, dimensions: int, neighbors: int, approximate: bool, *, keeps: bool = False) -> int:
    """Return the most bytes that a search in `size` points takes, in addition to the reference passed in.

    Args:
        size, dimensions: of the reference.
        neighbors, approximate, keeps: as in `require_search_memory`.
    """
    copies = size
    if approximate:
        copies += size + _TRAINED_ON * _list_count(size)
    kept = 3 * 12 * (neighbors + 1 + _SPARE) if keeps else 0
    return copies * dimensions * 4 + (64 + kept) * size + _tile_bytes(dimensions, neighbors)


def index_bytes(size: int, dimensions: int) -> int:
    """Return the bytes of the tuned index of `size` points: themselves, their numbers, the centres of the lists."""
    return 4 * (size + _list_count(size)) * dimensions + 8 * size


def _tile_bytes(dimensions: int, neighbors: int) -> int:
    asked = neighbors + 1 + _SPARE
    rows = 2 * _TILE * dimensions  # Of the tile that is searched and of the next.
    return _TILE * asked * 32 + 4 * max(_BLOCK_VALUES, dimensions) + 4 * rows + 8 * _PRODUCTS


def require_search_memory(
    reference: NDArray[np.float32], neighbors: int, approximate: bool, *, keeps: bool = False
) -> None:
    """Raise an error if a search in a reference, (r, d), would not fit into memory.

    Args:
        reference: of the search.
        neighbors: K.
        approximate: whether the tuned index is tried.
        keeps: whether the neighbours found are kept, along with those of an earlier search.

    Raises:
        NotEnoughMemory: if it would not fit.
    """
    size, dimensions = reference.shape
    needed = search_memory_needed(size, dimensions, neighbors, approximate, keeps=keeps)
    tile = _tile_bytes(dimensions, neighbors)
    fits = max(0, int(size * (available_memory() - tile) / (needed - tile)))
    require_memory(
        needed,
        f"density against {size:,} points of {dimensions} dimensions",
        f"take a reference of at most {fits:,} points"
        + (', or the index "exact", which is slower and needs half of that' if approximate else ""),
    )


@dataclass(frozen=True)
class _Query:
    """A query: `rows`, (n, d), and their own points in the reference, or None if the first point is dropped."""

    rows: NDArray[np.float32]
    own: NDArray[np.int64] | None
    neighbors: int
    asked: int

    def part(self, chosen: NDArray[np.int64]) -> "_Query":
        own = None if self.own is None else self.own[chosen]
        return _Query(self.rows[chosen], own, self.neighbors, self.asked)

    def counted(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the points found, (n, asked), nearest first, count as neighbours."""
        if self.own is None:
            counts = np.ones(ids.shape, dtype=np.bool_)
            counts[:, :1] = False
            return counts
        counts = np.not_equal(ids, self.own[:, None])
        # If the sample itself is not among those found, one point too many was requested.
        counts[counts.all(axis=1), self.neighbors :] = False
        return counts


Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Squared distances, float32, ascending, and points, int64: both (n, asked)."""


class ExactSearch:
    """Finds the nearest of all points, (r, d), by distances summed in float64 and rounded to float32.

    The result depends on the rows and the points alone: not on the processor, the number of threads, the rounding of
    FAISS or a matrix product, or the other rows searched. Of points at one distance the first comes first.

    Args:
        points: of the search.
        device: as in `density`; it is opened when the search begins.
    """

    name = "exact"
    recall = 1.0

    def __init__(self, points: NDArray[np.float32], device: str = "cpu") -> None:
        self.points = points
        self._rounding = _Rounding(points.shape[1])
        self._device = device

    @cached_property
    def _all_squares(self) -> NDArray[np.float64]:
        return _squares(self.points)

    @cached_property
    def _there(self) -> "PointsOnDevice | None":
        device = cuda_or_cpu(self._device)
        if device == "cpu":
            return None
        from novelsum_dagster.diversity.density_torch import PointsOnDevice

        return PointsOnDevice(self.points, self._all_squares, device)

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the device itself.
        return {name: value for name, value in vars(self).items() if name != "_there"}

    def order(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.arange(len(rows))

    def search(self, rows: NDArray[np.float32], asked: int) -> Found:
        """Return the nearest points of rows, (n, d)."""
        candidates = min(asked + _SPARE, len(self.points))
        rough, near = self._candidates(rows, candidates)
        # They are found by |x|^2 + |y|^2 - 2xy, whose rounding error is larger than the distance of near-duplicates.
        squared = self.distances(rows, near)
        order = np.lexsort((near, squared), axis=-1)[:, :asked]
        squared, near = np.take_along_axis(squared, order, 1), np.take_along_axis(near, order, 1)
        if candidates < len(self.points):
            doubtful = np.flatnonzero(squared[:, -1] >= self._rounding.least_beyond(rough[:, -1], _squares(rows)))
            known = np.full((len(doubtful), asked), -1)
            limit = squared[doubtful, -1]
            squared[doubtful], near[doubtful] = self.nearer(
                rows[doubtful], limit, (np.full(known.shape, np.inf, dtype=np.float32), known)
            )
        return squared, near

    def _candidates(self, rows: NDArray[np.float32], count: int) -> Found:
        if self._there is not None:
            return self._there.nearest(rows, count)
        import faiss

        rough, near = faiss.knn(rows, self.points, count)
        return rough, near

    def nearer(
        self,
        rows: NDArray[np.float32],
        limit: NDArray[np.float32],
        known: Found,
        among: NDArray[np.int64] | None = None,
    ) -> Found:
        """Return the nearest of points that are known and of others that are at most `limit` away.

        Args:
            rows: (n, d).
            limit: squared distance, (n,).
            known: found before, -1 at an infinite distance if there is none.
            among: the points to look at, (m,), none of them known; None looks at all.
        """
        if not len(rows):
            return known
        if among is None:
            among = np.arange(len(self.points))
        squared, near = known[0].copy(), known[1].copy()
        lengths = self._rounding.shortened(self._all_squares[among])
        bound = self._rounding.bound(limit, _squares(rows))
        within = self._within if self._there is None else self._there.within
        for row, point in within(rows, bound, lengths, among):
            exact = _squared(rows, row, self.points, point)
            inside = exact <= limit[row]
            _insert(squared, near, row[inside], point[inside], exact[inside])
        return squared, near

    def _within(
        self,
        rows: NDArray[np.float32],
        bound: NDArray[np.float32],
        lengths: NDArray[np.float32],
        among: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield pairs as `PointsOnDevice.within` does."""
        tile = max(1, min(_PRODUCTS // len(rows), _BLOCK_VALUES // rows.shape[1]))
        for start in range(0, len(among), tile):
            part = slice(start, start + tile)
            rough = rows @ self.points[among[part]].T
            rough *= -2
            rough += lengths[part]
            row, place = np.nonzero(rough <= bound[:, None])
            yield row, among[part][place]

    def distances(self, rows: NDArray[np.float32], near: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the squared distances of each row, (n, d), to its points, (n, asked)."""
        row = np.repeat(np.arange(len(rows)), near.shape[1])
        return _squared(rows, row, self.points, near.ravel()).reshape(near.shape)


def _squared(
    rows: NDArray[np.float32], row: NDArray[np.int64], points: NDArray[np.float32], point: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the squared distances of pairs, (m,), summed in float64 and rounded once."""
    from novelsum_dagster.diversity.distance_kernels import squared_distances

    squared = np.empty(len(row), dtype=np.float32)

    def compute(start: int) -> None:
        part = slice(start, start + _PAIRS)
        squared_distances(rows, row[part], points, point[part], squared[part])

    with ThreadPoolExecutor(usable_processors()) as workers:
        list(workers.map(compute, range(0, len(row), _PAIRS)))
    return squared


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _insert(
    squared: NDArray[np.float32],
    near: NDArray[np.int64],
    row: NDArray[np.int64],
    point: NDArray[np.int64],
    distance: NDArray[np.float32],
) -> None:
    """Put points, (m,), into the lists of their rows, both (n, asked), in place; the farthest drop out."""
    changed = np.unique(row)
    asked = squared.shape[1]
    row = np.concatenate([np.repeat(changed, asked), row])
    point = np.concatenate([near[changed].ravel(), point])
    distance = np.concatenate([squared[changed].ravel(), distance])
    order = np.lexsort((point, distance, row))
    row = row[order]
    kept = order[np.arange(len(row)) - np.searchsorted(row, row) < asked]
    squared[changed] = distance[kept].reshape(-1, asked)
    near[changed] = point[kept].reshape(-1, asked)


class _Rounding:
    """Error bounds of distances that are computed in float32 from rows of `dimensions` coordinates.

    With u = 2^-24, a sum of d products in any order is off by at most d u times the sum of their sizes (and terms in
    u^2), so |x|^2 + |y|^2 - 2xy is off by less than c (|x| + |y|)^2, which is at most 2c (|x|^2 + |y|^2) and, with t
    the true squared distance, at most 2c (4 |x|^2 + t); the exact distance, rounded once, is off by less than c t.
    """

    def __init__(self, dimensions: int) -> None:
        self._c = (dimensions + 8) * 2.0**-24
        self._tiny = dimensions * 1e-37
        """Bound of the sum of numbers that underflow in float32."""

    def least_beyond(self, rough: NDArray[np.float32], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a lower bound, (n,), of the squared distance if FAISS or the device computed at least `rough`."""
        return rough.astype(np.float64) * (1 - 4 * self._c) - 9 * self._c * lengths - self._tiny

    def shortened(self, lengths: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return points' squared lengths, less all that rounding can add to -2xy plus them (see `bound`)."""
        return np.asarray(lengths * (1 - 2 * self._c), dtype=np.float32)

    def bound(self, limit: NDArray[np.float32], lengths: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return what -2xy plus the `shortened` length of y is at most where y is in the limit of x, (n,)."""
        wide = limit.astype(np.float64) * (1 + 2 * self._c) + self._tiny - lengths * (1 - 2 * self._c)
        return np.nextafter(wide.astype(np.float32), np.float32(np.inf))


class _Lists:
    """Looks only into the lists whose centres are nearest; `probed` of them, tuned by `_tuned_lists`."""

    def __init__(self, exact: ExactSearch, lists: int, seed: int) -> None:
        import faiss

        points = exact.points
        self._lists = lists
        self._exact = exact
        self._centres = faiss.IndexFlatL2(points.shape[1])
        self._index = faiss.IndexIVFFlat(self._centres, points.shape[1], lists)
        self._index.cp.niter = _TRAINING_ROUNDS
        self._index.cp.seed = seed % 2**31
        # A separate random stream: the queries that measure the index should not be those that it was trained on.
        chosen = np.random.default_rng([seed, 1]).permutation(len(points))[: _TRAINED_ON * lists]
        self._index.train(points[np.sort(chosen)])
        self._index.add(points)
        self.recall = 0.0

    @property
    def name(self) -> str:
        return f"ivf, {self._lists:,} lists, {self.probed:,} probed"

    @property
    def probed(self) -> int:
        return int(self._index.nprobe)

    @probed.setter
    def probed(self, value: int) -> None:
        self._index.nprobe = value

    def order(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """Order rows by list, so that the lists stay in the processor's cache."""
        _, nearest = self._centres.search(rows, 1)
        return np.argsort(nearest[:, 0], kind="stable")

    def search(self, rows: NDArray[np.float32], asked: int) -> Found:
        squared, ids = self._index.search(rows, asked)
        # Recomputed, so that a neighbour's distance is the same number as in the exact search.
        known = ids >= 0
        squared[known] = self._exact.distances(rows, np.where(known, ids, 0))[known]
        order = np.lexsort((ids, squared), axis=-1)
        squared, ids = np.take_along_axis(squared, order, 1), np.take_along_axis(ids, order, 1)
        # If the lists hold too few points, FAISS fills the remaining places with -1 and the largest float.
        short = np.flatnonzero(ids[:, -1] < 0)
        if len(short):
            squared[short], ids[short] = self._exact.search(rows[short], asked)
        return squared, ids


def _list_count(size: int) -> int:
    return min(int(4 * size**0.5), size // _TRAINED_ON)


def _tuned_lists(query: _Query, exact: ExactSearch, min_recall: float, seed: int) -> _Lists | None:
    """Return an index with at least the requested recall, or None if the exact search is not slower."""
    lists = _list_count(len(exact.points))
    # The exact search uses matrix products and compares about twenty times as many pairs per second.
    most = lists // 20
    if most == 0:
        return None
    index = _Lists(exact, lists, seed)
    chosen = np.random.default_rng(seed).permutation(len(query.rows))[: 2 * _SAMPLE]
    tuning, held_out = chosen[::2], chosen[1::2] if len(chosen) > 1 else chosen
    recalls = [_recall_of(query.part(part), exact) for part in (tuning, held_out)]
    probed = 1
    while probed <= most:
        index.probed = probed
        if recalls[0](index) >= min_recall:
            index.recall = recalls[1](index)
            if index.recall >= min_recall:
                return index
        probed += max(1, probed // 4)
    return None


def _recall_of(query: _Query, exact: ExactSearch) -> Callable[[_Lists], float]:
    """Return a function that measures an index: the part of the neighbours found that are as near as true ones."""
    squared, ids = exact.search(query.rows, query.asked)
    counts = query.counted(ids)
    farthest = np.where(counts, squared, 0).max(axis=1, keepdims=True)

    def recall(index: _Lists) -> float:
        found, found_ids = index.search(query.rows, query.asked)
        true = (found <= farthest) & query.counted(found_ids)
        return float(np.count_nonzero(true) / np.count_nonzero(counts))

    return recall


def _measured(
    query: _Query,
    search: ExactSearch | _Lists,
    reference_size: int,
    neighbors: Sequence[int],
    spread: Spread,
    progress: Progress,
) -> dict[int, Density]:
    size = len(query.rows)
    means = {k: np.empty(size) for k in neighbors}
    used = dict(zip(neighbors, neighbors, strict=True))
    order = search.order(query.rows)
    starts = range(0, size, _TILE)
    asks = (methodcaller("search", query.rows[order[start : start + _TILE]], query.asked) for start in starts)
    for start, (squared, ids) in zip(starts, spread(search, asks), strict=True):
        chosen = order[start : start + _TILE]
        counts = query.part(chosen).counted(ids)
        so_far = counts.cumsum(axis=1)
        for k, mean in means.items():
            nearest = counts & (so_far <= k)
            counted = nearest.sum(axis=1)
            mean[chosen] = np.where(nearest, squared, 0).astype(np.float64).sum(axis=1) / np.maximum(counted, 1)
            used[k] = min(used[k], int(counted.min()))
        progress(min(start + _TILE, size), size)
    return {k: Density(mean, k, used[k], reference_size, search.name, search.recall) for k, mean in means.items()}
