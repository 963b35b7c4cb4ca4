"""Connections over real sockets: HTTP as it is meant, and as clients get it wrong or mean harm."""

import asyncio
import contextlib
import functools
import gc
import random
import re
import weakref

import pytest

from service.http.asgi import Message, Receive, Send
from service.http.exchange import Exchange
from tests.unit.service.http.plain_server import PlainServer, answer, plain_server
from tests.unit.service.live_server import Reply, read_reply, request, until

CLOSE = {"Connection": "close"}


def parsed(raw: bytes) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return Reply(status=int(lines[0].split()[1]), headers=headers, body=body)


async def ask(server: PlainServer, path: str, body: bytes = b"", **headers: str) -> Reply:
    return parsed(await server.exchange(request("POST", path, body, {**CLOSE, **headers})))


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("path", ["/", "/whole"])
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_a_body_comes_whole_however_the_application_reads_it(path: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with plain_server() as server:
        assert (await ask(server, path, body)).body == body


async def test_a_body_that_comes_with_its_head_is_there_in_one_piece() -> None:
    async def at_hand(_: Message, receive: Receive, send: Send) -> None:
        exchange: Exchange = receive.__self__  # type: ignore[attr-defined] # a bound method of the exchange
        await answer(send, bytes(exchange.whole_at_hand() or b"none"))

    async with plain_server(at_hand) as server:
        for size in (100, 4096, 20_000):
            assert (await ask(server, "/", b"x" * size)).body == b"x" * size


@pytest.mark.parametrize("path", ["/", "/whole"])
async def test_a_body_in_pieces_at_any_place_comes_whole(path: str) -> None:
    body = bytes(range(256)) * 40
    async with plain_server() as server:
        reader, writer = await server.connect()
        sent = request("POST", path, body) * 2
        for start in range(0, len(sent), 1777):
            writer.write(sent[start : start + 1777])
            await asyncio.sleep(0.002)
        for _ in range(2):
            assert (await read_reply(reader)).body == body
        writer.close()


async def test_what_follows_a_body_read_whole_is_the_next_request() -> None:
    large = b"a" * 600_000
    async with plain_server() as server:
        reader, writer = await server.connect()
        for _ in range(3):
            writer.write(request("POST", "/whole", large) + request("POST", "/", b"next"))
        for _ in range(3):
            assert (await read_reply(reader)).body == large
            assert (await read_reply(reader)).body == b"next"
        writer.close()


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_follows_a_large_body_comes_whole(seed: int) -> None:
    chance = random.Random(seed)
    large = chance.randbytes(300_000)
    async with plain_server() as server:
        reader, writer = await server.connect()
        for _ in range(12):
            body = chance.randbytes(chance.choice([0, 1, 3000, 4096, 20_000, 70_000, 600_000]))
            headers = {"X-Long": "x" * chance.choice([1, 3900, 9000])}
            chunks = chance.random() < 0.3
            if chunks:
                headers["Transfer-Encoding"] = "chunked"
            path = chance.choice(["/", "/whole"])
            sent = request("POST", path, chunked(body) if chunks and body else body, headers if body else {})
            ahead = chance.random() < 0.3
            for part in (request("POST", "/whole", large) + sent,) if ahead else (None, sent):
                if part is None:
                    writer.write(request("POST", "/whole", large))
                    assert (await read_reply(reader)).body == large
                    continue
                cut = chance.randrange(len(part))
                writer.write(part[:cut])
                await asyncio.sleep(0.005)
                writer.write(part[cut:])
            if ahead:
                assert (await read_reply(reader)).body == large
            assert (await read_reply(reader)).body == body
        writer.close()


async def test_of_the_next_large_body_little_is_read_before_it_is_wanted() -> None:
    begun: list[int] = []

    async def noting(scope: Message, receive: Receive, send: Send) -> None:
        exchange: Exchange = receive.__self__  # type: ignore[attr-defined] # a bound method of the exchange
        begun.append(exchange.waiting_bytes)
        body = await exchange.read_whole(int(dict(scope["headers"])[b"content-length"]))
        await answer(send, bytes(body or b"none"))

    bodies = [b"a" * 600_000, b"b" * 600_000, b"c" * 40_000, b"d" * 600_000]
    async with plain_server(noting) as server:
        reader, writer = await server.connect()
        for body in bodies:
            sent = request("POST", "/", body)
            writer.write(sent[:20_000])
            if len(body) == 40_000:
                # So that the rest is read to where it is wanted, as of a large one.
                await until(lambda: len(begun) == 3)
            writer.write(sent[20_000:])
            assert (await read_reply(reader)).body == body
        writer.close()
    assert begun[1] < 4096
    # A small one is the sign that the next may be small as well.
    assert begun[3] > 4096


async def test_nonsense_after_a_large_body_ends_the_connection() -> None:
    large = b"a" * 600_000
    async with plain_server() as server:
        reply = await server.exchange(request("POST", "/whole", large) + b"nonsense\r\n\r\n")
        assert reply.count(b"HTTP/1.1 200") == 1
        assert reply.count(b"HTTP/1.1 400") == 1


async def test_a_client_that_leaves_after_a_large_body_is_let_go() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/whole", b"a" * 600_000))
        await read_reply(reader)
        writer.close()
        await until(lambda: server.connections == 0)


async def test_http_1_0_is_not_told_to_continue() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"abc")
        reply = parsed(await reader.read())
        assert (reply.status, reply.body) == (200, b"abc")
        writer.close()


