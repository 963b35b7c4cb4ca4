from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.calibration.float8_thresholds import (
    LEAST_GAIN_DB,
    choose_float8,
    float8_errors,
    float8_threshold,
)
from engines.calibration.histogram import Histogram
from engines.calibration.thresholds import chosen, threshold
from engines.float8 import float8_grid
from engines.formats import sqnr_db
from engines.options import FP8_METHODS, CalibrationMethod, Precision

COUNT = 200_000
Values = NDArray[np.float32]

SHAPES: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "normal": lambda random: random.normal(size=COUNT),
    "half-normal": lambda random: np.abs(random.normal(size=COUNT)),
    "laplace": lambda random: random.laplace(size=COUNT),
    "student-t": lambda random: random.standard_t(3, size=COUNT),
    "log-normal": lambda random: random.lognormal(0, 1.5, size=COUNT),
    "uniform": lambda random: random.uniform(size=COUNT),
    "relu": lambda random: np.maximum(random.normal(size=COUNT) - 0.25, 0),
}


def draw(name: str, seed: int = 3) -> Values:
    return SHAPES[name](np.random.default_rng(seed)).astype(np.float32)


def at(values: Values, limit: float) -> float:
    return sqnr_db(values, float8_grid(limit).snap(values))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0, 1.3, 1.9])
def test_error_is_that_of_the_values_themselves(name: str, share: float) -> None:
    values = draw(name)
    histogram = Histogram.of(values)
    limit = share * histogram.absmax
    error = values.astype(np.float64) - float8_grid(limit).snap(values)
    expected = np.sum(error**2) / np.count_nonzero(values)
    assert float8_errors(histogram, np.array([limit]))[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("name", "db"), [("half-normal", 31.6), ("normal", 31.6), ("laplace", 31.5), ("student-t", 31.6)]
)
def test_the_largest_magnitude_is_a_good_threshold_whatever_the_tail(name: str, db: float) -> None:
    values = draw(name)
    assert at(values, float(np.abs(values).max())) == pytest.approx(db, abs=0.2)


def test_clipping_a_long_tail_costs_far_more_than_it_wins() -> None:
    values = draw("student-t")
    clipped = float(np.quantile(np.abs(values), 0.9999))
    assert at(values, clipped) < at(values, float(np.abs(values).max())) - 10


@pytest.mark.parametrize("name", SHAPES)
def test_no_threshold_is_better_than_the_fitted_one(name: str) -> None:
    """From a quarter of the largest magnitude to four times it, up to what the step between candidates costs."""
    histogram = Histogram.of(draw(name))
    found = float8_threshold(histogram)
    assert histogram.absmax <= found < 2 * histogram.absmax
    others = histogram.absmax * np.geomspace(0.25, 4, 999)
    best = float8_errors(histogram, others).min()
    assert float8_errors(histogram, np.array([found]))[0] <= best * 1.01


def test_fitted_thresholds_hold_on_fresh_values() -> None:
    histogram = Histogram.of(draw("uniform"))
    fresh = draw("uniform", seed=4)
    assert at(fresh, float8_threshold(histogram)) > at(fresh, histogram.absmax) + 0.7


@pytest.mark.parametrize("name", SHAPES)
def test_automatic_takes_another_threshold_only_where_that_wins_enough(name: str) -> None:
    histogram = Histogram.of(draw(name))
    fitted = float8_threshold(histogram)
    largest, best = float8_errors(histogram, np.array([histogram.absmax, fitted]))
    wins = 10 * np.log10(largest / best) > LEAST_GAIN_DB
    expected = fitted if wins else histogram.absmax
    assert threshold(histogram, CalibrationMethod.AUTO, Precision.FP8) == expected
    assert chosen(histogram, CalibrationMethod.AUTO, Precision.FP8) is (
        CalibrationMethod.MSE if wins else CalibrationMethod.MAX
    )


def test_automatic_knows_flat_tops_from_bells() -> None:
    assert choose_float8(Histogram.of(draw("uniform"))) is CalibrationMethod.MSE
    assert choose_float8(Histogram.of(draw("normal"))) is CalibrationMethod.MAX
    laplace = Histogram.of(draw("laplace"))
    assert float8_threshold(laplace) > laplace.absmax
    assert choose_float8(laplace) is CalibrationMethod.MAX, "0.05 dB are not worth it"


@pytest.mark.parametrize("method", sorted(FP8_METHODS))
def test_tensor_of_zeros_has_threshold_zero(method: CalibrationMethod) -> None:
    assert threshold(Histogram.of(np.zeros(10, np.float32)), method, Precision.FP8) == 0


@pytest.mark.parametrize("method", sorted(FP8_METHODS))
def test_scaling_the_tensor_by_a_power_of_two_scales_the_threshold(method: CalibrationMethod) -> None:
    values = draw("uniform")
    large, small = (
        threshold(Histogram.of(values * np.float32(size)), method, Precision.FP8) for size in (1024, 1)
    )
    assert large == pytest.approx(1024 * small, rel=1e-12)


@pytest.mark.parametrize("method", sorted(FP8_METHODS))
@pytest.mark.parametrize("size", [1e-36, 1e30])
def test_tiny_and_huge_tensors_have_thresholds(method: CalibrationMethod, size: float) -> None:
    values = draw("normal") * np.float32(size)
    largest = float(np.abs(values).max())
    assert largest <= threshold(Histogram.of(values), method, Precision.FP8) < 2 * largest


@pytest.mark.parametrize("method", sorted(set(CalibrationMethod) - FP8_METHODS))
def test_methods_that_only_clip_are_refused(method: CalibrationMethod) -> None:
    with pytest.raises(ValueError, match=f"no {method.value} calibration for fp8; use max, mse or auto"):
        threshold(Histogram.of(draw("normal")), method, Precision.FP8)
