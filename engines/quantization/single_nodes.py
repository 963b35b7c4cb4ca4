"""Which nodes of an 8-bit model keep computing in float32 when the rest computes in 16-bit floats (FP16).

FP16 ends at 65504, and below 2^-14 it loses bits. So what stays is

    what reads or writes a tensor whose values passed 512 in calibration, or of which calibration saw nothing: the
    limit of NVIDIA's AutoCast, 128 times below the end, for inputs that calibration has not seen;
    what reads constants that FP16 does not hold: the epsilons of normalizations, masks of -3e38, scales of quantizers
    that rounding would move;
    Softmax, powers, sums over axes, and what a LayerNormalization that is written node by node makes of them until its
    root is drawn (ViT with these in FP16: 18.96% top-1, with the fused operator 85.27%);
    whatever a quantizer of these connects: between a DequantizeLinear and the layer that it feeds must be no cast, or
    the layer does not run in 8 bits.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.model.tensors import Array
from engines.model.wiring import producers, readers
from engines.quantization.quantizers import DEQUANTIZE, QUANTIZE

LARGEST = 512.0
"""Values up to here are safe in FP16."""
_SMALLEST = 2.0**-14
"""The smallest positive number that FP16 holds with all its bits."""
_STEP_SHARE = 1 / 512
"""How far rounding may move a scale: by this share, which at the last code of INT8 is a quarter of a step."""

_SINGLE = frozenset(
    {
        *("Softmax", "LogSoftmax", "Pow", "CumSum", "Range", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
        # No FP16 in onnxruntime's conversion.
        *("NonMaxSuppression", "TopK", "RoiAlign", "Min", "Max", "Upsample", "RandomUniformLike"),
    }
)
_ROOT = frozenset({"Add", "Sqrt", "Reciprocal"})
"""What comes between the mean of squares and the division by its root."""
_CODES: Mapping[int, float] = {
    TensorProto.INT8: 128.0,
    TensorProto.UINT8: 255.0,
    TensorProto.FLOAT8E4M3FN: 448.0,
}
"""The largest magnitude of a code."""


def single_nodes(graph: onnx.GraphProto, magnitudes: Mapping[str, float]) -> frozenset[str]:
    """Names of the nodes that stay in float32.

    Args:
        graph: nodes with names of their own, constants as initializers, types of all tensors known.
        magnitudes: the largest magnitude of every floating tensor of the FP32 model, as seen in calibration.
    """
    return _Rules(graph, magnitudes).apply()


class _Rules:
    def __init__(self, graph: onnx.GraphProto, magnitudes: Mapping[str, float]) -> None:
        self._graph = graph
        self._seen = magnitudes
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._floating = {
            value.name
            for value in (*graph.input, *graph.output, *graph.value_info)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._producers = producers(graph)
        self._readers = readers(graph)
        self._kept: set[str] = set()

    def apply(self) -> frozenset[str]:
        for node in self._graph.node:
            if node.op_type in _SINGLE or self._passes(node):
                self._kept.add(node.name)
            if node.op_type.startswith("Reduce") and self._is_square(node.input[0]):
                self._keep_until_root(node)
        while self._spread():
            pass
        return frozenset(self._kept)

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether the node reads or writes what FP16 does not hold."""
        quantizer = node.op_type in (QUANTIZE, DEQUANTIZE)
        if quantizer and not _survives(self._constants.get(node.input[1])):
            return True
        names = (*node.input[:1], *node.output) if quantizer else (*node.input, *node.output)
        return any(not self._fits(name) for name in names if name)

    def _fits(self, name: str) -> bool:
        if (constant := self._constants.get(name)) is not None:
            return constant.data_type != TensorProto.FLOAT or _constant_fits(constant)
        if name not in self._floating:
            return True
        maker = self._producers.get(name)
        if maker is not None and maker.op_type == DEQUANTIZE:
            return self._dequantized(maker) <= LARGEST
        return self._seen.get(name, math.inf) <= LARGEST

    def _dequantized(self, node: onnx.NodeProto) -> float:
        """A bound of what a DequantizeLinear writes."""
        scales = self._constants.get(node.input[1])
        if scales is None:
            return math.inf
        largest = _largest(numpy_helper.to_array(scales))
        codes = self._constants.get(node.input[0])
        if codes is not None and codes.data_type == TensorProto.INT32:
            return largest * _largest(numpy_helper.to_array(codes))
        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else codes
        return largest * _CODES.get(zero.data_type if zero is not None else 0, math.inf)

    def _is_square(self, name: str) -> bool:
        maker = self._producers.get(name)
        if maker is None:
            return False
        return maker.op_type == "Pow" or (maker.op_type == "Mul" and maker.input[0] == maker.input[1])

    def _keep_until_root(self, reduction: onnx.NodeProto) -> None:
        self._kept.add(self._producers[reduction.input[0]].name)
        front = [reduction]
        while front:
            for reader in self._readers.get(front.pop().output[0], ()):
                if reader.op_type in _ROOT and reader.name not in self._kept:
                    self._kept.add(reader.name)
                    front.append(reader)

    def _spread(self) -> bool:
        """Keeps what a quantizer connects to what is kept; whether that was anything new."""
        before = len(self._kept)
        for node in self._graph.node:
            if node.op_type == DEQUANTIZE:
                joined = {node.name, *(each.name for each in self._neighbours(node))}
                if joined & self._kept:
                    self._kept |= joined
        return len(self._kept) > before

    def _neighbours(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        yield from self._readers.get(node.output[0], ())
        maker = self._producers.get(node.input[0])
        if maker is not None and maker.op_type == QUANTIZE:
            yield maker


def _constant_fits(tensor: TensorProto) -> bool:
    largest = _largest(numpy_helper.to_array(tensor))
    return largest == 0 or _SMALLEST <= largest <= LARGEST


def _survives(scales: TensorProto | None) -> bool:
    """Whether scales mean the same in FP16."""
    if scales is None:
        return False
    values = numpy_helper.to_array(scales).astype(np.float32)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float32)
    return bool(
        np.all(np.isfinite(rounded)) and np.all(np.abs(rounded - values) <= _STEP_SHARE * np.abs(values))
    )


def _largest(values: Array) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0.0))
