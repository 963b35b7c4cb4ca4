"""What a graph takes and gives: the typed specification of its inputs and outputs."""

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from engines.errors import InvalidModelError, UnsupportedModelError
from engines.model.naming import quote
from engines.model.tensors import TensorSpec

_TAKEN_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.BOOL,
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)


def input_specs(graph: onnx.GraphProto) -> tuple[TensorSpec, ...]:
    """The graph's inputs in order, without those that are initializers.

    Raises:
        InvalidModelError: an input has no type.
        UnsupportedModelError: there is none, or one is no tensor, has a type or shape that octet does not
            take, or another number of rows than the rest.
    """
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = _specs("input", (value for value in graph.input if value.name not in initializers))
    if not inputs:
        raise UnsupportedModelError(
            "the model has no inputs (all of its graph inputs, if any, are initializers): export it with an"
            " input."
        )
    _check_batch(inputs)
    return inputs


def output_specs(graph: onnx.GraphProto) -> tuple[TensorSpec, ...]:
    """The graph's outputs in order.

    Raises:
        InvalidModelError: there is none, or one has no type.
        UnsupportedModelError: one is no tensor, or has a type or shape that octet does not take.
    """
    if not graph.output:
        raise InvalidModelError("the model has no outputs: export it with at least one.")
    return _specs("output", graph.output)


def _specs(role: str, values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(role, value) for value in values)


def _spec(role: str, value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind is None:
        raise InvalidModelError(
            f"{role} {quote(value.name)} has no type: declare its element type and shape."
        )
    if kind != "tensor_type":
        raise UnsupportedModelError(
            f"{role} {quote(value.name)} is of the kind {kind.removesuffix('_type')}; octet takes tensors"
            " only: split it into tensors when exporting."
        )
    tensor = value.type.tensor_type
    if tensor.elem_type not in _TAKEN_TYPES:
        known = tensor.elem_type in TensorProto.DataType.values()
        seen = TensorProto.DataType.Name(tensor.elem_type).lower() if known else f"number {tensor.elem_type}"
        raise UnsupportedModelError(
            f"{role} {quote(value.name)} has the element type {seen}; octet takes floats of 16 to 64 bits,"
            " integers of 8 to 64 bits and bool."
        )
    if not tensor.HasField("shape"):
        raise UnsupportedModelError(
            f"{role} {quote(value.name)} has no known shape: export the model with the rank of each {role}"
            " declared."
        )
    if not tensor.shape.dim:
        raise UnsupportedModelError(
            f"{role} {quote(value.name)} is a scalar (shape []), so it has no batch axis: give it rows along"
            " axis 0."
        )
    shape = tuple(_size(role, value.name, dim) for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape=shape)


def _size(role: str, name: str, dim: onnx.TensorShapeProto.Dimension) -> int | None:
    # Some exporters write a free dimension as -1 instead of leaving it unset or naming it.
    if not dim.HasField("dim_value") or dim.dim_value < 0:
        return None
    if dim.dim_value == 0:
        raise UnsupportedModelError(
            f"{role} {quote(name)} has a dimension of size 0, so it holds no values: name the dimension if it"
            " is meant to be free."
        )
    return dim.dim_value


def _check_batch(inputs: tuple[TensorSpec, ...]) -> None:
    fixed = {spec.name: spec.fixed_rows for spec in inputs if spec.fixed_rows is not None}
    if len(set(fixed.values())) > 1:
        seen = ", ".join(f"{quote(name)} {rows}" for name, rows in fixed.items())
        raise UnsupportedModelError(
            f"the inputs disagree on the number of rows along axis 0 ({seen}): octet batches every input"
            " along axis 0, so export the model with the same or a free first dimension for each."
        )
