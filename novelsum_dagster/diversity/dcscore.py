"""DCScore: how well a classifier that has one class for each sample distinguishes the samples.

Belongs here: DCScore, a tile of pairs at a time. Does not: the Vendi score, the other effective number of samples
(`moments`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from novelsum_dagster.common.devices import DeviceMemory, cuda_or_cpu, torch_device
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.vectors import as_rows, half_squares, unit_rows

if TYPE_CHECKING:
    import torch

_TILE_VALUES = 2**23
"""Pairs held at a time."""


def dcscore(
    target: ArrayLike, *, temperature: float = 1.0, device: str = "cpu", progress: Progress = no_progress
) -> Measured:
    """Return DCScore: the sum over samples of the probability that softmax over cosines gives to the sample itself.

    `sum_i exp(cos_ii / t) / sum_j exp(cos_ij / t)`, the trace of the row softmax of the n x n cosines: 1 where all
    samples are equal, n at most, and near n for low temperatures t where no two are equal. (Zhu et al., "Measuring
    Diversity in Synthetic Datasets", ICML 2025, section 4; t = 1 and cosines are the defaults of the published code.)

    Cosines are taken as 1 less exact distances, by which a sample has cosine 1 with itself. Exponentials are in
    float64; on another processor or device the value may differ by a relative 1e-9.

    Args:
        target: (n, d) embeddings.
        temperature: t, over 0, default 1.0.
        device: "cpu" (default), or a torch device that has float64, such as "cuda".
        progress: called with rows done and n, twice.

    Raises:
        ValueError: for bad rows, or a temperature that is not over 0 and finite.
        NotEnoughMemory: if the device has too little.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}; it must be over 0 and finite")
    units = unit_rows(as_rows(target, "target"), "target")
    size = len(units)
    there = torch_device(cuda_or_cpu(device))
    with DeviceMemory(there, _memory_needed(*units.shape), f"DCScore of {size:,} samples"):
        pairs = _Pairs.of(units, temperature, there)
        own = 1 / pairs.times(np.ones(size), progress)
        # To first order in the samples' weights.
        influence = size * (own - pairs.times(own**2, progress))
    return Measured(float(own.sum()), influence)


def _memory_needed(n: int, d: int) -> int:
    """Return the bytes that DCScore of n samples takes on a device at most."""
    # The rows in float64; those sent, in float32, and later a tile and the next.
    return 8 * n * d + 4 * 8 * n + max(4 * n * d, 2 * 8 * max(_TILE_VALUES, n))


@dataclass(frozen=True)
class _Pairs:
    """The n x n matrix of `exp(-(1 - cos) / t)`, computed tile by tile."""

    rows: "torch.Tensor"
    halves: "torch.Tensor"
    temperature: float

    @classmethod
    def of(cls, units: NDArray[np.float32], temperature: float, device: "torch.device") -> "_Pairs":
        import torch

        halves = torch.from_numpy(half_squares(units)).to(device)
        return cls(torch.from_numpy(units).to(device).double(), halves, temperature)

    def times(self, factor: NDArray[np.float64], progress: Progress) -> NDArray[np.float64]:
        """Return the product with a vector, float64, (n,)."""
        import torch

        size = len(factor)
        there = torch.from_numpy(factor).to(self.rows.device)
        found = torch.zeros_like(there)
        step = max(1, _TILE_VALUES // size)
        for start in range(0, size, step):
            stop = min(start + step, size)
            tile = self._tile(start, stop)
            found[start:stop] += tile @ there[start:]
            # A pair of two samples is in one tile only and counts for both samples.
            found[stop:] += there[start:stop] @ tile[:, stop - start :]
            progress(stop, size)
        return np.asarray(found.cpu().numpy())

    def _tile(self, start: int, stop: int) -> "torch.Tensor":
        """Return the matrix's rows from `start` to `stop` in the columns from `start` on."""
        # In place: the tile before is still held.
        tile = self.halves[start:stop, None] + self.halves[start:]
        tile.addmm_(self.rows[start:stop], self.rows[start:].T, alpha=-1)
        return tile.div_(-self.temperature).exp_()
