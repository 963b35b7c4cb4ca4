"""Whether engines should run one after the other on all threads, or side by side: `python -m loadtests.lanes`.

Small and large networks, one and two of them under load at a time, through octet's own batcher and device: one lane
with all threads, as many lanes as threads, and what happens where nobody arbitrates. About two minutes; the ways take
turns. This is what the default of the setting `lanes` rests on.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from engines.model.tensors import Array
from engines.options import Batching
from engines.runtimes.openvino import OpenVINORuntime
from loadtests.awaiting import submit
from service.batching.batcher import Batcher
from service.batching.device import Device
from service.monitoring.metrics import Metrics
from service.processes.processors import processor_budget
from service.serving.warm_up import warm_up

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "examples" / "digits" / "samples.npz"
MODELS = {
    "residual": ROOT / "examples" / "digits" / "digits.onnx",
    "ViT": ROOT / "loadtests" / "models" / "vit.onnx",
    "depthwise": ROOT / "loadtests" / "models" / "depthwise.onnx",
}
LOADS = (("residual",), ("ViT",), ("residual", "ViT"), ("ViT", "depthwise"))
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Way:
    """How engines share the processors."""

    name: str
    # Batches that one engine runs at the same time.
    streams: int
    # The devices of the models under load, one for each.
    devices: Callable[[int], Sequence[Device]]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One load in one way."""

    rows_per_s: float
    p99_ms: float


def ways(threads: int) -> tuple[Way, ...]:
    """The ways to compare."""

    def shared(lanes: int) -> Callable[[int], Sequence[Device]]:
        return lambda models: [Device(lanes)] * models

    return (
        Way(name="1 lane, all threads", streams=1, devices=shared(1)),
        Way(name=f"{threads} lanes, 1 thread each", streams=threads, devices=shared(threads)),
        Way(
            name="each model all threads", streams=1, devices=lambda models: [Device() for _ in range(models)]
        ),
    )


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = arguments().parse_args()
    threads = processor_budget()
    shown = Table(title=f"{threads} threads, {options.rows} rows a request", box=box.SIMPLE)
    for column in ("under load", "way", "rows/s", "against 1 lane", "p99 ms"):
        shown.add_column(column, justify="right")
    for models in LOADS:
        found = asyncio.run(compare(models, threads, options))
        base = next(iter(found.values())).rows_per_s
        for way, one in found.items():
            cells = (f"{one.rows_per_s:,.0f}", f"{one.rows_per_s / base:.2f}", f"{one.p99_ms:.1f}")
            shown.add_row(" + ".join(models), way, *cells)
    Console(width=100).print(shown)
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.lanes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each round lasts")
    parser.add_argument("--rows", type=int, default=4, help="rows of each request")
    parser.add_argument("--clients", type=int, default=16, help="of each model")
    return parser


async def compare(models: Sequence[str], threads: int, options: argparse.Namespace) -> dict[str, Round]:
    """The median round of each way."""
    rounds: dict[str, list[Round]] = {}
    batchers = {way.name: batchers_of(way, models, threads) for way in ways(threads)}
    for _ in range(_ROUNDS):
        for name, group in batchers.items():
            rounds.setdefault(name, []).append(await load(group, options))
    for group in batchers.values():
        for batcher in group:
            await batcher.close()
    return {
        name: sorted(found, key=lambda one: one.rows_per_s)[len(found) // 2] for name, found in rounds.items()
    }


def batchers_of(way: Way, models: Sequence[str], threads: int) -> list[Batcher]:
    """A warm batcher for each model."""
    found = []
    for model, device in zip(models, way.devices(len(models)), strict=True):
        engine = OpenVINORuntime(streams=way.streams).compile(MODELS[model], threads=threads)
        limits = Batching(max_batch_rows=16)
        rules = warm_up(engine, limits, batchable=True)
        batcher = Batcher(engine, limits=limits, rules=rules, metrics=Metrics().of(model, "1"), device=device)
        batcher.start()
        found.append(batcher)
    return found


async def load(batchers: Sequence[Batcher], options: argparse.Namespace) -> Round:
    """Clients of every model that each ask again once they are answered."""
    with np.load(SAMPLES) as samples:
        feeds: dict[str, Array] = {name: samples[name][: options.rows] for name in samples.files}
    latencies_s: list[float] = []
    start_s = time.perf_counter()

    async def client(batcher: Batcher) -> None:
        while (sent_s := time.perf_counter()) - start_s < options.seconds:
            await submit(batcher, feeds)
            latencies_s.append(time.perf_counter() - sent_s)

    await asyncio.gather(*(client(batcher) for batcher in batchers for _ in range(options.clients)))
    taken_s = time.perf_counter() - start_s
    return Round(
        rows_per_s=len(latencies_s) * options.rows / taken_s,
        p99_ms=float(np.percentile(latencies_s, 99)) * 1e3,
    )


if __name__ == "__main__":
    sys.exit(main())
