"""CUDA through pycuda: the context of one GPU, and memory, streams and graphs that are freed once, by their owner.

pycuda frees memory when Python happens to forget an object, in whatever thread that is; where the context is not
current in it, the memory is lost. So all that is made here belongs to a `Scope`, which frees it explicitly, in reverse
order, with the context current.

pycuda has no CUDA graphs. NVIDIA's cuda-bindings has them and takes pycuda's stream handles; without that package
`can_capture` is False and work is enqueued anew for each batch. Managed memory is not used: it moves behind our back.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycuda import driver

from engines.errors import EngineRunError
from engines.model.tensors import Array

try:
    from cuda.bindings import driver as graphs
except ImportError:
    graphs = None

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: such a stream never waits for the default stream, on which other libraries work."""


class OutOfDeviceMemoryError(EngineRunError):
    """The GPU has no memory left for what was asked."""


@contextlib.contextmanager
def translated(problem: str) -> Iterator[None]:
    """Raises what CUDA raises as an EngineRunError of one sentence."""
    try:
        yield
    except driver.MemoryError as error:
        raise OutOfDeviceMemoryError(
            f"{problem}: the GPU is out of memory ({_free_memory()}); lower max_batch_rows, or unload other models."
        ) from error
    except driver.Error as error:
        text = " ".join(str(error).split())
        raise EngineRunError(f"{problem}: {text}; if it goes on, restart octet and check the GPU.") from error


class CudaDevice:
    """One GPU, through its primary context, which CUDA libraries of a process share.

    Kept for the life of the process; any thread may use it.
    """

    def __init__(self, number: int = 0) -> None:
        """Starts CUDA.

        Raises:
            EngineRunError: there is no usable driver, or no GPU of that number.
        """
        try:
            driver.init()
            self._device = driver.Device(number)
            # pycuda tells contexts apart by object, so that there must be only this one.
            self._context = self._device.retain_primary_context()
        except driver.Error as error:
            raise EngineRunError(f"CUDA cannot be started ({' '.join(str(error).split())}).") from error

    @property
    def name(self) -> str:
        """As NVIDIA calls the GPU."""
        return str(self._device.name())

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor."""
        major, minor = self._device.compute_capability()
        return int(major), int(minor)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the context current in this thread; may be nested."""
        self._context.push()
        try:
            yield
        finally:
            # pycuda aborts the process where a thread ends with a context on its stack.
            driver.Context.pop()


@functools.cache
def default_device() -> CudaDevice:
    """The first GPU that this process sees; CUDA_VISIBLE_DEVICES chooses.

    Raises:
        EngineRunError: there is none.
    """
    return CudaDevice()


def driver_version() -> int:
    """The newest CUDA that the driver knows, as 1000 * major + 10 * minor."""
    return int(driver.get_driver_version())


def can_capture() -> bool:
    """Whether work can be captured in CUDA graphs."""
    return graphs is not None


@dataclass(frozen=True, kw_only=True)
class DeviceBuffer:
    """Memory on the GPU; its `Scope` frees it."""

    address: int
    size_bytes: int


class Scope:
    """What was allocated together: pinned memory, device memory, streams, graphs. Freed together, last made first."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """Zeros in page-locked memory, which the GPU copies from and to without a detour.

        Raises:
            EngineRunError: there is no memory.
        """
        elements = math.prod(shape)
        with translated("a batch cannot be staged"):
            # pycuda reads past the shape of a scalar, and CUDA allocates nothing empty.
            memory: Array = driver.pagelocked_empty((max(1, elements),), dtype)
        self._stack.callback(memory.base.free)  # type: ignore[union-attr] # pycuda's allocation is the base
        memory[...] = np.zeros((), dtype)
        return memory[:elements].reshape(shape)

    def device_buffer(self, size_bytes: int) -> DeviceBuffer:
        """Memory on the GPU, as it is found there.

        Raises:
            EngineRunError: there is not enough.
        """
        # CUDA allocates no empty buffers.
        size_bytes = max(1, size_bytes)
        with translated(f"{size_bytes} bytes cannot be allocated"):
            allocation = driver.mem_alloc(size_bytes)
        self._stack.callback(allocation.free)
        return DeviceBuffer(address=int(allocation), size_bytes=size_bytes)

    def stream(self) -> "Stream":
        """A stream of its own."""
        with translated("a stream cannot be made"):
            stream = Stream(driver.Stream(flags=_NON_BLOCKING))
        self._stack.callback(stream.close)
        return stream

    def graph(self, stream: "Stream", enqueue: Callable[[], None]) -> "Graph":
        """What `enqueue` puts into `stream`, to be launched as often as needed.

        Raises:
            EngineRunError: some of it cannot be captured; the stream is as it was.
        """
        graph = Graph(stream, enqueue)
        self._stack.callback(graph.close)
        return graph

    def defer(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when it is this one's turn to be freed."""
        self._stack.callback(callback)

    def close(self) -> None:
        """Frees everything. Idempotent."""
        with self._lock, self._device.active():
            self._stack.close()


