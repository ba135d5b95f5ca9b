"""Fixtures that every test may use."""

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.tiny import VARIABLE, make_tiny_model

pytest_plugins = ["tests.s3"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real samples beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real samples in ../shared/data, which are not part of the project")
    return SHARED / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Make the tiny model; workers and child processes find it through an environment variable."""
    if VARIABLE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="novelsum-tests-")
    os.environ[VARIABLE] = str(make_tiny_model(Path(folder) / "tiny-model"))

    def remove() -> None:
        del os.environ[VARIABLE]
        shutil.rmtree(folder)

    config.add_cleanup(remove)


@event.listens_for(Engine, "connect")
def _need_not_reach_the_disk(connection: Any, _: Any) -> None:
    """Let Dagster's databases, of which none outlives its test, not wait for the disk at every event."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