async def test_a_chunked_body_comes_whole() -> None:
    async with plain_server() as server:
        sent = request(
            "POST", "/", chunked(b"one", b"two" * 50_000), {"Transfer-Encoding": "chunked", **CLOSE}
        )
        assert parsed(await server.exchange(sent)).body == b"one" + b"two" * 50_000


async def test_trailers_are_dropped() -> None:
    async with plain_server() as server:
        body = b"3\r\none\r\n0\r\nX-Late: yes\r\n\r\n"
        sent = request("POST", "/", body, {"Transfer-Encoding": "chunked"})
        reply = await server.exchange(sent + request("POST", "/", b"two", CLOSE))
        assert reply.count(b"HTTP/1.1 200") == 2
        assert reply.endswith(b"two")


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    async with plain_server() as server:
        sent = b"".join(request("POST", "/", b"%d" % number) for number in range(50))
        raw = await server.exchange(sent + request("POST", "/", b"last", CLOSE))
        assert re.findall(rb"\r\n\r\n(\d+|last)", raw) == [*(b"%d" % number for number in range(50)), b"last"]


@pytest.mark.parametrize("seed", range(4))
async def test_bodies_of_requests_sent_ahead_come_whole_wherever_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    bodies = [chance.randbytes(chance.choice([0, 1, 100, 4096, 9000, 70_000])) for _ in range(60)]
    sent = b"".join(
        request("POST", "/", chunked(body), {"Transfer-Encoding": "chunked"})
        if body and chance.random() < 0.3
        else request("POST", chance.choice(["/", "/whole"]), body)
        for body in bodies
    )
    async with plain_server() as server:
        reader, writer = await server.connect()

        async def send() -> None:
            start = 0
            while start < len(sent):
                end = start + chance.choice([1, 300, 4096, 300_000])
                writer.write(sent[start:end])
                await writer.drain()
                await asyncio.sleep(0)
                start = end

        sending = asyncio.create_task(send())
        for body in bodies:
            assert (await read_reply(reader)).body == body
        await sending
        writer.close()


async def test_an_answer_of_unknown_length_is_chunked() -> None:
    async with plain_server() as server:
        reply = await ask(server, "/pieces", b"abcdef")
        assert reply.headers["transfer-encoding"] == "chunked"
        assert reply.body == b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"


async def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async with plain_server() as server:
        sent = request("POST", "/pieces", b"abcdef").replace(b"HTTP/1.1", b"HTTP/1.0")
        reply = parsed(await server.exchange(sent))
        assert "transfer-encoding" not in reply.headers
        assert (reply.headers["connection"], reply.body) == ("close", b"abcdef")


