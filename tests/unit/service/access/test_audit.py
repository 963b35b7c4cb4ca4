"""The trail of changes, as the log has it, of everything that changes something."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.audit import Action
from service.access.key_records import KeyRecords
from service.access.keys import Quotas, new_key
from service.access.scopes import Scope
from service.monitoring.logs import JsonFormatter
from tests.unit.service.live_server import LiveServer, Reply, serving, until
from tests.unit.service.test_access import calls

PARTS = [("model", ("model.onnx", b"a model")), ("samples", ("samples.npz", b"PK\x03\x04 samples"))]
BODY = httpx.Request("POST", "http://x", files=PARTS)


@pytest.fixture
def trail() -> Iterator[io.StringIO]:
    """What `octet.audit` says, as a server writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("server"))
    logger = logging.getLogger("octet.audit")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def lines(trail: io.StringIO) -> list[dict[str, Any]]:
    said = [json.loads(line) for line in trail.getvalue().splitlines()]
    trail.truncate(0)
    trail.seek(0)
    return said


def said(trail: io.StringIO) -> list[tuple[Any, ...]]:
    fields = ("action", "outcome", "key_name", "model", "version")
    return [tuple(line.get(name) for name in fields) for line in lines(trail)]


async def upload(server: LiveServer, name: str = "new") -> Reply:
    headers = {"Content-Type": BODY.headers["content-type"], "X-Request-ID": "mine"}
    return await server.ask("POST", f"/v1/models/{name}/builds", BODY.read(), headers)


async def test_an_upload_is_told_with_who_and_from_where(tmp_path: Path, trail: io.StringIO) -> None:
    async with serving(tmp_path) as server:
        reply = await upload(server)
        [line] = lines(trail)
        assert line.pop("time")
        assert line == {
            "level": "INFO",
            "role": "server",
            "logger": "octet.audit",
            "message": "build.upload by local: done",
            "request_id": "mine",
            "action": "build.upload",
            "outcome": "done",
            "key_name": "local",
            "client": "127.0.0.1",
            "model": "new",
            "build": reply.json["id"],
        }
        assert (await upload(server)).status == 200
        assert (await upload(server, "BAD")).status == 400
        assert said(trail) == [
            ("build.upload", "unchanged", "local", "new", None),
            ("build.upload", "request.invalid", "local", "BAD", None),
        ]


async def test_every_other_change_is_told_too(tmp_path: Path, trail: io.StringIO) -> None:
    async with serving(tmp_path) as server:
        build = (await upload(server)).json["id"]
        lines(trail)
        json_type = {"Content-Type": "application/json"}
        for method, path, body in (
            ("DELETE", f"/v1/builds/{build}", b""),
            ("DELETE", f"/v1/builds/{build}x", b""),
            ("DELETE", f"/v1/builds/{build}?forget=true", b""),
            ("PUT", "/v1/models/echo/default", b'{"version": 1}'),
            ("PUT", "/v1/models/echo/default", b'{"version": 7}'),
            ("POST", "/v2/repository/models/echo/unload", b""),
            ("POST", "/v2/repository/models/echo/load", b""),
            ("POST", "/v2/repository/models/nobody/load", b""),
            ("DELETE", "/v1/models/echo/versions/8", b""),
            ("DELETE", "/v1/models/echo", b""),
        ):
            await server.ask(method, path, body, json_type)
        assert said(trail) == [
            ("build.cancel", "done", "local", "new", None),
            ("build.cancel", "request.not_found", "local", None, None),
            ("build.forget", "done", "local", "new", None),
            ("model.default", "done", "local", "echo", 1),
            ("model.default", "request.not_found", "local", "echo", 7),
            ("model.unload", "done", "local", "echo", None),
            ("model.load", "done", "local", "echo", None),
            ("model.load", "request.not_found", "local", "nobody", None),
            ("version.delete", "request.not_found", "local", "echo", 8),
            ("model.delete", "done", "local", "echo", None),
        ]


async def test_no_call_that_may_change_something_is_without_a_line(
    tmp_path: Path, trail: io.StringIO
) -> None:
    told = set()
    async with serving(tmp_path) as server:
        for method, path in calls(server):
            lines(trail)
            await server.ask(method, path)
            actions = {line["action"] for line in lines(trail)}
            reads = method == "GET" or path.endswith(("/infer", "/repository/index"))
            assert len(actions) == (0 if reads else 1), f"{method} {path}"
            told |= actions
    elsewhere = {Action.FORGET, Action.CREATE_KEY, Action.REVOKE_KEY, Action.LIMIT_KEY}
    assert told == {action.value for action in Action} - elsewhere


async def test_reading_and_inferring_leave_no_trail(tmp_path: Path, trail: io.StringIO) -> None:
    async with serving(tmp_path) as server:
        await server.infer(1)
        for path in ("/v1/models", "/v1/builds", "/v2/models/echo", "/metrics"):
            assert (await server.ask("GET", path)).status == 200
        assert lines(trail) == []


async def test_changes_name_the_key(tmp_path: Path, trail: io.StringIO) -> None:
    text, key = new_key("admin of x", [Scope.ADMIN], Quotas())
    async with serving(tmp_path) as server:
        KeyRecords(server.context.catalog).add(key)
        await until(lambda: server.context.gate.asks)
        lines(trail)
        await server.ask("DELETE", "/v1/models/echo", headers={"Authorization": f"Bearer {text}"})
        [line] = lines(trail)
        assert (line["key"], line["key_name"]) == (key.id, "admin of x")
        assert text not in json.dumps(line)


def test_actions_have_names_of_their_own() -> None:
    assert len(set(Action)) == len(Action.__members__)
