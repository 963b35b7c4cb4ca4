"""Tests that need an NVIDIA GPU: `python -m pytest tests/gpu`. Without one they skip, and say what is missing.

What of it has run where is in docs/gpu-runs.md. With the fakes of `tests/fakes` on PYTHONPATH all but those that
compile a kernel run on the simulated GPU, which shows that they say what they mean, and nothing of hardware.
"""

import importlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.runtimes.base import Runtime
from engines.runtimes.selection import device_problem, tensorrt_problem

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def cuda() -> Any:
    """`engines.runtimes.cuda`, on this machine's GPU."""
    if (problem := device_problem()) is not None:
        pytest.skip(f"needs an NVIDIA GPU: {problem}")  # the hardware is not here
    return importlib.import_module("engines.runtimes.cuda")


@pytest.fixture(scope="session")
def compiler(cuda: Any) -> Any:
    """pycuda's compiler of kernels."""
    if importlib.util.find_spec("pycuda.compiler") is None or shutil.which("nvcc") is None:
        pytest.skip("needs nvcc and pycuda's compiler, for a kernel")  # the toolkit is not here
    return importlib.import_module("pycuda.compiler")


@pytest.fixture
def tensorrt() -> Runtime:
    """octet's runtime on this machine's GPU."""
    if (problem := tensorrt_problem()) is not None:
        pytest.skip(f"needs TensorRT on an NVIDIA GPU: {problem}")  # the library or the hardware is not here
    runtime: Runtime = importlib.import_module("engines.runtimes.tensorrt.runtime").TensorRTRuntime()
    return runtime