async def test_head_gets_the_headers_alone() -> None:
    async with plain_server() as server:
        for path in ("/", "/pieces"):
            sent = request("HEAD", path, b"abc") + request("POST", "/", b"next", CLOSE)
            raw = await server.exchange(sent)
            assert raw.count(b"HTTP/1.1 200") == 2, path
            assert raw.count(b"abc") == 0, path
            assert raw.endswith(b"next"), path


async def test_no_content_has_neither_body_nor_length() -> None:
    async with plain_server() as server:
        reply = await ask(server, "/nothing")
        assert (reply.status, reply.body) == (204, b"")
        assert not {"content-length", "transfer-encoding"} & set(reply.headers)


async def test_a_client_may_ask_whether_to_send_its_body() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/", b"", {"Content-Length": "4", "Expect": "100-continue"}))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await read_reply(reader)).body == b"body"
        writer.close()


async def test_a_client_that_was_not_told_to_send_its_body_starts_anew() -> None:
    async with plain_server() as server:
        reply = parsed(
            await server.exchange(
                request("POST", "/early", b"", {"Content-Length": "4", "Expect": "100-continue"})
            )
        )
        assert (reply.status, reply.body, reply.headers["connection"]) == (413, b"early", "close")


async def test_an_upgrade_that_is_not_given_leaves_http_1() -> None:
    async with plain_server() as server:
        upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
        sent = request("POST", "/", b"one", upgrade) + request("GET", "/", b"", upgrade)
        raw = await server.exchange(sent + request("POST", "/", b"three", CLOSE))
        assert raw.count(b"HTTP/1.1 200") == 3
        assert raw.endswith(b"three")
        assert server.app.seen == [("/", "3 bytes"), ("/", "0 bytes"), ("/", "5 bytes")]


async def test_an_upgrade_with_a_body_in_pieces_loses_nothing() -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "h2c", "Transfer-Encoding": "chunked"}
    sent = request("POST", "/", chunked(b"one", b"two"), upgrade) * 2
    async with plain_server() as server:
        reader, writer = await server.connect()
        for start in range(0, len(sent), 7):
            writer.write(sent[start : start + 7])
            await asyncio.sleep(0.001)
        for _ in range(2):
            assert (await read_reply(reader)).body == b"onetwo"
        writer.close()


async def test_a_whole_url_as_target_is_its_path() -> None:
    async with plain_server() as server:
        assert (await ask(server, "http://octet/whole%20a?b=c", b"x")).status == 200
        assert server.app.seen == [("/whole a", "1 bytes")]


async def test_an_application_that_fails_costs_its_own_request_alone() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/raises", b"x") + request("POST", "/", b"next"))
        failed = await read_reply(reader)
        assert (failed.status, failed.json["code"]) == (500, "server.error")
        assert "secret" not in failed.json["error"]
        assert (await read_reply(reader)).body == b"next"
        writer.close()


async def test_an_answer_that_breaks_off_ends_the_connection() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/breaks-off", b"x"))
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


async def test_a_rest_of_a_body_that_nobody_waits_for_is_dropped() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/early", b"", {"Content-Length": "5000"}))
        assert (await read_reply(reader)).status == 413
        writer.write(b" " * 5000 + request("POST", "/", b"next"))
        assert (await read_reply(reader)).body == b"next"
        writer.close()


async def test_nonsense_in_a_rest_that_nobody_waits_for_ends_the_connection() -> None:
    async with plain_server() as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/early", b"", {"Transfer-Encoding": "chunked"}))
        assert (await read_reply(reader)).status == 413
        writer.write(b"not a length\r\n")
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"0" * 5000 + b"1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"CONNECT octet:80 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_http_is_told_so(sent: bytes) -> None:
    async with plain_server() as server:
        reply = parsed(await server.exchange(sent))
        assert (reply.status, reply.json["code"]) == (400, "request.invalid"), sent
        assert reply.headers["connection"] == "close"
        await until(lambda: server.connections == 0)


