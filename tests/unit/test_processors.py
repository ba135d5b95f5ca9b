"""How many processors the work is divided among."""

import os

import pytest

from novelsum_dagster.common.processors import usable_processors


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_the_affinity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_processors() == len(os.sched_getaffinity(0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7})
    assert usable_processors() == 3


@pytest.mark.skipif(hasattr(os, "process_cpu_count"), reason="Python knows the count itself")
def test_a_system_without_affinity_counts_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert usable_processors() == 12
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_processors() == 1
