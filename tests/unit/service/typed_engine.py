"""An engine of any element type, for tests of the protocol over HTTP."""

from collections.abc import Mapping

import numpy as np

from engines.model.tensors import Array, TensorSpec
from engines.runtimes.base import Slot
from service.protocol import DATATYPES
from tests.unit.service.echo_engine import EchoEngine


class _Slot:
    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self.inputs = inputs

    def run(self) -> Mapping[str, Array]:
        return {"same": self.inputs["x"], "empty": self.inputs["x"][:, :0]}


class TypedEngine(EchoEngine):
    """Gives back `x` as it came, and an output of no elements."""

    def __init__(self, datatype: str, item: tuple[int | None, ...] = (2,)) -> None:
        super().__init__(item)
        dtype = DATATYPES[datatype]
        self.inputs = (TensorSpec(name="x", dtype=dtype, shape=(None, *item)),)
        self.outputs = (
            TensorSpec(name="same", dtype=dtype, shape=(None, *item)),
            TensorSpec(name="empty", dtype=dtype, shape=(None, 0, *item[1:])),
        )

    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        return _Slot({spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in self.inputs})
