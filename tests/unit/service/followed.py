"""Versions served from engines that tests make, without HTTP and without a store."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np

from engines.model.tensors import Array
from engines.options import Batching, BuildOptions, Precision
from service.batching.batch_sizes import BatchRules
from service.catalog.catalog import Catalog, NewBuild, Version
from service.errors import NotFoundError, NotReadyError
from service.monitoring.metrics import Metrics
from service.protocol import Signature
from service.serving.deployments import Deployments
from service.serving.flight import FlightRecorder
from service.serving.inventory import Care
from service.serving.loading import Loaded
from service.serving.quarantine import CrashLog
from service.serving.residency import MemoryLimits
from tests.unit.service.echo_engine import SAMPLE, EchoEngine


class Loader:
    """Makes engines of versions; a test says which fail, are refused, or take until it lets them go on."""

    def __init__(self, home: Path) -> None:
        # Where a server keeps its records.
        self.home = home
        self.engines: dict[tuple[str, int], EchoEngine] = {}
        self.calls: list[tuple[str, int]] = []
        self.broken: dict[tuple[str, int], Exception] = {}
        self.refused: dict[tuple[str, int], str] = {}
        self.sizes_bytes: dict[tuple[str, int], int] = {}
        # Whether engines say that they run on a GPU.
        self.on_gpu = False
        # Closed by a test that wants loading to take long; of these versions alone where it names some.
        self.gate = threading.Event()
        self.gate.set()
        self.held: set[tuple[str, int]] = set()

    def __call__(self, version: Version) -> Loaded:
        key = (version.model, version.number)
        self.calls.append(key)
        if key in (self.held or {key}) and not self.gate.wait(timeout=30.0):
            raise TimeoutError("the test left the gate closed")
        if key in self.broken:
            raise self.broken[key]
        engine = self.engines[key] = EchoEngine()
        engine.on_gpu = self.on_gpu
        refusal = self.refused.get(key)
        return Loaded(
            engine=engine,
            signature=Signature.of(engine.inputs, engine.outputs, free_rows=True),
            rules=BatchRules(batchable=True, sizes=(1, 2, 4)),
            precision=Precision.FP32 if refusal else version.options.precision,
            refusal=refusal,
            sample=SAMPLE,
            memory_bytes=self.sizes_bytes.get(key, 1),
        )

    @staticmethod
    def rows(*values: float) -> Array:
        """Rows of an engine's input, one per value."""
        return np.repeat(np.array(values, np.float32)[:, np.newaxis], 2, axis=1)


def publish(
    catalog: Catalog,
    model: str,
    *,
    promote: bool = True,
    timeout_ms: int = 30_000,
    max_queue_rows: int = 100,
    **summary: str,
) -> Version:
    batching = Batching(timeout_ms=timeout_ms, max_queue_rows=max_queue_rows)
    options = BuildOptions(promote=promote, batching=batching)
    new = NewBuild(model=model, fingerprint="same", options=options, files={})
    build, _ = catalog.accept(new, force=True)
    return catalog.publish(build.id, files={}, summary={"sqnr_db": 33.0, **summary})


def care(home: Path, *, max_bytes: int = 1 << 30, idle_s: float | None = None) -> Care:
    crashes = CrashLog(home / "crashes.json")
    return Care(
        memory=MemoryLimits(max_bytes=max_bytes, idle_s=idle_s),
        recorder=FlightRecorder(home / "flight", suspects=crashes.suspects),
        crashes=crashes,
    )


@contextlib.asynccontextmanager
async def following(
    catalog: Catalog,
    loader: Loader,
    *,
    metrics: Metrics | None = None,
    retry_s: float = 30.0,
    max_bytes: int = 1 << 30,
    idle_s: float | None = None,
) -> AsyncIterator[Deployments]:
    """What a server started now in the loader's home would serve."""
    deployments = Deployments(
        catalog=catalog,
        metrics=metrics or Metrics(),
        load=loader,
        care=care(loader.home, max_bytes=max_bytes, idle_s=idle_s),
        poll_s=0.005,
        retry_s=retry_s,
    )
    await deployments.start()
    try:
        yield deployments
    finally:
        loader.gate.set()
        for engine in loader.engines.values():
            engine.gate.set()
        await deployments.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what happens in other tasks and threads sets no event
            await asyncio.sleep(0.002)


def answering(deployments: Deployments, model: str, version: str | None = None) -> str | None:
    """The version that answers, or None where an error does."""
    try:
        return deployments.find(model, version).version
    except (NotFoundError, NotReadyError):
        return None
