"""One HTTP/1.1 connection: requests in, exchanges in order, answers out, and no client waited for for long.

It takes the place of uvicorn's own protocol, which has no limits for heads, silence and stalling, copies a body
four times, and takes two system calls for an answer.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from uvicorn.server import ServerState

from service.errors import ServiceError
from service.http import refusals
from service.http.answer_head import Header
from service.http.asgi import Application, Message, Piece
from service.http.body_reader import BodyReader, HeadReader
from service.http.exchange import WAITING_BYTES, Begin, Exchange
from service.http.limits import Configuration, Pace
from service.http.requests import MANY_PARSERS, NOBODY, PARSER_REST_S, RequestParser


class Connection(asyncio.Protocol):
    """A connection from the accepted socket to its end; made by uvicorn.

    Requests are answered one after the other. A client that closes its side of the connection has left: TCP
    does not tell that from one that closed both. An idle connection is little more than this object and its transport.
    """

    __slots__ = (
        "__weakref__", "_app_state", "_application", "_begins", "_current", "_fresh", "_in_head",
        "_incoming", "_last_words", "_limits", "_loop", "_next", "_parser", "_reading_paused", "_receiving",
        "_sending", "_server", "_since_s", "_transport", "_unparsed", "_writable", "congested",
    )  # fmt: skip

    def __init__(
        self,
        *,
        config: Configuration,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: object = None,
    ) -> None:
        self._application: Application = config.loaded_app
        # Of an application of ours; any other is run in a task.
        self._begins: Begin | None = getattr(config.loaded_app, "begin", None)
        self._limits = config.limits
        self._server = server_state
        self._app_state = app_state
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        # From the first byte on; gone again where nothing follows a request for long.
        self._parser: RequestParser | None = None
        # The request that is being received, the one that is being answered, and those that came after it.
        self._incoming: Exchange | None = None
        self._current: Exchange | None = None
        self._next: list[Exchange] = []
        # The one to be answered, until it is begun: once all that came with its head is parsed.
        self._fresh: Exchange | None = None
        # What came with a request that waits, and after it, as it came; nothing more is read meanwhile.
        self._unparsed: bytes | memoryview = b""
        # Whether a head is due, or part of one is there; an idle connection owes nothing.
        self._in_head = True
        # Since when the client has been owing what it owes now, by the loop's clock.
        self._since_s = 0.0
        self._receiving, self._sending = Pace(), Pace()
        # Set once nothing that comes will be read any more; sent when what came before is answered.
        self._last_words: ServiceError | None = None
        self._reading_paused = False
        # Whether the client has yet to take most of what was written.
        self.congested = False
        self._writable: asyncio.Event | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        connections = cast("set[Connection]", self._server.connections)
        full = len(connections) >= self._limits.connections
        connections.add(self)
        self._since_s = self._loop.time()
        if full:
            self._end(refusals.full(len(connections) - 1))
            # No lingering: there is no room for those that there is no room for.
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = RequestParser(self, self._transport, most_bytes=self._limits.head_bytes)
        self._unparsed = data
        self._parse()

    def eof_received(self) -> None:
        """Has the transport close: see the class."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended makes no difference
        cast("set[Connection]", self._server.connections).discard(self)
        for exchange in (self._current, self._incoming, *self._next):
            if exchange is not None:
                exchange.disconnect()
        self._next.clear()
        self._unparsed = b""
        self.resume_writing()
        # They refer back here, and are not used any more: memory shall not wait for the garbage collector.
        self._current = self._incoming = self._last_words = None
        if self._parser is not None:
            self._parser.close()
            self._parser = None

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self._writable is not None:
            self._writable.set()
        if self._current is None:
            self._go_on()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._in_head, self._since_s = True, self._loop.time()

    def on_head(self, scope: Message, *, keep_alive: bool, expects_continue: bool) -> None:
        self._in_head = False
        scope["state"] = self._app_state.copy()
        exchange = Exchange(self, scope, keep_alive=keep_alive, expects_continue=expects_continue)
        self._incoming = exchange
        if self._current is None and not self.congested:
            self._current = self._fresh = exchange
        else:
            self._next.append(exchange)
            self._set_reading(paused=True)

    def on_body(self, body: bytes, left: int) -> None:
        self._receiving.done_bytes += len(body)
        exchange = self._incoming
        if exchange is None or exchange.answered:
            return
        exchange.add(body)
        if max(exchange.waiting_bytes, left) > WAITING_BYTES:
            self._set_reading(paused=True)

    def on_message_complete(self) -> None:
        exchange, self._incoming = self._incoming, None
        self._receiving.rest()
        if exchange is not None:
            exchange.end()
            if exchange.answered:
                self._finish(exchange)

    # What the exchange and the reader of its body call.

    def write(self, pieces: Sequence[Piece], size: int) -> None:
        self._sending.done_bytes += size
        self._transport.writelines(pieces)

    async def drained(self) -> None:
        if self._writable is None:
            self._writable = asyncio.Event()
        while self.congested:
            self._writable.clear()
            await self._writable.wait()

    def more(self) -> None:
        if self._reading_paused and self._incoming is self._current:
            self._set_reading(paused=False)

    def read_into(self, buffer: memoryview) -> None:
        self._transport.pause_reading()
        self._transport.set_protocol(BodyReader(self, buffer))
        self._set_reading(paused=False)

    def body_progressed(self, size: int) -> None:
        self._receiving.done_bytes += size

    def body_complete(self, size: int) -> None:
        self._transport.pause_reading()
        self._transport.set_protocol(HeadReader(self) if size > WAITING_BYTES else self)
        if self._parser is not None:
            self._parser.body_was_read()
        self.on_message_complete()
        self._set_reading(paused=False)

    def head_received(self, data: bytes) -> None:
        self._transport.pause_reading()
        self._transport.set_protocol(self)
        self.data_received(data)
        if not (self._reading_paused or self._transport.is_closing()):
            self._transport.resume_reading()

    def run(self, exchange: Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._application))
        # The loop itself keeps no task alive; the server waits for these before it ends.
        self._server.tasks.add(task)
        exchange.task = task

    def answered(self) -> None:
        exchange = self._current
        self._server.total_requests += 1
        if exchange is None:
            return
        if exchange.drops and self._last_words is None:
            self._since_s = self._loop.time()
            self._set_reading(paused=False)
        else:
            self._finish(exchange)
            if RequestParser.alive > MANY_PARSERS and self._current is None and self._incoming is None:
                self._part_with_parser()

    def default_headers(self) -> list[Header]:
        return self._server.default_headers

    def abort(self) -> None:
        self._transport.abort()

    def ended(self, task: "asyncio.Task[None] | None") -> None:
        # Not by a callback of the task, which would cost another turn of the loop.
        if task is not None:
            self._server.tasks.discard(task)

    # What the server calls.

    def shutdown(self) -> None:
        """Ends the connection once what was received is answered."""
        if self._current is None:
            self._transport.close()
        else:
            self._current.keep_alive = False

    def check(self) -> None:
        """Ends the connection if its client has kept it waiting too long."""
        now_s, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if not unsent:
            self._sending.rest()
        elif self._sending.stalls(now_s, self._limits, unsent):
            self._transport.abort()
        if self._transport.is_closing() or self._reading_paused:
            self._receiving.rest()
        elif self._incoming is not None:
            self._check_body(self._incoming, now_s)
        elif self._current is None:
            self._check_head_time(now_s)

    def _parse(self) -> None:
        """Parses what has come, up to a request that has to wait for the one before it."""
        left, self._unparsed, parser = self._unparsed, b"", self._parser
        while left and parser is not None and not self._next and self._last_words is None:
            part, left = parser.split(left)
            try:
                parser.feed(part)
            except ServiceError as error:
                self._end(error)
            if self._fresh is not None:
                self._begin_fresh(self._fresh, followed=bool(left))
        self._unparsed = left if self._last_words is None else b""

    def _begin_fresh(self, exchange: Exchange, *, followed: bool) -> None:
        """Begins the request that was just parsed, without a task where the application can and nothing follows."""
        # Others, begun one after the other, would hold up all clients; and the first answer may end the connection.
        if followed and not (exchange.received or exchange.answered):
            return  # What follows is its body.
        self._fresh = None
        begins = None if followed else self._begins
        if not exchange.answered and (begins is None or not exchange.begin(begins)):
            self.run(exchange)

    def _finish(self, exchange: Exchange) -> None:
        """Goes on after an exchange that is over."""
        self._current = None
        if exchange.keep_alive:
            self._go_on()
        elif self._last_words is None:
            self._transport.close()
        else:
            self._linger()

    def _go_on(self) -> None:
        """Begins what waits; with nothing waiting, listens for the next request or ends."""
        if self.congested or self._transport.is_closing():
            return
        if self._next:
            self._current = self._next.pop(0)
            # In a task even where it could be begun at once: many of them would nest their answers too deep.
            self.run(self._current)
            self._parse()
        elif self._last_words is not None:
            self._current = Exchange(self, dict(NOBODY), keep_alive=False, expects_continue=False)
            self._current.refuse(self._last_words)
        else:
            # Nor does a client owe for the time in which nobody read what it sends.
            if self._reading_paused or not self._in_head:
                self._since_s = self._loop.time()
            if self._reading_paused:
                self._set_reading(paused=False)

    def _end(self, error: ServiceError) -> None:
        """Reads no more, answers what was received before, then sends the error and closes."""
        self._last_words = error
        incoming, self._incoming = self._incoming, None
        if incoming is not None and incoming is self._current:
            if incoming.answered:
                self._transport.close()
            else:
                incoming.refuse(error)
            return
        if incoming is not None:
            self._next.remove(incoming)
        if self._current is None:
            self._go_on()

    def _linger(self) -> None:
        """Lets the client read why, while what it still sends is dropped: closing at once would reset it."""
        self._since_s = self._loop.time()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._set_reading(paused=False)

    def _check_body(self, incoming: Exchange, now_s: float) -> None:
        if incoming.answered:
            if now_s - self._since_s > self._limits.drop_s:
                self._transport.close()
        elif self._receiving.stalls(now_s, self._limits):
            self._end(refusals.slow_body(self._limits))

    def _check_head_time(self, now_s: float) -> None:
        waited_s, limits = now_s - self._since_s, self._limits
        if self._last_words is not None:
            if waited_s > limits.drop_s:
                self._transport.abort()
        elif waited_s > (limits.head_s if self._in_head else limits.idle_s):
            if self._parser is not None and self._parser.reads_head:
                self._end(refusals.slow_head(limits))
            else:
                self._transport.close()
        elif waited_s > PARSER_REST_S:
            self._part_with_parser()

    def _part_with_parser(self) -> None:
        """Does without until something comes, unless a head has begun."""
        if self._parser is not None and not self._parser.reads_head:
            self._parser.close()
            self._parser = None

    def _set_reading(self, *, paused: bool) -> None:
        self._reading_paused = paused
        (self._transport.pause_reading if paused else self._transport.resume_reading)()
