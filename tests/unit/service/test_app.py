import asyncio
import gc
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi import APIRouter

from engines.options import BuildOptions
from service.access.keys import Quotas, new_key
from service.access.scopes import Scope
from service.catalog.catalog import NewBuild
from service.errors import NotReadyError, ServiceError
from service.http.exchange import Exchange
from service.routes.inference import Address, InferenceHandler, departure_of, infer_address
from service.routes.inference_call import Call
from tests.unit.service.echo_engine import POISON
from tests.unit.service.live_server import (
    LiveServer,
    echo_body,
    read_reply,
    request,
    serving,
    until,
)


def metric(server: LiveServer, name: str, **labels: str) -> float | None:
    return server.context.metrics.registry.get_sample_value(name, labels)


async def half_sent(server: LiveServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A connection on which a request of row 7 has come but for the end of its body, and that end."""
    reader, writer = await server.connect()
    sent = request("POST", "/v2/models/echo/infer", echo_body(7))
    writer.write(sent[:-5])
    await asyncio.sleep(0.05)
    return reader, writer, sent[-5:]


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/v2/models/m/infer", Address(model="m", version=None)),
        ("/v2/models/m/versions/3/infer", Address(model="m", version="3")),
        ("/v2/models/infer", None),
        ("/v2/models//infer", None),
        ("/v2/models/m/infer/", None),
        ("/v2/models/m/versions/infer", None),
        ("/v2/models/m/version/3/infer", None),
        ("/v2/models/m", None),
        ("/metrics", None),
    ],
)
def test_finds_whom_an_inference_request_is_for(path: str, address: Address | None) -> None:
    assert infer_address(path) == address


async def test_answers_inference(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reply = await server.ask("POST", "/v2/models/echo/infer", echo_body(3, 5, id="abc"))
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert reply.json == {
            "model_name": "echo",
            "model_version": "1",
            "id": "abc",
            "outputs": [
                {"name": "double", "datatype": "FP32", "shape": [2, 2], "data": [6, 6, 10, 10]},
                {"name": "first", "datatype": "FP32", "shape": [2, 1], "data": [3, 5]},
            ],
        }


async def test_answers_for_a_version_and_with_the_outputs_wanted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        body = echo_body(3, outputs=[{"name": "first"}])
        reply = await server.ask("POST", "/v2/models/echo/versions/1/infer", body)
        assert [output["name"] for output in reply.json["outputs"]] == ["first"]


ERRORS = [
    ("POST", "/v2/models/nobody/infer", echo_body(1), 404, "request.not_found", "no model 'nobody'"),
    ("POST", "/v2/models/echo/versions/9/infer", echo_body(1), 404, "request.not_found", "it has 1"),
    ("GET", "/v2/models/echo/infer", b"", 405, "request.method_not_allowed", "send POST"),
    ("POST", "/v2/models/echo/infer", b"{", 400, "request.invalid", "not JSON"),
    ("POST", "/v2/models/echo/infer", echo_body(POISON), 500, "engine.run", "a poisoned row"),
    ("GET", "/nothing", b"", 404, "request.not_found", "nothing at /nothing"),
    ("GET", "/v2/models/nobody", b"", 404, "request.not_found", "no model 'nobody'"),
    ("GET", "/v2/models/nobody/ready", b"", 404, "request.not_found", "no model 'nobody'"),
    ("POST", "/v2/health/live", b"", 405, "request.method_not_allowed", "send GET"),
    ("PUT", "/v1/models/echo/default", b"{", 422, "request.invalid", "body"),
]


async def test_every_error_has_one_form(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for method, path, body, status, code, words in ERRORS:
            reply = await server.ask(method, path, body, {"Content-Type": "application/json"})
            case = f"{method} {path}: {reply}"
            assert (reply.status, reply.json["code"]) == (status, code), case
            assert set(reply.json) == {"error", "code"}, case
            assert words in reply.json["error"], case


async def test_what_nobody_foresaw_is_an_error_of_the_same_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router = APIRouter()

    @router.get("/broken")
    async def broken() -> None:
        raise KeyError("a secret")

    async with serving(tmp_path) as server:
        server.server.config.loaded_app.include_router(router)
        reply = await server.ask("GET", "/broken")
        assert (reply.status, reply.json["code"]) == (500, "server.error")
        assert "secret" not in reply.json["error"]
        assert "a secret" in caplog.text


async def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path, max_body_bytes=1000) as server:
        reader, writer = await server.connect()
        head = request("POST", "/v2/models/echo/infer", headers={"Content-Length": "5000"})
        writer.write(head)
        reply = await read_reply(reader)
        assert (reply.status, reply.json["code"]) == (413, "request.too_large")
        assert "the body has 5000 bytes and may have 1000" in reply.json["error"]
        # The rest is dropped, and the connection goes on.
        writer.write(b" " * 5000 + request("POST", "/v2/models/echo/infer", echo_body(7)))
        assert (await read_reply(reader)).json["outputs"][1]["data"] == [7]
        writer.close()


async def test_a_body_without_a_length_is_counted_while_it_is_read(tmp_path: Path) -> None:
    chunk = b"400\r\n" + b" " * 0x400 + b"\r\n"
    async with serving(tmp_path, max_body_bytes=4000) as server:
        reader, writer = await server.connect()
        writer.write(request("POST", "/v2/models/echo/infer", chunk, {"Transfer-Encoding": "chunked"}))
        for _ in range(8):
            writer.write(chunk)
            await asyncio.sleep(0.001)
        reply = await read_reply(reader)
        assert (reply.status, reply.json["code"]) == (413, "request.too_large")
        assert "may have 4000" in reply.json["error"]
        writer.close()


async def test_a_body_in_pieces_is_put_together(tmp_path: Path) -> None:
    body = echo_body(7)
    async with serving(tmp_path) as server:
        reader, writer = await server.connect()
        whole = request("POST", "/v2/models/echo/infer", body)
        for start in range(0, len(whole), 40):
            writer.write(whole[start : start + 40])
            await writer.drain()
            await asyncio.sleep(0.001)
        assert (await read_reply(reader)).json["outputs"][1]["data"] == [7]
        writer.close()


async def test_spaces_around_a_content_length_are_no_part_of_it(tmp_path: Path) -> None:
    body = echo_body(7)
    async with serving(tmp_path) as server:
        reader, writer = await server.connect()
        length = f" {len(body)}  "
        writer.write(request("POST", "/v2/models/echo/infer", body, {"Content-Length": length}))
        assert (await read_reply(reader)).json["outputs"][1]["data"] == [7]
        writer.close()


async def test_a_connection_serves_on_after_an_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reader, writer = await server.connect()
        for body, status in ((b"{", 400), (echo_body(POISON), 500), (echo_body(1), 200)):
            writer.write(request("POST", "/v2/models/echo/infer", body))
            assert (await read_reply(reader)).status == status
        writer.close()


def service_errors() -> list[ServiceError]:
    return [thing for thing in gc.get_objects() if isinstance(thing, ServiceError)]


async def test_answered_errors_do_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    async with serving(tmp_path, max_batch_rows=1, max_queue_rows=1) as server:
        server.engine.gate.clear()
        batcher, tasks = server.context.deployments.find("echo").batcher, []
        for waiting in (1, 2, 3):
            tasks.append(asyncio.create_task(server.infer(waiting)))
            while batcher.inflight_requests < waiting:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)
        # Of other tests, whose reports may hold them.
        earlier = service_errors()
        gc.disable()
        try:
            full = [await server.infer(row) for row in range(3)]
            server.context.gate.replace([new_key("other", [Scope.INFER], Quotas())[1]])
            refused = [await server.infer(row) for row in range(3)]
            left = [error for error in service_errors() if not any(error is one for one in earlier)]
        finally:
            gc.enable()
            server.engine.gate.set()
            await asyncio.gather(*tasks)
        assert [reply.status for reply in (*full, *refused)] == [429] * 3 + [401] * 3
        assert left == []


async def test_a_full_queue_answers_429_with_retry_after(tmp_path: Path) -> None:
    async with serving(tmp_path, max_batch_rows=1, max_queue_rows=1) as server:
        deployment = server.context.deployments.find("echo")
        server.engine.gate.clear()
        tasks = []
        for waiting in (1, 2, 3):
            tasks.append(asyncio.create_task(server.infer(waiting)))
            while deployment.batcher.inflight_requests < waiting:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)
        reply = await server.infer(9)
        assert (reply.status, reply.json["code"]) == (429, "queue.full")
        assert int(reply.headers["retry-after"]) >= 1
        server.engine.gate.set()
        assert [(await task).status for task in tasks] == [200, 200, 200]


async def test_a_request_may_say_how_long_it_waits(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.gate.clear()
        body = echo_body(1, parameters={"timeout": 10_000})
        reply = await server.ask("POST", "/v2/models/echo/infer", body)
        assert (reply.status, reply.json["code"]) == (504, "request.timeout")


async def test_a_model_that_cannot_answer_is_503_with_retry_after(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        deployment = server.context.deployments.find("echo")
        await deployment.batcher.close()
        reply = await server.infer(1)
        assert (reply.status, reply.json["code"]) == (503, NotReadyError.code)
        assert int(reply.headers["retry-after"]) >= 1


async def test_a_client_that_leaves_is_dropped_and_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        deployment = server.context.deployments.find("echo")
        server.engine.gate.clear()
        busy = asyncio.create_task(server.infer(1))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        _, writer = await server.connect()
        writer.write(request("POST", "/v2/models/echo/infer", echo_body(2)))
        await until(lambda: deployment.batcher.queue_rows == 1)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        server.engine.gate.set()
        assert (await busy).status == 200
        await until(lambda: deployment.batcher.inflight_requests == 0)
        assert server.engine.batches == [(1, 2)]
        labels = {"model": "echo", "version": "1", "outcome": "cancelled"}
        assert metric(server, "octet_requests_total", **labels) == 1


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, writer = await server.connect()
        writer.write(request("POST", "/v2/models/echo/infer", echo_body(2))[:-5])
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        labels = {"model": "echo", "version": "1", "outcome": "cancelled"}
        await until(lambda: metric(server, "octet_requests_total", **labels) == 1)
        assert server.engine.batches == []


async def test_a_request_needs_no_task_whether_its_body_comes_with_its_head_or_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: Any) -> None:
        pytest.fail("a task was begun for it")

    async with serving(tmp_path) as server:
        monkeypatch.setattr(InferenceHandler, "__call__", run)
        reader, writer = await server.connect()
        sent = request("POST", "/v2/models/echo/infer", echo_body(7))
        for cut in (len(sent), len(sent) - len(echo_body(7)), len(sent) - 5):
            writer.write(sent[:cut])
            await asyncio.sleep(0.02)
            writer.write(sent[cut:])
            assert (await read_reply(reader)).json["outputs"][1]["data"] == [7]
        writer.close()


async def test_a_version_that_takes_over_while_a_body_comes_answers_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reader, writer, rest = await half_sent(server)
        catalog = server.context.catalog
        second = NewBuild(model="echo", fingerprint="second", options=BuildOptions(), files={})
        catalog.publish(catalog.accept(second)[0].id, files={}, summary={})
        await until(lambda: server.context.deployments.find("echo").version == "2")
        writer.write(rest)
        reply = await read_reply(reader)
        assert (reply.status, reply.json["model_version"]) == (200, "2")
        writer.close()


async def test_a_model_that_goes_out_of_memory_while_a_body_comes_is_loaded_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path, settings={"idle_unload_s": 0.3}) as server:
        reader, writer, rest = await half_sent(server)
        await until(lambda: server.context.deployments.get("echo") is None)
        writer.write(rest)
        reply = await read_reply(reader)
        assert (reply.status, reply.json["outputs"][1]["data"]) == (200, [7])
        writer.close()


async def test_a_request_whose_body_finds_no_memory_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("no more")

    async with serving(tmp_path) as server:
        reader, writer = await server.connect()
        monkeypatch.setattr(Exchange, "_await_rest", full)
        writer.write(request("POST", "/v2/models/echo/infer", echo_body(7))[:-5])
        assert (await read_reply(reader)).status == 500
        writer.close()
        await until(lambda: not server.server.server_state.connections)
        outcomes = ("failed", "cancelled")
        counts = [
            metric(server, "octet_requests_total", model="echo", version="1", outcome=outcome)
            for outcome in outcomes
        ]
        assert dict(zip(outcomes, counts, strict=True)) == {"failed": 1, "cancelled": 0}


async def test_a_key_that_does_not_count_is_refused_before_the_body_has_come(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.context.gate.replace([new_key("other", [Scope.INFER], Quotas())[1]])
        reader, writer, rest = await half_sent(server)
        assert (await read_reply(reader)).status == 401
        server.context.gate.replace([])
        # The rest of it is dropped, and the connection goes on.
        writer.write(rest + request("POST", "/v2/models/echo/infer", echo_body(7)))
        assert (await read_reply(reader)).json["outputs"][1]["data"] == [7]
        writer.close()


async def test_requests_of_a_failed_batch_do_not_wait_for_the_garbage_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps what is logged, and with an error all that it refers to.
    monkeypatch.setattr("service.batching.batcher.logger.disabled", True)
    async with serving(tmp_path) as server:
        gc.disable()
        try:
            assert (await server.infer(int(POISON))).status == 500
            await until(lambda: not server.server.server_state.connections)
            await until(lambda: not [thing for thing in gc.get_objects() if isinstance(thing, Call)])
        finally:
            gc.enable()


async def test_a_model_that_is_put_away_while_a_body_comes_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reader, writer, rest = await half_sent(server)
        server.context.deployments.put_away("echo")
        writer.write(rest)
        reply = await read_reply(reader)
        assert (reply.status, reply.json["code"]) == (503, NotReadyError.code)
        writer.write(request("POST", "/v2/models/echo/infer", echo_body(7)))
        assert (await read_reply(reader)).status == 503
        writer.close()


def test_a_server_that_hides_its_clients_is_not_asked() -> None:
    async def receive() -> dict[str, Any]:
        return {}

    assert departure_of(receive)() is False


async def test_requests_and_rows_are_counted_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.infer(1, 2, 3)
        await server.infer(POISON)
        await server.ask("POST", "/v2/models/echo/infer", b"{")
        await server.infer(1, path="/v2/models/nobody/infer")
        labels = {"model": "echo", "version": "1"}
        for outcome in ("success", "failed", "invalid"):
            assert metric(server, "octet_requests_total", **labels, outcome=outcome) == 1
        assert metric(server, "octet_rows_total", **labels) == 3
        assert metric(server, "octet_request_seconds_count", **labels) == 3
        unknown = {"model": "", "version": "", "outcome": "invalid"}
        assert metric(server, "octet_requests_total", **unknown) == 1
        reply = await server.ask("GET", "/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'octet_rows_total{model="echo",version="1"} 3.0' in reply.body


async def test_health_and_metadata_are_what_clients_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert (await server.ask("GET", "/v2/health/live")).json == {"live": True}
        assert (await server.ask("GET", "/v2/health/ready")).json == {"ready": True}
        metadata = (await server.ask("GET", "/v2")).json
        assert metadata["name"] == "octet"
        assert "binary_tensor_data" in metadata["extensions"]
        assert "statistics" in metadata["extensions"]
        for path in ("/v2/models/echo", "/v2/models/echo/versions/1"):
            assert (await server.ask("GET", path)).json == {
                "name": "echo",
                "versions": ["1"],
                "platform": "octet_int8",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
                "outputs": [
                    {"name": "double", "datatype": "FP32", "shape": [-1, 2]},
                    {"name": "first", "datatype": "FP32", "shape": [-1, 1]},
                ],
            }
            ready = await server.ask("GET", f"{path}/ready")
            assert (ready.status, ready.json["ready"]) == (200, True)


async def test_readiness_goes_off_before_the_server_stops(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.context.deployments.retire()
        reply = await server.ask("GET", "/v2/health/ready")
        assert (reply.status, reply.json) == (503, {"ready": False})
        assert (await server.ask("GET", "/v2/health/live")).status == 200


async def test_a_server_that_is_about_to_stop_admits_nothing_more_and_answers_what_it_has_admitted(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        server.engine.gate.clear()
        admitted = asyncio.create_task(server.infer(1))
        await until(server.engine.entered.is_set)
        # A client that sends slowly was admitted with its head.
        reader, writer = await server.connect()
        slow = request("POST", "/v2/models/echo/infer", echo_body(2))
        writer.write(slow[:-9])
        await asyncio.sleep(0.1)
        server.context.deployments.retire()
        refused = await server.infer(3)
        assert (refused.status, refused.json["code"]) == (503, "server.stopping")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close"
        writer.write(slow[-9:])
        server.engine.gate.set()
        replies = [await admitted, await read_reply(reader)]
        assert [reply.status for reply in replies] == [200, 200]
        assert [reply.headers["connection"] for reply in replies] == ["close", "close"]
        writer.close()


async def test_a_model_that_is_not_ready_says_so_and_why(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.context.deployments.put_away("echo")
        reply = await server.ask("GET", "/v2/models/echo/ready")
        assert reply.status == 503
        assert reply.json["ready"] is False
        assert "version 1 of model 'echo'" in reply.json["error"]
        assert int(reply.headers["retry-after"]) >= 1


async def test_openapi_describes_inference_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        schema = (await server.ask("GET", "/openapi.json")).json
        for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
            operation = schema["paths"][path]["post"]
            assert set(operation["responses"]) == {
                *("200", "400", "401", "403", "404", "413", "415", "429", "503", "504")
            }
            assert set(operation["requestBody"]["content"]) == {
                "application/json",
                "application/octet-stream",
            }
        assert "/v2/health/ready" in schema["paths"]
        orjson.dumps(schema)
