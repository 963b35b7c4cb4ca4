"""The protocol's statistics extension, in the shape that NVIDIA's perf_analyzer reads."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request, Response

from service.context import context_of
from service.http.responses import json_response
from service.monitoring.statistics import Duration
from service.monitoring.version_metrics import VersionMetrics
from service.serving.deployment import Deployment

router = APIRouter(prefix="/v2/models", tags=["inference"])


@router.get("/stats")
async def all_statistics(request: Request) -> Response:
    """What every version in memory has done since it was first loaded."""
    return _shown(context_of(request).deployments.deployments())


@router.get("/{name}/stats")
async def model_statistics(request: Request, name: str) -> Response:
    """What the versions of a model that are in memory have done."""
    deployments = context_of(request).deployments
    deployments.find(name)
    return _shown(deployments.deployments(name))


@router.get("/{name}/versions/{version}/stats")
async def version_statistics(request: Request, name: str, version: str) -> Response:
    """What a version has done."""
    return _shown([context_of(request).deployments.find(name, version)])


def _shown(deployments: Iterable[Deployment]) -> Response:
    return json_response(
        {
            "model_stats": [_entry(deployment.metrics) for deployment in deployments],
        }
    )


def _entry(metrics: VersionMetrics) -> dict[str, Any]:
    waited = metrics.queue_seconds
    queue = Duration(count=waited.count, seconds=waited.sum)
    shown = metrics.statistics.shown(rows=metrics.rows.value, queue=queue)
    return {"name": metrics.model, "version": metrics.version, **shown}
