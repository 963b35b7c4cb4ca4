"""Memory, streams and graphs of a GPU, on the fake of pycuda."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineRunError
from tests.fakes import gpu, installed

FLOAT = np.dtype(np.float32)


@pytest.fixture
def cuda() -> Iterator[Any]:
    """The module, on a GPU on which nothing may be left behind."""
    with installed():
        yield importlib.import_module("engines.runtimes.cuda")


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (5,)])
def test_pinned_memory_has_any_shape_and_begins_as_zeros(cuda: Any, shape: tuple[int, ...]) -> None:
    device = cuda.default_device()
    scope = cuda.Scope(device)
    with device.active():
        array = scope.pinned(shape, FLOAT)
    assert (array.shape, array.dtype, type(array)) == (shape, FLOAT, np.ndarray)
    assert not array.any()
    scope.close()


def test_what_is_copied_in_and_out_again_is_the_same_once_the_stream_is_waited_for(cuda: Any) -> None:
    device = cuda.default_device()
    scope = cuda.Scope(device)
    with device.active():
        stream = scope.stream()
        source, target = scope.pinned((4,), FLOAT), scope.pinned((4,), FLOAT)
        buffer = scope.device_buffer(source.nbytes)
        source[...] = [1, 2, 3, 4]
        stream.copy_in(buffer, source)
        stream.copy_out(target, buffer)
        assert not target.any(), "nothing is done before it is waited for"
        stream.synchronize()
    assert target.tolist() == [1, 2, 3, 4]
    scope.close()
    with pytest.raises(EngineRunError, match="the engine is closed"):
        _ = stream.handle


def test_a_scope_frees_in_reverse_order_and_once(cuda: Any) -> None:
    device = cuda.default_device()
    scope = cuda.Scope(device)
    order: list[str] = []
    with device.active():
        scope.defer(lambda: order.append("first"))
        scope.device_buffer(0)
        scope.defer(lambda: order.append("last"))
    scope.close()
    scope.close()
    assert order == ["last", "first"]


def test_a_scope_frees_the_rest_where_freeing_one_fails(cuda: Any) -> None:
    device = cuda.default_device()
    scope = cuda.Scope(device)

    def fail() -> None:
        raise EngineRunError("cannot be freed.")

    with device.active():
        scope.device_buffer(64)
        scope.defer(fail)
        scope.pinned((2,), FLOAT)
    with pytest.raises(EngineRunError, match="cannot be freed"):
        scope.close()
    assert not gpu.the.device
    assert not gpu.the.pinned


def test_memory_that_is_not_there_is_said_with_what_is_free(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.the, "settings", gpu.Settings(memory_bytes=str(3 << 20)))
    device = cuda.default_device()
    scope = cuda.Scope(device)
    with device.active(), pytest.raises(EngineRunError, match=r"4194304 bytes .* \(3 of 3 MiB are free\)"):
        scope.device_buffer(4 << 20)
    scope.close()


def test_a_machine_without_a_gpu_says_what_the_driver_says(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.the, "settings", gpu.Settings(no_cuda="no CUDA-capable device is detected"))
    with pytest.raises(EngineRunError, match=r"cannot be started .*no CUDA-capable device is detected"):
        cuda.default_device()
