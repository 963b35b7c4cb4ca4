"""What a client may not keep a server waiting for: each limit, with a server that has little patience."""

import asyncio
import contextlib
from typing import Any, cast

import pytest

from service.http import connection as http_connection
from service.http.connection import Connection
from service.http.requests import RequestParser
from tests.unit.service.http.plain_server import PlainServer, plain_server
from tests.unit.service.http.test_connection import parsed
from tests.unit.service.live_server import read_reply, request, until


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came until the server closed."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 20)
    return b""


async def test_a_silent_client_is_closed() -> None:
    async with plain_server(head_s=0.2) as server:
        reader, writer = await server.connect()
        assert await closed(reader) == b""
        writer.close()


@pytest.mark.parametrize("before", [b"", request("POST", "/", b"first")])
async def test_half_a_head_is_told_so_and_closed(before: bytes) -> None:
    async with plain_server(head_s=0.2, idle_s=60) as server:
        reader, writer = await server.connect()
        writer.write(before + b"POST / HTTP/1.1\r\nHost: oct")
        if before:
            assert (await read_reply(reader)).body == b"first"
        reply = parsed(await closed(reader))
        assert (reply.status, reply.json["code"]) == (408, "request.slow")
        writer.close()


async def test_a_head_that_drips_is_closed_too() -> None:
    async with plain_server(head_s=0.3) as server:
        reader, writer = await server.connect()
        writer.write(b"POST / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                writer.write(b"a")
                await asyncio.sleep(0.02)
                if reader.at_eof():
                    break
        assert parsed(await closed(reader)).status == 408
        writer.close()


async def test_an_idle_connection_is_closed_only_after_its_own_longer_time() -> None:
    async with plain_server(head_s=0.2, idle_s=0.8) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/", b"first"))
        await read_reply(reader)
        await asyncio.sleep(0.5)
        writer.write(request("POST", "/", b"second"))
        assert (await read_reply(reader)).body == b"second"
        assert await closed(reader) == b""
        writer.close()


@pytest.mark.parametrize("path", ["/", "/whole"])
async def test_a_body_that_stalls_is_told_so_and_closed(path: str) -> None:
    async with plain_server(stall_s=0.4) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", path, b"half", {"Content-Length": "100000"}))
        reply = parsed(await closed(reader))
        assert (reply.status, reply.json["code"]) == (408, "request.slow")
        assert server.app.seen == [(path, "left")]
        writer.close()


async def test_a_body_that_comes_slowly_is_waited_for() -> None:
    async with plain_server(stall_s=0.3, bytes_per_s=100) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/", b"", {"Content-Length": "1000"}))
        for _ in range(20):
            writer.write(b"x" * 50)
            await asyncio.sleep(0.05)
        assert (await read_reply(reader)).body == b"x" * 1000
        writer.close()


async def test_an_application_that_takes_its_time_is_not_held_against_the_client() -> None:
    async with plain_server(head_s=0.2, idle_s=0.2, stall_s=0.2) as server:
        server.app.gate.clear()
        reader, writer = await server.connect()
        writer.write(request("POST", "/", b"body"))
        await asyncio.sleep(0.8)
        server.app.gate.set()
        assert (await read_reply(reader)).body == b"body"
        writer.close()


async def test_a_head_is_not_waited_for_while_nobody_reads() -> None:
    async with plain_server(head_s=0.5) as server:
        server.app.gate.clear()
        reader, writer = await server.connect()
        writer.write(
            request("POST", "/", b"first") + request("POST", "/", b"second") + b"POST / HTTP/1.1\r\n"
        )
        await asyncio.sleep(0.7)
        server.app.gate.set()
        for body in (b"first", b"second"):
            assert (await read_reply(reader)).body == body
        await asyncio.sleep(0.25)
        writer.write(b"Content-Length: 5\r\n\r\nthird")
        assert (await read_reply(reader)).body == b"third"
        writer.close()


async def test_a_client_that_takes_no_answer_is_cut_off() -> None:
    async with plain_server(stall_s=0.4) as server:
        _, writer = await server.connect()
        transport: Any = writer.transport
        transport.pause_reading()
        # The second is not begun while the first is not taken.
        writer.write(request("POST", "/large", b"x") * 2)
        await until(lambda: server.connections == 1 and bool(server.app.seen))
        await until(lambda: server.connections == 0)
        assert server.app.seen == [("/large", "1 bytes")]
        writer.transport.abort()


async def test_a_client_that_takes_its_answer_late_gets_it_whole() -> None:
    async with plain_server(stall_s=5) as server:
        reader, writer = await server.connect()
        transport: Any = writer.transport
        transport.pause_reading()
        writer.write(request("POST", "/large", b"x") + request("POST", "/", b"next"))
        await asyncio.sleep(0.4)
        transport.resume_reading()
        assert len((await read_reply(reader)).body) == 32 << 20
        assert (await read_reply(reader)).body == b"next"
        writer.close()


async def test_a_body_that_nobody_waits_for_is_not_dropped_forever() -> None:
    async with plain_server(drop_s=0.3, stall_s=60) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/early", b"x", {"Content-Length": "100000"}))
        assert (await read_reply(reader)).status == 413
        assert await closed(reader) == b""
        writer.close()


def oversize(server: str) -> bytes:
    return {
        "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4000 + b"\r\n",
        "one header": b"GET / HTTP/1.1\r\na: " + b"b" * 20_000 + b"\r\n\r\n",
        "endless header": b"GET / HTTP/1.1\r\na: " + b"b" * 5_000_000,
        "endless name": b"GET / HTTP/1.1\r\n" + b"b" * 5_000_000,
        "endless path": b"GET /" + b"b" * 5_000_000,
    }[server]


@pytest.mark.parametrize(
    "kind", ["many headers", "one header", "endless header", "endless name", "endless path"]
)
async def test_a_head_over_its_limit_is_told_so(kind: str) -> None:
    async with plain_server(head_bytes=16_000) as server:
        reply = parsed(await server.exchange(oversize(kind)))
        assert (reply.status, reply.json["code"]) == (431, "request.head_too_large")
        assert "more than 16000 bytes" in reply.json["error"]


@pytest.mark.parametrize("after", [b"0\r\na: " + b"b" * 3_000_000, b"5;a=" + b"b" * 3_000_000])
async def test_what_is_no_part_of_a_chunked_body_has_the_limit_of_a_head(after: bytes) -> None:
    async with plain_server(head_bytes=16_000) as server:
        sent = request("POST", "/", b"3\r\none\r\n" + after, {"Transfer-Encoding": "chunked"})
        assert parsed(await server.exchange(sent)).status in (400, 431)
        await until(lambda: server.connections == 0)


async def test_a_large_body_in_one_piece_with_its_head_is_no_large_head() -> None:
    async with plain_server(head_bytes=1000) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/", b"x" * 60_000) * 3)
        for _ in range(3):
            assert len((await read_reply(reader)).body) == 60_000
        writer.close()


async def hold(server: PlainServer, count: int) -> list[asyncio.StreamWriter]:
    return [(await server.connect())[1] for _ in range(count)]


async def test_connections_over_the_limit_are_told_so_until_others_close() -> None:
    async with plain_server(connections=3) as server:
        held = await hold(server, 3)
        await until(lambda: server.connections == 3)
        reader, writer = await server.connect()
        reply = parsed(await closed(reader))
        assert (reply.status, reply.json["code"]) == (503, "server.connections")
        assert int(reply.headers["retry-after"]) >= 1
        writer.close()
        held.pop().close()
        await until(lambda: server.connections == 2)
        assert (
            parsed(await server.exchange(request("POST", "/", b"x", {"Connection": "close"}))).status == 200
        )
        for other in held:
            other.close()


async def test_a_connection_on_which_nothing_happens_keeps_no_parser_and_gets_another() -> None:
    async with plain_server(check_s=0.1) as server:
        reader, writer = await server.connect()
        await until(lambda: server.connections == 1)
        (connection,) = cast("set[Connection]", server.server.server_state.connections)
        assert connection._parser is None
        for body in (b"first", b"second"):
            writer.write(request("POST", "/", body))
            assert (await read_reply(reader)).body == body
            await until(lambda: connection._parser is None)
        writer.close()


async def test_one_that_has_begun_a_head_or_waits_for_an_answer_keeps_its_parser() -> None:
    async with plain_server(check_s=0.1) as server:
        server.app.gate.clear()
        reader, writer = await server.connect()
        head, rest = request("POST", "/", b"body")[:20], request("POST", "/", b"body")[20:]
        writer.write(head)
        await asyncio.sleep(0.5)
        writer.write(rest + head)
        await asyncio.sleep(0.5)
        server.app.gate.set()
        assert (await read_reply(reader)).body == b"body"
        await asyncio.sleep(0.5)
        writer.write(rest)
        assert (await read_reply(reader)).body == b"body"
        writer.close()


async def test_where_there_are_many_a_parser_goes_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "PARSER_REST_S", 60.0)
    monkeypatch.setattr(http_connection, "MANY_PARSERS", RequestParser.alive + 1)
    async with plain_server() as server:
        earlier = RequestParser.alive
        ends = [await server.connect() for _ in range(4)]
        for _ in range(2):
            for reader, writer in ends:
                writer.write(request("POST", "/", b"body"))
                assert (await read_reply(reader)).body == b"body"
                # A head that has begun keeps its own.
                writer.write(request("POST", "/", b"next")[:9])
                await asyncio.sleep(0.02)
                writer.write(request("POST", "/", b"next")[9:])
                assert (await read_reply(reader)).body == b"next"
        assert RequestParser.alive == earlier + 1
        for _, writer in ends:
            writer.close()
        await until(lambda: RequestParser.alive == earlier)
