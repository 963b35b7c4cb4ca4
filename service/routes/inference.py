"""`POST /v2/models/{name}[/versions/{version}]/infer`, as a bare ASGI handler.

It is dispatched before FastAPI: neither routing tables nor dependency resolution nor pydantic see an
inference request, which makes it some three times cheaper.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from engines.errors import EngineError
from service.errors import BadRequestError, ServiceError, TooLargeError
from service.metrics import Metrics, Outcome
from service.protocol import decode, encode
from service.queue import DepartedError
from service.responses import JSON, body_of, error_body, retry_after_s, status_of
from service.serving import Deployment, Deployments

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_PREFIX = "/v2/models/"
_SUFFIX = "/infer"
_CONTENT_TYPE = (b"content-type", JSON.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Whom a request is for."""

    model: str
    # None is the model's default.
    version: str | None


def infer_address(path: str) -> Address | None:
    """The address in an inference path; None for every other path."""
    if not path.startswith(_PREFIX) or not path.endswith(_SUFFIX):
        return None
    parts = path[len(_PREFIX) : -len(_SUFFIX)].split("/")
    if len(parts) == 1 and parts[0]:
        return Address(model=parts[0], version=None)
    if len(parts) == 3 and parts[1] == "versions":
        return Address(model=parts[0], version=parts[2])
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class InferenceHandler:
    """Answers inference requests and counts them.

    An answer given before the whole body was read leaves the connection open, and uvicorn drops the rest of
    the body. Were it closed at once, a client that still sends would get a reset and never see why.
    """

    def __init__(self, *, deployments: Deployments, metrics: Metrics, max_body_bytes: int) -> None:
        self._deployments = deployments
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, address: Address, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request; whatever goes wrong becomes its error body."""
        started_s = time.perf_counter()
        deployment: Deployment | None = None
        outcome, rows = Outcome.CANCELLED, 0
        try:
            if scope["method"] == "POST":
                # Who is unknown or unable is told so before the body is read.
                deployment = self._deployments.find(address.model, address.version)
                body = await self._read(scope["headers"], receive)
                # Again: reading may have taken long enough for another version to take over.
                deployment = self._deployments.find(address.model, address.version)
                answer, rows = await self._infer(deployment, body, receive)
            else:
                answer = _wrong_method(scope["method"])
            outcome = Outcome.of_status(answer.status)
        except DepartedError:
            return
        except Exception as error:  # noqa: BLE001 - the last handler: every request gets an answer
            answer = _failure(error)
            outcome = Outcome.of_status(answer.status)
        finally:
            self._count(deployment, outcome, rows, time.perf_counter() - started_s)
        await _send(send, answer)

    async def _infer(self, deployment: Deployment, body: bytes, receive: Receive) -> tuple[_Answer, int]:
        """The answer to a body, and the rows that were answered."""
        request = decode(body, deployment.signature)
        outputs = await deployment.batcher.submit(
            request.feeds, timeout_s=request.timeout_s, gone=departure_of(receive)
        )
        payload = encode(
            model=deployment.model,
            version=deployment.version,
            request_id=request.id,
            outputs=outputs,
            names=request.outputs or tuple(deployment.signature.outputs),
        )
        first = next(iter(request.feeds.values()))
        return _Answer(status=200, body=payload), first.shape[0] if first.ndim else 1

    async def _read(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            TooLargeError: it is over the limit; said before reading where Content-Length tells.
            BadRequestError: it is compressed.
            DepartedError: the client left before its end.
        """
        for name, value in headers:
            if name == b"content-length" and int(value) > self._max_body_bytes:
                raise self._too_large(f"{int(value)} bytes")
            if name == b"content-encoding" and value != b"identity":
                raise BadRequestError(
                    f"the body has Content-Encoding {value.decode('latin-1')}, which this server "
                    "does not take; send it as it is."
                )
        message = await receive()
        body: bytes = message.get("body", b"")
        chunks = [body]
        size = len(body)
        while message.get("more_body", False):
            if size > self._max_body_bytes:
                raise self._too_large(f"more than {self._max_body_bytes} bytes")
            message = await receive()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
        if message["type"] == "http.disconnect":
            raise DepartedError
        if size > self._max_body_bytes:
            raise self._too_large(f"{size} bytes")
        return body if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self, seen: str) -> TooLargeError:
        return TooLargeError(
            f"the body has {seen} and may have {self._max_body_bytes}; "
            "send fewer rows in a request, or raise OCTET_MAX_BODY_BYTES."
        )

    def _count(self, deployment: Deployment | None, outcome: Outcome, rows: int, seconds: float) -> None:
        if deployment is None:
            self._metrics.unrouted(outcome)
            return
        deployment.metrics.requests[outcome].inc()
        deployment.metrics.request_seconds.observe(seconds)
        if rows:
            deployment.metrics.rows.inc(rows)


def departure_of(receive: Receive) -> Callable[[], bool]:
    """Tells whether the client of a request has gone.

    uvicorn's `receive` is a method of the object that knows; asking it costs nothing. The way of the ASGI
    specification, a task beside every request that waits for `http.disconnect`, costs as much as batching.
    Under a server that is not uvicorn, requests of departed clients are computed and thrown away.
    """
    cycle: Any = getattr(receive, "__self__", None)
    if not isinstance(getattr(cycle, "disconnected", None), bool):
        return _stays
    return lambda: bool(cycle.disconnected)


def _stays() -> bool:
    return False


def _wrong_method(method: str) -> _Answer:
    body = error_body(f"inference does not take {method}; send POST.", "request.method_not_allowed")
    return _Answer(status=405, body=body, headers=((b"allow", b"POST"),))


def _failure(error: Exception) -> _Answer:
    if not isinstance(error, ServiceError | EngineError):
        logger.error("an inference request failed", exc_info=error)
    after_s = retry_after_s(error)
    headers = () if after_s is None else ((b"retry-after", str(after_s).encode()),)
    return _Answer(status=status_of(error), body=body_of(error), headers=headers)


async def _send(send: Send, answer: _Answer) -> None:
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [_CONTENT_TYPE, length, *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
