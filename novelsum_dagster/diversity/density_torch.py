"""Points on a torch device, where the candidates for the nearest of them are found.

Belongs here: what is searched on a GPU. Does not: exact distances, which are computed on the CPU so that they are the
same everywhere (`density`).
"""

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.devices import require_device_memory, torch_device

_TILE_VALUES = 2**27
"""Products of rows and points held at a time: 512 MiB of float32."""
_COPIES = 3
"""So many times a tile is held: products, what is sorted out of them, room of the library."""


def device_memory_needed(size: int, dimensions: int) -> int:
    """Return the bytes that a search in points, (size, dimensions), takes on the device at most."""
    return size * (4 * dimensions + 4) + 4 * _COPIES * max(_TILE_VALUES, size) + 4 * _rows_at_once(size) * dimensions


def _rows_at_once(points: int) -> int:
    return min(2**14, max(1, _TILE_VALUES // points))


class PointsOnDevice:
    """Points that rows are compared with by matrix products in float32, as FAISS does on the CPU.

    Args:
        points: float32, (r, d).
        squares: float64, (r,): their squared lengths.
        device: as torch names it.

    Raises:
        NotEnoughMemory: where they do not fit there.
    """

    def __init__(self, points: NDArray[np.float32], squares: NDArray[np.float64], device: str) -> None:
        import torch

        size, dimensions = points.shape
        self._device = torch_device(device)
        require_device_memory(self._device, device_memory_needed(size, dimensions), f"density against {size:,} points")
        # Rounded to TF32, a product would be off by more than the bounds allow for.
        torch.set_float32_matmul_precision("highest")
        self._points = torch.from_numpy(points).to(self._device)
        self._squares = torch.from_numpy(squares.astype(np.float32)).to(self._device)

    def nearest(self, rows: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest points of rows, (n, d): squared distances `|x|^2 + |y|^2 - 2xy` and points, (n, count).

        No other point's squared distance, computed so, is under the last one.
        """
        import torch

        squared = np.empty((len(rows), count), dtype=np.float32)
        near = np.empty((len(rows), count), dtype=np.int64)
        tile = _rows_at_once(len(self._points))
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
        among: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pairs of rows and points for which `length - 2xy` is at most the row's bound.

        Args:
            rows: (n, d).
            bound: (n,).
            lengths: of the points looked at, (m,).
            among: these points, (m,); None looks at all.

        Returns:
            Rows and places among the points looked at: int64, (pairs,), in order.
        """
        import torch

        points = self._points if among is None else self._points[torch.from_numpy(among).to(self._device)]
        added = torch.from_numpy(lengths).to(self._device)
        found: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
        tile = _rows_at_once(len(points))
        for start in range(0, len(rows), tile):
            part = slice(start, start + tile)
            some = torch.from_numpy(rows[part]).to(self._device)
            most = torch.from_numpy(bound[part]).to(self._device)
            rough = torch.addmm(added, some, points.T, alpha=-2)
            found.append((rough <= most[:, None]).nonzero().cpu().numpy() + np.array([start, 0]))
        pairs = np.concatenate(found)
        return pairs[:, 0], pairs[:, 1]
