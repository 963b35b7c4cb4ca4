"""One inference request, from what its head says to its answer.

It is called back by the batcher, and needs no task while it waits: a task, a future and the coroutines between them
cost as much as reading and writing the tensors of a small request.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.errors import EngineError
from engines.model.tensors import Array
from service.batching.queue import DepartedError
from service.errors import ServiceError
from service.http.answer_head import CLOSE, Header
from service.http.asgi import Piece
from service.http.coding_threads import in_coding_thread
from service.http.compression import accepted, compressed
from service.http.request_body import INLINE_BYTES, BodyHeaders
from service.http.responses import BINARY, JSON, body_of, part_with_frames, retry_after_s, status_of
from service.monitoring import request_ids
from service.monitoring.metrics import Outcome
from service.monitoring.timeline import SERVER_TIMING, Timeline
from service.protocol import Buffer, InferenceRequest, InferenceResponse, decode, encode
from service.serving.deployment import Deployment

logger = logging.getLogger(__name__)

JSON_TYPE = (b"content-type", JSON.encode())
_BINARY_TYPE = (b"content-type", BINARY.encode())
_VARY = (b"vary", b"accept-encoding")


# Not frozen, as nothing that a request makes: to set a field would take three times as long.
@dataclass(kw_only=True, slots=True)
class Answer:
    """What a client gets."""

    status: int
    # Sent one after the other; outputs are sent from the memory that they were computed into.
    pieces: Sequence[Piece]
    headers: tuple[Header, ...] = (JSON_TYPE,)

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return sum(map(len, self.pieces))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds for all answers of a server."""

    # The smallest that is compressed.
    compress_min_bytes: int
    # Whether answers say what took how long.
    server_timing: bool
    # Whether the server is about to stop: answers end their connections then.
    retiring: Callable[[], bool]


class Client(Protocol):
    """Who gets the answer of a call."""

    def has_left(self) -> bool:
        """Whether nobody would read an answer any more."""

    def answer(self, status: int, headers: Sequence[Header], pieces: Sequence[Piece]) -> None:
        """Takes the answer."""

    def disconnect(self) -> None:
        """Takes the news that there will be none, the client having left."""


