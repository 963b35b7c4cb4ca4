"""What HTTP, batching and 8 bits cost and bring: `python -m loadtests.serving`.

Builds a model as INT8 and as FP32 in a service of its own, sends single-row requests over HTTP at several numbers
of connections, then stops the service and runs the same engines in this process in a loop, at the batch sizes
that the service formed. The load client shares the processors with the server, so the table compares processor
time per row too, in which the client has no part.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from engines import load_engine
from engines.model.tensors import Array
from engines.options import Batching, Precision
from engines.runtimes.base import Engine
from examples.demo import free_port
from examples.running import Running, service
from loadtests.http_load import LoadResult, run_load
from service.catalog.catalog import Catalog, Version
from service.protocol import datatype
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.stores import open_store

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
PRECISIONS = (Precision.FP32, Precision.INT8)
_BUILD_TIMEOUT_S = 600.0
# How long the engine runs in a loop at one batch size.
_LOOP_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Served:
    """One load on one version over HTTP."""

    precision: Precision
    connections: int
    rows_per_s: float
    batch_rows: float
    p50_ms: float
    p99_ms: float
    # Processor time of the server, user and system, per row.
    cpu_us: float


@dataclass(frozen=True, kw_only=True)
class Looped:
    """An engine called in a loop."""

    rows_per_s: float
    cpu_us: float


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = arguments().parse_args()
    with tempfile.TemporaryDirectory(prefix="octet-loadtest-") as folder:
        home, samples = Path(folder), dict(np.load(options.samples))
        with service(home, port=free_port()) as octet:
            for precision in PRECISIONS:
                build(octet, precision, options.model, options.samples)
            served = [
                measure(octet, precision, connections, samples, options.requests)
                for precision in PRECISIONS
                for connections in options.connections
            ]
        loops = in_process(home, served, samples)
    Console(width=100).print(table(served, loops))
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.serving", description=__doc__)
    parser.add_argument("--model", type=Path, default=DIGITS / "digits.onnx", help="an FP32 ONNX file")
    parser.add_argument("--samples", type=Path, default=DIGITS / "samples.npz", help="its samples, an npz")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64], metavar="N")
    parser.add_argument("--requests", type=int, default=2000, help="single-row requests of each load")
    return parser


def build(
    octet: Running,
    precision: Precision,
    model: Path,
    samples: Path,
    *,
    batching: Batching | None = None,
    **options: Any,
) -> None:
    """Uploads the model with these options and waits until it is served."""
    asked = {"precision": precision, "batching": (batching or Batching()).model_dump(), **options}
    with httpx.Client(base_url=octet.address, timeout=60.0) as client:
        with model.open("rb") as onnx, samples.open("rb") as rows:
            answer = client.post(
                f"/v1/models/{precision}/builds",
                files=[
                    ("model", (model.name, onnx)),
                    ("samples", (samples.name, rows)),
                    ("options", (None, orjson.dumps(asked), "application/json")),
                ],
            )
        answer.raise_for_status()
        deadline = time.monotonic() + _BUILD_TIMEOUT_S
        while client.get(f"/v2/models/{precision}/ready").status_code != httpx.codes.OK:
            state = client.get(f"/v1/builds/{answer.json()['id']}").json()
            if state["state"] == "failed" or time.monotonic() > deadline:
                raise SystemExit(f"the build of {precision} is {state['state']}: {state['error']}")
            time.sleep(0.1)


def measure(
    octet: Running, precision: Precision, connections: int, samples: dict[str, Array], count: int
) -> Served:
    """One load; an eighth of it is sent before the clock starts."""
    requests = [
        infer_request(precision, samples, [index])
        for index in range(count if connections > 1 else count // 4)
    ]
    port = int(octet.address.rsplit(":", 1)[1])

    def load(batch: list[bytes]) -> LoadResult:
        return uvloop.run(run_load("127.0.0.1", port, batch, connections=connections))

    load(requests[: len(requests) // 8])
    server = server_of(octet.process.pid)
    cpu_s, rows, batches = cpu_seconds(server), *batch_counts(octet, precision)
    result = load(requests)
    cpu_s, rows_after, batches_after = cpu_seconds(server) - cpu_s, *batch_counts(octet, precision)
    if set(result.statuses) != {200}:
        raise SystemExit(f"answers were not all 200: {sorted(set(result.statuses))}")
    latencies_ms = np.asarray(result.latencies_s) * 1e3
    return Served(
        precision=precision,
        connections=connections,
        rows_per_s=len(requests) / result.wall_s,
        batch_rows=(rows_after - rows) / (batches_after - batches),
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        cpu_us=cpu_s / len(requests) * 1e6,
    )


def infer_request(model: str, samples: dict[str, Array], numbers: Sequence[int]) -> bytes:
    """A whole HTTP request with the rows of these numbers, counted round and round, of every input."""
    inputs = []
    for name, rows in samples.items():
        own = rows[np.asarray(numbers) % len(rows)]
        data = own.ravel().tolist()
        inputs.append({"name": name, "shape": own.shape, "datatype": datatype(own.dtype), "data": data})
    body = orjson.dumps({"inputs": inputs})
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: octet\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def batch_counts(octet: Running, model: str) -> tuple[float, float]:
    """Rows and batches that the model's engine has run so far."""
    text = httpx.get(f"{octet.address}/metrics").text
    pattern = rf'^octet_batch_rows_%s{{model="{model}",version="1"}} (\S+)$'
    found = [re.search(pattern % suffix, text, re.MULTILINE) for suffix in ("sum", "count")]
    rows, batches = (float(match.group(1)) if match else 0.0 for match in found)
    return rows, batches


