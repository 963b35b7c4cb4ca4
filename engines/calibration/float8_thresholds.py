"""Thresholds for E4M3: nothing is clipped, and the grid is shifted where that fits the tensor better.

The step of E4M3 is relative to the value, so a lower threshold buys no precision: one half as large moves every value
into the next binade, where its relative step is the same, and costs what it clips. (On Gaussian, Laplace and GELU
values E4M3 reaches 31.6 dB at the largest magnitude and no more at any lower threshold; on Student-t(3) clipping at
the 99.99th percentile costs 11 to 20 dB.) What is left to choose is where in a binade the values lie, and thresholds
from the largest magnitude to less than twice that are all the choices there are: 0.9 dB on uniform values, 0.1 dB at
most on the others.
"""

import numpy as np
from numpy.typing import NDArray

from engines.calibration.histogram import Histogram, suffix_sums
from engines.float8 import LARGEST, MAGNITUDES
from engines.options import CalibrationMethod

CANDIDATES = 64
"""Thresholds that are tried within the octave: 1.1% apart, a tenth of the widest relative step of the grid."""

LEAST_GAIN_DB = 0.1
"""What another threshold has to win over the largest magnitude to be chosen automatically."""


def float8_threshold(histogram: Histogram) -> float:
    """The threshold, from the largest magnitude to less than twice that, of least squared error on the E4M3 grid.

    0 for a tensor that was 0 throughout.
    """
    candidates = np.geomspace(1.0, 2.0, CANDIDATES, endpoint=False) * histogram.absmax
    return float(candidates[np.argmin(float8_errors(histogram, candidates))])


def choose_float8(histogram: Histogram) -> CalibrationMethod:
    """The method for one tensor: MSE where it gains at least `LEAST_GAIN_DB` over MAX, else MAX."""
    candidates = np.array([histogram.absmax, float8_threshold(histogram)])
    largest, fitted = float8_errors(histogram, candidates)
    gains = fitted < largest * 10 ** (-LEAST_GAIN_DB / 10)
    return CalibrationMethod.MSE if gains else CalibrationMethod.MAX


def float8_errors(histogram: Histogram, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error of the E4M3 grid per non-zero value, for every one of `thresholds`; same shape, [n].

    Thresholds are positive. The values of a bin are taken as spread evenly over it, because the lowest bins are wider
    than the steps of the grid there. With v_k the magnitudes of the grid, s the scale, and N_k and X_k the count and
    the sum of the values beyond s (v_k + v_{k-1}) / 2,

        sum (x - x')^2 = sum x^2 - 2 s sum_k (v_k - v_{k-1}) X_k + s^2 sum_k (v_k^2 - v_{k-1}^2) N_k

    as in `engines.calibration.error`.
    """
    counts = histogram.counts.astype(np.float64)
    values = counts.sum()
    if not values:
        return np.zeros_like(thresholds)
    # All in units of a bin until the end.
    centres = np.arange(counts.size) + 0.5
    scales = thresholds / (LARGEST * histogram.bin_width)
    grid = MAGNITUDES.astype(np.float64)
    boundaries = np.minimum((grid[1:] + grid[:-1]) / 2 * scales[:, np.newaxis], counts.size)
    bins = boundaries.astype(np.intp)
    # The part of the boundary's bin that lies below it.
    below = np.append(counts, 0.0)[bins] * (boundaries - bins)
    count_beyond = suffix_sums(counts)[bins] - below
    sum_beyond = suffix_sums(counts * centres)[bins] - below * (boundaries + bins) / 2
    squares = float(np.sum(counts * (centres**2 + 1 / 12)))
    errors = (
        squares - 2 * scales * (sum_beyond @ np.diff(grid)) + scales**2 * (count_beyond @ np.diff(grid**2))
    )
    result: NDArray[np.float64] = np.maximum(errors, 0.0) / values * histogram.bin_width**2
    return result
