"""Liveness, readiness and metadata of the Open Inference Protocol v2.

Answers are 200 or an error, and readiness has a JSON body with `ready`: clients rely on both.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from fastapi import APIRouter, Request, Response

from service.context import context_of
from service.errors import NotReadyError
from service.http.responses import body_of, json_response
from service.protocol import metadata
from service.serving.deployment import Deployment

router = APIRouter(prefix="/v2", tags=["inference"])

NAME = "octet"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
"""The protocol's optional extensions that this server has; clients ask nothing of one that is not listed."""


@router.get("")
async def server_metadata() -> Response:
    """Name, version and protocol extensions of the server."""
    return json_response({"name": NAME, "version": _version(), "extensions": EXTENSIONS})


@router.get("/health/live")
async def live() -> Response:
    """The process answers."""
    return json_response({"live": True})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """The server should get requests: 200, or 503 while it loads its first models or is about to stop."""
    is_ready = context_of(request).deployments.ready
    return json_response({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/models/{name}")
async def model_metadata(request: Request, name: str) -> Response:
    """Inputs and outputs of a model's default version."""
    return await _metadata(request, name, None)


@router.get("/models/{name}/versions/{version}")
async def version_metadata(request: Request, name: str, version: str) -> Response:
    """Inputs and outputs of a version."""
    return await _metadata(request, name, version)


@router.get("/models/{name}/ready")
async def model_ready(request: Request, name: str) -> Response:
    """Whether a model's default answers, or would load for a request: else 503, or 404 for an unknown model."""
    return _ready(request, name, None)


@router.get("/models/{name}/versions/{version}/ready")
async def version_ready(request: Request, name: str, version: str) -> Response:
    """Whether a version answers, or would load for a request: else 503, or 404 for an unknown one."""
    return _ready(request, name, version)


def _version() -> str:
    try:
        return installed_version(NAME)
    except PackageNotFoundError:
        # Run from a checkout that nobody installed.
        return "0+source"


async def _metadata(request: Request, name: str, version: str | None) -> Response:
    deployments = context_of(request).deployments
    deployment = await deployments.obtain(name, version)
    return json_response(
        {
            "name": name,
            "versions": deployments.ready_versions(name),
            "platform": platform(deployment),
            "inputs": metadata(deployment.signature.inputs),
            "outputs": metadata(deployment.signature.outputs),
        }
    )


def platform(deployment: Deployment) -> str:
    """The protocol's `<framework>_<format>`; the format is what really answers."""
    return f"{NAME}_{deployment.precision}"


def _ready(request: Request, name: str, version: str | None) -> Response:
    try:
        number = context_of(request).deployments.promised(name, version)
    except NotReadyError as error:
        return Response(
            b'{"ready":false,' + body_of(error)[1:],
            503,
            {"Retry-After": str(error.retry_after_s)},
            "application/json",
        )
    return json_response({"name": name, "version": number, "ready": True})
