"""Zero points turned into none, exactly, where that can be done.

UINT8 with the zero point 128 is INT8 with the zero point 0, every code 128 lower: the grid is the same, number by
number, and so are rounding and saturation. Constants allow more: codes minus their zero point may be stored
whenever INT8 holds them. All other asymmetric quantizers have numbers that no symmetric one of the same scale has,
and TensorRT takes symmetric ones only.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engines.model.wiring import readers
from engines.preparation.tidying import fresh_name, tensor_names
from engines.quantization.pairs import MOVING, moved_to
from engines.quantization.quantizers import DEQUANTIZE, QUANTIZE, Quantizer

_MIDDLE = 128
_OUTPUT_DTYPE = "output_dtype"


def make_symmetric(
    proto: onnx.ModelProto, quantizers: Mapping[str, Quantizer]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy that answers the same with as many symmetric INT8 quantizers as can be, and the others' node names."""
    return _Symmetriser(proto, quantizers).run()


class _Symmetriser:
    def __init__(self, proto: onnx.ModelProto, quantizers: Mapping[str, Quantizer]) -> None:
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(proto)
        self._graph = self._proto.graph
        self._quantizers = quantizers
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._outputs = {value.name for value in self._graph.output}
        self._readers = readers(self._graph)
        self._names = tensor_names(self._graph)
        self._left = {name for name, quantizer in quantizers.items() if not quantizer.symmetric}

    def run(self) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        for node in list(self._graph.node):
            if (
                node.op_type == QUANTIZE
                and node.name in self._left
                and _is_middle(self._quantizers[node.name])
            ):
                self._convert(node)
        for name, tensor in self._constants.items():
            dequantizers = [node for node in self._readers.get(name, []) if node.name in self._left]
            if dequantizers and dequantizers[0].input[0] == name:
                self._convert_constant(tensor, dequantizers[0])
        order = [node.name for node in self._graph.node]
        return self._proto, tuple(name for name in order if name in self._left)

    def _convert(self, quantize: onnx.NodeProto) -> None:
        """Converts a Q and all that sees its codes, unless something does more than move them."""
        quantizer = self._quantizers[quantize.name]
        nodes, pending, moved = [quantize], [quantize.output[0]], {quantize.output[0]}
        while pending:
            codes = pending.pop()
            if codes in self._outputs:
                return
            for node in self._readers.get(codes, []):
                if node.op_type == DEQUANTIZE and self._quantizers[node.name].same_grid(quantizer):
                    nodes.append(node)
                elif node.op_type in MOVING and node.input[0] == codes:
                    pending += moved_to(node)
                    moved.update(moved_to(node))
                else:
                    return
        for node in nodes:
            self._make_symmetric(node)
        for value in self._graph.value_info:
            if value.name in moved:
                value.type.tensor_type.elem_type = TensorProto.INT8

    def _convert_constant(self, tensor: TensorProto, dequantizer: onnx.NodeProto) -> None:
        """Stores a constant's codes without their zero point, where INT8 holds them and every reader agrees."""
        quantizer = self._quantizers[dequantizer.name]
        nodes = self._readers[tensor.name]
        alike = all(
            node.op_type == DEQUANTIZE and self._quantizers[node.name].same_grid(quantizer) for node in nodes
        )
        codes = quantizer.shifted(numpy_helper.to_array(tensor))
        if not alike or tensor.name in self._outputs or not _fits_int8(codes):
            return
        tensor.CopyFrom(numpy_helper.from_array(codes.astype(np.int8), tensor.name))
        for node in nodes:
            self._make_symmetric(node)

    def _make_symmetric(self, node: onnx.NodeProto) -> None:
        zero = fresh_name(f"{node.output[0]}_zero", self._names)
        # A zero point has the shape of its scale.
        shape = list(self._constants[node.input[1]].dims)
        self._graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.int8), zero))
        inputs = [*node.input[:2], zero]
        del node.input[:]
        node.input.extend(inputs)
        kept = [attribute for attribute in node.attribute if attribute.name != _OUTPUT_DTYPE]
        if node.op_type == QUANTIZE:
            del node.attribute[:]
            node.attribute.extend(kept)
        self._left.discard(node.name)


def _is_middle(quantizer: Quantizer) -> bool:
    return quantizer.data_type == TensorProto.UINT8 and bool((quantizer.zero_point == _MIDDLE).all())


def _fits_int8(codes: NDArray[np.int64]) -> bool:
    return bool(codes.size == 0 or (codes.min() >= -128 and codes.max() <= 127))
