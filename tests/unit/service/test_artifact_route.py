"""The artifact over HTTP: what is saved under the names that come along is a whole model."""

import re
from pathlib import Path

import onnx
import pytest
from onnx.numpy_helper import to_array

from engines.model import external_weights
from engines.model.model import from_proto, save_model
from engines.options import BuildOptions
from engines.workspace import QUANTIZED, QUANTIZED_WEIGHTS
from service.catalog.catalog import NewBuild
from tests.unit.engines.onnx_graphs import mlp
from tests.unit.service.live_server import LiveServer, serving


async def download(server: LiveServer, path: str, folder: Path) -> Path:
    reply = await server.ask("GET", f"/v1/models/large/versions/1/{path}")
    assert reply.status == 200
    found = re.fullmatch('attachment; filename="([^"/]+)"', reply.headers["content-disposition"])
    assert found is not None
    (folder / found[1]).write_bytes(reply.body)
    return folder / found[1]


async def test_a_model_and_its_weights_fit_as_they_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_weights, "MAX_INLINE_BYTES", 0)
    monkeypatch.setattr(external_weights, "_SMALLEST_BYTES", 64)
    model = from_proto(mlp(hidden=64, classes=16))
    save_model(model, tmp_path / QUANTIZED)
    (tmp_path / "downloads").mkdir()
    async with serving(tmp_path / "home") as server:
        new = NewBuild(model="large", fingerprint="f", options=BuildOptions(), files={})
        build, _ = server.context.catalog.accept(new)
        names = (QUANTIZED, QUANTIZED_WEIGHTS)
        files = {name: server.context.store.put(tmp_path / name) for name in names}
        server.context.catalog.publish(build.id, files=files, summary={})
        await download(server, "artifact/weights", tmp_path / "downloads")
        saved = await download(server, "artifact", tmp_path / "downloads")
    assert saved.name == "large-1.onnx"
    read = {tensor.name: to_array(tensor) for tensor in onnx.load(saved).graph.initializer}
    for tensor in model.proto.graph.initializer:
        assert read[tensor.name].tolist() == to_array(tensor).tolist()
