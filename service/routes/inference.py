"""`POST /v2/models/{name}[/versions/{version}]/infer`, as a bare ASGI handler.

It is dispatched before FastAPI: neither routing tables nor dependency resolution nor pydantic see an
inference request, which makes it some three times cheaper.
"""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engines.errors import EngineError
from service.batching.queue import DepartedError
from service.errors import ServiceError
from service.http.coding_threads import in_coding_thread
from service.http.compression import accepted, compressed
from service.http.exchange import Exchange, Message, Receive, Send
from service.http.request_body import INLINE_BYTES, BodyHeaders, body_at_hand, read_body
from service.http.responses import (
    BINARY,
    JSON,
    body_of,
    error_body,
    part_with_frames,
    retry_after_s,
    status_of,
)
from service.monitoring import request_ids
from service.monitoring.metrics import Metrics, Outcome
from service.monitoring.timeline import SERVER_TIMING, TIMELINE, Timeline
from service.protocol import Buffer, InferenceResponse, decode, encode
from service.serving.deployment import Deployment
from service.serving.deployments import Deployments
from service.settings import Settings

logger = logging.getLogger(__name__)

_PREFIX = "/v2/models/"
_SUFFIX = "/infer"
_JSON_TYPE = (b"content-type", JSON.encode())
_BINARY_TYPE = (b"content-type", BINARY.encode())
_CLOSE = (b"connection", b"close")
_VARY = (b"vary", b"accept-encoding")
# Up to here copying costs less than writing to the socket once more.
_JOINED_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Address:
    """Whom a request is for."""

    model: str
    # None is the model's default.
    version: str | None

    @property
    def route(self) -> str:
        """Its path with placeholders."""
        version = "" if self.version is None else "/versions/{version}"
        return f"{_PREFIX}{{name}}{version}{_SUFFIX}"


@functools.lru_cache(maxsize=256)
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


# Not frozen, as nothing that a request makes: to set a field would take three times as long.
@dataclass(kw_only=True, slots=True)
class _Answer:
    status: int
    # Sent one after the other; outputs are sent from the memory that they were computed into.
    pieces: Sequence[bytes | memoryview]
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON_TYPE,)


