"""One HTTP request and its answer, as an ASGI application sees them.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import numpy as np

from service.errors import ServiceError
from service.http.answer_head import CLOSE, Header, head_of
from service.http.responses import (
    INTERNAL,
    INTERNAL_CODE,
    JSON,
    body_of,
    error_body,
    error_headers,
    status_of,
)
from service.monitoring import request_ids

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Piece = bytes | memoryview
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Begin = Callable[["Exchange"], bool]
"""Has a request answered without a task where that is possible; else returns False and leaves it as it is."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
# More of a body than this does not wait for the application; reading pauses.
WAITING_BYTES = 1 << 16
# Up to here copying costs less than a system call with several buffers.
JOINED_BYTES = 1 << 16


class Channel(Protocol):
    """What an exchange needs of its connection."""

    # Whether the client has yet to take most of what was written.
    congested: bool

    def write(self, pieces: Sequence[Piece], size: int) -> None:
        """Sends these bytes, `size` in all, after all earlier ones."""

    async def drained(self) -> None:
        """Waits for the end of a congestion, or of the connection."""

    def more(self) -> None:
        """Asks for more of the body: reading may have been paused."""

    def read_into(self, buffer: memoryview) -> None:
        """Has what is missing of the body read into `buffer`, which it fills."""

    def answered(self) -> None:
        """Takes the news that the whole answer was written."""

    def default_headers(self) -> list[Header]:
        """Headers of every answer."""

    def abort(self) -> None:
        """Ends the connection at once."""

    def ended(self, task: "asyncio.Task[None] | None") -> None:
        """Takes the news that the task of an exchange is over."""


