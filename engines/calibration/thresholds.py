"""From the histogram of an activation to its clipping threshold."""

from engines.calibration.automatic import choose
from engines.calibration.entropy import entropy_threshold
from engines.calibration.float8_thresholds import choose_float8, float8_threshold
from engines.calibration.histogram import Histogram
from engines.calibration.least_squares import least_squares_threshold
from engines.calibration.percentile import percentile_threshold
from engines.options import CalibrationMethod, Precision


def threshold(
    histogram: Histogram, method: CalibrationMethod, precision: Precision = Precision.INT8
) -> float:
    """The magnitude that becomes the largest number of the 8-bit grid, and beyond which values are clipped.

    For INT8 between 0 and the largest magnitude seen, for FP8 from that to less than twice that. 0 for a tensor
    that was 0 throughout.

    Raises:
        ValueError: the method is none for FP8 (`engines.options.FP8_METHODS`).
    """
    float8 = precision is Precision.FP8
    match chosen(histogram, method, precision):
        case CalibrationMethod.MAX:
            return histogram.absmax
        case CalibrationMethod.MSE:
            return float8_threshold(histogram) if float8 else least_squares_threshold(histogram)
        case CalibrationMethod.ENTROPY if not float8:
            return entropy_threshold(histogram)
        case CalibrationMethod.PERCENTILE if not float8:
            return percentile_threshold(histogram)
        case other:
            raise ValueError(
                f"there is no {other.value} calibration for {precision.value}; use max, mse or auto."
            )


def chosen(
    histogram: Histogram, method: CalibrationMethod, precision: Precision = Precision.INT8
) -> CalibrationMethod:
    """The method itself, or what AUTO chooses for the tensor."""
    if method is not CalibrationMethod.AUTO:
        return method
    return choose_float8(histogram) if precision is Precision.FP8 else choose(histogram)
