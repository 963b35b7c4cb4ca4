"""What a model is made of, and what 8 bits would take of it: a look before any samples are there."""

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from engines.errors import InvalidOptionsError
from engines.model.external_weights import named_parts
from engines.model.model import Model, load_model
from engines.options import Precision
from engines.phases.preparing import prepare
from engines.quantization.placement import Placement, place
from engines.reports.details import ReportPart
from engines.search.choices import SkippedLayerReport

_FLOATING = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


class QuantizableLayer(ReportPart):
    """A layer whose weights would be stored in 8 bits."""

    node: str
    operator: str
    # Of its weights.
    shape: tuple[int, ...]
    parameters: int


class Inspection(ReportPart):
    """One model, before anything is built from it."""

    file_bytes: int
    opset: int
    # As `image float32 [?, 3, 8, 8]`.
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    # How many nodes of each operator the model has, the most frequent first.
    operators: dict[str, int]
    # Floating constants once the model is prepared, element by element.
    parameters: int
    # Of these, the ones that 8 bits would hold.
    quantized_parameters: int
    # Activations that would pass through a quantizer.
    activations: int
    quantized: tuple[QuantizableLayer, ...]
    skipped: tuple[SkippedLayerReport, ...]


def inspect(path: Path, precision: Precision = Precision.INT8, *, weights: Sequence[Path] = ()) -> Inspection:
    """Looks at an ONNX file.

    Args:
        path: the file.
        precision: what it would be quantized to.
        weights: the files that hold its weights, under the names that it calls them.

    Raises:
        InvalidModelError, UnsupportedModelError: octet does not take it.
        InvalidOptionsError: the precision is no 8-bit one.
    """
    if precision is Precision.FP32:
        raise InvalidOptionsError(
            "precision 'fp32' quantizes nothing; look at what 'int8' or 'fp8' would take."
        )
    model = load_model(path, weights=named_parts([(file.name, file) for file in weights]) or None)
    prepared = prepare(model)
    placement = place(prepared, precision=precision)
    constants = {tensor.name: tensor for tensor in prepared.proto.graph.initializer}
    stored = {weight.initializer for weight in placement.weights}
    return Inspection(
        file_bytes=sum(file.stat().st_size for file in (path, *weights)),
        opset=model.opset,
        inputs=tuple(spec.describe() for spec in model.inputs),
        outputs=tuple(spec.describe() for spec in model.outputs),
        operators=dict(Counter(_operator(node) for node in model.proto.graph.node).most_common()),
        parameters=sum(_elements(tensor) for tensor in constants.values() if tensor.data_type in _FLOATING),
        quantized_parameters=sum(_elements(constants[name]) for name in stored),
        activations=len(placement.activations),
        quantized=_quantizable(prepared, placement, constants),
        skipped=tuple(SkippedLayerReport.model_validate(vars(layer)) for layer in placement.skipped),
    )


def _quantizable(
    model: Model, placement: Placement, constants: dict[str, TensorProto]
) -> tuple[QuantizableLayer, ...]:
    operators = {node.name: node.op_type for node in model.proto.graph.node}
    return tuple(
        QuantizableLayer(
            node=weight.use.node,
            operator=operators[weight.use.node],
            shape=tuple(constants[weight.initializer].dims),
            parameters=_elements(constants[weight.initializer]),
        )
        for weight in placement.weights
    )


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _elements(tensor: TensorProto) -> int:
    return prod(tensor.dims)
