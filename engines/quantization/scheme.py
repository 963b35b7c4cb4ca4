"""What an 8-bit type decides about quantizers: their codes and scales."""

from dataclasses import dataclass
from typing import Protocol

from onnx import TensorProto

from engines.float8 import Float8Weights, float8_grid
from engines.formats import Grid, WeightBits, WeightGrid, activation_grid
from engines.options import Precision


class ActivationGrids(Protocol):
    """The grid of an activation over the range of its clipping threshold."""

    def __call__(self, threshold: float, *, unsigned: bool = False) -> Grid:
        """`unsigned` for an activation that is never negative, in a runtime that makes use of it."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Symmetric quantization to one 8-bit type."""

    # For messages, for example "FP8".
    name: str
    # The ONNX element type of codes and zero points.
    element_type: int
    # The first opset whose QuantizeLinear has the type, with an axis.
    first_opset: int
    weights: WeightGrid
    activation_grid: ActivationGrids


def scheme_of(precision: Precision, *, weight_bits: int = 8) -> Scheme:
    """The scheme of an 8-bit precision; `weight_bits` are those of INT8 weights.

    Raises:
        ValueError: the precision is not one of 8 bits.
    """
    match precision:
        case Precision.INT8:
            return Scheme(
                name="INT8",
                element_type=TensorProto.INT8,
                first_opset=13,
                weights=WeightBits(weight_bits),
                activation_grid=activation_grid,
            )
        case Precision.FP8:
            return Scheme(
                name="FP8",
                element_type=TensorProto.FLOAT8E4M3FN,
                first_opset=19,
                weights=Float8Weights(),
                activation_grid=float8_grid,
            )
        case Precision.FP32:
            raise ValueError("fp32 quantizes nothing, so there is no scheme for it; ask for int8 or fp8.")
