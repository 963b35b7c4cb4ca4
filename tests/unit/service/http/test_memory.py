"""What connections leave behind: nothing."""

import asyncio
import gc
import weakref
from typing import cast

import pytest

from service.http import server as http_server
from service.http.connection import Connection
from service.http.exchange import Exchange
from service.processes import memory
from service.processes.spare_memory import SpareMemory
from tests.unit.service.http.plain_server import plain_server
from tests.unit.service.live_server import read_reply, request, until


@pytest.mark.parametrize("path", ["/", "/whole"])
async def test_a_connection_is_gone_without_the_garbage_collector(path: str) -> None:
    async with plain_server() as server:
        gc.disable()
        try:
            reader, writer = await server.connect()
            writer.write(request("POST", path, b"x" * 700_000))
            await read_reply(reader)
            (connection,) = [weakref.ref(one) for one in server.server.server_state.connections]
            writer.close()
            await until(lambda: server.connections == 0)
            await until(lambda: connection() is None)
        finally:
            gc.enable()


@pytest.mark.parametrize("path", ["/", "/whole"])
async def test_nor_does_the_body_of_a_client_that_left_wait_for_it(path: str) -> None:
    async with plain_server() as server:
        gc.disable()
        try:
            _, writer = await server.connect()
            writer.write(request("POST", path, b"x" * 700_000)[:-100_000])
            await until(lambda: server.connections == 1)
            connections = cast("set[Connection]", server.server.server_state.connections)
            await until(lambda: sum(one._receiving.done_bytes for one in connections) > 500_000)
            (connection,) = [weakref.ref(one) for one in connections]
            writer.close()
            await until(lambda: connection() is None)
        finally:
            gc.enable()


@pytest.mark.parametrize("before", [b"", request("POST", "/", b"abc")])
async def test_nor_does_one_on_which_nonsense_came(before: bytes) -> None:
    async with plain_server() as server:
        gc.disable()
        try:
            reader, writer = await server.connect()
            writer.write(before)
            if before:
                await read_reply(reader)
            await until(lambda: server.connections == 1)
            (connection,) = [weakref.ref(one) for one in server.server.server_state.connections]
            writer.write(b"NONSENSE\r\n\r\n")
            assert (await read_reply(reader)).status == 400
            writer.close()
            await until(lambda: server.connections == 0)
            await until(lambda: connection() is None)
        finally:
            gc.enable()


@pytest.mark.parametrize("first_bytes", [200, 300_000])
async def test_requests_sent_ahead_wait_as_the_bytes_that_they_are(first_bytes: int) -> None:
    async with plain_server() as server:
        server.app.gate.clear()
        _, writer = await server.connect()
        writer.write(request("POST", "/", b"x" * first_bytes) + request("POST", "/", b"x" * 200) * 1000)
        await until(lambda: bool(server.app.seen))
        await asyncio.sleep(0.2)
        waiting = sum(isinstance(thing, Exchange) for thing in gc.get_objects())
        writer.close()
    assert 1 < waiting < 40


async def test_memory_is_given_back_once_many_connections_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(memory, "give_back", lambda: given_back.append(True))
    monkeypatch.setattr(http_server, "_MANY_CONNECTIONS", 3)
    async with plain_server() as server:
        held = [(await server.connect())[1] for _ in range(4)]
        await until(lambda: server.connections == 4)
        await until(lambda: server.server._most_connections == 4)
        held.pop().close()
        await until(lambda: server.connections == 3)
        assert given_back == []
        for writer in held[:2]:
            writer.close()
        await until(lambda: given_back == [True])
        held[2].close()


async def test_memory_that_clients_have_left_behind_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(memory, "give_back", lambda: given_back.append(True))
    monkeypatch.setattr(memory, "resident_bytes", lambda _: 200 << 20 if given_back else 300 << 20)
    async with plain_server() as server:
        server.server._spare = AlwaysDue(200 << 20)
        await until(lambda: given_back == [True])
        await until(lambda: server.server._giving_back is None)


class AlwaysDue(SpareMemory):
    """Does not wait for growth to last."""

    def due(self, resident_bytes: int, now_s: float) -> bool:
        """Whether there is growth."""
        return super().due(resident_bytes, now_s) or super().due(resident_bytes, now_s + 3600)


async def test_connections_are_looked_at_in_parts_and_each_once_in_a_round() -> None:
    class Counted:
        looks = 0

        def check(self) -> None:
            self.looks += 1

    async with plain_server(check_s=1.0) as running:
        server = http_server.HttpServer(cast("http_server.HttpConfig", running.server.config))
        counted = [Counted() for _ in range(95)]
        server.server_state.connections = set(cast("list[Connection]", counted))  # type: ignore[arg-type]
        for tick in range(10):
            before = sum(one.looks for one in counted)
            await server.on_tick(tick)
            assert sum(one.looks for one in counted) - before <= 10
        assert [one.looks for one in counted] == [1] * 95
        # One that has gone is not looked at any more.
        await server.on_tick(10)
        server.server_state.connections.clear()
        looks = sum(one.looks for one in counted)
        await server.on_tick(11)
        assert sum(one.looks for one in counted) == looks
