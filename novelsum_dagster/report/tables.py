"""The figures of a report as tables: map, sources, coverage of the pool, lengths, nearest pairs.

Belongs here: computing from arrays and the pool's table. Does not: drawing (`charts`), files and text (`page`).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from novelsum_dagster.diversity.vectors import cosine_distances, unit_rows

PAIRS = 20
SNIPPET = 160
"""Characters shown of a text."""
QUANTITIES = ("tokens", "turns", "characters")
QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
REGIONS = 10
"""Number of least covered regions of the pool that are shown."""
REGION_SNIPPET = 200
WHOLE = "all sources"
"""Name of the row for the whole pool."""
_JSON_LIST = re.compile(r"\.json(\.gz|\.zst)?$", re.IGNORECASE)
_DIGITS = 4
_TILE = 2048


def map_points(vectors: NDArray[np.float32], selected: NDArray[np.int64]) -> tuple[pa.Table, tuple[float, float]]:
    """Return each sample's coordinates on the pool's first two principal components.

    Args:
        vectors: float32, (n, d).
        selected: int64, (k,), rows in pick order.

    Returns:
        A table of n rows: x, y (float64, four digits of the map's extent) and rank (int64, from 1, null if the sample
        was not picked; the first rank if it was picked more than once); and the shares of variance of x and y.
    """
    points, explained = _plane(vectors)
    rank = np.zeros(len(vectors), dtype=np.int64)
    rank[selected[::-1]] = np.arange(len(selected), 0, -1)  # Backwards, so that the first pick of a row wins.
    points = _rounded(points)
    table = pa.table({"x": points[:, 0], "y": points[:, 1], "rank": pa.array(rank, mask=rank == 0)})
    return table, explained


def _plane(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    from sklearn.decomposition import PCA

    points, explained = np.zeros((len(vectors), 2)), np.zeros(2)
    components = min(2, *vectors.shape)
    if len(vectors) > 1:  # A single point has no variance, and PCA would warn.
        pca = PCA(n_components=components, random_state=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            points[:, :components] = pca.fit_transform(vectors)
        explained[:components] = np.nan_to_num(pca.explained_variance_ratio_)
    return points, (float(explained[0]), float(explained[1]))


def _rounded(points: NDArray[np.float64]) -> NDArray[np.float64]:
    extent = float(np.abs(points).max(initial=0.0))
    if extent == 0:
        return points
    rounded: NDArray[np.float64] = np.round(points, _DIGITS - math.ceil(math.log10(extent)))
    return rounded + 0.0  # Turns -0.0 into 0.0.


def coverage(sources: pa.ChunkedArray, selected: NDArray[np.int64]) -> pa.Table:
    """Return the number of samples of each source in the pool and in the subset, most frequent in the pool first.

    Args:
        sources: string, (n,).
        selected: int64, (k,); a row that it holds twice counts twice.

    Returns:
        A table: source, pool, pool_share, selected, selected_share.
    """
    names, codes = _most_frequent_first(sources)
    pool = np.bincount(codes, minlength=len(names))
    picked = np.bincount(codes[selected], minlength=len(names))
    return pa.table(
        {
            "source": pa.array(names, pa.string()),
            "pool": pool,
            "pool_share": pool / max(1, pool.sum()),
            "selected": picked,
            "selected_share": picked / max(1, picked.sum()),
        }
    )


def _most_frequent_first(sources: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct sources, the most frequent first, and the index of each sample's, int64, (n,)."""
    encoded = sources.combine_chunks().dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    order = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    return [names[code] for code in order], np.argsort(order)[codes]


def pool_coverage(
    sources: pa.ChunkedArray, to_selected: NDArray[np.float64], to_random: NDArray[np.float64]
) -> pa.Table:
    """Return the distances of the pool's samples to the nearest pick, by source, most frequent first.

    Args:
        sources: string, (n,).
        to_selected, to_random: float64, (n,), cosine distances to the nearest of the subset and of a random one.

    Returns:
        A table, first a row `WHOLE` if there are several sources: source, samples (int64), and float64
        selected_mean, selected_median, selected_p90, and the same of random.
    """
    names, codes = _most_frequent_first(sources)
    parts = [(name, np.flatnonzero(codes == code)) for code, name in enumerate(names)]
    if len(parts) > 1:
        parts.insert(0, (WHOLE, np.arange(len(codes))))
    rows = []
    for name, members in parts:
        row: dict[str, Any] = {"source": name, "samples": len(members)}
        for set_name, distances in (("selected", to_selected), ("random", to_random)):
            part = distances[members]
            row[f"{set_name}_mean"] = float(part.mean())
            row[f"{set_name}_median"], row[f"{set_name}_p90"] = np.quantile(part, [0.5, 0.9]).tolist()
        rows.append(row)
    return pa.Table.from_pylist(rows)


