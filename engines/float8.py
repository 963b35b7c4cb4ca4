"""The E4M3 grid: how a real number becomes one of 253 8-bit floats and back.

P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv:2209.05433; ONNX's FLOAT8E4M3FN ("Float stored
in 8 bits", conversion with saturation). A code is a sign, 4 bits e of exponent and 3 bits m of mantissa:

    e > 0    (1 + m / 8) 2^(e - 7)        up to 448
    e = 0    m 2^-9                       zero and the subnormals

There is no infinity, and the codes 0x7F and 0xFF are NaN. Within a binade the step is an eighth of its start, so
rounding errors are relative: 2^-4 of the value at most, whatever its size, from 448 down to 2^-6.

Symmetric quantization is that of `engines.formats` with E4M3 in the place of integers: code = E4M3(x / scale).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.formats import Codes, scale_of

LARGEST = 448.0
"""The largest magnitude of E4M3."""

_NAN = 0x7F
_SIGN = 0x80
_MANTISSA_BITS = 3
_LEAST_EXPONENT = -6
"""Of the smallest normal number; the subnormals below have its step."""
_STEPS_PER_UNIT = 512
"""Of the subnormals, 2^-9 apart."""


def snap(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The number of the grid nearest to each value, any shape; of two as near, the one with the even mantissa.

    Values beyond 448, infinity included, become 448 with their sign; NaN stays NaN.
    """
    limited = np.clip(values, -LARGEST, LARGEST)
    # frexp's mantissa is in [1/2, 1), so its exponent is one more than that of the binade.
    exponents = np.maximum(np.frexp(limited)[1] - 1, _LEAST_EXPONENT) - _MANTISSA_BITS
    with np.errstate(invalid="ignore"):  # NaN
        snapped: NDArray[np.float32] = np.ldexp(np.rint(np.ldexp(limited, -exponents)), exponents)
    return snapped.astype(np.float32, copy=False)


def encode(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Codes of the numbers that `snap` gives, as bytes of the same shape; NaN becomes 0x7F."""
    snapped = snap(values)
    magnitudes = np.abs(snapped)
    subnormal = magnitudes < 2.0**_LEAST_EXPONENT
    # A normal float32 has the same layout with 8 bits of exponent, biased by 127, and 20 more bits of mantissa.
    bits = magnitudes.view(np.int32) >> 20
    with np.errstate(invalid="ignore"):
        codes = np.where(subnormal, magnitudes * _STEPS_PER_UNIT, bits - ((127 - 7) << _MANTISSA_BITS))
    codes = np.where(np.signbit(snapped), codes + _SIGN, codes)
    return np.where(np.isnan(snapped), _NAN, codes).astype(np.uint8)


def decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers that the codes stand for, same shape."""
    return _VALUES[codes]


def _values() -> NDArray[np.float32]:
    """[256], the number of each code."""
    codes = np.arange(256)
    exponents, mantissas = (codes >> _MANTISSA_BITS) & 0xF, codes & 7
    normal = np.ldexp(1 + mantissas / 8, exponents - 7)
    magnitudes = np.where(exponents > 0, normal, mantissas / _STEPS_PER_UNIT)
    magnitudes[codes & _NAN == _NAN] = np.nan
    return np.where(codes & _SIGN, -magnitudes, magnitudes).astype(np.float32)


_VALUES = _values()
MAGNITUDES = _VALUES[:_NAN]
"""[127], every magnitude of the grid, ascending from 0."""


class Float8Weights:
    """Weights in E4M3: what `engines.formats.WeightGrid` asks for."""

    largest = LARGEST

    def encode(self, scaled: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Codes of weights over their scales."""
        return encode(scaled)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """Weights over their scales."""
        return decode(codes.view(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Float8Grid:
    """The numbers that an activation in E4M3 can be: an `engines.formats.Grid`."""

    scale: np.float32

    def snap(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each value as quantizing and dequantizing leaves it."""
        return snap(values / self.scale) * self.scale


def float8_grid(threshold: float, *, unsigned: bool = False) -> Float8Grid:  # noqa: ARG001 # called like INT8's
    """The grid whose largest number is the clipping `threshold`, or 1 for a tensor that was 0 throughout.

    E4M3 has a sign whether it is used or not, so `unsigned` changes nothing.
    """
    return Float8Grid(scale=scale_of(threshold, LARGEST))
