"""Which runtime is taken, and the sentence that says why TensorRT was not. On the fakes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from engines.errors import InvalidOptionsError
from engines.options import BuildOptions
from engines.runtimes import selection
from tests.fakes import installed


@contextlib.contextmanager
def machine(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Iterator[None]:
    """A machine with the fakes; `settings` as in `tests.fakes.gpu.Settings`."""
    for name, value in settings.items():
        monkeypatch.setenv(f"FAKE_{name.upper()}", value)
    selection.tensorrt_problem.cache_clear()
    with installed():
        yield
    selection.tensorrt_problem.cache_clear()


def options(**given: Any) -> BuildOptions:
    return BuildOptions.parse(given)


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_tensorrt_is_taken_where_it_runs(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    with machine(monkeypatch, tensorrt=version):
        assert selection.tensorrt_problem() is None
        assert selection.runtime_for(options()).name == "tensorrt"
        assert selection.runtime_for(options(runtime="tensorrt")).name == "tensorrt"
        assert selection.runtime_for(options(runtime="openvino")).name == "openvino"
        said = selection.describe_runtime()
    assert said.startswith(
        f"engines run on TensorRT (tensorrt-{version.rpartition('.')[0]}-sm89-nvidia_l4-cuda13.0"
    )
    assert "was not run on hardware by us" in said


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"no_cuda": "no CUDA-capable device is detected"},
            r"CUDA cannot be started \(cuInit failed: no CUDA-capable device is detected\)",
        ),
        ({"tensorrt": "8.6.1"}, r"TensorRT 8\.6\.1 is installed, and octet needs 10\.16 or later"),
        (
            {"no_tensorrt": "libnvinfer.so.11: cannot open shared object file"},
            r"TensorRT's libraries cannot be loaded \(libnvinfer\.so\.11: cannot open shared object file\)",
        ),
        (
            {"driver_too_old": "CUDA initialization failure with error: 35", "driver": "12040"},
            (
                r"TensorRT 11\.4\.0\.106 does not start \(Cuda Runtime \(CUDA initialization failure with error: 35\)\)"
                "; the driver of NVIDIA L4 knows CUDA 12.4"
            ),
        ),
    ],
)
def test_what_is_missing_is_said_in_a_sentence_and_openvino_serves(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], sentence: str
) -> None:
    with machine(monkeypatch, **settings):
        assert selection.runtime_for(options()).name == "openvino"
        with pytest.raises(InvalidOptionsError, match=rf"asks for tensorrt, .*: {sentence}; use \"auto\""):
            selection.runtime_for(options(runtime="tensorrt"))
        said = selection.describe_runtime()
    assert said.startswith("engines run on OpenVINO; TensorRT was not taken: ")
    assert "\n" not in said


def test_without_pycuda_the_extra_is_named() -> None:
    selection.tensorrt_problem.cache_clear()
    try:
        assert "pip install 'octet[tensorrt]'" in (selection.tensorrt_problem() or "")
    finally:
        selection.tensorrt_problem.cache_clear()
