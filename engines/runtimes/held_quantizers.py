"""Keeps OpenVINO from moving quantizers to where it computes them wrongly. Three cases were seen, of OpenVINO 2026.4:

* A QuantizeLinear behind a Concat is moved to the Concat's inputs. Where the codes are INT8 and a convolution reads
  them, what comes out is rounded to whole numbers instead of to the scale: 3 dB where the ONNX standard has 60, for
  pairs behind the Concat, or in front of it as well, along any axis. Products of matrices, depthwise and transposed
  convolutions, and UINT8, with a zero point or without, are right.
* The codes of a convolution's output are moved, in place of the numbers, on their way to a Concat. Where the batch is
  free and an Expand to it makes the Concat's other input, most of them end up in the wrong places: 0 to 3 dB, for INT8
  and UINT8. So do vision transformers prepend their class token, and NNCF quantizes their patches.
* A cast from an input becomes part of the quantizer behind it, which has no kernel for some types: the model does not
  compile.

A Max in front of the quantizer stops all of them. It changes no answer, because its bound lies beyond the smallest
code, and the quantizer becomes part of its kernel, so that the values are read and written as often as before.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.model.tensors import Array
from engines.model.wiring import producers, readers
from engines.quantization.pairs import MOVING

_SMALLEST: Mapping[int, int] = {TensorProto.INT8: -128, TensorProto.UINT8: 0}
_BEYOND = 2
"""Steps below the smallest code at which the bound lies: rounding cannot reach it."""
_UNKNOWN_TYPES = frozenset(
    {TensorProto.DOUBLE, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
)
_RECTIFIERS = frozenset({"Relu", "Clip"})


def hold_quantizers(proto: onnx.ModelProto) -> None:
    """Puts a Max in front of every quantizer, in place, that would otherwise be moved and computed wrongly."""
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    wiring = _Wiring(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        wrong = (
            wiring.is_signed_concat(node, constants)
            or wiring.is_moved_convolution(node)
            or wiring.is_cast_of_unknown(node)
        )
        if wrong and (bound := _bound(node, constants)) is not None:
            # The quantized tensor's own name is unique, and so are names made of it.
            held, limit = f"{node.output[0]}_held", f"{node.output[0]}_least"
            graph.initializer.append(numpy_helper.from_array(bound, limit))
            nodes.append(onnx.helper.make_node("Max", [node.input[0], limit], [held], name=held))
            node.input[0] = held
        nodes.append(node)
    if len(nodes) > len(graph.node):
        found = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(found)


class _Wiring:
    """What is in front of the quantizers of a graph, and what reads their codes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._operators = {name: node.op_type for name, node in producers(graph).items()}
        self._sources = {name: node.input[0] for name, node in producers(graph).items() if node.input}
        self._readers = readers(graph)
        unknown = (v for v in graph.input if v.type.tensor_type.elem_type in _UNKNOWN_TYPES)
        self._unknown = {value.name for value in unknown}

    def is_signed_concat(self, node: onnx.NodeProto, constants: dict[str, TensorProto]) -> bool:
        """Whether a node quantizes a Concat's output to INT8 for a convolution."""
        return (
            node.op_type == "QuantizeLinear"
            and self._operators.get(node.input[0]) == "Concat"
            and _code_type(node, constants) == TensorProto.INT8
            and any(
                layer.op_type == "Conv" and layer.input[0] == pair.output[0]
                for pair in self._readers.get(node.output[0], [])
                if pair.op_type == "DequantizeLinear"
                for layer in self._readers.get(pair.output[0], [])
            )
        )

    def is_moved_convolution(self, node: onnx.NodeProto) -> bool:
        """Whether a node quantizes what a convolution puts out, which is moved, as codes or behind them, and joined."""
        if node.op_type != "QuantizeLinear":
            return False
        source = node.input[0]
        if self._operators.get(source) in _RECTIFIERS:
            source = self._sources[source]
        return self._operators.get(source) == "Conv" and self._is_joined(node.output[0])

    def is_cast_of_unknown(self, node: onnx.NodeProto) -> bool:
        """Whether a node quantizes what is cast from an input of a type that quantizers do not read."""
        source = node.input[0] if node.op_type == "QuantizeLinear" else ""
        return self._operators.get(source) == "Cast" and self._sources[source] in self._unknown

    def _is_joined(self, codes: str) -> bool:
        pending = [(codes, False)]
        for tensor, moved in pending:
            for node in self._readers.get(tensor, []):
                if node.op_type == "Concat" and moved:
                    return True
                if node.op_type == "DequantizeLinear" or node.op_type in MOVING:
                    pending += [(name, moved or node.op_type in MOVING) for name in node.output]
        return False


def _code_type(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> int:
    """Element type of the codes, which is that of the zero point; 0 where that is no constant."""
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    return 0 if zero_point is None else zero_point.data_type


def _bound(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Array | None:
    """A value below all that the quantizer tells apart; None where it is not 8-bit integers, or not known."""
    scale = constants.get(node.input[1])
    smallest = _SMALLEST.get(_code_type(node, constants))
    if scale is None or smallest is None:
        return None
    lowest = smallest - int(numpy_helper.to_array(constants[node.input[2]]).max())
    steps = numpy_helper.to_array(scale)
    return np.asarray(steps.max() * (lowest - _BEYOND), steps.dtype)
