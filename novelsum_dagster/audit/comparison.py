"""The stored comparison of two states of a curation: its data model, and reading it.

Does not belong here: comparing (`changes`), its text (`changes_words`).

A state is a pool and the subset selected from it.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.errors import InputError

EXAMPLES = 20
"""The most example ids listed of each kind."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class State(_Part):
    """Keys of a pool, the subset selected from it, and the report that measured it."""

    snapshot: str
    selection: str
    report: str


class Files(_Part):
    """Source files by kind of change; a dataset on the hub counts as overwritten if its samples changed."""

    added: tuple[str, ...]
    overwritten: tuple[str, ...]
    removed: tuple[str, ...]


class Moved(_Part):
    """Samples that entered or left: their number by source and by reason, and example ids for each reason."""

    count: int
    by_source: dict[str, int]
    by_reason: dict[str, int]
    examples: dict[str, tuple[str, ...]]


class SourceSize(_Part):
    """Number of samples of a source in the pool, and its share of the pool, before and after."""

    source: str
    before: int
    after: int
    share_before: float
    share_after: float


class PoolChange(_Part):
    """Changes in the pool."""

    size_before: int
    size_after: int
    entered: Moved
    left: Moved
    sources: tuple[SourceSize, ...]


class PickChange(_Part):
    """Changes in the subset; the reasons are those of `novelsum diff`."""

    before: int
    after: int
    entered: Moved
    left: Moved
    stayed: int


class MeasureChange(_Part):
    """A measure of a set in both reports.

    Attributes:
        low, high: the earlier 95 % interval.
        difference: after minus before; None if the two cannot be compared.
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
    """A state compared with the one before; the compared fields are None without an earlier state.

    Attributes:
        number: 1 for a change that occurs for the first time, 2 if it was undone and repeated; 0 if there is nothing
            to compare with.
        earlier_is_gone: whether earlier states existed whose files were deleted.
        runs: ids of the first such pair of runs, `before` and `after`.
        settings: by key, the values before and after, if they differ.
        other_yardstick: why no measure can be compared, as a sentence.
        fresh: NovelSum of a fresh selection, if the subset extends an earlier one.
        given_up: difference of `fresh` and the subset's NovelSum.
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
        """Return a measure of a set; None unless both reports have it."""
        return next((row for row in self.measures if (row.set_name, row.measure) == (set_name, measure)), None)


class Changes(Artifact):
    """A comparison on disk, in `folder`."""

    folder: str

    def comparison(self, root: Path) -> Comparison:
        """Read the comparison; `root` is the storage folder.

        Raises:
            InputError: if it is missing or damaged.
        """
        path = root / self.folder / "changes.json"
        try:
            return Comparison.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); delete it, and run again") from None
