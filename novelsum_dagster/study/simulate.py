"""Simulated pools and selections with a known order of diversity, and which measures reproduce it.

Belongs here: the pools, the selections, the pairs that are beyond dispute, the scores, their files. Does not: the
measures (`diversity`), the drawings (`pictures`).

(Yang et al., "Measuring Data Diversity for Instruction Tuning", ACL 2025, simulate one pool of 150 points of the plane
with three selections. Here are six pools, more selections, and several draws of each.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.files import write_bytes, write_csv_and_table, write_table
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.measures import MEASURES as EVERY_MEASURE
from novelsum_dagster.diversity.measures import OF_TEXTS, Evaluator
from novelsum_dagster.diversity.novelsum import novelsum
from novelsum_dagster.settings import Measures, NovelSum
from novelsum_dagster.study.pictures import ranking_png, selections_png

POOL_SIZE = 3000
SELECTION_SIZE = 300
COPIES = 10
"""Number of copies of each sample in a selection of duplicates."""
INERTIA_CLUSTERS = SELECTION_SIZE // 50
"""The paper's 200 clusters are one for every 50 of its samples; 200 of these would leave hardly any inertia."""
PLANE, SPHERE = 2, 64
"""Dimensions of the pools, as their tables name them. Points of the plane are measured as vectors of three."""
ALL = "all"
"""The row of the scores that has every pool."""
LEFT_OUT = "TTR, vocd-D and G-Vendi are of texts, which simulated points do not have; they are left out."

_PLANE_SCALE = 0.6
_CLUSTERS = 8
_PLANE_SPREAD, _SPHERE_SPREAD = 0.1, 0.7
"""Root mean square distance of a sample to its cluster's centre; on the sphere before scaling to length 1."""
_CANDIDATE_CENTRES = 100
_JITTER = 0.003
"""Root mean square distance of near-duplicates to their sample: a fifth of that between neighbours in the plane."""

Points = NDArray[np.float64]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """A simulated pool of n samples.

    Attributes:
        name: "uniform", "clustered" or "varying density".
        dimensions: `PLANE` or `SPHERE`.
        points: float64, (n, dimensions): in the plane within and about the unit disc, else of length 1.
        cluster: int64, (n,): 0 to 7; None if the pool is not clustered.
    """

    name: str
    dimensions: int
    points: Points
    cluster: NDArray[np.int64] | None = None

    @cached_property
    def rows(self) -> Rows:
        """The samples as they are measured: unit vectors, float32, (n, 3) or (n, dimensions)."""
        return as_vectors(self.points)

    @cached_property
    def spacing(self) -> Points:
        """The mean squared L2 distance of each sample to its ten nearest: float64, (n,); large where it is sparse."""
        return density(self.rows).mean_squared_distance

    @cached_property
    def evaluator(self) -> Evaluator:
        """What measures selections against the pool; density is the pool's, as selections would be sparse by choice."""
        return Evaluator(self.rows, NovelSum(), Measures(inertia_clusters=INERTIA_CLUSTERS), device="cpu")


MEASURES = {key: known for key, known in EVERY_MEASURE.items() if key not in OF_TEXTS}
"""The measures that are compared: those of vectors."""

SELECTIONS: dict[str, str] = {
    "spread out": "evenly over the\npool, by k-center",
    "random": "each sample\nas likely",
    "half": "one side, or half\nof the clusters",
    "one region": "one cluster, or the\nsamples about one",
    "region duplicates": f"{SELECTION_SIZE // COPIES} of one region,\n{COPIES} times each",
    "duplicates": f"{SELECTION_SIZE // COPIES} at random,\n{COPIES} times each",
    "near-duplicates": "the same, each copy\nmoved a little",
    "dense only": "where neighbours\nare nearest",
    "outliers only": "where neighbours\nare farthest",
}
"""A description of each selection of `SELECTION_SIZE` samples."""

Pair = tuple[str, str]
"""A more diverse and a less diverse selection."""

_EVERYWHERE: tuple[Pair, ...] = (
    # A part of the space lies within the whole, and the part is covered no better for what is left out.
    ("spread out", "half"),
    ("spread out", "one region"),
    ("random", "half"),
    ("random", "one region"),
    ("half", "one region"),
    # 30 distinct samples say less than 300 that reach as far. Copies moved by less than can be seen add nothing.
    ("spread out", "duplicates"),
    ("spread out", "near-duplicates"),
    ("random", "duplicates"),
    ("random", "near-duplicates"),
    ("one region", "region duplicates"),
    # As many distinct samples and copies, in the whole space or in a part of it.
    ("duplicates", "region duplicates"),
)
_EVEN: tuple[Pair, ...] = (
    # Both cover the whole disc; random leaves gaps and clumps. The density is uniform, so none is disregarded.
    ("spread out", "random"),
)
_DENSE: tuple[Pair, ...] = (
    # The densest tenth of the pool is a few narrow places.
    ("spread out", "dense only"),
    ("random", "dense only"),
)
_RING: tuple[Pair, ...] = (
    # The sparsest tenth is a ring about an empty middle, and most of the pool is in the middle.
    ("spread out", "outliers only"),
)

