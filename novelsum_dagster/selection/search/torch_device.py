"""The search for the next pick on a GPU: few candidates are kept up to date, the others catch up together.

Belongs here: NovelSelect's bounds and exact scores in torch. Does not: what the bounds are and why they hold
(`search.cpu_kernels`).

A pick appends its distance to the bound of every candidate. Computed pick by pick, that reads all rows each time. So
only the candidates of the highest bounds, the near ones, take in every pick at once; a bound of the others is raised
by the largest possible distance, which needs no row. If one of them then reaches the level of the second best, or after
`_PENDING` picks, all others catch up in one matrix product, and the near ones are chosen again. After `_PENDING` picks
the new distances are merged into all summaries, too.

Candidates whose bounds reach the level are summarised at once, and scored in float64 if they still do. A pick waits for
the device about once: for the first scores, and again where more candidates reach the level.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import DeviceMemory, torch_device
from novelsum_dagster.selection.picks import Found
from novelsum_dagster.selection.search.base import Candidates, Round, Search, bin_edges, cosine_slack

if TYPE_CHECKING:
    import torch

_PENDING = 256
"""Number of picks between two merges into all summaries."""
_TILE = 2**15
"""Number of candidates that catch up or are merged at once."""
_NEAR = 1 / 16
"""Fraction of the candidates that are updated at every pick."""
_FIRST_LOOK = 256
"""Number of candidates first summarised for a pick; it is multiplied by four while the level requires more."""
_BATCH = 8
"""Number of candidates scored exactly before the level is updated."""
_UP = 1.0 + 2.0**-20
"""Factor that covers the rounding error of the float32 sums and products of a bound."""
_SCORE_UP = 1.0 + 2.0**-40
"""Factor that covers the rounding error of an exact score in float64, as the score becomes a bound."""
_TWINS = 1e-9
"""Bound of the relative difference of the scores of equal rows, however a matrix product rounds."""
_WORKING_VALUES = 12
"""Number of 8-byte values held for each distance or bin of a tile."""


def device_memory_needed(n: int, d: int, k: int) -> int:
    """Return the bytes that a search takes on the device at most."""
    values = len(bin_edges(k)) + _PENDING
    near = _near_count(n)
    return (
        n * (4 * d + 4 * values + 8 * 12)
        + near * (4 * d + 8 * 6)
        + 8 * k * (d + 4)
        + min(n, _TILE) * values * 8 * _WORKING_VALUES
        + 8 * _BATCH * (d + 4 * k)
    )


def _near_count(n: int) -> int:
    return min(n, max(_FIRST_LOOK, int(n * _NEAR)))


@dataclass(frozen=True)
class _Near:
    """The candidates that are updated at every pick: places, (s,), and their rows, (s, d), contiguous."""

    places: "torch.Tensor"
    x: "torch.Tensor"


class TorchSearch(Search):
    """Bounds on a device.

    Args:
        candidates, weights: as for every search.
        device: as torch names it.

    Raises:
        ValueError: for a device that torch does not have.
        NotEnoughMemory: if the device has too little, here or later.
    """

    def __init__(self, candidates: Candidates, weights: NDArray[np.float64], device: str) -> None:
        import torch

        super().__init__(candidates, weights)
        n, d = candidates.rows.shape
        k = len(weights)
        self._torch, self._device = torch, torch_device(device)
        self._memory = DeviceMemory(self._device, device_memory_needed(n, d, k), f"NovelSelect of {k:,} out of {n:,}")
        # Rounded to TF32, a cosine would be off by more than the bounds allow for.
        torch.set_float32_matmul_precision("highest")
        with self._memory:
            self._allocate(k)

    def _allocate(self, k: int) -> None:
        """Allocate the state on the device."""
        import torch

        to = self._device
        n, d = self._rows.shape
        self._x = torch.from_numpy(self._rows).to(to)
        self._f = torch.from_numpy(self._factor).to(to)
        self._q = torch.from_numpy(self._quality).to(to)
        self._w = torch.from_numpy(self._weights).to(to)
        self._sw = torch.cat([torch.zeros(1, dtype=torch.float64, device=to), self._w.cumsum(0)])
        self._slack = cosine_slack(d)
        self._edges = bin_edges(k)
        self._edges_there = torch.from_numpy(self._edges).to(to)
        self._summary = torch.zeros((n, len(self._edges) - 1), dtype=torch.float32, device=to)
        self._new = torch.empty((n, _PENDING), dtype=torch.float32, device=to)
        self._bound = torch.zeros(n, dtype=torch.float64, device=to)
        self._exact_at = torch.full((n,), -1, dtype=torch.int64, device=to)
        self._barred = torch.zeros(n, dtype=torch.bool, device=to)
        # Exact scores need float64, and need only the rows picked.
        self._picked_x = torch.empty((k, d), dtype=torch.float64, device=to)
        self._picked_half = torch.empty(k, dtype=torch.float64, device=to)
        self._picked_f = torch.empty_like(self._picked_half)
        self._merged = 0
        """Number of picks that are merged into all summaries."""
        self._caught_up = 0
        """Number of picks that the bounds of all candidates include."""
        self._near: _Near | None = None
        self._ahead = 0.0, 0.0
        """Sums of weights, and of weights times factors, over the picks that only the near candidates include."""
        self._nobody = torch.full((1,), -torch.inf, dtype=torch.float64, device=to)
        self._sums: dict[int, float] = {}
        """The exact scores of one pick, without quality."""

    def close(self) -> None:
        """Free the device's memory; the last scores of the candidates stay."""
        self._x = self._new = self._summary = self._picked_x = self._torch.empty(0)
        if self._near is not None:
            self._near = _Near(self._near.places, self._x)

    def take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        """Append a pick, as every search does."""
        with self._memory:
            super().take(row, factor, own)

    def best(self) -> Found | None:
        """Return the best two, as every search does."""
        with self._memory:
            return super().best()

    def allow(self, allowed: NDArray[np.bool_]) -> None:
        """Look only at candidates that are allowed, bool, (n,); picks never are."""
        super().allow(allowed)
        self._barred.copy_(self._torch.from_numpy(self._blocked))

    def _take(self, row: NDArray[np.float32], factor: float, own: int) -> None:
        m = self.picked
        self._picked_x[m] = self._torch.from_numpy(row).to(self._device) if own < 0 else self._x[own]
        self._picked_half[m] = self._picked_x[m].square().sum() / 2
        # Assigned numbers would be copied to the device, with a synchronisation; `fill_` needs none.
        self._picked_f[m : m + 1].fill_(factor)
        if own >= 0:
            self._barred[own : own + 1].fill_(True)
        weight = float(self._weights[m])
        self._ahead = self._ahead[0] + weight, self._ahead[1] + weight * float(factor)
        if self._near is not None:
            places = self._near.places
            distance = self._distances(self._near.x, self._f[places], slice(m, m + 1))[:, 0]
            self._new[places, m - self._merged] = distance
            self._bound.index_add_(0, places, distance.double(), alpha=weight)
        if m + 1 - self._merged == _PENDING:
            self._catch_up(m + 1)
            self._merge_all(m + 1)

    def _best(self) -> Found | None:
        found = self._best_of_near()
        if found is None:
            self._catch_up(self.picked)
            value = (self._bound * self._q).masked_fill_(self._barred, -self._torch.inf)
            self._near = None
            places = value.topk(_near_count(len(value)), sorted=False).indices
            self._near = _Near(places, self._x[places])
            round_ = Round()
            self._look(value, None, round_, self._nobody)
            found = round_.found()
        return found

    def _best_of_near(self) -> Found | None:
        """Return the best two if they are certainly among the near candidates."""
        if self._near is None:
            return None
        places = self._near.places
        weight, weighted = self._ahead
        # No cosine is below -1, so no pick since then added more than this.
        most = 2 + self._slack
        others = (self._bound + (most * weight * self._f + most * weighted) * _UP) * self._q
        others.index_fill_(0, places, -self._torch.inf)
        others.masked_fill_(self._barred, -self._torch.inf)
        value = (self._bound[places] * self._q[places]).masked_fill_(self._barred[places], -self._torch.inf)
        round_ = Round()
        highest = self._look(value, places, round_, others.max()[None])
        return round_.found() if highest < round_.level else None

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        at = np.full(len(self._rows), self._caught_up)
        if self._near is not None:
            at[self._near.places.cpu().numpy()] = self.picked
        return (self._bound * self._q).cpu().numpy(), at, self._exact_at.cpu().numpy() == at

    def _look(
        self,
        value: "torch.Tensor",
        places: "torch.Tensor | None",
        round_: Round,
        others: "torch.Tensor",
    ) -> float:
        """Score all candidates that could be best or second; return `others`.

        Args:
            value: bounds times quality, (c,), -inf for those that may not be picked, and then for those scored.
            places: theirs, (c,); None if they are all.
            round_: collects the scores.
            others: one value, (1,), fetched on the way.
        """
        self._sums.clear()
        look_at = _FIRST_LOOK
        while True:
            highest = value.topk(min(look_at, len(value)))
            chosen = highest.indices
            # Of equal values, a larger topk may put others first.
            value.index_fill_(0, chosen, -self._torch.inf)
            last, fetched = self._score(chosen if places is None else places[chosen], highest.values, round_, others)
            if last < round_.level or last == -np.inf:
                return fetched
            look_at *= 4

    def _score(
        self, candidates: "torch.Tensor", value: "torch.Tensor", round_: Round, others: "torch.Tensor"
    ) -> tuple[float, float]:
        """Lower the bounds of candidates by their summaries, and score those that still reach the level.

        Returns:
            The last of the values given, which fall, and `others`.
        """
        torch = self._torch
        bound, _ = self._merged_with_new(candidates, self.picked)
        bound = torch.minimum(self._bound[candidates], bound)
        self._bound[candidates] = bound
        lowered = (bound * self._q[candidates]).masked_fill_(value == -torch.inf, -torch.inf)
        lowered, order = lowered.sort(descending=True, stable=True)
        candidates = candidates[order]
        # One synchronisation for all values; numbers of candidates are exact in float64.
        parts = [others, value[-1:], self._exact(candidates[:_BATCH]), lowered, candidates.double()]
        fetched = np.split(torch.cat(parts).cpu().numpy(), np.cumsum([len(part) for part in parts[:-1]]))
        (beyond,), (last,), scores, values = fetched[:4]
        numbers, size = fetched[4].astype(np.int64), len(candidates)
        for start in range(0, size, _BATCH):
            batch = slice(start, start + _BATCH)
            reaching = int(np.count_nonzero((values[batch] >= round_.level) & (values[batch] > -np.inf)))
            if not reaching:
                break
            if start:
                scores = self._exact(candidates[batch]).cpu().numpy()
            self._take_scores(numbers[batch][:reaching], scores[:reaching], round_)
        return float(last), float(beyond)

    def _take_scores(self, indices: NDArray[np.int64], sums: NDArray[np.float64], round_: Round) -> None:
        """Give equal rows equal scores, and add them to the round."""
        for place, (index, score) in enumerate(zip(indices.tolist(), sums.tolist(), strict=True)):
            for other, known in self._sums.items():
                if abs(known - score) <= _TWINS * abs(score) and self._are_twins(index, other):
                    sums[place] = known
                    break
            self._sums[index] = float(sums[place])
        round_.take(indices, sums * self._quality[indices])

    def _are_twins(self, one: int, other: int) -> bool:
        return bool(self._factor[one] == self._factor[other] and np.array_equal(self._rows[one], self._rows[other]))

    def _exact(self, candidates: "torch.Tensor") -> "torch.Tensor":
        """Return the scores of up to `_BATCH` candidates, (c,), which become their bounds."""
        m, size = self.picked, len(candidates)
        # Always the same number of rows, so that the matrix product is always computed in the same way.
        filled = candidates[self._torch.arange(_BATCH, device=self._device) % size]
        x = self._x[filled].double()
        # All three terms are exact (`unit_rows`).
        far = (x.square().sum(dim=1, keepdim=True) / 2 + self._picked_half[:m]) - x @ self._picked_x[:m].T
        distance = (far * (self._f[filled, None] + self._picked_f[:m])).float()
        score: torch.Tensor = distance.sort(dim=1).values.double() @ self._w[:m]
        self._bound[candidates] = score[:size] * _SCORE_UP
        self._exact_at.index_fill_(0, candidates, m)
        return score[:size]

    def _distances(self, x: "torch.Tensor", f: "torch.Tensor", picks: slice) -> "torch.Tensor":
        """Return upper bounds of the distances of rows, (a, d), to picks: float32, (a, picks)."""
        to = self._picked_x[picks].float()
        cosine = x.mv(to[0])[:, None] if len(to) == 1 else x @ to.T
        far = (1 + self._slack - cosine.double()).clamp_(min=0)
        return (far * (f[:, None] + self._picked_f[picks])).float() * _UP

    def _catch_up(self, now: int) -> None:
        """Update the bounds of the candidates that are not near by the picks that they lack."""
        since = slice(self._caught_up, now)
        if since.start == since.stop:
            return
        grown = self._torch.empty_like(self._bound)
        for start in range(0, len(self._rows), _TILE):
            part = slice(start, start + _TILE)
            distance = self._distances(self._x[part], self._f[part], since)
            self._new[part, since.start - self._merged : now - self._merged] = distance
            grown[part] = distance.double() @ self._w[since]
        if self._near is not None:
            grown.index_fill_(0, self._near.places, 0)
        self._bound += grown
        self._caught_up, self._ahead = now, (0.0, 0.0)

    def _merge_all(self, now: int) -> None:
        for start in range(0, len(self._rows), _TILE):
            tile = self._torch.arange(start, min(start + _TILE, len(self._rows)), device=self._device)
            bound, means = self._merged_with_new(tile, now)
            self._bound[tile] = self._torch.minimum(self._bound[tile], bound)
            self._summary[tile, : means.shape[1]] = means
        self._merged = now

    def _merged_with_new(self, candidates: "torch.Tensor", now: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return bounds and means of bins over all picks, (c,) and (c, bins), from summaries and later picks."""
        import torch

        widths, new = self._edges_up_to(self._merged).diff(), self._new[candidates, : now - self._merged]
        values, order = torch.cat([self._summary[candidates, : len(widths)], new], dim=1).sort(dim=1)
        values = values.double()
        counts = torch.cat([widths, widths.new_ones(new.shape[1])])[order]
        ends = counts.cumsum(1)
        bound = (values * (self._sw[ends] - self._sw[ends - counts])).sum(1) * _UP
        # The sum of the distances up to a rank grows evenly within a bin; differences at the edges give the new bins.
        edges = self._edges_up_to(now)
        sums = (values * counts).cumsum(1)
        within = torch.searchsorted(ends, edges[1:].expand(len(candidates), -1).contiguous())
        up_to = sums.gather(1, within) - (ends.gather(1, within) - edges[1:]) * values.gather(1, within)
        means = up_to.diff(dim=1, prepend=torch.zeros_like(up_to[:, :1])) / edges.diff()
        return bound, means.float() * _UP

    def _edges_up_to(self, now: int) -> "torch.Tensor":
        """Return the edges of bins that `now` picks fill, the last one at most in part."""
        return self._edges_there[: int(np.searchsorted(self._edges, now)) + 1].clamp(max=now)