async def test_nonsense_behind_a_request_does_not_cost_its_answer() -> None:
    async with plain_server() as server:
        raw = await server.exchange(request("POST", "/", b"first") + b"nonsense\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 200")
        assert b"firstHTTP/1.1 400" in raw


async def test_more_bytes_than_said_are_no_part_of_the_body() -> None:
    async with plain_server() as server:
        raw = await server.exchange(request("POST", "/", b"12345", {"Content-Length": "3"}))
        assert b"123HTTP/1.1 400" in raw
        assert server.app.seen == [("/", "3 bytes")]


@pytest.mark.parametrize("path", ["/", "/whole"])
async def test_a_client_that_leaves_in_its_body_is_noticed(path: str) -> None:
    async with plain_server() as server:
        for size in (10, 900_000):
            _, writer = await server.connect()
            writer.write(request("POST", path, b"x" * size, {"Content-Length": str(size + 100_000)}))
            await asyncio.sleep(0.05)
            writer.close()
        await until(lambda: server.app.seen == [(path, "left")] * 2)
        await until(lambda: server.connections == 0)


class Beginner:
    """Begins requests as `OctetApp` does, without a task; by their paths answers them at once, later or never."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.run: list[str] = []
        self.waiting: list[Exchange] = []
        # The clients that left while their bodies came.
        self.left: list[str] = []

    def begin(self, exchange: Exchange) -> bool:
        path = exchange.scope["path"]
        if path == "/task":
            return False
        if path == "/raises":
            raise KeyError("a secret")
        self.begun.append(path)
        if path == "/later":
            self.waiting.append(exchange)
        elif not exchange.received:
            length = int(dict(exchange.scope["headers"])[b"content-length"])
            exchange.gather(length, functools.partial(self.gathered, exchange))
        else:
            self.answer(exchange)
        return True

    def gathered(self, exchange: Exchange, body: bytes | memoryview | None) -> bool:
        path = exchange.scope["path"]
        if body is None:
            self.left.append(path)
        elif path == "/raises-then":
            raise KeyError("a secret")
        elif path == "/task-then":
            return False
        else:
            exchange.answer(200, [(b"x-path", path.encode())], [bytes(body)])
        return True

    def answer(self, exchange: Exchange) -> None:
        body = bytes(exchange.whole_at_hand() or b"none")
        exchange.answer(200, [(b"x-path", exchange.scope["path"].encode())], [body])

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.run.append(scope["path"])
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        await answer(send, b"task " + body)


async def begun(
    server: PlainServer, app: Beginner, first: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which the first bytes of a request have come and it was begun."""
    reader, writer = await server.connect()
    writer.write(first)
    await until(lambda: len(app.begun) == 1)
    return reader, writer


@pytest.mark.parametrize("size", [1, 4096, 20_000, 60_000])
async def test_a_request_that_has_come_whole_is_begun_without_a_task(size: int) -> None:
    app = Beginner()
    async with plain_server(app) as server:
        reply = await ask(server, "/now", b"a" * size)
        assert (reply.status, reply.body, reply.headers["x-path"]) == (200, b"a" * size, "/now")
        assert (app.begun, app.run) == (["/now"], [])


async def test_a_request_that_the_application_does_not_begin_is_run_in_a_task() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        assert (await ask(server, "/task", b"abc")).body == b"task abc"
        assert app.begun == []


async def test_a_request_that_is_not_begun_is_run_in_a_task_while_its_body_comes() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        sent = request("POST", "/task", b"abcdef")
        writer.write(sent[:-3])
        await until(lambda: app.run == ["/task"])
        writer.write(sent[-3:])
        assert (await read_reply(reader)).body == b"task abcdef"
        assert app.begun == []
        writer.close()


