"""Engines that keep the buffers of their batches, and hand each out to one user at a time."""

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping

from engines.errors import EngineRunError
from engines.model.tensors import TensorSpec
from engines.runtimes.base import Engine, Slot, check_shapes

_Shapes = tuple[tuple[int, ...], ...]

MAX_KEPT_SLOTS = 256
"""Slots that are kept while nobody uses them. A model with free dimensions sees shapes without end."""


class PooledEngine(Engine):
    """Keeps released slots by their shapes, so that the next batch of those shapes allocates nothing."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        # Least recently used shapes first.
        self._free: OrderedDict[_Shapes, list[Slot]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    @abstractmethod
    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        """Buffers for shapes that were checked against `inputs`."""

    def _discard(self, slot: Slot) -> None:
        """Called with a slot that is not kept any longer."""

    def _drop_idle(self) -> bool:
        """Discards all slots that nobody uses; whether there were any."""
        with self._lock:
            idle = [slot for slots in self._free.values() for slot in slots]
            self._free.clear()
        for slot in idle:
            self._discard(slot)
        return bool(idle)

    def slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        check_shapes(shapes, self.inputs)
        key = tuple(tuple(shapes[spec.name]) for spec in self.inputs)
        with self._lock:
            if self._closed:
                raise EngineRunError("the engine is closed; load the version again.")
            free = self._free.get(key)
            if free:
                slot = free.pop()
                if not free:
                    del self._free[key]
                return slot
        return self._new_slot(shapes)

    def release(self, slot: Slot) -> None:
        key = tuple(slot.inputs[spec.name].shape for spec in self.inputs)
        dropped = None
        with self._lock:
            if self._closed:
                return
            self._free.setdefault(key, []).append(slot)
            self._free.move_to_end(key)
            if sum(map(len, self._free.values())) > MAX_KEPT_SLOTS:
                oldest, slots = next(iter(self._free.items()))
                dropped = slots.pop()
                if not slots:
                    del self._free[oldest]
        if dropped is not None:
            self._discard(dropped)

    def forget(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Drops the slots of these shapes that nobody uses."""
        with self._lock:
            self._free.pop(tuple(tuple(shapes[spec.name]) for spec in self.inputs), None)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._free.clear()
