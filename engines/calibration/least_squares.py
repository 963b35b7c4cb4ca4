"""The mean-squared-error calibrator: the threshold that 8 bits reproduce the tensor best with.

W. Sung, S. Shin and K. Hwang, "Resiliency of Deep Neural Networks under Quantization", 2015, arXiv:1511.06488,
choose the step by least squared error; NVIDIA's pytorch-quantization has it as its `mse` calibrator.
"""

import numpy as np

from engines.calibration.entropy import FEWEST_VALUES
from engines.calibration.error import squared_errors
from engines.calibration.histogram import Histogram
from engines.calibration.percentile import percentile_threshold

LEAST_KEPT_SHARE = 0.99
"""Candidates keep at least this share of the non-zero values: the best ones of common distributions keep 99.98%."""

CANDIDATES = 512
"""Thresholds that are tried, in equal ratios. The error is flat around its least, and neighbours are 1.6% apart where
one outlier is a thousand times everything else."""


def least_squares_threshold(histogram: Histogram) -> float:
    """The candidate of least squared error; of equally good ones the largest, so at best the largest magnitude.

    With fewer than `FEWEST_VALUES` values nothing is clipped: the best fit to so few says little of the next ones.
    """
    absmax = histogram.absmax
    if int(histogram.counts.sum()) < FEWEST_VALUES:
        return absmax
    lowest = percentile_threshold(histogram, LEAST_KEPT_SHARE)
    candidates = np.geomspace(absmax, lowest, CANDIDATES)
    return float(candidates[np.argmin(squared_errors(histogram, candidates))])
