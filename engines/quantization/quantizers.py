"""The quantizers of a graph that was quantized elsewhere: read from its Q/DQ nodes, and checked.

What counts is what the nodes mean (ONNX operators QuantizeLinear and DequantizeLinear):

    code = saturate(round_half_to_even(x / scale) + zero_point)        x' = (code - zero_point) * scale

In FP8 (E4M3) there are no zero points, and codes are floats: the division is rounded to the nearest of them. Exporters
write the same in many ways: scales of shape [] or [1], zero points left out, codes that are transposed,
sliced or clipped before they are dequantized. Nothing is assumed about where the nodes stand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engines import float8
from engines.errors import UnsupportedModelError
from engines.model.naming import label, quote
from engines.model.tensors import Array
from engines.model.wiring import int_attribute

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"

OPERATOR_ORIENTED = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
)
"""Standard operators that compute on codes themselves, or find their scale while they run."""

_RANGES: Mapping[int, tuple[float, float]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.FLOAT8E4M3FN: (-float8.LARGEST, float8.LARGEST),
}
"""Codes that octet takes, least and largest; those of 32 bits only in constants, where exporters keep biases."""
_REMEDY = (
    "export it in INT8, UINT8 or FP8 (E4M3) Q/DQ form, or upload the FP32 model and have octet quantize it."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantizer:
    """The grid of one QuantizeLinear or DequantizeLinear."""

    # In the element type of the real numbers, [] or [channels].
    scale: Array
    # [] or [channels].
    zero_point: NDArray[np.int64]
    # Element type of the codes, as in TensorProto.
    data_type: int
    # The axis of the channels; None where one scale serves the whole tensor.
    axis: int | None = None
    # Axes of the tensor, where there are channels.
    rank: int | None = None

    @property
    def is_float8(self) -> bool:
        """Whether the codes are 8-bit floats."""
        return self.data_type == TensorProto.FLOAT8E4M3FN

    @property
    def low(self) -> float:
        """The smallest code."""
        return _RANGES[self.data_type][0]

    @property
    def high(self) -> float:
        """The largest code."""
        return _RANGES[self.data_type][1]

    @property
    def symmetric(self) -> bool:
        """Whether the codes are signed and 0 stands for 0.0, which TensorRT demands."""
        return self.data_type != TensorProto.UINT8 and not self.zero_point.any()

    def same_grid(self, other: "Quantizer") -> bool:
        """Whether codes of the one are codes of the other."""
        return (
            (self.data_type, self.axis) == (other.data_type, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def real(self, codes: NDArray[Any]) -> Array:
        """The numbers that the codes stand for, in the scale's type."""
        real = self.shifted(codes).astype(self.scale.dtype) * self._along(self.scale)
        return np.asarray(real, self.scale.dtype)

    def shifted(self, codes: NDArray[Any]) -> NDArray[Any]:
        """The codes without their zero point."""
        if self.is_float8:
            return codes.astype(np.float32)
        shifted: NDArray[Any] = codes.astype(np.int64) - self._along(self.zero_point)
        return shifted

    def bound(self, code: float) -> Array:
        """The number that a code stands for, with an axis for each of the tensor's where there are channels."""
        return self.real(np.full((1,) * (self.rank or 0), code))

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        """The codes of `values`, rounded half to even and saturated."""
        if self.is_float8:
            return float8.encode(values / self._along(self.scale)).view(ml_dtypes.float8_e4m3fn)
        rounded = np.rint(values / self._along(self.scale)) + self._along(self.zero_point)
        codes: NDArray[Any] = np.clip(rounded, self.low, self.high)
        return codes.astype(np.uint8 if self.data_type == TensorProto.UINT8 else np.int8)

    def _along(self, array: NDArray[Any]) -> NDArray[Any]:
        if self.axis is None or self.rank is None:
            return array
        shape = [1] * self.rank
        shape[self.axis] = -1
        return array.reshape(shape)


def is_quantized(graph: onnx.GraphProto) -> bool:
    """Whether the graph holds quantizers, of whatever form."""
    wanted = {QUANTIZE, DEQUANTIZE, *OPERATOR_ORIENTED}
    return any(node.op_type in wanted for node in graph.node)


