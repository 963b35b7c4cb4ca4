"""`POST /v2/models/{name}[/versions/{version}]/infer`: begun where the request came, or a bare ASGI handler.

It is dispatched before FastAPI: neither routing tables nor dependency resolution nor pydantic see an
inference request, which makes it some three times cheaper. Most need no task either.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.batching.queue import DepartedError
from service.errors import ServiceError
from service.http.asgi import Message, Receive, Send
from service.http.exchange import JOINED_BYTES, Exchange
from service.http.request_body import BodyHeaders, read_body
from service.http.responses import error_body
from service.monitoring import request_ids
from service.monitoring.metrics import Metrics, Outcome
from service.monitoring.timeline import TIMELINE
from service.protocol import Buffer
from service.routes.inference_call import (
    JSON_TYPE,
    Answer,
    AwaitedAnswer,
    Call,
    Rules,
    failure,
    finished,
)
from service.serving.deployments import Deployments
from service.settings import Settings

_PREFIX = "/v2/models/"
_SUFFIX = "/infer"


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


class InferenceHandler:
    """Answers inference requests and counts them.

    An answer given before the whole body was read leaves the connection open, and the rest of the body is
    dropped. Were it closed at once, a client that still sends would get a reset and never see why.
    """

    def __init__(self, *, deployments: Deployments, metrics: Metrics, settings: Settings) -> None:
        self._deployments = deployments
        self._metrics = metrics
        self._max_body_bytes = settings.max_body_bytes
        self._rules = Rules(
            compress_min_bytes=settings.compress_min_bytes,
            server_timing=settings.server_timing,
            retiring=lambda: deployments.retiring,
        )

    def begin(self, address: Address, exchange: Exchange) -> bool:
        """Has a request answered that needs nothing to be waited for but its body and its batch; else returns False.

        That is so for most: there is an engine, and the body has a length and is not compressed.
        """
        started_s = time.perf_counter()
        scope = exchange.scope
        deployment = self._deployments.get(address.model, address.version)
        if deployment is None or scope["method"] != "POST" or self._deployments.retiring:
            return False
        try:
            headers = BodyHeaders.of(scope["headers"], self._max_body_bytes)
        except ServiceError:
            return False
        if not headers.length or headers.coding is not None:
            return False
        body = exchange.whole_at_hand()
        if body is None and exchange.received:
            return False
        call = Call(exchange, deployment, self._rules, request_ids.of(scope), started_s)
        if body is not None:
            call.begin(headers, body)
            return True
        try:
            exchange.gather(headers.length, functools.partial(self._go_on, call, address, headers))
        except Exception as error:  # noqa: BLE001 - no memory for it, say: every request gets an answer
            call.failed(error)
        return True

    def _go_on(self, call: Call, address: Address, headers: BodyHeaders, body: Buffer | None) -> bool:
        """Has a call begin whose body came after it; False where its version went out of memory meanwhile."""
        if body is None:
            call.failed(DepartedError())
            return True
        # Again: the body may have taken long enough for another version to take over.
        deployment = self._deployments.get(address.model, address.version)
        if deployment is None:
            return False
        call.deployment = deployment
        call.begin(headers, body)
        return True

    async def __call__(self, address: Address, scope: Message, receive: Receive, send: Send) -> None:
        """Answers any request, whatever it has to wait for; whatever goes wrong becomes its error body."""
        started_s, request_id = time.perf_counter(), request_ids.of(scope)
        if scope["method"] != "POST":
            await self._turn_away(send, _wrong_method(scope["method"]), request_id)
            return
        try:
            self._deployments.admit()
            # Who is unknown or unable is told so before the body is read.
            deployment = await self._deployments.obtain(address.model, address.version)
        except Exception as error:  # noqa: BLE001 - the last handler: every request gets an answer
            answer = failure(error, address.model, address.version, request_id)
            await self._turn_away(send, answer, request_id)
            return
        client = AwaitedAnswer(departure_of(receive))
        call = Call(client, deployment, self._rules, request_id, started_s, scope.get(TIMELINE))
        await self._read(call, address, scope, receive)
        given = await client.given
        if given is not None:
            await _send(send, given)

    async def _read(self, call: Call, address: Address, scope: Message, receive: Receive) -> None:
        """Reads the body of a request and has the call begin with it."""
        try:
            headers = BodyHeaders.of(scope["headers"], self._max_body_bytes)
            body = await read_body(headers, receive, self._max_body_bytes)
            # Again: reading may have taken long enough for another version to take over.
            call.deployment = await self._deployments.obtain(address.model, address.version)
        except Exception as error:  # noqa: BLE001 - the last handler: every request gets an answer
            call.failed(error)
        else:
            call.begin(headers, body)

    async def _turn_away(self, send: Send, answer: Answer, request_id: bytes) -> None:
        """Sends the answer to a request that reached no version."""
        self._metrics.unrouted(Outcome.of_status(answer.status))
        await _send(send, finished(answer, self._rules, request_id))


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


def _wrong_method(method: str) -> Answer:
    body = error_body(f"inference does not take {method}; send POST.", "request.method_not_allowed")
    return Answer(status=405, pieces=[body], headers=(JSON_TYPE, (b"allow", b"POST")))


async def _send(send: Send, answer: Answer) -> None:
    # Each message is a system call of its own.
    *pieces, last = answer.pieces if answer.size > JOINED_BYTES else [b"".join(answer.pieces)]
    length = (b"content-length", str(sum(map(len, pieces)) + len(last)).encode())
    await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": last})