class Exchange:
    """A request that is being received and answered.

    `receive` and `send` are those of ASGI. The head of an answer waits for the first bytes of its body, so that
    most answers take one system call.
    """

    __slots__ = (
        "_changed", "_channel", "_chunked", "_expects_continue", "_handed_over", "_left_bytes", "_pieces",
        "_start", "_started", "answered", "disconnected", "keep_alive", "received", "scope", "task",
        "waiting_bytes",
    )  # fmt: skip

    def __init__(self, channel: Channel, scope: Message, *, keep_alive: bool, expects_continue: bool) -> None:
        self.scope = scope
        # Whether nobody reads an answer any more.
        self.disconnected = False
        # Whether the whole request has come, and whether the whole answer was written.
        self.received = False
        self.answered = False
        # Whether the connection may have another request afterwards.
        self.keep_alive = keep_alive
        # How much of the body waits for the application.
        self.waiting_bytes = 0
        # In which it runs.
        self.task: asyncio.Task[None] | None = None
        self._channel = channel
        self._expects_continue = expects_continue
        self._pieces: list[Piece] = []
        self._handed_over = False
        self._changed: asyncio.Event | None = None
        self._start: Message | None = None
        self._started = False
        self._chunked = False
        # What is left to send of a body whose length was said.
        self._left_bytes: int | None = None

    async def run(self, application: Application) -> None:
        """Has the application answer; whatever it does, the client gets an answer or the connection's end."""
        try:
            await application(self.scope, self.receive, self.send)
        except Exception:
            logger.exception("the application failed on %s", self.scope.get("path"))
        finally:
            self._channel.ended(self.task)
        self._answer_failure()

    def begin(self, begin: Begin) -> bool:
        """Has the application answer at once, as `Begin` has it; whatever it does, the client gets an answer."""
        try:
            return begin(self)
        except Exception:
            concerned = {"request_id": request_ids.of(self.scope).decode()}
            logger.exception("the application failed on %s", self.scope.get("path"), extra=concerned)
            self._answer_failure()
            return True

    def refuse(self, error: ServiceError) -> None:
        """Answers in the application's place and ends the connection."""
        if self.answered or self.disconnected:
            return
        self.keep_alive = False
        if self._started:
            self._channel.abort()
            return
        self.answer_error(error)
        self.disconnect()

    async def receive(self) -> Message:
        """The next piece of the body, or the news that there is no client any more."""
        self._grant()
        while not (self._pieces or self.disconnected or self.answered):
            if self.received and not self._handed_over:
                break
            await self._change()
        if self.disconnected or self.answered:
            return {"type": "http.disconnect"}
        body = self._taken()
        self._handed_over = self.received
        return {"type": "http.request", "body": bytes(body), "more_body": not self.received}

    def whole_at_hand(self) -> Piece | None:
        """The body, where all of it came in one piece and nothing of it was received yet."""
        if not self.received or len(self._pieces) != 1 or self._handed_over or self.disconnected:
            return None
        self._handed_over = True
        return self._taken()

    async def read_whole(self, size: int) -> Piece | None:
        """The whole body, of `size` bytes by its Content-Length; None where the client left before its end.

        Nothing may have been received of it. What has not come yet is read from the socket into the memory that
        is returned.
        """
        self._grant()
        if not self.received and self.waiting_bytes < size and not self.disconnected:
            # Not a bytearray, which would be filled with zeros first.
            buffer = np.empty(size, np.uint8).data
            come = 0
            for piece in self._pieces:
                buffer[come : come + len(piece)] = piece
                come += len(piece)
            self._pieces, self.waiting_bytes = [buffer], 0
            self._channel.read_into(buffer[come:])
        while not self.received and not self.disconnected:
            await self._change()
        if self.disconnected:
            return None
        self._handed_over = True
        return self._taken()

    async def send(self, message: Message) -> None:
        """Takes the start of the answer, then pieces of its body."""
        if message["type"] == "http.response.start":
            if self._start is not None:
                raise RuntimeError("an answer was started twice.")
            self._start = message
            return
        if self.disconnected:
            return
        if message["type"] != "http.response.body" or self._start is None or self.answered:
            raise RuntimeError(f"{message['type']} was sent before the start or after the end of an answer.")
        if self._channel.congested:
            await self._channel.drained()
        if not self.disconnected:
            self._write(message.get("body", b""), more=message.get("more_body", False))

    def answer_error(self, error: ServiceError) -> None:
        """Writes a whole answer that tells of an error."""
        said = [(name.lower().encode(), value.encode()) for name, value in error_headers(error).items()]
        self.answer(status_of(error), [*self._error_headers(), *said], [body_of(error)])

    def has_left(self) -> bool:
        """Whether nobody reads an answer any more."""
        return self.disconnected

    def answer(self, status: int, headers: Sequence[Header], pieces: Sequence[Piece]) -> None:
        """Writes a whole answer at once; its length is added to the headers.

        What does not fit into the socket stays in memory until the client takes it: there is nothing to wait for,
        since a connection's next request is not begun before.
        """
        if self.disconnected or self.answered:
            return
        self._started = True
        closes = CLOSE in headers
        # A client that was not told to send its body sends it or not: what comes next has no known meaning.
        self.keep_alive = self.keep_alive and not closes and (self.received or not self._expects_continue)
        length = (b"content-length", b"%d" % sum(map(len, pieces)))
        ours = (length,) if self.keep_alive or closes else (length, CLOSE)
        head = head_of(status, (*self._channel.default_headers(), *headers, *ours))
        self._put([head] if self.scope["method"] == "HEAD" else [head, *pieces])
        self._complete()

    @property
    def drops(self) -> bool:
        """Whether a body that nobody waits for is still coming."""
        return self.answered and not self.received and not self._expects_continue

    def add(self, piece: bytes) -> None:
        """Takes a piece of the body."""
        self._pieces.append(piece)
        self.waiting_bytes += len(piece)
        if self._changed is not None:
            self._changed.set()

    def end(self) -> None:
        """Takes the end of the request."""
        self.received = True
        if self._changed is not None:
            self._changed.set()

    def disconnect(self) -> None:
        """Takes the news that the client has gone."""
        self.disconnected = True
        self._pieces.clear()
        if self._changed is not None:
            self._changed.set()

    def _answer_failure(self) -> None:
        """Answers where the application did not; one that has begun can only be broken off."""
        if self.answered or self.disconnected:
            return
        if self._started:
            self._channel.abort()
        else:
            headers = self._error_headers()
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, headers, [error_body(INTERNAL, INTERNAL_CODE)])

    def _error_headers(self) -> list[Header]:
        return [(b"content-type", JSON.encode()), (request_ids.HEADER, request_ids.of(self.scope))]

    def _write(self, body: Piece, *, more: bool) -> None:
        pieces: list[Piece] = []
        if not self._started:
            self._started = True
            pieces.append(self._head())
        if self.scope["method"] == "HEAD":
            self._left_bytes = None
        elif self._chunked:
            if body:
                pieces += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                pieces.append(b"0\r\n\r\n")
        else:
            pieces.append(body)
            self._account(len(body), more=more)
        self._put(pieces)
        if not more:
            self._complete()

    def _put(self, pieces: list[Piece]) -> None:
        size = sum(map(len, pieces))
        if len(pieces) > 1 and size <= JOINED_BYTES:
            pieces = [b"".join(pieces)]
        self._channel.write(pieces, size)

    def _complete(self) -> None:
        self.answered = True
        self._pieces.clear()
        if self._changed is not None:
            self._changed.set()
        self._channel.answered()

    def _head(self) -> bytes:
        """The bytes before the body."""
        start: Message = self._start or {}
        status, closes = start["status"], False
        headers = [*self._channel.default_headers(), *start.get("headers", ())]
        for name, value in headers:
            key = name.lower()
            if key == b"content-length":
                self._left_bytes = int(value)
            elif key == b"connection":
                closes = value.lower() == b"close"
        # As in `answer`.
        self.keep_alive = self.keep_alive and not closes and (self.received or not self._expects_continue)
        if self._left_bytes is None and status not in _BODILESS:
            # Otherwise the end of the connection is the end of the body.
            self._chunked = self.scope["http_version"] == "1.1"
            self.keep_alive = self.keep_alive and self._chunked
            if self._chunked:
                headers.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive and not closes:
            headers.append(CLOSE)
        return head_of(status, headers)

    def _account(self, size: int, *, more: bool) -> None:
        """Holds a body to the Content-Length that went before it."""
        if self._left_bytes is None:
            return
        self._left_bytes -= size
        if self._left_bytes < 0 or (self._left_bytes and not more):
            raise RuntimeError("the body of an answer is not as long as its Content-Length.")

    def _taken(self) -> Piece:
        """What waits, in one piece; it waits no more."""
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.waiting_bytes = 0
        return body

    def _grant(self) -> None:
        """Lets a client send that asked whether it may."""
        if self._expects_continue and not self.received and not self._started:
            self._channel.write([_CONTINUE], len(_CONTINUE))
        self._expects_continue = False

    async def _change(self) -> None:
        self._channel.more()
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()
