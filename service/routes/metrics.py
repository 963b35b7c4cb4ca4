"""`GET /metrics` for Prometheus."""

import asyncio

from fastapi import APIRouter, Request, Response

from service.context import context_of
from service.monitoring.metrics import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All metrics in the text exposition format."""
    # In a thread: gauges of builds are read from the catalog.
    text = await asyncio.to_thread(context_of(request).metrics.scrape)
    return Response(text, media_type=CONTENT_TYPE)
