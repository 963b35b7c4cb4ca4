"""The entropy calibrator: the clipping threshold that loses the least information.

S. Migacz, "8-bit inference with TensorRT", GTC 2017, as NVIDIA's pytorch-quantization publishes it. For every
candidate i, the number of histogram bins that are kept:

    P   the counts of bins 0..i-1, all that lies beyond added to the last one: what clipping at i makes of them
    Q   the same bins without the clipped counts, merged to 128 levels and spread again over the bins that were
        not empty: what 8 bits can tell apart

and the threshold is that of the i with the least Kullback-Leibler divergence D(P || Q).

Written out, with h the counts, T their sum, t the clipped part, and S_l, n_l the sum and the number of non-empty
bins of level l (Q is S_l / n_l in each of its non-empty bins):

    D = [ sum_j P_j ln P_j  -  sum_l S_l ln(S_l / n_l)  -  t ln Q_last ] / T  -  ln T + ln(T - t)

Prefix sums of h, of h ln h and of the non-empty bins give every term for a level at once, so a candidate costs 128
steps instead of i.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from engines.calibration.histogram import Histogram

LEVELS = 128
"""Magnitudes that INT8 tells apart, 0 included."""

FEWEST_VALUES = 16 * LEVELS
"""With fewer non-zero values the histogram is mostly noise: the divergence then prefers whatever clips a few
lonely outliers, of which one in two thousand values is no evidence. Nothing is clipped."""


def entropy_threshold(histogram: Histogram) -> float:
    """The threshold T of least divergence, (i + 0.5) bin widths and at most the largest magnitude.

    Zero, and the values near it, are represented well at any threshold and say nothing about it, but a spike of
    them outweighs all the rest (a ReLU's zeros pull T down to a third of what is right). Exact zeros are not
    counted, and the first bin counts no more than its neighbour.
    """
    absmax = histogram.absmax
    counts = histogram.counts.astype(np.float64)
    counts[0] = min(counts[0], counts[1])
    used = math.ceil(absmax / histogram.bin_width) if absmax > 0 else 0
    if used <= LEVELS or counts.sum() < FEWEST_VALUES:
        return absmax
    best = int(_least_divergent(counts[: min(used + 1, len(counts))]))
    return min((best + 0.5) * histogram.bin_width, absmax)


@numba.njit("int64(float64[::1])", nogil=True, cache=True)  # type: ignore[untyped-decorator] # numba ships no types
def _least_divergent(counts: NDArray[np.float64]) -> int:
    """The number of bins to keep, from LEVELS to all; of equally good ones, the largest."""
    bins = counts.size
    mass = np.zeros(bins + 1)
    filled = np.zeros(bins + 1)
    information = np.zeros(bins + 1)
    for index in range(bins):
        count = counts[index]
        mass[index + 1] = mass[index] + count
        filled[index + 1] = filled[index] + (count > 0)
        information[index + 1] = information[index] + (count * math.log(count) if count > 0 else 0.0)
    total = mass[bins]
    best, least = bins, math.inf
    for kept in range(LEVELS, bins + 1):
        clipped = total - mass[kept]
        last = counts[kept - 1]
        if clipped > 0 and last == 0:
            continue  # P has mass where Q has none: the divergence is infinite
        spread = 0.0
        density = 0.0
        for level in range(LEVELS):
            start = -(-level * kept // LEVELS)
            end = -(-(level + 1) * kept // LEVELS)
            level_mass = mass[end] - mass[start]
            if level_mass > 0:
                density = level_mass / (filled[end] - filled[start])
                spread += level_mass * math.log(density)
        own = information[kept]
        if clipped > 0:
            own += (last + clipped) * math.log(last + clipped) - last * math.log(last)
            spread += clipped * math.log(density)
        divergence = (own - spread) / total - math.log(total) + math.log(mass[kept])
        if divergence <= least:
            best, least = kept, divergence
    return best
