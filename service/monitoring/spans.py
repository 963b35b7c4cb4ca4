"""Spans of OpenTelemetry; needs the extra `tracing`, so only `service.monitoring.tracing` imports this.

A request is one span, from its head to its answer, with `queue` and `compute` below it. Requests share batches: of the
spans `compute` of one batch, the first written links to all requests in it, and the others link to that one. Phases of
builds are spans of the worker, in a trace that has the build's id.

Attributes of HTTP have the names of https://opentelemetry.io/docs/specs/semconv/http/http-spans/, our own begin with
`octet.`.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from starlette.types import Scope

from service.monitoring import request_ids
from service.monitoring.timeline import EngineRun, Timeline

_Headers = Iterable[tuple[bytes, bytes]]


class _HeaderGetter(Getter[_Headers]):
    """Reads the headers of ASGI."""

    def get(self, carrier: _Headers, key: str) -> list[str] | None:
        return [value.decode("latin-1") for name, value in carrier if name == key.lower().encode()] or None

    def keys(self, carrier: _Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER = _HeaderGetter()
# A small part of the time that a server has to end.
_LAST_SPANS_S = 3.0


def exporting(role: str) -> "SpanWriter":
    """A writer that sends spans where the standard variables say, from a thread of its own, by OTLP over HTTP."""
    named = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = os.environ.get("OTEL_SERVICE_NAME") or "octet"
    attributes = {"octet.role": role} if named else {"octet.role": role, SERVICE_NAME: name}
    # Not at exit, where it would wait for a collector that is not there: see `SpanWriter.close`.
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return SpanWriter(provider)


class SpanWriter:
    """Writes spans. Times are those of `time.perf_counter`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("octet")

    def begin(self, scope: Scope, started_s: float) -> "RequestSpan":
        """The span of a request, in the trace that its client began, if it did."""
        return RequestSpan(self._tracer, scope, started_s)

    @contextlib.contextmanager
    def phase(self, build_id: str, phase: str) -> Iterator[None]:
        """The span of a phase of a build, in the trace that has the build's id, whoever works on it."""
        trace_id = int(build_id, 16)
        build = SpanContext(
            trace_id, trace_id >> 64, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )
        below = trace.set_span_in_context(NonRecordingSpan(build), Context())
        concerned = {"octet.build": build_id, "octet.phase": phase}
        with self._tracer.start_as_current_span(f"build {phase}", below, attributes=concerned):
            yield

    def close(self) -> None:
        """Sends what is left, but does not wait long for a collector that is not there."""
        sending = threading.Thread(target=self._provider.shutdown, name="octet-last-spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_S)


class RequestSpan:
    """The span of one request, and those below it once it ends."""

    def __init__(self, tracer: Tracer, scope: Scope, started_s: float) -> None:
        self._tracer = tracer
        self._method: str = scope["method"]
        self._span = tracer.start_span(
            self._method,
            context=propagate.extract(scope["headers"], Context(), _GETTER),
            kind=SpanKind.SERVER,
            start_time=_unix_ns(started_s),
            attributes={
                "http.request.method": self._method,
                "url.scheme": scope.get("scheme", "http"),
                "url.path": scope["path"],
                "octet.request_id": request_ids.current().decode(),
            },
        )

    @property
    def context(self) -> SpanContext | None:
        """What others link to; None where nobody will see this span."""
        return self._span.get_span_context() if self._span.is_recording() else None

    def end(self, *, route: str | None, status: int | None, timeline: Timeline | None = None) -> None:
        """Writes it; `status` is None where the client left before its answer."""
        span = self._span
        if not span.is_recording():
            return
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 400:
            span.set_attribute("error.type", "cancelled" if status is None else str(status))
        if status is not None and status >= 500:
            # By the conventions a wrong request is no failure of the server.
            span.set_status(Status(StatusCode.ERROR))
        if timeline is not None and timeline.model:
            self._add_parts(timeline)
        span.end()

    def _add_parts(self, timeline: Timeline) -> None:
        """What an inference request did."""
        self._span.set_attributes(
            {"octet.model": timeline.model, "octet.version": timeline.version, "octet.rows": timeline.rows}
        )
        if not timeline.queued_s:
            return
        below = trace.set_span_in_context(self._span, Context())
        started_s = min((run.started_s for run in timeline.runs), default=time.perf_counter())
        queue = self._tracer.start_span("queue", below, start_time=_unix_ns(timeline.queued_s))
        queue.end(_unix_ns(started_s))
        for run in timeline.runs:
            compute = self._tracer.start_span(
                "compute",
                below,
                links=_links(run),
                start_time=_unix_ns(run.started_s),
                attributes={"octet.batch.rows": run.rows, "octet.batch.requests": run.requests},
            )
            run.span = run.span or compute.get_span_context()
            compute.end(_unix_ns(run.ended_s))


def _links(run: EngineRun) -> list[Link]:
    """From the first span of a batch to all its requests; from the others to that one."""
    if run.span is not None:
        return [Link(run.span)]
    return [Link(timeline.span) for timeline in run.watched if timeline.span is not None]


def _unix_ns(at_s: float) -> int:
    return time.time_ns() - int((time.perf_counter() - at_s) * 1e9)
