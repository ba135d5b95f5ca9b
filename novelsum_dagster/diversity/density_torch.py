"""Candidates for nearest neighbours, found on a torch device.

Belongs here: what is searched on a GPU. Does not: exact distances, which are computed on the CPU so that they are the
same everywhere (`density`).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import DeviceMemory, torch_device

_TILE_VALUES = 2**27
"""Number of products of rows and points held at a time: 512 MiB of float32."""
_COPIES = 3
"""Memory of a search in units of one tile: products, the sorted selection, working memory of the library."""
_ROWS = 2**14
"""Most rows whose products are computed at a time."""


def device_memory_needed(size: int, dimensions: int) -> int:
    """Return the bytes that a search in points, (size, dimensions), takes on the device at most."""
    # Rows that are sent, and points that some are compared with, picked out of all.
    rows = 2 * _ROWS * dimensions
    return size * (4 * dimensions + 4) + 4 * _COPIES * max(_TILE_VALUES, size) + 4 * rows


def _at_once(others: int) -> int:
    return min(_ROWS, max(1, _TILE_VALUES // others))


class PointsOnDevice:
    """Points that rows are compared with by matrix products in float32, as FAISS does on the CPU.

    Args:
        points: float32, (r, d).
        squares: float64, (r,): their squared lengths.
        device: as torch names it.

    Raises:
        NotEnoughMemory: if they do not fit there together with a search.
    """

    def __init__(self, points: NDArray[np.float32], squares: NDArray[np.float64], device: str) -> None:
        import torch

        size, dimensions = points.shape
        self._device = torch_device(device)
        needed = device_memory_needed(size, dimensions)
        self._memory = DeviceMemory(self._device, needed, f"density against {size:,} points")
        # Rounded to TF32, a product would be off by more than the bounds allow for.
        torch.set_float32_matmul_precision("highest")
        with self._memory:
            self._points = torch.from_numpy(points).to(self._device)
            self._squares = torch.from_numpy(squares.astype(np.float32)).to(self._device)

    def nearest(self, rows: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest points of rows, (n, d): squared distances `|x|^2 + |y|^2 - 2xy` and points, (n, count).

        No other point's squared distance, computed so, is under the last one.
        """
        import torch

        squared = np.empty((len(rows), count), dtype=np.float32)
        near = np.empty((len(rows), count), dtype=np.int64)
        tile = _at_once(len(self._points))
        with self._memory:
            for start in range(0, len(rows), tile):
                part = slice(start, start + tile)
                some = torch.from_numpy(rows[part]).to(self._device)
                rough = torch.addmm(self._squares, some, self._points.T, alpha=-2)
                found = rough.topk(count, dim=1, largest=False)
                own = (some * some).sum(dim=1, keepdim=True)
                squared[part], near[part] = (found.values + own).cpu().numpy(), found.indices.cpu().numpy()
        return squared, near

    def within(
        self,
        rows: NDArray[np.float32],
        bound: NDArray[np.float32],
        lengths: NDArray[np.float32],
        among: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the pairs of rows and points for which `length - 2xy` is at most the row's bound, some at a time.

        Args:
            rows: (n, d).
            bound: (n,).
            lengths: of the points examined, (m,).
            among: these points, (m,).

        Yields:
            Rows and points: int64, (pairs,).
        """
        import torch

        tile = _at_once(len(rows))
        with self._memory:
            sent, most = torch.from_numpy(rows).to(self._device), torch.from_numpy(bound).to(self._device)
        for start in range(0, len(among), tile):
            part = slice(start, start + tile)
            with self._memory:
                points = self._points[torch.from_numpy(among[part]).to(self._device)]
                rough = torch.addmm(torch.from_numpy(lengths[part]).to(self._device), sent, points.T, alpha=-2)
                row, place = (rough <= most[:, None]).nonzero().cpu().numpy().T
            yield row, among[part][place]
