"""What octet asks of a runtime: compile an artifact for this machine, run batches in buffers of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec
from engines.options import Precision


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


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """What a runtime made of a model: fused layers, and the types that they compute in."""

    # How many layers compute in which type: `int8`, `fp8`, `fp16`, `fp32`, `other`.
    by_type: Mapping[str, int]
    # Names of the layers that compute in 8 bits.
    eight_bit: tuple[str, ...]
    # Names of the quantizers that became layers of their own instead of parts of others.
    alone: tuple[str, ...]


class Engine(ABC):
    """A model compiled for this machine.

    `slot` and `close` belong to one owner; slots may run in any thread, each in one at a time.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    # Whether it computes on a GPU: it leaves the processors to others, and gains by running two batches at once, from
    # as many threads, because the copies of one go on beside the computing of the other.
    on_gpu: bool = False
    # Whether slots of all shapes lie in the same memory, so that many batch sizes take no more of it than one.
    shares_buffers: bool = False
    # None where the runtime does not tell.
    layers: EngineLayers | None = None

    @abstractmethod
    def slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        """Buffers for a batch of exactly these input shapes (batch axis included), which nobody else holds.

        The caller holds the slot until it calls `release`, and may hold several of the same shapes: one is
        filled while another runs. A caller that keeps its slots for good never releases them.

        Raises:
            EngineRunError: the shapes do not fit the model.
        """

    def release(self, slot: Slot) -> None:  # noqa: B027 # an engine that makes every slot anew has nothing to do
        """Gives back a slot of this engine, for the next caller that asks for its shapes.

        Its arrays, outputs included, must not be used any more.
        """

    def specialise(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:  # noqa: ARG002 # for engines that can
        """Compiles for exactly these shapes as well; slots of them run that from now on.

        False where this engine does not gain by it: its slots are as they were.

        Raises:
            EngineError: the model cannot be compiled for these shapes alone; its slots are as they were.
        """
        return False

    def generalise(self, shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: B027 # nothing was specialised
        """Takes `specialise` back for these shapes."""

    @abstractmethod
    def close(self) -> None:
        """Gives back the memory. Idempotent; nothing may be called afterwards."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch of caller-owned arrays and returns arrays that the caller owns.

        Raises:
            EngineRunError: the arrays do not fit the model's inputs, or the runtime failed on this batch.
        """
        check_feeds(feeds, self.inputs)
        slot = self.slot({name: array.shape for name, array in feeds.items()})
        try:
            for name, buffer in slot.inputs.items():
                np.copyto(buffer, feeds[name], casting="no")
            return {name: array.copy() for name, array in slot.run().items()}
        finally:
            self.release(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime(ABC):
    """A library that compiles and runs models on one kind of hardware."""

    name: str
    # Whether `compile` runs non-negative activations on the finer UINT8 grid (engines.quantization.unsigned).
    unsigned_activations: bool = False
    # Whether `compile` computes in 16-bit floats what is not quantized, in models that carry their magnitudes
    # (engines.calibration.magnitudes).
    halves_rest: bool = False
    # Whether models that arrive quantized may have zero points and UINT8 (engines.quantization.symmetric).
    takes_asymmetric: bool = False
    # What a person has to know before they rely on the runtime, a sentence; None where there is nothing.
    caveat: str | None = None

    @abstractmethod
    def hardware_key(self) -> str:
        """What a compiled engine depends on; engines are cached and verified under it."""

    @abstractmethod
    def weight_bits(self) -> int:
        """Bits that INT8 weights may use here: 7 where intermediate sums of 8-bit ones would saturate."""

    @abstractmethod
    def emulates(self, precision: Precision) -> bool:
        """Whether engines of this precision only imitate its type in wider arithmetic, so that it gains no speed."""

    @abstractmethod
    def compile(
        self,
        model: Path,
        *,
        threads: int,
        cache: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        """Compiles the ONNX file `model`, to run on `threads` processors.

        `cache` is a folder in which the runtime may keep compiled engines for the next time. `progress` is told the
        share that is done by runtimes that take long; what it raises ends the compilation and is raised again.

        Raises:
            CompileError: the runtime does not take the model.
        """


def check_shapes(shapes: Mapping[str, tuple[int, ...]], inputs: tuple[TensorSpec, ...]) -> None:
    """Checks the shapes of a batch against a model's inputs.

    Raises:
        EngineRunError: an input is missing, unknown or of another shape; the message names the first.
    """
    for spec in inputs:
        if spec.name not in shapes:
            raise EngineRunError(
                f"the batch lacks the input {spec.name!r}; the model reads {spec.describe()}."
            )
        shape = tuple(shapes[spec.name])
        if not spec.accepts(shape):
            raise EngineRunError(f"input {spec.name!r} has the shape {list(shape)}; send {spec.describe()}.")
    unknown = sorted(set(shapes) - {spec.name for spec in inputs})
    if unknown:
        known = ", ".join(spec.describe() for spec in inputs)
        raise EngineRunError(f"the model has no input {unknown[0]!r}; it reads {known}.")


def check_feeds(feeds: Mapping[str, Array], inputs: tuple[TensorSpec, ...]) -> None:
    """Checks a batch against a model's inputs: names, shapes and element types.

    Raises:
        EngineRunError: an input is missing, unknown, or of another shape or type; the first is named.
    """
    check_shapes({name: array.shape for name, array in feeds.items()}, inputs)
    for spec in inputs:
        if feeds[spec.name].dtype != spec.dtype:
            dtype = feeds[spec.name].dtype.name
            raise EngineRunError(f"input {spec.name!r} has the element type {dtype}; send {spec.describe()}.")
