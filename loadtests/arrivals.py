"""Open-loop Poisson arrivals at shares of the capacity: `python -m loadtests.arrivals`, about two minutes.

Builds a model in a service of its own, measures how many requests a second it answers under a closed loop, then
sends independent requests at 20, 50, 80, 95 and 120% of that, counted from when each was due. Above the capacity the
queue must refuse what it cannot answer in time: accepted requests keep a bounded p99, and no request stays without an
answer. Writes the curve to .octet-bench/arrivals.html.
"""

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from engines.options import Batching, Effort, Precision
from engines.reports.page.markup import element, join, verbatim
from engines.reports.page.markup import table as html_table
from engines.reports.page.style import STYLE
from examples.demo import free_port
from examples.running import Running, service
from loadtests import line_chart
from loadtests.http_load import run_load
from loadtests.line_chart import Axis, Line, Point
from loadtests.open_load import LOST, poisson_arrivals, run_open
from loadtests.serving import DIGITS, batch_counts, build, infer_request

SHARES = (0.2, 0.5, 0.8, 0.95, 1.2)
MODELS = Path(__file__).parent / "models"
PICTURE = Path(__file__).parent.parent / ".octet-bench" / "arrivals.html"
# Four full batches: the engine is never idle, and nobody waits long.
_CONNECTIONS = 16
# How long a request may take: the queue is bounded by it.
_TIMEOUT_MS = 1000
_CAPACITY_S = 6.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """What came of one rate."""

    # Of the capacity.
    share: float
    sent_per_s: float
    answered_per_s: float
    # Of the requests that were answered with outputs, from when each was due.
    p50_ms: float
    p99_ms: float
    batch_rows: float
    # Of all requests.
    refused: float
    # Requests that were answered with anything but 200 and 429, by status.
    odd: dict[int, int]
    lost: int
    # How late the generator was.
    lag_p99_ms: float


def main() -> int:
    """Runs the benchmark; returns the exit status: 1 where a request was lost."""
    options = arguments().parse_args()
    samples = dict(np.load(options.samples))
    batching = Batching(timeout_ms=_TIMEOUT_MS)
    with (
        tempfile.TemporaryDirectory(prefix="octet-loadtest-") as folder,
        service(Path(folder), port=free_port()) as octet,
    ):
        build(
            octet,
            Precision.INT8,
            options.model,
            options.samples,
            batching=batching,
            effort=Effort.FAST,
        )
        requests = [
            infer_request(Precision.INT8, samples, range(index, index + options.rows)) for index in range(200)
        ]
        per_s = capacity(octet, requests)
        steps = [
            measure(octet, requests, share=share, per_s=share * per_s, seconds=options.seconds)
            for share in options.shares
        ]
    title = f"{options.model.name} in int8, {options.rows} rows a request, {per_s:,.0f} requests/s at most"
    Console(width=120).print(table(title, steps))
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(title, steps), encoding="utf-8")
    print(f"the curve is in {PICTURE}")
    return 1 if any(step.lost for step in steps) else 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.arrivals", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODELS / "vit.onnx", help="an FP32 ONNX file")
    parser.add_argument("--samples", type=Path, default=DIGITS / "samples.npz", help="its samples, an npz")
    parser.add_argument("--rows", type=int, default=8, help="rows of each request")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each rate lasts")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, metavar="SHARE", help="of the capacity"
    )
    return parser


def capacity(octet: Running, requests: list[bytes]) -> float:
    """Requests a second that are answered when there are always some waiting."""

    def rate(count: int) -> float:
        batch = [requests[index % len(requests)] for index in range(count)]
        result = uvloop.run(run_load("127.0.0.1", port_of(octet), batch, connections=_CONNECTIONS))
        if set(result.statuses) != {200}:
            raise SystemExit(f"answers were not all 200: {sorted(set(result.statuses))}")
        return count / result.wall_s

    warm = rate(8 * _CONNECTIONS)
    return rate(max(8 * _CONNECTIONS, int(warm * _CAPACITY_S)))


