"""Results of every numeric function on one small pool, printed as JSON: `python -m tests.numeric_results`.

The pool has exact duplicates, rows of one direction and several lengths, near-duplicates at several distances and
points of a lattice, so that many distances tie or almost do.
"""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from novelsum_dagster.diversity import (
    cluster_inertia,
    dcscore,
    density,
    distsum_cosine,
    distsum_l2,
    facility_location,
    knn_distance,
    log_determinant,
    novelsum,
    partition_entropy,
    radius,
    vendi_score,
)
from novelsum_dagster.diversity.clusters import centres_of
from novelsum_dagster.diversity.growth import nearest_in_pool
from novelsum_dagster.diversity.vectors import unit_rows
from novelsum_dagster.explore.atlas import neighbors
from novelsum_dagster.report.tables import closest
from novelsum_dagster.selection import select, standing
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.selection.trajectory import trajectory

DIMENSIONS = 40


def pool() -> NDArray[np.float32]:
    """Return 708 rows, (n, 40)."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=(200, DIMENSIONS))
    near = [base[:40] + size * generator.normal(size=(40, DIMENSIONS)) for size in (1e-2, 1e-4, 1e-6)]
    lattice = generator.integers(-1, 2, size=(128, DIMENSIONS)) + 0.0
    lattice[:, 0] = 1
    scaled = [factor * base[100:] for factor in (4.0, 3.0, 0.1)]
    rows = np.concatenate([base, base[:60], *near, lattice[:100], *scaled[:2], lattice[:28], scaled[2]])
    return rows[generator.permutation(len(rows))].astype(np.float32)


def clustered_pool() -> NDArray[np.float32]:
    """Return 6,000 rows in 60 clusters, (n, 16), in which lists find most neighbours."""
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(60, 16))
    return (centres[generator.integers(0, 60, 6000)] + 0.05 * generator.normal(size=(6000, 16))).astype(np.float32)


def results() -> dict[str, dict[str, Any]]:
    """Return what must be equal to the last bit, as hashes, and what must be close, as numbers, both by name."""
    rows = pool()
    found = density(rows)
    exact: dict[str, Any] = {
        "density": found.mean_squared_distance,
        "density factor": found.factor(),
        "unit rows": unit_rows(rows),
        "distances of a growing pool": nearest_in_pool(rows, 10).nearest.squared,
        "KNN distance": knn_distance(rows).influence,
        "KNN distance, third": knn_distance(rows, neighbor=3).influence,
        "facility location": facility_location(rows[:50], rows).influence,
        "cluster inertia": cluster_inertia(rows, clusters=20).influence,
        "centres of k-means": centres_of(rows, 30, 42),
        "partition entropy": partition_entropy(rows[:100], rows, clusters=30).influence,
        "near pairs": np.stack(closest(unit_rows(rows), 20), axis=1),
        "neighbours": neighbors(rows, 5).flatten()[1].flatten().to_numpy(),
    }
    for side in ("row", "column"):
        for own in ("included", "excluded"):
            of = novelsum(rows, density_side=side, self_distance=own)
            exact[f"NovelSum, {side}, {own}"] = np.append(of.novelty, of.value)
    factor = found.factor()
    quality = np.random.default_rng(2).uniform(0.5, 2, len(rows))
    options: dict[str, dict[str, Any]] = {"qdit": {"similarity_neighbors": 20}, "repr_filter": {"threshold": 0.9}}
    for strategy in ("novelselect", "farthest", "kcenter", "kmeans", "repr_filter", "qdit"):
        for given in ({}, options.get(strategy, {})):
            picks = select(strategy, rows, 80, density_factor=factor, **given)
            exact[f"{strategy} {given}"] = np.stack([picks.indices, picks.score, picks.nearest_distance])
    picks = select("novelselect", rows, 80, density_factor=factor, quality=quality)
    exact["novelselect with quality"] = np.stack([picks.indices, picks.score])
    on_device = select("novelselect", rows, 80, density_factor=factor, device="cpu:0")
    exact["novelselect on a torch device"] = on_device.indices
    covered = covering(rows, picks.indices)
    exact["nearest picks"] = np.concatenate([covered.rank, covered.distance])
    stood = standing(rows, picks.indices[:40], density_factor=factor)
    exact["standing"] = np.stack([stood.score, stood.rank, stood.nearest_pick, stood.nearest_distance])

    clustered = clustered_pool()
    lists = density(clustered, index="ivf", min_recall=0.95)
    close = {
        "DistSum cosine": distsum_cosine(rows).value,
        "DistSum L2": distsum_l2(rows).value,
        "radius": radius(rows).value,
        "Vendi score": vendi_score(rows).value,
        "log-determinant": log_determinant(rows).value,
        "DCScore": dcscore(rows).value,
        "NovelSum, other powers": novelsum(rows, density_power=0.25, proximity_power=0.5).value,
        "NovelSum on a torch device": novelsum(rows, device="cpu:0").value,
        "novelselect on a torch device": float(on_device.score[-1]),
        "trajectory": float(
            trajectory(rows[3], factor[3], rows[picks.indices], factor[picks.indices])[-1],
        ),
    }
    return {
        "exact": {
            name: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() for name, value in exact.items()
        },
        "close": close,
        "lists": {"index": lists.index, "recall": lists.recall, "density": lists.mean_squared_distance.tolist()},
    }


def main() -> None:
    """Print the results, and the kernels of OpenBLAS that NumPy used."""
    kernels = [library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"]
    print(json.dumps({"kernels": kernels, **results()}))


if __name__ == "__main__":
    main()
