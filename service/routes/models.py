"""Models and their versions: `/v1/models`."""

import asyncio
import time
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import StreamingResponse

from engines import workspace
from engines.model.external_weights import moved, weights_path
from engines.reports.page.page import CONTENT_SECURITY_POLICY, render
from engines.reports.report import Report
from service.access.audit import Action, audited
from service.catalog.catalog import Version
from service.catalog.engine_states import EngineStates
from service.context import Context
from service.errors import BadRequestError, NotFoundError
from service.http.negotiation import preferred
from service.http.responses import JSON, json_response
from service.serving.deployment import Deployment

router = APIRouter(prefix="/v1/models", tags=["models"])

HTML = "text/html"
_BINARY = "application/octet-stream"
_REPORTS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Report,
        "description": "The report: JSON, or a page for people where Accept prefers text/html.",
        "content": {HTML: {"schema": {"type": "string"}}},
    }
}
# The two forms must not be taken for each other: by a cache, or by a browser that guesses.
_REPORT_HEADERS = {"Vary": "Accept", "X-Content-Type-Options": "nosniff"}


@router.get("")
async def list_models(request: Request) -> Response:
    """Every model with its versions."""
    context = _context(request)
    models: dict[str, list[Version]] = {}
    for version in await asyncio.to_thread(context.catalog.versions):
        models.setdefault(version.model, []).append(version)
    return json_response({"models": [_model(context, name, models[name]) for name in models]})


@router.get("/{name}")
async def get_model(request: Request, name: str) -> Response:
    """One model with its versions."""
    context = _context(request)
    versions = await asyncio.to_thread(context.catalog.versions, name)
    if not versions:
        raise NotFoundError(f"there is no model {name!r}; GET /v1/models lists them.")
    return json_response(_model(context, name, versions))


@router.get("/{name}/versions/{version}")
async def get_version(request: Request, name: str, version: str) -> Response:
    """One version: what it was built with, what came out, whether it is loaded, what it costs."""
    context = _context(request)
    found = await _find(context, name, version)
    sizes = await asyncio.to_thread(_sizes, context, found)
    engines = await asyncio.to_thread(EngineStates(context.catalog).of, name, found.number)
    shown = [
        {"hardware": engine.hardware, "state": engine.state, "reason": engine.reason} for engine in engines
    ]
    return json_response(
        {
            **_version(context, found),
            "engines": shown,
            "files_bytes": sizes,
            "bytes": sum(sizes.values()),
        }
    )


@router.get("/{name}/versions/{version}/report", responses=_REPORTS)
async def get_report(request: Request, name: str, version: str) -> Response:
    """The report of the build: JSON, or a page for people where Accept prefers text/html."""
    context = _context(request)
    found = await _find(context, name, version)
    report = await asyncio.to_thread(_content, context, found, workspace.REPORT)
    if preferred(",".join(request.headers.getlist("accept")), (JSON, HTML)) == JSON:
        return Response(report, media_type=JSON, headers=_REPORT_HEADERS)
    page = await asyncio.to_thread(_page, report, f"{found.model}, version {found.number}")
    return Response(
        page,
        media_type=HTML,
        headers={**_REPORT_HEADERS, "Content-Security-Policy": CONTENT_SECURITY_POLICY},
    )


@router.get("/{name}/versions/{version}/artifact")
async def get_artifact(request: Request, name: str, version: str) -> Response:
    """The version's 8-bit ONNX file, also where it is refused here; the FP32 one of a version that has none."""
    context = _context(request)
    found = await _find(context, name, version)
    model, weights = _artifact(found)
    saved_as = _saved_as(found)
    if weights not in found.files:
        return await _download(context, found, model, saved_as)
    # Beside its weights as both are saved, not as they are kept here.
    content = await asyncio.to_thread(_content, context, found, model)
    return Response(
        moved(content, weights_path(Path(saved_as)).name), media_type=_BINARY, headers=_attachment(saved_as)
    )


@router.get("/{name}/versions/{version}/artifact/weights")
async def get_artifact_weights(request: Request, name: str, version: str) -> Response:
    """The weights of a version too large for one ONNX file; saved beside it, under the name that they come with."""
    context = _context(request)
    found = await _find(context, name, version)
    _, weights = _artifact(found)
    if weights not in found.files:
        raise NotFoundError(
            f"version {found.number} of model {found.model!r} has no weights beside its artifact: they are inside it."
        )
    saved_as = weights_path(Path(_saved_as(found))).name
    return await _download(context, found, weights, saved_as)


