"""The search for the next pick on a GPU: every pick updates every candidate, as a GPU does best.

Belongs here: NovelSelect's bounds and exact scores in torch. Does not: what the bounds are and why they hold
(`search_kernels`).

A pick appends its distances to all bounds in one pass over the rows. Every `_PENDING` picks all summaries take them
in. Candidates whose bounds reach the level of the second best are summarised at once, and scored in float64 if they
still do.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.memory import NotEnoughMemory, readable_bytes
from novelsum_dagster.selection.search import Found, Round, Search, bin_edges, cosine_slack

if TYPE_CHECKING:
    import torch

_PENDING = 64
"""Picks between two merges into all summaries."""
_TILE = 2**16
"""Candidates merged at once."""
_FIRST_LOOK = 256
"""Candidates summarised at first for a pick; four times as many as long as the level asks for more."""
_BATCH = 8
"""Candidates scored exactly before the level is looked at again."""
_UP = 1.0 + 2.0**-20
"""More than what float32 sums and products of a bound may lose."""


class TorchSearch(Search):
    """Dense bounds on a device.

    Args:
        unit_rows, factor, quality, weights: as for every search.
        device: as torch names it.

    Raises:
        ValueError: for a device that torch does not have.
        NotEnoughMemory: where the device has too little.
    """

    def __init__(
        self,
        unit_rows: NDArray[np.float32],
        factor: NDArray[np.float64],
        quality: NDArray[np.float64] | None,
        weights: NDArray[np.float64],
        device: str,
    ) -> None:
        import torch

        super().__init__(unit_rows, factor, quality, weights)
        n, d = unit_rows.shape
        k = len(weights)
        edges = bin_edges(k)
        self._torch, self._device = torch, _device(device)
        _require_device_memory(self._device, n * (4 * (d + _PENDING + len(edges)) + 40) + 12 * k * d)
        to = self._device
        self._x = torch.from_numpy(unit_rows).to(to)
        self._f = torch.from_numpy(self._factor).to(to)
        self._q = torch.from_numpy(self._quality).to(to)
        self._w = torch.from_numpy(weights).to(to)
        self._sw = torch.cat([torch.zeros(1, dtype=torch.float64, device=to), self._w.cumsum(0)])
        self._slack = cosine_slack(d)
        self._edges = torch.from_numpy(edges).to(to)
        self._summary = torch.zeros((n, len(edges) - 1), dtype=torch.float32, device=to)
        self._merged = 0
        self._new = torch.empty((n, _PENDING), dtype=torch.float32, device=to)
        self._bound = torch.zeros(n, dtype=torch.float64, device=to)
        self._exact_at = torch.full((n,), -1, dtype=torch.int64, device=to)
        # Exact scores need float64, and need only the rows picked.
        self._picked_x = torch.empty((k, d), dtype=torch.float64, device=to)
        self._picked_f = torch.empty(k, dtype=torch.float64, device=to)

    def close(self) -> None:
        """Free the device's memory."""
        self._x = self._new = self._summary = self._picked_x = self._torch.empty(0)

    def _take(self, pick: int) -> None:
        m = self.picked
        self._picked_x[m], self._picked_f[m] = self._x[pick].double(), self._f[pick]
        cosine = self._x @ self._x[pick]
        distance = ((1 + self._slack - cosine.double()).clamp_(min=0) * (self._f + self._f[pick])).float() * _UP
        self._new[:, m - self._merged] = distance
        self._bound += self._w[m] * distance
        if m + 1 - self._merged == _PENDING:
            self._merge_all(m + 1)

    def _best(self) -> Found | None:
        torch = self._torch
        value = self._bound * self._q
        value[torch.from_numpy(self._blocked).to(self._device)] = -torch.inf
        open_ = int((~self._blocked).sum())
        round_ = Round()
        looked_at, look_at = 0, _FIRST_LOOK
        while looked_at < open_:
            highest = torch.topk(value, min(look_at, open_))
            self._score(highest.indices[looked_at:], round_)
            looked_at, look_at = len(highest.indices), 4 * look_at
            if highest.values[-1] < round_.level:
                break
        return round_.found()

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        at = np.full(len(self._rows), self.picked)
        is_exact = self._exact_at == self.picked
        return self._bound.cpu().numpy(), at, is_exact.cpu().numpy()

    def _score(self, candidates: "torch.Tensor", round_: Round) -> None:
        """Lower the bounds of candidates by their summaries, and score those that still reach the level."""
        bound, _ = self._merged_with_new(candidates, self.picked)
        self._bound[candidates] = self._torch.minimum(self._bound[candidates], bound)
        value = self._bound[candidates] * self._q[candidates]
        order = self._torch.argsort(value, descending=True, stable=True)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            batch = batch[value[batch] >= round_.level]
            if not len(batch):
                return
            chosen = candidates[batch]
            self._bound[chosen] = self._exact(chosen)
            self._exact_at[chosen] = self.picked
            round_.take(chosen.cpu().numpy(), (self._bound[chosen] * self._q[chosen]).cpu().numpy())

    def _exact(self, candidates: "torch.Tensor") -> "torch.Tensor":
        m = self.picked
        cosine = self._x[candidates].double() @ self._picked_x[:m].T
        distance = ((1 - cosine) * (self._f[candidates, None] + self._picked_f[:m])).float()
        score: torch.Tensor = distance.sort(dim=1).values.double() @ self._w[:m]
        return score

    def _merge_all(self, now: int) -> None:
        rows = self._torch.arange(len(self._rows), device=self._device)
        bins = int((self._edges[:-1] < now).sum())
        for tile in self._torch.split(rows, _TILE):
            bound, means = self._merged_with_new(tile, now)
            self._bound[tile] = self._torch.minimum(self._bound[tile], bound)
            self._summary[tile, :bins] = means
        self._merged = now

    def _merged_with_new(self, candidates: "torch.Tensor", now: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return bounds and means of bins over all picks, (c,) and (c, bins), from summaries and what came since."""
        import torch

        widths = (self._edges.clamp(max=self._merged)).diff()
        widths = widths[widths > 0]
        new = self._new[candidates, : now - self._merged]
        values = torch.cat([self._summary[candidates, : len(widths)], new], dim=1).double()
        counts = torch.cat([widths, torch.ones(new.shape[1], dtype=torch.int64, device=self._device)])
        values, order = values.sort(dim=1)
        counts = counts[order]
        ends = counts.cumsum(1)
        bound = (values * (self._sw[ends] - self._sw[ends - counts])).sum(1) * _UP
        # The sum of the distances up to a rank grows evenly within a bin; differences at the edges give the new bins.
        edges: torch.Tensor = torch.unique(self._edges.clamp(max=now))
        sums = (values * counts).cumsum(1)
        within = torch.searchsorted(ends, edges[1:].expand(len(candidates), -1).contiguous())
        up_to = sums.gather(1, within) - (ends.gather(1, within) - edges[1:]) * values.gather(1, within)
        means = up_to.diff(dim=1, prepend=torch.zeros_like(up_to[:, :1])) / edges.diff()
        return bound, means.float() * _UP


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu") from None
    return device


def _require_device_memory(device: "torch.device", needed: int) -> None:
    import torch

    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise NotEnoughMemory(
            f"NovelSelect needs about {readable_bytes(needed)} on {device} and {readable_bytes(free)} are free there;"
            " use device cpu, or a smaller pool"
        )
