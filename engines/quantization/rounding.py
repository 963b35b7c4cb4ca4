"""Weights that make up for what quantization takes away.

Rounding each weight to the nearest code minimises the error of the weights. What matters is the error of the
layer's outputs on its real inputs, and those inputs are quantized themselves. Both steps below minimise, over the
rows x that calibration saw and their quantized images x',

    sum | W x - V x' |^2

first over real V (a ridge regression: V takes over what the quantizer of the input distorts), then over V on the
grid: codes are fixed column by column, and the error of each is spread over the columns that are still free
(GPTQ: Frantar et al. 2022, arXiv:2210.17323; the order of columns by decreasing energy is theirs too). Only second
moments of the rows are needed; they are finite.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.formats import Codes, WeightGrid, weight_scales

Matrix = NDArray[np.float64]

DAMPING = 0.003
"""Weight of staying close to W, relative to the mean energy of the inputs: keeps the regression from learning the
calibration rows by heart where they are few, and the matrix invertible where inputs never vary."""

_BLOCK = 64
"""Columns that share one matrix product with the errors of all before them."""


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

    `gram` is the sum of x' x'^T [K, K] over the inputs that the weights will meet. With its factor gram = U U^T, U
    upper triangular, the squared error is |(W - V) U|^2, and column j of that holds the errors of columns 0 to j alone:
    so each code is the one closest to w_j and what makes up for the errors e_i before it, sum_i e_i U_ij / U_jj. This
    is GPTQ without its inverse (Chen et al. 2025, arXiv:2507.18553).
    """
    scales = weight_scales(weights, 0, grid)
    order = np.argsort(-np.diag(gram), kind="stable")
    # Columns as rows from here on, so that each lies together in memory.
    exact = np.array(weights.T[order], np.float64)
    factor = _upper_factor(gram[np.ix_(order, order)])
    factor = factor / np.diag(factor)
    codes = grid.encode(exact / scales)
    errors = np.zeros_like(exact)
    for start in range(0, len(exact), _BLOCK):
        end = min(start + _BLOCK, len(exact))
        wanted = exact[start:end] + factor[:start, start:end].T @ errors[:start]
        for column in range(start, end):
            target = wanted[column - start] + factor[start:column, column] @ errors[start:column]
            codes[column] = grid.encode(target / scales)
            errors[column] = exact[column] - grid.decode(codes[column]) * scales.astype(np.float64)
    restored = np.empty_like(codes)
    restored[order] = codes
    return RoundedWeights(codes=np.ascontiguousarray(restored.T), scales=scales)


def _damped(gram: Matrix, damping: float = DAMPING) -> Matrix:
    energy = float(np.trace(gram)) / len(gram)
    # Of inputs that never vary rounding may leave less than nothing, which no damping would outweigh.
    return gram + damping * (energy if energy > 0 else 1.0) * np.eye(len(gram))


def _upper_factor(gram: Matrix) -> Matrix:
    """U, upper triangular, with U U^T the matrix, damped by `DAMPING` or as much as makes it positive definite."""
    damping = DAMPING
    while True:
        try:
            return np.asarray(np.linalg.cholesky(_damped(gram, damping)[::-1, ::-1])[::-1, ::-1])
        except np.linalg.LinAlgError:
            # Rounding of the sums has made an eigenvalue negative.
            damping *= 10
