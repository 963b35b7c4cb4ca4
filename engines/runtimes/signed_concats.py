"""Keeps OpenVINO from moving the quantizer of a signed Concat into its inputs, where it is computed wrongly.

OpenVINO 2026.4 moves a QuantizeLinear behind a Concat to the Concat's inputs. Where the codes are INT8 and a
convolution reads them, what comes out is rounded to whole numbers instead of to the scale: 3 dB where the ONNX
standard has 60, for pairs behind the Concat, or in front of it as well, along any axis. Products of matrices, depthwise
and transposed convolutions, and UINT8, with a zero point or without, are right.

A Max between the two stops the move. It changes no answer, because its bound lies beyond the smallest code, and the
quantizer becomes part of its kernel, so that the values are read and written as often as before.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.tensors import Array

_SMALLEST = -128
_BEYOND = 2
"""Steps below the smallest code at which the bound lies: rounding cannot reach it."""


def hold_signed_concats(proto: onnx.ModelProto) -> None:
    """Puts a Max in front of every quantizer, in place, that would otherwise be moved and computed wrongly."""
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    concats = {node.output[0] for node in graph.node if node.op_type == "Concat"}
    convolved = _convolved(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if (
            node.op_type == "QuantizeLinear"
            and node.input[0] in concats
            and node.output[0] in convolved
            and (bound := _bound(node, constants)) is not None
        ):
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


def _convolved(graph: onnx.GraphProto) -> set[str]:
    """Codes that a convolution reads, dequantized."""
    read = {node.input[0] for node in graph.node if node.op_type == "Conv"}
    return {
        node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] in read
    }


def _bound(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Array | None:
    """A value below all that the quantizer tells apart; None where it is not INT8, or not known."""
    scale = constants.get(node.input[1])
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero_point is None or zero_point.data_type != TensorProto.INT8:
        return None
    lowest = _SMALLEST - int(numpy_helper.to_array(zero_point).max())
    steps = numpy_helper.to_array(scale)
    return np.asarray(steps.max() * (lowest - _BEYOND), steps.dtype)