@pytest.mark.parametrize("size", [2, 16_384, 16_385, 65_536, 65_537, 700_000])
@pytest.mark.parametrize("head", ["alone", "with some of the body", "with most of the body"])
async def test_a_body_that_comes_after_its_head_is_gathered_without_a_task(size: int, head: str) -> None:
    app, body = Beginner(), random.Random(size).randbytes(size)
    sent = request("POST", "/now", body)
    bodyless = len(sent) - size
    cut = {"alone": bodyless, "with some of the body": bodyless + 1, "with most of the body": len(sent) - 1}[
        head
    ]
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        # Twice: what a large body leaves behind must not harm the next.
        for _ in range(2):
            app.begun.clear()
            writer.write(sent[:cut])
            await until(lambda: bool(app.begun))
            writer.write(sent[cut:])
            assert (await read_reply(reader)).body == body
        assert app.run == []
        writer.close()


async def test_what_follows_a_gathered_body_waits_for_its_answer() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        sent = request("POST", "/now", b"abcdef")
        reader, writer = await begun(server, app, sent[:-3])
        writer.write(sent[-3:] + request("POST", "/task", b"gh") + request("POST", "/now", b"ij"))
        bodies = [(await read_reply(reader)).body for _ in range(3)]
        assert bodies == [b"abcdef", b"task gh", b"task ij"]
        writer.close()


async def test_what_follows_a_gathered_body_whose_answer_ends_the_connection_is_not_begun() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        sent = request("POST", "/now", b"abcdef", CLOSE)
        reader, writer = await begun(server, app, sent[:-3])
        writer.write(sent[-3:] + request("POST", "/now", b"gh"))
        assert (await reader.read()).count(b"HTTP/1.1 200") == 1
        assert (app.begun, app.run) == (["/now"], [])
        writer.close()


@pytest.mark.parametrize("size", [100, 700_000])
async def test_who_gathers_a_body_is_told_that_its_client_has_left(size: int) -> None:
    app = Beginner()
    async with plain_server(app) as server:
        gc.disable()
        try:
            _, writer = await server.connect()
            writer.write(request("POST", "/now", b"x" * size)[:-50])
            await until(lambda: app.begun == ["/now"])
            (connection,) = [weakref.ref(one) for one in server.server.server_state.connections]
            writer.close()
            await until(lambda: app.left == ["/now"])
            await until(lambda: connection() is None)
        finally:
            gc.enable()
        assert (app.left, app.run) == (["/now"], [])


async def test_a_client_that_leaves_once_its_body_is_whole_is_told_of_once() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        sent = request("POST", "/now", b"abcdef")
        _, writer = await begun(server, app, sent[:-3])
        (connection,) = server.server.server_state.connections
        # In the same turn of the loop: before the body is handed over, the connection is gone.
        connection.data_received(sent[-3:])
        connection.connection_lost(None)
        await asyncio.sleep(0.02)
        assert app.left == ["/now"]
        # The transport's own news of it comes as well.
        writer.close()
        await until(lambda: server.connections == 0)
        assert app.left == ["/now"]


@pytest.mark.parametrize("size", [3, 100_000])
async def test_a_task_goes_on_with_a_gathered_body_where_the_application_cannot(size: int) -> None:
    app, body = Beginner(), random.Random(size).randbytes(size)
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        sent = request("POST", "/task-then", body)
        for _ in range(2):
            app.begun.clear()
            writer.write(sent[:-1])
            await until(lambda: bool(app.begun))
            writer.write(sent[-1:])
            assert (await read_reply(reader)).body == b"task " + body
        assert app.run == ["/task-then"] * 2
        writer.close()


async def test_a_body_that_comes_byte_by_byte_takes_little_more_than_its_bytes() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        _, writer = await server.connect()
        writer.write(request("POST", "/now", headers={"Content-Length": "9000"}))
        await until(lambda: app.begun == ["/now"])
        (connection,) = server.server.server_state.connections
        for _ in range(8000):
            connection.data_received(b"x")
        pieces = next(thing for thing in gc.get_objects() if isinstance(thing, Exchange))._pieces
        assert sum(map(len, pieces)) == 8000
        assert len(pieces) < 100
        writer.close()