@router.put("/{name}/default")
async def set_default(request: Request, name: str, body: Annotated[Any, Body()] = None) -> Response:
    """Makes a version the one that answers where none is named: `{"version": 2}`."""
    context = _context(request)
    with audited(request, Action.DEFAULT, model=name) as change:
        number = body.get("version") if isinstance(body, dict) else None
        if type(number) is not int:
            raise BadRequestError(
                f'the body is {str(body)[:80]}; send the number of a version: {{"version": 2}}.'
            )
        change.version = number
        version = await asyncio.to_thread(context.catalog.set_default, name, number)
    return json_response(_version(context, version))


@router.delete("/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_model(request: Request, name: str) -> None:
    """Removes a model with all its versions; its unfinished builds are cancelled."""
    with audited(request, Action.DELETE_MODEL, model=name):
        await asyncio.to_thread(_context(request).catalog.delete_model, name)


@router.delete("/{name}/versions/{version}", status_code=HTTPStatus.NO_CONTENT)
async def delete_version(request: Request, name: str, version: str) -> None:
    """Removes a version; servers unload it."""
    with audited(request, Action.DELETE_VERSION, model=name) as change:
        change.version = _number(version)
        await asyncio.to_thread(_context(request).catalog.delete_version, name, change.version)


def _context(request: Request) -> Context:
    context: Context = request.app.state.octet
    return context


def _number(version: str) -> int:
    # Longer numbers than any that we gave away: no database need be asked.
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise BadRequestError(f"{version[:80]!r} is no version; versions are whole numbers such as 1.")
    return int(version)


async def _find(context: Context, name: str, version: str) -> Version:
    return await asyncio.to_thread(context.catalog.version, name, _number(version))


async def _download(context: Context, version: Version, name: str, saved_as: str) -> Response:
    """A file of the version as it is kept; a byte that is not what it was cuts the answer off."""
    digest = _digest(version, name)
    size_bytes = await asyncio.to_thread(context.store.size_bytes, digest)
    return StreamingResponse(
        context.store.read(digest),
        media_type=_BINARY,
        headers={"Content-Length": str(size_bytes), **_attachment(saved_as)},
    )


def _content(context: Context, version: Version, name: str) -> bytes:
    return b"".join(context.store.read(_digest(version, name)))


def _attachment(saved_as: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{saved_as}"'}


def _digest(version: Version, name: str) -> str:
    digest = version.files.get(name)
    if digest is None:
        raise NotFoundError(
            f"version {version.number} of model {version.model!r} has no file {name}; build it again."
        )
    return digest


def _artifact(version: Version) -> tuple[str, str]:
    """Names of the version's ONNX file and of the weights that it may have beside it."""
    if workspace.QUANTIZED in version.files:
        return workspace.QUANTIZED, workspace.QUANTIZED_WEIGHTS
    return workspace.PREPARED, workspace.PREPARED_WEIGHTS


def _saved_as(version: Version) -> str:
    return f"{version.model}-{version.number}.onnx"


def _page(report: bytes, title: str) -> str:
    return render(Report.parse(report), title=title)


def _sizes(context: Context, version: Version) -> dict[str, int]:
    return {name: context.store.size_bytes(digest) for name, digest in version.files.items()}


def _model(context: Context, name: str, versions: list[Version]) -> dict[str, Any]:
    default = next((version.number for version in versions if version.default), None)
    return {
        "name": name,
        "default": default,
        "versions": [_version(context, version) for version in versions],
    }


def _version(context: Context, version: Version) -> dict[str, Any]:
    """A version as clients see it; state, precision, reason and what it does now are those of this server."""
    status = context.deployments.status(version.model, version.number)
    deployment = context.deployments.loaded(version.model, version.number)
    return {
        "model": version.model,
        "version": version.number,
        "default": version.default,
        "build": version.build_id,
        "state": status.state,
        "precision": status.precision,
        "reason": status.reason,
        "live": None if deployment is None else _live(deployment),
        "summary": version.summary,
        "options": version.options.model_dump(mode="json"),
        "created_at": version.created_at,
    }


def _live(deployment: Deployment) -> dict[str, Any]:
    """What a loaded version does now."""
    rates = deployment.metrics.recent.rates(time.monotonic())
    return {
        # What loading it added to the server's resident memory.
        "memory_bytes": deployment.memory_bytes,
        "queue_rows": deployment.batcher.queue_rows,
        "inflight_requests": deployment.batcher.inflight_requests,
        "window_s": round(rates.window_s, 1),
        "requests_per_s": round(rates.requests_per_s, 2),
        "rows_per_s": round(rates.rows_per_s, 2),
        "p50_ms": _rounded(rates.p50_ms),
        "p99_ms": _rounded(rates.p99_ms),
    }


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
