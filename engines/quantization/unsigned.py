"""Half the step for activations that are never negative.

The artifact is symmetric INT8, as TensorRT demands, and so a ReLU's output uses only the codes 0 to 127. A
runtime that takes unsigned 8-bit activations can have codes 0 to 255 over the same range: rounding errors halve,
and no other value of the model changes. Only tensors that the graph itself proves to be non-negative qualify;
samples prove nothing about the inputs to come.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.formats import unsigned_scale
from engines.model.wiring import readers

_MARK = "octet.quantizers"
_KEPT = "as trained"
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Sqrt", "Exp"})
"""Operators whose output is never negative."""
_KEEPING = frozenset(
    {
        *(
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "ReduceMean",
            "ReduceMax",
            "ReduceSum",
        ),
        *(
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Gather",
            "Split",
            "Expand",
            "Tile",
        ),
        *("Identity", "Dropout", "DepthToSpace", "SpaceToDepth"),
        # Codes and what they stand for have the sign of what was quantized.
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
"""Operators whose output is not negative where their first input is not."""
_COMBINING = frozenset({"Concat", "Add", "Mul", "Max", "Sum"})
"""Operators whose output is not negative where none of their inputs is."""


def refine_unsigned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which Q/DQ pairs of provably non-negative activations are UINT8, over the same range.

    Of a model whose quantizers are to be kept, a copy as it is: with finer steps it would be another one than the
    one that was trained.
    """
    refined = onnx.ModelProto()
    refined.CopyFrom(proto)
    if quantizers_are_kept(proto):
        return refined
    _Refiner(refined.graph).refine()
    return refined


def keep_quantizers(proto: onnx.ModelProto) -> None:
    """Marks a model as one whose weights were trained for its quantizers: no runtime may refine them."""
    onnx.helper.set_model_props(
        proto, {**{entry.key: entry.value for entry in proto.metadata_props}, _MARK: _KEPT}
    )


def quantizers_are_kept(proto: onnx.ModelProto) -> bool:
    """Whether a model bears the mark of `keep_quantizers`."""
    return any(entry.key == _MARK and entry.value == _KEPT for entry in proto.metadata_props)


def non_negative(graph: onnx.GraphProto) -> Mapping[str, bool]:
    """For every tensor whether the graph proves that it is never negative; nodes in topological order."""
    known: dict[str, bool] = dict.fromkeys((value.name for value in graph.input), False)
    for tensor in graph.initializer:
        # Large constants are weights, not worth reading, or not there: an addend that matters is a scalar or a bias.
        elements = int(np.prod(tensor.dims, dtype=np.int64))
        small = elements <= 1 << 16 and tensor.data_location != TensorProto.EXTERNAL
        known[tensor.name] = small and bool((numpy_helper.to_array(tensor) >= 0).all())
    for node in graph.node:
        proven = _proven(node, known)
        known.update((name, proven) for name in node.output)
    return known


def _proven(node: onnx.NodeProto, known: Mapping[str, bool]) -> bool:
    first = bool(node.input) and known.get(node.input[0], False)
    if node.op_type in _NON_NEGATIVE:
        return True
    if node.op_type == "Clip":
        return first or (len(node.input) > 1 and known.get(node.input[1], False))
    if node.op_type in _COMBINING:
        return all(known.get(name, False) for name in node.input)
    return first and node.op_type in _KEEPING


class _Refiner:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._non_negative = non_negative(graph)

    def refine(self) -> None:
        read_by = readers(self._graph)
        for node in self._graph.node:
            pairs = read_by.get(node.output[0], []) if node.op_type == "QuantizeLinear" else []
            if (
                pairs
                and self._non_negative.get(node.input[0], False)
                and self._is_symmetric_int8(node)
                and all(other.op_type == "DequantizeLinear" for other in pairs)
            ):
                self._make_unsigned([node, *pairs])

    def _is_symmetric_int8(self, node: onnx.NodeProto) -> bool:
        zero_point = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        return (
            node.input[1] in self._constants
            and zero_point is not None
            and zero_point.data_type == onnx.TensorProto.INT8
            and not zero_point.dims
            and not numpy_helper.to_array(zero_point).any()
        )

    def _make_unsigned(self, nodes: list[onnx.NodeProto]) -> None:
        scale = numpy_helper.to_array(self._constants[nodes[0].input[1]])
        # The quantized tensor's own name is unique, and so are names made of it.
        names = [f"{nodes[0].output[0]}_unsigned_scale", f"{nodes[0].output[0]}_unsigned_zero_point"]
        values = (np.asarray(unsigned_scale(float(scale))), np.zeros((), np.uint8))
        for name, value in zip(names, values, strict=True):
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        for node in nodes:
            inputs = [node.input[0], *names]
            del node.input[:]
            node.input.extend(inputs)
