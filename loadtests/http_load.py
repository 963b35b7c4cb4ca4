"""A closed-loop HTTP/1.1 load generator that costs little beside the server that it shares processors with.

Each connection sends one prepared request, waits for its answer, and takes the next. Under uvloop it took half
of the processor time of the uvicorn echo that it was tried on.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httptools


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What came back; the lists follow the order of the requests."""

    # From the first byte sent to the last byte of the answer, per request.
    latencies_s: list[float]
    # HTTP status codes.
    statuses: list[int]
    bodies: list[bytes]
    # From the first request sent to the last answer, connecting not included.
    wall_s: float


class LoadError(Exception):
    """The server closed a connection or did not speak HTTP while requests were open."""


class _Run:
    """The requests that are left to send, and the answers so far."""

    def __init__(self, requests: Sequence[bytes], done: "asyncio.Future[None]") -> None:
        self.requests = requests
        self.next = 0
        self.open = len(requests)
        self.latencies_s = [0.0] * len(requests)
        self.statuses = [0] * len(requests)
        self.bodies = [b""] * len(requests)
        self.done = done

    def fail(self, message: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadError(message))


class _Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._index = -1
        self._sent = 0.0
        self._chunks: list[bytes] = []
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._index >= 0:
            self._run.fail(f"the server closed a connection before it answered request {self._index}: {exc}")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._run.fail(f"the answer to request {self._index} is not HTTP: {error}")
            self.close()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        run, index = self._run, self._index
        run.latencies_s[index] = time.perf_counter() - self._sent
        run.statuses[index] = self._parser.get_status_code()
        run.bodies[index] = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        run.open -= 1
        if run.open == 0 and not run.done.done():
            run.done.set_result(None)
        self.send_next()

    def send_next(self) -> None:
        run = self._run
        if run.next == len(run.requests):
            self._index = -1
            return
        self._index = run.next
        run.next += 1
        self._sent = time.perf_counter()
        self._transport.write(run.requests[self._index])

    def close(self) -> None:
        self._index = -1
        self._transport.abort()


async def run_load(host: str, port: int, requests: Sequence[bytes], *, connections: int) -> LoadResult:
    """Sends `requests` (whole HTTP/1.1 requests, head and body) over `connections` keep-alive connections.

    Raises:
        LoadError: a connection was closed, or what came back is not HTTP.
        OSError: no connection could be made.
    """
    loop = asyncio.get_running_loop()
    run = _Run(requests, loop.create_future())
    open_connections: list[_Connection] = []
    try:
        for _ in range(min(connections, len(requests))):
            _, connection = await loop.create_connection(lambda: _Connection(run), host, port)
            open_connections.append(connection)
        started = time.perf_counter()
        for connection in open_connections:
            connection.send_next()
        if requests:
            await run.done
        wall_s = time.perf_counter() - started
    finally:
        for connection in open_connections:
            connection.close()
    return LoadResult(latencies_s=run.latencies_s, statuses=run.statuses, bodies=run.bodies, wall_s=wall_s)
