"""What a server lets its operators see of a request, over real sockets: its name and the log."""

import asyncio
import io
import logging
import re
import time
from pathlib import Path

import orjson
import pytest
from fastapi import APIRouter

from service.monitoring.logs import JsonFormatter
from tests.unit.service.access.test_key_table import ADMIN_KEY
from tests.unit.service.echo_engine import POISON
from tests.unit.service.live_server import echo_body, read_reply, request, serving, until

INFER = "/v2/models/echo/infer"
TIMING = re.compile(r"(\w+);dur=([\d.]+)")
CALLS = [
    ("POST", INFER, echo_body(1), 200),
    ("POST", INFER, b"{", 400),
    ("POST", INFER, echo_body(POISON), 500),
    ("GET", INFER, b"", 405),
    ("POST", "/v2/models/nobody/infer", echo_body(1), 404),
    ("GET", "/v2/models/echo", b"", 200),
    ("GET", "/v1/models", b"", 200),
    ("GET", "/v1/builds/none", b"", 404),
    ("GET", "/nothing", b"", 404),
    ("PUT", "/v1/models/echo/default", b"{", 400),
    ("GET", "/metrics", b"", 200),
]


async def test_every_answer_says_how_its_request_is_called(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for method, path, body, status in CALLS:
            named = await server.ask(method, path, body, {"X-Request-ID": "mine-1"})
            made = await server.ask(method, path, body)
            case = f"{method} {path}"
            assert (named.status, named.headers["x-request-id"]) == (status, "mine-1"), case
            assert made.headers["x-request-id"] not in ("", "mine-1"), case


async def test_what_is_no_request_is_answered_with_a_name_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reader, writer = await server.connect()
        writer.write(b"this is not HTTP\r\n\r\n")
        reply = await read_reply(reader)
        writer.close()
        assert (reply.status, "x-request-id" in reply.headers) == (400, True)


async def test_what_is_logged_for_a_request_has_its_name(tmp_path: Path) -> None:
    stream, logged = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("server"))
    router = APIRouter()

    @router.get("/broken")
    async def broken() -> None:
        logging.getLogger("some.library").warning("about to break")
        raise KeyError("broken")

    async with serving(tmp_path) as server:
        server.server.config.loaded_app.include_router(router)
        logged.addHandler(handler)
        try:
            reply = await server.ask("GET", "/broken", headers={"X-Request-ID": "mine"})
            await until(lambda: "Traceback" in stream.getvalue())
        finally:
            logged.removeHandler(handler)
        assert (reply.status, reply.headers["x-request-id"]) == (500, "mine")
        warned, failed = [orjson.loads(line) for line in stream.getvalue().splitlines()]
        assert (warned["message"], warned["request_id"]) == ("about to break", "mine")
        assert (failed["logger"], failed["request_id"]) == ("service.http.exchange", "mine")
        assert failed["exception"].endswith("KeyError: 'broken'")


async def test_so_is_what_is_logged_for_a_request_that_is_begun_without_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, logged = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("server"))

    def broken(*_: object) -> bool:
        raise KeyError("broken")

    async with serving(tmp_path, settings={"admin_key": ADMIN_KEY}) as server:
        key = {"Authorization": f"Bearer {ADMIN_KEY}"}
        logged.addHandler(handler)
        try:
            refused = await server.ask("POST", INFER, echo_body(1), {"X-Request-ID": "keyless"})
            monkeypatch.setattr(server.server.config.loaded_app.inference, "begin", broken)
            failed = await server.ask("POST", INFER, echo_body(1), {"X-Request-ID": "mine", **key})
        finally:
            logged.removeHandler(handler)
    assert (refused.status, failed.status) == (401, 500)
    lines = [orjson.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["logger"], line["request_id"]) for line in lines] == [
        ("octet.audit", "keyless"),
        ("service.http.exchange", "mine"),
    ]


async def test_a_model_shows_what_it_does_now(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.context.metrics.of("echo", "1").recent.sample(time.monotonic() - 1.0)
        for value in range(5):
            await server.infer(value, value)
        for path in ("/v1/models/echo/versions/1", "/v1/models/echo", "/v1/models"):
            shown = (await server.ask("GET", path)).json
            for key in ("models", "versions"):
                shown = shown[key][0] if key in shown else shown
            live = shown["live"]
            assert 0 < live["requests_per_s"] <= 5, path
            assert live["rows_per_s"] == pytest.approx(2 * live["requests_per_s"], rel=0.01)
            assert 0 < live["p50_ms"] <= live["p99_ms"]
            assert (live["queue_rows"], live["inflight_requests"]) == (0, 0)
        await server.ask("POST", "/v2/repository/models/echo/unload")
        assert (await server.ask("GET", "/v1/models/echo/versions/1")).json["live"] is None


async def test_a_deleted_model_leaves_the_metrics(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.infer(1)
        assert b'model="echo"' in (await server.ask("GET", "/metrics")).body
        assert (await server.ask("DELETE", "/v1/models/echo")).status == 204
        await until(lambda: b'model="echo"' not in server.context.metrics.scrape())


async def test_counts_are_sampled_while_the_server_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        samples = server.context.metrics.of("echo", "1").recent._samples
        await until(lambda: len(samples) >= 2)


async def test_a_failed_batch_names_all_its_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as server:
        batcher = server.context.deployments.find("echo").batcher
        server.engine.gate.clear()
        busy = asyncio.create_task(server.infer(1))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        failing = []
        for name, value in (("a", 2.0), ("b", POISON)):
            headers = {"X-Request-ID": name}
            failing.append(asyncio.create_task(server.ask("POST", INFER, echo_body(value), headers)))
            await until(lambda: batcher.queue_rows == len(failing))
        server.engine.gate.set()
        assert [(await reply).status for reply in (busy, *failing)] == [200, 500, 500]
        (record,) = [record for record in caplog.records if "failed on a batch" in record.message]
        said = vars(record)
        assert (said["model"], said["version"], said["request_ids"]) == ("echo", "1", ["a", "b"])


async def test_where_time_went_is_told_where_that_is_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert "server-timing" not in (await server.infer(1)).headers
    async with serving(tmp_path, settings={"server_timing": True}) as server:
        server.engine.gate.clear()
        busy = asyncio.create_task(server.infer(1))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        waiting = asyncio.create_task(server.infer(2))
        await until(lambda: server.context.deployments.find("echo").batcher.queue_rows == 1)
        await asyncio.sleep(0.05)
        server.engine.gate.set()
        timings = [(await reply).headers["server-timing"] for reply in (busy, waiting)]
        ran, waited = ({name: float(ms) for name, ms in TIMING.findall(timing)} for timing in timings)
        assert list(ran) == ["decode", "queue", "compute", "encode"]
        assert ran["compute"] >= 50
        assert waited["queue"] >= 50
        assert waited["compute"] < ran["compute"]
        assert "server-timing" not in (await server.infer(POISON)).headers


async def test_answers_are_noted_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.monitoring.observer")
    async with serving(tmp_path) as server:
        assert (await server.infer(1)).status == 200
        assert not [record for record in caplog.records if record.name == "service.monitoring.observer"]
    async with serving(tmp_path, settings={"access_log": True}) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", INFER, echo_body(1)) + request("GET", "/nothing?key=secret"))
        replies = [await read_reply(reader) for _ in range(2)]
        writer.close()
        notes = [record for record in caplog.records if record.name == "service.monitoring.observer"]
        assert [note.getMessage() for note in notes] == [f"POST {INFER} 200", "GET /nothing 404"]
        assert [vars(note)["answer_bytes"] for note in notes] == [len(reply.body) for reply in replies]
