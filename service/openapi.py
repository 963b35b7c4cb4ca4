"""What OpenAPI says about inference, which is answered before FastAPI could describe it."""

from typing import Any

from service.errors import (
    STATUS,
    BadRequestError,
    DeadlineError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)
from service.protocol import DATATYPES

_ERROR = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": sorted(DATATYPES)},
        "parameters": {"type": "object"},
        "data": {"type": "array", "description": "Row-major, flat or nested.", "items": {}},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {"timeout": {"type": "integer", "description": "Microseconds."}},
        },
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "description": "The outputs wanted; all where left out.",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
    },
}
_RESPONSE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_ERRORS = (BadRequestError, NotFoundError, TooLargeError, QueueFullError, NotReadyError, DeadlineError)


def inference_paths() -> dict[str, Any]:
    """The path items of both inference calls."""
    name = _path_parameter("name")
    return {
        "/v2/models/{name}/infer": {"post": _operation("infer", "Asks a model's default version.", [name])},
        "/v2/models/{name}/versions/{version}/infer": {
            "post": _operation("infer_version", "Asks a version.", [name, _path_parameter("version")])
        },
    }


def _operation(identity: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    errors = {str(STATUS[error]): {"description": error.__doc__, **_json(_ERROR)} for error in _ERRORS}
    return {
        "tags": ["inference"],
        "operationId": identity,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, **_json(_REQUEST)},
        "responses": {"200": {"description": "The outputs.", **_json(_RESPONSE)}, **errors},
    }


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
