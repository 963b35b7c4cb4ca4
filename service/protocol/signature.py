"""What a model takes and gives, as its clients see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from engines.model.tensors import TensorSpec
from service.protocol.datatypes import JSONLESS, datatype
from service.protocol.messages import shape_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a model takes and gives, as its clients see it."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    # The outputs that have no JSON form.
    jsonless: frozenset[str]

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, free_rows: bool) -> Self:
        """The signature of an engine; with `free_rows`, clients may send any number of rows.

        A batcher fills the batches of an engine that insists on a size, so its clients need not.
        """

        def seen(spec: TensorSpec) -> TensorSpec:
            return replace(spec, shape=(None, *spec.shape[1:])) if free_rows and spec.shape else spec

        return cls(
            inputs={spec.name: seen(spec) for spec in inputs},
            outputs={spec.name: seen(spec) for spec in outputs},
            jsonless=frozenset(spec.name for spec in outputs if spec.dtype in JSONLESS),
        )


def metadata(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as the protocol's model metadata has them; -1 is a free dimension."""
    return [
        {"name": spec.name, "datatype": datatype(spec.dtype), "shape": shape_of(spec)}
        for spec in specs.values()
    ]
