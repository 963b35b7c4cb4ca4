"""What a request leaves at a collector of traces, read with OpenTelemetry's exporter for tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from service.monitoring.observer import Observer
from service.monitoring.spans import SpanWriter
from tests.unit.service.echo_engine import POISON
from tests.unit.service.live_server import LiveServer, echo_body, request, serving, until

INFER = "/v2/models/echo/infer"
ROUTE = "POST /v2/models/{name}/infer"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced:
    """A server and the spans that it has written."""

    def __init__(self, server: LiveServer, exporter: InMemorySpanExporter) -> None:
        self.server = server
        self._exporter = exporter

    async def spans(self, name: str, count: int) -> list[ReadableSpan]:
        """The spans of a name, once there are so many: they end a little after their answers are there."""

        def found() -> list[ReadableSpan]:
            return [span for span in self._exporter.get_finished_spans() if span.name == name]

        await until(lambda: len(found()) >= count)
        assert len(found()) == count
        return found()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


@contextlib.asynccontextmanager
async def traced(
    home: Path, *, sampler: Sampler | None = None, max_batch_rows: int = 8
) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with serving(home, max_batch_rows=max_batch_rows) as server:
        server.server.config.loaded_app.observer = Observer(
            access_log=False, timelines=True, spans=SpanWriter(provider)
        )
        yield Traced(server, exporter)
    provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context(span: ReadableSpan) -> Any:
    return span.get_span_context()


async def test_a_request_is_a_span_with_queue_and_compute_below_it(tmp_path: Path) -> None:
    async with traced(tmp_path) as inside:
        reply = await inside.server.ask("POST", INFER, echo_body(1, 2), {"X-Request-ID": "mine"})
        assert reply.status == 200
        (whole,) = await inside.spans(ROUTE, 1)
        (queue,) = await inside.spans("queue", 1)
        (compute,) = await inside.spans("compute", 1)
        assert whole.kind is SpanKind.SERVER
        assert attributes(whole) == {
            "http.request.method": "POST",
            "http.route": "/v2/models/{name}/infer",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "url.path": INFER,
            "octet.request_id": "mine",
            "octet.model": "echo",
            "octet.version": "1",
            "octet.rows": 2,
        }
        assert whole.status.status_code is StatusCode.UNSET
        for part in (queue, compute):
            assert part.parent == context(whole)
        assert attributes(compute) == {"octet.batch.rows": 2, "octet.batch.requests": 1}
        times = [
            time or 0
            for part in (queue, compute)
            for time in (whole.start_time, part.start_time, part.end_time, whole.end_time)
        ]
        for order in (times[:4], times[4:]):
            assert order == pytest.approx(sorted(order), abs=1_000_000)
        # The engine begins where the wait ends.
        assert times[2] == pytest.approx(times[5], abs=1_000_000)


async def test_a_client_s_trace_goes_on(tmp_path: Path) -> None:
    async with traced(tmp_path) as inside:
        await inside.server.ask("POST", INFER, echo_body(1), TRACEPARENT)
        (whole,) = await inside.spans(ROUTE, 1)
        assert whole.parent is not None
        assert whole.parent.is_remote
        assert f"{whole.parent.span_id:016x}" == PARENT
        (compute,) = await inside.spans("compute", 1)
        assert {f"{context(span).trace_id:032x}" for span in (whole, compute)} == {TRACE}


async def test_a_batch_links_to_all_its_requests(tmp_path: Path) -> None:
    async with traced(tmp_path) as inside:
        server = inside.server
        batcher = server.context.deployments.find("echo").batcher
        server.engine.gate.clear()
        busy = asyncio.create_task(server.infer(1))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        waiting = [asyncio.create_task(server.infer(value)) for value in (2, 3, 4)]
        await until(lambda: batcher.queue_rows == 3)
        server.engine.gate.set()
        await asyncio.gather(busy, *waiting)
        wholes = await inside.spans(ROUTE, 4)
        shared = [
            span for span in await inside.spans("compute", 4) if attributes(span)["octet.batch.rows"] == 3
        ]
        assert [attributes(span)["octet.batch.requests"] for span in shared] == [3, 3, 3]
        first, *others = sorted(shared, key=lambda span: -len(span.links))
        parents = sorted(span.parent.span_id for span in shared if span.parent)
        assert sorted(link.context.span_id for link in first.links) == parents
        assert set(parents) < {context(whole).span_id for whole in wholes}
        for other in others:
            assert [link.context for link in other.links] == [context(first)]


async def test_a_request_larger_than_a_batch_has_a_span_for_each(tmp_path: Path) -> None:
    async with traced(tmp_path, max_batch_rows=2) as inside:
        await inside.server.infer(1, 2, 3, 4, 5)
        runs = await inside.spans("compute", 3)
        assert sorted(attributes(run)["octet.batch.rows"] for run in runs) == [1, 2, 2]
        await inside.spans("queue", 1)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "name"),
    [
        ("POST", INFER, b"{", 400, ROUTE),
        ("POST", INFER, echo_body(POISON), 500, ROUTE),
        (
            "POST",
            "/v2/models/echo/versions/9/infer",
            b"",
            404,
            "POST /v2/models/{name}/versions/{version}/infer",
        ),
        ("GET", "/v1/models/nobody", b"", 404, "GET /v1/models/{name}"),
        ("GET", "/nothing", b"", 404, "GET"),
    ],
)
async def test_failures_say_what_they_are(
    tmp_path: Path, method: str, path: str, body: bytes, status: int, name: str
) -> None:
    async with traced(tmp_path) as inside:
        assert (await inside.server.ask(method, path, body)).status == status
        (whole,) = await inside.spans(name, 1)
        assert attributes(whole)["http.response.status_code"] == status
        assert attributes(whole)["error.type"] == str(status)
        assert whole.status.status_code is (StatusCode.ERROR if status >= 500 else StatusCode.UNSET)


async def test_a_client_that_leaves_is_said_to_have_left(tmp_path: Path) -> None:
    async with traced(tmp_path) as inside:
        _, writer = await inside.server.connect()
        writer.write(request("POST", INFER, echo_body(2))[:-5])
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        (whole,) = await inside.spans(ROUTE, 1)
        assert attributes(whole)["error.type"] == "cancelled"
        assert "http.response.status_code" not in attributes(whole)


async def test_probes_leave_no_spans(tmp_path: Path) -> None:
    async with traced(tmp_path) as inside:
        for path in ("/v2/health/ready", "/v2/health/live", "/metrics", "/v2"):
            await inside.server.ask("GET", path)
        await inside.spans("GET /v2", 1)
        assert inside.names == ["GET /v2"]


async def test_what_is_not_sampled_is_not_written(tmp_path: Path) -> None:
    async with traced(tmp_path, sampler=ParentBased(root=ALWAYS_OFF)) as inside:
        await inside.server.infer(1)
        await inside.server.ask("POST", INFER, echo_body(1), TRACEPARENT)
        await inside.spans("compute", 1)
        assert sorted(inside.names) == sorted(["queue", "compute", ROUTE])
