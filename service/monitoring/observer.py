"""Watches requests from outside, where that is asked for: access log, spans, and the timelines that they need."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self

from starlette.types import Message, Receive, Scope, Send

from service.monitoring.timeline import TIMELINE, Timeline
from service.routes.inference import infer_address
from service.settings import Settings

if TYPE_CHECKING:
    # Imports OpenTelemetry, which need not be installed.
    from service.monitoring.spans import SpanWriter

logger = logging.getLogger(__name__)

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Answers a request."""

# Asked for every few seconds by machines: nobody looks for them among the traces.
_NOISE = ("/v2/health/", "/metrics")


class Observer:
    """Stands before a whole server."""

    def __init__(self, *, access_log: bool, timelines: bool, spans: "SpanWriter | None") -> None:
        self._access_log = access_log
        self._timelines = timelines
        self._spans = spans

    @classmethod
    def of(cls, settings: Settings, spans: "SpanWriter | None") -> Self | None:
        """What the settings ask for; None where that is nothing."""
        timelines = settings.server_timing or spans is not None
        if not (settings.access_log or timelines):
            return None
        return cls(access_log=settings.access_log, timelines=timelines, spans=spans)

    async def observe(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a request answered and notes what became of it."""
        started_s = time.perf_counter()
        sent = _Sent(send)
        timeline = scope[TIMELINE] = Timeline() if self._timelines else None
        span = None
        if self._spans is not None and timeline is not None and not scope["path"].startswith(_NOISE):
            span = self._spans.begin(scope, started_s)
            timeline.span = span.context
        try:
            await answer(scope, receive, sent)
        finally:
            if span is not None:
                span.end(route=_route(scope), status=sent.status, timeline=timeline)
            if self._access_log:
                _log(scope, sent, time.perf_counter() - started_s)


class _Sent:
    """Sends, and remembers what was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        # None until an answer has begun.
        self.status: int | None = None
        self.body_bytes = 0

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body_bytes += len(message.get("body", b""))


def _route(scope: Scope) -> str | None:
    """The address with placeholders; None where there is nothing at this one."""
    address = infer_address(scope["path"])
    if address is not None:
        return address.route
    # FastAPI leaves there what it found.
    route: str | None = getattr(scope.get("route"), "path", None)
    return route


def _log(scope: Scope, sent: _Sent, seconds: float) -> None:
    """Queries are left out: they may hold keys."""
    extra = {
        "method": scope["method"],
        "path": scope["path"],
        "status": sent.status,
        "duration_ms": round(seconds * 1e3, 3),
        "answer_bytes": sent.body_bytes,
    }
    logger.info("%s %s %s", scope["method"], scope["path"], sent.status or "left", extra=extra)
