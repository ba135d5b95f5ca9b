"""Fixtures that every test may use."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.s3"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real samples beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real samples in ../shared/data, which are not part of the project")
    return SHARED / "data"
