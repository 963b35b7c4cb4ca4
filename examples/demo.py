"""`make demo`: the main job on real digits, over HTTP, from upload to measured service.

Starts octet in an empty folder, uploads the digit classifier with 256 samples once as int8 and once as fp32,
sends the 600 digits kept aside to both as concurrent single-row requests, and prints what 8 bits changed.
"""

import asyncio
import re
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.running import StartError, ended_by_signals, service
from examples.uploading import UploadError, build
from loadtests.http_load import LoadResult, run_load

DIGITS = Path(__file__).parent / "digits"
TRAINING_ROWS = 1197
CONNECTIONS = 32
# The digits kept aside are sent this many times over, so that a run lasts seconds.
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one served version answered, and how fast."""

    scores: NDArray[np.float32]
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch_rows: float
    file_bytes: int


def main() -> int:
    """Runs the demo; returns the exit status."""
    console = Console()
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="octet-demo-") as home:
            run(console, Path(home))
    except KeyboardInterrupt:
        console.print("interrupted; octet was stopped")
        return 130
    except (UploadError, StartError, httpx.HTTPError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return 0


def run(console: Console, home: Path) -> None:
    """The demo itself, with the service's data in `home`."""
    with np.load(DIGITS / "digits.npz") as digits:
        images = digits["images"][TRAINING_ROWS:].astype(np.float32)
        labels = digits["labels"][TRAINING_ROWS:]
    with (
        service(home, port=free_port()) as octet,
        httpx.Client(base_url=octet.address, timeout=60.0) as client,
    ):
        console.print(f"octet is up at {octet.address} with an empty database\n", highlight=False)
        with Progress(
            TextColumn("{task.fields[model]:<13}"),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=console,
        ) as progress:
            follow(client, progress, "digits-int8", "int8")
            follow(client, progress, "digits-fp32", "fp32")
        console.print(
            f"\nsending {len(labels)} digits kept aside, {CONNECTIONS} requests at a time, to each …\n"
        )
        requests = {model: inference_requests(model, images) for model in ("digits-fp32", "digits-int8")}
        fp32 = measure(client, "digits-fp32", requests["digits-fp32"])
        int8 = measure(client, "digits-int8", requests["digits-int8"])
        console.print(comparison(fp32, int8, labels))
        console.print("five lines of /metrics:")
        for line in some_metrics(client):
            console.print(f"  {line}", highlight=False)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def follow(client: httpx.Client, progress: Progress, model: str, precision: str) -> None:
    """Uploads the classifier and shows its build until it is served."""
    bar = progress.add_task("queued", model=model, total=1.0)
    build(
        client,
        model,
        DIGITS / "digits.onnx",
        DIGITS / "samples.npz",
        {"precision": precision},
        told=lambda phase, done: progress.update(bar, description=phase, completed=done),
    )


def inference_requests(model: str, images: NDArray[np.float32]) -> list[bytes]:
    """One HTTP request a digit."""
    requests = []
    for image in images:
        tensor = {
            "name": "image",
            "shape": [1, *image.shape],
            "datatype": "FP32",
            "data": image.ravel().tolist(),
        }
        body = orjson.dumps({"inputs": [tensor]})
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: octet\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    return requests


def measure(client: httpx.Client, model: str, requests: list[bytes]) -> Served:
    """Sends the requests once to warm up the connections, then `REPEATS` times, and times those."""
    address = urlsplit(str(client.base_url))

    def load(batch: list[bytes]) -> LoadResult:
        return asyncio.run(
            run_load(address.hostname or "", address.port or 0, batch, connections=CONNECTIONS)
        )

    load(requests)
    rows_before, batches_before = batch_counts(client, model)
    result = load(requests * REPEATS)
    rows, batches = batch_counts(client, model)
    latencies_ms = np.asarray(result.latencies_s) * 1e3
    answers = [orjson.loads(body) for body in result.bodies[: len(requests)]]
    failed = [answer["error"] for answer in answers if "error" in answer]
    if failed:
        raise UploadError(
            f"{len(failed)} of {len(answers)} requests to {model} failed; the first: {failed[0]}"
        )
    artifact = client.get(f"/v1/models/{model}/versions/1/artifact")
    artifact.raise_for_status()
    return Served(
        scores=np.array([answer["outputs"][0]["data"] for answer in answers], dtype=np.float32),
        requests_per_s=len(result.bodies) / result.wall_s,
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        mean_batch_rows=(rows - rows_before) / (batches - batches_before),
        file_bytes=len(artifact.content),
    )


def batch_counts(client: httpx.Client, model: str) -> tuple[float, float]:
    """Rows and batches that the model's engine has run so far, from /metrics."""
    text = client.get("/metrics").text
    totals = []
    for suffix in ("sum", "count"):
        found = re.findall(
            rf'^octet_batch_rows_{suffix}{{[^}}]*model="{model}"[^}}]*}} (\S+)$', text, re.MULTILINE
        )
        totals.append(sum(map(float, found)))
    return totals[0], totals[1]


def comparison(fp32: Served, int8: Served, labels: NDArray[np.uint8]) -> Table:
    """The table: FP32 beside INT8, on the same digits and the same load."""
    error = (int8.scores - fp32.scores).astype(np.float64)
    sqnr_db = 10 * np.log10(np.sum(np.square(fp32.scores, dtype=np.float64)) / np.sum(error**2))
    agreement = np.mean(fp32.scores.argmax(1) == int8.scores.argmax(1))
    table = Table(
        title=f"{len(labels)} digits that neither training nor calibration saw", title_justify="left"
    )
    table.add_column("")
    for column in ("FP32", "INT8", "INT8 against FP32"):
        table.add_column(column, justify="right")

    def row(name: str, first: float, second: float, form: str, note: str | None = None) -> None:
        table.add_row(name, form.format(first), form.format(second), note or f"{second / first:.2f}x")

    top1 = [float(np.mean(served.scores.argmax(1) == labels)) for served in (fp32, int8)]
    row("top-1", top1[0], top1[1], "{:.2%}", f"{agreement:.2%} agree, SQNR {sqnr_db:.1f} dB")
    row("file", fp32.file_bytes / 1024, int8.file_bytes / 1024, "{:,.0f} KiB")
    row("requests/s", fp32.requests_per_s, int8.requests_per_s, "{:,.0f}")
    row("p50", fp32.p50_ms, int8.p50_ms, "{:.1f} ms")
    row("p99", fp32.p99_ms, int8.p99_ms, "{:.1f} ms")
    row("mean batch rows", fp32.mean_batch_rows, int8.mean_batch_rows, "{:.1f}", "")
    return table


def some_metrics(client: httpx.Client) -> list[str]:
    """Five lines that say something about the INT8 version."""
    wanted = (
        r"octet_requests_total{",
        r"octet_rows_total{",
        r"octet_batch_rows_count{",
        r"octet_compute_seconds_sum{",
        r"octet_version_sqnr_db{",
    )
    lines = client.get("/metrics").text.splitlines()
    int8 = [line for line in lines if 'model="digits-int8"' in line]
    return [
        next((line for line in int8 if line.startswith(start)), f"{start}…}} missing") for start in wanted
    ]


if __name__ == "__main__":
    sys.exit(main())
