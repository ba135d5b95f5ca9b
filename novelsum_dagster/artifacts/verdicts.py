"""The outcome of the checks of one artifact, and the file that keeps it.

Belongs here: the record. Does not: running checks (`quality`).
"""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Failure(BaseModel):
    """An expectation that was not met."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expectation: str
    observed: str


class Verdict(BaseModel):
    """The outcome of one suite on one output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    name: str
    key: str
    blocking: bool
    passed: bool
    expectations: int
    failures: tuple[Failure, ...]


def describe(failures: Iterable[Failure]) -> str:
    """Return failures in one line."""
    return ", ".join(f"{failure.expectation} ({failure.observed})" for failure in failures)
