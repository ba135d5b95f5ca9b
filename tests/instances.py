"""Dagster instances for runs whose instance is not the subject."""

import dagster as dg


def in_memory() -> dg.DagsterInstance:
    """Return an instance that keeps its runs and events in memory, to be used in a `with` block.

    On a disk every event opens a database: several hundred in a curation, which take longer than its steps.
    """
    return dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}})
