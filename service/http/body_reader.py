"""Reads the rest of a large body from the socket straight into the memory that its tensors are decoded from."""

import asyncio
from typing import Protocol


class Owner(Protocol):
    """The connection, which gets what the reader does not care for."""

    def body_progressed(self, size: int) -> None:
        """Takes the news that `size` more bytes are there."""

    def body_complete(self) -> None:
        """Takes the news that the buffer is full; makes itself the transport's protocol again."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As of `asyncio.Protocol`."""

    def eof_received(self) -> None:
        """As of `asyncio.Protocol`."""

    def pause_writing(self) -> None:
        """As of `asyncio.Protocol`."""

    def resume_writing(self) -> None:
        """As of `asyncio.Protocol`."""


class BodyReader(asyncio.BufferedProtocol):
    """The protocol of a transport until `buffer` is full; not one byte more is taken from the socket."""

    def __init__(self, owner: Owner, buffer: memoryview) -> None:
        self._owner = owner
        self._left = buffer

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - whatever fits is welcome
        return self._left

    def buffer_updated(self, nbytes: int) -> None:
        self._left = self._left[nbytes:]
        self._owner.body_progressed(nbytes)
        if not self._left:
            self._owner.body_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def eof_received(self) -> None:
        self._owner.eof_received()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