async def test_a_body_is_not_gathered_that_is_there() -> None:
    said: list[str] = []

    class Late(Beginner):
        def answer(self, exchange: Exchange) -> None:
            try:
                exchange.gather(3, functools.partial(self.gathered, exchange))
            except RuntimeError as error:
                said.append(str(error))
            super().answer(exchange)

    async with plain_server(Late()) as server:
        assert (await ask(server, "/now", b"abc")).body == b"abc"
    assert said == ["there is nothing to gather: the body is there, or its client has left."]


async def test_a_gathered_body_that_stalls_is_told_so_and_closed() -> None:
    app = Beginner()
    async with plain_server(app, stall_s=0.3) as server:
        raw = await server.exchange(request("POST", "/now", b"abc", {"Content-Length": "100"}))
        assert b" 408 " in raw.partition(b"\r\n")[0]
        assert (app.left, app.run) == (["/now"], [])


async def test_a_client_may_ask_whether_to_send_a_body_that_is_gathered() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        head = request("POST", "/now", headers={"Content-Length": "3", "Expect": "100-continue"})
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await read_reply(reader)).body == b"abc"
        writer.close()


async def test_an_application_that_fails_once_it_has_the_body_answers_500_without_its_words() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        sent = request("POST", "/raises-then", b"abc")
        reader, writer = await begun(server, app, sent[:-1])
        writer.write(sent[-1:] + request("POST", "/task", b"next"))
        reply = await read_reply(reader)
        assert (reply.status, b"secret" in reply.body) == (500, False)
        assert (await read_reply(reader)).body == b"task next"
        writer.close()


async def test_an_application_that_fails_to_begin_answers_500_without_its_words() -> None:
    async with plain_server(Beginner()) as server:
        reply = await ask(server, "/raises", b"abc")
        assert (reply.status, b"secret" in reply.body) == (500, False)


async def test_requests_sent_ahead_are_answered_in_order_however_each_is_begun() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        paths = ["/later", "/now", "/task", "/raises", "/later", "/now"]
        writer.write(b"".join(request("POST", path, path.encode()) for path in paths))
        # The first is begun, for what follows was not parsed yet; the others wait for it, and are run in tasks.
        await until(lambda: bool(app.waiting))
        assert (app.begun, app.run) == (["/later"], [])
        app.answer(app.waiting[0])
        bodies = [(await read_reply(reader)).body for _ in paths]
        assert bodies == [b"/later", *(b"task " + path.encode() for path in paths[1:])]
        assert app.begun == ["/later"]
        writer.close()


async def test_thousands_sent_ahead_and_answered_at_once_nest_no_calls_and_let_others_have_their_turns() -> (
    None
):
    app, count = Beginner(), 5000
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        writer.write(request("GET", "/now") * count)
        for _ in range(count):
            assert (await read_reply(reader)).status == 200
        assert len(app.begun) + len(app.run) == count
        # The others were run in tasks, which the loop comes to after what was there before.
        assert len(app.begun) < count / 10
        writer.close()


async def test_what_follows_an_answer_that_ends_the_connection_is_not_begun() -> None:
    app = Beginner()
    one = b"GET /now HTTP/1.0\r\nConnection: keep-alive\r\nX-Long: " + b"x" * 100 + b"\r\n\r\n"
    async with plain_server(app) as server:
        assert (await server.exchange(one * 100)).count(b"HTTP/1.1 200") == 1
        assert len(app.begun) + len(app.run) == 1


async def test_an_answer_to_a_client_that_has_left_goes_nowhere() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        _, writer = await server.connect()
        writer.write(request("POST", "/later", b"abc"))
        await until(lambda: bool(app.waiting))
        writer.close()
        await until(lambda: server.connections == 0)
        assert app.waiting[0].has_left()
        app.answer(app.waiting[0])
        assert (await ask(server, "/now", b"x")).body == b"x"


async def test_a_second_answer_to_a_request_is_not_sent() -> None:
    app = Beginner()
    async with plain_server(app) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/later", b"abc"))
        await until(lambda: bool(app.waiting))
        app.answer(app.waiting[0])
        app.answer(app.waiting[0])
        writer.write(request("POST", "/now", b"next"))
        assert [(await read_reply(reader)).body for _ in range(2)] == [b"abc", b"next"]
        writer.close()
