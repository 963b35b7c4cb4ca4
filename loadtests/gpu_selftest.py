"""Whether octet's engines are right on this machine's NVIDIA GPU, and how fast: `docker/gpu-selftest`.

A network of ResNet-50's size and one of BERT's, both with random weights, are built by a service of its own in INT8
and in FP8, and served; then the same engines, and the networks in FP16 and FP32, run in this process in a loop. Every
engine is compared with onnxruntime's FP32 on rows that calibrated nothing. Ends with status 0 where all checks hold:
enough decibels, layers that TensorRT says run in the type, 8 bits that serve, no failed request. Rates are shown and
judged by nobody. Takes some minutes, most of them TensorRT's builds. `--small` takes a small network, to try the script
itself.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
from rich import box
from rich.console import Console
from rich.table import Table

from engines.calibration.magnitudes import observe_magnitudes, with_magnitudes
from engines.calibration.observer import BATCH_ROWS
from engines.errors import CompileError
from engines.model.model import load_model, save_model
from engines.model.tensors import Array
from engines.options import BuildOptions, Precision, RuntimeName
from engines.phases.preparing import prepare
from engines.runtimes.base import Runtime
from engines.runtimes.reference import ReferenceSession
from engines.runtimes.selection import describe_runtime, runtime_for, tensorrt_problem
from examples.demo import free_port
from examples.running import Running, service
from loadtests.bert import TOKENS, VOCABULARY, write_bert
from loadtests.gpu_served import ServedEngine, served
from loadtests.http_load import run_load
from loadtests.peers.environment import ROOT
from loadtests.resnet50 import IMAGE_SHAPE, write_resnet50
from loadtests.serving import loop

LEAST_DB: Mapping[str, float] = {"int8": 15.0, "fp8": 15.0, "fp16": 35.0, "fp32": 60.0}
"""Far below what the formats give networks like these, and far above what a wrong engine does."""
_ROWS, _KEPT_ASIDE = 64, 16
_BATCH_ROWS = 32
_CONNECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model, and rows for its inputs."""

    name: str
    model: Path
    samples: Mapping[str, Array]

    def kept_aside(self) -> dict[str, Array]:
        """Rows that calibrate nothing."""
        return {name: values[:_KEPT_ASIDE] for name, values in self.samples.items()}

    def calibration(self) -> dict[str, Array]:
        """The others."""
        return {name: values[_KEPT_ASIDE:] for name, values in self.samples.items()}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One engine of one network."""

    network: str
    kind: str
    # Against FP32; None where there is no engine.
    sqnr_db: float | None = None
    # In a loop of the largest batch, and over HTTP.
    alone_per_s: float | None = None
    served_per_s: float | None = None
    # What is wrong; empty where nothing is.
    problem: str = ""
    # Why the GPU cannot have it; no problem.
    left_out: str = ""


def main() -> int:
    """Runs the test; returns 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="docker/gpu-selftest", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a small network, to try the script itself")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each engine runs in a loop")
    parser.add_argument("--requests", type=int, default=4000, help="that each served engine gets")
    options = parser.parse_args()
    console = Console(width=110, markup=False)
    if (problem := tensorrt_problem()) is not None:
        console.print(f"FAIL  TensorRT does not run here: {problem}")
        return 1
    console.print(describe_runtime())
    with tempfile.TemporaryDirectory(prefix="octet-selftest-") as folder:
        results = run(Path(folder), options)
    console.print(table(results))
    failed = [result for result in results if result.problem]
    for result in failed:
        console.print(f"FAIL  {result.network} {result.kind}: {result.problem}")
    console.print("FAIL" if failed else "pass")
    return 1 if failed else 0


def run(folder: Path, options: argparse.Namespace) -> list[Result]:
    """Every engine of every network."""
    networks = small_networks() if options.small else large_networks(folder)
    engines: dict[tuple[str, Precision], ServedEngine] = {}
    rates: dict[tuple[str, Precision], float] = {}
    with service(folder / "home", port=free_port()) as octet:
        for network in networks:
            for precision in (Precision.INT8, Precision.FP8):
                np.savez(folder / "samples.npz", allow_pickle=False, **network.calibration())
                key = (network.name, precision)
                engines[key] = served(octet, network.name, precision, network.model, folder)
                if engines[key].artifact is not None:
                    rates[key] = load(octet, engines[key], network, options.requests)
    runtime = runtime_for(BuildOptions(runtime=RuntimeName.TENSORRT))
    results = []
    for network in networks:
        for precision in (Precision.INT8, Precision.FP8):
            engine = engines[network.name, precision]
            if engine.artifact is None:
                left_out, problem = engine.left_out, engine.problem
                results.append(
                    Result(network=network.name, kind=precision, left_out=left_out, problem=problem)
                )
                continue
            rate = rates[network.name, precision]
            results.append(measured(runtime, network, precision, engine.artifact, options.seconds, rate))
        for kind, path in floating(network, folder).items():
            results.append(measured(runtime, network, kind, path, options.seconds))
    return results


