"""A version of a model that has an engine in memory, and what its routes need to know of it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from engines.model.tensors import Array
from engines.options import Batching, Precision
from service.batching.batch_sizes import BatchRules
from service.batching.batcher import Batcher
from service.batching.device import Device
from service.catalog.catalog import Version
from service.monitoring.metrics import Metrics, VersionMetrics
from service.processes import memory
from service.protocol import Signature
from service.serving.flight import Flight
from service.serving.loading import Loaded
from service.serving.watched_engine import WatchedEngine

_PROBES = 3
_PROBE_PAUSE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A version that answers."""

    model: str
    version: str
    # Of what clients send and get.
    signature: Signature
    precision: Precision
    batcher: Batcher
    # What the batcher goes by.
    limits: Batching
    rules: BatchRules
    metrics: VersionMetrics
    # Runs the batches; owned by the batcher.
    engine: WatchedEngine
    # A batch of the proof.
    sample: Mapping[str, Array]
    # What it added to the process's resident memory when it was loaded.
    memory_bytes: int

    @classmethod
    def of(
        cls,
        version: Version,
        loaded: Loaded,
        *,
        flight: Flight,
        metrics: Metrics,
        device: Device,
        failed: Callable[[], None],
    ) -> Self:
        """Puts a batcher in front of a loaded engine; must run in the event loop.

        `device` is what the engine shares with others. `failed` is called, in another thread, after each batch that
        the engine raised on.
        """
        engine = WatchedEngine(loaded.engine, flight, failed=failed)
        counts = metrics.of(version.model, str(version.number))
        batcher = Batcher(
            engine, limits=version.options.batching, rules=loaded.rules, metrics=counts, device=device
        )
        batcher.start()
        return cls(
            model=version.model,
            version=str(version.number),
            signature=loaded.signature,
            precision=loaded.precision,
            batcher=batcher,
            limits=version.options.batching,
            rules=loaded.rules,
            metrics=counts,
            engine=engine,
            sample=loaded.sample,
            memory_bytes=loaded.memory_bytes,
        )

    async def close(self) -> None:
        """Answers what was admitted, then gives back the engine's memory. Idempotent."""
        await self.batcher.close()
        await asyncio.to_thread(memory.give_back)

    async def keeps_failing(self) -> Exception | None:
        """Tries the engine on a batch of its proof, several times; the last error where it fails each time.

        The batch runs beside those of clients, not among them: their rows may be what an engine fails on.
        """
        for attempt in range(_PROBES):
            if attempt:
                await asyncio.sleep(_PROBE_PAUSE_S)
            try:
                await self._probe()
            except Exception as error:  # noqa: BLE001 - whatever an engine raises is what is asked for
                failure = error
            else:
                return None
        return failure

    async def _probe(self) -> None:
        slot = self.engine.slot({name: array.shape for name, array in self.sample.items()})
        for name, buffer in slot.inputs.items():
            np.copyto(buffer, self.sample[name], casting="no")
        # A probe that is cancelled goes on in its thread: its slot is not given to anybody.
        await asyncio.to_thread(slot.run)
        self.engine.release(slot)