PAIRS: dict[tuple[str, int], tuple[Pair, ...]] = {
    ("uniform", PLANE): _EVERYWHERE + _EVEN,
    ("clustered", PLANE): _EVERYWHERE + _DENSE,
    ("varying density", PLANE): _EVERYWHERE + _DENSE + _RING,
    ("uniform", SPHERE): _EVERYWHERE,
    ("clustered", SPHERE): _EVERYWHERE + _DENSE,
    ("varying density", SPHERE): _EVERYWHERE + _DENSE,
}
"""The pairs that a person would agree with, by pool; fixed before any measure was computed. Left out as disputable:

- spread out over random, but for the uniform plane: where density varies, random follows what there is more of, which
  some call more representative and others less diverse; in 64 dimensions 3,000 points are too sparse to differ.
- outliers over or under random: they are far apart, and they are not what the pool is about.
- outliers under spread out, but for the ring: the fringes of all clusters are spread out themselves, as is what is far
  from everything in 64 dimensions; in a uniform pool dense and sparse are chance.
- duplicates over or under one region: few samples far apart, or many close together.
- near-duplicates over duplicates: not to be seen.
"""


@dataclass(frozen=True)
class Simulation:
    """The measured values and the comparisons of the stated pairs.

    Attributes:
        values: repeat (int64), pool (string), dimensions (int64), selection, measure (string), value (float64).
        pairs: repeat (int64), pool (string), dimensions (int64), measure, better, worse (string), right (bool): whether
            the measure finds `better` more diverse than `worse`; equal values are not right.
        scores: measure, label, pool (string; `ALL` for every pool together), dimensions (int64, null for `ALL`), right,
            pairs (int64), share, lowest, highest (float64): the part of the pairs of all repeats ranked rightly, and
            the least and greatest part in a single repeat.
        points: of the pools in the plane in the first repeat: pool (string), x, y (float64), selection (string, null
            for the pool's own samples).
    """

    values: pa.Table
    pairs: pa.Table
    scores: pa.Table
    points: pa.Table


class _Value(NamedTuple):
    repeat: int
    pool: str
    dimensions: int
    selection: str
    measure: str
    value: float


class _Judged(NamedTuple):
    repeat: int
    pool: str
    dimensions: int
    measure: str
    better: str
    worse: str
    right: bool


