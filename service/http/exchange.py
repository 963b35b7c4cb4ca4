"""One HTTP request and its answer, as an application sees them."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus

import numpy as np

from service.errors import ServiceError
from service.http.answer_head import CLOSE, Header, head_of
from service.http.asgi import Application, Message, Piece
from service.http.channel import Channel
from service.http.responses import (
    INTERNAL,
    INTERNAL_CODE,
    JSON,
    body_of,
    error_body,
    error_headers,
    status_of,
)
from service.http.streamed_answer import StreamedAnswer
from service.monitoring import request_ids

logger = logging.getLogger(__name__)

Begin = Callable[["Exchange"], bool]
"""Has a request answered without a task where that is possible; else returns False and leaves it as it is.

Its body may be there, or still come: see `Exchange.whole_at_hand` and `Exchange.gather`.
"""
Then = Callable[[Piece | None], bool]
"""Takes a whole body, or None where its client left before its end; returns False where a task has to go on with it."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# More of a body than this does not wait for the application; reading pauses.
WAITING_BYTES = 1 << 16
# Up to here copying costs less than a system call with several buffers.
JOINED_BYTES = 1 << 16
# Where more is missing of a body it is read straight into its place, for which the transport changes its protocol.
_IN_PLACE_BYTES = 1 << 14
# More are put together: a body that comes byte by byte would take thirty times its size.
_MOST_PIECES = 32


class Exchange:
    """A request that is being received and answered.

    `receive` and `send` are those of ASGI. The head of an answer waits for the first bytes of its body, so that
    most answers take one system call.
    """

    __slots__ = (
        "_changed", "_channel", "_expects_continue", "_handed_over", "_pieces", "_started", "_streamed", "_then",
        "answered", "disconnected", "keep_alive", "received", "scope", "task", "waiting_bytes",
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
        # Who gets the body that is gathered.
        self._then: Then | None = None
        self._streamed: StreamedAnswer | None = None
        # Whether something was written of the answer.
        self._started = False

    async def run(self, application: Application) -> None:
        """Has the application answer; whatever it does, the client gets an answer or the connection's end."""
        try:
            await application(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._log(error)
        finally:
            self._channel.ended(self.task)
        self._answer_failure()

    def begin(self, begin: Begin) -> bool:
        """Has the application answer at once, as `Begin` has it; whatever it does, the client gets an answer."""
        try:
            return begin(self)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._log(error)
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

    def gather(self, size: int, then: Then) -> None:
        """Has `then` called with the whole body, of `size` bytes by its Content-Length; not before this returns.

        No task waits for it meanwhile; one may go on with it, see `Then`.

        Raises:
            RuntimeError: it is not coming any more.
        """
        if self.received or self.disconnected:
            raise RuntimeError("there is nothing to gather: the body is there, or its client has left.")
        self._await_rest(size)
        self._then = then

    async def read_whole(self, size: int) -> Piece | None:
        """The whole body, of `size` bytes by its Content-Length; None where the client left before its end.

        Nothing may have been received of it.
        """
        self._await_rest(size)
        while not self.received and not self.disconnected:
            await self._change()
        if self.disconnected:
            return None
        self._handed_over = True
        return self._taken()

    async def send(self, message: Message) -> None:
        """Takes the start of the answer, then pieces of its body."""
        if message["type"] == "http.response.start":
            if self._streamed is not None:
                raise RuntimeError("an answer was started twice.")
            self._streamed = StreamedAnswer(message, self.scope)
            return
        if self.disconnected:
            return
        streamed = self._streamed
        if message["type"] != "http.response.body" or streamed is None or self.answered:
            raise RuntimeError(f"{message['type']} was sent before the start or after the end of an answer.")
        if self._channel.congested:
            await self._channel.drained()
        if not self.disconnected:
            self._write(streamed, message.get("body", b""), more=message.get("more_body", False))

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
        self.keep_alive = self._may_keep_alive() and not closes
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
        if len(self._pieces) > _MOST_PIECES:
            self._pieces = [b"".join(self._pieces)]
        if self._changed is not None:
            self._changed.set()

    def end(self) -> None:
        """Takes the end of the request."""
        self.received = True
        if self._changed is not None:
            self._changed.set()
        if self._then is not None:
            # Not from within the parser, which an answer may end.
            asyncio.get_running_loop().call_soon(self._hand_over)

    def disconnect(self) -> None:
        """Takes the news that the client has gone."""
        self.disconnected = True
        self._pieces.clear()
        if self._changed is not None:
            self._changed.set()
        self._hand_over()

    def _hand_over(self) -> None:
        """Hands the body over that was gathered, or the news that there will be none; once."""
        then, self._then = self._then, None
        if then is None:
            return
        body = None if self.disconnected else self._taken()
        try:
            begun = then(body)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._log(error)
            self._answer_failure()
            return
        if body is not None and not begun:
            self._pieces, self.waiting_bytes = [body], len(body)
            self._channel.run(self)

    def _log(self, error: Exception) -> None:
        # Named here: what is begun without a task has no context of its own.
        concerned = {"request_id": request_ids.of(self.scope).decode()}
        logger.error("the application failed on %s", self.scope.get("path"), exc_info=error, extra=concerned)

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

    def _may_keep_alive(self) -> bool:
        # A client that was not told to send its body sends it or not: what comes next has no known meaning.
        return self.keep_alive and (self.received or not self._expects_continue)

    def _write(self, streamed: StreamedAnswer, body: Piece, *, more: bool) -> None:
        pieces: list[Piece] = []
        if not self._started:
            self._started = True
            head, self.keep_alive = streamed.head(
                self._channel.default_headers(), keep_alive=self._may_keep_alive()
            )
            pieces.append(head)
        self._put(pieces + streamed.body(body, more=more))
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

    def _await_rest(self, size: int) -> None:
        """Has what is missing of the body come."""
        self._grant()
        if self.received or self.disconnected:
            return
        if size <= WAITING_BYTES and size - self.waiting_bytes <= _IN_PLACE_BYTES:
            return
        # Not a bytearray, which would be filled with zeros first.
        buffer = np.empty(size, np.uint8).data
        come = 0
        for piece in self._pieces:
            buffer[come : come + len(piece)] = piece
            come += len(piece)
        self._pieces, self.waiting_bytes = [buffer], 0
        self._channel.read_into(buffer[come:])

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
