"""What a model takes and gives, as its clients see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from engines.model.tensors import TensorSpec
from service.protocol.datatypes import JSONLESS, datatype
from service.protocol.messages import shape_of
from service.protocol.plain_request import PlainForm


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a model takes and gives, as its clients see it."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    # The outputs that have no JSON form.
    jsonless: frozenset[str]
    # How most requests look; None where they have to be looked at closely.
    plain: PlainForm | None

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, free_rows: bool) -> Self:
        """The signature of an engine; with `free_rows`, clients may send any number of rows.

        A batcher fills the batches of an engine that insists on a size, so its clients need not.
        """

        def seen(spec: TensorSpec) -> TensorSpec:
            return replace(spec, shape=(None, *spec.shape[1:])) if free_rows and spec.shape else spec

        taken = [seen(spec) for spec in inputs]
        return cls(
            inputs={spec.name: spec for spec in taken},
            outputs={spec.name: seen(spec) for spec in outputs},
            jsonless=frozenset(spec.name for spec in outputs if spec.dtype in JSONLESS),
            plain=PlainForm.of(taken, outputs),
        )


def metadata(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as the protocol's model metadata has them; -1 is a free dimension."""
    return [
        {"name": spec.name, "datatype": datatype(spec.dtype), "shape": shape_of(spec)}
        for spec in specs.values()
    ]
