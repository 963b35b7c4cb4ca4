from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.calibration.entropy import FEWEST_VALUES, LEVELS, VALUES_PER_CLIPPED, entropy_threshold
from engines.calibration.histogram import Histogram
from engines.calibration.thresholds import threshold
from engines.formats import activation_scale, dequantize, quantize, sqnr_db
from engines.options import CalibrationMethod

Values = NDArray[np.floating]

RANDOM = np.random.default_rng(11)
ROWS = 200_000


def literal_threshold(histogram: Histogram, most_clipped: float) -> float:
    """The published algorithm step by step, without prefix sums: every candidate builds its P and Q.

    Candidates that clip more than the share `most_clipped` are left out.
    """
    beyond = np.append(np.cumsum(histogram.counts[::-1])[::-1], 0) / histogram.counts.sum()
    counts = histogram.counts.astype(np.float64)
    counts[0] = min(counts[0], counts[1])
    used = int(np.ceil(histogram.absmax / histogram.bin_width))
    counts = counts[: used + 1]
    best, least = len(counts), np.inf
    for kept in range(LEVELS, len(counts) + 1):
        if beyond[kept] > most_clipped:
            continue
        clipped = counts[kept:].sum()
        p = counts[:kept].copy()
        level = np.arange(kept) * LEVELS // kept
        filled = np.bincount(level, p > 0, minlength=LEVELS)
        merged = np.bincount(level, p, minlength=LEVELS) / np.maximum(filled, 1)
        q = np.where(p > 0, merged[level], 0)
        p[-1] += clipped
        if (q[p > 0] == 0).any():
            continue
        some = p > 0
        p, q = p[some] / p.sum(), q[some] / q.sum()
        divergence = float(np.sum(p * np.log(p / q)))
        if divergence <= least + 1e-12:
            best, least = kept, min(divergence, least)
    return min((best + 0.5) * histogram.bin_width, histogram.absmax)


DISTRIBUTIONS = {
    "half-normal": np.abs(RANDOM.normal(size=ROWS)),
    "normal": RANDOM.normal(size=ROWS),
    "laplace": RANDOM.laplace(size=ROWS),
    "student-t": RANDOM.standard_t(3, size=ROWS),
    "relu": np.maximum(RANDOM.normal(-0.25, size=ROWS), 0),
    "relu with an outlier": np.append(np.maximum(RANDOM.normal(size=ROWS), 0), 40.0),
    "uniform": RANDOM.uniform(size=ROWS),
}


def sqnr_at(values: Values, limit: float) -> float:
    scale = activation_scale(limit)
    return sqnr_db(values, dequantize(quantize(values, scale, low=-128, high=127), scale))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_threshold_is_that_of_the_literal_algorithm(name: str) -> None:
    histogram = Histogram.of(DISTRIBUTIONS[name].astype(np.float32))
    expected = literal_threshold(histogram, 1 / VALUES_PER_CLIPPED)
    assert entropy_threshold(histogram) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["half-normal", "normal", "laplace", "uniform", "relu with an outlier"])
def test_limit_on_clipping_changes_nothing_where_values_are_many_and_tails_light(name: str) -> None:
    histogram = Histogram.of(DISTRIBUTIONS[name].astype(np.float32))
    assert entropy_threshold(histogram) == pytest.approx(literal_threshold(histogram, 1.0), rel=1e-6)


def gelu(values: Values) -> Values:
    return np.asarray(values * 0.5 * (1 + np.tanh(0.7978845608 * (values + 0.044715 * values**3))))