def measured(
    runtime: Runtime,
    network: Network,
    kind: str,
    model: Path,
    seconds: float,
    served_per_s: float | None = None,
) -> Result:
    """Compiles a model, compares it with FP32 and runs it in a loop."""
    feeds = network.kept_aside()
    wanted = ReferenceSession(onnx.load(network.model), threads=2).run(feeds)
    try:
        engine = runtime.compile(model, threads=1)
    except CompileError as error:
        return Result(network=network.name, kind=kind, problem=str(error))
    with engine:
        found = engine.run(feeds)
        noise_db = min(sqnr_db(values, found[name]) for name, values in wanted.items())
        rate = loop(engine, _BATCH_ROWS, network.samples, seconds=seconds).rows_per_s
        types = dict(engine.layers.by_type) if engine.layers else {}
    problem = ""
    if not noise_db >= LEAST_DB[kind]:
        problem = f"it is {noise_db:.1f} dB from FP32, and {LEAST_DB[kind]:g} are the least"
    elif not types.get(kind):
        problem = f"no layer runs in {kind}; TensorRT says {types or 'nothing'}"
    return Result(
        network=network.name,
        kind=kind,
        sqnr_db=noise_db,
        alone_per_s=rate,
        served_per_s=served_per_s,
        problem=problem,
    )


def floating(network: Network, folder: Path) -> dict[str, Path]:
    """The network as TensorRT compiles it in FP16 and in FP32."""
    prepared = prepare(load_model(network.model))
    rows = network.calibration()
    batches = (
        {name: values[start : start + BATCH_ROWS] for name, values in rows.items()}
        for start in range(0, _ROWS - _KEPT_ASIDE, BATCH_ROWS)
    )
    half = with_magnitudes(prepared, observe_magnitudes(prepared, batches, threads=2))
    paths = {kind: folder / f"{network.name}.{kind}.onnx" for kind in ("fp16", "fp32")}
    save_model(half, paths["fp16"])
    save_model(prepared, paths["fp32"])
    return paths


def load(octet: Running, engine: ServedEngine, network: Network, requests: int) -> float:
    """Rows a second over HTTP, one row a request.

    Raises:
        SystemExit: a request was not answered with 200.
    """
    address = urlsplit(octet.address)
    rows = [engine.request(network.samples, row % _ROWS) for row in range(min(requests, _ROWS))]
    sent = [rows[number % len(rows)] for number in range(requests)]
    host, port = address.hostname or "127.0.0.1", address.port or 80
    result = asyncio.run(run_load(host, port, sent, connections=_CONNECTIONS))
    failed = [status for status in result.statuses if status != 200]
    if failed:
        raise SystemExit(f"FAIL  {len(failed)} of {requests} requests to {engine.model} got {failed[0]}")
    return requests / result.wall_s


def sqnr_db(wanted: Array, found: Array) -> float:
    """Signal to noise over all elements, in decibels; engines.fidelity.accuracy has the formula."""
    reference = np.asarray(wanted, np.float64)
    noise = float(np.square(reference - np.asarray(found, np.float64)).sum())
    return float(10 * np.log10(np.square(reference).sum() / noise)) if noise else float("inf")


def large_networks(folder: Path) -> tuple[Network, ...]:
    """ResNet-50's and BERT's sizes."""
    random = np.random.default_rng(5)
    images = random.standard_normal((_ROWS, *IMAGE_SHAPE)).astype(np.float32)
    ids = random.integers(0, VOCABULARY, (_ROWS, TOKENS))
    write_resnet50(folder / "resnet50.onnx")
    write_bert(folder / "bert.onnx")
    return (
        Network(name="resnet50", model=folder / "resnet50.onnx", samples={"image": images}),
        Network(name="bert", model=folder / "bert.onnx", samples={"ids": ids}),
    )


def small_networks() -> tuple[Network, ...]:
    """One of the repository's, for digits."""
    with np.load(ROOT / "examples" / "digits" / "samples.npz") as archive:
        images = archive["image"][:_ROWS]
    return (Network(name="vit", model=ROOT / "loadtests" / "models" / "vit.onnx", samples={"image": images}),)


def table(results: list[Result]) -> Table:
    """One line an engine."""
    shown = Table("network", "type", box=box.SIMPLE)
    for column in ("dB from FP32", "rows/s alone", "rows/s served", ""):
        shown.add_column(column, justify="right")
    for result in results:
        rates = (result.alone_per_s, result.served_per_s)
        shown.add_row(
            result.network,
            result.kind,
            "" if result.sqnr_db is None else f"{result.sqnr_db:.1f}",
            *("" if rate is None else f"{rate:,.0f}" for rate in rates),
            result.left_out or ("FAIL" if result.problem else "ok"),
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