class Call:
    """An inference request, begun once its body is there; see `service.batching.queue.Caller`."""

    __slots__ = (
        "_accept_encoding", "_client", "_decode_s", "_request", "_rows", "_rules", "_started_s", "_work",
        "deployment", "has_left", "request_id", "timeline",
    )  # fmt: skip

    def __init__(
        self,
        client: Client,
        deployment: Deployment,
        rules: Rules,
        request_id: bytes,
        started_s: float,
        timeline: Timeline | None = None,
    ) -> None:
        """`started_s` is when the request came, on time.perf_counter."""
        # Who is to answer; another version may have taken over when the body is there.
        self.deployment = deployment
        self.request_id = request_id
        self.timeline = timeline
        self.has_left = client.has_left
        self._client = client
        self._rules = rules
        self._started_s = started_s
        self._decode_s = 0.0
        self._rows = 0
        self._accept_encoding = b""
        self._request: InferenceRequest
        # What goes on with the answer outside of the event loop.
        self._work: asyncio.Task[None]

    def begin(self, headers: BodyHeaders, body: Buffer) -> None:
        """Has a body answered, at once where it cannot be."""
        deployment, timeline = self.deployment, self.timeline
        if timeline is not None:
            timeline.model, timeline.version = deployment.model, deployment.version
        self._accept_encoding = headers.accept_encoding
        try:
            started_s = time.perf_counter()
            request = self._request = decode(body, deployment.signature, json_bytes=headers.json_bytes)
            self._decode_s = time.perf_counter() - started_s
            first = next(iter(request.feeds.values()))
            self._rows = first.shape[0] if first.ndim else 1
            if timeline is not None:
                timeline.decode_s, timeline.rows = self._decode_s, self._rows
            deployment.batcher.enqueue(
                request.feeds, self, timeout_s=request.timeout_s, priority=request.priority
            )
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            self.failed(error)

    def answered(self, outputs: dict[str, Array]) -> None:
        """Writes the outputs into an answer and delivers it."""
        deployment, request = self.deployment, self._request
        try:
            started_s = time.perf_counter()
            response = encode(
                model=deployment.model,
                version=deployment.version,
                request_id=request.id,
                outputs=outputs,
                wanted=request.outputs,
            )
            encode_s = time.perf_counter() - started_s
            answer = _success(response)
            coding = self._coding(answer) if self._accept_encoding else None
            if coding is not None and answer.size <= INLINE_BYTES:
                answer = _coded(answer, compressed(answer.pieces, coding), coding)
                coding = None
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            self.failed(error)
            return
        deployment.metrics.statistics.coded(self._decode_s, encode_s)
        if self.timeline is not None:
            self.timeline.encode_s = encode_s
        if coding is None:
            self._succeed(answer)
        else:
            self._work = asyncio.get_running_loop().create_task(self._compress_in_thread(answer, coding))

    def failed(self, error: Exception) -> None:
        """Delivers what went wrong."""
        seconds, outcome = time.perf_counter() - self._started_s, Outcome.CANCELLED
        if isinstance(error, DepartedError):
            self._client.disconnect()
        else:
            answer = failure(error, self.deployment.model, self.deployment.version, self.request_id)
            outcome = Outcome.of_status(answer.status)
            self._deliver(answer)
        self.deployment.metrics.failed(outcome, seconds)

    def _coding(self, answer: Answer) -> bytes | None:
        """How its client likes an answer best; None is as it is, where compressing is not asked for or not worth it."""
        return accepted(self._accept_encoding) if answer.size >= self._rules.compress_min_bytes else None

    async def _compress_in_thread(self, answer: Answer, coding: bytes) -> None:
        try:
            body = await in_coding_thread(compressed, answer.pieces, coding)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            self.failed(error)
        else:
            self._succeed(_coded(answer, body, coding))

    def _succeed(self, answer: Answer) -> None:
        if self.timeline is not None and self._rules.server_timing:
            answer.headers = (*answer.headers, (SERVER_TIMING, self.timeline.server_timing()))
        seconds = time.perf_counter() - self._started_s
        self._deliver(answer)
        self.deployment.metrics.succeeded(self._rows, seconds)

    def _deliver(self, answer: Answer) -> None:
        answer = finished(answer, self._rules, self.request_id)
        self._client.answer(answer.status, answer.headers, answer.pieces)


class AwaitedAnswer:
    """A client whose answer a task waits for, to send it on."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        """`gone` says whether the client has left."""
        self._gone = gone
        # None where it has left.
        self.given: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

    def has_left(self) -> bool:
        return self.given.done() or self._gone()

    def answer(self, status: int, headers: Sequence[Header], pieces: Sequence[Piece]) -> None:
        self._give(Answer(status=status, headers=tuple(headers), pieces=pieces))

    def disconnect(self) -> None:
        self._give(None)

    def _give(self, answer: Answer | None) -> None:
        if not self.given.done():
            self.given.set_result(answer)


def failure(error: Exception, model: str, version: str | None, request_id: bytes) -> Answer:
    """What a client is told of an error; what nobody raised on purpose is logged."""
    if not isinstance(error, ServiceError | EngineError):
        concerned = {"model": model, "version": version, "request_id": request_id.decode()}
        logger.error("an inference request failed", exc_info=error, extra=concerned)
    part_with_frames(error)
    after_s = retry_after_s(error)
    headers = () if after_s is None else ((b"retry-after", str(after_s).encode()),)
    return Answer(status=status_of(error), pieces=[body_of(error)], headers=(JSON_TYPE, *headers))


def finished(answer: Answer, rules: Rules, request_id: bytes) -> Answer:
    """An answer with the headers that all have."""
    last = (request_ids.HEADER, request_id)
    answer.headers = (*answer.headers, last, CLOSE) if rules.retiring() else (*answer.headers, last)
    return answer


def _success(response: InferenceResponse) -> Answer:
    pieces = response.pieces
    if not response.binary:
        return Answer(status=200, pieces=pieces)
    json_bytes = (b"inference-header-content-length", str(len(pieces[0])).encode())
    return Answer(status=200, pieces=pieces, headers=(_BINARY_TYPE, json_bytes))


def _coded(answer: Answer, body: bytes, coding: bytes) -> Answer:
    return Answer(
        status=answer.status, pieces=[body], headers=(*answer.headers, (b"content-encoding", coding), _VARY)
    )
