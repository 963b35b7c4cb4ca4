"""What HTTP, the protocol and batching cost where the model costs nothing: `python -m loadtests.frontend`.

Puts octet as it is shipped beside a bare uvicorn echo and other servers with the same trivial model, 16 floats in
JSON, each with its own pinned versions in a virtual environment of its own (made on first use). wrk sends with
one thread; the servers take turns in rounds, and ratios are taken within a round. Takes about three minutes, and a
few more the first time. Needs wrk, and an otherwise quiet machine: the load generator shares its processors.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from engines.options import Precision
from examples.demo import free_port
from examples.running import service
from loadtests.fronts.model import FEATURES
from loadtests.fronts.octet_model import write_model, write_samples
from loadtests.fronts.running import ECHO, PEERS, FrontError, Side, running
from loadtests.serving import build, cpu_seconds, processes
from loadtests.wrk import Load, post

CONNECTIONS = 32
ECHO_SHARE = 0.45
"""Least throughput against the bare echo."""
PEER_FACTORS: Mapping[str, float] = {"mosec": 2.0, "pytriton": 4.0, "litserve": 12.0}
"""Least throughput against each peer.

mosec has a limit of 64 rows a batch, so that its batches wait for company for as long as they may. "mosec, full" stands
beside it without a bar: its limit is the number of connections, so that no batch ever waits.
"""
ALONE_MS = 0.25
"""Most that p50 may be above the echo's on one connection."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One server in one round."""

    load: Load
    # Processor time of the server and what it started, per request.
    cpu_us: float


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A promise, and what became of it."""

    text: str
    value: float
    passed: bool


Rounds = Mapping[str, Sequence[Seen]]
"""What was seen of each server, round by round."""


def main() -> int:
    """Runs the benchmark; returns 1 where a bar was missed."""
    options = arguments().parse_args()
    body = request_body()
    with tempfile.TemporaryDirectory(prefix="octet-frontend-") as folder, contextlib.ExitStack() as stack:
        octet = stack.enter_context(octet_side(Path(folder)))
        sides, absent = [octet], {}
        for front in (ECHO, *PEERS):
            try:
                sides.append(stack.enter_context(running(front, body, Path(folder) / f"{front.name}.log")))
            except FrontError as error:
                absent[front.name] = str(error)
        busy = take_turns(sides, body, CONNECTIONS, options)
        alone = take_turns(sides[:2], body, 1, options)
    console = Console(width=110)
    console.print(table(busy, alone, absent))
    bars = judged(busy, alone)
    for bar in bars:
        console.print(f"{'pass' if bar.passed else 'MISS'}  {bar.text}: {bar.value:.2f}")
    return 0 if all(bar.passed for bar in bars) else 1


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.frontend", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=int, default=3, help="how long each server is under load in a round"
    )
    return parser


def request_body() -> bytes:
    """One row, as the Open Inference Protocol has it; every server gets the same bytes."""
    row = [round(0.11 * (index + 1), 2) for index in range(FEATURES)]
    tensor = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": row}
    return json.dumps({"inputs": [tensor]}).encode()


@contextlib.contextmanager
def octet_side(folder: Path) -> Iterator[Side]:
    """Octet with its own settings, serving the trivial model in 8 bits."""
    model, samples = folder / "tiny.onnx", folder / "tiny.npz"
    write_model(model)
    write_samples(samples)
    with service(folder / "octet", port=free_port()) as octet:
        build(octet, Precision.INT8, model, samples)
        url = f"{octet.address}/v2/models/{Precision.INT8}/infer"
        yield Side(name="octet", url=url, process=octet.process.pid)


def take_turns(sides: Sequence[Side], body: bytes, connections: int, options: argparse.Namespace) -> Rounds:
    """Every server under load, round by round; what comes first changes with the round."""
    for side in sides:
        post(side.url, body, connections=connections, seconds=1)
    seen: dict[str, list[Seen]] = {side.name: [] for side in sides}
    for index in range(options.rounds):
        start = index % len(sides)
        for side in (*sides[start:], *sides[:start]):
            cpu_s = tree_cpu_seconds(side.process)
            load = post(side.url, body, connections=connections, seconds=options.seconds)
            cpu_us = (tree_cpu_seconds(side.process) - cpu_s) / load.requests * 1e6
            seen[side.name].append(Seen(load=load, cpu_us=cpu_us))
    return seen


def tree_cpu_seconds(root: int) -> float:
    """Processor time of a process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid, parent, _ in processes():
        children.setdefault(parent, []).append(pid)
    total, left = 0.0, [root]
    while left:
        pid = left.pop()
        left += children.get(pid, [])
        with contextlib.suppress(OSError):
            total += cpu_seconds(pid)
    return total


def judged(busy: Rounds, alone: Rounds) -> list[Bar]:
    """The bars, each on the median over the rounds."""
    bars = []
    for name, least in {"echo": ECHO_SHARE, **PEER_FACTORS}.items():
        if name in busy:
            ratio = median_ratio(busy, name)
            text = f"requests/s against {name}, at least {least:g}"
            bars.append(Bar(text=text, value=ratio, passed=ratio >= least))
    for name in ("mosec", "mosec, full"):
        if name in busy:
            share = median(busy["octet"], "p99_ms") / median(busy[name], "p99_ms")
            bars.append(Bar(text=f"p99 against that of {name}, at most 1", value=share, passed=share <= 1))
    if "echo" in alone:
        above_ms = statistics.median(
            ours.load.p50_ms - theirs.load.p50_ms
            for ours, theirs in zip(alone["octet"], alone["echo"], strict=True)
        )
        text = f"ms that p50 is above the echo's on one connection, at most {ALONE_MS:g}"
        bars.append(Bar(text=text, value=above_ms, passed=above_ms <= ALONE_MS))
    return bars


def median_ratio(rounds: Rounds, name: str) -> float:
    """Octet's throughput against a server's, the median of the rounds."""
    pairs = zip(rounds["octet"], rounds[name], strict=True)
    return statistics.median(ours.load.per_s / theirs.load.per_s for ours, theirs in pairs)


def median(seen: Sequence[Seen], figure: str) -> float:
    """The median over the rounds of a figure of their loads."""
    return float(statistics.median(getattr(one.load, figure) for one in seen))


def table(busy: Rounds, alone: Rounds, absent: Mapping[str, str]) -> Table:
    """One row a server."""
    shown = Table(title=f"16 floats in JSON, {CONNECTIONS} connections, then one", box=box.SIMPLE)
    shown.add_column("")
    columns = (
        "requests/s",
        "from - to",
        "octet/it",
        "p50 ms",
        "p99 ms",
        "cpu us",
        "one: requests/s",
        "one: p50 ms",
    )
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for name, seen in busy.items():
        rates = [one.load.per_s for one in seen]
        single = alone.get(name, ())
        shown.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} - {max(rates):,.0f}",
            f"{median_ratio(busy, name):.2f}",
            f"{median(seen, 'p50_ms'):.2f}",
            f"{median(seen, 'p99_ms'):.2f}",
            f"{statistics.median(one.cpu_us for one in seen):.0f}",
            f"{median(single, 'per_s'):,.0f}" if single else "",
            f"{median(single, 'p50_ms'):.3f}" if single else "",
        )
    for name, reason in absent.items():
        shown.add_row(name, f"not run: {reason[:60]}")
    shown.caption = "medians of the rounds; cpu us: processor time of the server a request, wrk not included"
    return shown


if __name__ == "__main__":
    sys.exit(main())
