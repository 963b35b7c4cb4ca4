"""An open-loop HTTP/1.1 load generator: requests are sent when they are due, whatever became of those before.

A closed loop waits for answers before it sends on, and so hides the very delays that it should measure (coordinated
omission). Here every latency counts from the moment at which the request was due, a late send included, and a
request that finds no idle connection gets a new one.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httptools
import numpy as np

LOST = 0
"""The status of a request that was never answered."""
# Below this a sleep would only come back late.
_SHORTEST_SLEEP_S = 0.001


@dataclass(frozen=True, kw_only=True)
class OpenResult:
    """What came back; the lists follow the order of the requests."""

    # From when the request was due to the last byte of its answer.
    latencies_s: list[float]
    # HTTP status codes; LOST where there was no answer.
    statuses: list[int]
    # How late requests were sent: the generator's own share of the latencies.
    lags_s: list[float]
    connections: int


def poisson_arrivals(per_s: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start at which requests are due, independent of each other."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / per_s, int(per_s * seconds * 1.5) + 50)
    due = np.cumsum(gaps)
    return [float(at) for at in due[due < seconds]]


class _Load:
    """The state of one run."""

    def __init__(self, count: int) -> None:
        self.latencies_s = [0.0] * count
        self.statuses = [LOST] * count
        self.lags_s = [0.0] * count
        self.idle: deque[_Connection] = deque()
        self.connections: list[_Connection] = []
        self.open = count
        self.done = asyncio.Event()

    def settle(self) -> None:
        self.open -= 1
        if not self.open:
            self.done.set()


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._index = -1
        self._due_s = 0.0
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self._load.connections.append(self)

    def send(self, index: int, request: bytes, due_s: float) -> None:
        self._index, self._due_s = index, due_s
        self._load.lags_s[index] = time.perf_counter() - due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_complete(self) -> None:
        load, index = self._load, self._index
        load.latencies_s[index] = time.perf_counter() - self._due_s
        load.statuses[index] = self._parser.get_status_code()
        self._index = -1
        load.idle.append(self)
        load.settle()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self in self._load.idle:
            self._load.idle.remove(self)
        if self._index >= 0:
            self._index = -1
            self._load.settle()

    def close(self) -> None:
        self._transport.abort()


async def run_open(
    host: str, port: int, requests: Sequence[bytes], due_s: Sequence[float], *, patience_s: float
) -> OpenResult:
    """Sends `requests` (whole HTTP/1.1 requests) when they are due, in seconds from now.

    What is not answered `patience_s` after the last one was sent is lost.
    """
    loop = asyncio.get_running_loop()
    load = _Load(len(requests))

    async def connect_and_send(index: int, at_s: float) -> None:
        try:
            _, connection = await loop.create_connection(lambda: _Connection(load), host, port)
        except OSError:
            load.settle()
        else:
            connection.send(index, requests[index], at_s)

    opening: set[asyncio.Task[None]] = set()
    start_s = time.perf_counter()
    for index, after_s in enumerate(due_s):
        at_s = start_s + after_s
        left_s = at_s - time.perf_counter()
        # Even a generator that is late has to read what came back now and then.
        if left_s > _SHORTEST_SLEEP_S or index % 16 == 0:
            await asyncio.sleep(max(0.0, left_s))
        if load.idle:
            load.idle.popleft().send(index, requests[index], at_s)
        else:
            task = loop.create_task(connect_and_send(index, at_s))
            opening.add(task)
            task.add_done_callback(opening.discard)
    if requests:
        # What is open then is lost, and stays so in the result.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(load.done.wait(), patience_s)
    for connection in load.connections:
        connection.close()
    # Transports close in the loop's next turn.
    await asyncio.sleep(0)
    return OpenResult(
        latencies_s=load.latencies_s,
        statuses=load.statuses,
        lags_s=load.lags_s,
        connections=len(load.connections),
    )
