"""Which samples were eligible at every pick, and which limits ruled out the others.

Belongs here: the replay of a selection's limits over its picks. Does not: the limits themselves (`limits`), the record
(`picks`), sentences about it (`audit`).
"""

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.selection.limits import Limits
from novelsum_dagster.selection.picks import BARS, Eligibility


def eligibility(limits: Limits, picks: NDArray[np.int64], given: int) -> Eligibility:
    """Replay the limits of a selection over its picks.

    Args:
        limits: before the first pick; they count all picks afterwards.
        picks: int64, (k,), in pick order.
        given: how many of the first picks were not made by score.
    """
    n, k = len(limits.eligible()), len(picks)
    eligible, eligible_picks = np.zeros(k, np.int64), np.zeros(n, np.int64)
    ruled_out = {bar: np.zeros(k, np.int64) for bar in BARS}
    for pick in picks[:given].tolist():
        limits.add(pick)
    limits.changes()
    start = given
    while start < k:
        # What is eligible changes only now and then, apart from the picks themselves.
        allowed, bars, stop = limits.eligible(), limits.bars(), start
        while stop < k and (stop == start or limits.changes() is None):
            limits.add(int(picks[stop]))
            stop += 1
        made = np.arange(start, stop)
        eligible[made] = allowed.sum() - (made - start)
        for bar, mask in bars.items():
            ruled_out[bar][made] = mask.sum()
        eligible_picks[allowed] += len(made)
        eligible_picks[picks[made]] -= stop - 1 - made
        start = stop
    barred = np.full(n, -1, np.int64)
    for bar, mask in reversed((bars if given < k else {}).items()):
        barred[mask] = BARS.index(bar)
    return Eligibility(eligible, ruled_out, eligible_picks, barred)
