"""Random draws: a uniform one, and one that repeats a few samples to make sets of low diversity.

Belongs here: Random and Duplicate of the paper's comparison. Does not: draws within clusters (`kmeans`).
"""

import numpy as np

from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.picks import PickLog


def random(inputs: Inputs) -> PickLog:
    """Pick k samples uniformly without replacement: the baseline of the paper's comparison.

    Progress is reported once, at the end.
    """
    indices = np.random.default_rng(inputs.seed).permutation(len(inputs.units))[: inputs.k]
    inputs.progress(inputs.k, inputs.k)
    return PickLog.of(indices)


def duplicate(inputs: Inputs, *, copies: int = 10) -> PickLog:
    """Pick ceil(k / copies) samples uniformly and repeat them, in the same order, until there are k picks.

    The paper makes its sets of low diversity this way. The first samples are those of `random` with the same seed.
    For studies only: picks repeat, and every repetition is at distance 0 of an earlier pick. Progress is reported once,
    at the end.

    Args:
        inputs: its seed is that of the draw.
        copies: how often a sample is picked, 1 or more, default 10; if k is not a multiple of it, the last samples
            of the draw are picked once less.

    Raises:
        ValueError: for `copies` out of range.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}; it must be 1 or more")
    k = inputs.k
    distinct = np.random.default_rng(inputs.seed).permutation(len(inputs.units))[: -(-k // copies)]
    inputs.progress(k, k)
    return PickLog.of(np.resize(distinct, k))
