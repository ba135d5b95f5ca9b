"""The density factor: how densely the sample space is filled around a sample.

In a dense region a small distance means more, so the factor is large there; it is largest among near-duplicates.

Belongs here: K-nearest-neighbour distances, exact and by a tuned index, and the factor made of them. Does not:
distances between samples of a set (`novelsum`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.diversity.vectors import distinct_rows, find_rows, searchable_rows
from novelsum_dagster.memory import available_memory, require_memory
from novelsum_dagster.progress import Progress, no_progress

NeighborPolicy = Literal["published", "self"]
DensityIndex = Literal["auto", "exact", "ivf"]

EXACT_REFERENCE = 50_000
"""`auto` searches exactly up to so many distinct reference points."""
EXACT_TARGETS = 20_000
"""`auto` searches exactly for up to so many samples: building an index would take longer."""

_TILE = 4096
_BLOCK_VALUES = 2**24
"""Coordinate differences held at a time: 64 MiB of float32."""
_EPSILON = 1e-9
"""Keeps the factor finite where K neighbours are at distance 0 (published code)."""
_SAMPLE = 1000
"""Queries that tune the index, and others that measure it."""
_TRAINED_ON = 40
"""Training points a list; FAISS asks for 39."""
_TRAINING_ROUNDS = 8
_EQUAL = 1 + 1e-5
"""Distances within this factor count as equal: the exact search and the index round differently."""


@dataclass(frozen=True)
class Density:
    """Distances of n samples to their neighbours in a reference set of r distinct points.

    Attributes:
        mean_squared_distance: float64, (n,): mean squared L2 distance to the nearest reference points that count; 0
            where there are none.
        neighbors: K as asked for.
        neighbors_used: the fewest neighbours that any sample's mean is taken over; under K where r is too small.
        reference_size: r.
        index: "exact", or the tuned index, as in "ivf, 2,500 lists, 12 probed".
        recall: part of the true neighbours that was found, at least `min_recall`; 1.0 for the exact search. Measured
            on a sample of queries beside the one that the index is tuned on.
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

    Raises:
        ValueError: for a negative power.
    """
    if not density_power >= 0:
        raise ValueError(f"density_power is {density_power}; it must be 0 or more")
    return np.asarray((mean_squared_distance + _EPSILON) ** -density_power, dtype=np.float64)


def density(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    neighbors: int = 10,
    neighbor_policy: NeighborPolicy = "published",
    index: DensityIndex = "auto",
    min_recall: float = 0.99,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Density:
    """Search each target's nearest points in the reference.

    Exact duplicates are taken out of the reference, so K neighbours are K distinct points. Where it has too few of
    them, all that there are count. (Paper, section 4; UmeanNever/NovelSum.)

    Args:
        target: (n, d) embeddings, as given (not normalised here).
        reference: (r, d) embeddings; None takes the target.
        neighbors: K, default 10.
        neighbor_policy: which points count. "published" (default), as in the published code: K + 1 points are asked
            for and the first is dropped as the sample itself, whatever it is. "self": the point whose every
            coordinate equals the sample's is dropped; a sample that is not in the reference keeps its K nearest.
        index: "exact" compares with every point. "ivf" clusters the points into lists, looks into the nearest ones,
            and takes the exact search instead where too many lists would have to be looked into to save time.
            "auto" (default) is "ivf" over 50,000 reference points and 20,000 targets, else "exact".
        min_recall: least part of the true neighbours that "ivf" must find, measured against the exact search on
            1,000 seeded queries that tune it and 1,000 others; default 0.99. Points as near as a true neighbour
            count as one. 1 takes the exact search.
        seed: of the sampled queries and the clustering, default 42.
        progress: called with targets searched and n.

    Raises:
        ValueError: for bad rows, rows too long to square in float32, unequal dimensions, or a setting out of range.
        NotEnoughMemory: where the index would not fit.
    """
    found = densities(
        target,
        reference,
        neighbors=(neighbors,),
        neighbor_policy=neighbor_policy,
        index=index,
        min_recall=min_recall,
        seed=seed,
        progress=progress,
    )
    return found[neighbors]


def densities(
    target: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    neighbors: Sequence[int],
    neighbor_policy: NeighborPolicy = "published",
    index: DensityIndex = "auto",
    min_recall: float = 0.99,
    seed: int = 42,
    progress: Progress = no_progress,
) -> dict[int, Density]:
    """Return the density for several K, from one search for the largest; `recall` is that search's.

    Args:
        target, reference, neighbor_policy, index, min_recall, seed, progress: as in `density`.
        neighbors: values of K.

    Raises:
        ValueError, NotEnoughMemory: as `density` does.
    """
    _check_settings(neighbors, neighbor_policy, index, min_recall)
    most = max(neighbors)
    rows = searchable_rows(target, "target")
    given = rows if reference is None else searchable_rows(reference, "reference")
    if given.shape[1] != rows.shape[1]:
        raise ValueError(f"target has {rows.shape[1]} dimensions, reference {given.shape[1]}; embed both alike")
    large = len(given) > EXACT_REFERENCE and len(rows) > EXACT_TARGETS
    approximate = min_recall < 1 and (index == "ivf" or (index == "auto" and large))
    _require_memory(given, most, approximate)
    points, point_of = distinct_rows(given)
    own = None
    if neighbor_policy == "self":
        own = point_of if reference is None else find_rows(rows, points)
    query = _Query(rows, own, most, min(most + 1, len(points)))
    search = _tuned_lists(query, points, min_recall, seed) if approximate else None
    return _measured(query, search or _Exact(points), len(points), neighbors, progress)


def _check_settings(neighbors: Sequence[int], neighbor_policy: str, index: str, min_recall: float) -> None:
    if not neighbors or min(neighbors) < 1:
        raise ValueError(f"neighbors is {', '.join(map(str, neighbors)) or 'empty'}; it must be 1 or more")
    if not 0 < min_recall <= 1:
        raise ValueError(f"min_recall is {min_recall}; it must be over 0 and at most 1")
    for name, value, known in (
        ("neighbor_policy", neighbor_policy, get_args(NeighborPolicy)),
        ("index", index, get_args(DensityIndex)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _require_memory(reference: NDArray[np.float32], neighbors: int, approximate: bool) -> None:
    size, dimensions = reference.shape
    copies = size
    if approximate:
        copies += size + _TRAINED_ON * _list_count(size)
    tile = _TILE * (neighbors + 1) * 32 + 2 * max(_BLOCK_VALUES, (neighbors + 1) * dimensions) * 4
    needed = copies * dimensions * 4 + 64 * size + tile
    fits = max(0, int(size * (available_memory() - tile) / (needed - tile)))
    require_memory(
        needed,
        f"density against {size:,} points of {dimensions} dimensions",
        f"take a reference of at most {fits:,} points"
        + (', or the index "exact", which is slower and needs half of that' if approximate else ""),
    )


@dataclass(frozen=True)
class _Query:
    """What is asked: `rows`, (n, d); their own points in the reference, or None where the first is dropped."""

    rows: NDArray[np.float32]
    own: NDArray[np.int64] | None
    neighbors: int
    asked: int

    def part(self, chosen: NDArray[np.int64]) -> "_Query":
        own = None if self.own is None else self.own[chosen]
        return _Query(self.rows[chosen], own, self.neighbors, self.asked)

    def counted(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of the points found, (n, asked), nearest first, count as neighbours."""
        if self.own is None:
            counts = np.ones(ids.shape, dtype=np.bool_)
            counts[:, :1] = False
            return counts
        counts = np.not_equal(ids, self.own[:, None])
        # Where the sample itself is not among those found, one was asked for too many.
        counts[counts.all(axis=1), self.neighbors :] = False
        return counts


_Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Squared distances, float32, ascending, and points, int64: both (n, asked)."""


class _Exact:
    """Compares every row with every point."""

    name = "exact"
    recall = 1.0

    def __init__(self, points: NDArray[np.float32]) -> None:
        self._points = points

    def order(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.arange(len(rows))

    def search(self, rows: NDArray[np.float32], asked: int) -> _Found:
        import faiss

        _, ids = faiss.knn(rows, self._points, asked)
        # FAISS finds them by |x|^2 + |y|^2 - 2xy, whose rounding error is larger than the distance of near-duplicates.
        squared = self._squared(rows, ids)
        order = np.argsort(squared, axis=1, kind="stable")
        return np.take_along_axis(squared, order, 1), np.take_along_axis(ids, order, 1)

    def _squared(self, rows: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        squared = np.empty(ids.shape, dtype=np.float32)
        block = max(1, _BLOCK_VALUES // (ids.shape[1] * rows.shape[1]))
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            differences = self._points[ids[part]]
            differences -= rows[part, None]
            np.einsum("ijk,ijk->ij", differences, differences, out=squared[part])
        return squared


class _Lists:
    """Looks only into the lists whose centres are nearest; `probed` of them, tuned by `_tuned_lists`."""

    def __init__(self, points: NDArray[np.float32], lists: int, seed: int) -> None:
        import faiss

        self._lists = lists
        self._exact = _Exact(points)
        self._centres = faiss.IndexFlatL2(points.shape[1])
        self._index = faiss.IndexIVFFlat(self._centres, points.shape[1], lists)
        self._index.cp.niter = _TRAINING_ROUNDS
        self._index.cp.seed = seed % 2**31
        # A stream of its own: queries that measure the index should not be those that it was trained on.
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
        """Put rows of one list side by side: their lists then stay in the processor's cache."""
        _, nearest = self._centres.search(rows, 1)
        return np.argsort(nearest[:, 0], kind="stable")

    def search(self, rows: NDArray[np.float32], asked: int) -> _Found:
        squared, ids = self._index.search(rows, asked)
        # Lists with too few points leave places that FAISS fills with -1 and the largest float.
        short = np.flatnonzero(ids[:, -1] < 0)
        if len(short):
            squared[short], ids[short] = self._exact.search(rows[short], asked)
        return squared, ids


