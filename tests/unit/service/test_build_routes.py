"""Uploads over HTTP, where the store or the sweeper behave as they rarely do."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from service.catalog.catalog import BuildState
from service.catalog.retention import Retention
from service.errors import StorageFullError, StoreUnavailableError
from tests.unit.service.live_server import LiveServer, Reply, read_reply, request, serving

PARTS = [("model", ("model.onnx", b"a model")), ("samples", ("samples.npz", b"PK\x03\x04 samples"))]


async def upload(server: LiveServer) -> Reply:
    made = httpx.Request("POST", "http://x", files=PARTS)
    headers = {"Content-Type": made.headers["content-type"]}
    return await server.ask("POST", "/v1/models/uploaded/builds", made.read(), headers)


def states(server: LiveServer) -> list[BuildState]:
    return [build.state for build in server.context.catalog.builds() if build.model == "uploaded"]


async def test_an_upload_to_a_store_that_is_away_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailableError("the store does not answer; try again later.")

    async with serving(tmp_path) as server:
        monkeypatch.setattr(server.context.store, "adopt", away)
        reply = await upload(server)
        assert (reply.status, reply.json["code"]) == (503, "storage.unavailable")
        assert states(server) == []


async def test_the_events_of_a_build_end_when_it_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as server:
        path = f"/v1/builds/{(await upload(server)).json['id']}"
        reader, writer = await server.connect()
        writer.write(request("GET", f"{path}/events", b"", {"Connection": "close"}))
        assert b'"state":"queued"' in await reader.readuntil(b"\n\n\r\n")
        # In one go, as no client that polls can see what lies between.
        build_id = path.rpartition("/")[2]
        server.context.catalog.cancel(build_id)
        Retention(server.context.catalog).forget(build_id, lambda _: None)
        rest = await reader.read()
        writer.close()
    assert rest.endswith(b"0\r\n\r\n"), "the stream has its proper end"
    assert "failed" not in caplog.text


async def test_an_upload_that_the_disk_has_no_room_for_is_refused_before_a_byte_of_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        reader, writer = await server.connect()
        head = {
            "Content-Type": "multipart/form-data; boundary=x",
            "Content-Length": "1001",
            "Expect": "100-continue",
        }
        writer.write(request("POST", "/v1/models/uploaded/builds", b"", head))
        reply = await read_reply(reader)
        writer.close()
    assert (reply.status, reply.json["code"]) == (507, "storage.full")
    assert "1001 bytes are needed and the disk" in reply.json["error"]
    assert "has 1000 left; free some space" in reply.json["error"]


async def test_a_full_store_answers_507_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFullError("the store is full; free some space there and try again.")

    async with serving(tmp_path) as server:
        monkeypatch.setattr(server.context.store, "adopt", full)
        reply = await upload(server)
        assert (reply.status, reply.json["code"]) == (507, "storage.full")
        assert states(server) == []
        assert not list(server.context.store.incoming.glob("*"))
        assert (await server.infer(1.0)).status == 200
        assert Retention(server.context.catalog).kept() == set()
