"""Comparison of unit rows on a torch device in float64, as exact as on the CPU.

Belongs here: tiles on a GPU. Does not: what is compared with what (`similar`).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import DeviceMemory, torch_device
from novelsum_dagster.diversity.similar import COLUMNS, ROWS, Between, Nearest
from novelsum_dagster.diversity.vectors import half_squares

if TYPE_CHECKING:
    import torch

_COPIES = 7
"""Memory of a comparison in units of one tile: distances, those before and after, masks, places of the least, working
memory of the library."""


def device_memory_needed(size: int, dimensions: int) -> int:
    """Return the bytes that comparisons of unit rows, (size, dimensions), take on the device at most."""
    return size * (4 * dimensions + 8) + 8 * (_COPIES * ROWS * COLUMNS + (ROWS + COLUMNS) * dimensions)


class UnitsOnDevice:
    """Unit rows in the order of a walk.

    Args:
        units: float32, (r, d).
        device: as torch names it.

    Raises:
        NotEnoughMemory: if they do not fit there together with a tile.
    """

    def __init__(self, units: NDArray[np.float32], device: str) -> None:
        import torch

        self._device = torch_device(device)
        needed = device_memory_needed(*units.shape)
        self._memory = DeviceMemory(self._device, needed, f"near-duplicates among {len(units):,} vectors")
        with self._memory:
            self._units = torch.from_numpy(units).to(self._device)
            self._halves = torch.from_numpy(half_squares(units)).to(self._device)

    def minima(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Between:
        """Return what `Directions.compare` does, for one tile: rows, (b,), and columns, (c,), ascending."""
        import torch

        with self._memory:
            some, others = (torch.from_numpy(places).to(self._device) for places in (rows, columns))
            distances = self._units[some].double() @ self._units[others].double().T
            # In this order, every sum is exact: `half_squares` are near 1/2, products at most 1.
            distances.neg_().add_(self._halves[some][:, None]).add_(self._halves[others])
            distances[some[:, None] == others] = torch.inf
            is_before = others < some[:, None]
            before, after = distances.masked_fill(~is_before, torch.inf), distances.masked_fill(is_before, torch.inf)
            return Between(
                (_least(distances, others, 1), _least(before, others, 1)),
                (_least(distances, some, 0), _least(after, some, 0)),
            )


def _least(distances: "torch.Tensor", places: "torch.Tensor", axis: int) -> Nearest:
    """Return the least distances along an axis, and the first place that has each."""
    import torch

    least = distances.amin(dim=axis)
    shown = places.unsqueeze(0) if axis == 1 else places.unsqueeze(1)
    last = torch.iinfo(torch.int64).max
    at = torch.where(distances == least.unsqueeze(axis), shown, last).amin(dim=axis)
    at[torch.isinf(least)] = -1
    return Nearest(least.cpu().numpy(), at.cpu().numpy())
