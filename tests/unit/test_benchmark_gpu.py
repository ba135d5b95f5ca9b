"""The benchmark of a GPU runs from end to end where there is none, on small pools."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import clustered


@pytest.mark.slow
def test_it_compares_with_the_cpu_and_times_everything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    for line in (
        "| densities of 1,000 x 24, bit for bit | yes |",
        "| 50 picks of 1,000 x 24, one by one | yes |",
        "| embedding | samples/s | number type |",
        "| NovelSelect, k = 60 |",
        "60 picks; seconds by picks made: 10: ",
    ):
        assert line in done.stdout


def test_its_pool_has_clusters_and_near_duplicates() -> None:
    rows = clustered(2000, 48, "cpu")
    assert rows.shape == (2000, 48)
    np.testing.assert_array_equal(rows, clustered(2000, 48, "cpu"))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (unit[99::100] * unit[98::100]).sum(1).min() > 0.9999
    cosines = np.sort(unit[:200] @ unit.T, axis=1)
    assert np.median(cosines[:, -20]) > 0.5 > np.median(cosines[:, 1000]) + 0.3
