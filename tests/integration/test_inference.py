"""Two hundred clients at once, over HTTP, each with rows that only it could have sent."""

import asyncio
import contextlib
import random
from pathlib import Path

import numpy as np

from loadtests.http_load import run_load
from tests.unit.service.live_server import LiveServer, echo_body, read_reply, request, serving

CLIENTS = 200
REQUESTS = 10
# On a busy machine so many rows are more than half a minute of work, and would rightly be refused.
PATIENCE_MS = 600_000


async def test_two_hundred_clients_each_get_their_own_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, max_batch_rows=32, max_queue_rows=100_000, timeout_ms=PATIENCE_MS) as server:
        answered = await asyncio.gather(*(faithful(server, client) for client in range(CLIENTS)))
        assert answered == [REQUESTS] * CLIENTS
        assert max(shape[0] for shape in server.engine.batches) > 8


async def test_clients_that_leave_do_not_disturb_the_others(tmp_path: Path) -> None:
    async with serving(tmp_path, max_batch_rows=32, max_queue_rows=100_000, timeout_ms=PATIENCE_MS) as server:
        async with asyncio.TaskGroup() as group:
            stay = [group.create_task(faithful(server, client)) for client in range(CLIENTS // 2)]
            for client in range(CLIENTS // 2, CLIENTS):
                group.create_task(fickle(server, client))
        assert [task.result() for task in stay] == [REQUESTS] * (CLIENTS // 2)
        batcher = server.context.deployments.find("echo").batcher
        async with asyncio.timeout(10):
            while batcher.inflight_requests:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.005)
        assert batcher.queue_rows == 0


async def test_more_than_the_queue_takes_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    async with serving(tmp_path, max_batch_rows=4, max_queue_rows=16) as server:
        requests = [
            request("POST", "/v2/models/echo/infer", echo_body(*([float(index)] * (1 + index % 3))))
            for index in range(600)
        ]
        result = await run_load("127.0.0.1", server.port, requests, connections=100)
        assert set(result.statuses) == {200, 429}
        for index, (status, body) in enumerate(zip(result.statuses, result.bodies, strict=True)):
            if status == 200:
                assert f'"data":[{index}.0'.encode() in body
        assert (await server.infer(5)).status == 200


def identities(client: int, turn: int) -> list[float]:
    """The rows of one request: no other request has any of them; now and then more than a batch holds."""
    rows = 1 + (client * 7 + turn * 13) % 11 if turn != 3 else 70
    return [float((client * REQUESTS + turn) * 100 + row) for row in range(rows)]


async def faithful(server: LiveServer, client: int) -> int:
    """Sends its requests over one connection and checks every answer; returns how many were its own."""
    reader, writer = await server.connect()
    own = 0
    for turn in range(REQUESTS):
        wanted = identities(client, turn)
        writer.write(request("POST", "/v2/models/echo/infer", echo_body(*wanted, id=f"{client}-{turn}")))
        reply = (await read_reply(reader)).json
        double = np.array(reply["outputs"][0]["data"]).reshape(-1, 2)
        own += (
            reply["id"] == f"{client}-{turn}"
            and reply["outputs"][1]["data"] == wanted
            and bool((double == 2 * np.array(wanted)[:, None]).all())
        )
    writer.close()
    await writer.wait_closed()
    return own


async def fickle(server: LiveServer, client: int) -> None:
    """Sends requests and leaves in the middle of a body, right after one, or shortly afterwards."""
    chance = random.Random(client)
    for turn in range(REQUESTS):
        _, writer = await server.connect()
        whole = request("POST", "/v2/models/echo/infer", echo_body(*identities(client, turn)))
        writer.write(whole[: chance.choice([len(whole) // 2, len(whole), len(whole)])])
        await asyncio.sleep(chance.choice([0.0, 0.001, 0.01]))
        if chance.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