def in_process(
    home: Path, served: list[Served], samples: dict[str, Array]
) -> dict[tuple[Precision, int], Looped]:
    """The engines of the stopped service in a loop here, by precision and batch rows."""
    settings = Settings(home=home)
    catalog, store = Catalog(settings.catalog_url), open_store(settings)
    loops = {}
    for version in catalog.versions():
        precision = Precision(version.model)
        sizes = {round(one.batch_rows) for one in served if one.precision is precision}
        sizes.add(version.options.batching.max_batch_rows)
        with engine_of(version, store, settings) as engine:
            for rows in sorted(sizes):
                loops[precision, rows] = loop(engine, rows, samples)
    catalog.close()
    return loops


def engine_of(version: Version, store: BlobStore, settings: Settings) -> Engine:
    """The engine as the server loads it."""
    folder = settings.home / "loadtest" / version.build_id
    store.materialise(version.files, folder)
    loaded = load_engine(folder, version.options, threads=settings.threads, cache=settings.engine_cache)
    if loaded.refusal:
        raise SystemExit(f"the 8-bit engine is refused on this machine: {loaded.refusal}")
    return loaded.engine


def loop(engine: Engine, rows: int, samples: Mapping[str, Array], *, seconds: float = _LOOP_S) -> Looped:
    """Runs one batch of `rows` rows again and again: what the engine gives where nothing is in front of it."""
    slot = engine.slot({spec.name: (rows, *samples[spec.name].shape[1:]) for spec in engine.inputs})
    for name, buffer in slot.inputs.items():
        buffer[...] = samples[name][np.arange(rows) % len(samples[name])]
    slot.run()
    started_s, cpu_s, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started_s < seconds:
        slot.run()
        done += rows
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    engine.release(slot)
    return Looped(rows_per_s=done / wall_s, cpu_us=cpu_s / done * 1e6)


def table(served: list[Served], loops: dict[tuple[Precision, int], Looped]) -> Table:
    """Served beside in-process at the same batch size, and INT8 beside FP32 at the same load."""
    shown = Table(title="single-row requests over HTTP, and the engine in a loop", box=box.SIMPLE)
    columns = (
        "", "conn-\nections", "rows a\nbatch", "rows/s", "p50\nms", "p99\nms", "in a loop\nrows/s",
        "served/\nloop", "by pro-\ncessor", "int8/\nfp32",
    )  # fmt: skip
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    baseline = {one.connections: one.rows_per_s for one in served if one.precision is Precision.FP32}
    for one in served:
        alone = loops[one.precision, round(one.batch_rows)]
        shown.add_row(
            one.precision,
            str(one.connections),
            f"{one.batch_rows:.1f}",
            f"{one.rows_per_s:,.0f}",
            f"{one.p50_ms:.1f}",
            f"{one.p99_ms:.1f}",
            f"{alone.rows_per_s:,.0f}",
            f"{one.rows_per_s / alone.rows_per_s:.2f}",
            f"{alone.cpu_us / one.cpu_us:.2f}",
            f"{one.rows_per_s / baseline[one.connections]:.2f}",
        )
    shown.caption = (
        "served/loop: rows/s over HTTP against the engine alone at the same batch size, client included;\n"
        "by processor: the same by processor time of the server, client not included"
    )
    return shown


def server_of(supervisor: int) -> int:
    """Process id of the server, a child of the supervisor."""
    for child, parent, command in processes():
        if parent == supervisor and b"service.server" in command:
            return child
    raise SystemExit(f"process {supervisor} has no server")


def processes() -> Iterator[tuple[int, int, bytes]]:
    """Process id, parent and command line of every process that can be seen."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_bytes()
        except OSError:
            continue


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
