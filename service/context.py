"""What the routes share."""

from dataclasses import dataclass

from fastapi import Request

from service.access.gate import Gate
from service.catalog.catalog import Catalog
from service.monitoring.metrics import Metrics
from service.serving.deployments import Deployments
from service.settings import Settings
from service.storage.blobs import BlobStore


@dataclass(frozen=True, kw_only=True)
class Context:
    """One server's parts; routes find it at `request.app.state.octet`."""

    settings: Settings
    catalog: Catalog
    store: BlobStore
    deployments: Deployments
    metrics: Metrics
    gate: Gate


def context_of(request: Request) -> Context:
    """The parts of the server that has got this request."""
    context: Context = request.app.state.octet
    return context