def least_covered(
    samples: pa.Table,
    to_selected: NDArray[np.float64],
    to_random: NDArray[np.float64],
    cells: NDArray[np.int64],
    selected: NDArray[np.int64],
) -> pa.Table:
    """Return the `REGIONS` regions of the pool whose samples are farthest from their nearest pick, farthest first.

    Args:
        samples: the pool, with columns id, source, file, position, line and text.
        to_selected, to_random: float64, (n,), cosine distances to the nearest of the subset and of a random one.
        cells: int64, (n,), the region of each sample: its k-means cell, as used by partition entropy.
        selected: int64, (k,), rows of the subset; one that it holds twice counts twice.

    Returns:
        A table: samples, picks (int64), selected_mean, random_mean (float64), sources (string: the most
        frequent with their shares), and the region's sample of median distance as an example: id, source, place,
        snippet. Regions in which every sample is picked are left out.
    """
    sizes = np.bincount(cells)
    means, at_random = (
        np.bincount(cells, weights=distances) / np.maximum(sizes, 1) for distances in (to_selected, to_random)
    )
    picks = np.bincount(cells[selected], minlength=len(sizes))
    order = [int(cell) for cell in np.argsort(-means, kind="stable")[:REGIONS] if means[cell] > 0]
    members = [np.flatnonzero(cells == cell) for cell in order]
    # Ordered by distance, ties by row; for an even number, the nearer of the middle two.
    examples = [rows[np.argsort(to_selected[rows], kind="stable")[(len(rows) - 1) // 2]] for rows in members]
    shown = samples.select(["id", "source", "file", "position", "line", "text"]).take(pa.array(examples, pa.int64()))
    return pa.table(
        {
            "samples": sizes[order],
            "picks": picks[order],
            "selected_mean": means[order],
            "random_mean": at_random[order],
            "sources": pa.array([_mix(samples["source"].take(pa.array(rows))) for rows in members], pa.string()),
            "id": shown["id"],
            "source": shown["source"],
            "place": pa.array(
                [place_of(row) for row in shown.select(["file", "position", "line"]).to_pylist()], pa.string()
            ),
            "snippet": snippets(shown["text"], REGION_SNIPPET),
        }
    )


def _mix(sources: pa.ChunkedArray) -> str:
    """Return the most frequent sources with their shares: one, and up to two more with at least 1 %."""
    counts = [(entry["values"], entry["counts"]) for entry in sources.value_counts().to_pylist()]
    counts.sort(key=lambda entry: (-entry[1], entry[0]))
    shown = [counts[0], *(entry for entry in counts[1:3] if 100 * entry[1] >= len(sources))]
    named = [f"{shortened(name, 40)} {count / len(sources):.0%}" for name, count in shown]
    return ", ".join([*named, *([f"{len(counts) - len(named):,} more"] if len(counts) > len(named) else [])])


def place_of(row: Mapping[str, Any]) -> str:
    """Return a record's place as text: FILE:LINE where every record begins a line of its own, else FILE#RECORD.

    Args:
        row: file, line (None in files without lines) and position, the number of the record in its file, from 1.
    """
    file, line = row["file"], row["line"]
    in_list = _JSON_LIST.search(file) is not None
    if line is not None and not in_list:
        return f"{file}:{line}"
    # A list of records may be one line.
    return f"{file}#{row['position']}" + (f" (line {line})" if line is not None and line > 1 else "")


def lengths(samples: pa.Table, selected: NDArray[np.int64]) -> pa.Table:
    """Return quantiles and mean of tokens, turns and characters, in the pool and in the subset.

    Args:
        samples: the pool, with columns tokens, turns and characters.
        selected: int64, (k,); a row that it holds twice counts twice.

    Returns:
        A table: quantity, statistic (a key of `QUANTILES`, or "mean"), pool, subset (float64), ratio (subset / pool;
        null if the pool's is 0).
    """
    rows = []
    for quantity in QUANTITIES:
        pool = samples[quantity].to_numpy().astype(np.float64)
        pairs = [_statistics(pool), _statistics(pool[selected])]
        for statistic in (*QUANTILES, "mean"):
            whole, part = (of[statistic] for of in pairs)
            ratio = part / whole if whole else None
            rows.append({"quantity": quantity, "statistic": statistic, "pool": whole, "subset": part, "ratio": ratio})
    kinds = [("quantity", pa.string()), ("statistic", pa.string())]
    numbers = [(name, pa.float64()) for name in ("pool", "subset", "ratio")]
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds + numbers))


def _statistics(values: NDArray[np.float64]) -> dict[str, float]:
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return {**{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)}, "mean": values.mean()}


