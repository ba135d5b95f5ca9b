"""Farthest: the samples that lie farthest from all others, whatever they have in common.

Belongs here: that strategy. Does not: K-Center-Greedy, which looks at the picks made (`kcenter`).
"""

import numpy as np

from novelsum_dagster.selection.inputs import Inputs
from novelsum_dagster.selection.picks import PickLog

_TILE = 8192


def farthest(inputs: Inputs) -> PickLog:
    """Pick the k samples of the largest mean cosine distance to all samples, the farthest first.

    The mean over all n samples, the sample itself included, is `1 - <x_i, mean of the unit rows>`: O(nd). Leaving the
    sample itself out scales every mean alike and changes no pick. The lowest index wins a tie. A pick's runner-up is
    the next in the ranking. Nothing is drawn; progress is of samples scored. (Farthest of the paper's comparison.)
    """
    units = inputs.units
    mean = units.mean(0, dtype=np.float64)
    score = np.empty(len(units))
    for start in range(0, len(units), _TILE):
        stop = min(start + _TILE, len(units))
        # NumPy adds in the same order on every processor; a BLAS product does not, not even for equal rows.
        score[start:stop] = 1 - (units[start:stop] * mean).sum(1)
        inputs.progress(stop, len(units))
    ranking = np.argsort(-score, kind="stable")
    log = PickLog.of(ranking[: inputs.k], score[ranking[: inputs.k]])
    others = ranking[1 : inputs.k + 1]
    log.runner_up[: len(others)], log.runner_up_score[: len(others)] = others, score[others]
    return log
