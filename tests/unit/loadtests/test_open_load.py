import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from loadtests.open_load import LOST, poisson_arrivals, run_open

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"

Answer = Callable[[int], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[int]:
    """Answers the requests of all connections, numbered from 0 as they come; no bytes close the connection."""
    seen = 0
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                number, seen = seen, seen + 1
                reply = await answer(number)
                if not reply:
                    break
                writer.write(reply)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports close in the loop's next turns.
        await asyncio.sleep(0.01)


async def test_keeps_statuses_in_the_order_of_the_requests() -> None:
    async def answer(number: int) -> bytes:
        return BUSY if number % 2 else OK

    async with server(answer) as port:
        due_s = [0.03 * number for number in range(4)]
        result = await run_open("127.0.0.1", port, [REQUEST] * 4, due_s, patience_s=5.0)
    assert result.statuses == [200, 429, 200, 429]
    assert result.connections == 1


async def test_a_slow_answer_does_not_hold_back_what_is_due_behind_it() -> None:
    second_came = asyncio.Event()

    async def answer(number: int) -> bytes:
        if number == 0:
            # A closed loop would wait for this one, and this one for ever.
            await second_came.wait()
        else:
            second_came.set()
        return OK

    async with server(answer) as port:
        result = await run_open("127.0.0.1", port, [REQUEST] * 2, [0.0, 0.05], patience_s=5.0)
    assert result.statuses == [200, 200]
    assert result.connections == 2
    assert result.latencies_s[0] >= 0.05


async def test_latencies_count_from_when_a_request_was_due_though_it_was_sent_late() -> None:
    async def answer(number: int) -> bytes:
        return OK

    async with server(answer) as port:
        result = await run_open("127.0.0.1", port, [REQUEST] * 3, [-2.0] * 3, patience_s=5.0)
    assert min(result.latencies_s) >= 2.0
    assert min(result.lags_s) >= 2.0


async def test_a_request_without_an_answer_is_lost() -> None:
    async def answer(number: int) -> bytes:
        if number == 0:
            return b""
        if number == 1:
            await asyncio.sleep(60)
        return OK

    async with server(answer) as port:
        due_s = [0.0, 0.05, 0.1]
        result = await run_open("127.0.0.1", port, [REQUEST] * 3, due_s, patience_s=0.3)
    assert result.statuses == [LOST, LOST, 200]


async def test_a_server_that_is_not_there_loses_everything() -> None:
    async with server(lambda number: asyncio.sleep(0, OK)) as port:
        pass
    result = await run_open("127.0.0.1", port, [REQUEST] * 2, [0.0, 0.0], patience_s=5.0)
    assert result.statuses == [LOST, LOST]


def test_arrivals_are_independent_and_as_many_as_was_asked_for() -> None:
    due_s = poisson_arrivals(1000.0, 20.0, seed=1)
    gaps = np.diff(due_s)
    assert max(due_s) < 20.0
    assert len(due_s) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
