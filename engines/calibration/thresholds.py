"""From the histogram of an activation to its clipping threshold."""

from engines.calibration.entropy import entropy_threshold
from engines.calibration.histogram import Histogram
from engines.options import CalibrationMethod


def threshold(histogram: Histogram, method: CalibrationMethod) -> float:
    """The magnitude beyond which values are clipped, between 0 and the largest one seen.

    0 for a tensor that was 0 throughout.
    """
    match method:
        case CalibrationMethod.MAX:
            return histogram.absmax
        case CalibrationMethod.ENTROPY:
            return entropy_threshold(histogram)
