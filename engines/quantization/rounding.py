"""Weights that make up for what quantization takes away.

Rounding each weight to the nearest code minimises the error of the weights. What matters is the error of the
layer's outputs on its real inputs, and those inputs are quantized themselves. Both steps below minimise, over the
rows x that calibration saw and their quantized images x',

    sum | W x - V x' |^2

first over real V (a ridge regression: V takes over what the quantizer of the input distorts), then over V on the
grid: codes are fixed column by column, and the error of each is spread over the columns that are still free
(GPTQ: Frantar et al. 2022, arXiv:2210.17323; the order of columns by decreasing energy is theirs too). Only second
moments of the rows are needed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.formats import Codes, WeightGrid, along, quantize_weights, weight_scales

Matrix = NDArray[np.float64]

DAMPING = 0.003
"""Weight of staying close to W, relative to the mean energy of the inputs: keeps the regression from learning the
calibration rows by heart where they are few, and the matrix invertible where inputs never vary."""

_BLOCK = 64
"""Columns after which the collected errors are spread in one matrix product."""


@dataclass(frozen=True, kw_only=True)
class RoundedWeights:
    """Weights on the grid."""

    # One row of codes per output channel, [M, K].
    codes: Codes
    # One per output channel, [M].
    scales: NDArray[np.float32]


def compensated(weights: Matrix, gram: Matrix, cross: Matrix) -> Matrix:
    """The real weights V [M, K] that serve quantized inputs best.

    Args:
        weights: W [M, K].
        gram: sum of x' x'^T [K, K].
        cross: sum of x' x^T [K, K].
    """
    ridge = _damped(gram) - gram
    return np.asarray(np.linalg.solve(gram + ridge, (cross + ridge) @ weights.T).T)


def rounded(weights: Matrix, gram: Matrix, grid: WeightGrid) -> RoundedWeights:
    """Weights V [M, K] on the grid, each rounding error spread over the columns not yet rounded.

    `gram` is the sum of x' x'^T [K, K] over the inputs that the weights will meet.
    """
    scales = weight_scales(weights, 0, grid)
    order = np.argsort(-np.diag(gram), kind="stable")
    left = np.array(weights[:, order], np.float64)
    # Rows of the Cholesky factor of the inverse say how much of a column's error each later column can take.
    inverse = np.linalg.inv(_damped(gram)[np.ix_(order, order)])
    spread = np.linalg.cholesky((inverse + inverse.T) / 2).T
    codes = grid.encode(left / along(scales, 0, 2))
    columns = left.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((len(left), end - start))
        for column in range(start, end):
            code = grid.encode(left[:, column] / scales)
            codes[:, column] = code
            stored = grid.decode(code) * scales.astype(np.float64)
            error = (left[:, column] - stored) / spread[column, column]
            errors[:, column - start] = error
            left[:, column + 1 : end] -= np.outer(error, spread[column, column + 1 : end])
        left[:, end:] -= errors @ spread[start:end, end:]
    restored = np.empty_like(codes)
    restored[:, order] = codes
    return RoundedWeights(codes=restored, scales=scales)


def nearest(weights: Matrix, grid: WeightGrid) -> RoundedWeights:
    """Weights [M, K] each rounded to its nearest code: what `rounded` does without knowing the inputs."""
    scales = weight_scales(weights, 0, grid)
    return RoundedWeights(codes=quantize_weights(weights, scales, 0, grid), scales=scales)


def _damped(gram: Matrix) -> Matrix:
    energy = float(np.trace(gram)) / len(gram)
    return gram + DAMPING * (energy or 1.0) * np.eye(len(gram))