def _list_count(size: int) -> int:
    return min(int(4 * size**0.5), size // _TRAINED_ON)


def _tuned_lists(query: _Query, points: NDArray[np.float32], min_recall: float, seed: int) -> _Lists | None:
    """Return an index of at least the recall asked for, or None where the exact search is no slower."""
    lists = _list_count(len(points))
    # The exact search compares some twenty times as many pairs a second, as matrix products.
    most = lists // 20
    if most == 0:
        return None
    index = _Lists(points, lists, seed)
    chosen = np.random.default_rng(seed).permutation(len(query.rows))[: 2 * _SAMPLE]
    tuning, held_out = chosen[::2], chosen[1::2] if len(chosen) > 1 else chosen
    recalls = [_recall_of(query.part(part), _Exact(points)) for part in (tuning, held_out)]
    probed = 1
    while probed <= most:
        index.probed = probed
        if recalls[0](index) >= min_recall:
            index.recall = recalls[1](index)
            if index.recall >= min_recall:
                return index
        probed += max(1, probed // 4)
    return None


def _recall_of(query: _Query, exact: _Exact) -> Callable[[_Lists], float]:
    """Return a function that measures an index: the part of the neighbours found that are as near as true ones."""
    squared, ids = exact.search(query.rows, query.asked)
    counts = query.counted(ids)
    farthest = np.where(counts, squared, 0).max(axis=1, keepdims=True) * np.float32(_EQUAL)

    def recall(index: _Lists) -> float:
        found, found_ids = index.search(query.rows, query.asked)
        true = (found <= farthest) & query.counted(found_ids)
        return float(np.count_nonzero(true) / np.count_nonzero(counts))

    return recall


def _measured(
    query: _Query, search: _Exact | _Lists, reference_size: int, neighbors: Sequence[int], progress: Progress
) -> dict[int, Density]:
    size = len(query.rows)
    means = {k: np.empty(size) for k in neighbors}
    used = dict(zip(neighbors, neighbors, strict=True))
    order = search.order(query.rows)
    for start in range(0, size, _TILE):
        chosen = order[start : start + _TILE]
        part = query.part(chosen)
        squared, ids = search.search(part.rows, part.asked)
        counts = part.counted(ids)
        so_far = counts.cumsum(axis=1)
        for k, mean in means.items():
            nearest = counts & (so_far <= k)
            counted = nearest.sum(axis=1)
            mean[chosen] = np.where(nearest, squared, 0).sum(axis=1, dtype=np.float64) / np.maximum(counted, 1)
            used[k] = min(used[k], int(counted.min()))
        progress(min(start + _TILE, size), size)
    return {k: Density(mean, k, used[k], reference_size, search.name, search.recall) for k, mean in means.items()}
