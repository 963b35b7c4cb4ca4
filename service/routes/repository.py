"""The protocol's model repository extension: what is published, and what of it this server has in memory.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from service.access.audit import Action, audited
from service.batching.queue import DepartedError
from service.context import context_of
from service.errors import BadRequestError
from service.http.request_body import BodyHeaders, read_body
from service.http.responses import json_response
from service.protocol.messages import shown
from service.serving.residency import VersionState

router = APIRouter(prefix="/v2/repository", tags=["inference"])

_STATES = {
    VersionState.LOADING: "LOADING",
    VersionState.READY: "READY",
    VersionState.REFUSED: "READY",
    VersionState.FAILED: "UNAVAILABLE",
    VersionState.QUARANTINED: "UNAVAILABLE",
    VersionState.UNLOADED: "UNAVAILABLE",
}
"""The states of this server in the protocol's words; a refused version answers, in FP32."""

_MOST_BYTES = 1 << 20


@router.post("/index")
async def index(request: Request) -> Response:
    """Every published version and its state here; only those that answer with `{"ready": true}`."""
    context = context_of(request)
    only_ready = (await _asked(request)).get("ready") is True
    entries = []
    for version in await asyncio.to_thread(context.catalog.versions):
        status = context.deployments.status(version.model, version.number)
        state = _STATES[status.state]
        if state == "READY" or not only_ready:
            entries.append(
                {
                    "name": version.model,
                    "version": str(version.number),
                    "state": state,
                    "reason": status.reason or "",
                }
            )
    return json_response(entries)


@router.post("/models/{name}/load")
async def load(request: Request, name: str) -> Response:
    """Brings a published model into memory, out of quarantine too, and answers once its default version does."""
    with audited(request, Action.LOAD, model=name):
        parameters = _object((await _asked(request)).get("parameters"))
        if parameters:
            raise BadRequestError(
                f"loading takes no parameters, and {shown(sorted(parameters))} came; "
                "octet builds models from POST /v1/models/{name}/builds, with their options."
            )
        await context_of(request).deployments.bring_back(name)
    return json_response({})


@router.post("/models/{name}/unload")
async def unload(request: Request, name: str) -> Response:
    """Takes a model out of memory until it is loaded again or the server starts anew; it stays published."""
    with audited(request, Action.UNLOAD, model=name):
        await _asked(request)
        context_of(request).deployments.put_away(name)
    return json_response({})


async def _asked(request: Request) -> dict[str, Any]:
    """The JSON object of a body, whatever Content-Type it has: NVIDIA's client sends none."""
    headers = BodyHeaders.of(request.headers.raw, _MOST_BYTES)
    try:
        body = await read_body(headers, request.receive, _MOST_BYTES)
        return _object(orjson.loads(body) if body else None)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON ({error}); send an object, or no body.") from error
    except DepartedError as error:
        raise BadRequestError("the body ends before its length; send it whole.") from error


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{shown(value)} came where an object was expected; send one, or no body.")
    return value
