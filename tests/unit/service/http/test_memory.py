"""What connections leave behind: nothing."""

import gc
import weakref

import pytest

from service.http import server as http_server
from service.processes import memory
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
