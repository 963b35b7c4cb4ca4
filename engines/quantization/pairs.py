"""Q/DQ pairs taken out of a graph that arrived quantized: what it computes without rounding.

Weights become the numbers that their codes stand for. Of a pair on an activation only the saturation stays, as a
Clip to the range of its codes: tools drop a ReLU in front of a quantizer whose range implies it (onnxruntime does
where the zero point is the smallest code), so without the Clip another function would be left.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.model.tensors import Array
from engines.model.wiring import readers
from engines.preparation.tidying import fresh_name, remove_dead_nodes, tensor_names
from engines.quantization.quantizers import DEQUANTIZE, QUANTIZE, Quantizer

MOVING = frozenset(
    {
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Split"),
        *("Expand", "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool"),
    }
)
"""Operators that hand on values of their first input without changing them."""
_Quantizers = Mapping[str, Quantizer]


def moved_to(node: onnx.NodeProto) -> list[str]:
    """The tensors that values of the first input of a `MOVING` node go to."""
    return [name for name in node.output[: 1 if node.op_type == "MaxPool" else None] if name]


def fold_constant_codes(proto: onnx.ModelProto, quantizers: _Quantizers) -> onnx.ModelProto:
    """A copy in which constants that are quantized while the model runs are stored as their codes.

    PyTorch and NNCF export weights as float constants with Q and DQ behind them; the codes are a quarter of it.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(proto)
    graph = folded.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        tensor = constants.get(node.input[0]) if node.op_type == QUANTIZE else None
        # The division is only sure to be rounded as runtimes round it where it is float32's.
        if tensor is None or tensor.data_type != TensorProto.FLOAT or node.output[0] in outputs:
            kept.append(node)
            continue
        codes = quantizers[node.name].codes(numpy_helper.to_array(tensor))
        graph.initializer.append(numpy_helper.from_array(codes, node.output[0]))
    _replace_nodes(graph, kept)
    remove_dead_nodes(graph)
    return folded


def without_pairs(proto: onnx.ModelProto, quantizers: _Quantizers) -> onnx.ModelProto:
    """A copy without rounding: see the module. Its Identity nodes and dead constants are left to be prepared away.

    Constants are expected as codes, which `fold_constant_codes` makes of them. A Q whose codes go elsewhere than to
    a DQ of the same grid (to an output of the model, into arithmetic) stays, and so does a DQ of codes from outside.
    """
    return _Remover(proto, quantizers).remove()


class _Remover:
    def __init__(self, proto: onnx.ModelProto, quantizers: _Quantizers) -> None:
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(proto)
        self._graph = self._proto.graph
        self._quantizers = quantizers
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._outputs = {value.name for value in self._graph.output}
        self._readers = readers(self._graph)
        self._names = tensor_names(self._graph)
        self._taken = {node.name for node in self._graph.node}

    def remove(self) -> onnx.ModelProto:
        nodes: list[onnx.NodeProto] = []
        for node in list(self._graph.node):
            if node.op_type == DEQUANTIZE and node.input[0] in self._constants:
                nodes.append(self._dequantized(node))
                continue
            chain = self._chain(node) if node.op_type == QUANTIZE else None
            if chain is None:
                nodes.append(node)
                continue
            nodes += self._saturation(node)
            for other in chain:
                self._release(other, self._quantizers[node.name])
        _replace_nodes(self._graph, nodes)
        del self._graph.value_info[:]
        return self._proto

    def _dequantized(self, node: onnx.NodeProto) -> onnx.NodeProto:
        codes = numpy_helper.to_array(self._constants[node.input[0]])
        real = self._constant(f"{node.output[0]}_real", self._quantizers[node.name].real(codes))
        return helper.make_node("Identity", [real], [node.output[0]], name=node.name)

    def _chain(self, quantize: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """All nodes that see the codes, or None where some of them does more than move them."""
        quantizer = self._quantizers[quantize.name]
        found: list[onnx.NodeProto] = []
        pending = [quantize.output[0]]
        while pending:
            codes = pending.pop()
            if codes in self._outputs:
                return None
            for node in self._readers.get(codes, []):
                if node in found:
                    continue
                if not self._fits(node, codes, quantizer):
                    return None
                found.append(node)
                if node.op_type != DEQUANTIZE:
                    pending += moved_to(node)
        return found

    def _fits(self, node: onnx.NodeProto, codes: str, quantizer: Quantizer) -> bool:
        if node.input[0] != codes or codes in list(node.input)[1:]:
            return False
        if node.op_type == DEQUANTIZE:
            return self._quantizers[node.name].same_grid(quantizer)
        if quantizer.axis is not None:
            return False
        if node.op_type == "Clip":
            return all(name in self._constants for name in node.input if name and name != codes)
        return node.op_type in MOVING

    def _saturation(self, quantize: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Of a quantizer that its codes stay in their range, written where its codes were."""
        quantizer, output = self._quantizers[quantize.name], quantize.output[0]
        low = self._constant(f"{output}_low", quantizer.bound(quantizer.low))
        high = self._constant(f"{output}_high", quantizer.bound(quantizer.high))
        if quantizer.axis is None:
            return [helper.make_node("Clip", [quantize.input[0], low, high], [output], name=quantize.name)]
        # Clip takes no bounds for each channel.
        raised = fresh_name(f"{output}_raised", self._names)
        first = fresh_name(f"{raised}_node", self._taken)
        return [
            helper.make_node("Max", [quantize.input[0], low], [raised], name=first),
            helper.make_node("Min", [raised, high], [output], name=quantize.name),
        ]

    def _release(self, node: onnx.NodeProto, quantizer: Quantizer) -> None:
        """Lets a node that saw codes see the real numbers."""
        if node.op_type == DEQUANTIZE:
            del node.input[1:]
            del node.attribute[:]
            node.op_type = "Identity"
        elif node.op_type == "Clip":
            for place, name in enumerate(node.input):
                if place and name:
                    bound = quantizer.real(numpy_helper.to_array(self._constants[name]))
                    node.input[place] = self._constant(f"{node.output[0]}_bound", bound)

    def _constant(self, wanted: str, value: Array) -> str:
        name = fresh_name(wanted, self._names)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
