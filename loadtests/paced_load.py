"""Requests at a steady pace to several models, for as long as something else goes on; nothing that fails is hidden."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import numpy as np

_TIMEOUT_S = 60.0
_RECONNECT_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of one request."""

    # When it was due, on time.perf_counter.
    due_s: float
    # When it was sent: later where the one before kept its sender waiting.
    sent_s: float
    # From then to the last byte of its answer, or to its failure.
    latency_s: float
    # HTTP status; 0 where there was no answer.
    status: int


@dataclass(frozen=True, kw_only=True)
class PacedLoad:
    """One connection per sender; each request is due a fixed time after the one before, answered or not."""

    host: str
    port: int
    # Whole HTTP/1.1 requests by model, sent over and over.
    requests: Mapping[str, bytes]
    every_s: float
    senders: int = 2
    replies: dict[str, list[Reply]] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends in the background; a request that is under way at the end is still answered."""
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(self._send(model, stop, number * self.every_s / self.senders))
            for model in self.requests
            for number in range(self.senders)
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _send(self, model: str, stop: asyncio.Event, delay_s: float) -> None:
        replies = self.replies.setdefault(model, [])
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        due_s = time.perf_counter() + delay_s
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            status, sent_s = 0, time.perf_counter()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    connection = connection or await asyncio.open_connection(self.host, self.port)
                    status = await _exchange(*connection, self.requests[model])
            except (OSError, EOFError, TimeoutError):
                if connection is not None:
                    connection[1].close()
                connection = None
            now_s = time.perf_counter()
            replies.append(Reply(due_s=due_s, sent_s=sent_s, latency_s=now_s - due_s, status=status))
            # After a failure as soon as may be, so that it is seen how long it lasts.
            due_s = due_s + self.every_s if status else now_s + _RECONNECT_S
        if connection is not None:
            connection[1].close()


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


def percentile_ms(replies: list[Reply], percent: float) -> float:
    """A percentile of the latencies; NaN where there are none."""
    if not replies:
        return float("nan")
    return float(np.percentile([reply.latency_s for reply in replies], percent)) * 1e3