def read_quantizers(graph: onnx.GraphProto) -> dict[str, Quantizer]:
    """The quantizer of every Q and DQ node of a prepared graph, by the node's name.

    Raises:
        UnsupportedModelError: one cannot be compiled as it is meant; the message names the node.
    """
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        values = [*graph.input, *graph.value_info, *graph.output]
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        self._shapes: dict[str, list[int | None]] = {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            ]
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self._shapes.update((tensor.name, list(tensor.dims)) for tensor in graph.initializer)

    def read(self) -> dict[str, Quantizer]:
        found = {}
        for number, node in enumerate(self._graph.node):
            if node.op_type in OPERATOR_ORIENTED:
                raise UnsupportedModelError(operator_oriented(node, number))
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                found[node.name] = self._quantizer(node)
        return found

    def _quantizer(self, node: onnx.NodeProto) -> Quantizer:
        data_type = self._check_type(node)
        scale = self._parameter(node, 1, "scale")
        if scale.ndim > 1 or int_attribute(node, "block_size", 0):
            raise UnsupportedModelError(
                f"{label(node)} has a scale for every block of values (shape {list(scale.shape)}), which octet"
                f" does not compile: use one scale per tensor or per channel; {_REMEDY}"
            )
        real = scale.astype(np.float64)
        if not (np.isfinite(real).all() and (real > 0).all()):
            bad = real.ravel()[~(np.isfinite(real) & (real > 0)).ravel()][0]
            raise UnsupportedModelError(
                f"{label(node)} has the scale {bad:g}; scales are finite and above 0: export the model again."
            )
        zero_point = np.zeros(scale.shape, np.int64)
        if len(node.input) > 2 and node.input[2]:
            zero_point = self._parameter(node, 2, "zero point").astype(np.int64)
        if data_type == TensorProto.FLOAT8E4M3FN:
            _check_float8(node, zero_point)
        if zero_point.size != scale.size:
            raise UnsupportedModelError(
                f"{label(node)} has {scale.size} scales and {zero_point.size} zero points: export the model again."
            )
        if scale.size == 1:
            return Quantizer(scale=scale.reshape(()), zero_point=zero_point.reshape(()), data_type=data_type)
        axis, rank = self._channels(node, scale.size)
        return Quantizer(scale=scale, zero_point=zero_point, data_type=data_type, axis=axis, rank=rank)

    def _check_type(self, node: onnx.NodeProto) -> int:
        """The type of the codes, which is that of the zero point, where there is one."""
        if len(node.input) > 2 and node.input[2]:
            data_type = self._types.get(node.input[2], TensorProto.UNDEFINED)
        else:
            codes = node.output[0] if node.op_type == QUANTIZE else node.input[0]
            default = int_attribute(node, "output_dtype", 0) or TensorProto.UINT8
            data_type = self._types.get(codes) or default
        in_constants = node.op_type == DEQUANTIZE and node.input[0] in self._constants
        if data_type not in _RANGES or (data_type == TensorProto.INT32 and not in_constants):
            name = TensorProto.DataType.Name(data_type) if data_type else "unknown"
            raise UnsupportedModelError(
                f"{label(node)} has codes of the type {name}, which octet does not compile: {_REMEDY}"
            )
        return int(data_type)

    def _parameter(self, node: onnx.NodeProto, index: int, role: str) -> Array:
        name = node.input[index]
        if name not in self._constants:
            raise UnsupportedModelError(
                f"{label(node)} takes its {role} from {quote(name)}, which is computed while the model runs; octet"
                " takes constant quantizers: export with static quantization, or upload the FP32 model and have"
                " octet quantize it."
            )
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def _channels(self, node: onnx.NodeProto, scales: int) -> tuple[int, int]:
        """The axis of the channels, and how many axes there are."""
        axis = int_attribute(node, "axis", 1)
        shape = self._shapes.get(node.input[0])
        if shape is None:
            raise UnsupportedModelError(
                f"{label(node)} has {scales} scales for a tensor whose shape does not follow from the graph: use one"
                f" scale for the tensor; {_REMEDY}"
            )
        if not -len(shape) <= axis < len(shape) or shape[axis] not in (None, scales):
            raise UnsupportedModelError(
                f"{label(node)} has {scales} scales along axis {axis} of a tensor of the shape"
                f" {['?' if size is None else size for size in shape]}: export it with a scale for each channel."
            )
        return axis % len(shape), len(shape)


def _check_float8(node: onnx.NodeProto, zero_point: NDArray[np.int64]) -> None:
    """Refuses what no hardware does with E4M3.

    Raises:
        UnsupportedModelError: the node has a zero point, or makes NaN of large values.
    """
    if zero_point.any():
        raise UnsupportedModelError(
            f"{label(node)} has the zero point {zero_point.ravel()[0]} in FP8, where zero points are 0: export the"
            " model again."
        )
    if not int_attribute(node, "saturate", 1):
        raise UnsupportedModelError(
            f"{label(node)} makes NaN of values that FP8 does not reach (saturate = 0), which octet does not compile:"
            " export it with saturate = 1."
        )


def operator_oriented(node: onnx.NodeProto, number: int | None = None) -> str:
    """The message that refuses a node of the operator-oriented form."""
    return (
        f"{label(node, number)} computes on 8-bit codes itself; octet takes quantized models whose layers are"
        " standard operators between QuantizeLinear and DequantizeLinear: export it in Q/DQ form (for onnxruntime"
        " quantize_static with QuantFormat.QDQ), upload the FP32 model, or ask for precision fp32, which serves the"
        " graph as it is."
    )


def check_form(graph: onnx.GraphProto) -> None:
    """Refuses what cannot be built as a quantized model.

    Raises:
        UnsupportedModelError: names the first node of the operator-oriented form.
    """
    for number, node in enumerate(graph.node):
        if node.op_type in OPERATOR_ORIENTED:
            raise UnsupportedModelError(operator_oriented(node, number))
