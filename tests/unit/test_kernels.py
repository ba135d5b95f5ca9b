"""Results do not depend on the processor: the same on every kernel of OpenBLAS, FAISS, numba, NumPy and torch.

The kernels are those of x86-64; one that this processor cannot run is skipped.
"""

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

KERNELS = ["Haswell", "Zen", "SkylakeX", "Prescott"]
"""Kernels of OpenBLAS: AVX2, AVX2 on AMD, AVX-512, SSE3."""
GENERIC = {
    "FAISS_OPT_LEVEL": "generic",
    "NUMBA_CPU_NAME": "generic",
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": "AVX512_SPR AVX512_ICL AVX512_SKX X86_V4 AVX512F AVX512CD AVX2 FMA3 X86_V3",
}
"""The least of vector instructions that FAISS, numba, torch and NumPy can be told to use."""
NUMERIC_TESTS = [
    "tests/unit/test_golden.py",
    "tests/unit/test_novelsum_variants.py",
    "tests/unit/test_exact_distances.py",
    "tests/unit/test_strategies.py",
]
_CLOSE = 1e-12
"""How much results may differ, relatively, that are documented to differ: far less than documented, in fact."""
_PROBE = "import numpy as np; x = np.ones((64, 64)); print((x @ x + x.astype('f') @ x.astype('f')).sum())"


def _run(arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def _results(variables: dict[str, str]) -> dict[str, Any]:
    done = _run(["-m", "tests.numeric_results"], variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """Results with the kernels that the libraries choose."""
    return _results({})


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variable that forces a kernel of OpenBLAS."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"{request.param} is a kernel for x86-64, and this processor is {platform.machine()}")
    forced = {"OPENBLAS_CORETYPE": request.param}
    if _run(["-c", _PROBE], forced).returncode != 0:
        pytest.skip(f"this processor cannot run the kernel {request.param}")
    return forced


def _assert_equal(found: dict[str, Any], own: dict[str, Any]) -> None:
    assert [name for name in own["exact"] if found["exact"][name] != own["exact"][name]] == []
    for name, value in own["close"].items():
        assert found["close"][name] == pytest.approx(value, rel=_CLOSE, abs=0), name
    # The index finds its documented part of the neighbours; a distance that it finds is the exact one.
    for result in (found, own):
        assert result["lists"]["index"].startswith("ivf")
        assert result["lists"]["recall"] >= 0.95
    densities = zip(found["lists"]["density"], own["lists"]["density"], strict=True)
    other = sum(one != another for one, another in densities)
    assert other <= 2 * 0.05 * 10 * len(own["lists"]["density"])


def test_results_are_equal_with_the_least_of_vector_instructions(own: dict[str, Any]) -> None:
    _assert_equal(_results(GENERIC), own)


def test_results_are_equal_with_one_thread(own: dict[str, Any]) -> None:
    _assert_equal(_results({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}), own)


def test_results_are_equal_on_every_kernel(kernel: dict[str, str], own: dict[str, Any]) -> None:
    _assert_equal(_results(kernel), own)


def test_numeric_tests_pass_on_every_kernel(kernel: dict[str, str]) -> None:
    done = _run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", *NUMERIC_TESTS], kernel)
    assert done.returncode == 0, done.stdout[-4000:]
