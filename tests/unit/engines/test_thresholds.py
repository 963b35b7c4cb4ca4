from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.calibration.automatic import LEAST_GAIN_DB, choose
from engines.calibration.entropy import FEWEST_VALUES
from engines.calibration.error import noise_to_signal, squared_errors
from engines.calibration.histogram import Histogram
from engines.calibration.least_squares import least_squares_threshold
from engines.calibration.percentile import percentile_threshold
from engines.calibration.thresholds import threshold
from engines.formats import activation_scale, dequantize, quantize, sqnr_db
from engines.options import CalibrationMethod

Values = NDArray[np.float32]
COUNT = 200_000


def relu(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(values - 0.25, 0)


def draw(name: str, seed: int = 3, count: int = COUNT) -> Values:
    random = np.random.default_rng(seed)
    shapes: dict[str, Callable[[], NDArray[np.float64]]] = {
        "normal": lambda: random.normal(size=count),
        "half-normal": lambda: np.abs(random.normal(size=count)),
        "laplace": lambda: random.laplace(size=count),
        "student-t": lambda: random.standard_t(3, size=count),
        "relu": lambda: relu(random.normal(size=count)),
        "uniform": lambda: random.uniform(size=count),
        "outlier": lambda: np.append(random.normal(size=count - 1), 60.0),
        "constant": lambda: np.full(count, 2.5),
    }
    return shapes[name]().astype(np.float32)


NAMES = ["normal", "half-normal", "laplace", "student-t", "relu", "uniform", "outlier", "constant"]


def on_grid(values: Values, limit: float) -> Values:
    scale = activation_scale(limit)
    return dequantize(quantize(values, scale, low=-127, high=127), scale)


def real_error(values: Values, limit: float) -> float:
    """The mean squared error per non-zero value, from the values themselves."""
    error = values.astype(np.float64) - on_grid(values, limit)
    return float(np.sum(error**2)) / max(1, int(np.count_nonzero(values)))


def literal_errors(histogram: Histogram, limits: NDArray[np.float64]) -> list[float]:
    """Every bin's centre through the grid, one threshold after the other."""
    centres = (np.arange(histogram.counts.size) + 0.5) * histogram.bin_width
    errors = []
    for limit in limits:
        scale = limit / 127
        # Half to the upper side: a tie costs the same either way.
        coarse = np.minimum(np.floor(centres / scale + 0.5), 127) * scale
        errors.append(float(np.sum(histogram.counts * (centres - coarse) ** 2) / histogram.counts.sum()))
    return errors


@pytest.mark.parametrize("name", NAMES)
def test_error_is_that_of_every_bin_centre_on_the_grid(name: str) -> None:
    histogram = Histogram.of(draw(name))
    limits = histogram.absmax * np.array([0.01, 0.1, 0.3, 0.77, 1.0])
    expected = literal_errors(histogram, limits)
    assert squared_errors(histogram, limits) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["normal", "half-normal", "laplace", "relu", "uniform", "student-t"])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_error_predicts_that_of_the_values_themselves(name: str, share: float) -> None:
    values = draw(name)
    histogram = Histogram.of(values)
    limit = share * histogram.absmax
    found = squared_errors(histogram, np.array([limit]))[0]
    assert found == pytest.approx(real_error(values, limit), rel=0.05)


def test_zeros_change_neither_error_nor_threshold() -> None:
    values = draw("half-normal")
    padded = Histogram.of(np.append(values, np.zeros(5 * COUNT, np.float32)))
    alone = Histogram.of(values)
    limits = np.array([1.0, 3.0])
    assert np.array_equal(squared_errors(padded, limits), squared_errors(alone, limits))
    for method in CalibrationMethod:
        assert threshold(padded, method) == threshold(alone, method)


@pytest.mark.parametrize("name", NAMES)
def test_least_squares_is_the_best_threshold_of_all(name: str) -> None:
    """No multiple of 1/500 of the largest magnitude is better by more than the step between candidates costs."""
    histogram = Histogram.of(draw(name))
    found = least_squares_threshold(histogram)
    grid = histogram.absmax * np.arange(1, 501) / 500
    assert squared_errors(histogram, np.array([found]))[0] <= squared_errors(histogram, grid).min() * 1.01


@pytest.mark.parametrize(
    ("name", "least_db"),
    [("normal", 40.3), ("laplace", 34.9), ("relu", 39.5), ("uniform", 48.0)],
)
def test_least_squares_holds_on_fresh_values(name: str, least_db: float) -> None:
    limit = least_squares_threshold(Histogram.of(draw(name)))
    fresh = draw(name, seed=4)
    assert sqnr_db(fresh, on_grid(fresh, limit)) > least_db


def test_least_squares_clips_a_lonely_outlier_only_if_that_costs_less() -> None:
    """600 values' worth of finer rounding pay for clipping 60 to 59; a million for one outlier of 60 to 5."""
    assert 3.5 < least_squares_threshold(Histogram.of(draw("outlier", count=5_000_000))) < 40
    assert least_squares_threshold(Histogram.of(draw("outlier", count=3_000))) > 50


