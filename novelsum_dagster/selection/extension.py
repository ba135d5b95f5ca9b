"""The earlier subset that a selection keeps and adds to (`selection.extend_by`).

Belongs here: which subset that is, and which of its samples are still in the pool. Does not: choosing (`chosen`).
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.artifacts.provenance import damaged_files, read_record, record_path
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.subset import Subset, read_picks

EXTENDS = "extends"
"""The option of a recorded selection that names the subset that it extends."""


@dataclass(frozen=True)
class Earlier:
    """A subset that is extended.

    Attributes:
        key: of the subset.
        kept: its samples that are still in the pool, in pick order.
        gone: those that are not.
    """

    key: str
    kept: tuple[str, ...]
    gone: tuple[str, ...]


def subset_to_extend(snapshot: PoolSnapshot, newest: Subset | None) -> str | None:
    """Return the key of the newest subset of another snapshot, so that a second run over the same pool adds nothing.

    Args:
        snapshot: the pool.
        newest: the newest subset, if any.
    """
    if newest is None:
        return None
    return newest.key if newest.settings.snapshot != snapshot.key else newest.settings.options.get(EXTENDS)


def earlier_subset(root: Path, snapshot: PoolSnapshot, key: str) -> Earlier:
    """Return the subset of a key, split into samples that are still in the pool and samples that are not.

    Raises:
        InputError: if its picks are missing, or not as they were written.
    """
    try:
        _require_undamaged(root, key)
        ids = read_picks(root / output_folder("selections", key), ["id"])["id"].to_pylist()
    except InputError as error:
        raise InputError(
            f"the subset to extend cannot be read: {error}. Or remove selection.extend_by from the settings, to select"
            " without it"
        ) from None
    known = set(snapshot.samples(root, ["id"])["id"].to_pylist())
    distinct = dict.fromkeys(present_ids(ids, known, snapshot.ids_by_former(root)))
    return Earlier(
        key, tuple(id_ for id_ in distinct if id_ in known), tuple(id_ for id_ in distinct if id_ not in known)
    )


def _require_undamaged(root: Path, key: str) -> None:
    """Require that the files of a subset are as its record states; one of an earlier release has no record."""
    if record_path(root, "selected_subset", key).exists():
        damaged = damaged_files(root, read_record(root, "selected_subset", key))
        if damaged:
            raise InputError("; ".join(damaged))


def present_ids(ids: Iterable[str], known: Container[str], renamed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return ids with those of an earlier release replaced by the present ones.

    Args:
        ids: of samples.
        known: the present ids.
        renamed: those that had each former id; the first of them is the one that was kept at that time.
    """
    return [id_ if id_ in known else renamed.get(id_, [id_])[0] for id_ in ids]
