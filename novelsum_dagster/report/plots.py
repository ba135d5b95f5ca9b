"""Plots as PNG bytes, readable in print and without colour.

Belongs here: drawing arrays. Does not: reading tables, measuring.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POOL = "#9aa5b1"
_CHOSEN = "#b3261e"
_MAX_POINTS = 20_000


def novelty_histogram(pool: NDArray[np.float64], selected: NDArray[np.float64]) -> bytes:
    """Draw how novelty is distributed in the pool and among the selected samples.

    Args:
        pool: float64, (n,).
        selected: float64, (k,), empty where nothing is selected yet.
    """
    figure, axes = _figure()
    low, high = np.quantile(pool, [0.0, 0.999])
    bins = np.linspace(low, high, 50).tolist()
    axes.hist(np.minimum(pool, high), bins, density=True, color=_POOL, label=f"pool ({len(pool):,})")
    if len(selected):
        label = f"selected ({len(selected):,})"
        axes.hist(
            np.minimum(selected, high), bins, density=True, histtype="step", linewidth=2, color=_CHOSEN, label=label
        )
    axes.set(xlabel="novelty of a sample within the pool", ylabel="share of samples", yticks=[])
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    return _png(figure)


def pool_map(vectors: NDArray[np.float32], selected: NDArray[np.int64]) -> bytes:
    """Draw the pool and the selected samples on the pool's first two principal components.

    Args:
        vectors: float32, (n, d).
        selected: int64, rows, (k,).
    """
    points, explained = plane(vectors)
    shown = np.random.default_rng(0).permutation(len(points))[:_MAX_POINTS]
    figure, axes = _figure()
    axes.scatter(points[shown, 0], points[shown, 1], s=3, color=_POOL, linewidths=0, label=f"pool ({len(points):,})")
    label = f"selected ({len(selected):,})"
    axes.scatter(points[selected, 0], points[selected, 1], s=14, marker="x", linewidths=0.8, color=_CHOSEN, label=label)
    axes.set(
        xlabel=f"first component ({explained[0]:.0%} of variance)",
        ylabel=f"second component ({explained[1]:.0%})",
        xticks=[],
        yticks=[],
    )
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    return _png(figure)


def plane(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points on the first two principal components, (n, 2), and the variance explained, (2,)."""
    from sklearn.decomposition import PCA

    components = min(2, *vectors.shape)
    pca = PCA(n_components=components, random_state=0)
    points = np.zeros((len(vectors), 2))
    explained = np.zeros(2)
    points[:, :components] = pca.fit_transform(vectors)
    explained[:components] = np.nan_to_num(pca.explained_variance_ratio_)
    return points, explained


def _figure() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
