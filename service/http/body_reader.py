"""Reads the rest of a large body from the socket straight into the memory that its tensors are decoded from."""

import asyncio
import threading
from typing import Protocol

# A head, and the JSON of a request with binary tensors.
_HEAD_BYTES = 1 << 12


class _Room(threading.local):
    """Where the readers of heads in one event loop read to: loops ask for a buffer just before they fill it."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(_HEAD_BYTES))


_ROOM = _Room()


class Owner(Protocol):
    """The connection, which gets what a reader does not care for."""

    def head_received(self, data: bytes) -> None:
        """Takes what came first after a body; makes itself the transport's protocol again."""

    def body_progressed(self, size: int) -> None:
        """Takes the news that `size` more bytes are there."""

    def body_complete(self, size: int) -> None:
        """Takes the news that the buffer of `size` bytes is full; has the transport go on with another protocol."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As of `asyncio.Protocol`."""

    def eof_received(self) -> None:
        """As of `asyncio.Protocol`."""

    def pause_writing(self) -> None:
        """As of `asyncio.Protocol`."""

    def resume_writing(self) -> None:
        """As of `asyncio.Protocol`."""


class _Reader(asyncio.BufferedProtocol):
    """A protocol of a transport for a while."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def eof_received(self) -> None:
        self._owner.eof_received()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


class BodyReader(_Reader):
    """The protocol of a transport until `buffer` is full; not one byte more is taken from the socket."""

    __slots__ = ("_left", "_size")

    def __init__(self, owner: Owner, buffer: memoryview) -> None:
        super().__init__(owner)
        self._left = buffer
        self._size = len(buffer)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - whatever fits is welcome
        return self._left

    def buffer_updated(self, nbytes: int) -> None:
        self._left = self._left[nbytes:]
        self._owner.body_progressed(nbytes)
        if not self._left:
            self._owner.body_complete(self._size)


class HeadReader(_Reader):
    """The protocol of a transport for its first read after a large body, which takes little.

    Such a client sends another one. A read takes up to 256 kB, which for a body come by three copies to where a
    `BodyReader` would have put them: with images of 602 KB it took a twentieth of the processor's time.
    """

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - more is not wanted
        return _ROOM.memory

    def buffer_updated(self, nbytes: int) -> None:
        self._owner.head_received(bytes(_ROOM.memory[:nbytes]))
