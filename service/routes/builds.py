"""Uploads and builds: `/v1/models/{name}/builds` and `/v1/builds`."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from engines.errors import EngineError
from service.access.audit import UNCHANGED, Action, audited
from service.access.caller import Caller, caller_of
from service.access.quotas import UploadQuota
from service.builds.acceptance import accept, check_name, new_build
from service.builds.upload_options import shown as shown_options
from service.builds.uploads import UploadReader, check_size
from service.catalog.catalog import Build, BuildState
from service.catalog.retention import Retention
from service.context import Context
from service.errors import BadRequestError, NotFoundError, ScopeError, ServiceError
from service.http.responses import json_response
from service.processes.hardware import local_hardware

router = APIRouter(prefix="/v1", tags=["builds"])

# Parsed, hashed and written at once, in a thread: large enough that the hand-over costs nothing beside it.
_BLOCK_BYTES = 1 << 20
# What is still read of a refused upload, so that its sender gets to see the answer.
_DRAIN_BYTES = 256 << 20
_DRAIN_S = 10.0
_EVENTS_POLL_S = 0.2
_EVENTS_HEARTBEAT_S = 15.0


@router.post("/models/{name}/builds", status_code=HTTPStatus.ACCEPTED)
async def create_build(request: Request, name: str, force: Annotated[bool, Query()] = False) -> Response:
    """Uploads a model with samples: 202 with the new build, or 200 with an equal one from before.

    Multipart parts: `model` (.onnx), `samples` (.npz, .npy or .safetensors, repeatable), and where wanted `weights`
    (the model's external data, repeatable), `labels` (.npy, the samples' classes) and `options` (JSON).
    `?force=true` builds again what was built already.
    """
    context = _context(request)
    with audited(request, Action.UPLOAD, model=name) as change:
        check_name(name)
        build, is_new = await _receive(request, context, name, force=force)
        change.build = build.id
        if not is_new:
            change.outcome = UNCHANGED
    response = json_response(await _shown(context, build), HTTPStatus.ACCEPTED if is_new else HTTPStatus.OK)
    response.headers["Location"] = f"/v1/builds/{build.id}"
    return response


@router.get("/builds")
async def list_builds(
    request: Request, state: Annotated[list[BuildState] | None, Query()] = None, limit: int = 100
) -> Response:
    """The newest builds, newest first; `state` (repeatable) keeps only those."""
    if not 1 <= limit <= 1000:
        raise BadRequestError(f"limit cannot be {limit}; ask for 1 to 1000 builds.")
    context = _context(request)
    builds = await asyncio.to_thread(context.catalog.builds, limit=limit, states=tuple(state or BuildState))
    return json_response({"builds": [await _shown(context, build) for build in builds]})


@router.get("/builds/{build_id}")
async def get_build(request: Request, build_id: str) -> Response:
    """One build: state, phase, progress, timings, error, result."""
    context = _context(request)
    return json_response(await _shown(context, await asyncio.to_thread(context.catalog.build, build_id)))


@router.get("/builds/{build_id}/events")
async def follow_build(request: Request, build_id: str) -> Response:
    """Server-sent events, each the build as `GET /v1/builds/{id}` shows it, until it has ended."""
    context = _context(request)
    build = await asyncio.to_thread(context.catalog.build, build_id)
    return StreamingResponse(
        _events(context, build, caller_of(request.scope)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


@router.delete("/builds/{build_id}")
async def cancel_build(
    request: Request,
    build_id: str,
    forget: Annotated[
        bool, Query(description="Remove an ended build without a version, and its upload, from what is kept.")
    ] = False,
) -> Response:
    """Calls a build off; native work for it stops within two seconds. Keys without the scope admin cancel their own."""
    context, caller = _context(request), caller_of(request.scope)
    with audited(request, Action.FORGET if forget else Action.CANCEL) as change:
        change.build = build_id
        build = await asyncio.to_thread(context.catalog.build, build_id)
        change.model = build.model
        if not caller.is_admin and build.key_id != caller.key_id:
            raise ScopeError(
                f"build {build_id} was not uploaded with key {caller.key_id} ({caller.name}); to "
                f"{'forget' if forget else 'cancel'} it, send the key that it was uploaded with, or one with the "
                "scope admin."
            )
        if forget:
            retention, remove = Retention(context.catalog), context.store.delete
            ended = await asyncio.to_thread(retention.forget, build_id, remove)
        else:
            ended = await asyncio.to_thread(context.catalog.cancel, build_id)
    return json_response(await _shown(context, ended))


def _context(request: Request) -> Context:
    context: Context = request.app.state.octet
    return context


async def _receive(request: Request, context: Context, model: str, *, force: bool) -> tuple[Build, bool]:
    """Streams the body into the store; gives its build, and whether that is a new one."""
    stream = request.stream()
    max_bytes = context.settings.max_upload_bytes
    announced_bytes = int(request.headers.get("content-length", 0))
    if "expect" in request.headers:
        # The client waits for our word before it sends: nothing need be read of what is refused.
        _check_room(context, announced_bytes)
    try:
        _check_room(context, announced_bytes)
        with UploadReader(
            context.store, content_type=request.headers.get("content-type"), max_bytes=max_bytes
        ) as reader:
            async for block in _blocks(stream):
                await asyncio.to_thread(reader.write, block)
            upload = await asyncio.to_thread(reader.finish)
            caller, hardware = caller_of(request.scope), await asyncio.to_thread(local_hardware)
            new = new_build(model, upload, hardware=hardware, key_id=caller.key_id)
            quota = UploadQuota(caller, upload.sizes_bytes, context.store.size_bytes)
            await asyncio.to_thread(quota.prepare, context.catalog)
            return await asyncio.to_thread(
                accept, context.catalog, reader, new, force=force, check=quota.check
            )
    except ClientDisconnect as error:
        raise BadRequestError("the client went away in the middle of the upload; send it again.") from error
    except (ServiceError, EngineError):
        await _drain(stream)
        raise


def _check_room(context: Context, announced_bytes: int) -> None:
    """Refuses an upload of this length if it is too long for the settings, or for the disk."""
    check_size(announced_bytes, context.settings.max_upload_bytes)
    context.store.check_room(announced_bytes)


async def _blocks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream in larger pieces."""
    block = bytearray()
    async for chunk in stream:
        block += chunk
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Reads and forgets the rest of a refused upload, within bounds: many clients read no answer before."""
    left_bytes = _DRAIN_BYTES
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_DRAIN_S):
            async for chunk in stream:
                left_bytes -= len(chunk)
                if left_bytes < 0:
                    return


async def _shown(context: Context, build: Build) -> dict[str, Any]:
    """A build as clients see it."""
    shown: dict[str, Any] = {
        "id": build.id,
        "model": build.model,
        "key": build.key_id,
        "state": build.state,
        "phase": build.phase,
        "progress": round(build.progress, 4),
        "timings_s": {phase: round(seconds, 3) for phase, seconds in build.timings.items()},
        "options": shown_options(build.options, build.samples),
        "error": None if build.error is None else {"error": build.error, "code": build.code},
        "result": None,
        "created_at": build.created_at,
        "started_at": build.started_at,
        "finished_at": build.finished_at,
        "samples_removed_at": build.samples_removed_at,
    }
    if build.version is not None:
        summary = await asyncio.to_thread(context.catalog.summary, build.model, build.version)
        shown["result"] = {"model": build.model, "version": build.version, "summary": summary}
    return shown


async def _events(context: Context, build: Build, caller: Caller) -> AsyncIterator[bytes]:
    last: dict[str, Any] | None = None
    heard_at = time.monotonic()
    while True:
        shown = await _shown(context, build)
        if shown != last:
            yield b"event: build\ndata: " + orjson.dumps(shown) + b"\n\n"
            last, heard_at = shown, time.monotonic()
        elif time.monotonic() - heard_at > _EVENTS_HEARTBEAT_S:
            # A comment, so that proxies keep the connection and a client that has left is noticed.
            yield b": still going on\n\n"
            heard_at = time.monotonic()
        if build.state.ended or context.deployments.retiring:
            return
        await asyncio.sleep(_EVENTS_POLL_S)
        if not context.gate.still_admits(caller):
            return
        try:
            build = await asyncio.to_thread(context.catalog.build, build.id)
        except NotFoundError:
            # It has ended since we looked, and was forgotten.
            return
