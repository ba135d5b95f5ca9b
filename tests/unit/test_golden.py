"""The published code's own outputs: values to a relative 1e-5, selections index for index."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from novelsum_dagster.diversity import density, novelsum
from novelsum_dagster.selection import novelselect

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = ["duplicates", "mixture", "real", "unnormalised"]


def _case(name: str) -> tuple[dict[str, Any], np.ndarray]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), np.load(GOLDEN / f"{name}.npy", allow_pickle=False)


def _values() -> list[tuple[str, int]]:
    return [(name, number) for name in CASES for number in range(len(_case(name)[0]["novelsum"]))]


def _selections() -> list[tuple[str, int]]:
    return [(name, number) for name in CASES for number in range(len(_case(name)[0]["novelselect"]))]


@pytest.mark.parametrize(("name", "number"), _values())
def test_novelsum_equals_the_published_code(name: str, number: int) -> None:
    case, rows = _case(name)
    settings = dict(case["novelsum"][number])
    published = settings.pop("value")
    result = novelsum(rows[: case["target_rows"]], rows[: case["reference_rows"]], **settings)
    assert result.value == pytest.approx(published, rel=1e-5)
    assert result.value == pytest.approx(result.novelty.mean())


@pytest.mark.parametrize(("name", "number"), _selections())
def test_novelselect_makes_the_published_picks(name: str, number: int) -> None:
    case, rows = _case(name)
    settings = dict(case["novelselect"][number])
    published = settings.pop("indices")
    assert novelselect(rows, **settings).indices.tolist() == published


@pytest.mark.parametrize("name", CASES)
def test_density_factors_equal_the_published_code(name: str) -> None:
    case, rows = _case(name)
    factors = density(rows, neighbors=10).factor(0.5)
    np.testing.assert_allclose(factors[:20], case["density_factor_first_20"], rtol=1e-5)
