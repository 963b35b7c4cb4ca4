"""What HTTP costs where the model costs much: `python -m loadtests.images`.

A network of ResNet-50's shape in 8 bits gets images of 602 KB as binary tensors over 16 connections, and the same
engine runs in this process in a loop at its best batch size. Both take turns in rounds. The bar is on images for
each second of processor time, where the client has no part: the server's own time against the loop's. Images per
second by the clock stand beside it. Takes about two minutes, and the first time some minutes more for the build,
which is kept in `.octet-bench`. Needs wrk.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from engines.model.tensors import Array
from engines.options import Precision
from engines.runtimes.base import Engine
from examples.demo import free_port
from examples.running import Running, service
from loadtests.peers.environment import ROOT
from loadtests.resnet50 import IMAGE_SHAPE, write_resnet50
from loadtests.serving import batch_counts, build, cpu_seconds, engine_of, loop, server_of
from loadtests.wrk import post
from service.catalog.catalog import Catalog
from service.settings import Settings
from service.storage.stores import open_store

HOME = ROOT / ".octet-bench" / "images"
CONNECTIONS = 16
LEAST_SHARE = 0.9
"""Least images per processor-second against the engine alone."""
_BATCHES = (1, 2, 4, 8, 16, 32)
_SAMPLES = 48
# Random weights promise nothing; what is compared here is time.
_OPTIONS: dict[str, Any] = {
    "effort": "fast",
    "on_miss": "publish",
    "contract": {"metric": "sqnr_db", "min": 1},
}


@dataclass(frozen=True, kw_only=True)
class Round:
    """The server and the loop, one after the other."""

    served_per_s: float
    served_cpu_ms: float
    looped_per_s: float
    looped_cpu_ms: float

    @property
    def share(self) -> float:
        """Images per processor-second of the server against those of the loop."""
        return self.looped_cpu_ms / self.served_cpu_ms


def main() -> int:
    """Runs the benchmark; returns 1 where the bar was missed."""
    options = arguments().parse_args()
    samples = np.random.default_rng(5).standard_normal((_SAMPLES, *IMAGE_SHAPE)).astype(np.float32)
    with service(HOME, port=free_port()) as octet:
        ensure_built(octet, samples)
        with loaded() as engine:
            best = best_rows(engine, samples)
            rounds, rows = take_turns(octet, engine, best, samples, options)
    console = Console(width=100)
    console.print(table(rounds, rows, best))
    share = statistics.median(one.share for one in rounds)
    passed = share >= LEAST_SHARE
    console.print(
        f"{'pass' if passed else 'MISS'}  images per processor-second against the loop, "
        f"at least {LEAST_SHARE}: {share:.2f}"
    )
    return 0 if passed else 1


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.images", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8, help="how long each side runs in a round")
    return parser


def ensure_built(octet: Running, samples: Array) -> None:
    """Builds the network, unless an earlier run has."""
    ready = f"{octet.address}/v2/models/{Precision.INT8}/ready"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = httpx.get(ready)
        if answer.status_code == httpx.codes.OK:
            return
        if answer.status_code == httpx.codes.NOT_FOUND:
            break
        time.sleep(0.2)
    model, rows = HOME / "resnet50.onnx", HOME / "images.npz"
    write_resnet50(model)
    np.savez(rows, image=samples)
    build(octet, Precision.INT8, model, rows, **_OPTIONS)


def loaded() -> Engine:
    """The engine as the server has it, in this process."""
    settings = Settings(home=HOME)
    catalog = Catalog(settings.catalog_url)
    try:
        return engine_of(catalog.versions()[0], open_store(settings), settings)
    finally:
        catalog.close()


def best_rows(engine: Engine, samples: Array) -> int:
    """The batch size with the most images per processor-second."""
    return min(_BATCHES, key=lambda rows: loop(engine, rows, {"image": samples}).cpu_us)


def take_turns(
    octet: Running, engine: Engine, best: int, samples: Array, options: argparse.Namespace
) -> tuple[list[Round], float]:
    """The rounds, and the rows of the server's batches on average."""
    body, headers = request(samples[0])
    url = f"{octet.address}/v2/models/{Precision.INT8}/infer"
    server = server_of(octet.process.pid)
    post(url, body, connections=CONNECTIONS, seconds=2, headers=headers)
    before, rounds = batch_counts(octet, Precision.INT8), []
    for _ in range(options.rounds):
        cpu_s = cpu_seconds(server)
        load = post(url, body, connections=CONNECTIONS, seconds=options.seconds, headers=headers)
        cpu_ms = (cpu_seconds(server) - cpu_s) / load.requests * 1e3
        alone = loop(engine, best, {"image": samples}, seconds=options.seconds)
        rounds.append(
            Round(
                served_per_s=load.per_s,
                served_cpu_ms=cpu_ms,
                looped_per_s=alone.rows_per_s,
                looped_cpu_ms=alone.cpu_us / 1e3,
            )
        )
    rows, batches = (
        after - since for after, since in zip(batch_counts(octet, Precision.INT8), before, strict=True)
    )
    return rounds, rows / batches


def request(image: Array) -> tuple[bytes, dict[str, str]]:
    """One image as a binary tensor, the answer as one too: body and headers."""
    tensor = {
        "name": "image",
        "shape": [1, *IMAGE_SHAPE],
        "datatype": "FP32",
        "parameters": {"binary_data_size": image.nbytes},
    }
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return text + image.tobytes(), headers


def table(rounds: Sequence[Round], rows: float, best: int) -> Table:
    """One row a round."""
    shown = Table(
        title=f"602 KB images over {CONNECTIONS} connections ({rows:.1f} rows a batch) "
        f"and the engine in a loop ({best} rows)",
        box=box.SIMPLE,
    )
    for column in (
        "served\nimages/s",
        "in a loop\nimages/s",
        "server\ncpu ms",
        "loop\ncpu ms",
        "loop cpu/\nserver cpu",
    ):
        shown.add_column(column, justify="right")
    for one in rounds:
        shown.add_row(
            f"{one.served_per_s:.0f}",
            f"{one.looped_per_s:.0f}",
            f"{one.served_cpu_ms:.2f}",
            f"{one.looped_cpu_ms:.2f}",
            f"{one.share:.2f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