@pytest.mark.parametrize(
    ("shape", "count", "least_db"), [(gelu, 10_000, 36), (np.exp, 10_000, 19), (lambda x: x, 3_000, 36)]
)
def test_few_values_are_no_reason_to_clip_deep(
    shape: Callable[[Values], Values], count: int, least_db: float
) -> None:
    """Unlimited, the algorithm gets 30, 15 and less than 36 dB here: it takes the noise of the counts for shape."""
    random = np.random.default_rng(5)
    fresh = shape(random.normal(size=ROWS)).astype(np.float32)
    limits = [
        entropy_threshold(Histogram.of(shape(random.normal(size=count)).astype(np.float32))) for _ in range(5)
    ]
    assert np.mean([sqnr_at(fresh, limit) for limit in limits]) > least_db


@pytest.mark.parametrize("count", [FEWEST_VALUES, 20_000, ROWS])
def test_share_of_clipped_values_is_limited(count: int) -> None:
    values = np.abs(RANDOM.standard_cauchy(size=count)).astype(np.float32)
    limit = entropy_threshold(Histogram.of(values))
    assert np.count_nonzero(values > limit) <= max(1, count // VALUES_PER_CLIPPED)
    assert limit < values.max()


@pytest.mark.parametrize(("name", "least_db"), [("half-normal", 39.0), ("relu", 38.0), ("uniform", 46.0)])
def test_zeros_and_small_values_do_not_drag_the_threshold_down(name: str, least_db: float) -> None:
    values = DISTRIBUTIONS[name].astype(np.float32)
    assert sqnr_at(values, entropy_threshold(Histogram.of(values))) > least_db


@pytest.mark.parametrize("name", ["half-normal", "normal", "laplace", "relu"])
def test_spike_next_to_zero_is_ignored_as_zeros_are(name: str) -> None:
    values = DISTRIBUTIONS[name].astype(np.float32)
    spiked = np.append(values, np.full(ROWS, 1e-5, np.float32))
    assert entropy_threshold(Histogram.of(spiked)) == entropy_threshold(Histogram.of(values)) > 3.0


def test_lonely_outlier_is_clipped() -> None:
    values = DISTRIBUTIONS["relu with an outlier"].astype(np.float32)
    limit = entropy_threshold(Histogram.of(values))
    assert limit < 10
    assert sqnr_at(values[:-1], limit) > sqnr_at(values[:-1], 40.0) + 10


def test_constant_keeps_its_value() -> None:
    assert entropy_threshold(Histogram.of(np.full(5000, 2.5, np.float32))) == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_all_zero_tensor_has_no_threshold(method: CalibrationMethod) -> None:
    assert threshold(Histogram.of(np.zeros(100, np.float32)), method) == 0
    assert threshold(Histogram.empty(), method) == 0


def test_one_outlier_among_the_fewest_values_is_clipped_and_among_fewer_is_not() -> None:
    values = np.append(RANDOM.normal(size=FEWEST_VALUES - 1), 60.0).astype(np.float32)
    assert entropy_threshold(Histogram.of(values)) < 10
    assert entropy_threshold(Histogram.of(values[1:])) == 60


@pytest.mark.parametrize("size", range(1, 11))
def test_nothing_is_clipped_on_the_evidence_of_a_few_values(size: int) -> None:
    values = RANDOM.standard_t(2, size=size).astype(np.float32)
    assert entropy_threshold(Histogram.of(values)) == np.abs(values).max()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_threshold_never_exceeds_the_largest_magnitude(name: str) -> None:
    histogram = Histogram.of(DISTRIBUTIONS[name].astype(np.float32))
    assert 0 < entropy_threshold(histogram) <= histogram.absmax == threshold(histogram, CalibrationMethod.MAX)


def test_histogram_is_not_changed() -> None:
    histogram = Histogram.of(DISTRIBUTIONS["relu"].astype(np.float32))
    before = histogram.counts.copy()
    entropy_threshold(histogram)
    assert np.array_equal(histogram.counts, before)


def test_scaling_the_tensor_by_a_power_of_two_scales_the_threshold() -> None:
    values = DISTRIBUTIONS["laplace"].astype(np.float32)
    assert entropy_threshold(Histogram.of(values * 1024)) == 1024 * entropy_threshold(Histogram.of(values))
