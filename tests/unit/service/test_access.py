"""Keys as clients meet them: every call of a server that asks for them."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Route

from service.access.key_records import KeyRecords
from service.access.keys import Quotas, new_key
from service.access.scopes import OPEN, Scope, needed
from service.app import OctetApp
from tests.unit.service.live_server import LiveServer, Reply, echo_body, read_reply, request, serving, until

PARTS = [("model", ("model.onnx", b"a model")), ("samples", ("samples.npz", b"PK\x03\x04 samples"))]
BODY = httpx.Request("POST", "http://x", files=PARTS)


def added(server: LiveServer, *scopes: Scope, **quotas: float) -> dict[str, str]:
    """A key for the server, as the header that sends it."""
    text, key = new_key("ci", scopes, Quotas(**quotas))  # type: ignore[arg-type] # by name
    KeyRecords(server.context.catalog).add(key)
    return {"Authorization": f"Bearer {text}"}


@contextlib.asynccontextmanager
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[LiveServer, dict[Scope, dict[str, str]]]]:
    """A server with a key of every scope."""
    async with serving(tmp_path) as server:
        keys = {scope: added(server, scope) for scope in Scope}
        await knows(server)
        yield server, keys


async def knows(server: LiveServer) -> None:
    """Waits until the server has noticed all keys."""
    there = len(KeyRecords(server.context.catalog).all())
    await until(lambda: len(server.context.gate._table) == there)


def calls(server: LiveServer) -> list[tuple[str, str]]:
    """Method and path of everything that a server answers."""
    app: OctetApp = server.server.config.loaded_app
    infer = [("POST", "/v2/models/x/infer"), ("POST", "/v2/models/x/versions/1/infer")]
    return [*infer, *((method, re.sub(r"{\w+}", "x", path)) for method, path in routed(app.routes))]


def routed(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Route):
            # HEAD goes where GET does.
            yield from ((method, route.path) for method in sorted((route.methods or set()) - {"HEAD"}))
        else:
            yield from routed(route.original_router.routes)


async def test_every_call_needs_a_key_but_those_that_are_meant_to_be_open(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, _):
        seen = calls(server)
        assert len(seen) >= 35
        assert {path for _, path in seen} >= OPEN
        for method, path in seen:
            for headers in ({}, {"Authorization": "Bearer octet_000000000000_" + "0" * 64}):
                reply = await server.ask(method, path, headers=headers)
                if path in OPEN:
                    assert reply.status == 200, f"{method} {path}"
                else:
                    assert reply.status == 401, f"{method} {path}"
                    assert reply.headers["www-authenticate"].startswith('Bearer realm="octet"')
                    assert reply.headers["x-request-id"]


async def test_every_call_refuses_keys_of_other_scopes_and_lets_those_of_its_own_pass(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, keys):
        for method, path in calls(server):
            wanted = needed(method, path)
            if wanted is None:
                continue
            for scope, key in keys.items():
                reply = await server.ask(method, path, headers=key)
                if scope in (wanted, Scope.ADMIN):
                    assert reply.status not in (401, 403), f"{method} {path} with {scope}: {reply}"
                else:
                    assert reply.status == 403, f"{method} {path} with {scope}: {reply}"
                    assert f"this call needs {wanted}" in reply.json["error"]


async def test_every_call_is_open_where_there_are_no_keys(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for method, path in calls(server):
            assert (await server.ask(method, path)).status not in (401, 403), f"{method} {path}"


async def test_what_is_refused_reaches_nothing(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, keys):
        assert (await server.infer(1)).status == 401
        assert (await server.ask("DELETE", "/v1/models/echo", headers=keys[Scope.BUILD])).status == 403
        assert (await server.ask("PUT", "/v1/models/echo/default", b"{", keys[Scope.INFER])).status == 403
        assert (await server.ask("POST", "/v2/repository/models/echo/unload")).status == 401
        assert server.engine.batches == []
        assert (await infer(server, keys[Scope.INFER])).status == 200


async def test_a_refused_body_is_dropped_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, keys):
        reader, writer = await server.connect()
        writer.write(request("POST", "/v1/models/m/builds", b" " * 100_000))
        assert (await read_reply(reader)).status == 401
        writer.write(request("POST", "/v2/models/echo/infer", echo_body(1), keys[Scope.INFER]))
        assert (await read_reply(reader)).status == 200
        writer.close()


async def test_a_revoked_key_is_refused_within_two_seconds_and_opens_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key = added(server, Scope.INFER)
        await knows(server)
        assert (await infer(server, key)).status == 200
        records = KeyRecords(server.context.catalog)
        records.revoke(records.all()[0].id)
        async with asyncio.timeout(2):
            while (await infer(server, key)).status == 200:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        reply = await infer(server, key)
        assert (reply.status, reply.json["code"]) == (401, "access.key")
        assert "is revoked since" in reply.json["error"]
        assert (await server.infer(1)).status == 401


async def test_events_end_with_the_key_that_follows_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key = added(server, Scope.BUILD)
        await knows(server)
        build = (await upload(server, key)).json["id"]
        reader, writer = await server.connect()
        writer.write(request("GET", f"/v1/builds/{build}/events", headers=key))
        await reader.readuntil(b"event: build")
        records = KeyRecords(server.context.catalog)
        records.revoke(records.all()[0].id)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 2)).endswith(b"0\r\n\r\n")
        writer.close()


async def test_requests_a_second_are_limited_by_key(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        slow, other = added(server, Scope.INFER, requests_per_s=0.01), added(server, Scope.INFER)
        await knows(server)
        assert (await infer(server, slow)).status == 200
        reply = await infer(server, slow)
        assert (reply.status, reply.json["code"]) == (429, "quota.requests")
        assert 90 < int(reply.headers["retry-after"]) <= 100
        assert (await infer(server, other)).status == 200


async def test_builds_have_owners_who_may_cancel_them_and_quotas(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, keys):
        one, other = added(server, Scope.BUILD, max_builds=1), added(server, Scope.BUILD, max_bytes=1)
        await knows(server)
        over = await upload(server, other)
        assert (over.status, over.json["code"]) == (507, "quota.bytes")
        assert list(server.context.store.digests(older_than_s=-60)) == [], "nothing of it was stored"
        build = (await upload(server, one)).json
        assert len(list(server.context.store.digests(older_than_s=-60))) == 2
        [key] = [key for key in KeyRecords(server.context.catalog).all() if key.quotas.max_builds == 1]
        assert build["key"] == key.id
        full = await upload(server, one, "another")
        assert (full.status, full.json["code"]) == (429, "quota.builds")
        assert int(full.headers["retry-after"]) >= 1
        assert (await upload(server, one)).status == 200
        path = f"/v1/builds/{build['id']}"
        refused = await server.ask("DELETE", path, headers=keys[Scope.BUILD])
        assert (refused.status, refused.json["code"]) == (403, "access.scope")
        assert "was not uploaded with key" in refused.json["error"]
        assert (await server.ask("GET", path, headers=keys[Scope.BUILD])).json["state"] == "queued"
        assert (await server.ask("DELETE", path, headers=one)).json["state"] == "cancelled"
        refused = await server.ask("DELETE", f"{path}?forget=true", headers=keys[Scope.BUILD])
        assert (refused.status, refused.json["code"]) == (403, "access.scope")
        assert "to forget it, send the key" in refused.json["error"]
        assert (await server.ask("DELETE", f"{path}?forget=true", headers=one)).json["id"] == build["id"]
        assert (await server.ask("GET", path, headers=one)).status == 404
        again = (await upload(server, one, "another")).json["id"]
        ended = await server.ask("DELETE", f"/v1/builds/{again}", headers=keys[Scope.ADMIN])
        assert ended.json["state"] == "cancelled"


async def test_openapi_tells_which_scope_each_call_needs(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        schema = (await server.ask("GET", "/openapi.json")).json
        assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        told = {
            (method, path): operation["security"]
            for path, operations in schema["paths"].items()
            for method, operation in operations.items()
        }
        assert told["get", "/metrics"] == []
        assert told["post", "/v2/models/{name}/infer"] == [{"key": ["infer"]}]
        assert told["post", "/v1/models/{name}/builds"] == [{"key": ["build"]}]
        assert told["put", "/v1/models/{name}/default"] == [{"key": ["admin"]}]
        assert "403" in schema["paths"]["/v1/models"]["get"]["responses"]


async def infer(server: LiveServer, key: dict[str, str]) -> Reply:
    return await server.ask("POST", "/v2/models/echo/infer", echo_body(1), key)


async def upload(server: LiveServer, key: dict[str, str], name: str = "new") -> Reply:
    headers = {"Content-Type": BODY.headers["content-type"], **key}
    return await server.ask("POST", f"/v1/models/{name}/builds", BODY.read(), headers)
