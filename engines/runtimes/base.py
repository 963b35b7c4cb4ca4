"""What octet asks of a runtime: compile an artifact for this machine, and run batches in buffers of its own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from engines.tensors import Array, TensorSpec


class Slot(Protocol):
    """The buffers of one batch, owned by the engine and used again for the next batch.

    A row is written once on its way to the engine: straight into `inputs`.
    """

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Writable arrays, one per input, rows along axis 0."""

    def run(self) -> Mapping[str, Array]:
        """Runs the batch. The arrays returned are valid until the slot runs again.

        Raises:
            EngineRunError: the runtime failed on this batch.
        """


class Engine(ABC):
    """A model compiled for this machine.

    `slot` and `close` belong to one owner; slots may run in any thread, each in one at a time.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        """Buffers for a batch of exactly these input shapes (batch axis included); kept and handed out again."""

    @abstractmethod
    def close(self) -> None:
        """Gives back the memory. Idempotent; nothing may be called afterwards."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch of caller-owned arrays and returns arrays that the caller owns.

        Raises:
            EngineRunError: the runtime failed on this batch.
        """
        slot = self.slot({name: array.shape for name, array in feeds.items()})
        for name, array in feeds.items():
            np.copyto(slot.inputs[name], array, casting="no")
        return {name: array.copy() for name, array in slot.run().items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime(ABC):
    """A library that compiles and runs models on one kind of hardware."""

    name: str

    @abstractmethod
    def hardware_key(self) -> str:
        """What a compiled engine depends on; engines are cached and verified under it."""

    @abstractmethod
    def weight_bits(self) -> int:
        """Bits that INT8 weights may use here: 7 where intermediate sums of 8-bit ones would saturate."""

    @abstractmethod
    def compile(self, model: Path, *, threads: int, cache: Path | None = None) -> Engine:
        """Compiles the ONNX file `model`, to run on `threads` processors.

        `cache` is a folder in which the runtime may keep compiled engines for the next time.

        Raises:
            CompileError: the runtime does not take the model.
        """
