"""A real server on a free port of the loopback interface, in front of engines that tests make."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engines.options import Batching, BuildOptions, Precision
from service.app import create_app
from service.catalog.catalog import NewBuild, Version
from service.context import Context
from service.protocol import Signature
from service.server import Server, configured
from service.serving.loading import Loaded
from service.serving.warm_up import warm_up
from service.settings import Settings
from tests.unit.service.echo_engine import SAMPLE, EchoEngine


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class LiveServer:
    """A server that listens, and the engine that it serves."""

    port: int
    engine: EchoEngine
    context: Context
    server: Server

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own."""
        reader, writer = await self.connect()
        try:
            writer.write(request(method, path, body, headers))
            return await read_reply(reader)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def infer(self, *values: float, path: str = "/v2/models/echo/infer") -> Reply:
        return await self.ask("POST", path, echo_body(*values))


def echo_body(*values: float, **changes: Any) -> bytes:
    """An inference request with one row per value."""
    data = [value for value in values for _ in range(2)]
    tensor = {"name": "x", "shape": [len(values), 2], "datatype": "FP32", "data": data}
    return orjson.dumps({"inputs": [tensor], **changes})


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """A whole HTTP request; the given headers replace Content-Length where they name it or chunked coding."""
    lines = {"Host": "octet", "Content-Length": str(len(body)), **(headers or {})}
    if "Transfer-Encoding" in lines:
        del lines["Content-Length"]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """The next response on a connection."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(status=int(head[0].split()[1]), headers=headers, body=body)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what no event tells, because it happens in another task or thread."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)


def publish(context: Context, model: str, batching: Batching) -> None:
    options = BuildOptions(batching=batching)
    new = NewBuild(model=model, fingerprint=model, options=options, files={})
    build, _ = context.catalog.accept(new)
    context.catalog.publish(build.id, files={}, summary={})


@contextlib.asynccontextmanager
async def serving(
    home: Path,
    *,
    engine: EchoEngine | None = None,
    max_body_bytes: int = 1 << 20,
    settings: Mapping[str, Any] | None = None,
    last_call: bool = False,
    **batching: int,
) -> AsyncIterator[LiveServer]:
    """A server that serves the model `echo`; `settings` are further ones.

    Without a `last_call` it ends at once, though others might have just connected.
    """
    engine = engine or EchoEngine()
    first = iter([engine])

    def load(version: Version) -> Loaded:
        # Once: an engine that was unloaded may not be closed yet when its model is loaded again.
        loaded = next(first, None) or EchoEngine()
        return Loaded(
            engine=loaded,
            signature=Signature.of(loaded.inputs, loaded.outputs, free_rows=True),
            rules=warm_up(loaded, version.options.batching, batchable=True),
            precision=Precision.INT8,
            refusal=None,
            sample=SAMPLE,
            memory_bytes=1 << 20,
        )

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        chosen = Settings(home=home, port=port, max_body_bytes=max_body_bytes, **(settings or {}))
        app = create_app(chosen, load=load)
        context: Context = app.state.octet
        publish(context, "echo", Batching(**{"max_batch_rows": 8, **batching}))
        server = Server(configured(app, host="127.0.0.1", port=port), app)
        if not last_call:
            server.last_call_s = 0.0
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started and context.deployments.ready)
            engine.batches.clear()
            engine.entered.clear()
            yield LiveServer(port=port, engine=engine, context=context, server=server)
        finally:
            engine.gate.set()
            server.should_exit = True
            await running
