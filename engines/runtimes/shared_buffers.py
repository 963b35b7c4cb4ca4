"""Engines whose batches of all shapes lie in the same memory, one at a time: a smaller one at the start of it.

Buffers of their own for every batch size would take the memory of `n (n + 1) / 2` rows where the largest batch has
`n`: 318 MB for images of 602 KB in batches of 32. Then only some sizes could be kept, and what lies in between would be
padded, which costs a batch of 13 images a quarter more time.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import cast
from weakref import WeakSet

import numpy as np

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec
from engines.runtimes.base import Engine, Slot, check_shapes
from engines.runtimes.buffers import aligned
from engines.runtimes.slots import MAX_KEPT_SLOTS

_Shapes = tuple[tuple[int, ...], ...]


class Memory:
    """Room for the inputs of one batch, and the slots that begin at its start, of which one is used at a time.

    It holds the others, and that one holds it. Were it both ways, an engine that is done with would stay in memory
    until the garbage collector comes to it: hundreds of megabytes after a few of them.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self._inputs = inputs
        self._bytes: dict[str, Array] = {}
        # Least recently used first; not the one in use.
        self.slots: OrderedDict[_Shapes, PlacedSlot] = OrderedDict()
        # Shapes that were forgotten since it has been in use.
        self.forgotten: set[_Shapes] = set()

    def buffers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """An array for each input. Where there is no room for one, there is from now on, and earlier slots are gone."""
        sizes = {spec.name: math.prod(shapes[spec.name]) * spec.dtype.itemsize for spec in self._inputs}
        if any(size > len(self._bytes.get(name, b"")) for name, size in sizes.items()):
            self.slots.clear()
            self._bytes = {name: aligned((size,), np.dtype(np.uint8)) for name, size in sizes.items()}
        return {
            spec.name: self._bytes[spec.name][: sizes[spec.name]].view(spec.dtype).reshape(shapes[spec.name])
            for spec in self._inputs
        }


class PlacedSlot(ABC):
    """A slot that, while it is in use, holds the memory it lies in."""

    memory: Memory | None
    shapes: _Shapes

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self.inputs = inputs

    @abstractmethod
    def run(self) -> Mapping[str, Array]:
        """As of `Slot`."""


class SharedBuffersEngine(Engine):
    """Keeps as many memories as there were slots in use at once, each with its slots by their shapes."""

    shares_buffers = True

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        # Last released last.
        self._free: list[Memory] = []
        # Those in use too. A caller may drop a slot for good instead of releasing it.
        self._all: WeakSet[Memory] = WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    @abstractmethod
    def _new_slot(self, buffers: Mapping[str, Array]) -> PlacedSlot:
        """A slot that reads `buffers`, of shapes that were checked against `inputs`."""

    def slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        check_shapes(shapes, self.inputs)
        key = tuple(tuple(shapes[spec.name]) for spec in self.inputs)
        with self._lock:
            if self._closed:
                raise EngineRunError("the engine is closed; load the version again.")
            memory = self._taken(key)
            memory.forgotten.clear()
            found = memory.slots.pop(key, None)
        if found is None:
            try:
                found = self._new_slot(memory.buffers(shapes))
            except BaseException:
                with self._lock:
                    self._free.append(memory)
                raise
            found.shapes = key
        found.memory = memory
        return found

    def release(self, slot: Slot) -> None:
        placed = cast("PlacedSlot", slot)
        memory, placed.memory = placed.memory, None
        with self._lock:
            if self._closed or memory is None:
                return
            if placed.shapes not in memory.forgotten:
                memory.slots[placed.shapes] = placed
            self._free.append(memory)
            while sum(len(free.slots) for free in self._free) > MAX_KEPT_SLOTS:
                self._drop_oldest()

    def forget(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Has slots of these shapes made anew from now on; the one that somebody holds stays as it is."""
        key = tuple(tuple(shapes[spec.name]) for spec in self.inputs)
        with self._lock:
            for memory in self._all:
                memory.slots.pop(key, None)
                memory.forgotten.add(key)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._free.clear()

    def _taken(self, key: _Shapes) -> Memory:
        """A memory that nobody uses: rather one that has had such a batch, else the one used last."""
        if not self._free:
            memory = Memory(self.inputs)
            self._all.add(memory)
            return memory
        had = (place for place, free in enumerate(self._free) if key in free.slots)
        return self._free.pop(next(had, -1))

    def _drop_oldest(self) -> None:
        """Drops the memory released longest ago; of a last one the slot used longest ago."""
        if len(self._free) > 1:
            self._free.pop(0)
        else:
            self._free[0].slots.popitem(last=False)
