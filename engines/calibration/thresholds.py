"""From the histogram of an activation to its clipping threshold."""

from engines.calibration.automatic import choose
from engines.calibration.entropy import entropy_threshold
from engines.calibration.histogram import Histogram
from engines.calibration.least_squares import least_squares_threshold
from engines.calibration.percentile import percentile_threshold
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
        case CalibrationMethod.MSE:
            return least_squares_threshold(histogram)
        case CalibrationMethod.PERCENTILE:
            return percentile_threshold(histogram)
        case CalibrationMethod.AUTO:
            return threshold(histogram, choose(histogram))