class InferenceHandler:
    """Answers inference requests and counts them.

    An answer given before the whole body was read leaves the connection open, and the rest of the body is
    dropped. Were it closed at once, a client that still sends would get a reset and never see why.
    """

    def __init__(self, *, deployments: Deployments, metrics: Metrics, settings: Settings) -> None:
        self._deployments = deployments
        self._metrics = metrics
        self._max_body_bytes = settings.max_body_bytes
        self._compress_min_bytes = settings.compress_min_bytes
        self._server_timing = settings.server_timing

    async def __call__(self, address: Address, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request; whatever goes wrong becomes its error body."""
        started_s = time.perf_counter()
        deployment: Deployment | None = None
        outcome, rows = Outcome.CANCELLED, 0
        try:
            if scope["method"] == "POST":
                self._deployments.admit()
                # Who is unknown or unable is told so before the body is read.
                deployment = await self._deployments.obtain(address.model, address.version)
                headers = BodyHeaders.of(scope["headers"], self._max_body_bytes)
                body = body_at_hand(headers, receive)
                if body is None:
                    body = await read_body(headers, receive, self._max_body_bytes)
                    # Again: reading may have taken long enough for another version to take over.
                    deployment = await self._deployments.obtain(address.model, address.version)
                answer, rows = await self._infer(deployment, body, headers, receive, scope.get(TIMELINE))
            else:
                answer = _wrong_method(scope["method"])
            outcome = Outcome.of_status(answer.status)
        except DepartedError:
            return
        except Exception as error:  # noqa: BLE001 - the last handler: every request gets an answer
            answer = _failure(error, address)
            outcome = Outcome.of_status(answer.status)
            part_with_frames(error)
        finally:
            self._count(deployment, outcome, rows, time.perf_counter() - started_s)
        if self._deployments.retiring:
            answer = replace(answer, headers=(*answer.headers, _CLOSE))
        await _send(send, answer)

    async def _infer(
        self,
        deployment: Deployment,
        body: Buffer,
        headers: BodyHeaders,
        receive: Receive,
        timeline: Timeline | None,
    ) -> tuple[_Answer, int]:
        """The answer to a body, and the rows that were answered."""
        statistics = deployment.metrics.statistics
        if timeline is not None:
            timeline.model, timeline.version = deployment.model, deployment.version
        started_s = time.perf_counter()
        request = decode(body, deployment.signature, json_bytes=headers.json_bytes)
        decode_s = time.perf_counter() - started_s
        outputs = await deployment.batcher.submit(
            request.feeds,
            timeout_s=request.timeout_s,
            priority=request.priority,
            gone=departure_of(receive),
            timeline=timeline,
        )
        started_s = time.perf_counter()
        response = encode(
            model=deployment.model,
            version=deployment.version,
            request_id=request.id,
            outputs=outputs,
            wanted=request.outputs,
        )
        encode_s = time.perf_counter() - started_s
        statistics.decode.add(decode_s)
        statistics.encode.add(encode_s)
        answer = _success(response)
        if headers.accept_encoding:
            answer = await self._compressed(answer, headers.accept_encoding)
        first = next(iter(request.feeds.values()))
        rows = first.shape[0] if first.ndim else 1
        if timeline is not None:
            timeline.decode_s, timeline.encode_s, timeline.rows = decode_s, encode_s, rows
            if self._server_timing:
                answer = replace(answer, headers=(*answer.headers, (SERVER_TIMING, timeline.server_timing())))
        return answer, rows

    async def _compressed(self, answer: _Answer, accept_encoding: bytes) -> _Answer:
        """The answer as its client likes it best: as it is where compressing is not asked for or not worth it."""
        size, coding = sum(map(len, answer.pieces)), accepted(accept_encoding)
        if coding is None or size < self._compress_min_bytes:
            return answer
        if size <= INLINE_BYTES:
            body = compressed(answer.pieces, coding)
        else:
            body = await in_coding_thread(compressed, answer.pieces, coding)
        return replace(answer, pieces=[body], headers=(*answer.headers, (b"content-encoding", coding), _VARY))

    def _count(self, deployment: Deployment | None, outcome: Outcome, rows: int, seconds: float) -> None:
        if deployment is None:
            self._metrics.unrouted(outcome)
            return
        metrics = deployment.metrics
        metrics.requests[outcome].inc()
        metrics.request_seconds.observe(seconds)
        if outcome is Outcome.SUCCESS:
            metrics.rows.inc(rows)
            metrics.statistics.last_s = time.time()
            metrics.statistics.success.add(seconds)
        else:
            metrics.statistics.fail.add(seconds)


def departure_of(receive: Receive) -> Callable[[], bool]:
    """Tells whether the client of a request has gone.

    `receive` is a method of the exchange, which knows; asking it costs nothing. The way of the ASGI
    specification, a task beside every request that waits for `http.disconnect`, costs as much as batching.
    Under another server, requests of departed clients are computed and thrown away.
    """
    exchange = getattr(receive, "__self__", None)
    if not isinstance(exchange, Exchange):
        return _stays
    return lambda: exchange.disconnected


def _stays() -> bool:
    return False


def _success(response: InferenceResponse) -> _Answer:
    pieces = response.pieces
    if not response.binary:
        return _Answer(status=200, pieces=pieces)
    json_bytes = (b"inference-header-content-length", str(len(pieces[0])).encode())
    if sum(map(len, pieces)) <= _JOINED_BYTES:
        pieces = [b"".join(pieces)]
    return _Answer(status=200, pieces=pieces, headers=(_BINARY_TYPE, json_bytes))


def _wrong_method(method: str) -> _Answer:
    body = error_body(f"inference does not take {method}; send POST.", "request.method_not_allowed")
    return _Answer(status=405, pieces=[body], headers=(_JSON_TYPE, (b"allow", b"POST")))


def _failure(error: Exception, address: Address) -> _Answer:
    if not isinstance(error, ServiceError | EngineError):
        concerned = {"model": address.model, "version": address.version}
        logger.error("an inference request failed", exc_info=error, extra=concerned)
    after_s = retry_after_s(error)
    headers = () if after_s is None else ((b"retry-after", str(after_s).encode()),)
    return _Answer(status=status_of(error), pieces=[body_of(error)], headers=(_JSON_TYPE, *headers))


async def _send(send: Send, answer: _Answer) -> None:
    *pieces, last = answer.pieces
    length = sum(map(len, pieces)) + len(last)
    headers = [
        *answer.headers,
        (b"content-length", str(length).encode()),
        (request_ids.HEADER, request_ids.current()),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": last})
