"""The self-test for GPUs: what it says where there is none, and that it comes to its end on the simulated one."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from engines.runtimes.selection import device_problem
from tests.fakes import ROOT, environment

pytestmark = pytest.mark.timeout(240)


def run_it(*arguments: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "docker" / "gpu-selftest", *arguments],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(device_problem() is None, reason="there is a GPU here, on which it would run")
def test_without_a_gpu_it_fails_and_says_what_is_missing() -> None:
    result = run_it(variables={})
    assert result.returncode == 1
    assert result.stdout.startswith("FAIL  TensorRT does not run here: ")


def test_on_the_simulated_gpu_every_type_is_built_served_compared_and_timed() -> None:
    arguments = ("--small", "--seconds", "0.1", "--requests", "64")
    result = run_it(*arguments, variables=environment(tensorrt="11.4.0.106"))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    lines = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("vit")]
    assert [(line[1], line[-1]) for line in lines] == [
        (kind, "ok") for kind in ("int8", "fp8", "fp16", "fp32")
    ]
    # Decibels, alone, and what HTTP serves: the 8-bit ones.
    assert [len(line) for line in lines] == [6, 6, 5, 5]
    assert result.stdout.rstrip().endswith("pass")
