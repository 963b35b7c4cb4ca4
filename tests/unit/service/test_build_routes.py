"""Uploads over HTTP, where the store or the sweeper behave as they rarely do."""

from pathlib import Path

import httpx
import pytest

from service.catalog.catalog import BuildState
from service.errors import StoreUnavailableError
from tests.unit.service.live_server import LiveServer, Reply, serving

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
