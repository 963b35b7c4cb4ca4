"""pycuda.driver on the simulated GPU, with pycuda's own rules about contexts and threads."""

import threading
import warnings
from typing import Any

import numpy as np

from tests.fakes import gpu


class Error(Exception):
    pass


class MemoryError(Error):  # pycuda's name
    pass


class LogicError(Error):
    pass


class RuntimeError(Error):  # pycuda's name
    pass


def init(flags: int = 0) -> None:
    if gpu.the.settings.no_cuda:
        raise RuntimeError(f"cuInit failed: {gpu.the.settings.no_cuda}")
    gpu.the.started = True


def get_driver_version() -> int:
    return int(gpu.the.settings.driver)


class Context:
    """pycuda tells contexts apart by object, and frees what belongs to one only where that one is current."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def push(self) -> None:
        gpu.the.stack.append(self)

    @staticmethod
    def pop() -> None:
        if not gpu.the.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        gpu.the.stack.pop()


class Device:
    def __init__(self, number: int) -> None:
        if not gpu.the.started:
            raise LogicError("cuDeviceGet failed: initialization error")
        if number != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return gpu.the.settings.gpu_name

    def compute_capability(self) -> tuple[int, int]:
        major, minor = gpu.the.settings.capability.split(".")
        return int(major), int(minor)

    def retain_primary_context(self) -> Context:
        return Context()


class _Owned:
    """What belongs to the context that was current when it was made."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._context = gpu.the.require_context(what)
        self._valid = True

    def _release(self) -> bool:
        """Whether it may be freed now; pycuda warns and loses it where its context is not current."""
        self._valid = False
        if gpu.the.stack and gpu.the.stack[-1] is self._context:
            return True
        warnings.warn(
            f"{self._what} in out-of-thread context could not be cleaned up", UserWarning, stacklevel=2
        )
        return False


class DeviceAllocation(_Owned):
    def __init__(self, size: int) -> None:
        super().__init__("device_allocation")
        address = gpu.the.allocate(size)
        if address is None:
            self._valid = False
            raise MemoryError("cuMemAlloc failed: out of memory")
        self._address = address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        if not self._valid:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        if self._release():
            gpu.the.free(self._address)

    def __del__(self) -> None:
        if self._valid:
            self.free()


class PagelockedHostAllocation(_Owned):
    __array_interface__: dict[str, Any]

    def __init__(self, size: int) -> None:
        super().__init__("pagelocked_host_allocation")
        self.memory = np.full(max(1, size), 0xFF, np.uint8)
        self._size = size
        gpu.the.pinned[self.memory.ctypes.data] = max(1, size)

    def free(self) -> None:
        if not self._valid:
            raise LogicError("pagelocked_host_allocation::free failed: invalid resource handle")
        if self._release():
            del gpu.the.pinned[self.memory.ctypes.data]

    def __del__(self) -> None:
        if self._valid:
            self.free()


def mem_alloc(arg1: int) -> DeviceAllocation:
    if arg1 == 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    return DeviceAllocation(arg1)


def mem_get_info() -> tuple[int, int]:
    gpu.the.require_context("mem_get_info")
    total = int(gpu.the.settings.memory_bytes)
    return total - gpu.the.used_bytes(), total


def pagelocked_empty(shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    if not shape or 0 in shape:
        raise gpu.MisuseError(f"page-locked memory of the shape {shape}: pycuda reads past the end of it")
    kind = np.dtype(dtype)
    allocation = PagelockedHostAllocation(int(np.prod(shape)) * kind.itemsize)
    described = {"shape": tuple(shape), "typestr": kind.str, "data": (allocation.memory.ctypes.data, False)}
    allocation.__array_interface__ = {**described, "version": 3}
    # A plain array whose base is the allocation, as that of pycuda's C code.
    return np.asarray(allocation)


class Stream:
    def __init__(self, flags: int = 0) -> None:
        if flags != 1:
            raise gpu.MisuseError("a stream that waits for the default stream: pass CU_STREAM_NON_BLOCKING")
        self._context = gpu.the.require_context("a stream is made")
        self._state = gpu.StreamState(handle=gpu.the.next_number())
        gpu.the.streams[self._state.handle] = self._state

    @property
    def handle(self) -> int:
        return self._state.handle

    def synchronize(self) -> None:
        gpu.the.require_context("a stream is waited for")
        gpu.the.finish(self._state.handle)

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is None or state.handle not in gpu.the.streams:
            return
        if not gpu.the.stack or gpu.the.stack[-1] is not self._context:
            warnings.warn(
                "stream in out-of-thread context could not be cleaned up", UserWarning, stacklevel=2
            )
            return
        del gpu.the.streams[state.handle]


def memcpy_htod_async(dest: int, src: np.ndarray[Any, Any], stream: Stream | None = None) -> None:
    _check_copy(src, stream)
    size = src.nbytes

    def copy() -> None:
        gpu.the.check_pinned(src)
        gpu.the.memory(dest, size)[...] = np.ascontiguousarray(src).reshape(-1).view(np.uint8)

    gpu.the.put(_handle(stream), copy)


def memcpy_dtoh_async(dest: np.ndarray[Any, Any], src: int, stream: Stream | None = None) -> None:
    _check_copy(dest, stream)

    def copy() -> None:
        gpu.the.check_pinned(dest)
        np.copyto(
            dest.view(np.ndarray), gpu.the.memory(src, dest.nbytes).view(dest.dtype).reshape(dest.shape)
        )

    gpu.the.put(_handle(stream), copy)


def _check_copy(array: np.ndarray[Any, Any], stream: Stream | None) -> None:
    gpu.the.require_context("a copy is asked for")
    gpu.the.check_pinned(array)
    if not array.flags.c_contiguous:
        raise gpu.MisuseError("a copy of an array that is not contiguous")


def _handle(stream: Stream | None) -> int:
    return 0 if stream is None else stream.handle
