"""The order in which near-duplicates are resolved: the first sample of a group is kept (`near_duplicates.keep`).

Belongs here: the order. Does not: which samples are alike (`duplicates`, `diversity.similar`).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.pool.fields import positive_numbers
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import NearDuplicates


def keeping_order(snapshot: PoolSnapshot, root: Path, rule: NearDuplicates, quality: str | None) -> NDArray[np.int64]:
    """Return the rows of a pool's samples, int64, (n,), in the order of the rule; ties in pool order.

    Args:
        snapshot: the pool.
        root: the storage folder.
        rule: first (pool order), longest (most characters), or quality (the highest).
        quality: field of the records, for the last.

    Raises:
        InputError: if a sample has no number above 0 in that field; names the first.
    """
    if rule.keep == "first":
        return np.arange(snapshot.kept)
    if rule.keep == "longest":
        values = snapshot.samples(root, ["characters"])["characters"].to_numpy()
    else:
        assert quality is not None
        values = np.array(positive_numbers(snapshot, root, quality))
    return np.argsort(-values, kind="stable")
