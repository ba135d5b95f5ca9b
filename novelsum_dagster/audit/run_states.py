"""The states of two runs' selections, read for replays.

Belongs here: from stored files to `attribution.State`. Does not: the replays (`attribution`).
"""

from collections.abc import Callable
from functools import cache

from novelsum_dagster.audit.attribution import ById, NotKnown, State
from novelsum_dagster.audit.run_selection import RunSelection
from novelsum_dagster.audit.verified import VECTORS
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.store import load_vectors

_READ = (VECTORS, "density.parquet")
"""Files that replays read, beside those that the comparison read before."""
_MAY_BE_MISSING = ("nearest.parquet",)


def states_of(a: RunSelection, b: RunSelection) -> tuple[State, State]:
    """Read the states of two runs, given their selections.

    Raises:
        NotKnown: if files are missing or damaged, or settings are of another version.
    """
    try:
        for one in (a, b):
            one.require_undamaged(_READ, if_present=_MAY_BE_MISSING)
        vectors = _vectors(a, b)
        return _state(a, vectors[0]), _state(b, vectors[1])
    except InputError as error:
        raise NotKnown(str(error)) from error


def _vectors(a: RunSelection, b: RunSelection) -> tuple[ById, ById]:
    """Return the vectors of both runs: of both pools, if they are of one model."""
    if a.run.vectors_folder != b.run.vectors_folder:
        return ById(a.ids, a.vectors), ById(b.ids, b.vectors)
    ids = [*a.ids, *(id_ for id_ in b.ids if id_ not in a.row_of)]
    shared = ById(ids, load_vectors(a.root / a.run.vectors_folder, ids))
    return shared, shared


def _state(run: RunSelection, vectors: ById) -> State:
    return State(
        ids=tuple(run.ids),
        dropped=run.dropped,
        vectors=vectors,
        is_fitted=run.is_fitted,
        squared=ById(run.ids, run.squared),
        nearest=cache(run.nearest),
        values=_values(run),
        selection=run.selection,
        novelsum=run.novelsum,
        kept=None if run.earlier is None else run.earlier.kept,
        picks=tuple(run.picks),
    )


def _values(run: RunSelection) -> Callable[[str], ById]:
    @cache
    def values(name: str) -> ById:
        try:
            return ById(run.ids, run.values(name))
        except InputError as error:
            raise NotKnown(str(error)) from error

    return values