class Stream:
    """Work for the GPU in order. A `Scope` makes and ends it."""

    def __init__(self, stream: driver.Stream) -> None:
        self._stream: driver.Stream | None = stream

    @property
    def handle(self) -> int:
        """The CUstream, for other libraries.

        Raises:
            EngineRunError: the stream has ended.
        """
        return int(self._open().handle)

    def copy_in(self, target: DeviceBuffer, source: Array) -> None:
        """Has pinned memory copied to the GPU."""
        driver.memcpy_htod_async(target.address, source, self._open())

    def copy_out(self, target: Array, source: DeviceBuffer) -> None:
        """Has memory of the GPU copied to pinned memory."""
        driver.memcpy_dtoh_async(target, source.address, self._open())

    def synchronize(self) -> None:
        """Waits until all is done, without holding the interpreter.

        Raises:
            EngineRunError: some of it failed.
        """
        with translated("the GPU failed on this batch"):
            self._open().synchronize()

    def close(self) -> None:
        """Ends the stream. Idempotent."""
        # pycuda destroys it with the object.
        self._stream = None

    def _open(self) -> driver.Stream:
        if self._stream is None:
            raise EngineRunError("the engine is closed; load the version again.")
        return self._stream


class Graph:
    """Work that was captured once: one call to the driver launches all of it. A `Scope` makes and ends it."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        if graphs is None:
            raise EngineRunError("CUDA graphs need NVIDIA's cuda-bindings; install octet[tensorrt].")
        self._stream = graphs.CUstream(stream.handle)
        # Other threads may go on allocating while this one captures.
        mode = graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(graphs.cuStreamBeginCapture, self._stream, mode)
        try:
            with translated("the batch cannot be captured"):
                enqueue()
        except BaseException:
            # A stream that is left capturing takes no other work; what was captured is of no use.
            with contextlib.suppress(EngineRunError):
                _call(graphs.cuGraphDestroy, _call(graphs.cuStreamEndCapture, self._stream))
            raise
        captured = _call(graphs.cuStreamEndCapture, self._stream)
        try:
            self._graph = _call(graphs.cuGraphInstantiate, captured, 0)
        finally:
            _call(graphs.cuGraphDestroy, captured)

    def launch(self) -> None:
        """Puts all of it into its stream."""
        _call(graphs.cuGraphLaunch, self._graph, self._stream)

    def close(self) -> None:
        """Frees the graph."""
        _call(graphs.cuGraphExecDestroy, self._graph)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: object) -> Any:
    """Calls cuda-bindings, which returns the status first; the result, if there is one.

    Raises:
        EngineRunError: the driver refuses.
    """
    status, *results = function(*arguments)
    if status != graphs.CUresult.CUDA_SUCCESS:
        raise EngineRunError(f"{function.__name__} failed: {status}; the batch runs without a CUDA graph.")
    return results[0] if results else None


def _free_memory() -> str:
    try:
        free_bytes, total_bytes = driver.mem_get_info()
    except driver.Error:
        return "how much is free cannot be told"
    return f"{free_bytes >> 20} of {total_bytes >> 20} MiB are free"
