"""What OpenAPI says beside what FastAPI knows: inference and keys, which are dealt with before it sees a request."""

import re
from typing import Any

from service.access.scopes import needed
from service.errors import (
    STATUS,
    BadRequestError,
    ContentCodingError,
    DeadlineError,
    KeyRefusedError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    RequestQuotaError,
    ScopeError,
    TooLargeError,
)
from service.http.compression import CODINGS
from service.protocol import DATATYPES

_ERROR = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": sorted(DATATYPES)},
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data_size": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "Bytes of this tensor after the JSON, in place of data.",
                }
            },
        },
        "data": {
            "type": "array",
            "description": "Row-major, flat or nested; FP16 and BF16 come as binary data only.",
            "items": {},
        },
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {
                "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds."},
                "priority": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "1 is the highest. Checked, but requests are served in the order that they come.",
                },
                "binary_data_output": {
                    "type": "boolean",
                    "description": "Whether outputs come as binary data that do not say it themselves.",
                },
            },
        },
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "description": "The outputs wanted; all where left out.",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
                },
            },
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
_ERRORS = (
    *(BadRequestError, NotFoundError, TooLargeError, ContentCodingError),
    *(QueueFullError, NotReadyError, DeadlineError),
)
_KEY = "key"
_KEY_ERRORS = (KeyRefusedError, ScopeError, RequestQuotaError)
_BINARY = {
    "application/octet-stream": {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": "The JSON, then the tensors that say their binary_data_size, in its order.",
        }
    }
}
_JSON_BYTES = "Inference-Header-Content-Length"
_HEADERS = [
    {
        "name": _JSON_BYTES,
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": (
            "Bytes of the JSON where binary data follows, before compression; "
            "0 for a body that is the bytes of the only input."
        ),
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {"type": "string", "enum": [coding.decode() for coding in CODINGS]},
    },
]


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


_ANSWER = {
    "description": "The outputs.",
    "headers": {
        _JSON_BYTES: {"schema": {"type": "integer"}, "description": "Where binary data follows."},
        "X-Request-ID": {
            "schema": {"type": "string"},
            "description": "How the request is called in the server's log: as its client called it, or made here.",
        },
        "Server-Timing": {
            "schema": {"type": "string"},
            "description": "Milliseconds of decode, queue, compute and encode, where OCTET_SERVER_TIMING asks for it.",
        },
    },
    "content": _json(_RESPONSE)["content"] | _BINARY,
}


def inference_paths() -> dict[str, Any]:
    """The path items of both inference calls."""
    name = _path_parameter("name")
    return {
        "/v2/models/{name}/infer": {"post": _operation("infer", "Asks a model's default version.", [name])},
        "/v2/models/{name}/versions/{version}/infer": {
            "post": _operation("infer_version", "Asks a version.", [name, _path_parameter("version")])
        },
    }


def describe_keys(schema: dict[str, Any]) -> None:
    """Adds to a whole schema how a key is sent, and to each call which scope it needs and what refuses it."""
    schema.setdefault("components", {})["securitySchemes"] = {
        _KEY: {"type": "http", "scheme": "bearer", "bearerFormat": "octet_<id>_<secret>"}
    }
    for path, calls in schema["paths"].items():
        for method, operation in calls.items():
            scope = needed(method.upper(), re.sub(r"{\w+}", "x", path))
            # For a scheme without scopes of its own, OpenAPI 3.1 lists the roles that are needed.
            operation["security"] = [] if scope is None else [{_KEY: [scope.value]}]
            if scope is not None:
                for error in _KEY_ERRORS:
                    operation["responses"].setdefault(str(STATUS[error]), _error(error))


def _error(error: type[Exception]) -> dict[str, Any]:
    return {"description": error.__doc__, **_json(_ERROR)}


def _operation(identity: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    errors = {str(STATUS[error]): _error(error) for error in _ERRORS}
    return {
        "tags": ["inference"],
        "operationId": identity,
        "summary": summary,
        "parameters": [*parameters, *_HEADERS],
        "requestBody": {"required": True, "content": _json(_REQUEST)["content"] | _BINARY},
        "responses": {"200": _ANSWER, **errors},
    }


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
