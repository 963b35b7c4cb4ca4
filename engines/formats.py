"""The INT8 grid: how a real number becomes one of 256 codes and back.

Symmetric quantization (Jacob et al. 2018, arXiv:1712.05877; ONNX operators QuantizeLinear and DequantizeLinear):

    code = clip(round_half_to_even(x / scale), low, high)        x' = code * scale

The zero point is always 0, which TensorRT demands, so 0.0 is represented exactly.
"""

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.model.tensors import Array

ACTIVATION_LEVELS = 127
"""Steps from 0 to the clipping threshold of an activation."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales below the smallest normal float32 are flushed to zero by some kernels, and zero is no scale."""


Codes = NDArray[np.int8 | np.uint8]
"""8-bit integers, or the bytes of 8-bit floats."""


class WeightGrid(Protocol):
    """The numbers that weights can be, over the scale of their output channel."""

    @property
    def largest(self) -> float:
        """What the largest magnitude of a channel is scaled to."""

    def encode(self, scaled: NDArray[np.floating]) -> Codes:
        """Codes of weights over their scales, same shape: each rounded to the nearest, clipped to the largest."""

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """The numbers that the codes stand for, same shape."""


class WeightBits(enum.IntEnum):
    """How many bits of INT8 the weights use; a `WeightGrid`."""

    EIGHT = 8
    """Codes -127 to 127."""
    SEVEN = 7
    """Codes -63 to 63: two products of 8-bit activations fit the 16-bit sums of processors without VNNI."""

    @property
    def levels(self) -> int:
        """The largest code."""
        return int(2 ** (self.value - 1) - 1)

    @property
    def largest(self) -> float:
        """See `WeightGrid`."""
        return float(self.levels)

    def encode(self, scaled: NDArray[np.floating]) -> NDArray[np.int8]:
        """See `WeightGrid`."""
        return quantize(scaled, np.float32(1), low=-self.levels, high=self.levels)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """See `WeightGrid`."""
        return codes.astype(np.float32)


class Grid(Protocol):
    """The numbers that a quantized activation can be."""

    @property
    def scale(self) -> np.float32:
        """What QuantizeLinear divides by."""

    def snap(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each value as quantizing and dequantizing leaves it."""


@dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """A `Grid` of 8-bit integers: codes low..high times the scale."""

    scale: np.float32
    low: int
    high: int

    def snap(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Grid`."""
        snapped: NDArray[np.float32] = np.rint(values / self.scale)
        np.clip(snapped, self.low, self.high, out=snapped)
        snapped *= self.scale
        return snapped


def activation_grid(threshold: float, *, unsigned: bool = False) -> ActivationGrid:
    """The grid over the range of a clipping `threshold`; `unsigned` for one of 256 non-negative numbers."""
    scale = activation_scale(threshold)
    if unsigned:
        return ActivationGrid(scale=unsigned_scale(float(scale)), low=0, high=255)
    return ActivationGrid(scale=scale, low=-128, high=127)


def unsigned_scale(scale: float) -> np.float32:
    """The step of UINT8 over the range that INT8 covers with `scale` on the positive side."""
    return np.float32(max(float(scale) * ACTIVATION_LEVELS / 255, _SMALLEST_SCALE))


def activation_scale(threshold: float) -> np.float32:
    """Scale that maps the clipping `threshold` to the largest code.

    A tensor that was 0 throughout has no range to learn from: it gets the range 1, which is harmless while it
    stays 0 and keeps a signal where it does not.
    """
    return scale_of(threshold, ACTIVATION_LEVELS)


def scale_of(threshold: float, largest: float) -> np.float32:
    """Scale that maps the clipping `threshold`, or 1 where it is 0, to the number `largest` of a grid."""
    return np.float32(max((threshold or 1.0) / largest, _SMALLEST_SCALE))


def weight_scales(weights: NDArray[np.floating], axis: int, grid: WeightGrid) -> NDArray[np.float32]:
    """Scales per output channel, [weights.shape[axis]]: the channel's largest magnitude gets the largest number.

    A channel of zeros gets the scale 1.
    """
    others = tuple(index for index in range(weights.ndim) if index != axis)
    absmax = np.abs(weights).max(axis=others, initial=0.0).astype(np.float64)
    scales = np.where(absmax > 0, absmax / grid.largest, 1.0)
    return np.maximum(scales, _SMALLEST_SCALE).astype(np.float32)


def quantize(
    values: NDArray[np.floating], scale: NDArray[np.float32] | np.float32, *, low: int, high: int
) -> NDArray[np.int8]:
    """Codes of `values`; `scale` broadcasts against them, codes are clipped to low..high."""
    codes: NDArray[np.int8] = np.clip(np.rint(values / scale), low, high).astype(np.int8)
    return codes


def dequantize(codes: Codes, scale: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """The numbers that integer codes stand for."""
    return codes.astype(np.float32) * scale


def quantize_weights(
    weights: NDArray[np.floating], scales: NDArray[np.float32], axis: int, grid: WeightGrid
) -> Codes:
    """Codes of `weights` with one scale per index of `axis`, each rounded to the nearest."""
    return grid.encode(weights / along(scales, axis, weights.ndim))


def along(scales: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    """The scales as an array of `rank` dimensions that broadcasts along `axis`."""
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Signal to quantization noise, 10 log10(sum x^2 / sum (x - x')^2), in decibels.

    Infinite where the two are equal; minus infinity where a zero signal is not reproduced.
    """
    exact = reference.astype(np.float64)
    noise = float(np.sum((exact - candidate.astype(np.float64)) ** 2))
    signal = float(np.sum(exact**2))
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")
