"""What 8 bits make of a tensor: the expected squared error of a threshold, from the histogram alone."""

import numpy as np
from numpy.typing import NDArray

from engines.calibration.float8_thresholds import float8_errors
from engines.calibration.histogram import Histogram, suffix_sums
from engines.formats import ACTIVATION_LEVELS
from engines.options import Precision


def squared_errors(histogram: Histogram, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error of the INT8 grid per non-zero value, for every one of `thresholds`; same shape, [n].

    Every value counts as the centre of its bin; rounding inside the threshold and clipping beyond it are both in
    it, on the grid of `engines.formats`. Zeros have no error and are not counted. With scale s, the code of x is
    the number of boundaries (k - 1/2) s, k = 1..127, that x passes, so with N_k and X_k the count and the sum of
    the values from boundary k on

        sum (x - s code)^2 = sum x^2 - 2 s sum_k X_k + s^2 sum_k (2k - 1) N_k

    and suffix sums give it in 127 steps instead of one per bin. Values between the boundary and the centre of
    its bin fall to the wrong side by less than a bin, of which a step of the grid has 16 at least where nothing
    is clipped.
    """
    counts = histogram.counts.astype(np.float64)
    values = counts.sum()
    if not values:
        return np.zeros_like(thresholds)
    centres = np.arange(counts.size) + 0.5
    count_from = suffix_sums(counts)
    sum_from = suffix_sums(counts * centres)
    # All in units of a bin until the end.
    scales = thresholds / (ACTIVATION_LEVELS * histogram.bin_width)
    codes = np.arange(1, ACTIVATION_LEVELS + 1)
    # The first bin whose centre is at or beyond the boundary.
    first = np.ceil((codes - 0.5) * scales[:, np.newaxis] - 0.5)
    bins = np.minimum(first, counts.size).astype(np.intp)
    squares = float(np.sum(counts * centres**2))
    linear = sum_from[bins].sum(axis=1)
    quadratic = count_from[bins] @ (2.0 * codes - 1.0)
    errors = squares - 2 * scales * linear + scales**2 * quadratic
    result: NDArray[np.float64] = np.maximum(errors, 0.0) / values * histogram.bin_width**2
    return result


def noise_to_signal(histogram: Histogram, threshold: float, precision: Precision = Precision.INT8) -> float:
    """Mean squared error at `threshold` over the mean square of the values; 0 for a tensor of zeros.

    A cheap guess of what quantizing the tensor to INT8 or FP8 costs: it knows nothing of how the model goes on from
    there.
    """
    centres = (np.arange(histogram.counts.size) + 0.5) * histogram.bin_width
    energy = float(np.sum(histogram.counts * centres**2))
    if not energy:
        return 0.0
    errors = float8_errors if precision is Precision.FP8 else squared_errors
    error = float(errors(histogram, np.array([threshold]))[0])
    return error * int(histogram.counts.sum()) / energy
