"""The protocol's model configuration extension: how a model is batched, in the terms of NVIDIA Triton.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_configuration.md
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from engines.model.tensors import TensorSpec
from service.context import context_of
from service.http.responses import json_response
from service.protocol import datatype
from service.protocol.messages import shape_of
from service.routes.health import NAME, platform
from service.serving.deployment import Deployment

router = APIRouter(prefix="/v2/models", tags=["inference"])


@router.get("/{name}/config")
async def model_config(request: Request, name: str) -> Response:
    """How a model's default version is batched."""
    return json_response(configuration(await context_of(request).deployments.obtain(name)))


@router.get("/{name}/versions/{version}/config")
async def version_config(request: Request, name: str, version: str) -> Response:
    """How a version is batched."""
    return json_response(configuration(await context_of(request).deployments.obtain(name, version)))


def configuration(deployment: Deployment) -> dict[str, Any]:
    """The configuration of a version.

    Shapes leave out the batch where `max_batch_size` is not 0: that is how clients know of batching.
    """
    batchable, limits = deployment.rules.batchable, deployment.limits
    config: dict[str, Any] = {
        "name": deployment.model,
        "platform": platform(deployment),
        "backend": NAME,
        "version_policy": {"specific": {"versions": [int(deployment.version)]}},
        "max_batch_size": deployment.rules.max_rows if batchable else 0,
        "input": _tensors(deployment.signature.inputs, batchable=batchable),
        "output": _tensors(deployment.signature.outputs, batchable=batchable),
        "model_transaction_policy": {"decoupled": False},
    }
    if batchable:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": limits.max_queue_delay_us,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": limits.timeout_ms * 1000,
                "allow_timeout_override": True,
                # Of rows, as all limits here.
                "max_queue_size": limits.max_queue_rows,
            },
        }
    return config


def _tensors(specs: Mapping[str, TensorSpec], *, batchable: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "data_type": _data_type(spec),
            "dims": shape_of(spec)[1:] if batchable else shape_of(spec),
        }
        for spec in specs.values()
    ]


def _data_type(spec: TensorSpec) -> str:
    """The name of the element type in configurations, where BYTES is called a string."""
    name = datatype(spec.dtype)
    return "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"
