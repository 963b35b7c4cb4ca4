"""The report of a load as one HTML page that needs nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.reports.page.markup import Markup, element, join, table, verbatim
from engines.reports.page.style import STYLE
from loadtests import line_chart
from loadtests.line_chart import Axis, Line, Point
from loadtests.line_chart import line_chart as chart
from loadtests.users.results import Step

# From here on the load took so much of its processor that the server was not the limit.
CLIENT_BOUND = 0.9

# Lines need more room than the bars that the sheet is made for.
_WIDER = ".charts { grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); }"
_COLOURS = {"json": "one", "binary": "two"}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What was done, and what came of it."""

    url: str
    model: str
    # Rows of each request.
    rows: int
    step_s: float
    # When, as people write it.
    date: str
    steps: tuple[Step, ...]

    @property
    def client_bound(self) -> list[Step]:
        """Steps in which the load itself was the limit."""
        return [step for step in self.steps if step.client_share >= CLIENT_BOUND]


HEAD = ("requests", "#users", "#requests/s", "#rows/s", "#p50 ms", "#p90 ms", "#p99 ms", "#failed", "#batch rows",
        "#queue ms", "#compute ms")  # fmt: skip
"""Columns of the table, on the page and in the terminal; `#` is before those of numbers."""


def cells(step: Step) -> list[str]:
    """One row of the table."""
    return [
        step.form,
        f"{step.users}",
        f"{step.requests_per_s:,.0f}",
        f"{step.rows_per_s:,.0f}",
        *(_figure(value) for value in (step.p50_ms, step.p90_ms, step.p99_ms)),
        f"{step.failures:,}",
        *(_figure(value) for value in (step.batch_rows, step.queue_ms, step.compute_ms)),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def notes(load: Load) -> list[str]:
    """What a reader must know to read the figures right."""
    found = [
        f"{step.failures:,} requests of {step.form} with {step.users} users failed, first with: {step.first_failure}"
        for step in load.steps
        if step.failures
    ]
    if load.client_bound:
        named = ", ".join(f"{step.form} with {step.users}" for step in load.client_bound)
        found.append(
            f"The load itself took a whole processor in these steps: {named} users. The server can do more than "
            "they show, and their latencies are partly the client's."
        )
    if all(step.batch_rows is None for step in load.steps):
        found.append("The server showed no metrics of the model, so nothing is said of its batches.")
    return found


def render(load: Load) -> str:
    """The page."""
    title = f"Load on {load.model}"
    best = max(load.steps, key=lambda step: step.rows_per_s)
    facts = {
        "most rows/s": f"{best.rows_per_s:,.0f}",
        "reached with": f"{best.users} users, {best.form}",
        "p99 there": f"{_figure(best.p99_ms)} ms",
        "failed requests": f"{sum(step.failures for step in load.steps):,}",
    }
    body = element(
        "main",
        element("h1", title),
        element(
            "p",
            f"{load.url}, {load.date}. Rows in a request: {load.rows}. Each user asks again once it is answered; "
            f"a step is measured for {load.step_s:g} s. On one machine, client and server share its processors.",
            class_="soft",
        ),
        *(element("p", note, class_="warning") for note in notes(load)),
        element(
            "section",
            element(
                "dl",
                *(element("div", element("dt", name), element("dd", value)) for name, value in facts.items()),
                class_="facts",
            ),
        ),
        element("section", element("h2", "Against users"), _figures(_against_users(load.steps))),
        element("section", element("h2", "Second by second"), _figures(_over_time(load.steps))),
        element("section", table("Every step", HEAD, [cells(step) for step in load.steps])),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", verbatim(STYLE + line_chart.STYLE + _WIDER)),
    )
    page = element("html", head, element("body", body), lang="en")
    return join((verbatim("<!DOCTYPE html>\n"), page, verbatim("\n")))


def _figures(charts: Sequence[tuple[str, Markup]]) -> Markup:
    drawn = (element("figure", picture, element("figcaption", caption)) for caption, picture in charts)
    return element("div", *drawn, class_="charts")


def _against_users(steps: Sequence[Step]) -> list[tuple[str, Markup]]:
    """What the users saw, and what the server says of itself where it says anything."""
    users = Axis(title="users", logarithmic=True, ticks=tuple(sorted({float(step.users) for step in steps})))
    charts = [
        (
            "Latency: p50 dotted, p90 dashed, p99 solid.",
            [
                *_lines(steps, "dotted", lambda step: step.p50_ms, "ms p50"),
                *_lines(steps, "dashed", lambda step: step.p90_ms, "ms p90"),
                *_lines(steps, "", lambda step: step.p99_ms, "ms p99"),
            ],
            Axis(title="ms", logarithmic=True),
        ),
        (
            "Throughput.",
            _lines(steps, "", lambda step: step.rows_per_s, "rows/s"),
            Axis(title="rows/s"),
        ),
        (
            "Rows that the server put into a batch, by its own metrics.",
            _lines(steps, "", lambda step: step.batch_rows, "rows a batch"),
            Axis(title="rows a batch"),
        ),
        (
            "Mean wait (dashed) and time in the engine (solid), by the server's own metrics.",
            [
                *_lines(steps, "dashed", lambda step: step.queue_ms, "ms of wait"),
                *_lines(steps, "", lambda step: step.compute_ms, "ms in the engine"),
            ],
            Axis(title="ms"),
        ),
    ]
    return [
        (f"{caption} Blue: JSON, orange: binary.", chart(caption, lines, x=users, y=y))
        for caption, lines, y in charts
        if any(line.points for line in lines)
    ]


def _lines(steps: Sequence[Step], look: str, value: Callable[[Step], float | None], what: str) -> list[Line]:
    """A line for each form of requests."""
    return [
        Line(
            look=f"{_COLOURS[form]} {look}".strip(),
            points=tuple(
                Point(x=step.users, y=seen, told=f"{form}, {step.users} users: {seen:,.2f} {what}")
                for step in steps
                if step.form == form and (seen := value(step)) is not None
            ),
        )
        for form in dict.fromkeys(step.form for step in steps)
    ]


def _over_time(steps: Sequence[Step]) -> list[tuple[str, Markup]]:
    """All steps one after the other."""
    throughput, latency, second = [], [], 0
    for step in steps:
        rates, tails = [], []
        for seen in step.seconds:
            second += 1
            where = f"{step.form}, {step.users} users, second {second}"
            rates.append(Point(x=second, y=seen.requests, told=f"{where}: {seen.requests:,} requests"))
            if seen.p99_ms is not None:
                tails.append(Point(x=second, y=seen.p99_ms, told=f"{where}: {seen.p99_ms:.2f} ms"))
        look = _COLOURS[step.form]
        throughput.append(Line(look=look, points=tuple(rates)))
        latency.append(Line(look=look, points=tuple(tails)))
    x = Axis(title="seconds under load")
    return [
        (
            "Requests in each second; a line is a step.",
            chart("Throughput over time", throughput, x=x, y=Axis(title="requests/s")),
        ),
        (
            "p99 of the requests answered in each second.",
            chart("p99 over time", latency, x=x, y=Axis(title="ms", logarithmic=True)),
        ),
    ]