def measure(octet: Running, requests: list[bytes], *, share: float, per_s: float, seconds: float) -> Step:
    """One rate, until everything sent is answered."""
    due_s = poisson_arrivals(per_s, seconds, seed=round(share * 100))
    sent = [requests[index % len(requests)] for index in range(len(due_s))]
    rows_before, batches_before = batch_counts(octet, Precision.INT8)
    result = uvloop.run(run_open("127.0.0.1", port_of(octet), sent, due_s, patience_s=10 * _TIMEOUT_MS / 1e3))
    rows_after, batches_after = batch_counts(octet, Precision.INT8)
    latencies_ms = np.asarray(result.latencies_s) * 1e3
    statuses = np.asarray(result.statuses)
    answered = latencies_ms[statuses == 200]
    return Step(
        share=share,
        sent_per_s=len(sent) / seconds,
        answered_per_s=len(answered) / seconds,
        p50_ms=float(np.percentile(answered, 50)),
        p99_ms=float(np.percentile(answered, 99)),
        batch_rows=(rows_after - rows_before) / max(1.0, batches_after - batches_before),
        refused=float((statuses == 429).mean()),
        odd={status: n for status, n in Counter(result.statuses).items() if status not in (200, 429, LOST)},
        lost=int((statuses == LOST).sum()),
        lag_p99_ms=float(np.percentile(np.asarray(result.lags_s) * 1e3, 99)),
    )


def port_of(octet: Running) -> int:
    """The port that a service listens on."""
    return int(octet.address.rsplit(":", 1)[1])


HEAD = ("of the capacity", "sent/s", "answered/s", "p50 ms", "p99 ms", "rows a batch", "429", "other", "lost",
        "sent late p99 ms")  # fmt: skip


def cells(step: Step) -> list[str]:
    """One row of the table."""
    return [
        f"{step.share:.0%}",
        f"{step.sent_per_s:,.0f}",
        f"{step.answered_per_s:,.0f}",
        f"{step.p50_ms:.1f}",
        f"{step.p99_ms:.1f}",
        f"{step.batch_rows:.1f}",
        f"{step.refused:.1%}",
        ", ".join(f"{n} x {status}" for status, n in sorted(step.odd.items())) or "0",
        str(step.lost),
        f"{step.lag_p99_ms:.1f}",
    ]


def table(title: str, steps: list[Step]) -> Table:
    """Every rate in a row."""
    shown = Table(title=title, box=box.SIMPLE)
    for column in HEAD:
        shown.add_column(column, justify="right")
    for step in steps:
        shown.add_row(*cells(step))
    shown.caption = (
        f"p50 and p99 of requests answered with outputs, from when each was due; timeout {_TIMEOUT_MS} ms"
    )
    return shown


def picture(title: str, steps: list[Step]) -> str:
    """Latency and refusals over the load, as a page of its own."""

    def line(look: str, name: str, values: list[float], unit: str) -> Line:
        points = [
            Point(x=100 * step.share, y=value, told=f"{name} at {step.share:.0%}: {value:.3g} {unit}")
            for step, value in zip(steps, values, strict=True)
        ]
        return Line(points=tuple(points), look=look)

    load = Axis(title="load, % of the capacity", ticks=tuple(100 * step.share for step in steps))
    latencies = line_chart.line_chart(
        "p50 and p99 (dashed) of accepted requests",
        [
            line("one", "p50", [step.p50_ms for step in steps], "ms"),
            line("one dashed", "p99", [step.p99_ms for step in steps], "ms"),
        ],
        x=load,
        y=Axis(title="ms", logarithmic=True),
    )
    refusals = line_chart.line_chart(
        "Requests refused with 429",
        [line("two", "refused", [100 * step.refused for step in steps], "%")],
        x=load,
        y=Axis(title="%"),
    )
    charts = element("div", latencies, refusals, class_="charts")
    body = element(
        "main", element("h1", "Poisson arrivals: " + title), charts, html_table("", HEAD, map(cells, steps))
    )
    style = element("style", verbatim(STYLE + line_chart.STYLE))
    head = join([element("meta", charset="utf-8"), element("title", "Poisson arrivals"), style])
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


if __name__ == "__main__":
    sys.exit(main())
