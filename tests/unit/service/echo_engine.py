"""A small real engine, for tests of what is in front of engines: each row tells whose it is."""

import threading
from collections.abc import Mapping

import numpy as np

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec
from engines.runtimes.base import Slot
from engines.runtimes.slots import PooledEngine

POISON = -1.0
SAMPLE: Mapping[str, Array] = {"x": np.ones((1, 2), np.float32)}
"""What an `EchoEngine` that is well answers."""


class EchoSlot:
    """Buffers of one batch of an `EchoEngine`."""

    def __init__(self, engine: "EchoEngine", shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._engine = engine
        self.inputs: Mapping[str, Array] = {
            spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in engine.inputs
        }
        # Used again by the next run, as a runtime's are.
        x = self.inputs["x"]
        self._outputs: dict[str, Array] = {
            "double": np.zeros(x.shape, np.float32),
            "first": np.zeros((len(x), 1), np.float32),
        }

    def run(self) -> Mapping[str, Array]:
        x = self.inputs["x"]
        self._engine.entered.set()
        if not self._engine.gate.wait(timeout=30.0):
            raise EngineRunError("the test left the gate closed")
        self._engine.batches.append(x.shape)
        self._engine.threads.append(threading.get_ident())
        if self._engine.broken.is_set():
            raise EngineRunError("the device is gone")
        if (x == POISON).any():
            raise EngineRunError("a poisoned row")
        self._outputs["double"][...] = 2 * x
        self._outputs["first"][...] = x.reshape(len(x), -1)[:, :1]
        return self._outputs


class EchoEngine(PooledEngine):
    """Doubles `x` and gives back the first number of each row; -1 anywhere makes the batch fail."""

    def __init__(self, item: tuple[int | None, ...] = (2,), *, fixed_rows: int | None = None) -> None:
        float32 = np.dtype(np.float32)
        super().__init__(
            inputs=(TensorSpec(name="x", dtype=float32, shape=(fixed_rows, *item)),),
            outputs=(
                TensorSpec(name="double", dtype=float32, shape=(fixed_rows, *item)),
                TensorSpec(name="first", dtype=float32, shape=(fixed_rows, 1)),
            ),
        )
        # Closed by a test that wants the engine to be busy.
        self.gate = threading.Event()
        self.gate.set()
        # Set when a run begins.
        self.entered = threading.Event()
        # Set by a test that wants every batch to fail.
        self.broken = threading.Event()
        # The shape of `x` in each run.
        self.batches: list[tuple[int, ...]] = []
        # And the thread that it was in.
        self.threads: list[int] = []
        self.slots = 0
        self.closed = 0

    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        self.slots += 1
        return EchoSlot(self, shapes)

    def close(self) -> None:
        super().close()
        self.closed += 1
