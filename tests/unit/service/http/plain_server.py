"""A real server on a free port, in front of a small ASGI application and with the limits that a test wants."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from service.http.asgi import Application, Message, Receive, Send
from service.http.exchange import Exchange
from service.http.limits import ConnectionLimits
from service.http.server import HttpConfig, HttpServer
from tests.unit.service.live_server import until


@dataclass(kw_only=True)
class Echo:
    """Answers with what it received, once its gate is open; paths choose how."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    # What the application saw of each request, in order: path, then how it ended.
    seen: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/early":
            await answer(send, b"early", status=413)
            return
        body = await whole(scope, receive)
        if body is None:
            self.seen.append((path, "left"))
            return
        self.seen.append((path, f"{len(body)} bytes"))
        await self.gate.wait()
        if path == "/raises":
            raise KeyError("a secret")
        if path == "/breaks-off":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            raise KeyError("a secret")
        if path == "/pieces":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (body[:3], b"", body[3:]):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        elif path == "/large":
            await answer(send, bytes(32 << 20))
        elif path == "/nothing":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await answer(send, bytes(body))


async def whole(scope: Message, receive: Receive) -> bytes | memoryview | None:
    """The body, read at once where the path says so and its length is known, else in pieces."""
    length = dict(scope["headers"]).get(b"content-length")
    if scope["path"].startswith("/whole") and length is not None:
        exchange: Exchange = receive.__self__  # type: ignore[attr-defined] # a bound method of the exchange
        return await exchange.read_whole(int(length))
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message["body"])
        if not message["more_body"]:
            return b"".join(pieces)


async def answer(send: Send, body: bytes, *, status: int = 200) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True, kw_only=True)
class PlainServer:
    port: int
    app: Echo
    server: HttpServer

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, sent: bytes) -> bytes:
        """Everything that comes back for these bytes until the server closes."""
        reader, writer = await self.connect()
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def plain_server(app: Application | None = None, **limits: Any) -> AsyncIterator[PlainServer]:
    """A server with the `Echo` whose gate is open, or with `app`."""
    echo = Echo()
    echo.gate.set()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = HttpConfig(
            app or echo,
            limits=ConnectionLimits(**{"check_s": 0.1, **limits}),
            lifespan="off",
            log_config=None,
            proxy_headers=False,
        )
        server = HttpServer(config)
        with contextlib.suppress(ValueError):
            server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # pytest's stay
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started)
            yield PlainServer(port=listener.getsockname()[1], app=echo, server=server)
        finally:
            echo.gate.set()
            server.should_exit = True
            server.force_exit = True
            await running
