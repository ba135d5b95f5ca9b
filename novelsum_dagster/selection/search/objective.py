"""The search for the sample that increases the picks' NovelSum most, exactly and over all candidates.

Belongs here: the increase, the state of picks and candidates, the search on the CPU and on a torch device. Does not:
the compiled sums (`objective_kernels`), exchanges of picks (`swaps`).

Of m picks S, `V(S) = sum_s a_s sum_r w_r b_(r) d_(r)(s)` over each pick's ascending row; NovelSum is `V / (m W)`, W the
sum of the weights. Measured by row, a is the density factor and b 1; by column, the other way round. When i joins,

    V(S + i) = V(S) + A_i + B_i
    A_i = a_i sum_r w_r b_(r) d_(r)(i)                                         its own row
    B_i = sum_s a_s (w_p b_i d(s, i) - sum_{r >= p} (w_r - w_{r+1}) b_(r) d_(r)(s))   what it does to those of the picks

where p is the rank that i takes in the row of s: all from there on move up by one. By row, each term of B is the least
of its tangents, continuous and concave in d(s, i), so ties of distances change nothing there; by column, i is ranked
after equal distances, as the last of the picks is in `novelsum`.

The increase of V is neither monotone nor submodular: NovelSum falls when a sample near others joins, and a sample may
gain by earlier picks. An earlier increase is not a bound of a later one, so lazy greedy is not possible. Instead, all
candidates are scored at every pick, from the distance of each to each pick and both ranks: 12 bytes, which one
pass of comparisons keeps up to date. That takes n k memory and n k^2 / 2 steps, and no approximation bound is claimed.

Distances and ranks are exact, in float64 (`unit_rows`): rounded to float32, different distances would tie, and by
column a tie that is broken differently changes the value. Sums are in a fixed order, that of the picks.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import DeviceMemory, torch_device
from novelsum_dagster.common.memory import available_memory, require_memory
from novelsum_dagster.diversity.novelsum import rank_weights
from novelsum_dagster.diversity.vectors import cosine_distances, half_squares
from novelsum_dagster.selection.picks import Found
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.search import objective_kernels as kernels
from novelsum_dagster.selection.search.base import Candidates, Search
from novelsum_dagster.selection.threads import Threads

_TILE_VALUES = 2**22
"""Number of distances held at a time outside of a search: 48 MiB with their ranks."""
_ALONE = 50_000
"""Below this number of distances, a single thread processes them."""
_PICKS_AT_ONCE = 2**24
"""Number of distances that a torch device processes at a time."""
_DEVICE_BYTES = 64
"""Bytes held on a torch device for each distance."""
_ROUNDING = 2.0**-50
"""Bound of the relative rounding error of a product and a sum in float64."""


def memory_needed(n: int, d: int, k: int) -> int:
    """Return the most bytes that a search takes on the CPU, in addition to the rows passed in."""
    return (8 + 2 * _rank_type(k).itemsize) * n * k + 20 * k * k + 4 * k * d + 64 * n


def device_memory_needed(n: int, d: int, k: int) -> int:
    """Return the bytes that a search takes on a device at most."""
    ranked = (8 + 2 * 4) * n * k + 8 * k * k + _DEVICE_BYTES * min(n * k, max(_PICKS_AT_ONCE, n))
    # The rows are sent in float32, and that copy is freed before ranks are held.
    return 8 * n * (d + 8) + max(4 * n * d, ranked)


class ObjectiveSearch(Search):
    """Every candidate's increase of NovelSum, at every pick.

    Args:
        candidates, weights: as for every search; the scoring of the candidates says which NovelSum.
        device: "cpu", or a torch device, where candidates are scored; the leading ones are scored again here.
        threads: on the CPU; None takes all cores that the process may use.

    Raises:
        ValueError: for a device that torch does not have.
        NotEnoughMemory: if the distances of all candidates to all picks would not fit.
    """

    def __init__(
        self, candidates: Candidates, weights: NDArray[np.float64], device: str = "cpu", threads: int | None = None
    ) -> None:
        super().__init__(candidates, weights)
        k, scoring = len(weights), candidates.scoring
        self._chosen = Chosen(k, self._rows.shape[1], scoring)
        own, other = sides(self._factor, scoring)
        self._columns: OnCpu | _OnDevice
        if device == "cpu":
            self._columns = OnCpu(self._rows, own, other, k, threads)
        else:
            self._columns = _OnDevice(self._rows, own, other, k, device)
        self._scores, self._errors = np.zeros((2, len(self._rows)))
        self._scored_at = 0

    def close(self) -> None:
        """End the threads and free the data of candidates; their last scores stay."""
        self._columns.close()

    def _take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        self._columns.join(row, self._chosen.append(row, factor))

    def _best(self) -> Found | None:
        open_ = np.flatnonzero(~self._blocked)
        if not len(open_):
            return None
        added, errors = self._columns.added(self._chosen)
        scores = self._chosen.increase(added)
        if errors is None:
            self._errors[:] = 0.0
        else:
            # Whatever could be best or second is scored again in the fixed order.
            self._errors = self._chosen.increase(added + errors) - scores + _ROUNDING * np.abs(scores)
            low, high = (scores + sign * self._errors for sign in (-1, 1))
            level = np.partition(low[open_], -2)[-2] if len(open_) > 1 else -np.inf
            leading = open_[high[open_] >= level]
            scores[leading] = self._chosen.scores(self._rows[leading], self._factor[leading])
            self._errors[leading] = 0.0
            open_ = leading
        self._scores, self._scored_at = scores, self.picked
        best = int(open_[scores[open_].argmax()])
        others = open_[open_ != best]
        if not len(others):
            return Found(best, float(scores[best]))
        second = int(others[scores[others].argmax()])
        return Found(best, float(scores[best]), second, float(scores[second]))

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        at = np.full(len(self._rows), self._scored_at)
        return self._scores + self._errors, at, self._errors == 0


class Chosen:
    """Up to k picks in order: their mutual distances and their NovelSum.

    Args:
        k: room for picks.
        dimensions: of their vectors.
        scoring: which NovelSum.
    """

    def __init__(self, k: int, dimensions: int, scoring: Scoring) -> None:
        weights = rank_weights(k + 2, scoring.proximity_power)
        excluded = scoring.self_distance == "excluded"
        self._norms = np.concatenate([[0.0] if excluded else [], np.cumsum(weights)]) * np.arange(1, k + 3 + excluded)
        self._scoring = scoring
        self.vectors = np.empty((k, dimensions), np.float32)
        self.rows = kernels.Rows(
            near=np.empty((k, k)),
            order=np.empty((k, k), np.int32),
            tails=np.empty((k, k + 1)),
            own=np.empty(k),
            other=np.empty(k),
            weights=weights[:-1] if excluded else weights[1:],
        )
        self.count, self.total = 0, 0.0

    @staticmethod
    def of(vectors: NDArray[np.float32], factors: NDArray[np.float64], scoring: Scoring) -> "Chosen":
        """Return picks by their unit rows, (m, d), and density factors, (m,)."""
        chosen = Chosen(len(vectors), vectors.shape[1], scoring)
        chosen.vectors[:] = vectors
        chosen.rows.own[:], chosen.rows.other[:] = sides(factors, scoring)
        chosen.count = len(vectors)
        chosen.total = float(kernels.fill(chosen.rows, cosine_distances(vectors, vectors)))
        return chosen

    def append(self, vector: NDArray[np.float32], factor: float) -> NDArray[np.float64]:
        """Add a pick by its unit row, (d,), and density factor; return its distances to the earlier ones, (m,)."""
        m = self.count
        distances = self._put(m, vector, factor)[:m]
        self.total = float(kernels.append(self.rows, m, distances))
        self.count += 1
        return distances

    def exchange(self, place: int, vector: NDArray[np.float32], factor: float) -> NDArray[np.float64]:
        """Put a sample in a pick's place; return its distances to the picks, 0 at its own place, (m,)."""
        distances = self._put(place, vector, factor)
        self.total = float(kernels.exchange(self.rows, self.count, place, distances))
        return distances

    def distances(self, place: int) -> NDArray[np.float64]:
        """Return the distances of a pick to all, (m,)."""
        return np.asarray(cosine_distances(self.vectors[place : place + 1], self.vectors[: self.count])[0])

    def novelsum(self) -> float:
        """Return NovelSum of the picks."""
        return self.mean(self.total, self.count)

    def increase(self, added: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the increase of NovelSum by a sample, given how much it adds to the sum of the rows."""
        return np.asarray((self.total + added) / self._norms[self.count] - self.novelsum())

    def scores(self, vectors: NDArray[np.float32], factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the increase of NovelSum by each of some samples, computed directly; bit for bit that of a search.

        Args:
            vectors: float32, (c, d), unit rows.
            factors: float64, (c,).
        """
        own, other = sides(factors, self._scoring)
        m, added = self.count, np.empty(len(vectors))
        size = max(1, _TILE_VALUES // m)
        for start in range(0, len(vectors), size):
            part = slice(start, start + size)
            distances = cosine_distances(self.vectors[:m], vectors[part])
            seen = _seen(distances, m)
            kernels.see(seen, self.rows, m)
            kernels.added(seen, self.rows, m, own[part], other[part], 0, distances.shape[1], added[part])
        return self.increase(added)

    def mean(self, total: float, count: int) -> float:
        """Return NovelSum of `count` samples whose rows have this sum."""
        norm = self._norms[count - 1] if count else 0.0
        # One pick without itself has no weights and NovelSum 0.
        return float(total / norm) if norm else 0.0

    def _put(self, place: int, vector: NDArray[np.float32], factor: float) -> NDArray[np.float64]:
        """Write a pick to its place; return its distances to all up to there, or to all that there are."""
        self.vectors[place] = vector
        (self.rows.own[place],), (self.rows.other[place],) = sides(np.array([factor]), self._scoring)
        several = self.vectors[: max(self.count, place + 1)]
        return np.asarray(cosine_distances(vector[None], several)[0])


class OnCpu:
    """The distances and ranks between candidates and picks in memory; threads share the candidates.

    Args:
        units: float32, (n, d), unit rows.
        own, other: float64, (n,), of `sides`.
        k: room for picks.
        threads: None takes all cores that the process may use.

    Raises:
        NotEnoughMemory: if it would not fit.
    """

    def __init__(
        self,
        units: NDArray[np.float32],
        own: NDArray[np.float64],
        other: NDArray[np.float64],
        k: int,
        threads: int | None = None,
    ) -> None:
        n, d = units.shape
        needed = memory_needed(n, d, k)
        fits = int(n * available_memory() / needed)
        require_memory(
            needed,
            f"NovelSelect of {k:,} out of {n:,} by density_side objective",
            f"about {fits:,} samples would fit; set selection.partitions, which selects in parts of the pool, or a"
            " lower k",
        )
        self._units, self._own, self._other = units, own, other
        # Pages that are never written take no memory.
        self._seen = _seen(np.empty((k, n)), k)
        self._tails = np.empty((0, 0))
        self._threads = Threads(threads)

    def join(self, vector: NDArray[np.float32], distances: NDArray[np.float64]) -> None:
        """Add a pick, (d,), with its distances to the m earlier ones, (m,)."""
        m, seen = len(distances), self._seen

        def part(marks: tuple[int, int]) -> None:
            lo, hi = marks
            kernels.distances_to(self._units, vector, lo, hi, seen.distance[m])
            kernels.join(seen, m, distances, lo, hi)

        self._side_by_side(part, m + 1)

    def added(self, chosen: Chosen) -> tuple[NDArray[np.float64], None]:
        """Return what each candidate adds to the sum of the picks' rows, exactly."""
        m, out = chosen.count, np.empty(len(self._units))

        def part(marks: tuple[int, int]) -> None:
            lo, hi = marks
            kernels.added(self._seen, chosen.rows, m, self._own, self._other, lo, hi, out)

        self._side_by_side(part, m)
        return out, None

    def added_without(self, chosen: Chosen, place: int) -> tuple[NDArray[np.float64], float]:
        """Return what each candidate would add without one pick, float64, (n,), and the sum without both."""
        m, out, rows = chosen.count, np.empty(len(self._units)), chosen.rows
        if self._tails.shape != rows.tails.shape:
            self._tails = np.empty(rows.tails.shape)
        distances = chosen.distances(place)
        total = kernels.tails_without(rows, m, place, self._tails)

        def part(marks: tuple[int, int]) -> None:
            lo, hi = marks
            kernels.added_without(
                self._seen, rows, m, place, self._tails, distances, self._own, self._other, lo, hi, out
            )

        self._side_by_side(part, m)
        return out, float(total)

    def exchange(
        self, place: int, vector: NDArray[np.float32], former: NDArray[np.float64], distances: NDArray[np.float64]
    ) -> None:
        """Replace the pick in a place by (d,); `former` and `distances`, (m,), are those of both to all picks."""
        m, seen = len(distances), self._seen

        def part(marks: tuple[int, int]) -> None:
            lo, hi = marks
            kernels.leave(seen, m, place, former, lo, hi)
            kernels.distances_to(self._units, vector, lo, hi, seen.distance[place])
            kernels.enter(seen, m, place, distances, lo, hi)

        self._side_by_side(part, m)

    def close(self) -> None:
        """End the threads and free the distances."""
        self._threads.close()
        self._seen = _seen(np.empty((0, 0)), 0)

    def _side_by_side(self, part: Callable[[tuple[int, int]], None], picks: int) -> None:
        """Call `part` with ranges of candidates that together cover all, one range a thread unless there are few."""
        n = len(self._units)
        self._threads.side_by_side(part, n, n * picks < _ALONE)


class _OnDevice:
    """As `OnCpu`, on a torch device: the same ranks, and sums in whatever order the device takes.

    Args:
        units, own, other, k: as of `OnCpu`.
        device: as torch names it.
    """

    def __init__(
        self,
        units: NDArray[np.float32],
        own: NDArray[np.float64],
        other: NDArray[np.float64],
        k: int,
        device: str,
    ) -> None:
        import torch

        self._torch, self._device = torch, torch_device(device)
        n, d = units.shape
        what = f"NovelSelect of {k:,} out of {n:,} by density_side objective"
        self._memory = DeviceMemory(self._device, device_memory_needed(n, d, k), what)
        with self._memory:
            self._units = torch.from_numpy(units).to(self._device).double()
            self._halves, self._own, self._other = (
                torch.from_numpy(values).to(self._device) for values in (half_squares(units), own, other)
            )
            self._distance = torch.empty((k, n), dtype=torch.float64, device=self._device)
            self._before, self._rank = torch.empty((2, k, n), dtype=torch.int32, device=self._device)

    def join(self, vector: NDArray[np.float32], distances: NDArray[np.float64]) -> None:
        """Add a pick, as `OnCpu.join` does."""
        torch, m = self._torch, len(distances)
        with self._memory:
            row = torch.from_numpy(vector).to(self._device).double()
            # All three terms are exact (`unit_rows`).
            new = (self._halves + row.square().sum() / 2) - self._units @ row
            self._distance[m] = new
            self._before[m], self._rank[m] = 0, 0
            apart = torch.from_numpy(distances).to(self._device)
            for picks in self._tiles(m):
                old, far = self._distance[picks], apart[picks, None]
                self._before[picks] += far <= old
                self._rank[picks] += new < old
                self._rank[m] += (old <= new).sum(0)
                self._before[m] += (far <= new).sum(0)

    def added(self, chosen: Chosen) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what each candidate adds, and how far that may be off."""
        torch, m, rows = self._torch, chosen.count, chosen.rows
        with self._memory:
            weights, pick_own, pick_other = (
                torch.from_numpy(values[:m]).to(self._device) for values in (rows.weights, rows.own, rows.other)
            )
            row, column, lost = torch.zeros((3, len(self._units)), dtype=torch.float64, device=self._device)
            for picks in self._tiles(m):
                far, before = self._distance[picks], self._before[picks].long()
                row += (weights[self._rank[picks].long()] * (pick_other[picks, None] * far)).sum(0)
                column += (weights[before] * (pick_own[picks, None] * far)).sum(0)
                tails = torch.from_numpy(rows.tails[picks, :m]).to(self._device)
                lost += tails.gather(1, before).sum(0)
            added = self._own * row + (self._other * column - lost)
            # Every term is positive, so the error of a sum of n terms is at most n roundings, here and on the CPU.
            errors = (2 * (m + 8) * _ROUNDING) * (self._own * row + self._other * column + lost)
            return added.cpu().numpy(), errors.cpu().numpy()

    def close(self) -> None:
        """Free the device's memory."""
        self._units = self._distance = self._before = self._rank = self._torch.empty(0)

    def _tiles(self, m: int) -> list[slice]:
        size = max(1, _PICKS_AT_ONCE // len(self._units))
        return [slice(start, min(start + size, m)) for start in range(0, m, size)]


def sides(factor: NDArray[np.float64], scoring: Scoring) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the factors of samples' rows and columns, (n,) each, given their density factors."""
    ones = np.ones(len(factor))
    return (factor, ones) if scoring.measured_side == "row" else (ones, factor)


def objective_trajectory(
    own: NDArray[np.float32],
    factor: float,
    picks: NDArray[np.float32],
    pick_factors: NDArray[np.float64],
    scoring: Scoring,
) -> NDArray[np.float64]:
    """Return by how much a sample would have increased NovelSum after every pick: float64, (k,).

    Args:
        own: float32, (1, d), the unit row of the sample.
        factor: its density factor.
        picks: float32, (k, d), unit rows of the picks in order.
        pick_factors: float64, (k,), their density factors.
        scoring: which NovelSum.
    """
    k = len(picks)
    chosen = Chosen(k, picks.shape[1], scoring)
    columns = OnCpu(own, *sides(np.array([factor]), scoring), k, 1)
    score = np.empty(k)
    for place, (row, one) in enumerate(zip(picks, pick_factors.tolist(), strict=True)):
        columns.join(row, chosen.append(row, one))
        score[place] = chosen.increase(columns.added(chosen)[0])[0]
    columns.close()
    return score


def _rank_type(k: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if k < 2**16 else np.uint32)


def _seen(distance: NDArray[np.float64], k: int) -> kernels.Seen:
    """Return the state of candidates at these distances to k picks, (k, n), with ranks still to be filled."""
    before, rank = (np.empty(distance.shape, _rank_type(k)) for _ in range(2))
    return kernels.Seen(distance, before, rank)