@pytest.mark.parametrize("method", [CalibrationMethod.MSE, CalibrationMethod.AUTO])
@pytest.mark.parametrize("count", [1, 2, 100, FEWEST_VALUES - 1])
def test_nothing_is_clipped_on_the_evidence_of_few_values(method: CalibrationMethod, count: int) -> None:
    values = np.random.default_rng(count).standard_t(2, size=count).astype(np.float32)
    assert threshold(Histogram.of(values), method) == np.abs(values).max()


def test_equally_good_thresholds_leave_the_largest_magnitude() -> None:
    """Code 127 of one and code 126 of another step of the grid are both exactly the only value there is."""
    histogram = Histogram.of(draw("constant"))
    assert least_squares_threshold(histogram) == pytest.approx(2.5, rel=1e-3)
    assert choose(histogram) is CalibrationMethod.MAX


@pytest.mark.parametrize("share", [0.5, 0.99, 0.9999])
def test_percentile_keeps_its_share_and_hardly_more(share: float) -> None:
    values = np.random.default_rng(1).uniform(0.5, 1.0, size=COUNT).astype(np.float32)
    histogram = Histogram.of(values)
    limit = percentile_threshold(histogram, share)
    assert np.mean(values <= limit) >= share
    assert np.mean(values <= limit - 2 * histogram.bin_width) < share


def test_percentile_of_few_values_is_the_largest_of_them() -> None:
    values = np.array([0.0, 0.0, -3.0, 1.0], np.float32)
    assert percentile_threshold(Histogram.of(values)) == 3.0


def test_percentile_clips_one_value_in_ten_thousand() -> None:
    values = np.append(np.full(19_998, 1.0), [50.0, 60.0]).astype(np.float32)
    histogram = Histogram.of(values)
    assert threshold(histogram, CalibrationMethod.PERCENTILE) == pytest.approx(1.0, abs=histogram.bin_width)
    assert threshold(Histogram.of(values[1:]), CalibrationMethod.PERCENTILE) >= 50.0


@pytest.mark.parametrize("name", NAMES)
def test_automatic_clips_where_that_gains_enough_and_nowhere_else(name: str) -> None:
    histogram = Histogram.of(draw(name))
    best = least_squares_threshold(histogram)
    errors = squared_errors(histogram, np.array([histogram.absmax, best]))
    gain_db = 10 * np.log10(errors[0] / errors[1]) if errors[1] else 0.0
    expected = best if gain_db > LEAST_GAIN_DB else histogram.absmax
    assert threshold(histogram, CalibrationMethod.AUTO) == expected


def test_automatic_knows_tails_from_flat_tops() -> None:
    assert choose(Histogram.of(draw("uniform"))) is CalibrationMethod.MAX
    assert choose(Histogram.of(draw("normal", count=10_000))) is CalibrationMethod.MAX
    assert choose(Histogram.of(draw("laplace"))) is CalibrationMethod.MSE
    assert choose(Histogram.of(draw("outlier"))) is CalibrationMethod.MSE


@pytest.mark.parametrize("method", list(CalibrationMethod))
@pytest.mark.parametrize("name", NAMES)
def test_every_threshold_is_positive_and_at_most_the_largest_magnitude(
    method: CalibrationMethod, name: str
) -> None:
    histogram = Histogram.of(draw(name, count=20_000))
    before = histogram.counts.copy()
    assert 0 < threshold(histogram, method) <= histogram.absmax
    assert np.array_equal(histogram.counts, before)


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_scaling_the_tensor_by_a_power_of_two_scales_the_threshold(method: CalibrationMethod) -> None:
    values = draw("laplace")
    assert threshold(Histogram.of(values * 1024), method) == pytest.approx(
        1024 * threshold(Histogram.of(values), method), rel=1e-12
    )


@pytest.mark.parametrize("method", list(CalibrationMethod))
@pytest.mark.parametrize("size", [1e-38, 1e30])
def test_tiny_and_huge_tensors_have_thresholds(method: CalibrationMethod, size: float) -> None:
    values = draw("normal", count=20_000) * np.float32(size)
    assert 0 < threshold(Histogram.of(values), method) <= np.abs(values).max()


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "uniform"])
def test_noise_to_signal_predicts_the_sqnr_of_the_tensor(name: str) -> None:
    values = draw(name)
    histogram = Histogram.of(values)
    limit = 0.8 * histogram.absmax
    predicted_db = -10 * np.log10(noise_to_signal(histogram, limit))
    assert predicted_db == pytest.approx(sqnr_db(values, on_grid(values, limit)), abs=0.2)


def test_tensor_of_zeros_has_no_noise() -> None:
    assert noise_to_signal(Histogram.of(np.zeros(10, np.float32)), 0.0) == 0