def simulate(seed: int = 42, repeats: int = 5, progress: Progress = no_progress) -> Simulation:
    """Measure every selection of every pool, in several draws, and compare the values with the stated pairs.

    Args:
        seed: of every draw, default 42; equal seeds give equal tables.
        repeats: draws of each pool and its selections, default 5.
        progress: called with selections measured and their number.

    Raises:
        ValueError: for less than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be 1 or more")
    # A limit holds only for libraries that are loaded; sets this small wait longer for threads than they compute.
    import faiss  # noqa: F401
    import torch  # noqa: F401

    values: list[_Value] = []
    points: list[pa.Table] = []
    total = repeats * len(PAIRS) * len(SELECTIONS)
    with threadpool_limits(1):
        for repeat in range(repeats):
            for pool, selections in drawn(seed, repeat):
                if repeat == 0 and pool.dimensions == PLANE:
                    points += _points(pool, selections)
                for selection, chosen in selections.items():
                    values += _measured(repeat, pool, selection, as_vectors(chosen))
                    progress(len(values) // len(MEASURES), total)
    judged = _judged(values)
    return Simulation(_table(values), _table(judged), _scores(judged), pa.concat_tables(points))


def drawn(seed: int, repeat: int) -> Iterator[tuple[Pool, dict[str, Points]]]:
    """Yield each pool of a repeat with its selections, float64, (`SELECTION_SIZE`, dimensions), by name."""
    for number, (name, dimensions) in enumerate(PAIRS):
        generator = np.random.default_rng([seed, repeat, number])
        pool = draw_pool(name, dimensions, generator)
        yield pool, draw_selections(pool, generator)


def as_vectors(points: Points) -> Rows:
    """Return points as the unit vectors that are measured: float32, (n, 3) for points of the plane, else (n, d).

    The measures compare angles, of which two-dimensional vectors have only one. (x, y) becomes (sx, sy, z), z over 0
    and s 0.6, on a cap of the unit sphere: there the cosine distance grows with the distance in the plane.

    Args:
        points: float64, (n, 2) within 1 / s of the origin, or (n, d) of any length.
    """
    if points.shape[1] == PLANE:
        flat = _PLANE_SCALE * points
        height = np.sqrt(1 - np.square(flat).sum(axis=1))
        return np.column_stack([flat, height]).astype(np.float32)
    return _of_length_one(points).astype(np.float32)


def draw_pool(name: str, dimensions: int, generator: np.random.Generator) -> Pool:
    """Draw a pool of `POOL_SIZE` samples.

    Args:
        name: "uniform" on the disc or the sphere; "clustered": eight clusters of equal width, the largest three times
            as populous as the smallest; "varying density": ever sparser away from one dense place.
        dimensions: `PLANE` or `SPHERE`.
        generator: what is drawn from.

    Raises:
        ValueError: for another name.
    """
    if name == "clustered":
        return _clustered(dimensions, generator)
    directions = _of_length_one(generator.normal(size=(POOL_SIZE, dimensions)))
    if name == "uniform":
        # The square root gives rings of equal width their share of the disc's area.
        points = directions if dimensions == SPHERE else directions * generator.random((POOL_SIZE, 1)) ** 0.5
    elif name == "varying density" and dimensions == PLANE:
        points = directions * generator.random((POOL_SIZE, 1)) ** 1.5
    elif name == "varying density":
        centre = _of_length_one(generator.normal(size=(1, dimensions)))
        points = _of_length_one(centre + directions * 10 ** generator.uniform(-1, 0.5, (POOL_SIZE, 1)))
    else:
        raise ValueError(f"pool {name!r} is unknown; the pools are {', '.join(sorted({name for name, _ in PAIRS}))}")
    return Pool(name, dimensions, points)


def _clustered(dimensions: int, generator: np.random.Generator) -> Pool:
    candidates = _of_length_one(generator.normal(size=(_CANDIDATE_CENTRES, dimensions)))
    if dimensions == PLANE:
        candidates *= 0.85 * generator.random((_CANDIDATE_CENTRES, 1)) ** 0.5
    centres = _far_apart(candidates, _CLUSTERS)
    populations = np.linspace(1, 3, _CLUSTERS)
    edges = np.round(POOL_SIZE * populations.cumsum() / populations.sum()).astype(np.int64)
    cluster = np.searchsorted(edges, np.arange(POOL_SIZE), "right").astype(np.int64)
    spread = _PLANE_SPREAD if dimensions == PLANE else _SPHERE_SPREAD
    points = _moved(generator.permutation(centres)[cluster], spread, generator)
    return Pool("clustered", dimensions, points if dimensions == PLANE else _of_length_one(points), cluster)


def _far_apart(candidates: Points, count: int) -> Points:
    """Return `count` of the candidates, each the farthest from those before it."""
    chosen = [0]
    for _ in range(count - 1):
        nearest = np.min([np.linalg.norm(candidates - candidates[index], axis=1) for index in chosen], axis=0)
        chosen.append(int(nearest.argmax()))
    return candidates[chosen]


def _moved(points: Points, distance: float, generator: np.random.Generator) -> Points:
    """Return the points, each moved by that root mean square distance."""
    noise = generator.normal(scale=distance / points.shape[1] ** 0.5, size=points.shape)
    return np.asarray(points + noise)


def _of_length_one(points: Points) -> Points:
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def draw_selections(pool: Pool, generator: np.random.Generator) -> dict[str, Points]:
    """Draw the selections of `SELECTIONS` from a pool: float64, (`SELECTION_SIZE`, dimensions), by name.

    All but "near-duplicates" are samples of the pool.
    """
    from novelsum_dagster.selection.strategies import select

    def some(of: NDArray[np.int64], count: int = SELECTION_SIZE) -> NDArray[np.int64]:
        return generator.choice(of, count, replace=False)

    everything = np.arange(POOL_SIZE)
    spread = select(
        "kcenter", pool.rows, SELECTION_SIZE, density_factor=np.ones(POOL_SIZE), seed=int(generator.integers(2**31))
    ).indices
    region = some(_region(pool, generator))
    duplicates = np.repeat(some(everything, SELECTION_SIZE // COPIES), COPIES)
    by_spacing = np.argsort(pool.spacing, kind="stable")
    chosen = {
        "spread out": spread,
        "random": some(everything),
        "half": some(_half(pool, generator)),
        "one region": region,
        "region duplicates": np.repeat(some(region, SELECTION_SIZE // COPIES), COPIES),
        "duplicates": duplicates,
        "near-duplicates": duplicates,
        "dense only": by_spacing[:SELECTION_SIZE],
        "outliers only": by_spacing[-SELECTION_SIZE:],
    }
    selections = {name: pool.points[chosen[name]] for name in SELECTIONS}
    selections["near-duplicates"] = _moved(selections["near-duplicates"], _JITTER, generator)
    return selections


def _half(pool: Pool, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the samples of half of the clusters, or on one side of a plane through the pool's mean."""
    if pool.cluster is not None:
        return np.flatnonzero(np.isin(pool.cluster, generator.permutation(_CLUSTERS)[: _CLUSTERS // 2]))
    return np.flatnonzero((pool.points - pool.points.mean(axis=0)) @ generator.normal(size=pool.dimensions) > 0)


def _region(pool: Pool, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the samples of a cluster that has enough, or those nearest to a sample of the denser half.

    Around a sample in a sparse place, the same number would fill a third of the space, which is not one region.
    """
    if pool.cluster is not None:
        populous = np.flatnonzero(np.bincount(pool.cluster) >= SELECTION_SIZE)
        return np.flatnonzero(pool.cluster == generator.choice(populous))
    middle = generator.choice(np.flatnonzero(pool.spacing <= np.median(pool.spacing)))
    return np.argsort(np.linalg.norm(pool.points - pool.points[middle], axis=1), kind="stable")[:SELECTION_SIZE]


def _measured(repeat: int, pool: Pool, selection: str, rows: Rows) -> list[_Value]:
    # Density is the pool's: selections are not the population, and would be sparse by choice.
    values = {"novelsum": novelsum(rows, pool.rows).value}
    values |= {name: compute().value for name, compute in pool.evaluator.others(rows)}
    return [_Value(repeat, pool.name, pool.dimensions, selection, name, values[name]) for name in MEASURES]


def _judged(values: list[_Value]) -> list[_Judged]:
    """Compare the values with every stated pair."""
    found = {row[:-1]: row.value for row in values}
    judged = []
    for repeat in sorted({row.repeat for row in values}):
        for (pool, dimensions), pairs in PAIRS.items():
            for name, measure in MEASURES.items():
                for better, worse in pairs:
                    more, less = (found[repeat, pool, dimensions, chosen, name] for chosen in (better, worse))
                    right = more > less if measure.higher_is_diverse else more < less
                    judged.append(_Judged(repeat, pool, dimensions, name, better, worse, right))
    return judged


def _scores(judged: list[_Judged]) -> pa.Table:
    rows = []
    for name, measure in MEASURES.items():
        for place in [*PAIRS, (ALL, None)]:
            by_repeat: dict[int, list[bool]] = {}
            for one in judged:
                if one.measure == name and place in ((one.pool, one.dimensions), (ALL, None)):
                    by_repeat.setdefault(one.repeat, []).append(one.right)
            right, pairs = sum(map(sum, by_repeat.values())), sum(map(len, by_repeat.values()))
            shares = [float(np.mean(of_repeat)) for of_repeat in by_repeat.values()]
            rows.append(
                {
                    "measure": name,
                    "label": measure.label,
                    "pool": place[0],
                    "dimensions": place[1],
                    "right": right,
                    "pairs": pairs,
                    "share": right / pairs,
                    "lowest": min(shares),
                    "highest": max(shares),
                }
            )
    return pa.Table.from_pylist(rows)


def _points(pool: Pool, selections: dict[str, Points]) -> list[pa.Table]:
    parts: list[tuple[str | None, Points]] = [(None, pool.points), *selections.items()]
    return [
        pa.table(
            {
                "pool": pa.array([pool.name] * len(points), pa.string()),
                "x": points[:, 0],
                "y": points[:, 1],
                "selection": pa.array([name] * len(points), pa.string()),
            }
        )
        for name, points in parts
    ]


def _table(rows: Sequence[_Value | _Judged]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows])


def write_simulation(folder: Path, simulation: Simulation) -> None:
    """Write the tables as CSV and Parquet and the pictures as PNG, each atomically.

    The files are scores, values and pairs (.csv, .parquet), points.parquet, ranking.png and selections.png.

    Args:
        folder: made if it is missing.
        simulation: as `simulate` returns it.
    """
    for name in ("scores", "values", "pairs"):
        write_csv_and_table(getattr(simulation, name), folder / name)
    write_table(simulation.points, folder / "points.parquet")
    write_bytes(ranking_png(simulation.scores, simulation.pairs, LEFT_OUT), folder / "ranking.png")
    write_bytes(selections_png(simulation.points, SELECTIONS), folder / "selections.png")
