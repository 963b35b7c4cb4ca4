"""What an error looks like to a client: one body and one table of statuses for both APIs."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response

from engines.errors import EngineError
from service.errors import STATUS, ServiceError

JSON = "application/json"
BINARY = "application/octet-stream"
INTERNAL = "the server failed on this request; it has noted why. Try again, and report it if it stays."
INTERNAL_CODE = "server.error"

_FRAMEWORK_CODES = {
    HTTPStatus.NOT_FOUND: "request.not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "request.method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request.too_large",
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error, by its nearest class in the table; 500 for one that is not in it."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_body(message: str, code: str) -> bytes:
    """The body of every error."""
    return orjson.dumps({"error": message, "code": code})


def body_of(error: Exception) -> bytes:
    """The body for an error: its own words, or for one that nobody raised on purpose, none of its words."""
    if isinstance(error, ServiceError | EngineError):
        return error_body(str(error), error.code)
    return error_body(INTERNAL, INTERNAL_CODE)


def retry_after_s(error: Exception) -> int | None:
    """Seconds for the Retry-After header, which goes with 429 and 503."""
    status = status_of(error)
    if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    return getattr(error, "retry_after_s", None) or 2


def error_headers(error: Exception) -> dict[str, str]:
    """What the headers of an error say beside its body."""
    after_s, challenge = retry_after_s(error), getattr(error, "challenge", None)
    said = {"Retry-After": after_s, "WWW-Authenticate": challenge}
    return {name: str(value) for name, value in said.items() if value is not None}


def part_with_frames(error: Exception) -> None:
    """Drops the traceback of an error that is answered and needed no more.

    Its frames often have the error among their variables. Each would keep the other until the garbage collector comes,
    and a flood of refused requests leaves memory that cannot be given back.
    """
    error.__traceback__ = None


def error_response(error: Exception) -> Response:
    """An error as FastAPI's routes answer it."""
    return Response(body_of(error), status_of(error), error_headers(error), JSON)


def framework_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error that the web framework noticed, in our form."""
    code = _FRAMEWORK_CODES.get(HTTPStatus(status), "request.invalid" if status < 500 else INTERNAL_CODE)
    return Response(error_body(message, code), status, headers, JSON)


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status, media_type=JSON)
