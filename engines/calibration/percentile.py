"""The percentile calibrator: a fixed, small share of the values is clipped."""

import numpy as np

from engines.calibration.histogram import Histogram

KEPT_SHARE = 0.9999
"""Share of the non-zero values that is not clipped.

H. Wu et al., "Integer Quantization for Deep Learning Inference", 2020, arXiv:2004.09602, table 5: of 99.9, 99.99,
99.999 and 99.9999%, 99.99% loses least over its convolutional networks.
"""


def percentile_threshold(histogram: Histogram, kept_share: float = KEPT_SHARE) -> float:
    """The least bin edge that keeps `kept_share` of the non-zero values, at most the largest magnitude.

    Exact zeros are not counted: how many a ReLU makes says nothing about the range of the others.
    """
    cumulated = np.cumsum(histogram.counts)
    values = int(cumulated[-1])
    if not values:
        return 0.0
    enough = int(np.searchsorted(cumulated, kept_share * values)) + 1
    return min(enough * histogram.bin_width, histogram.absmax)
