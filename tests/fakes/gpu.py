"""A simulated GPU: contexts, memory, streams and graphs, and what CUDA forbids."""

import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Work = Callable[[], None]


class MisuseError(AssertionError):
    """Something that CUDA or TensorRT leave undefined, or that would lose memory."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The machine that is played; each field is a variable FAKE_<NAME>."""

    tensorrt: str = "11.4.0.106"
    gpu_name: str = "NVIDIA L4"
    capability: str = "8.9"
    # As cuDriverGetVersion tells it.
    driver: str = "13000"
    memory_bytes: str = str(4 << 30)
    # What cuInit says where it fails.
    no_cuda: str = ""
    # What TensorRT says where it cannot start on the driver.
    driver_too_old: str = ""
    # What importing TensorRT fails with.
    no_tensorrt: str = ""
    # How long a build takes.
    build_s: str = "0"
    # Operators that the parser takes for unknown, beside those that TensorRT does not know.
    unknown_operators: str = ""

    @classmethod
    def of_environment(cls) -> "Settings":
        fields = cls.__dataclass_fields__
        return cls(
            **{
                name: os.environ[f"FAKE_{name.upper()}"]
                for name in fields
                if f"FAKE_{name.upper()}" in os.environ
            }
        )


@dataclass(kw_only=True)
class StreamState:
    """Work that was put into a stream and not waited for."""

    handle: int
    waiting: list[Work] = field(default_factory=list)
    # What is being captured; None where nothing is.
    capturing: list[Work] | None = None


class Gpu:
    """All state of the simulation."""

    def __init__(self) -> None:
        self.settings = Settings.of_environment()
        self.started = False
        self.lock = threading.RLock()
        self.device: dict[int, np.ndarray[Any, Any]] = {}
        self.pinned: dict[int, int] = {}
        self.streams: dict[int, StreamState] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self._numbers = itertools.count(1)
        self._local = threading.local()

    def next_number(self) -> int:
        return next(self._numbers)

    @property
    def stack(self) -> list[object]:
        """The contexts of this thread."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        found: list[object] = self._local.stack
        return found

    def require_context(self, what: str) -> object:
        if not self.stack:
            raise MisuseError(f"{what} without a context that is current in this thread")
        return self.stack[-1]

    def used_bytes(self) -> int:
        return sum(memory.nbytes for memory in self.device.values())

    def allocate(self, size: int) -> int | None:
        """An address, or None where there is no room."""
        with self.lock:
            if self.used_bytes() + size > int(self.settings.memory_bytes):
                return None
            address = self.next_number() << 32
            # What is not written is recognised: it is no number.
            self.device[address] = np.full(size, 0xFF, np.uint8)
            return address

    def memory(self, address: int, size: int) -> np.ndarray[Any, Any]:
        """The bytes at an address, which have to be allocated."""
        found = self.device.get(address)
        if found is None:
            raise MisuseError(f"address {address:#x} is used and not allocated, or freed already")
        if size > found.nbytes:
            raise MisuseError(f"{size} bytes are used of an allocation of {found.nbytes}")
        return found[:size]

    def free(self, address: int) -> None:
        for stream in self.streams.values():
            if stream.waiting:
                raise MisuseError("memory is freed while a stream has work that was not waited for")
        if self.device.pop(address, None) is None:
            raise MisuseError(f"address {address:#x} is freed twice")

    def check_pinned(self, array: np.ndarray[Any, Any]) -> None:
        start = array.ctypes.data
        if not any(
            base <= start and start + array.nbytes <= base + size for base, size in self.pinned.items()
        ):
            raise MisuseError("an asynchronous copy of memory that is not page-locked, or was freed")

    def stream(self, handle: int) -> StreamState:
        if handle == 0:
            raise MisuseError("work on the default stream")
        if handle not in self.streams:
            raise MisuseError(f"stream {handle} is used and does not exist, or has ended")
        return self.streams[handle]

    def put(self, handle: int, work: Work) -> None:
        """Puts work into a stream, or into the graph that is captured from it."""
        stream = self.stream(handle)
        (stream.waiting if stream.capturing is None else stream.capturing).append(work)

    def finish(self, handle: int) -> None:
        """Does all work of a stream."""
        stream = self.stream(handle)
        if stream.capturing is not None:
            raise MisuseError("a stream is waited for while it is captured")
        while stream.waiting:
            stream.waiting.pop(0)()

    def check_leaks(self) -> None:
        """Fails where something was not freed."""
        left = {
            "device allocations": len(self.device),
            "pinned allocations": len(self.pinned),
            "streams": len(self.streams),
            "graphs": len(self.graphs) + len(self.executables),
        }
        if any(left.values()):
            raise MisuseError(
                f"left behind: {', '.join(f'{count} {what}' for what, count in left.items() if count)}"
            )
        if self.stack:
            raise MisuseError("a context is left on the stack of this thread: pycuda would abort the process")


the = Gpu()


def reset() -> None:
    """A new GPU, as the environment says."""
    global the  # noqa: PLW0603 # there is one machine
    the = Gpu()
