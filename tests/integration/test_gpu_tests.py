"""The tests for GPUs where there is none: they skip visibly, and pass on the fakes but for those with a kernel."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

from engines.runtimes.selection import device_problem
from tests.fakes import ROOT, environment


def run_them(variables: Mapping[str, str]) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/gpu"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:]
    return result.stdout


@pytest.mark.skipif(device_problem() is None, reason="there is a GPU here, on which they do not skip")
def test_without_a_gpu_all_of_them_skip_and_say_what_is_missing() -> None:
    output = run_them({})
    assert re.search(r"^\d+ skipped in", output, re.MULTILINE)
    assert "needs an NVIDIA GPU: " in output
    assert "needs TensorRT on an NVIDIA GPU: " in output


def test_on_the_simulated_gpu_they_pass_but_for_those_with_a_kernel() -> None:
    output = run_them(environment(tensorrt="11.4.0.106"))
    assert re.search(r"^\d+ passed, 2 skipped in", output, re.MULTILINE), output[-2000:]
    assert output.count("for a kernel") == 2