def nearest_pairs(samples: pa.Table, vectors: NDArray[np.float32], selected: NDArray[np.int64]) -> pa.Table:
    """Return the `PAIRS` closest pairs of different samples within the subset, closest first.

    A row that was picked more than once counts once: it is not paired with itself.

    Args:
        samples: the pool, with columns id, source and text.
        vectors: float32, (n, d), in pool order.
        selected: int64, (k,), rows in pick order.

    Returns:
        A table: distance (float64, cosine), then id, source and snippet of both, the earlier pick as `_a`.

    Raises:
        ValueError: if a picked row is all zeros, which has no cosine.
    """
    rows = first_picks(selected)
    first, second, distance = closest(unit_rows(vectors[rows], "subset"), PAIRS)
    columns: dict[str, pa.Array | NDArray[np.float64]] = {"distance": distance}
    for side, of in (("a", rows[first]), ("b", rows[second])):
        taken = samples.select(["id", "source", "text"]).take(pa.array(of))
        columns[f"id_{side}"], columns[f"source_{side}"] = taken["id"], taken["source"]
        columns[f"snippet_{side}"] = snippets(taken["text"])
    return pa.table(columns)


def first_picks(selected: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct rows among the picks, int64, in the order of their first pick."""
    return selected[np.sort(np.unique(selected, return_index=True)[1])]


def closest(units: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the closest pairs of rows, in tiles: rows a < b, int64, and cosine distances, float64; at most `count`.

    Args:
        units: float32, (m, d), rows of length 1.
        count: pairs wanted, at most `PAIRS`.
    """
    pairs = (np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    for top in range(0, len(units), _TILE):
        for left in range(top, len(units), _TILE):
            pairs = _closer(pairs, units, top, left)
    distance, first, second = pairs
    return first[:count], second[:count], distance[:count]


_Pairs = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


def _closer(pairs: _Pairs, units: NDArray[np.float32], top: int, left: int) -> _Pairs:
    """Return the `PAIRS` closest of the pairs so far and those of one tile."""
    distance = cosine_distances(units[top : top + _TILE], units[left : left + _TILE])
    if top == left:
        distance[np.tril_indices(len(distance))] = np.inf
    flat = distance.ravel()
    limit = pairs[0][-1] if len(pairs[0]) == PAIRS else np.finfo(np.float64).max
    near = np.flatnonzero(flat <= limit)
    if len(near) > PAIRS:
        near = near[flat[near] <= np.partition(flat[near], PAIRS - 1)[PAIRS - 1]]
    first, second = np.divmod(near, distance.shape[1])
    values = np.concatenate([pairs[0], flat[near]])
    firsts, seconds = np.concatenate([pairs[1], first + top]), np.concatenate([pairs[2], second + left])
    order = np.lexsort((seconds, firsts, values))[:PAIRS]
    return values[order], firsts[order], seconds[order]


def snippets(texts: pa.ChunkedArray, length: int = SNIPPET) -> pa.Array:
    """Return the beginning of each text on one line, at most `length` characters, without invisible ones."""
    beginnings = pc.utf8_slice_codeunits(texts, 0, 4 * length).to_pylist()
    return pa.array([shortened(_visible(text), length) for text in beginnings], pa.string())


def _visible(text: str) -> str:
    line = " ".join(text.split())
    if line.isprintable():
        return line
    # Control characters and direction marks would affect the text around the snippet.
    return "".join(letter for letter in line if letter.isprintable())


def shortened(text: str, length: int) -> str:
    """Return `text`, cut to `length` characters, with an ellipsis as the last one if it was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
