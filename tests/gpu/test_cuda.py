"""What needs CUDA alone: memory, streams, graphs and overlap, with a kernel in place of TensorRT's context."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

FLOAT = np.dtype(np.float32)
MIB = 1 << 20
KERNELS = """
extern "C" {
__global__ void twice(const float *source, float *target, int count) {
    int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place < count) target[place] = 2.0f * source[place];
}
// Ends when the host sets the flag, or after so many cycles that something must be wrong.
__global__ void wait(volatile float *flag) {
    long long start = clock64();
    while (*flag == 0.0f && clock64() - start < 40000000000LL) {}
}
}
"""


@contextlib.contextmanager
def scope_on(cuda: Any) -> Iterator[Any]:
    """A scope on the GPU, its context current in this thread."""
    device = cuda.default_device()
    scope = cuda.Scope(device)
    try:
        with device.active():
            yield scope
    finally:
        scope.close()


def free_bytes(cuda: Any) -> int:
    with cuda.default_device().active():
        return int(cuda.driver.mem_get_info()[0])


@pytest.fixture(scope="module")
def kernels(cuda: Any, compiler: Any) -> Any:
    with cuda.default_device().active():
        return compiler.SourceModule(KERNELS, no_extern_c=True)


class TestMemory:
    @pytest.mark.parametrize("elements", [1, 1023, 4 * MIB])
    def test_what_goes_to_the_gpu_comes_back(self, cuda: Any, elements: int) -> None:
        values = np.random.default_rng(0).normal(size=elements).astype(np.float32)
        with scope_on(cuda) as scope:
            source, target = scope.pinned((elements,), FLOAT), scope.pinned((elements,), FLOAT)
            buffer, stream = scope.device_buffer(source.nbytes), scope.stream()
            source[...] = values
            stream.copy_in(buffer, source)
            stream.copy_out(target, buffer)
            stream.synchronize()
            assert np.array_equal(target, values)

    def test_a_closed_scope_has_given_everything_back_from_whatever_thread(self, cuda: Any) -> None:
        with scope_on(cuda) as scope:
            scope.stream()
        before = free_bytes(cuda)
        for _ in range(20):
            scope = cuda.Scope(cuda.default_device())
            with cuda.default_device().active():
                scope.device_buffer(64 * MIB)
                scope.pinned((MIB,), FLOAT)
                scope.stream()
            closing = threading.Thread(target=scope.close)
            closing.start()
            closing.join()
        assert before - free_bytes(cuda) < 64 * MIB

    def test_more_than_there_is_is_refused_and_the_gpu_goes_on(self, cuda: Any) -> None:
        with scope_on(cuda) as scope:
            with pytest.raises(cuda.OutOfDeviceMemoryError, match="MiB are free"):
                scope.device_buffer(1 << 50)
            scope.device_buffer(MIB)


class TestGraphs:
    def test_a_launch_reads_what_its_pinned_memory_holds_then(self, cuda: Any) -> None:
        if not cuda.can_capture():
            pytest.skip("needs cuda-bindings")  # graphs are optional
        with scope_on(cuda) as scope:
            source, target = scope.pinned((256,), FLOAT), scope.pinned((256,), FLOAT)
            buffer, stream = scope.device_buffer(source.nbytes), scope.stream()

            def enqueue() -> None:
                stream.copy_in(buffer, source)
                stream.copy_out(target, buffer)

            graph = scope.graph(stream, enqueue)
            for value in (1.0, 2.0, 3.0):
                source[...] = value
                graph.launch()
                stream.synchronize()
                assert set(target.tolist()) == {value}

    def test_a_kernel_between_copies_is_captured_and_replayed(self, cuda: Any, kernels: Any) -> None:
        if not cuda.can_capture():
            pytest.skip("needs cuda-bindings")  # graphs are optional
        twice = kernels.get_function("twice")
        with scope_on(cuda) as scope:
            source, target = scope.pinned((1000,), FLOAT), scope.pinned((1000,), FLOAT)
            first, second = scope.device_buffer(source.nbytes), scope.device_buffer(source.nbytes)
            stream = scope.stream()

            def enqueue() -> None:
                stream.copy_in(first, source)
                arguments = (np.intp(first.address), np.intp(second.address), np.int32(1000))
                twice(*arguments, block=(256, 1, 1), grid=(4, 1), stream=stream._open())
                stream.copy_out(target, second)

            enqueue()
            stream.synchronize()
            graph = scope.graph(stream, enqueue)
            for seed in range(3):
                source[...] = np.random.default_rng(seed).normal(size=1000)
                graph.launch()
                stream.synchronize()
                assert np.array_equal(target, 2 * source)


class TestOverlap:
    def test_copies_of_one_stream_go_on_beside_the_computing_of_another(
        self, cuda: Any, kernels: Any
    ) -> None:
        wait = kernels.get_function("wait")
        with scope_on(cuda) as scope:
            flag = scope.pinned((1,), FLOAT)
            computing, copying = scope.stream(), scope.stream()
            source, target = scope.pinned((MIB,), FLOAT), scope.pinned((MIB,), FLOAT)
            buffer = scope.device_buffer(source.nbytes)
            source[...] = 7
            wait(np.intp(flag.ctypes.data), block=(1, 1, 1), grid=(1, 1), stream=computing._open())
            ended = cuda.driver.Event()
            ended.record(computing._open())
            try:
                copying.copy_in(buffer, source)
                copying.copy_out(target, buffer)
                copying.synchronize()
                overlapped = not ended.query()
                # pycuda frees it where its context is current.
                del ended
            finally:
                flag[...] = 1
                computing.synchronize()
            assert overlapped, "the copies waited for the kernel of the other stream"
            assert set(target.tolist()) == {7.0}

    def test_threads_work_in_streams_of_their_own(self, cuda: Any) -> None:
        wrong: list[int] = []

        def work(number: int, stream: Any, buffer: Any, source: Any, target: Any) -> None:
            for step in range(20):
                source[...] = number * 100 + step
                with cuda.default_device().active():
                    stream.copy_in(buffer, source)
                    stream.copy_out(target, buffer)
                    stream.synchronize()
                if not np.array_equal(source, target):
                    wrong.append(number)

        with scope_on(cuda) as scope:
            given = [
                (
                    scope.stream(),
                    scope.device_buffer(4 * MIB),
                    *(scope.pinned((MIB,), FLOAT) for _ in range(2)),
                )
                for _ in range(4)
            ]
            threads = [
                threading.Thread(target=work, args=(number, *parts)) for number, parts in enumerate(given)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []
