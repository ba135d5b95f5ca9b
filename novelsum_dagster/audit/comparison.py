"""The comparison of two states of a curation, as it is kept: its parts, and reading it.

Belongs here: that. Does not: comparing (`changes`), saying it in words (`changes_words`).

A state is a pool and the subset chosen from it.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.errors import InputError

FOLDER = "changes"
EXAMPLES = 20
"""The most ids that are given of each kind."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class State(_Part):
    """A pool, the subset chosen from it, and the report that measured it: their keys."""

    snapshot: str
    selection: str
    report: str


class Files(_Part):
    """Source files by what became of them; a dataset on the hub is overwritten where its samples changed."""

    added: tuple[str, ...]
    overwritten: tuple[str, ...]
    removed: tuple[str, ...]


class Moved(_Part):
    """Samples that entered or left: how many, by source and by reason, and of each reason some ids."""

    count: int
    by_source: dict[str, int]
    by_reason: dict[str, int]
    examples: dict[str, tuple[str, ...]]


class SourceSize(_Part):
    """Samples of a source in the pool, and its part of the pool, before and after."""

    source: str
    before: int
    after: int
    share_before: float
    share_after: float


class PoolChange(_Part):
    """What changed in the pool."""

    size_before: int
    size_after: int
    entered: Moved
    left: Moved
    sources: tuple[SourceSize, ...]


class PickChange(_Part):
    """What changed in the subset; the reasons are those of `novelsum diff`."""

    before: int
    after: int
    entered: Moved
    left: Moved
    stayed: int


class MeasureChange(_Part):
    """A measure of a set in both reports.

    Attributes:
        low, high: the earlier 95 % interval.
        difference: after less before; None where the two do not compare.
        is_outside: whether the new value is outside of the earlier interval.
    """

    set_name: str
    measure: str
    size_before: int
    size_after: int
    before: float
    low: float
    high: float
    after: float
    difference: float | None
    is_outside: bool | None


class Comparison(_Part):
    """One state against the one before; all that compares is None if there is none.

    Attributes:
        number: 1 for a change that is made for the first time, 2 where it was undone and made again; 0 where there is
            nothing to compare with.
        earlier_is_gone: whether there were other states whose files are gone.
        runs: of the first making: `after` was compared with `before`.
        settings: by key, the values before and after, where they differ.
        other_yardstick: why no measure compares, in words.
        fresh: NovelSum of a fresh selection, where the subset extends an earlier one.
        given_up: what the subset's NovelSum lacks to it.
    """

    number: int
    earlier_is_gone: bool = False
    runs: dict[str, str]
    before: State | None
    after: State
    files: Files | None = None
    pool: PoolChange | None = None
    picks: PickChange | None = None
    settings: dict[str, tuple[Any, Any]] = {}
    measures: tuple[MeasureChange, ...] = ()
    other_yardstick: str | None = None
    fresh: float | None = None
    given_up: float | None = None

    def measure(self, set_name: str, measure: str) -> MeasureChange | None:
        """Return a measure of a set; None where not both reports have it."""
        return next((row for row in self.measures if (row.set_name, row.measure) == (set_name, measure)), None)


class Changes(Artifact):
    """A comparison on disk, in `folder`."""

    folder: str

    def comparison(self, root: Path) -> Comparison:
        """Read the comparison; `root` is the storage folder.

        Raises:
            InputError: where it is missing or damaged.
        """
        path = root / self.folder / "changes.json"
        try:
            return Comparison.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); delete it, and run again") from None
