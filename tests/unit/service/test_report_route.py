"""The report over HTTP: one address, two forms."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines.options import BuildOptions
from engines.reports.page.page import render
from engines.reports.report import Report
from engines.workspace import REPORT
from service.catalog.catalog import NewBuild
from tests.unit.engines.test_report import report
from tests.unit.service.live_server import LiveServer, Reply, serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@contextlib.asynccontextmanager
async def reporting(folder: Path, content: bytes | None = None) -> AsyncIterator[LiveServer]:
    """A server that has a version of the model `reported`."""
    file = folder / "report.json"
    report().save(file)
    if content is not None:
        file.write_bytes(content)
    async with serving(folder / "home") as server:
        new = NewBuild(model="reported", fingerprint="f", options=BuildOptions(), files={})
        build, _ = server.context.catalog.accept(new)
        files = {REPORT: server.context.store.put(file)}
        server.context.catalog.publish(build.id, files=files, summary={})
        yield server


async def fetch(server: LiveServer, headers: dict[str, str] | None = None) -> Reply:
    return await server.ask("GET", "/v1/models/reported/versions/1/report", headers=headers)


@pytest.mark.parametrize(
    "headers", [None, {"Accept": "*/*"}, {"Accept": "text/html;q=0.5, application/json"}]
)
async def test_programs_get_json(tmp_path: Path, headers: dict[str, str] | None) -> None:
    async with reporting(tmp_path) as server:
        reply = await fetch(server, headers)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert (reply.headers["vary"], reply.headers["x-content-type-options"]) == ("Accept", "nosniff")
        assert Report.model_validate(reply.json) == report()


async def test_browsers_get_a_page_that_may_load_and_run_nothing(tmp_path: Path) -> None:
    async with reporting(tmp_path) as server:
        reply = await fetch(server, BROWSER)
        assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert (reply.headers["vary"], reply.headers["x-content-type-options"]) == ("Accept", "nosniff")
        policy = reply.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"} <= set(policy)
        assert not [rule for rule in policy if "script" in rule]
        assert reply.body.decode() == render(report(), title="reported, version 1")


async def test_a_damaged_report_is_an_error_of_the_usual_form(tmp_path: Path) -> None:
    async with reporting(tmp_path, b"{}") as server:
        reply = await fetch(server, BROWSER)
        assert (reply.status, reply.json["code"]) == (500, "artifact.invalid")


async def test_openapi_documents_both_forms(tmp_path: Path) -> None:
    async with reporting(tmp_path) as server:
        schema = (await server.ask("GET", "/openapi.json")).json
        path = schema["paths"]["/v1/models/{name}/versions/{version}/report"]
        content = path["get"]["responses"]["200"]["content"]
        assert content["text/html"] == {"schema": {"type": "string"}}
        assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Report"}
        assert {"verdict", "warnings", "layer_errors"} <= set(
            schema["components"]["schemas"]["Report"]["properties"]
        )
