"""An engine under observation: what runs is on record, failures are reported, and when it was last used is known."""

import time
from collections.abc import Callable, Mapping

from engines.model.tensors import Array
from engines.runtimes.base import Engine, Slot
from service.serving.flight import Flight


class WatchedEngine(Engine):
    """Passes everything on to `engine`, which it owns."""

    def __init__(self, engine: Engine, flight: Flight, *, failed: Callable[[], None]) -> None:
        """`failed` is called, in the thread that ran it, after each batch that raised."""
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.on_gpu = engine.on_gpu
        self.shares_buffers = engine.shares_buffers
        # When a batch last ended, on time.monotonic.
        self.used_s = time.monotonic()
        self._engine = engine
        self._flight = flight
        self._failed = failed

    def slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        return _WatchedSlot(self._flight.call(lambda: self._engine.slot(shapes)), self)

    def release(self, slot: Slot) -> None:
        if isinstance(slot, _WatchedSlot):
            self._engine.release(slot.slot)

    def close(self) -> None:
        self._flight.call(self._engine.close)
        self._flight.close()

    def run_slot(self, slot: Slot) -> Mapping[str, Array]:
        """Runs a slot of the engine behind this one."""
        try:
            return self._flight.run(slot.run)
        except Exception:
            self._failed()
            raise
        finally:
            self.used_s = time.monotonic()


class _WatchedSlot:
    def __init__(self, slot: Slot, engine: WatchedEngine) -> None:
        self.slot = slot
        self.inputs = slot.inputs
        self._engine = engine

    def run(self) -> Mapping[str, Array]:
        return self._engine.run_slot(self.slot)
