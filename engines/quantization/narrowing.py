"""The weights of a model that arrived quantized, on processors that take 7 bits of them.

Without VNNI two products of an activation and a weight are added in 16 bits (`engines.runtimes.saturation`), which
hold 2 · 255 · 64. Weights with larger codes may come out wrong there. Most 8-bit exports have them; models trained
for 4 bits, or for such processors, do not.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engines.formats import WeightBits, along
from engines.preparation.tidying import fresh_name, tensor_names
from engines.quantization.quantizers import DEQUANTIZE, Quantizer

WIDEST_SAFE_CODE = 64
"""Largest magnitude of a code of which two products with 8-bit activations fit in 16 bits."""


def widest_code(proto: onnx.ModelProto) -> int:
    """The largest magnitude among the INT8 codes that are weights: dequantized constants with axes; 0 of none."""
    widest = 0
    for _, tensor in _weights(proto.graph):
        codes = numpy_helper.to_array(tensor).astype(np.int64)
        widest = max(widest, int(np.abs(codes).max(initial=0)))
    return widest


def narrow_weights(proto: onnx.ModelProto, quantizers: Mapping[str, Quantizer]) -> onnx.ModelProto:
    """A copy whose symmetric INT8 weights have codes up to 64, rounded again where they had larger ones.

    Channels that are narrow enough keep codes and scale: they lose nothing.
    """
    narrowed = onnx.ModelProto()
    narrowed.CopyFrom(proto)
    graph = narrowed.graph
    names = tensor_names(graph)
    for node, tensor in list(_weights(graph)):
        quantizer = quantizers[node.name]
        if not quantizer.symmetric:
            continue
        found = _narrowed(numpy_helper.to_array(tensor), quantizer)
        for place, value in enumerate(found):
            # Another layer may read the same codes or scales in another way.
            name = fresh_name(f"{node.input[place]}_7_bits", names)
            graph.initializer.append(numpy_helper.from_array(value, name))
            node.input[place] = name
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return narrowed


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, TensorProto]]:
    """INT8 constants with axes, each with the node that dequantizes it."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = constants.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        if tensor is not None and tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            yield node, tensor


def _narrowed(codes: NDArray[np.int8], quantizer: Quantizer) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """Codes and scales, the scales of the shape that they had."""
    others = tuple(axis for axis in range(codes.ndim) if axis != quantizer.axis)
    axes = None if quantizer.axis is None else others
    widest = np.abs(codes.astype(np.int64)).max(axis=axes, initial=0)
    factor = np.where(widest > WIDEST_SAFE_CODE, widest / WeightBits.SEVEN.levels, 1.0)
    scale = (quantizer.scale * factor).astype(quantizer.scale.dtype)
    spread = factor if quantizer.axis is None else along(factor, quantizer.axis, codes.ndim)
    return np.rint(codes / spread).astype(np.int8), np.asarray(scale)
